/**
 * Joins the stream that is answered with one that only observes: a second ext_proc filter in observability mode sees the
 * response body without delaying a token, on a stream of its own. The key is `x-request-id`; where two open requests share
 * one, neither is joined. A filter pair served by two processes is not joined either: then usage is simply unknown.
 */
import type { Usage } from '../openai/usage.ts';
import type { Reservation } from './picker.ts';
import type { ResponseEnd } from './response-side.ts';

export type Observer = {
  firstByte(): void;
  /** The response is over. */
  complete(usage: Usage | null, how: ResponseEnd): void;
  /** The observing stream is over, with or without the response. */
  gone(): void;
};

export type UsageJoin = {
  /** The reservation, or one that also hears what an observer of the same request sees. */
  join(requestId: string | undefined, reservation: Reservation): Reservation;
  observe(requestId: string): Observer;
};

type ReleaseOutcome = Parameters<Reservation['release']>[0];
type Joined = {
  readonly reservation: Reservation;
  /** Set when the answered stream ended first: the release waits for the observer, who is about to see the usage. */
  waiting: ReleaseOutcome | null;
};

export function createUsageJoin(): UsageJoin {
  const joined = new Map<string, Joined>();
  const shared = new Set<string>();
  const nObservers = new Map<string, number>();

  function join(requestId: string | undefined, reservation: Reservation): Reservation {
    if (requestId === undefined) return reservation;
    if (joined.has(requestId)) {
      shared.add(requestId);
      return reservation;
    }
    const entry: Joined = { reservation, waiting: null };
    joined.set(requestId, entry);
    return {
      expectedAnswerMs: reservation.expectedAnswerMs ?? null,
      firstByte: () => reservation.firstByte(),
      observe: (usage) => reservation.observe(usage),
      release(outcome) {
        if (joined.get(requestId) !== entry) return;
        const isServed = outcome === 'completed' || outcome === 'assumed';
        if (isServed && nObservers.has(requestId)) entry.waiting ??= outcome;
        else end(requestId, entry, outcome);
      },
    };
  }

  function end(requestId: string, entry: Joined, outcome: ReleaseOutcome): void {
    joined.delete(requestId);
    shared.delete(requestId);
    entry.reservation.release(outcome);
  }

  function observe(requestId: string): Observer {
    let open = true;
    nObservers.set(requestId, (nObservers.get(requestId) ?? 0) + 1);
    const known = (): Joined | undefined => (shared.has(requestId) ? undefined : joined.get(requestId));
    const gone = (): void => {
      if (!open) return;
      open = false;
      const nLeft = (nObservers.get(requestId) ?? 1) - 1;
      if (nLeft > 0) nObservers.set(requestId, nLeft);
      else nObservers.delete(requestId);
      const entry = joined.get(requestId);
      if (nLeft === 0 && entry?.waiting) end(requestId, entry, entry.waiting);
    };
    return {
      firstByte: () => known()?.reservation.firstByte(),
      complete(usage, how) {
        const entry = known();
        if (entry !== undefined) {
          if (usage !== null) entry.reservation.observe(usage);
          end(requestId, entry, how);
        }
        gone();
      },
      gone,
    };
  }

  return { join, observe };
}
