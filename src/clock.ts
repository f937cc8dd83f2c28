/** Time as a dependency, so that tests own it. */

export type Timer = { cancel(): void };

export type Clock = {
  /** Monotonic milliseconds with an arbitrary origin. */
  nowMs(): number;
  /** Milliseconds since the Unix epoch. */
  unixMs(): number;
  /** Runs `callback` once after `delayMs`; never keeps the process alive by itself. */
  after(delayMs: number, callback: () => void): Timer;
};

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  unixMs: () => Date.now(),
  after(delayMs, callback) {
    const timer = setTimeout(callback, delayMs);
    timer.unref();
    return { cancel: () => clearTimeout(timer) };
  },
};

/** Exponential backoff with full jitter on the upper half: attempt 0 waits baseMs/2…baseMs, doubling up to maxMs. */
export function backoffMs(attempt: number, baseMs: number, maxMs: number, random: () => number = Math.random): number {
  const ceiling = Math.min(maxMs, baseMs * 2 ** Math.min(attempt, 30));
  return ceiling / 2 + random() * (ceiling / 2);
}
