import { describe, expect, test } from '@jest/globals';
import type { PoolEvent } from '../../../src/simulator/block-pool.ts';
import { createEngine, type EngineOptions, type EngineRequest } from '../../../src/simulator/engine.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

type Token = { id: string; tokenId: number; atMs: number; cachedTokens: number; last: boolean };

/** 1 token per millisecond of prefill, 10 ms per decoding step, 100 usable blocks of 4 tokens. */
function anEngine(parts: Partial<EngineOptions> = {}, { timersLateByMs = 0 } = {}) {
  const fake = createFakeClock();
  const clock = { ...fake, after: (ms: number, callback: () => void) => fake.after(ms + timersLateByMs, callback) };
  const batches: { atMs: number; unixSeconds: number; events: readonly PoolEvent[] }[] = [];
  const tokens: Token[] = [];
  const engine = createEngine(
    { clock, publish: (events, unixSeconds) => void batches.push({ atMs: clock.nowMs(), unixSeconds, events }) },
    {
      blockSizeTokens: 4,
      nBlocks: 101,
      uncachedBlocks: 'reused_first',
      prefillTokensPerSecond: 1000,
      decodeStepMs: 10,
      maxBatchedTokens: 1000,
      maxSequences: 8,
      seed: 1,
      ...parts,
    },
  );
  const request = (
    id: string,
    promptTokenIds: readonly number[],
    more: Partial<EngineRequest> = {},
  ): EngineRequest => ({
    id,
    promptTokenIds,
    features: [],
    lora: null,
    cacheSalt: null,
    cacheReads: 'allowed',
    maxTokens: 1,
    finishReason: 'length',
    generate: (index) => 1000 + index,
    onToken: (output) => void tokens.push({ id, atMs: clock.nowMs(), ...output }),
    ...more,
  });
  return {
    engine,
    clock,
    batches,
    tokens,
    submit: (id: string, promptTokenIds: readonly number[], more: Partial<EngineRequest> = {}) =>
      engine.submit([request(id, promptTokenIds, more)]),
    submitTogether: (...prompts: readonly (readonly number[])[]) =>
      engine.submit(prompts.map((prompt, i) => request(`together-${i}`, prompt))),
    firstTokenMs: (id: string) => tokens.find((token) => token.id === id)?.atMs,
  };
}

function tokens(first: number, n: number): number[] {
  return Array.from({ length: n }, (_, i) => first + i);
}

