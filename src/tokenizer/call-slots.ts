/**
 * How many calls one server gets at once. What exceeds it waits in a short queue for a short time, and is refused then: a
 * call that waits longer than its request does would only be answered too late.
 */
import type { Clock } from '../clock.ts';

export type CallSlots = {
  /** Calls under way and waiting. */
  readonly nTaken: number;
  /** Whether `enter` would not refuse at once. */
  canEnter(urgency: Urgency): boolean;
  /** False: refused. Whoever got true calls `leave` once. A promise only where there is something to wait for. */
  enter(urgency: Urgency): boolean | Promise<boolean>;
  leave(): void;
};

/** `background`: nobody waits for the answer. Such calls neither queue nor take more than half of the slots. */
export type Urgency = 'awaited' | 'background';

export type CallSlotOptions = { readonly maxInFlight: number; readonly maxQueued: number; readonly queueMs: number };

type Waiter = { readonly admit: (admitted: boolean) => void };

export function createCallSlots(clock: Clock, { maxInFlight, maxQueued, queueMs }: CallSlotOptions): CallSlots {
  const waiting = new Set<Waiter>();
  let inUse = 0;

  const hasRoom = (urgency: Urgency): boolean =>
    inUse < (urgency === 'awaited' ? maxInFlight : Math.ceil(maxInFlight / 2));

  return {
    get nTaken() {
      return inUse + waiting.size;
    },
    canEnter: (urgency) => hasRoom(urgency) || (urgency === 'awaited' && waiting.size < maxQueued),
    enter(urgency) {
      if (hasRoom(urgency)) {
        inUse++;
        return true;
      }
      if (urgency === 'background' || waiting.size >= maxQueued) return false;
      return new Promise((resolve) => {
        const waiter: Waiter = {
          admit(admitted) {
            waiting.delete(waiter);
            timer.cancel();
            resolve(admitted);
          },
        };
        const timer = clock.after(queueMs, () => waiter.admit(false));
        waiting.add(waiter);
      });
    },
    leave() {
      // Handed on without becoming free in between, so that nobody overtakes who waits.
      for (const next of waiting) return next.admit(true);
      inUse--;
    },
  };
}
