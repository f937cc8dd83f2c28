/** Real publishers, the real ingest thread and a reader of its index: what is believed, and when. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import type { IngestSource, SourceStatus } from '../../src/kvevents/ingest.ts';
import { removed, stored, type FakePublisher, type FakePublisherOptions } from '../support/fake-publisher.ts';
import { BLOCK, sourceOf, startIngest, tokens, type IngestBench } from '../support/kv-ingest.ts';
import { FREEZE, NO_FAULT, THROW } from '../support/thread-faults.ts';

let bench: IngestBench;
/** Of the ingest thread, see faulty-ingest-worker.ts. */
let fault: SharedArrayBuffer;

beforeEach(async () => {
  fault = new SharedArrayBuffer(4);
  bench = await startIngest({
    workerUrl: new URL('../support/faulty-ingest-worker.ts', import.meta.url),
    silence: { doubtMs: 1000, giveUpMs: 4000 },
    fault,
    stream: { replayTimeoutMs: 300 },
  });
});

afterEach(() => bench.stop());

const sourceAt = ({ endpoint, replayEndpoint }: FakePublisher, slot = 0): IngestSource =>
  sourceOf(slot, endpoint, replayEndpoint);

const status = (slot = 0): SourceStatus => bench.statusOf(slot)!;
/** Everything up to this batch is applied, and no replay is waited for any more. */
const isLiveAt = (seq: number): boolean =>
  bench.statusOf(0)?.state === 'live' && bench.statusOf(0)?.lastSeq === String(seq);
/** Follows a publisher that has announced blocks 0 and 1, as batches 0 and 1. */
async function aFollowedPublisher(options: FakePublisherOptions = {}): Promise<FakePublisher> {
  const publisher = await bench.aPublisher(options);
  await publisher.publish(stored([100], null, tokens(0)));
  await publisher.publish(stored([101], 100, tokens(1)));
  await bench.ingest.reconcile([sourceAt(publisher)]);
  await bench.until('exact', () => bench.ingest.statuses()[0]?.trust === 'exact' && bench.matched(0, 0, 1, 2) === 2);
  return publisher;
}

describe('a source that left', () => {
  test('gives its memory back although no event comes any more', async () => {
    const publisher = await aFollowedPublisher();
    const atFirst = bench.ingest.index.stats().nBytes;
    const blocks = Array.from({ length: 3000 }, (_, i) => i + 2);
    await publisher.publish(stored(blocks.map((i) => 100 + i), 101, tokens(...blocks))); // prettier-ignore
    await bench.until('applied', () => status().nBlocks === 3002);
    const atMost = bench.ingest.index.stats().nBytes;
    await bench.ingest.reconcile([]);
    expect(bench.matched(0, 0, 1)).toBe(0);
    // A fifth stays: tables that have grown are kept.
    await bench.until('given back', () => bench.ingest.index.stats().nBytes - atFirst < (atMost - atFirst) / 5);
  });
});

describe('starting mid-stream', () => {
  test.each([3, 4] as const)('what was announced before is learnt from replies of %d frames', async (replayFrames) => {
    await aFollowedPublisher({ replayFrames });
    expect(status()).toMatchObject({ state: 'live', trust: 'exact', lastSeq: '1', nBlocks: 2, partial: false });
    expect(status()).toMatchObject({ gaps: 0, restarts: 0, blockSizeTokens: BLOCK, reportsExtraKeys: 'yes' });
  });

  test('batches that are published while the replay runs are applied once', async () => {
    const publisher = await bench.aPublisher();
    for (let i = 0; i < 300; i++) await publisher.publish(stored([i], i === 0 ? null : i - 1, tokens(i)));
    await bench.ingest.reconcile([sourceAt(publisher)]);
    for (let i = 300; i < 600; i++) await publisher.publish(stored([i], i - 1, tokens(i)));
    await bench.until('all applied', () => isLiveAt(599));
    expect(status()).toMatchObject({ nBlocks: 600, trust: 'exact', restarts: 0 });
    // One copy each: one removal takes a block away.
    await publisher.publish(removed(599), removed(300));
    await bench.until('removed', () => status().nBlocks === 598);
    expect(bench.matched(0, ...Array.from({ length: 600 }, (_, i) => i))).toBe(300);
  });

  test('a buffer that does not reach back gives a true but partial view', async () => {
    const publisher = await bench.aPublisher({ bufferSteps: 2 });
    for (let i = 0; i < 6; i++) await publisher.publish(stored([200 + i], null, tokens(50 + i)));
    await bench.ingest.reconcile([sourceAt(publisher)]);
    await bench.until('live', () => isLiveAt(5));
    expect(status()).toMatchObject({ state: 'live', trust: 'degraded', partial: true, nBlocks: 2 });
    expect([bench.matched(0, 53), bench.matched(0, 54), bench.matched(0, 55)]).toEqual([0, 1, 1]);
    await publisher.publish({ type: 'AllBlocksCleared' }, stored([300], null, tokens(0)));
    await bench.until('exact', () => status().trust === 'exact');
    expect([bench.matched(0, 54), bench.matched(0, 0)]).toEqual([0, 1]);
  });

  test('a publisher without replay socket is followed from now on and never fully trusted', async () => {
    const publisher = await bench.aPublisher();
    await bench.ingest.reconcile([sourceOf(0, publisher.endpoint)]);
    await bench.until('live', () => bench.ingest.statuses()[0]?.state === 'live');
    // The subscription travels after the handshake: what is published before it is there is lost.
    await bench.until('applied', () => {
      void publisher.publish(stored([100], null, tokens(0)));
      return bench.matched(0, 0) === 1;
    });
    expect(status()).toMatchObject({ state: 'live', trust: 'degraded' });
  });
});