describe('the engine in time', () => {
  test('a first token takes as long as its uncached tokens, so a hit shortens it', () => {
    const it = anEngine();
    it.submit('cold', tokens(1, 101));
    it.clock.advance(1000);
    it.submit('warm', tokens(1, 101));
    it.clock.advance(1000);
    expect(it.firstTokenMs('cold')).toBe(101);
    expect(it.firstTokenMs('warm')! - 1000).toBe(1);
    expect(it.tokens.map((token) => token.cachedTokens)).toEqual([0, 100]);
  });

  test('further tokens come one per decoding step', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 20), { maxTokens: 4 });
    it.clock.advance(1000);
    expect(it.tokens.map(({ atMs, tokenId, last }) => [atMs, tokenId, last])).toEqual([
      [20, 1000, false],
      [30, 1001, false],
      [40, 1002, false],
      [50, 1003, true],
    ]);
  });

  test('a long prompt is computed in chunks, each announced when it is done, while others decode', () => {
    const it = anEngine({ maxBatchedTokens: 40 });
    it.submit('talker', tokens(1, 8), { maxTokens: 4 });
    it.clock.advance(8);
    it.submit('long', tokens(1001, 100));
    it.clock.advance(1000);
    // 10 ms decoding alone, then 39, 39 and 22 tokens of the prompt beside a decode.
    expect(it.tokens.map(({ id, atMs }) => [id, atMs])).toEqual([
      ['talker', 8],
      ['talker', 18],
      ['talker', 67],
      ['talker', 116],
      ['long', 138],
    ]);
    expect(it.batches.map(({ atMs, events }) => [atMs, ...events.map(nBlocks)])).toEqual([
      [8, 2],
      [67, 9],
      [116, 10],
      [138, 6],
    ]);
  });

  test('the batch of a step leaves before its tokens, stamped with the time of the step', () => {
    const it = anEngine();
    const order: string[] = [];
    it.submit('a', tokens(1, 8), { onToken: () => void order.push(`token after ${it.batches.length} batch`) });
    it.clock.advance(100);
    expect(order).toEqual(['token after 1 batch']);
    expect(it.batches[0]!.unixSeconds).toBeCloseTo((it.clock.unixMs() - 92) / 1000, 6);
  });

  test('steps without news send nothing', () => {
    const it = anEngine();
    it.submit('short', tokens(1, 3));
    it.submit('long', tokens(101, 8), { maxTokens: 3 });
    it.clock.advance(1000);
    expect(it.engine.stats().steps).toBeGreaterThan(it.batches.length);
    expect(it.batches).toHaveLength(1);
  });

  test('latencies are counted from the submit to the first and to the last token', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 30), { maxTokens: 3 });
    it.submit('b', tokens(101, 10), { finishReason: 'stop' });
    it.clock.advance(1000);
    const { timeToFirstTokenSeconds, requestLatencySeconds, finishedByReason } = it.engine.stats();
    // b waits for the step of a, and takes 20 ms beside it: its own 10 and a's decode.
    expect(timeToFirstTokenSeconds).toMatchObject({ count: 2, sum: expect.closeTo(0.03 + 0.05, 9) });
    expect(requestLatencySeconds).toMatchObject({ count: 2, sum: expect.closeTo(0.06 + 0.05, 9) });
    expect(timeToFirstTokenSeconds.bounds.slice(1, 4)).toEqual([0.02, 0.04, 0.08]);
    expect(timeToFirstTokenSeconds.cumulative.slice(1, 4)).toEqual([0, 1, 2]);
    expect(finishedByReason).toEqual({ length: 1, stop: 1 });
  });

  test('timers that fire late do not add up, and an idle engine makes up for nothing', () => {
    const it = anEngine({}, { timersLateByMs: 3 });
    it.submit('a', tokens(1, 10), { maxTokens: 20 });
    it.clock.advance(1000);
    expect(it.tokens.map(({ atMs }) => atMs)).toEqual(Array.from({ length: 20 }, (_, i) => 10 * (i + 1) + 3));
    it.submit('b', tokens(101, 10));
    it.clock.advance(1000);
    expect(it.firstTokenMs('b')).toBe(1013);
  });

  test('the same requests give the same history; another seed gives other names only', () => {
    const history = (seed: number) => {
      const it = anEngine({ seed, nBlocks: 30 });
      for (let i = 0; i < 30; i++) {
        it.submit(`r${i}`, tokens((i % 7) * 50, 10 + (i % 5) * 9), { maxTokens: 1 + (i % 9) });
        it.clock.advance((i * 13) % 40);
      }
      it.clock.advance(10_000);
      const names = it.batches.flatMap(({ events }) =>
        events.flatMap((event) =>
          event.type === 'BlockStored' ? event.blocks.map((block) => block.digest.toString('hex')) : [],
        ),
      );
      return { names, tokens: it.tokens, shape: it.batches.map(({ atMs, events }) => [atMs, ...events.map(nBlocks)]) };
    };
    const first = history(1);
    expect(history(1)).toEqual(first);
    const other = history(2);
    expect(other.shape).toEqual(first.shape);
    expect(other.tokens).toEqual(first.tokens);
    expect(new Set([...first.names, ...other.names]).size).toBe(2 * new Set(first.names).size);
  });
});

describe('the engine and its cache', () => {
  test('blocks of generated tokens are stored, but the last token is never computed', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 3), { maxTokens: 6 });
    it.clock.advance(1000);
    // 9 tokens in all, 8 computed.
    expect(it.batches.map(({ events }) => events.map(nBlocks))).toEqual([[1], [1]]);
    it.submit('next turn', [...tokens(1, 3), ...tokens(1000, 6), 77]);
    it.clock.advance(1000);
    expect(it.tokens.at(-1)).toMatchObject({ id: 'next turn', cachedTokens: 8 });
    const residents = it.engine.residentBlocks();
    expect(residents.map((block) => [...block.prefixTokenIds()])).toContainEqual([
      1, 2, 3, 1000, 1001, 1002, 1003, 1004,
    ]);
  });

  test('two equal prompts in one step give one store, and the second is a hit', () => {
    const it = anEngine();
    it.submitTogether(tokens(1, 9), tokens(1, 9));
    it.clock.advance(1000);
    expect(it.batches.map(({ events }) => events.map(nBlocks))).toEqual([[2]]);
    expect(it.tokens.map((token) => token.cachedTokens)).toEqual([0, 8]);
  });

  test('a request that reads no cache finds nothing and is not counted as a query', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 9));
    it.clock.advance(100);
    it.submit('b', tokens(1, 9), { cacheReads: 'skipped' });
    it.clock.advance(100);
    expect(it.tokens.at(-1)!.cachedTokens).toBe(0);
    expect(it.engine.stats()).toMatchObject({ prefixCacheQueryTokens: 9, prefixCacheHitTokens: 0, promptTokens: 18 });
  });

  test('a clear leaves with the batch of the next step, ahead of its stores', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 8));
    it.clock.advance(100);
    expect(it.engine.resetPrefixCache()).toBe('done');
    it.clock.advance(10_000);
    expect(it.batches).toHaveLength(1);
    it.submit('b', tokens(1, 8));
    it.clock.advance(100);
    expect(it.batches[1]!.events.map((event) => event.type)).toEqual(['AllBlocksCleared', 'BlockStored']);
  });

  test('a running request refuses the reset', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 8), { maxTokens: 50 });
    it.clock.advance(20);
    expect(it.engine.resetPrefixCache()).toBe('in_use');
  });
});

