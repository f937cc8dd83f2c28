/** Publishers that connect to us: told apart by topic, never believed to be more than the address they name. */
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { Publisher } from 'zeromq';
import type { IngestSource, SourceStatus } from '../../src/kvevents/ingest.ts';
import { stored, type FakePublisher } from '../support/fake-publisher.ts';
import { MODEL, sourceOf, startIngest, tokens, type IngestBench } from '../support/kv-ingest.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

const A = '10.0.0.1:8000';
const B = '10.0.0.2:8000';

let port: number;
let bench: IngestBench;

beforeEach(async () => {
  port = await twoFreePorts();
  bench = await startIngest({ listen: `127.0.0.1:${port}`, stream: { replayTimeoutMs: 1000 } });
});

afterEach(() => bench.stop());

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

const aPublisher = (topic: string, rank = 0): Promise<FakePublisher> =>
  bench.aPublisher({ topic, dials: `tcp://127.0.0.1:${port + rank}` });

/** Told by its topic. */
function followed(address: string, slot: number, replay: FakePublisher | null, rank = 0): IngestSource {
  const topic = rank === 0 ? `kv@${address}` : `kv@${address}#${rank}`;
  return { ...sourceOf(slot, topic, replay?.replayEndpoint), rank };
}

/** What is sent before a connection stands is lost: heartbeats until one has arrived. */
async function heard(publisher: FakePublisher, slot: number): Promise<void> {
  while (bench.statusOf(slot)?.connection !== 'up') {
    await publisher.publish();
    await delay(20);
  }
}

describe('two publishers on one port', () => {
  test('are told apart by the address in their topic; what was missed is replayed', async () => {
    const [a, b] = [await aPublisher(`kv@${A}@${MODEL}`), await aPublisher(`kv@${B}@org/model@v2`)];
    await a.publish(stored([100], null, tokens(0)));
    await bench.ingest.reconcile([followed(A, 0, a), followed(B, 1, b)]);
    await heard(a, 0);
    await heard(b, 1);
    await b.publish(stored([100, 101], null, tokens(0, 1)));
    await bench.until('both', () => bench.matched(0, 0, 1) === 1 && bench.matched(1, 0, 1) === 2);
    await bench.until('exact', () => [0, 1].every((slot) => bench.statusOf(slot)?.trust === 'exact'));
  });

  test('a publisher without replay is believed as far as it was heard', async () => {
    await bench.ingest.reconcile([followed(A, 0, null)]);
    const a = await aPublisher(`kv@${A}@${MODEL}`);
    await heard(a, 0);
    await a.publish(stored([100], null, tokens(0)));
    await bench.until('heard', () => bench.matched(0, 0) === 1);
    expect(bench.statusOf(0)).toMatchObject({ state: 'live', trust: 'degraded', replay: 'none' });
  });
});

test('topics that name nobody who is followed are counted and give nothing', async () => {
  await bench.ingest.reconcile([followed(A, 0, null)]);
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
  await bench.until('counted', () => {
    void Promise.all(strangers.map((one) => one.publish(stored([100], null, tokens(0)))));
    return (bench.errors['unknown_topic'] ?? 0) >= 100;
  });
  await a.publish(stored([100], null, tokens(7)));
  await bench.until('heard', () => bench.matched(0, 7) === 1);
  expect(bench.matched(0, 0)).toBe(0);
  expect(bench.statusOf(0)).toMatchObject({ restarts: 0 });
});

test('a topic with the host alone means the only endpoint there; of several none', async () => {
  await bench.ingest.reconcile([followed(A, 0, null), followed(B, 1, null), followed('10.0.0.2:8001', 2, null)]);
  const [a, b] = [await aPublisher(`kv@10.0.0.1@${MODEL}`), await aPublisher(`kv@10.0.0.2@${MODEL}`)];
  await heard(a, 0);
  await bench.until('unclear', () => {
    void b.publish(stored([100], null, tokens(0)));
    return (bench.errors['unknown_topic'] ?? 0) > 0;
  });
  expect([bench.statusOf(1)?.state, bench.statusOf(2)?.state]).toEqual(['unknown', 'unknown']);
});

test('rank 1 connects to the next port', async () => {
  const topic = `kv@${A}@${MODEL}`;
  await bench.ingest.reconcile([followed(A, 0, null), followed(A, 0, null, 1)]);
  const [first, second] = [await aPublisher(topic), await aPublisher(topic, 1)];
  const ofRank = (rank: number): SourceStatus | undefined => bench.ingest.statuses().find((one) => one.rank === rank);
  await bench.until('both', () => {
    void first.publish(stored([100], null, tokens(0)));
    void second.publish(stored([100, 101], null, tokens(0, 1)));
    return ofRank(0)?.nBlocks === 1 && ofRank(1)?.nBlocks === 2;
  });
});

