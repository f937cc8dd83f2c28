/** A replica that starts late: what it takes over from one that has run, and what it lets nobody talk it into. */
import { describe, expect, test } from '@jest/globals';
import { setTimeout as delay } from 'node:timers/promises';
import { Server, ServerCredentials, type ServerWritableStream } from '@grpc/grpc-js';
import { createApp, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createIngest, type Ingest, type IngestSource, type SourceSnapshot } from '../../src/kvevents/ingest.ts';
import { silentLog, type Log } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { loadSiblings, type Piece, type Wish } from '../../src/siblings/sibling-protocol.ts';
import { createSimulatedPod } from '../../src/simulator/simulated-pod.ts';
import { eventually, MODEL, stageConfig, type RunningPod } from '../e2e/stage.ts';
import { endAfterEach } from '../support/endings.ts';
import { FakePublisher, removed, stored } from '../support/fake-publisher.ts';
import { BLOCK, tokens } from '../support/kv-ingest.ts';

const atEnd = endAfterEach();
const PATIENCE_MS = 15_000;

describe('between two replicas', () => {
  const SEED = createHashSeed();
  const hasher = createBlockHasher(SEED);

  const sourceOf = (publisher: FakePublisher, slot: number, incarnation = ''): IngestSource => ({
    endpointId: `pod-of-${slot}` as EndpointId,
    slot: slot as EndpointSlot,
    rank: 0,
    model: 'm',
    kvEvents: { endpoint: publisher.endpoint, replayEndpoint: publisher.replayEndpoint },
    incarnation,
  });

  async function aReplica(publisher: FakePublisher, slot: number): Promise<Ingest> {
    const ingest = createIngest(
      { log: silentLog, clock: systemClock, onCounters: () => undefined },
      {
        indexMaxBytes: 8 * 2 ** 20,
        seed: SEED,
        stream: { idleProbeMs: 300, firstProbeMs: 50, replayTimeoutMs: 300 },
      },
    );
    await ingest.start();
    atEnd(() => ingest.stop());
    await ingest.reconcile([sourceOf(publisher, slot)]);
    await eventually(() => (ingest.statuses()[0]!.state === 'live' ? 'done' : 'not live'), PATIENCE_MS);
    return ingest;
  }

  const matched = (ingest: Ingest, slot: number, ...blocks: number[]): number => {
    const hashes = hasher.blocks(Uint32Array.from(tokens(...blocks)), hasher.root('m', null, BLOCK), BLOCK);
    return ingest.index.longestMatch(hashes).blocks(slot);
  };
  const known = (ingest: Ingest, lastSeq: number): Promise<void> =>
    eventually(() => {
      const [status] = ingest.statuses();
      return status!.state === 'live' && status!.lastSeq === String(lastSeq) ? 'done' : JSON.stringify(status);
    }, PATIENCE_MS);

  /** Ten blocks in ten batches, of which three can be replayed; the first replica has seen all. */
  async function lateReplica() {
    const publisher = await FakePublisher.start({ bufferSteps: 3 });
    atEnd(() => publisher.stop());
    const first = await aReplica(publisher, 1);
    for (let i = 0; i < 10; i++) await publisher.publish(stored([100 + i], i === 0 ? null : 99 + i, tokens(i)));
    await known(first, 9);
    const late = await aReplica(publisher, 2);
    await known(late, 9);
    const [name] = late.sharedNames('partial');
    return { publisher, first, late, name: name! };
  }

  test('what the engine no longer replays is taken over, and goes on like any other view', async () => {
    const { publisher, first, late, name } = await lateReplica();
    expect(first.sharedNames('partial')).toEqual([]);
    expect(matched(late, 2, 0, 1)).toBe(0);
    expect(await late.adopt(name, (await first.snapshot(name))!)).toBe(true);
    await eventually(() => (late.statuses()[0]!.trust === 'exact' ? 'done' : late.statuses()[0]!.trust), PATIENCE_MS);
    expect(late.statuses()[0]).toMatchObject({ nBlocks: 10, partial: false, restarts: 0, blockSizeTokens: BLOCK });
    expect(matched(late, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)).toBe(10);
    await publisher.publish(removed(109, 108), stored([110], 107, tokens(77)));
    await known(late, 10);
    expect(matched(late, 2, 0, 1, 2, 3, 4, 5, 6, 7, 77)).toBe(9);
    expect(matched(late, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8)).toBe(8);
  });

  test('batches after the snapshot are added by the replay', async () => {
    const { publisher, first, late, name } = await lateReplica();
    const snapshot = (await first.snapshot(name))!;
    await publisher.publish(removed(109));
    await publisher.publish(removed(108));
    expect(await late.adopt(name, snapshot)).toBe(true);
    await eventually(() => (late.statuses()[0]!.trust === 'exact' ? 'done' : late.statuses()[0]!.trust), PATIENCE_MS);
    expect(matched(late, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)).toBe(8);
  });

  /** Twenty thousand blocks, 100 per prompt, told in some fifty steps; none of them can be replayed. */
  const N_PROMPTS = 200;
  const prompt = (i: number): number[] => Array.from({ length: 100 }, (_, k) => 1000 + 100 * i + k);
  async function largeReplicas() {
    const publisher = await FakePublisher.start({ bufferSteps: 200 });
    atEnd(() => publisher.stop());
    const first = await aReplica(publisher, 1);
    for (let i = 0; i < N_PROMPTS; i++) {
      const hashes = prompt(i).map((id) => id + 5);
      await publisher.publish(stored(hashes, null, tokens(...prompt(i))));
    }
    for (let i = 0; i < 250; i++) await publisher.publish();
    await known(first, publisher.nextSeq - 1);
    const late = await aReplica(publisher, 2);
    await known(late, publisher.nextSeq - 1);
    const [name] = late.sharedNames('partial');
    return { publisher, first, late, name: name! };
  }

  test('a restart while it is filled in ends that: what was filled in is forgotten', async () => {
    const { publisher, first, late, name } = await largeReplicas();
    const snapshot = (await first.snapshot(name))!;
    const adopting = late.adopt(name, snapshot);
    await late.reconcile([sourceOf(publisher, 2, 'the next process')]);
    await adopting;
    await known(late, publisher.nextSeq - 1);
    await eventually(
      () => (late.statuses()[0]!.trust === 'degraded' ? 'done' : JSON.stringify(late.statuses()[0])),
      PATIENCE_MS,
    );
    expect(late.statuses()[0]).toMatchObject({ restarts: 1, nBlocks: 0, partial: true });
    expect(matched(late, 2, ...prompt(0))).toBe(0);
    // What is left of it is no obstacle to the next.
    expect(await late.adopt(name, (await first.snapshot(name))!)).toBe(true);
    await eventually(() => (late.statuses()[0]!.trust === 'exact' ? 'done' : late.statuses()[0]!.trust), PATIENCE_MS);
    expect(matched(late, 2, ...prompt(0))).toBe(100);
  });

  test('it is told and taken over bit by bit while the engine goes on, and nothing false is promised meanwhile', async () => {
    const { publisher, first, late, name } = await largeReplicas();
    // Prompt i loses its last 50 blocks with batch `lost[i]`.
    const lost: number[] = [];
    const lies: string[] = [];
    const judge = (): void => {
      for (const [replica, slot] of [
        [first, 1],
        [late, 2],
      ] as const) {
        const before = replica.statuses()[0]!;
        if (before.trust === 'fallback') continue;
        const found = lost.flatMap((seq, i) => {
          const n = matched(replica, slot, ...prompt(i));
          return seq <= Number(before.lastSeq) && n > 50
            ? [`${n} blocks of prompt ${i} at ${before.lastSeq}, gone since ${seq}`]
            : [];
        });
        // So many questions take a moment, in which it may have ceased to be believed.
        if (replica.statuses()[0]!.trust !== 'fallback') lies.push(...found);
      }
    };
    let isDone = false;
    const working = (async () => {
      for (let i = 0; i < N_PROMPTS && !isDone; i++) {
        lost.push(publisher.nextSeq);
        await publisher.publish(
          removed(
            ...prompt(i)
              .slice(50)
              .reverse()
              .map((id) => id + 5),
          ),
        );
        judge();
        await delay(1);
      }
    })();
    // A busy engine may overtake its snapshot: then it is asked for again.
    let isTaken = false;
    for (let tries = 0; tries < 20 && !isTaken; tries++) {
      const snapshot = await first.snapshot(name);
      isTaken = snapshot !== null && (await late.adopt(name, snapshot));
    }
    expect(isTaken).toBe(true);
    await eventually(() => (late.statuses()[0]!.trust === 'exact' ? 'done' : late.statuses()[0]!.trust), PATIENCE_MS);
    isDone = true;
    await working;
    await known(first, publisher.nextSeq - 1);
    await known(late, publisher.nextSeq - 1);
    judge();
    expect(lies).toEqual([]);
    expect(late.statuses()[0]!.nBlocks).toBe(100 * N_PROMPTS - 50 * lost.length);
    expect(first.statuses()[0]).toMatchObject({ nBlocks: 100 * N_PROMPTS - 50 * lost.length, gaps: 0, restarts: 0 });
    for (const i of [0, lost.length, N_PROMPTS - 1]) {
      expect(matched(late, 2, ...prompt(i))).toBe(i < lost.length ? 50 : 100);
    }
  });

  test('one that is too old to be followed on from is not believed', async () => {
    const { publisher, first, late, name } = await lateReplica();
    const snapshot = (await first.snapshot(name))!;
    for (let i = 0; i < 5; i++) await publisher.publish(removed(109 - i));
    await known(late, 14);
    await late.adopt(name, snapshot);
    await eventually(
      () => (late.statuses()[0]!.trust === 'degraded' ? 'done' : late.statuses()[0]!.trust),
      PATIENCE_MS,
    );
    expect(matched(late, 2, 0)).toBe(0);
    expect(late.statuses()[0]).toMatchObject({ partial: true, nBlocks: 0 });
  });

  test('one of another process is not believed, though its numbers fit', async () => {
    const { publisher, first, name } = await lateReplica();
    const snapshot = (await first.snapshot(name))!;
    const next = await publisher.restart({ bufferSteps: 3, firstSeq: 5 });
    atEnd(() => next.stop());
    for (let i = 0; i < 6; i++) await next.publish(stored([200 + i], null, tokens(50 + i)));
    const late = await aReplica(next, 2);
    await known(late, 10);
    await late.adopt(name, snapshot);
    await eventually(
      () => (late.statuses()[0]!.trust === 'degraded' ? 'done' : late.statuses()[0]!.trust),
      PATIENCE_MS,
    );
    expect([matched(late, 2, 0), matched(late, 2, 55)]).toEqual([0, 1]);
  });

  test('a whole view is not given up for anything, and what is in doubt is told to nobody', async () => {
    const { publisher, first, name } = await lateReplica();
    const snapshot = (await first.snapshot(name))!;
    expect(await first.adopt(name, snapshot)).toBe(false);
    expect(matched(first, 1, 0, 1, 2, 3)).toBe(4);
    expect(await first.snapshot('another')).toBeNull();
    await publisher.stop();
    await eventually(() => (first.statuses()[0]!.trust === 'fallback' ? 'done' : 'still believed'), PATIENCE_MS);
    expect(await first.snapshot(name)).toBeNull();
  });

  test('words that are none cost the partial view nothing but a replay', async () => {
    const { late, name } = await lateReplica();
    const nonsense: SourceSnapshot = {
      mark: { seq: 9n, print: 1 },
      words: Uint32Array.from({ length: 100 }, (_, i) => i),
    };
    expect(await late.adopt(name, nonsense)).toBe(false);
    await eventually(
      () => (late.statuses()[0]!.trust === 'degraded' ? 'done' : late.statuses()[0]!.trust),
      PATIENCE_MS,
    );
    expect(late.statuses()[0]).toMatchObject({ errors: 1, lastSeq: '9' });
  });
});

