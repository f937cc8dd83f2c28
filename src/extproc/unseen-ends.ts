/**
 * Reservations whose request goes on where nobody sees it: Envoy ended the stream right after the choice. Each is given
 * back a fixed time after its stream ended, the oldest first. What is still visible never comes here: a reservation
 * arrives when its stream has ended, so no open stream ever loses one.
 */
import type { Clock, Timer } from '../clock.ts';
import type { Reservation } from './endpoint-picker.ts';

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

export function createUnseenEnds(clock: Clock, { assumedAnswerMs, maxHeld, onFault }: UnseenEndsOptions): UnseenEnds {
  /** In order of their ends; a Map keeps it and forgets the first at no cost. */
  const held = new Map<number, { readonly reservation: Reservation; readonly dueMs: number }>();
  let nextId = 0;
  let timer: Timer | null = null;

  function giveBack(reservation: Reservation): void {
    try {
      reservation.release('completed');
    } catch (error) {
      onFault(error);
    }
  }

  function schedule(dueMs: number): void {
    timer = clock.after(Math.max(0, dueMs - clock.nowMs()), () => {
      timer = null;
      releaseDue();
    });
  }

  function releaseDue(): void {
    const nowMs = clock.nowMs();
    for (const [id, { reservation, dueMs }] of held) {
      if (dueMs > nowMs) return schedule(dueMs);
      held.delete(id);
      giveBack(reservation);
    }
  }

  return {
    hold(reservation) {
      const dueMs = clock.nowMs() + assumedAnswerMs;
      held.set(nextId++, { reservation, dueMs });
      if (held.size > maxHeld) {
        const [id, oldest] = held.entries().next().value!;
        held.delete(id);
        giveBack(oldest.reservation);
      }
      if (timer === null) schedule(dueMs);
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
