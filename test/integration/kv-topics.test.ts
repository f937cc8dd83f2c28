/** Publishers that connect to us: told apart by topic, never believed to be more than the address they name. */
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { Publisher } from 'zeromq';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createIngest, type Ingest, type IngestSource, type SourceStatus } from '../../src/kvevents/ingest.ts';
import { silentLog } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { FakePublisher, stored } from '../support/fake-publisher.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

const MODEL = 'test-model';
const BLOCK = 4;
const A = '10.0.0.1:8000';
const B = '10.0.0.2:8000';
const tokens = (...blocks: number[]): number[] => blocks.flatMap((i) => [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]);

let port: number;
let ingest: Ingest;
let matched: (slot: number, ...blocks: number[]) => number;
let errors: Record<string, number>;
const opened: { stop(): Promise<void> }[] = [];

beforeEach(async () => {
  port = await twoFreePorts();
  errors = {};
  const seed = createHashSeed();
  const hasher = createBlockHasher(seed);
  const root = hasher.root(MODEL, null, BLOCK);
  ingest = createIngest(
    {
      log: silentLog,
      clock: systemClock,
      onCounters: (delta) => {
        for (const [reason, n] of Object.entries(delta.errors)) errors[reason] = (errors[reason] ?? 0) + n;
      },
    },
    {
      indexMaxBytes: 8 * 1024 * 1024,
      seed,
      listen: `127.0.0.1:${port}`,
      reportMs: 10,
      stream: { idleProbeMs: 300, firstProbeMs: 50, replayTimeoutMs: 1000 },
    },
  );
  matched = (slot, ...blocks) =>
    ingest.index.longestMatch(hasher.blocks(Uint32Array.from(tokens(...blocks)), root, BLOCK)).blocks(slot);
  await ingest.start();
});

afterEach(async () => {
  await Promise.all(opened.splice(0).map((one) => one.stop()));
  await ingest.stop();
});

/** A port that is free together with the next one. */
async function twoFreePorts(): Promise<number> {
  for (;;) {
    const first = createServer();
    await new Promise<void>((resolve) => first.listen(0, '127.0.0.1', resolve));
    const { port: found } = first.address() as { port: number };
    const second = createServer();
    const isFree = await new Promise<boolean>((resolve) => {
      second.once('error', () => resolve(false));
      second.listen(found + 1, '127.0.0.1', () => resolve(true));
    });
    await new Promise((resolve) => first.close(resolve));
    await new Promise((resolve) => second.close(resolve));
    if (isFree) return found;
  }
}

async function aPublisher(topic: string, rank = 0, firstSeq = 0): Promise<FakePublisher> {
  const publisher = await FakePublisher.start({ topic, dials: `tcp://127.0.0.1:${port + rank}`, firstSeq });
  opened.push(publisher);
  return publisher;
}

function sourceOf(address: string, slot: number, replay: FakePublisher | null, rank = 0): IngestSource {
  return {
    endpointId: `pod-${slot}` as EndpointId,
    slot: slot as EndpointSlot,
    rank,
    model: MODEL,
    kvEvents: {
      endpoint: rank === 0 ? `kv@${address}` : `kv@${address}#${rank}`,
      replayEndpoint: replay?.replayEndpoint ?? null,
    },
    incarnation: '',
  };
}

const statusOf = (slot: number): SourceStatus | undefined =>
  ingest.statuses().find(({ endpointId }) => endpointId === `pod-${slot}`);

async function until(what: string, condition: () => boolean): Promise<void> {
  const startMs = performance.now();
  while (!condition()) {
    if (performance.now() - startMs > 15_000) {
      throw new Error(`not within 15 s: ${what}; ${JSON.stringify([errors, ingest.statuses()])}`);
    }
    await delay(5);
  }
}

/** What is sent before a connection stands is lost: heartbeats until one has arrived. */
async function heard(publisher: FakePublisher, slot: number): Promise<void> {
  while (statusOf(slot)?.connection !== 'up') {
    await publisher.publish();
    await delay(20);
  }
}

