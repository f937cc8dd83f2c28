/**
 * Any bytes on the sockets of an event source: no crash, no stall, no memory that stays, counted by reason; what was
 * believed is relearnt, and the neighbour never notices. A failing run prints its seed (`FUZZ_SEED=n` runs it again).
 */
import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { Packr } from 'msgpackr';
import { SKIP_REASONS } from '../../src/kvevents/decode.ts';
import { removed, stored } from '../support/fake-publisher.ts';
import { createRandom } from '../support/kv-events.ts';
import { sourceOf, startIngest, tokens, type IngestBench } from '../support/kv-ingest.ts';

const REASONS = [...SKIP_REASONS, 'payload', 'frames', 'sequence', 'replay_frames', 'socket'];
const packr = new Packr({ useRecords: false });

let bench: IngestBench;

beforeEach(async () => {
  bench = await startIngest({ stream: { replayTimeoutMs: 1000, retryMaxMs: 1000 } });
});

afterEach(() => bench.stop());

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
  const [noisy, quiet] = [await bench.aPublisher(), await bench.aPublisher()];
  await quiet.publish(stored([1, 2], null, tokens(0, 1)));
  await bench.ingest.reconcile([
    sourceOf(0, noisy.endpoint, noisy.replayEndpoint),
    sourceOf(1, quiet.endpoint, quiet.replayEndpoint),
  ]);
  await bench.until('both', () => bench.statusOf(0)?.trust === 'exact' && bench.statusOf(1)?.trust === 'exact');
  noisy.replyNoise = () => (random(3) === 0 ? noise(random, noisy.nextSeq).slice(0, 3) : null);
  for (let i = 0; i < 600; i++) {
    for (let n = random(4); n > 0; n--) await noisy.sendFrames(...noise(random, noisy.nextSeq));
    if (random(3) === 0) await noisy.publish(stored([100 + i], null, tokens(100 + i)));
    if (random(100) === 0) await delay(20);
    if (i % 50 === 0) expect([bench.matched(1, 0, 1), bench.statusOf(1)!.trust]).toEqual([2, 'exact']);
  }
  noisy.replyNoise = () => null;
  await noisy.publish({ type: 'AllBlocksCleared' }, stored([1, 2, 3], null, tokens(50, 51, 52)));
  try {
    await bench.until('relearnt', () => bench.statusOf(0)?.trust === 'exact' && bench.statusOf(0)?.nBlocks === 3);
    expect(bench.matched(0, 50, 51, 52)).toBe(3);
    expect(bench.statusOf(1)).toMatchObject({ trust: 'exact', gaps: 0, restarts: 0, errors: 0, nBlocks: 2 });
    expect(Object.keys(bench.errors).filter((reason) => !REASONS.includes(reason))).toEqual([]);
    for (const reason of ['payload', 'frames', 'sequence']) expect(bench.errors[reason] ?? 0).toBeGreaterThan(0);
    expect(bench.ingest.nLost()).toBe(0);
  } catch (error) {
    throw new Error(`seed ${seed}: ${String(error)}`);
  }
}, 90_000);

/** A TCP port that answers every connection its own way. */
const aStranger = async (answer: (socket: Socket) => void): Promise<string> => (await bench.aPeer(answer)).endpoint;

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
  const publisher = await bench.aPublisher();
  await publisher.publish(stored([1], null, tokens(0)));
  const sources = strangers.map((endpoint, i) => sourceOf(10 + i, endpoint, strangers[(i + 1) % strangers.length]!));
  await bench.ingest.reconcile([...sources, sourceOf(0, publisher.endpoint, publisher.replayEndpoint)]);
  await bench.until('the one that does', () => bench.statusOf(0)?.trust === 'exact');
  await delay(50);
  for (const { endpointId } of sources) {
    const { state, trust, nBlocks } = bench.ingest.statuses().find((one) => one.endpointId === endpointId)!;
    expect([endpointId, state, trust, nBlocks]).toEqual([endpointId, 'unknown', 'fallback', 0]);
  }
  await publisher.publish(stored([2], 1, tokens(1)));
  await bench.until('it goes on', () => bench.matched(0, 0, 1) === 2);
  expect(bench.ingest.nLost()).toBe(0);
});

test('a replay socket that does not speak ZMQ leaves a true view that is not fully trusted', async () => {
  const publisher = await bench.aPublisher();
  const replayEndpoint = await aStranger((socket) => socket.write(Buffer.alloc(5000, 0xa5)));
  await bench.ingest.reconcile([sourceOf(0, publisher.endpoint, replayEndpoint)]);
  await bench.until('given up', () => bench.statusOf(0)?.state === 'live' && bench.statusOf(0)?.replay === 'broken');
  await publisher.publish(stored([1], null, tokens(0)));
  await bench.until('heard', () => bench.matched(0, 0) === 1);
  expect(bench.statusOf(0)?.trust).toBe('degraded');
});