describe('the clock of a publisher', () => {
  test.each([
    ['an hour behind', () => Date.now() - 3_600_000, expect.closeTo(0, -5)],
    ['not there', () => 0, null],
  ])('that is %s makes its batches no later', async (_, unixMs, lagMs) => {
    const publisher = await aFollowedPublisher();
    publisher.unixMs = unixMs;
    await publisher.publish(stored([102], 101, tokens(2)));
    await bench.until('applied', () => isLiveAt(2));
    expect(status()).toMatchObject({ trust: 'exact', lagMs });
  });
});

describe('loss', () => {
  test('a hole is fetched and applied in order', async () => {
    const publisher = await aFollowedPublisher();
    publisher.lose(stored([102], 101, tokens(2)));
    publisher.lose(removed(101));
    await publisher.publish(stored([103], 100, tokens(9)));
    await bench.until('repaired', () => isLiveAt(4));
    expect(status()).toMatchObject({ gaps: 1, trust: 'exact' });
    expect([bench.matched(0, 0, 1, 2), bench.matched(0, 0, 9)]).toEqual([1, 2]);
    expect(publisher.requests.at(0)).toBe(0n);
  });

  test('a lost tail is found though nothing more is published', async () => {
    const publisher = await aFollowedPublisher();
    publisher.lose(removed(101));
    await bench.until('found', () => isLiveAt(2));
    expect(bench.matched(0, 0, 1)).toBe(1);
  });

  test('a replay that loses batches in its middle and its end marker is asked for again until it is whole', async () => {
    const publisher = await aFollowedPublisher();
    for (let i = 2; i < 50; i++) publisher.lose(stored([100 + i], 99 + i, tokens(i)));
    let nLost = 0;
    publisher.sendsReply = (seq) => (seq !== null && seq % 10 !== 7) || nLost++ >= 6;
    await publisher.publish(stored([150], 149, tokens(50)));
    await bench.until('repaired', () => isLiveAt(50));
    expect(status()).toMatchObject({ trust: 'exact', nBlocks: 51, restarts: 0 });
    expect(nLost).toBeGreaterThanOrEqual(6);
  });

  test('a gap that the buffer no longer holds forgets what may be wrong', async () => {
    const publisher = await aFollowedPublisher({ bufferSteps: 3 });
    publisher.lose(removed(101));
    for (let i = 0; i < 5; i++) publisher.lose(stored([300 + i], null, tokens(30 + i)));
    await publisher.publish(stored([400], null, tokens(40)));
    await bench.until('relearnt', () => isLiveAt(8));
    expect(status()).toMatchObject({ trust: 'degraded', partial: true });
    expect([bench.matched(0, 0, 1), bench.matched(0, 30), bench.matched(0, 34), bench.matched(0, 40)]).toEqual([
      0, 0, 1, 1,
    ]);
  });

  test('a replay socket that does not answer leaves a true view that is not fully trusted', async () => {
    const publisher = await aFollowedPublisher();
    publisher.answersReplays = false;
    publisher.lose(removed(100));
    await publisher.publish(stored([500], null, tokens(60)));
    await bench.until('given up', () => status().trust === 'degraded' && status().state === 'live');
    expect(bench.matched(0, 0, 1)).toBe(0);
    await publisher.publish(stored([501], null, tokens(61)));
    await bench.until('followed', () => bench.matched(0, 61) === 1);
  });
});

