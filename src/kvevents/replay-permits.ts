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

export function createReplayPermits(max: number, clock: Pick<Clock, 'after'>): ReplayPermits {
  const waiting = new Set<() => void>();
  let nGranted = 0;

  const next = (): void => {
    for (const start of waiting) {
      if (nGranted >= max) return;
      start();
    }
  };

  return {
    ask(granted) {
      let counted: Timer | null = null;
      const start = (): void => {
        waiting.delete(start);
        counted = clock.after(MAX_COUNTED_MS, release);
        nGranted++;
        granted();
      };
      const release = (): void => {
        waiting.delete(start);
        if (counted === null) return;
        counted.cancel();
        counted = null;
        nGranted--;
        next();
      };
      waiting.add(start);
      next();
      return { release };
    },
  };
}
