/**
 * Notices when everything of a kind is away at once, which is never the fault of one pod: a wrong port, a NetworkPolicy, a
 * network that is gone. Told once after a while, and once when it is over.
 */
import type { Log } from './log.ts';

export type OutageWatch = {
  /** To be called now and then; cheap. @param what constant words for what is away */
  check(what: string, nAll: number, nAway: number): void;
};

/** Longer than a start and a restart of the network take. */
const PATIENCE_MS = 5_000;

export function createOutageWatch({ log, nowMs }: { readonly log: Log; nowMs(): number }): OutageWatch {
  const outages = new Map<string, { readonly sinceMs: number; isTold: boolean }>();
  return {
    check(what, nAll, nAway) {
      const outage = outages.get(what);
      if (nAll === 0 || nAway < nAll) {
        if (outage?.isTold === true) log.info(`${what}: over`, { of: nAll });
        outages.delete(what);
      } else if (outage === undefined) outages.set(what, { sinceMs: nowMs(), isTold: false });
      else if (!outage.isTold && nowMs() - outage.sinceMs >= PATIENCE_MS) {
        outage.isTold = true;
        log.warn(what, { of: nAll, hint: 'warmpath doctor says what to change' });
      }
    },
  };
}