describe('two publishers on one port', () => {
  test('are told apart by the address in their topic; what was missed is replayed', async () => {
    const [a, b] = [await aPublisher(`kv@${A}@${MODEL}`), await aPublisher(`kv@${B}@org/model@v2`)];
    await a.publish(stored([100], null, tokens(0)));
    await ingest.reconcile([sourceOf(A, 0, a), sourceOf(B, 1, b)]);
    await heard(a, 0);
    await heard(b, 1);
    await b.publish(stored([100, 101], null, tokens(0, 1)));
    await until('both', () => matched(0, 0, 1) === 1 && matched(1, 0, 1) === 2);
    await until('exact', () => [0, 1].every((slot) => statusOf(slot)?.trust === 'exact'));
  });

  test('a publisher without replay is believed as far as it was heard', async () => {
    await ingest.reconcile([sourceOf(A, 0, null)]);
    const a = await aPublisher(`kv@${A}@${MODEL}`);
    await heard(a, 0);
    await a.publish(stored([100], null, tokens(0)));
    await until('heard', () => matched(0, 0) === 1);
    expect(statusOf(0)).toMatchObject({ state: 'live', trust: 'degraded', replay: 'none' });
  });
});

test('topics that name nobody who is followed are counted and give nothing', async () => {
  await ingest.reconcile([sourceOf(A, 0, null)]);
  const topics = [
    'kv@10.0.0.9:8000@m',
    'kv@SHARED_STORAGE@m',
    `kv@${A}0@m`,
    '',
    'kv@',
    'kv',
    `x@${A}@m`,
    'y'.repeat(5000),
  ];
  const strangers = await Promise.all(topics.map((topic) => aPublisher(topic)));
  const a = await aPublisher(`kv@${A}@${MODEL}`);
  await heard(a, 0);
  await until('counted', () => {
    void Promise.all(strangers.map((one) => one.publish(stored([100], null, tokens(0)))));
    return (errors['unknown_topic'] ?? 0) >= 100;
  });
  await a.publish(stored([100], null, tokens(7)));
  await until('heard', () => matched(0, 7) === 1);
  expect(matched(0, 0)).toBe(0);
  expect(statusOf(0)).toMatchObject({ restarts: 0 });
});

test('a topic with the host alone means the only endpoint there; of several none', async () => {
  await ingest.reconcile([sourceOf(A, 0, null), sourceOf(B, 1, null), sourceOf('10.0.0.2:8001', 2, null)]);
  const [a, b] = [await aPublisher(`kv@10.0.0.1@${MODEL}`), await aPublisher(`kv@10.0.0.2@${MODEL}`)];
  await heard(a, 0);
  await until('unclear', () => {
    void b.publish(stored([100], null, tokens(0)));
    return (errors['unknown_topic'] ?? 0) > 0;
  });
  expect([statusOf(1)?.state, statusOf(2)?.state]).toEqual(['unknown', 'unknown']);
});

test('rank 1 connects to the next port', async () => {
  const topic = `kv@${A}@${MODEL}`;
  await ingest.reconcile([sourceOf(A, 0, null), { ...sourceOf(A, 0, null, 1) }]);
  const [first, second] = [await aPublisher(topic), await aPublisher(topic, 1)];
  const ofRank = (rank: number): SourceStatus | undefined => ingest.statuses().find((one) => one.rank === rank);
  await until('both', () => {
    void first.publish(stored([100], null, tokens(0)));
    void second.publish(stored([100, 101], null, tokens(0, 1)));
    return ofRank(0)?.nBlocks === 1 && ofRank(1)?.nBlocks === 2;
  });
});

