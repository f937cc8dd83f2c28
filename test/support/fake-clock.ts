/** Time that moves only when a test says so. */
import type { Clock, Timer } from '../../src/clock.ts';

export type FakeClock = Clock & {
  /** Moves time forward and runs every timer that falls due, in order. */
  advance(ms: number): void;
  /** Moves time forward as a stalled event loop does: what fell due runs once, late, and what that sets does not yet. */
  stall(ms: number): void;
  /** Timers not yet run or cancelled. */
  nTimers(): number;
};

export function createFakeClock(startMs = 0): FakeClock {
  let nowMs = startMs;
  let timers: { dueMs: number; callback: () => void }[] = [];
  return {
    nowMs: () => nowMs,
    unixMs: () => 1_750_000_000_000 + nowMs,
    after(delayMs, callback): Timer {
      const timer = { dueMs: nowMs + delayMs, callback };
      timers.push(timer);
      return { cancel: () => void (timers = timers.filter((other) => other !== timer)) };
    },
    advance(ms) {
      const endMs = nowMs + ms;
      for (;;) {
        const due = timers.filter(({ dueMs }) => dueMs <= endMs).sort((a, b) => a.dueMs - b.dueMs)[0];
        if (!due) break;
        timers = timers.filter((other) => other !== due);
        nowMs = Math.max(nowMs, due.dueMs);
        due.callback();
      }
      nowMs = endMs;
    },
    stall(ms) {
      nowMs += ms;
      const due = timers.filter(({ dueMs }) => dueMs <= nowMs).sort((a, b) => a.dueMs - b.dueMs);
      timers = timers.filter((timer) => !due.includes(timer));
      for (const { callback } of due) callback();
    },
    nTimers: () => timers.length,
  };
}