test('a publisher that goes is in doubt, and nobody else on its port: the next process begins anew', async () => {
  const [a, b] = [await aPublisher(`kv@${A}@${MODEL}`), await aPublisher(`kv@${B}@${MODEL}`)];
  const c = await aPublisher('kv@10.0.0.3:8000@m');
  await bench.ingest.reconcile([followed(A, 0, a), followed(B, 1, null), followed('10.0.0.3:8000', 2, null)]);
  await Promise.all([heard(a, 0), heard(b, 1), heard(c, 2)]);
  await a.publish(stored([100], null, tokens(0)));
  await b.publish(stored([100], null, tokens(0)));
  await c.publish(stored([100], null, tokens(0)));
  await bench.until('all', () => bench.matched(0, 0) + bench.matched(1, 0) + bench.matched(2, 0) === 3);
  await bench.until('exact', () => bench.statusOf(0)?.trust === 'exact');
  await c.stop();
  await bench.until('doubt', () => bench.statusOf(2)?.state === 'suspect');
  expect([bench.statusOf(0)?.trust, bench.statusOf(1)?.trust, bench.statusOf(2)?.trust]).toEqual([
    'exact',
    'degraded',
    'fallback',
  ]);
  await b.publish();
  await bench.until('goes on', () => Number(bench.statusOf(1)?.lastSeq) >= b.nextSeq - 1);
  expect([bench.matched(1, 0), bench.statusOf(1)?.restarts]).toEqual([1, 0]);
  const next = await aPublisher('kv@10.0.0.3:8000@m');
  await bench.until('relearnt', () => {
    void next.publish();
    return bench.statusOf(2)?.state === 'live';
  });
  expect([bench.statusOf(2)?.restarts, bench.matched(2, 0)]).toEqual([1, 0]);
});

test('a connection that is cut is a doubt: replay clears it up, else the next batch in turn does', async () => {
  const [a, b] = [await TcpProxy.to(`127.0.0.1:${port}`), await TcpProxy.to(`127.0.0.1:${port}`)];
  const dialling = (topic: string, proxy: TcpProxy): Promise<FakePublisher> =>
    bench.aPublisher({ topic, dials: `tcp://${bench.owns(proxy).address}` });
  await bench.ingest.reconcile([followed(A, 0, null), followed(B, 1, null)]);
  const withReplay = await dialling(`kv@${A}@${MODEL}`, a);
  const without = await dialling(`kv@${B}@${MODEL}`, b);
  await bench.ingest.reconcile([followed(A, 0, withReplay), followed(B, 1, null)]);
  await Promise.all([heard(withReplay, 0), heard(without, 1)]);
  await withReplay.publish(stored([100], null, tokens(0)));
  await without.publish(stored([100], null, tokens(0)));
  await bench.until(
    'both',
    () => bench.matched(0, 0) + bench.matched(1, 0) === 2 && bench.statusOf(0)?.trust === 'exact',
  );
  a.cut();
  b.cut();
  await bench.until('doubt', () => bench.statusOf(1)?.state === 'suspect');
  // What is sent before the connection stands again is lost, and found missing.
  await bench.until('cleared up', () => bench.statusOf(0)?.trust === 'exact');
  await bench.until('goes on', () => {
    void without.publish();
    return bench.statusOf(1)?.state === 'live';
  });
  expect([bench.statusOf(0)?.restarts, bench.statusOf(1)?.restarts, bench.matched(0, 0)]).toEqual([0, 0, 1]);
});

test('messages of the wrong form are counted and put their source in doubt', async () => {
  await bench.ingest.reconcile([followed(A, 0, null)]);
  const socket = new Publisher({ linger: 0 });
  bench.owns({ stop: async () => socket.close() });
  socket.connect(`tcp://127.0.0.1:${port}`);
  await bench.until('counted', () => {
    void socket.send([`kv@${A}@m`, Buffer.alloc(4), Buffer.from([0x92, 1, 0x90])]).catch(() => undefined);
    return (bench.errors['sequence'] ?? 0) > 0;
  });
  await bench.until('counted', () => {
    void socket.send([`kv@${A}@m`, Buffer.from('x')]).catch(() => undefined);
    return (bench.errors['frames'] ?? 0) > 0;
  });
  expect(bench.statusOf(0)?.trust).toBe('fallback');
});

test('a port that is taken is opened once it is free', async () => {
  const squatter = createServer();
  await new Promise<void>((resolve) => squatter.listen(port, '127.0.0.1', resolve));
  await bench.ingest.reconcile([followed(A, 0, null)]);
  await bench.until('counted', () => (bench.errors['socket'] ?? 0) > 0);
  expect(bench.statusOf(0)).toMatchObject({ state: 'unknown', trust: 'fallback', connection: 'down' });
  await new Promise((resolve) => squatter.close(resolve));
  const a = await aPublisher(`kv@${A}@${MODEL}`);
  await heard(a, 0);
});
