/**
 * Reservations whose request goes on where nobody sees it: Envoy ended the stream right after the choice. Each is given
 * back when its answer is expected to be over, or a fixed time after its stream ended where nothing is expected. What is
 * still visible never comes here: a reservation arrives when its stream has ended, so no open stream ever loses one.
 */
import type { Clock, Timer } from '../clock.ts';
import type { Reservation } from './picker.ts';

export type UnseenEnds = {
  /** Takes over a reservation; above the cap the oldest is given back at once. */
  hold(reservation: Reservation): void;
  /** Gives back all of them. */
  releaseAll(): void;
  size(): number;
};

export type UnseenEndsOptions = {
  readonly assumedAnswerMs: number;
  readonly maxHeld: number;
  /** A reservation that throws: a bug of its owner, which must not keep the others. */
  onFault(error: unknown): void;
};

/** Between two looks. */
const LEAST_PAUSE_MS = 20;
/** However long an answer is expected to take, it is not waited for longer than so many assumed ones. */
const MOST_ASSUMED = 10;

export function createUnseenEnds(clock: Clock, { assumedAnswerMs, maxHeld, onFault }: UnseenEndsOptions): UnseenEnds {
  /** In order of their coming; a Map keeps it and forgets the first at no cost. */
  const held = new Map<number, { readonly reservation: Reservation; readonly dueMs: number }>();
  let nextId = 0;
  let timer: Timer | null = null;
  let timerMs = 0;

  function giveBack(reservation: Reservation): void {
    try {
      reservation.release('assumed');
    } catch (error) {
      onFault(error);
    }
  }

  function schedule(dueMs: number): void {
    timerMs = dueMs;
    timer = clock.after(Math.max(0, dueMs - clock.nowMs()), () => {
      timer = null;
      releaseDue();
    });
  }

  function releaseDue(): void {
    const nowMs = clock.nowMs();
    let nextMs = Infinity;
    for (const [id, { reservation, dueMs }] of held) {
      if (dueMs > nowMs) {
        nextMs = Math.min(nextMs, dueMs);
        continue;
      }
      held.delete(id);
      giveBack(reservation);
    }
    // All are looked through: not for every single end.
    if (nextMs < Infinity) schedule(Math.max(nextMs, nowMs + LEAST_PAUSE_MS));
  }

  return {
    hold(reservation) {
      const { expectedAnswerMs } = reservation;
      const dueMs = clock.nowMs() + Math.min(expectedAnswerMs ?? assumedAnswerMs, MOST_ASSUMED * assumedAnswerMs);
      held.set(nextId++, { reservation, dueMs });
      if (held.size > maxHeld) {
        const [id, oldest] = held.entries().next().value!;
        held.delete(id);
        giveBack(oldest.reservation);
      }
      if (timer !== null && dueMs >= timerMs) return;
      timer?.cancel();
      schedule(Math.max(dueMs, clock.nowMs() + LEAST_PAUSE_MS));
    },
    releaseAll() {
      timer?.cancel();
      timer = null;
      for (const { reservation } of held.values()) giveBack(reservation);
      held.clear();
    },
    size: () => held.size,
  };
}