describe('restart', () => {
  test.each([
    ['at sequence 0', 0],
    ['at a higher sequence', 1000],
  ])('%s: trusted again, and its old blocks are not believed', async (_what, firstSeq) => {
    const publisher = await aFollowedPublisher();
    await publisher.stop();
    await bench.until('no longer trusted', () => status().trust === 'fallback');
    const next = await bench.aPublisher({ at: publisher, firstSeq });
    await next.publish({ type: 'AllBlocksCleared' });
    await next.publish(stored([700], null, tokens(7)));
    await bench.until('trusted', () => status().trust === 'exact' && bench.matched(0, 7) === 1);
    expect(bench.matched(0, 0, 1)).toBe(0);
    await bench.until('reported', () => isLiveAt(firstSeq + 1));
    expect(status()).toMatchObject({ restarts: 1, nBlocks: 1 });
  });

  test('another incarnation behind the same address is learnt anew', async () => {
    const publisher = await aFollowedPublisher();
    await bench.ingest.reconcile([{ ...sourceAt(publisher), incarnation: 'uid-2' }]);
    await bench.until('relearnt', () => status().restarts === 1 && status().trust === 'exact');
    expect(bench.matched(0, 0, 1)).toBe(2);
  });

  test('batch 5, then batch 2 on the same connection forgets the source', async () => {
    const publisher = await aFollowedPublisher();
    publisher.nextSeq = 0;
    publisher['kept'].length = 0;
    await publisher.publish(stored([800], null, tokens(8)));
    await bench.until('relearnt', () => status().restarts === 1 && isLiveAt(0));
    expect([bench.matched(0, 0, 1), bench.matched(0, 8)]).toEqual([0, 1]);
  });
});

describe('garbage', () => {
  test.each([
    ['two frames', [Buffer.from('a'), Buffer.from('b')], 'frames'],
    ['one frame', [Buffer.from('GET / HTTP/1.1')], 'frames'],
    ['a short sequence number', [Buffer.alloc(0), Buffer.alloc(4), Buffer.from('x')], 'sequence'],
    [
      'a payload that is no batch',
      [Buffer.alloc(0), Buffer.from('0000000000000002', 'hex'), Buffer.from('x')],
      'payload',
    ],
  ])('%s: counted, asked back, and others are untouched', async (_what, frames, reason) => {
    const publisher = await aFollowedPublisher();
    const other = await bench.aPublisher();
    await other.publish(stored([900], null, tokens(3)));
    await bench.ingest.reconcile([sourceAt(publisher), sourceAt(other, 1)]);
    await bench.until('both', () => bench.ingest.statuses().length === 2 && status(1).trust === 'exact');
    const nAsked = publisher.requests.length;
    await publisher.sendFrames(...frames);
    await bench.until('counted', () => bench.errors[reason] === 1);
    await bench.until('asked back', () => publisher.requests.length > nAsked && status(0).trust === 'exact');
    expect(status(0)).toMatchObject({ errors: 1, restarts: 0 });
    expect(status(1)).toMatchObject({ errors: 0, trust: 'exact' });
    await publisher.publish(stored([102], 101, tokens(2)));
    await bench.until('goes on', () => bench.matched(0, 0, 1, 2) === 3);
  });

  test('a published batch that cannot be decoded costs what was known before it, and the stream goes on', async () => {
    const publisher = await aFollowedPublisher();
    await publisher.publishRaw(Buffer.from('not a batch'));
    await publisher.publish(stored([110], null, tokens(11)));
    await bench.until('goes on', () => isLiveAt(3));
    expect([bench.matched(0, 0, 1), bench.matched(0, 11)]).toEqual([0, 1]);
    expect(status()).toMatchObject({ partial: true, trust: 'degraded' });
  });

  test('an event that cannot be read and may have been a removal takes everything before it along', async () => {
    const publisher = await aFollowedPublisher();
    await publisher.publish({ type: 'BlockRemoved', block_hashes: ['?'] }, stored([120], null, tokens(12)));
    await bench.until('applied', () => bench.matched(0, 12) === 1);
    expect(bench.matched(0, 0, 1)).toBe(0);
    await bench.until('reported', () => bench.errors['bad_hash'] === 1 && status().trust === 'degraded');
  });
});