describe('the engine under load', () => {
  test('at most the limit runs at once, the rest waits its turn', () => {
    const it = anEngine({ maxSequences: 2 });
    for (const id of ['a', 'b', 'c']) it.submit(id, tokens(id.charCodeAt(0) * 100, 10), { maxTokens: 3 });
    it.clock.advance(15);
    expect(it.engine.stats()).toMatchObject({ running: 2, waiting: 1 });
    it.clock.advance(1000);
    expect(it.engine.stats()).toMatchObject({ running: 0, waiting: 0, finishedRequests: 3 });
    expect(it.tokens.filter((token) => token.last).map((token) => token.id)).toEqual(['a', 'b', 'c']);
  });

  test('without room the youngest request is preempted and finishes later, its answer whole', () => {
    const it = anEngine({ nBlocks: 9 });
    it.submitTogether(tokens(1, 12), tokens(101, 12));
    it.engine.abort('together-0');
    it.engine.abort('together-1');
    it.clock.advance(100);
    it.submit('old', tokens(201, 12), { maxTokens: 12 });
    it.submit('young', tokens(301, 12), { maxTokens: 12 });
    it.clock.advance(10_000);
    expect(it.engine.stats().preemptions).toBeGreaterThan(0);
    for (const id of ['old', 'young']) {
      const answer = it.tokens.filter((token) => token.id === id);
      expect(answer.map((token) => token.tokenId)).toEqual(tokens(1000, 12));
    }
    expect(it.firstTokenMs('old')).toBeLessThanOrEqual(it.firstTokenMs('young')!);
    expect(it.engine.stats().kvCacheUsage).toBe(0);
  });

  test('an abort during a step frees the blocks after it, without a further token', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 40), { maxTokens: 10 });
    it.clock.advance(20);
    it.engine.abort('a');
    expect(it.engine.stats().kvCacheUsage).toBeCloseTo(0.1);
    it.clock.advance(1000);
    expect(it.tokens).toEqual([]);
    expect(it.engine.stats()).toMatchObject({ running: 0, kvCacheUsage: 0, abortedRequests: 1, finishedRequests: 0 });
    // What the step computed was announced and stays findable.
    it.submit('b', tokens(1, 41));
    it.clock.advance(1000);
    expect(it.tokens.at(-1)!.cachedTokens).toBe(40);
  });

  test('an abort of a waiting request, an unknown one, or from inside a delivery does no harm', () => {
    const it = anEngine({ maxSequences: 1 });
    it.submit('a', tokens(1, 10), { maxTokens: 5, onToken: ({ last }) => !last && it.engine.abort('a') });
    it.submit('b', tokens(101, 10));
    it.submit('c', tokens(201, 10));
    it.engine.abort('b');
    it.engine.abort('nobody');
    it.clock.advance(1000);
    expect(it.tokens.map((token) => token.id)).toEqual(['c']);
    expect(it.engine.stats()).toMatchObject({ abortedRequests: 2, finishedRequests: 1, kvCacheUsage: 0 });
  });

  test('a stalled engine finishes its step and waits; resumed, it goes on', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 10), { maxTokens: 3 });
    it.engine.stall();
    it.clock.advance(500);
    expect(it.tokens).toHaveLength(1);
    it.submit('b', tokens(101, 10));
    it.clock.advance(500);
    it.engine.resume();
    it.clock.advance(500);
    expect(it.tokens.filter((token) => token.last).map((token) => token.id)).toEqual(['b', 'a']);
  });

  test('a stopped engine leaves no timer and delivers nothing', () => {
    const it = anEngine();
    it.submit('a', tokens(1, 10));
    it.engine.stop();
    it.submit('b', tokens(1, 10));
    it.clock.advance(1000);
    expect(it.clock.nTimers()).toBe(0);
    expect(it.tokens).toEqual([]);
  });
});

function nBlocks(event: PoolEvent): number {
  if (event.type === 'AllBlocksCleared') return 0;
  return event.type === 'BlockRemoved' ? -1 : event.blocks.length;
}
