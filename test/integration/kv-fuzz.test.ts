/**
 * Any bytes on the sockets of an event source: no crash, no stall, no memory that stays, counted by reason; what was
 * believed is relearnt, and the neighbour never notices. A failing run prints its seed (`FUZZ_SEED=n` runs it again).
 */
import { createServer, type Server, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { Packr } from 'msgpackr';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { SKIP_REASONS } from '../../src/kvevents/decode.ts';
import { createIngest, type Ingest, type IngestSource, type SourceStatus } from '../../src/kvevents/ingest.ts';
import { silentLog } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { FakePublisher, removed, stored } from '../support/fake-publisher.ts';
import { createRandom } from '../support/kv-events.ts';

const MODEL = 'test-model';
const BLOCK = 4;
const REASONS = [...SKIP_REASONS, 'payload', 'frames', 'sequence', 'replay_frames', 'socket'];
const tokens = (...blocks: number[]): number[] => blocks.flatMap((i) => [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]);
const packr = new Packr({ useRecords: false });

let ingest: Ingest;
let matched: (slot: number, ...blocks: number[]) => number;
let errors: Record<string, number>;
const opened: { stop(): Promise<void> }[] = [];

beforeEach(async () => {
  errors = {};
  const seed = createHashSeed();
  const hasher = createBlockHasher(seed);
  const root = hasher.root(MODEL, null, BLOCK);
  matched = (slot, ...blocks) =>
    ingest.index.longestMatch(hasher.blocks(Uint32Array.from(tokens(...blocks)), root, BLOCK)).blocks(slot);
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
      reportMs: 10,
      stream: { idleProbeMs: 300, firstProbeMs: 50, replayTimeoutMs: 1000, retryMaxMs: 1000 },
    },
  );
  await ingest.start();
});

afterEach(async () => {
  await ingest.stop();
  await Promise.all(opened.splice(0).map((one) => one.stop()));
});

async function aPublisher(): Promise<FakePublisher> {
  const publisher = await FakePublisher.start();
  opened.push(publisher);
  return publisher;
}

function sourceOf(slot: number, endpoint: string, replayEndpoint: string | null): IngestSource {
  return {
    endpointId: `pod-${slot}` as EndpointId,
    slot: slot as EndpointSlot,
    rank: 0,
    model: MODEL,
    kvEvents: { endpoint, replayEndpoint },
    incarnation: '',
  };
}

const statusOf = (slot: number): SourceStatus | undefined =>
  ingest.statuses().find(({ endpointId }) => endpointId === `pod-${slot}`);

async function until(what: string, condition: () => boolean): Promise<void> {
  const startMs = performance.now();
  while (!condition()) {
    if (performance.now() - startMs > 30_000) {
      throw new Error(`not within 30 s: ${what}; ${JSON.stringify([errors, ingest.statuses()])}`);
    }
    await delay(5);
  }
}

type Random = (n: number) => number;

/** Frames that no engine sends, or that look much like what one sends. */
function noise(random: Random, nextSeq: number): Buffer[] {
  const bytes = (n: number): Buffer => Buffer.from(Array.from({ length: n }, () => random(256)));
  const seq = (): Buffer => {
    const frame = Buffer.alloc(8);
    frame.writeBigUInt64BE([0n, BigInt(nextSeq), BigInt(random(50)), 2n ** 64n - 1n, 2n ** 63n][random(5)]!);
    return random(4) === 0 ? bytes(random(12)) : frame;
  };
  const batch = packr.pack([1.5, [stored([random(9)], null, tokens(random(9))), removed(random(9))], 0]);
  const changed = Buffer.from(batch);
  changed[random(changed.length)]! ^= 1 << random(8);
  const payloads = [
    () => bytes(random(300)),
    () => batch.subarray(0, random(batch.length)),
    () => changed,
    () => Buffer.alloc(0),
    () => Buffer.concat([Buffer.from('9301dd', 'hex'), Buffer.alloc(4, 0xff)]),
    () => Buffer.concat([Buffer.from('9301', 'hex'), Buffer.alloc(50_000, 0x91)]),
    () => Buffer.concat([Buffer.from('930191', 'hex'), Buffer.alloc(50_000, 0x81)]),
    () => Buffer.alloc(300_000, random(256)),
    () => packr.pack([1.5, [{ type: 'BlockRemoved', block_hashes: [random(9), 'x'] }], 0]),
    () => packr.pack([1.5, Array.from({ length: 100 }, () => ({ type: 'BlockStored' })), 0]),
  ];
  const payload = payloads[random(payloads.length)]!();
  if (random(4) > 0) return [Buffer.from('kv@test'), seq(), payload];
  return Array.from({ length: 1 + random(6) }, () => [seq(), payload, bytes(random(20))][random(3)]!);
}

