/** Real publishers, the real ingest thread and a reader of its index: what is believed, and when. */
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createIngest, type Ingest, type IngestSource, type SourceStatus } from '../../src/kvevents/ingest.ts';
import { silentLog } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { FREEZE, NO_FAULT, THROW } from '../support/thread-faults.ts';
import { FakePublisher, removed, stored } from '../support/fake-publisher.ts';

const MODEL = 'test-model';
const BLOCK = 4;
/** Tokens of block i. */
const tokens = (...blocks: number[]): number[] => blocks.flatMap((i) => [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]);

let ingest: Ingest;
let publishers: FakePublisher[];
let errors: Record<string, number>;
/** Of the ingest thread, see faulty-ingest-worker.ts. */
let fault: SharedArrayBuffer;
let matched: (slot: number, ...blocks: number[]) => number;

beforeEach(async () => {
  const seed = createHashSeed();
  const hasher = createBlockHasher(seed);
  const root = hasher.root(MODEL, null, BLOCK);
  matched = (slot, ...blocks) =>
    ingest.index.longestMatch(hasher.blocks(Uint32Array.from(tokens(...blocks)), root, BLOCK)).blocks(slot);
  publishers = [];
  errors = {};
  fault = new SharedArrayBuffer(4);
  const faulty = {
    workerUrl: new URL('../support/faulty-ingest-worker.ts', import.meta.url),
    silence: { doubtMs: 1000, giveUpMs: 4000 },
    fault,
  };
  ingest = createIngest(
    {
      log: silentLog,
      clock: systemClock,
      onCounters: (delta) => {
        for (const [reason, n] of Object.entries(delta.errors)) errors[reason] = (errors[reason] ?? 0) + n;
      },
    },
    {
      ...faulty,
      indexMaxBytes: 8 * 1024 * 1024,
      seed,
      reportMs: 10,
      stream: { idleProbeMs: 300, firstProbeMs: 50, replayTimeoutMs: 300 },
    },
  );
  await ingest.start();
});

afterEach(async () => {
  await ingest.stop();
  await Promise.all(publishers.map((publisher) => publisher.stop()));
});

async function aPublisher(options: Parameters<typeof FakePublisher.start>[0] = {}): Promise<FakePublisher> {
  const publisher = await FakePublisher.start(options);
  publishers.push(publisher);
  return publisher;
}

function sourceOf(publisher: FakePublisher, slot = 0, replay: 'replay' | 'no replay' = 'replay'): IngestSource {
  return {
    endpointId: `pod-${slot}` as EndpointId,
    slot: slot as EndpointSlot,
    rank: 0,
    model: MODEL,
    kvEvents: {
      endpoint: publisher.endpoint,
      replayEndpoint: replay === 'replay' ? publisher.replayEndpoint : null,
    },
    incarnation: '',
  };
}

const status = (slot = 0): SourceStatus => ingest.statuses().find(({ endpointId }) => endpointId === `pod-${slot}`)!;
const lastSeq = (slot = 0): string | null | undefined => ingest.statuses().length > 0 ? status(slot).lastSeq : undefined; // prettier-ignore

async function until(what: string, condition: () => boolean, limitMs = 20_000): Promise<number> {
  const startMs = performance.now();
  while (!condition()) {
    if (performance.now() - startMs > limitMs) {
      throw new Error(`not within ${limitMs} ms: ${what}; ${JSON.stringify(ingest.statuses())}`);
    }
    await delay(5);
  }
  return performance.now() - startMs;
}

/** Follows a publisher that has announced blocks 0 and 1, as batches 0 and 1. */
async function aFollowedPublisher(options: Parameters<typeof FakePublisher.start>[0] = {}): Promise<FakePublisher> {
  const publisher = await aPublisher(options);
  await publisher.publish(stored([100], null, tokens(0)));
  await publisher.publish(stored([101], 100, tokens(1)));
  await ingest.reconcile([sourceOf(publisher)]);
  await until('exact', () => ingest.statuses()[0]?.trust === 'exact' && matched(0, 0, 1, 2) === 2);
  return publisher;
}

