/**
 * How late what a publisher sends comes, told from its timestamps alone. Two machines' clocks differ by an unknown time that
 * stays about the same, so a batch is compared with the earliest of the last minutes: neither a clock that is set wrong nor
 * a time zone looks like a delay. What is late by the same time for longer than that is not told from it. No I/O.
 */
import type { Clock } from '../clock.ts';

/** Within two of them a clock that was set, or one that drifts, is known anew. */
const WINDOW_MS = 300_000;

/** @returns milliseconds by which a batch sent at that time of the publisher's clock is later than the earliest of late, ≥ 0 */
export function createLateness({ nowMs }: Pick<Clock, 'nowMs'>): (sentMs: number) => number {
  let least = Infinity;
  let leastBefore = Infinity;
  let sinceMs = nowMs();
  return (sentMs) => {
    // Monotonic on this side: when the own clock is set nothing changes.
    const behindMs = nowMs() - sentMs;
    const windowMs = nowMs() - sinceMs;
    if (windowMs >= WINDOW_MS) {
      leastBefore = windowMs < 2 * WINDOW_MS ? least : Infinity;
      least = Infinity;
      sinceMs = nowMs();
    }
    least = Math.min(least, behindMs);
    return behindMs - Math.min(least, leastBefore);
  };
}