describe('the set of sources', () => {
  test('a source that leaves takes its blocks along before the promise resolves, and its slot can be used again', async () => {
    const publisher = await aFollowedPublisher();
    await bench.ingest.reconcile([]);
    expect(bench.matched(0, 0, 1)).toBe(0);
    expect(bench.ingest.statuses()).toEqual([]);
    const other = await bench.aPublisher();
    await other.publish(stored([1], null, tokens(5)));
    await bench.ingest.reconcile([sourceAt(other)]);
    await bench.until('the other', () => bench.matched(0, 5) === 1);
    expect(bench.matched(0, 0)).toBe(0);
    await publisher.publish(stored([2], null, tokens(6)));
    expect(bench.matched(0, 6)).toBe(0);
  });

  test('the same list again changes nothing', async () => {
    const publisher = await aFollowedPublisher();
    const { replays } = status();
    await bench.ingest.reconcile([sourceAt(publisher)]);
    await bench.ingest.reconcile([sourceAt(publisher)]);
    await publisher.publish(stored([102], 101, tokens(2)));
    await bench.until('goes on', () => bench.matched(0, 0, 1, 2) === 3);
    expect(status()).toMatchObject({ replays, restarts: 0 });
  });

  test('an address nobody listens at is not trusted and costs the others nothing', async () => {
    const followed = await aFollowedPublisher();
    const dead: IngestSource = {
      ...sourceAt(followed, 1),
      kvEvents: { endpoint: 'tcp://127.0.0.1:9', replayEndpoint: 'tcp://127.0.0.1:9' },
    };
    const broken = { ...dead, endpointId: 'pod-2' as EndpointId, slot: 2 as EndpointSlot, kvEvents: { endpoint: 'nonsense', replayEndpoint: null } }; // prettier-ignore
    await bench.ingest.reconcile([sourceAt(followed), dead, broken]);
    await bench.until('three', () => bench.ingest.statuses().length === 3);
    expect([status(0).trust, status(1).trust, status(2).trust]).toEqual(['exact', 'fallback', 'fallback']);
    expect([status(1).state, status(2).state]).toEqual(['unknown', 'unknown']);
  });
});

describe('a thread', () => {
  const word = (): Int32Array => new Int32Array(fault);
  const setFault = (value: number): void => {
    Atomics.store(word(), 0, value);
    Atomics.notify(word(), 0);
  };

  test('that dies is noticed, started again, and relearns everything', async () => {
    await aFollowedPublisher();
    setFault(THROW);
    await bench.until('noticed', () => bench.ingest.problem() === 'ingest thread is down');
    expect(status()).toMatchObject({ state: 'unknown', trust: 'fallback' });
    await bench.until('relearnt', () => bench.ingest.problem() === null && status().trust === 'exact');
    expect(bench.matched(0, 0, 1)).toBe(2);
    expect(bench.ingest.nLost()).toBe(1);
  });

  test('that falls silent is not believed, then replaced', async () => {
    const publisher = await aFollowedPublisher();
    setFault(FREEZE);
    await bench.until('doubted', () => bench.ingest.problem() === 'ingest thread is silent');
    expect(status()).toMatchObject({ state: 'unknown', trust: 'fallback' });
    await bench.until('given up', () => bench.ingest.nLost() === 1);
    // The word is seen by the next thread too.
    setFault(NO_FAULT);
    await bench.until('relearnt', () => bench.ingest.problem() === null && status().trust === 'exact');
    expect(bench.matched(0, 0, 1)).toBe(2);
    await publisher.publish(removed(101));
    await bench.until('followed', () => bench.matched(0, 0, 1) === 1);
    expect(bench.ingest.nLost()).toBe(1);
  });

  test('that hesitates for a moment is believed again, and learns nothing anew', async () => {
    await aFollowedPublisher();
    setFault(FREEZE);
    await bench.until('doubted', () => bench.ingest.problem() === 'ingest thread is silent');
    setFault(NO_FAULT);
    await bench.until('believed again', () => bench.ingest.problem() === null && status().trust === 'exact');
    expect([status().restarts, bench.ingest.nLost()]).toEqual([0, 0]);
  });
});

test('stopping twice is stopping once, and nothing is alive afterwards', async () => {
  await aFollowedPublisher();
  expect(bench.ingest.problem()).toBeNull();
  await bench.ingest.stop();
  await bench.ingest.stop();
  expect(bench.ingest.problem()).toBe('ingest thread is down');
  expect(bench.ingest.statuses()).toEqual([]);
});
