/**
 * What request bodies may take in all while they wait, to be complete or for a choice: in FULL_DUPLEX_STREAMED they wait here
 * and not in Envoy, and a client may send its own as slowly as it likes. Above the budget the largest goes, so that few who
 * hold much turn nobody away who holds little.
 */

/** One body, from its first byte to its answer. */
export type BodyShare = {
  /** May drop this body, or others. */
  add(nBytes: number): void;
  /** Nothing is held any more; idempotent. */
  end(): void;
};

export type BodyBudget = {
  /** @param drop refuses the request, and with it ends the share */
  open(drop: () => void): BodyShare;
  heldBytes(): number;
};

type Held = { nBytes: number; readonly drop: () => void };

/** @param maxBytes at least one body of the largest size */
export function createBodyBudget(maxBytes: number): BodyBudget {
  const all = new Set<Held>();
  let heldBytes = 0;

  function end(held: Held): void {
    if (all.delete(held)) heldBytes -= held.nBytes;
  }

  function dropLargest(): void {
    let largest: Held | null = null;
    for (const held of all) if (largest === null || held.nBytes > largest.nBytes) largest = held;
    if (largest === null) return;
    end(largest);
    largest.drop();
  }

  return {
    open(drop) {
      const held: Held = { nBytes: 0, drop };
      all.add(held);
      return {
        add(nBytes) {
          if (!all.has(held)) return;
          held.nBytes += nBytes;
          heldBytes += nBytes;
          while (heldBytes > maxBytes) dropLargest();
        },
        end: () => end(held),
      };
    },
    heldBytes: () => heldBytes,
  };
}
