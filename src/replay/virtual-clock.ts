/** Time that moves only when the replay says so: the product's own parts run on it unchanged. */
import type { Clock, Timer } from '../clock.ts';

export type VirtualClock = Clock & {
  /** Runs what falls due on the way, in order. Going back is a bug. */
  advanceTo(timeMs: number): void;
};

type Due = { readonly dueMs: number; readonly order: number; callback: (() => void) | null };

export function createVirtualClock(): VirtualClock {
  let nowMs = 0;
  let order = 0;
  /** Binary heap by due time, then by order of creation. */
  const heap: Due[] = [];
  const before = (a: Due, b: Due): boolean => a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order);

  function push(due: Due): void {
    let at = heap.push(due) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(due, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = due;
  }

  function pop(): void {
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child += 1;
      if (!before(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
  }

  return {
    nowMs: () => nowMs,
    unixMs: () => nowMs,
    after(delayMs, callback): Timer {
      const due: Due = { dueMs: nowMs + delayMs, order: order++, callback };
      push(due);
      return {
        cancel: () => {
          due.callback = null;
        },
      };
    },
    advanceTo(timeMs) {
      while (heap.length > 0 && heap[0]!.dueMs <= timeMs) {
        const { dueMs, callback } = heap[0]!;
        pop();
        nowMs = Math.max(nowMs, dueMs);
        callback?.();
      }
      nowMs = Math.max(nowMs, timeMs);
    },
  };
}
