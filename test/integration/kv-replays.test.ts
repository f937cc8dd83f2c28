/** Replay sockets that are not what they should be: what they cost, and what is believed of a source that has only such a one. */
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { stored } from '../support/fake-publisher.ts';
import { batch, sourceOf, startIngest, tokens, type IngestBench } from '../support/kv-ingest.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';
import { greeting, message, ready, seqOf } from '../support/zmtp-peer.ts';

let bench: IngestBench;

beforeEach(async () => {
  bench = await startIngest();
});

afterEach(() => bench.stop());

/** Announces block 0, and has no other way to be asked for it than this. @returns a check that it is followed all the same */
async function followWithReplay(slot: number, replayEndpoint: string): Promise<() => Promise<void>> {
  const publisher = await bench.aPublisher();
  await publisher.publish(stored([1], null, tokens(0)));
  await bench.ingest.reconcile([sourceOf(slot, publisher.endpoint, replayEndpoint)]);
  await bench.until(
    'given up',
    () => bench.statusOf(slot)?.state === 'live' && bench.statusOf(slot)?.replay === 'broken',
  );
  return async () => {
    await publisher.publish(stored([2], null, tokens(1)));
    await bench.until('heard', () => bench.matched(slot, 1) === 1);
    // What was missed cannot be had.
    expect(bench.matched(slot, 0)).toBe(0);
    expect(bench.statusOf(slot)).toMatchObject({ trust: 'degraded', partial: true });
  };
}

test.each([
  ['that cannot be dialled', 'udp://127.0.0.1:1', /not an endpoint: "udp/],
  [
    'that publishes',
    Buffer.concat([greeting(), ready('PUB')]).toString('latin1'),
    /a PUB socket, expected ROUTER or REP or DEALER/,
  ],
  ['that speaks another protocol', 'HTTP/1.1 400 Bad Request\r\n\r\n', /does not begin as ZMTP/],
])('a replay socket %s leaves a true view that is not fully trusted', async (_what, sends, problem) => {
  const endpoint = sends.startsWith('udp')
    ? sends
    : (await bench.aPeer((socket) => void socket.write(sends, 'latin1'))).endpoint;
  const isFollowed = await followWithReplay(0, endpoint);
  expect(bench.said).toEqual([expect.stringMatching(problem)]);
  expect(bench.errors['socket']).toBeGreaterThan(0);
  await isFollowed();
});

test('a replay socket that opens later is found', async () => {
  const publisher = await bench.aPublisher();
  await publisher.publish(stored([1], null, tokens(0)));
  const proxy = bench.owns(await TcpProxy.to(publisher.replayEndpoint));
  proxy.refuse();
  await bench.ingest.reconcile([sourceOf(0, publisher.endpoint, `tcp://${proxy.address}`)]);
  await bench.until('asked', () => bench.statusOf(0)?.state === 'replaying');
  await delay(50);
  proxy.relay();
  await bench.until('learnt', () => bench.statusOf(0)?.trust === 'exact' && bench.matched(0, 0) === 1);
  expect(bench.errors).toEqual({});
});

test('a replay that is cut anywhere is asked for again', async () => {
  const publisher = await bench.aPublisher();
  const payload = batch(stored([1], null, tokens(0)));
  const reply = Buffer.concat([
    message(Buffer.alloc(0), seqOf(0), payload),
    message(Buffer.alloc(0), Buffer.alloc(8, 0xff), Buffer.alloc(0)),
  ]);
  const cuts = [0, 1, 12, 40, reply.length - 13, reply.length - 1];
  const replays = await Promise.all(
    cuts.map((cut) =>
      bench.aPeer((socket, nth) => {
        socket.write(Buffer.concat([greeting(), ready('ROUTER')]));
        socket.on('data', (heard) => {
          // A request has an empty frame in front.
          if (!heard.includes(Buffer.from([1, 0, 0, 8]))) return;
          if (nth === 0) socket.end(reply.subarray(0, cut));
          else socket.write(reply);
        });
      }),
    ),
  );
  await bench.ingest.reconcile(replays.map(({ endpoint }, i) => sourceOf(i, publisher.endpoint, endpoint)));
  await bench.until('learnt', () =>
    replays.every((_, i) => bench.statusOf(i)?.trust === 'exact' && bench.matched(i, 0) === 1),
  );
  expect(Math.min(...replays.map(({ nConnections }) => nConnections))).toBeGreaterThan(1);
  expect(bench.errors).toEqual({});
});

test('answers of the wrong form, and one larger than what may wait, do not keep the others from being taken', async () => {
  const publisher = await bench.aPublisher();
  await publisher.publish(stored([1], null, tokens(0)));
  await publisher.publishRaw(batch({ type: 'Huge', bytes: Buffer.alloc(20 * 2 ** 20) }));
  await publisher.publish(stored([2], 1, tokens(1)));
  publisher.replyNoise = () => [Buffer.from('x')];
  await bench.ingest.reconcile([sourceOf(0, publisher.endpoint, publisher.replayEndpoint)]);
  await bench.until('learnt', () => bench.statusOf(0)?.trust === 'exact' && bench.matched(0, 0, 1) === 2);
  await bench.until('counted', () => (bench.errors['replay_frames'] ?? 0) >= 3);
  expect(Object.keys(bench.errors)).toEqual(['replay_frames']);
});
