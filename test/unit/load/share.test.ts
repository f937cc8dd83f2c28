import { describe, expect, test } from '@jest/globals';
import { createInFlight } from '../../../src/load/in-flight.ts';
import { createRandom, exponential } from '../../../src/replay/random.ts';
import { createVirtualClock } from '../../../src/replay/virtual-clock.ts';
import { schedule } from '../../../src/scheduling/scheduler.ts';

/** Engines that compute one prompt after the other, and requests that share nothing. */
function tokensServed(tokensPerMs: readonly number[], loadPart: number): number[] {
  const clock = createVirtualClock();
  const inFlight = createInFlight(clock);
  const random = createRandom(7);
  const served = tokensPerMs.map(() => 0);
  const freeMs = tokensPerMs.map(() => 0);
  const meanTokens = 2000;
  const everyMs = meanTokens / (loadPart * tokensPerMs.reduce((sum, rate) => sum + rate, 0));
  let dueMs = 0;
  for (let i = 0; i < 3000; i++) {
    dueMs += everyMs * exponential(random);
    clock.after(dueMs, () => {
      const promptTokens = Math.ceil(meanTokens * exponential(random));
      const candidates = tokensPerMs.map((_, slot) => ({
        address: `10.0.0.${slot}:8000`,
        trust: 'exact' as const,
        cachedTokens: 0,
        evictedAgeMs: null,
        load: inFlight.load(slot),
      }));
      const tieKey = Math.floor(random() * 2 ** 32);
      const slot = schedule({ candidates, promptTokens, tieKey, sharers: 0 }).order[0]!;
      const reservation = inFlight.reserve(slot, promptTokens);
      freeMs[slot] = Math.max(freeMs[slot]!, clock.nowMs()) + promptTokens / tokensPerMs[slot]!;
      served[slot]! += promptTokens;
      clock.after(freeMs[slot]! - clock.nowMs(), () => {
        reservation.firstByte();
        reservation.release(promptTokens);
      });
    });
  }
  clock.advanceTo(Number.MAX_SAFE_INTEGER);
  expect(inFlight.total()).toBe(0);
  return served;
}

describe('engines of different speed', () => {
  test('one twice as fast gets about twice the work, without anybody saying so', () => {
    const [slow, fast] = tokensServed([8, 16], 0.85) as [number, number];
    expect(fast / slow).toBeGreaterThan(1.6);
    expect(fast / slow).toBeLessThan(3);
  });

  test('equal ones share equally', () => {
    const served = tokensServed([8, 8, 8], 0.85);
    expect(Math.max(...served) / Math.min(...served)).toBeLessThan(1.15);
  });
});
