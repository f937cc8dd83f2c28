/** Bounds how many replays run at once over all sources; first come, first served. */
import type { Clock, Timer } from '../clock.ts';

export type ReplayPermit = {
  /** Gives the permit, or the place in the queue, back; any number of times. */
  release(): void;
};

export type ReplayPermits = {
  /** Calls `granted` now or later, once. */
  ask(granted: () => void): ReplayPermit;
};

/**
 * Ten thousand large batches of eight sources take some ten seconds to apply. A replay that takes longer than this comes too
 * slowly to be a burden: it goes on, and those in the queue need not wait for it.
 */
const MAX_COUNTED_MS = 30_000;
/** Times `max`: with those that are slow. What comes live meanwhile is kept for each of them. */
const MAX_RUNNING = 4;

export function createReplayPermits(max: number, clock: Pick<Clock, 'after'>): ReplayPermits {
  const waiting = new Set<() => void>();
  let nCounted = 0;
  let nRunning = 0;

  const next = (): void => {
    for (const start of waiting) {
      if (nCounted >= max || nRunning >= MAX_RUNNING * max) return;
      start();
    }
  };

  return {
    ask(granted) {
      let counted: Timer | null = null;
      let isRunning = false;
      const start = (): void => {
        waiting.delete(start);
        isRunning = true;
        nRunning++;
        nCounted++;
        counted = clock.after(MAX_COUNTED_MS, discount);
        granted();
      };
      const discount = (): void => {
        if (counted === null) return;
        counted.cancel();
        counted = null;
        nCounted--;
        next();
      };
      waiting.add(start);
      next();
      return {
        release() {
          waiting.delete(start);
          if (!isRunning) return;
          isRunning = false;
          nRunning--;
          if (counted === null) next();
          else discount();
        },
      };
    },
  };
}