test('noise between batches and between replies: the source is relearnt, its neighbour undisturbed', async () => {
  const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() >>> 0);
  const random = createRandom(seed);
  const [noisy, quiet] = [await aPublisher(), await aPublisher()];
  await quiet.publish(stored([1, 2], null, tokens(0, 1)));
  await ingest.reconcile([
    sourceOf(0, noisy.endpoint, noisy.replayEndpoint),
    sourceOf(1, quiet.endpoint, quiet.replayEndpoint),
  ]);
  await until('both', () => statusOf(0)?.trust === 'exact' && statusOf(1)?.trust === 'exact');
  noisy.replyNoise = () => (random(3) === 0 ? noise(random, noisy.nextSeq).slice(0, 3) : null);
  for (let i = 0; i < 600; i++) {
    for (let n = random(4); n > 0; n--) await noisy.sendFrames(...noise(random, noisy.nextSeq));
    if (random(3) === 0) await noisy.publish(stored([100 + i], null, tokens(100 + i)));
    if (random(100) === 0) await delay(20);
    if (i % 50 === 0) expect([matched(1, 0, 1), statusOf(1)!.trust]).toEqual([2, 'exact']);
  }
  noisy.replyNoise = () => null;
  await noisy.publish({ type: 'AllBlocksCleared' }, stored([1, 2, 3], null, tokens(50, 51, 52)));
  try {
    await until('relearnt', () => statusOf(0)?.trust === 'exact' && statusOf(0)?.nBlocks === 3);
    expect(matched(0, 50, 51, 52)).toBe(3);
    expect(statusOf(1)).toMatchObject({ trust: 'exact', gaps: 0, restarts: 0, errors: 0, nBlocks: 2 });
    expect(Object.keys(errors).filter((reason) => !REASONS.includes(reason))).toEqual([]);
    for (const reason of ['payload', 'frames', 'sequence']) expect(errors[reason] ?? 0).toBeGreaterThan(0);
    expect(ingest.nLost()).toBe(0);
  } catch (error) {
    throw new Error(`seed ${seed}: ${String(error)}`);
  }
}, 90_000);

/** A TCP port that answers every connection its own way. */
async function aStranger(answer: (socket: Socket) => void): Promise<string> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    answer(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  opened.push({
    async stop() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  });
  return `tcp://127.0.0.1:${(server.address() as { port: number }).port}`;
}

test('ports that do not speak ZMQ, or half of it: never believed, and no harm to those that do', async () => {
  const greeting = Buffer.from(`ff00000000000000017f0300${'4e554c4c'.padEnd(40, '0')}${'00'.repeat(32)}`, 'hex');
  const strangers = [
    await aStranger((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')),
    await aStranger((socket) => socket.destroy()),
    await aStranger(() => undefined),
    await aStranger((socket) => socket.write(Buffer.alloc(100_000, 0xa5))),
    await aStranger((socket) => socket.write(greeting)),
    // A frame that announces itself with 2^62 bytes.
    await aStranger((socket) =>
      socket.write(Buffer.concat([greeting, Buffer.from('024000000000000000', 'hex'), Buffer.alloc(1000)])),
    ),
  ];
  const publisher = await aPublisher();
  await publisher.publish(stored([1], null, tokens(0)));
  const sources = strangers.map((endpoint, i) => sourceOf(10 + i, endpoint, strangers[(i + 1) % strangers.length]!));
  await ingest.reconcile([...sources, sourceOf(0, publisher.endpoint, publisher.replayEndpoint)]);
  await until('the one that does', () => statusOf(0)?.trust === 'exact');
  await delay(50);
  for (const { endpointId } of sources) {
    const { state, trust, nBlocks } = ingest.statuses().find((one) => one.endpointId === endpointId)!;
    expect([endpointId, state, trust, nBlocks]).toEqual([endpointId, 'unknown', 'fallback', 0]);
  }
  await publisher.publish(stored([2], 1, tokens(1)));
  await until('it goes on', () => matched(0, 0, 1) === 2);
  expect(ingest.nLost()).toBe(0);
});

test('a replay socket that does not speak ZMQ leaves a true view that is not fully trusted', async () => {
  const publisher = await aPublisher();
  const replayEndpoint = await aStranger((socket) => socket.write(Buffer.alloc(5000, 0xa5)));
  await ingest.reconcile([sourceOf(0, publisher.endpoint, replayEndpoint)]);
  await until('given up', () => statusOf(0)?.state === 'live' && statusOf(0)?.replay === 'broken');
  await publisher.publish(stored([1], null, tokens(0)));
  await until('heard', () => matched(0, 0) === 1);
  expect(statusOf(0)?.trust).toBe('degraded');
});
