/**
 * Joins the stream that is answered with one that only observes: a second ext_proc filter in observability mode sees the
 * response body without delaying a token, on a stream of its own. The key is `x-request-id`, which clients may write: where two
 * open requests share one, nobody is joined until all streams of that name are gone. A filter pair served by two processes is not joined either: then usage is simply unknown.
 */
import type { Usage } from '../openai/usage.ts';
import type { Reservation } from './picker.ts';
import type { ResponseEnd } from './response-side.ts';

export type Observer = {
  firstByte(): void;
  /** The response is over. */
  complete(usage: Usage | null, how: ResponseEnd): void;
  /** The observing stream is over, with or without the response. `cut`: in the middle of it. */
  gone(how?: 'cut'): void;
};

export type UsageJoin = {
  /** The reservation, or one that also hears what an observer of the same request sees. */
  join(requestId: string | undefined, reservation: Reservation): Reservation;
  observe(requestId: string): Observer;
};

type ReleaseOutcome = Parameters<Reservation['release']>[0];

type Held = {
  readonly reservation: Reservation;
  /** Set when the answered stream ended first: the release waits for the observer, who is about to see the usage. */
  waiting: ReleaseOutcome | null;
};

/** All that is open under one request id. */
type Name = {
  readonly held: Set<Held>;
  nObservers: number;
  /** What an observer of this name sees is of one of several requests. */
  isShared: boolean;
};

export function createUsageJoin(): UsageJoin {
  const names = new Map<string, Name>();

  function nameOf(requestId: string): Name {
    let name = names.get(requestId);
    if (!name) names.set(requestId, (name = { held: new Set(), nObservers: 0, isShared: false }));
    return name;
  }

  function end(requestId: string, name: Name, held: Held, outcome: ReleaseOutcome): void {
    if (!name.held.delete(held)) return;
    forgetUnused(requestId, name);
    held.reservation.release(outcome);
  }

  /** @param cut the answer is known to have broken off, which the answered stream was not shown */
  function endWaiting(requestId: string, name: Name, cut?: 'cut'): void {
    for (const held of name.held) {
      if (held.waiting !== null) end(requestId, name, held, cut === undefined ? held.waiting : 'cancelled');
    }
  }

  function forgetUnused(requestId: string, { held, nObservers }: Name): void {
    if (held.size === 0 && nObservers === 0) names.delete(requestId);
  }

  function join(requestId: string | undefined, reservation: Reservation): Reservation {
    if (requestId === undefined) return reservation;
    const name = nameOf(requestId);
    const held: Held = { reservation, waiting: null };
    name.held.add(held);
    if (name.held.size > 1) {
      name.isShared = true;
      endWaiting(requestId, name);
    }
    return {
      expectedAnswerMs: reservation.expectedAnswerMs ?? null,
      firstByte: () => reservation.firstByte(),
      observe: (usage) => reservation.observe(usage),
      release(outcome) {
        if (!name.held.has(held)) return;
        const isServed = outcome === 'completed' || outcome === 'assumed';
        if (isServed && name.nObservers > 0 && !name.isShared) held.waiting ??= outcome;
        else end(requestId, name, held, outcome);
      },
    };
  }

  function observe(requestId: string): Observer {
    const name = nameOf(requestId);
    let open = true;
    name.nObservers += 1;
    const observed = (): Held | undefined => (name.isShared ? undefined : [...name.held][0]);
    const gone = (how?: 'cut'): void => {
      if (!open) return;
      open = false;
      name.nObservers -= 1;
      if (name.nObservers === 0) endWaiting(requestId, name, how);
      forgetUnused(requestId, name);
    };
    return {
      firstByte: () => observed()?.reservation.firstByte(),
      complete(usage, how) {
        const held = observed();
        if (held !== undefined) {
          if (usage !== null) held.reservation.observe(usage);
          end(requestId, name, held, how);
        }
        gone();
      },
      gone,
    };
  }

  return { join, observe };
}