describe('as they are run', () => {
  async function aPod(): Promise<RunningPod> {
    const pod = createSimulatedPod({
      model: MODEL,
      bufferSteps: 4,
      nBlocks: 500,
      prefillTokensPerSecond: 1e6,
      decodeStepMs: 0,
    });
    const addresses = await pod.start();
    atEnd(() => pod.stop());
    return { name: 'pod', addresses, pod };
  }

  async function work({ addresses }: RunningPod, first: number): Promise<void> {
    for (let i = first; i < first + 20; i++) {
      const prompt = Array.from({ length: 100 }, (_, k) => 100 + (k < 48 ? k : i * 60 + k));
      const response = await fetch(`http://${addresses.httpAddress}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: MODEL, prompt, max_tokens: 1 }),
      });
      await response.text();
      expect(response.status).toBe(200);
    }
  }

  async function aReplica(
    pod: RunningPod,
    siblings: string,
    log: Log = silentLog,
    tls: object | null = null,
  ): Promise<AppAddresses> {
    const server = tls === null ? {} : { tls };
    const config = stageConfig([pod], { kvEvents: { siblings }, server });
    const app = createApp(config, { log, clock: systemClock });
    atEnd(() => app.stop());
    return app.start();
  }

  type View = { trust: string; kvEvents: { blocks: number; coverage: string; lastSeq: string } };

  async function view({ admin }: AppAddresses): Promise<View> {
    const response = await fetch(`http://${admin}/api/v1/endpoints`);
    return ((await response.json()) as [View])[0];
  }

  const until = (replica: AppAddresses, isIt: (view: View) => boolean): Promise<void> =>
    eventually(async () => {
      const its = await view(replica);
      return isIt(its) ? 'done' : JSON.stringify(its);
    }, PATIENCE_MS);

  async function matchedBlocks({ admin }: AppAddresses, prompt: Uint32Array): Promise<number> {
    const body = { model: MODEL, prompt: [...prompt], max_tokens: 1 };
    const response = await fetch(`http://${admin}/api/v1/explain`, {
      method: 'POST',
      body: JSON.stringify({ path: '/v1/completions', headers: {}, body }),
    });
    return ((await response.json()) as { candidates: [{ matchedBlocks: { gpu: number } }] }).candidates[0].matchedBlocks
      .gpu;
  }

  const ported = (address: string): string => `localhost:${address.slice(address.lastIndexOf(':') + 1)}`;

  test('one that starts late soon knows what the first one knows, and both know what the pod holds', async () => {
    const pod = await aPod();
    // Nobody is there yet: it starts all the same.
    const first = await aReplica(pod, 'localhost:1');
    await until(first, ({ trust }) => trust === 'exact');
    await work(pod, 0);
    const late = await aReplica(pod, ported(first.grpc));
    await until(late, ({ trust, kvEvents }) => trust === 'exact' && kvEvents.coverage === 'whole');
    await work(pod, 20);
    for (const replica of [first, late]) {
      await until(replica, ({ kvEvents }) => kvEvents.lastSeq === String(pod.pod.stats().nextSeq - 1));
      expect(await view(replica)).toMatchObject({ kvEvents: { blocks: pod.pod.residentBlocks().length } });
      for (const block of pod.pod.residentBlocks().slice(0, 100)) {
        const prompt = block.prefixTokenIds();
        expect(await matchedBlocks(replica, Uint32Array.from([...prompt, 1]))).toBe(prompt.length / 16);
      }
    }
  });

  test('with mutual TLS only a sibling of the same identity is asked, and told', async () => {
    const file = (name: string): string => new URL(`../fixtures/tls/${name}`, import.meta.url).pathname;
    // Each is its own CA.
    const identity = (name: string): object => ({
      certFile: file(`${name}.crt`),
      keyFile: file(`${name}.key`),
      clientCaFile: file(`${name}.crt`),
    });
    const logged: string[] = [];
    const log: Log = { ...silentLog, with: () => log, info: (message) => void logged.push(message) };
    const pod = await aPod();
    const first = await aReplica(pod, 'localhost:1', silentLog, identity('server-a'));
    await until(first, ({ trust }) => trust === 'exact');
    await work(pod, 0);
    const stranger = await aReplica(pod, ported(first.grpc), log, identity('server-b'));
    const plain = await aReplica(pod, ported(first.grpc), log);
    const same = await aReplica(pod, ported(first.grpc), silentLog, identity('server-a'));
    await until(same, ({ trust, kvEvents }) => trust === 'exact' && kvEvents.coverage === 'whole');
    await eventually(
      () =>
        logged.filter((message) => message === 'sibling gave no snapshot').length >= 2 ? 'done' : logged.join('; '),
      PATIENCE_MS,
    );
    for (const other of [stranger, plain]) expect(await view(other)).toMatchObject({ trust: 'degraded' });
    expect(logged).not.toContain('hash seed taken over from a sibling');
  });

  type Hostile = { greet?: 'silent' | 'version' | 'short'; pull?: (call: ServerWritableStream<Wish, Piece>) => void };

  async function aHostileSibling({ greet, pull }: Hostile): Promise<string> {
    const server = new Server();
    const seed = Buffer.alloc(32, 7);
    server.addService(loadSiblings(), {
      Greet(_call: unknown, answer: (error: null, welcome: object) => void) {
        if (greet === 'silent') return;
        answer(null, { version: greet === 'version' ? 99 : 1, seed: greet === 'short' ? seed.subarray(1) : seed });
      },
      Pull: (call: ServerWritableStream<Wish, Piece>) => (pull ?? ((it) => it.end()))(call),
    });
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      );
    });
    atEnd(() => server.forceShutdown());
    return `127.0.0.1:${port}`;
  }

  const aPiece = (change: Partial<Piece> = {}): Piece => ({
    source: 0,
    seq: '10',
    print: 5,
    words: Buffer.alloc(4096, 0xab),
    is_last: true,
    ...change,
  });
  const forever = (call: ServerWritableStream<Wish, Piece>): void => {
    const more = (): void => {
      while (!call.cancelled && call.write(aPiece({ words: Buffer.alloc(256 * 1024), is_last: false })));
      if (!call.cancelled) call.once('drain', more);
    };
    more();
  };

  test.each<[string, Hostile, string | null]>([
    ['that says nothing', { greet: 'silent' }, 'sibling gave no seed'],
    ['of another version', { greet: 'version' }, 'sibling gave no seed'],
    ['whose seed is none', { greet: 'short' }, 'sibling gave no seed'],
    ['that sends garbage', { pull: (call) => (call.write(aPiece()), call.end()) }, 'kv event snapshot refused'],
    [
      'that stops in the middle',
      { pull: (call) => (call.write(aPiece({ is_last: false })), call.emit('error', new Error('gone'))) },
      'sibling gave no snapshot',
    ],
    [
      'that answers what nobody asked',
      { pull: (call) => (call.write(aPiece({ source: 9 })), call.end()) },
      'sibling gave no snapshot',
    ],
    [
      'that mixes pieces',
      { pull: (call) => (call.write(aPiece({ is_last: false })), call.write(aPiece({ seq: '11' })), call.end()) },
      'sibling gave no snapshot',
    ],
    ['that never ends', { pull: forever }, 'sibling gave no snapshot'],
    ['that never begins', { pull: () => undefined }, null],
  ])('a sibling %s costs nothing but the attempt', async (_what, hostile, said) => {
    const pod = await aPod();
    await work(pod, 0);
    const logged: string[] = [];
    const log: Log = {
      ...silentLog,
      with: () => log,
      info: (message) => void logged.push(message),
      warn: (message) => void logged.push(message),
    };
    const replica = await aReplica(pod, await aHostileSibling(hostile), log);
    await until(replica, ({ trust }) => trust === 'degraded');
    if (said !== null) await eventually(() => (logged.includes(said) ? 'done' : logged.join('; ')), PATIENCE_MS);
    await until(replica, ({ trust }) => trust === 'degraded');
    await work(pod, 20);
    await until(replica, ({ kvEvents }) => kvEvents.lastSeq === String(pod.pod.stats().nextSeq - 1));
    // What it promises is there: a prompt that has just been answered.
    const held = new Set(pod.pod.residentBlocks().map((block) => block.prefixTokenIds().join()));
    for (const block of pod.pod.residentBlocks().slice(-30)) {
      const prompt = block.prefixTokenIds();
      const nMatched = await matchedBlocks(replica, Uint32Array.from([...prompt, 1]));
      for (let n = 1; n <= nMatched; n++) expect(held.has(prompt.slice(0, 16 * n).join())).toBe(true);
    }
  });
});
