/**
 * When publishers that cannot be reached are tried again: exponential backoff with jitter for each, and a bound for all
 * together, since a thousand dead ones must not cost more than a few.
 */
import { backoffMs } from '../clock.ts';

export type Redials = {
  /** A source that is not connected, until `up`. */
  down(): void;
  up(): void;
  /** How long to wait before trying again. @param attempt attempts that failed since the source was connected, from 0 */
  delayMs(attempt: number): number;
};

const BASE_MS = 60;
/** A pod that comes back is found within a second, unless many are gone. */
const MAX_MS = 1000;
/**
 * An attempt costs 100 to 300 µs, as rare as they are (`bench-kv --only dead`). Of twenty that are gone each is tried every
 * second, of a thousand every 50; one that discovery sees restarted is tried at once.
 */
const MAX_ATTEMPTS_PER_SECOND = 20;

export function createRedials(random: () => number = Math.random): Redials {
  let nDown = 0;
  return {
    down: () => void nDown++,
    up: () => void nDown--,
    delayMs(attempt) {
      const fairShareMs = (1000 * nDown) / MAX_ATTEMPTS_PER_SECOND;
      // A source just lost is tried at once, however many others are gone.
      if (attempt === 0) return backoffMs(0, BASE_MS, MAX_MS, random);
      return Math.max(backoffMs(attempt, BASE_MS, MAX_MS, random), fairShareMs * (0.75 + 0.5 * random()));
    },
  };
}
