/** Bounds how many replays run at once over all sources; first come, first served. */

export type ReplayPermit = {
  /** Gives the permit, or the place in the queue, back; any number of times. */
  release(): void;
};

export type ReplayPermits = {
  /** Calls `granted` now or later, once. */
  ask(granted: () => void): ReplayPermit;
};

export function createReplayPermits(max: number): ReplayPermits {
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
      let state: 'waiting' | 'granted' | 'released' = 'waiting';
      const start = (): void => {
        waiting.delete(start);
        state = 'granted';
        nGranted++;
        granted();
      };
      waiting.add(start);
      next();
      return {
        release() {
          const before = state;
          state = 'released';
          waiting.delete(start);
          if (before !== 'granted') return;
          nGranted--;
          next();
        },
      };
    },
  };
}