describe('a source that left', () => {
  test('gives its memory back although no event comes any more', async () => {
    const publisher = await aFollowedPublisher();
    const atFirst = ingest.index.stats().nBytes;
    const blocks = Array.from({ length: 3000 }, (_, i) => i + 2);
    await publisher.publish(stored(blocks.map((i) => 100 + i), 101, tokens(...blocks))); // prettier-ignore
    await until('applied', () => status().nBlocks === 3002);
    const atMost = ingest.index.stats().nBytes;
    await ingest.reconcile([]);
    expect(matched(0, 0, 1)).toBe(0);
    // A fifth stays: tables that have grown are kept.
    await until('given back', () => ingest.index.stats().nBytes - atFirst < (atMost - atFirst) / 5);
  });
});

describe('starting mid-stream', () => {
  test.each([3, 4] as const)('what was announced before is learnt from replies of %d frames', async (replayFrames) => {
    await aFollowedPublisher({ replayFrames });
    expect(status()).toMatchObject({ state: 'live', trust: 'exact', lastSeq: '1', nBlocks: 2, partial: false });
    expect(status()).toMatchObject({ gaps: 0, restarts: 0, blockSizeTokens: BLOCK, reportsExtraKeys: 'yes' });
  });

  test('batches that are published while the replay runs are applied once', async () => {
    const publisher = await aPublisher();
    for (let i = 0; i < 300; i++) await publisher.publish(stored([i], i === 0 ? null : i - 1, tokens(i)));
    await ingest.reconcile([sourceOf(publisher)]);
    for (let i = 300; i < 600; i++) await publisher.publish(stored([i], i - 1, tokens(i)));
    await until('all applied', () => lastSeq() === '599');
    expect(status()).toMatchObject({ nBlocks: 600, trust: 'exact', restarts: 0 });
    // One copy each: one removal takes a block away.
    await publisher.publish(removed(599), removed(300));
    await until('removed', () => status().nBlocks === 598);
    expect(matched(0, ...Array.from({ length: 600 }, (_, i) => i))).toBe(300);
  });

  test('a buffer that does not reach back gives a true but partial view', async () => {
    const publisher = await aPublisher({ bufferSteps: 2 });
    for (let i = 0; i < 6; i++) await publisher.publish(stored([200 + i], null, tokens(50 + i)));
    await ingest.reconcile([sourceOf(publisher)]);
    await until('live', () => lastSeq() === '5');
    expect(status()).toMatchObject({ state: 'live', trust: 'degraded', partial: true, nBlocks: 2 });
    expect([matched(0, 53), matched(0, 54), matched(0, 55)]).toEqual([0, 1, 1]);
    await publisher.publish({ type: 'AllBlocksCleared' }, stored([300], null, tokens(0)));
    await until('exact', () => status().trust === 'exact');
    expect([matched(0, 54), matched(0, 0)]).toEqual([0, 1]);
  });

  test('a publisher without replay socket is followed from now on and never fully trusted', async () => {
    const publisher = await aPublisher();
    await ingest.reconcile([sourceOf(publisher, 0, 'no replay')]);
    await until('live', () => ingest.statuses()[0]?.state === 'live');
    // The subscription travels after the handshake: what is published before it is there is lost.
    await until('applied', () => {
      void publisher.publish(stored([100], null, tokens(0)));
      return matched(0, 0) === 1;
    });
    expect(status()).toMatchObject({ state: 'live', trust: 'degraded' });
  });
});

