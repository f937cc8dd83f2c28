import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { SimulatedEngine, type EngineNotice, type EngineRequest } from '../../../src/replay/engine.ts';
import { polynomialTiming, simpleTiming, type TimingModel } from '../../../src/replay/timing.ts';

function anEngine(timing: TimingModel, cacheBlocks: number, speed = 1) {
  const notices: EngineNotice[] = [];
  const engine = new SimulatedEngine({ timing, cacheBlocks, speed, notify: (notice) => void notices.push(notice) });
  return { engine, notices };
}

function aRequest(index: number, promptTokens: number, outputTokens: number, ids: readonly number[]): EngineRequest {
  return { index, promptTokens, outputTokens, blocks: Int32Array.from(ids) };
}

function timesOf(notices: readonly EngineNotice[]) {
  return notices.flatMap((notice) =>
    notice.kind === 'blocks' ? [] : [[notice.kind, notice.request.index, Math.round(notice.timeMs * 1000) / 1000]],
  );
}

describe('a simulated engine, simple timing', () => {
  const timing = simpleTiming(1000, 512);

  test('computes a prompt in chunks, then a token per pass; a token of the answer counts like one of a prompt', () => {
    const { engine, notices } = anEngine(timing, 10);
    engine.submit(aRequest(0, 1000, 3, [0, 1]), 100);
    engine.advanceTo(Infinity);
    expect(timesOf(notices)).toEqual([
      ['first token', 0, 1101],
      ['finished', 0, 1151],
    ]);
    expect(engine.counters).toMatchObject({ computedPromptTokens: 1000, generatedTokens: 3, cachedTokens: 0 });
  });

  test('a cached prefix is not computed again, but the last token always is', () => {
    const { engine, notices } = anEngine(timing, 10);
    engine.submit(aRequest(0, 1000, 1, [0, 1]), 0);
    engine.submit(aRequest(1, 1000, 1, [0, 1]), 0);
    engine.advanceTo(Infinity);
    expect(timesOf(notices).filter(([kind]) => kind === 'first token')).toEqual([
      ['first token', 0, 1003],
      ['first token', 1, 1003],
    ]);
    expect(engine.counters).toMatchObject({ queriedTokens: 2000, cachedTokens: 999 });
  });

  test('an engine twice as fast needs half the time', () => {
    const { engine, notices } = anEngine(timing, 10, 2);
    engine.submit(aRequest(0, 1000, 1, [0, 1]), 0);
    engine.advanceTo(Infinity);
    expect(timesOf(notices)[0]).toEqual(['first token', 0, 500.5]);
  });

  test('what arrives at the start of a pass is in it, and time can be advanced in any steps', () => {
    const times = [0.5, 37, 128, 1e9].map((stepMs) => {
      const { engine, notices } = anEngine(timing, 10);
      engine.submit(aRequest(0, 512, 4, [0]), 0);
      for (let atMs = stepMs; atMs < 256; atMs += stepMs) engine.advanceTo(atMs);
      engine.advanceTo(256);
      engine.submit(aRequest(1, 256, 2, [7]), 256);
      for (let atMs = 256; atMs < 3000; atMs += stepMs) engine.advanceTo(atMs);
      engine.advanceTo(Infinity);
      return timesOf(notices);
    });
    expect(times[0]).toEqual([
      ['first token', 0, 513],
      ['first token', 1, 771],
      ['finished', 1, 796],
      ['finished', 0, 821],
    ]);
    for (const other of times) expect(other).toEqual(times[0]);
  });

  test('a crash hands back everything on it', () => {
    const { engine } = anEngine(timing, 10);
    for (let i = 0; i < 3; i++) engine.submit(aRequest(i, 2000, 5, []), 0);
    engine.advanceTo(300);
    expect(engine.crash().map(({ index }) => index)).toEqual([0, 1, 2]);
    engine.advanceTo(Infinity);
    expect([engine.nRunning, engine.nWaiting]).toEqual([0, 0]);
  });
});

describe('a simulated engine, polynomial timing', () => {
  test('one prompt: prefill of all its tokens, with the first token, then decoding, as the formula says', () => {
    const { engine, notices } = anEngine(polynomialTiming, 16_384);
    engine.submit(aRequest(0, 640, 2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), 0);
    engine.advanceTo(Infinity);
    const capacity = 16_384 * 64;
    const decodeMs = (tokens: number): number => -25.74 * (tokens / capacity) ** 2 + (54.01 * tokens) / capacity + 5.74;
    const firstMs = 4.209989e-7 * 640 ** 2 + 1.518344e-2 * 640 + 16.50142;
    expect(notices.find(({ kind }) => kind === 'first token')!.timeMs).toBeCloseTo(firstMs, 9);
    expect(notices.at(-1)!.timeMs).toBeCloseTo(firstMs + decodeMs(641), 9);
  });

  test('when no block is free the youngest request starts again, and everybody is served', () => {
    const { engine, notices } = anEngine(polynomialTiming, 12);
    engine.submit(aRequest(0, 256, 300, [0, 1, 2, 3]), 0);
    engine.submit(aRequest(1, 256, 300, [4, 5, 6, 7]), 0);
    engine.advanceTo(Infinity);
    expect(engine.counters.preemptions).toBeGreaterThan(0);
    expect(
      timesOf(notices)
        .filter(([kind]) => kind === 'finished')
        .map(([, index]) => index),
    ).toEqual([0, 1]);
    expect(engine.cache.nAvailable).toBe(12);
  });

  test('any load: every request ends once, after its first token, and the cache is free again', () => {
    const request = fc.record({
      at: fc.nat(2000),
      prefix: fc.nat(3),
      nBlocks: fc.integer({ min: 1, max: 6 }),
      output: fc.integer({ min: 1, max: 90 }),
    });
    fc.assert(
      fc.property(
        fc.array(request, { minLength: 1, maxLength: 25 }),
        fc.integer({ min: 9, max: 40 }),
        (drawn, cacheBlocks) => {
          for (const timing of [polynomialTiming, simpleTiming(20_000, 64)]) {
            const { engine, notices } = anEngine(timing, cacheBlocks);
            const sorted = [...drawn].sort((a, b) => a.at - b.at);
            sorted.forEach(({ at, prefix, nBlocks, output }, index) => {
              engine.advanceTo(at);
              const ids = Array.from({ length: nBlocks }, (_, i) => 100 * prefix + i);
              engine.submit(aRequest(index, 64 * nBlocks + 5, output, ids), at);
            });
            engine.advanceTo(Infinity);
            const first = notices.filter(({ kind }) => kind === 'first token');
            const finished = notices.filter(({ kind }) => kind === 'finished');
            const indexes = (of: readonly EngineNotice[]) =>
              of.map((notice) => (notice.kind === 'blocks' ? -1 : notice.request.index)).sort((a, b) => a - b);
            // A request that was put out after its first token does not show it again.
            expect(new Set(indexes(first)).size).toBe(sorted.length);
            expect(indexes(finished)).toEqual(sorted.map((_, index) => index));
            expect(engine.cache.nAvailable).toBe(cacheBlocks);
            for (let i = 1; i < notices.length; i++)
              expect(notices[i]!.timeMs).toBeGreaterThanOrEqual(notices[i - 1]!.timeMs);
            const held = new Set<number>();
            for (const notice of notices) {
              if (notice.kind !== 'blocks') continue;
              for (const change of notice.changes) {
                if (change >= 0) held.add(change);
                else expect(held.delete(~change)).toBe(true);
              }
            }
            for (const id of held) expect(engine.cache.has(id)).toBe(true);
          }
        },
      ),
      { numRuns: 60 },
    );
  });
});