test('a publisher that goes is in doubt, and nobody else on its port: the next process begins anew', async () => {
  const [a, b] = [await aPublisher(`kv@${A}@${MODEL}`), await aPublisher(`kv@${B}@${MODEL}`)];
  const c = await aPublisher('kv@10.0.0.3:8000@m');
  await ingest.reconcile([sourceOf(A, 0, a), sourceOf(B, 1, null), sourceOf('10.0.0.3:8000', 2, null)]);
  await Promise.all([heard(a, 0), heard(b, 1), heard(c, 2)]);
  await a.publish(stored([100], null, tokens(0)));
  await b.publish(stored([100], null, tokens(0)));
  await c.publish(stored([100], null, tokens(0)));
  await until('all', () => matched(0, 0) + matched(1, 0) + matched(2, 0) === 3);
  await until('exact', () => statusOf(0)?.trust === 'exact');
  await c.stop();
  await until('doubt', () => statusOf(2)?.state === 'suspect');
  expect([statusOf(0)?.trust, statusOf(1)?.trust, statusOf(2)?.trust]).toEqual(['exact', 'degraded', 'fallback']);
  await b.publish();
  await until('goes on', () => Number(statusOf(1)?.lastSeq) >= b.nextSeq - 1);
  expect([matched(1, 0), statusOf(1)?.restarts]).toEqual([1, 0]);
  const next = await aPublisher('kv@10.0.0.3:8000@m');
  await until('relearnt', () => {
    void next.publish();
    return statusOf(2)?.state === 'live';
  });
  expect([statusOf(2)?.restarts, matched(2, 0)]).toEqual([1, 0]);
});

test('a connection that is cut is a doubt: replay clears it up, else the next batch in turn does', async () => {
  const [a, b] = [await TcpProxy.to(`127.0.0.1:${port}`), await TcpProxy.to(`127.0.0.1:${port}`)];
  opened.push(a, b);
  const dialling = async (topic: string, proxy: TcpProxy): Promise<FakePublisher> => {
    const publisher = await FakePublisher.start({ topic, dials: `tcp://${proxy.address}` });
    opened.unshift(publisher);
    return publisher;
  };
  await ingest.reconcile([sourceOf(A, 0, null), sourceOf(B, 1, null)]);
  const withReplay = await dialling(`kv@${A}@${MODEL}`, a);
  const without = await dialling(`kv@${B}@${MODEL}`, b);
  await ingest.reconcile([sourceOf(A, 0, withReplay), sourceOf(B, 1, null)]);
  await Promise.all([heard(withReplay, 0), heard(without, 1)]);
  await withReplay.publish(stored([100], null, tokens(0)));
  await without.publish(stored([100], null, tokens(0)));
  await until('both', () => matched(0, 0) + matched(1, 0) === 2 && statusOf(0)?.trust === 'exact');
  a.cut();
  b.cut();
  await until('doubt', () => statusOf(1)?.state === 'suspect');
  // What is sent before the connection stands again is lost, and found missing.
  await until('cleared up', () => statusOf(0)?.trust === 'exact');
  await until('goes on', () => {
    void without.publish();
    return statusOf(1)?.state === 'live';
  });
  expect([statusOf(0)?.restarts, statusOf(1)?.restarts, matched(0, 0)]).toEqual([0, 0, 1]);
});

test('messages of the wrong form are counted and put their source in doubt', async () => {
  await ingest.reconcile([sourceOf(A, 0, null)]);
  const socket = new Publisher({ linger: 0 });
  opened.push({ stop: async () => socket.close() });
  socket.connect(`tcp://127.0.0.1:${port}`);
  await until('counted', () => {
    void socket.send([`kv@${A}@m`, Buffer.alloc(4), Buffer.from([0x92, 1, 0x90])]).catch(() => undefined);
    return (errors['sequence'] ?? 0) > 0;
  });
  await until('counted', () => {
    void socket.send([`kv@${A}@m`, Buffer.from('x')]).catch(() => undefined);
    return (errors['frames'] ?? 0) > 0;
  });
  expect(statusOf(0)?.trust).toBe('fallback');
});

test('a port that is taken is opened once it is free', async () => {
  const squatter = createServer();
  await new Promise<void>((resolve) => squatter.listen(port, '127.0.0.1', resolve));
  await ingest.reconcile([sourceOf(A, 0, null)]);
  await until('counted', () => (errors['socket'] ?? 0) > 0);
  expect(statusOf(0)).toMatchObject({ state: 'unknown', trust: 'fallback', connection: 'down' });
  await new Promise((resolve) => squatter.close(resolve));
  const a = await aPublisher(`kv@${A}@${MODEL}`);
  await heard(a, 0);
});