describe('loss', () => {
  test('a hole is fetched and applied in order', async () => {
    const publisher = await aFollowedPublisher();
    publisher.lose(stored([102], 101, tokens(2)));
    publisher.lose(removed(101));
    await publisher.publish(stored([103], 100, tokens(9)));
    await until('repaired', () => lastSeq() === '4');
    expect(status()).toMatchObject({ gaps: 1, trust: 'exact' });
    expect([matched(0, 0, 1, 2), matched(0, 0, 9)]).toEqual([1, 2]);
    expect(publisher.requests.at(0)).toBe(0n);
  });

  test('a lost tail is found though nothing more is published', async () => {
    const publisher = await aFollowedPublisher();
    publisher.lose(removed(101));
    await until('found', () => lastSeq() === '2');
    expect(matched(0, 0, 1)).toBe(1);
  });

  test('a replay that loses batches in its middle and its end marker is asked for again until it is whole', async () => {
    const publisher = await aFollowedPublisher();
    for (let i = 2; i < 50; i++) publisher.lose(stored([100 + i], 99 + i, tokens(i)));
    let nLost = 0;
    publisher.sendsReply = (seq) => (seq !== null && seq % 10 !== 7) || nLost++ >= 6;
    await publisher.publish(stored([150], 149, tokens(50)));
    await until('repaired', () => lastSeq() === '50');
    expect(status()).toMatchObject({ trust: 'exact', nBlocks: 51, restarts: 0 });
    expect(nLost).toBeGreaterThanOrEqual(6);
  });

  test('a gap that the buffer no longer holds forgets what may be wrong', async () => {
    const publisher = await aFollowedPublisher({ bufferSteps: 3 });
    publisher.lose(removed(101));
    for (let i = 0; i < 5; i++) publisher.lose(stored([300 + i], null, tokens(30 + i)));
    await publisher.publish(stored([400], null, tokens(40)));
    await until('relearnt', () => lastSeq() === '8' && status().state === 'live');
    expect(status()).toMatchObject({ trust: 'degraded', partial: true });
    expect([matched(0, 0, 1), matched(0, 30), matched(0, 34), matched(0, 40)]).toEqual([0, 0, 1, 1]);
  });

  test('a replay socket that does not answer leaves a true view that is not fully trusted', async () => {
    const publisher = await aFollowedPublisher();
    publisher.answersReplays = false;
    publisher.lose(removed(100));
    await publisher.publish(stored([500], null, tokens(60)));
    await until('given up', () => status().trust === 'degraded' && status().state === 'live');
    expect(matched(0, 0, 1)).toBe(0);
    await publisher.publish(stored([501], null, tokens(61)));
    await until('followed', () => matched(0, 61) === 1);
  });
});

describe('restart', () => {
  test.each([
    ['at sequence 0', 0],
    ['at a higher sequence', 1000],
  ])('%s: trusted again, and its old blocks are not believed', async (_what, firstSeq) => {
    const publisher = await aFollowedPublisher();
    await publisher.stop();
    await until('no longer trusted', () => status().trust === 'fallback');
    const next = await FakePublisher.start({ at: publisher, firstSeq });
    publishers.push(next);
    await next.publish({ type: 'AllBlocksCleared' });
    await next.publish(stored([700], null, tokens(7)));
    await until('trusted', () => status().trust === 'exact' && matched(0, 7) === 1);
    expect(matched(0, 0, 1)).toBe(0);
    await until('reported', () => lastSeq() === String(firstSeq + 1));
    expect(status()).toMatchObject({ restarts: 1, nBlocks: 1 });
  });

  test('another incarnation behind the same address is learnt anew', async () => {
    const publisher = await aFollowedPublisher();
    await ingest.reconcile([{ ...sourceOf(publisher), incarnation: 'uid-2' }]);
    await until('relearnt', () => status().restarts === 1 && status().trust === 'exact');
    expect(matched(0, 0, 1)).toBe(2);
  });

  test('batch 5, then batch 2 on the same connection forgets the source', async () => {
    const publisher = await aFollowedPublisher();
    publisher.nextSeq = 0;
    publisher['kept'].length = 0;
    await publisher.publish(stored([800], null, tokens(8)));
    await until('relearnt', () => status().restarts === 1 && lastSeq() === '0');
    expect([matched(0, 0, 1), matched(0, 8)]).toEqual([0, 1]);
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
    const other = await aPublisher();
    await other.publish(stored([900], null, tokens(3)));
    await ingest.reconcile([sourceOf(publisher), sourceOf(other, 1)]);
    await until('both', () => ingest.statuses().length === 2 && status(1).trust === 'exact');
    const nAsked = publisher.requests.length;
    await publisher.sendFrames(...frames);
    await until('counted', () => errors[reason] === 1);
    await until('asked back', () => publisher.requests.length > nAsked && status(0).trust === 'exact');
    expect(status(0)).toMatchObject({ errors: 1, restarts: 0 });
    expect(status(1)).toMatchObject({ errors: 0, trust: 'exact' });
    await publisher.publish(stored([102], 101, tokens(2)));
    await until('goes on', () => matched(0, 0, 1, 2) === 3);
  });

  test('a published batch that cannot be decoded costs what was known before it, and the stream goes on', async () => {
    const publisher = await aFollowedPublisher();
    await publisher.publishRaw(Buffer.from('not a batch'));
    await publisher.publish(stored([110], null, tokens(11)));
    await until('goes on', () => lastSeq() === '3' && status().state === 'live');
    expect([matched(0, 0, 1), matched(0, 11)]).toEqual([0, 1]);
    expect(status()).toMatchObject({ partial: true, trust: 'degraded' });
  });

  test('an event that cannot be read and may have been a removal takes everything before it along', async () => {
    const publisher = await aFollowedPublisher();
    await publisher.publish({ type: 'BlockRemoved', block_hashes: ['?'] }, stored([120], null, tokens(12)));
    await until('applied', () => matched(0, 12) === 1);
    expect(matched(0, 0, 1)).toBe(0);
    await until('reported', () => errors['bad_hash'] === 1 && status().trust === 'degraded');
  });
});

describe('the set of sources', () => {
  test('a source that leaves takes its blocks along before the promise resolves, and its slot can be used again', async () => {
    const publisher = await aFollowedPublisher();
    await ingest.reconcile([]);
    expect(matched(0, 0, 1)).toBe(0);
    expect(ingest.statuses()).toEqual([]);
    const other = await aPublisher();
    await other.publish(stored([1], null, tokens(5)));
    await ingest.reconcile([sourceOf(other)]);
    await until('the other', () => matched(0, 5) === 1);
    expect(matched(0, 0)).toBe(0);
    await publisher.publish(stored([2], null, tokens(6)));
    expect(matched(0, 6)).toBe(0);
  });

  test('the same list again changes nothing', async () => {
    const publisher = await aFollowedPublisher();
    const { replays } = status();
    await ingest.reconcile([sourceOf(publisher)]);
    await ingest.reconcile([sourceOf(publisher)]);
    await publisher.publish(stored([102], 101, tokens(2)));
    await until('goes on', () => matched(0, 0, 1, 2) === 3);
    expect(status()).toMatchObject({ replays, restarts: 0 });
  });

  test('an address nobody listens at is not trusted and costs the others nothing', async () => {
    const dead: IngestSource = {
      ...sourceOf(await aFollowedPublisher(), 1),
      kvEvents: { endpoint: 'tcp://127.0.0.1:9', replayEndpoint: 'tcp://127.0.0.1:9' },
    };
    const broken = { ...dead, endpointId: 'pod-2' as EndpointId, slot: 2 as EndpointSlot, kvEvents: { endpoint: 'nonsense', replayEndpoint: null } }; // prettier-ignore
    await ingest.reconcile([sourceOf(publishers[0]!), dead, broken]);
    await until('three', () => ingest.statuses().length === 3);
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
    await until('noticed', () => ingest.problem() === 'ingest thread is down');
    expect(status()).toMatchObject({ state: 'unknown', trust: 'fallback' });
    await until('relearnt', () => ingest.problem() === null && status().trust === 'exact');
    expect(matched(0, 0, 1)).toBe(2);
    expect(ingest.nLost()).toBe(1);
  });

  test('that falls silent is not believed, then replaced', async () => {
    const publisher = await aFollowedPublisher();
    setFault(FREEZE);
    await until('doubted', () => ingest.problem() === 'ingest thread is silent', 10_000);
    expect(status()).toMatchObject({ state: 'unknown', trust: 'fallback' });
    await until('given up', () => ingest.nLost() === 1, 10_000);
    // The word is seen by the next thread too.
    setFault(NO_FAULT);
    await until('relearnt', () => ingest.problem() === null && status().trust === 'exact', 10_000);
    expect(matched(0, 0, 1)).toBe(2);
    await publisher.publish(removed(101));
    await until('followed', () => matched(0, 0, 1) === 1);
    expect(ingest.nLost()).toBe(1);
  });

  test('that hesitates for a moment is believed again, and learns nothing anew', async () => {
    await aFollowedPublisher();
    setFault(FREEZE);
    await until('doubted', () => ingest.problem() === 'ingest thread is silent', 10_000);
    setFault(NO_FAULT);
    await until('believed again', () => ingest.problem() === null && status().trust === 'exact');
    expect([status().restarts, ingest.nLost()]).toEqual([0, 0]);
  });
});

test('stopping twice is stopping once, and nothing is alive afterwards', async () => {
  await aFollowedPublisher();
  expect(ingest.problem()).toBeNull();
  await ingest.stop();
  await ingest.stop();
  expect(ingest.problem()).toBe('ingest thread is down');
  expect(ingest.statuses()).toEqual([]);
});
