/**
 * Own decisions, short-lived: which block chains are on their way to which endpoint, though no event has said so yet.
 * Without it, every request of a burst with one prefix would look cold everywhere and be spread over the fleet.
 *
 * A booking holds every block of a chain, from the first on, for one slot; bookings of equal blocks are counted. So what a
 * slot holds is always closed under "earlier in the chain", and its longest match is found by bisection.
 * Endpoints that publish no events keep the bookings of served requests, the latest ones, up to a number of blocks: what
 * an engine's own LRU cache would still have. Slots and keys only, one thread, no I/O.
 */
import type { Clock } from '../clock.ts';
import { MAX_ENDPOINT_SLOTS } from '../endpoints/endpoint.ts';
import type { BlockHashes } from './block-hash.ts';

/** What becomes of a booking when its request is over. */
export type BookingEnd =
  /** The request failed: nothing of it is in a cache for sure. */
  | 'drop'
  /** Events tell the truth within the grace. */
  | 'grace'
  /** No events: believed until newer requests push it out. */
  | 'keep';

export type Booking = { end(how: BookingEnd): void };

export type RoutedMatch = {
  blocks(slot: number): number;
  /** Bookings there that hold at least the first `nBlocks` blocks. */
  bookings(slot: number, nBlocks: number): number;
};

export type RoutedPrefixes = {
  /** The hashes are kept, not copied. A chain that does not fit into the bound is not booked. */
  book(slot: number, hashes: BlockHashes): Booking;
  longestMatch(hashes: BlockHashes): RoutedMatch;
  /** Forgets everything of a slot: another process is behind it. Running bookings of it end without effect. */
  forget(slot: number): void;
  stats(): { readonly nBlocks: number; readonly nRefused: number };
};

export type RoutedPrefixesOptions = {
  /** (block, slot) entries over all slots. */
  readonly maxBlocks?: number;
  /** Blocks kept of one endpoint that publishes no events: where `keptBlocks` says nothing of it. */
  readonly keptBlocksPerSlot?: number;
  /** What the engine of a slot can keep, by its own word; null = it said nothing. */
  readonly keptBlocks?: (slot: number) => number | null;
  /** An event batch leaves with the end of its engine step: milliseconds, seconds for long prompts. */
  readonly graceMs?: number;
};

/** 24 bytes each in the table at most, so 48 MiB. */
const MAX_BLOCKS = 2_000_000;
/** 500 k tokens of 16-token blocks: the KV cache of an 8-billion-parameter model on a card of 80 GB. */
const KEPT_BLOCKS_PER_SLOT = 31_250;
const GRACE_MS = 2_000;
const KEPT_REPEATS = 8;

export function createRoutedPrefixes(clock: Clock, options: RoutedPrefixesOptions = {}): RoutedPrefixes {
  const { maxBlocks = MAX_BLOCKS, keptBlocksPerSlot = KEPT_BLOCKS_PER_SLOT, graceMs = GRACE_MS, keptBlocks } = options;
  const counts = createCountTable();
  const blocksOfSlot = new Int32Array(MAX_ENDPOINT_SLOTS);
  /** Changes when a slot is forgotten: older bookings then have nothing left to give back. */
  const generation = new Int32Array(MAX_ENDPOINT_SLOTS);
  const kept = new Map<number, { chains: BlockHashes[]; nBlocks: number }>();
  let nRefused = 0;

  function add(slot: number, hashes: BlockHashes): void {
    for (let i = 0; i < hashes.length; i += 2) blocksOfSlot[slot]! += counts.add(hashes[i]!, hashes[i + 1]!, slot);
  }

  function subtract(slot: number, hashes: BlockHashes): void {
    for (let i = 0; i < hashes.length; i += 2) blocksOfSlot[slot]! -= counts.subtract(hashes[i]!, hashes[i + 1]!, slot);
  }

  function keep(slot: number, hashes: BlockHashes): void {
    // A prompt shorter than a block leaves nothing to find.
    if (hashes.length === 0) return;
    let ofSlot = kept.get(slot);
    if (!ofSlot) kept.set(slot, (ofSlot = { chains: [], nBlocks: 0 }));
    ofSlot.chains.push(hashes);
    ofSlot.nBlocks += hashes.length / 2;
    const mostBlocks = keptBlocks?.(slot) ?? keptBlocksPerSlot;
    // Distinct blocks decide, as in the engine: ten turns of one chat are one chain, not ten. The second bound is for the
    // memory of one chain sent over and over.
    while (
      ofSlot.chains.length > 1 &&
      (blocksOfSlot[slot]! > mostBlocks || ofSlot.nBlocks > KEPT_REPEATS * mostBlocks)
    ) {
      dropOldest(slot, ofSlot);
    }
  }

  function dropOldest(slot: number, ofSlot: { chains: BlockHashes[]; nBlocks: number }): void {
    const oldest = ofSlot.chains.shift()!;
    ofSlot.nBlocks -= oldest.length / 2;
    subtract(slot, oldest);
    if (ofSlot.chains.length === 0) kept.delete(slot);
  }

  /** Memories of served requests give way to requests on their way, the largest one first. */
  function makeRoom(nBlocks: number): void {
    while (counts.size() + nBlocks > maxBlocks && kept.size > 0) {
      let largest: [number, { chains: BlockHashes[]; nBlocks: number }] | null = null;
      for (const entry of kept) if (largest === null || entry[1].nBlocks > largest[1].nBlocks) largest = entry;
      dropOldest(...largest!);
    }
  }

  return {
    book(slot, hashes) {
      // Nothing to remember, and no timer to forget it.
      if (hashes.length === 0) return { end: () => undefined };
      makeRoom(hashes.length / 2);
      if (counts.size() + hashes.length / 2 > maxBlocks) {
        nRefused += 1;
        return { end: () => undefined };
      }
      add(slot, hashes);
      const bookedIn = generation[slot];
      let open = true;
      const giveBack = (): void => {
        if (generation[slot] === bookedIn) subtract(slot, hashes);
      };
      return {
        end(how) {
          if (!open) return;
          open = false;
          if (how === 'drop') giveBack();
          else if (how === 'grace') clock.after(graceMs, giveBack);
          else if (generation[slot] === bookedIn) keep(slot, hashes);
        },
      };
    },
    longestMatch: (hashes) => ({
      blocks(slot) {
        if (blocksOfSlot[slot] === 0 || hashes.length === 0) return 0;
        // Most prompts are on their way to one place or none: one look instead of one per bisection.
        if (!counts.has(hashes[0]!, hashes[1]!, slot)) return 0;
        let held = 1;
        let missing = hashes.length / 2 + 1;
        while (missing - held > 1) {
          const depth = (held + missing) >>> 1;
          if (counts.has(hashes[2 * depth - 2]!, hashes[2 * depth - 1]!, slot)) held = depth;
          else missing = depth;
        }
        return held;
      },
      bookings: (slot, nBlocks) =>
        nBlocks === 0 || blocksOfSlot[slot] === 0
          ? 0
          : counts.count(hashes[2 * nBlocks - 2]!, hashes[2 * nBlocks - 1]!, slot),
    }),
    forget(slot) {
      generation[slot]! += 1;
      kept.delete(slot);
      if (blocksOfSlot[slot] === 0) return;
      counts.removeSlot(slot);
      blocksOfSlot[slot] = 0;
    },
    stats: () => ({ nBlocks: counts.size(), nRefused }),
  };
}

/** (hi, lo, slot) → count > 0: open addressing with linear probing, at most 2/3 full, holes closed on removal. */
function createCountTable() {
  let capacity = 1024;
  /** [hi, lo, slot, count] per place; count 0 = empty. */
  let places = new Uint32Array(4 * capacity);
  let nUsed = 0;

  const homeOf = (lo: number, slot: number): number => (lo ^ Math.imul(slot + 1, 0x9e3779b1)) & (capacity - 1);

  /** Place of the key, or of the hole where it belongs. */
  function find(hi: number, lo: number, slot: number): number {
    let at = homeOf(lo, slot);
    for (;;) {
      const base = 4 * at;
      if (places[base + 3] === 0) return at;
      if (places[base + 1] === lo && places[base] === hi && places[base + 2] === slot) return at;
      at = (at + 1) & (capacity - 1);
    }
  }

  function write(at: number, hi: number, lo: number, slot: number, count: number): void {
    const base = 4 * at;
    places[base] = hi;
    places[base + 1] = lo;
    places[base + 2] = slot;
    places[base + 3] = count;
  }

  function resize(newCapacity: number, keeps: (slot: number) => boolean): void {
    const old = places;
    capacity = newCapacity;
    places = new Uint32Array(4 * capacity);
    nUsed = 0;
    for (let base = 0; base < old.length; base += 4) {
      const slot = old[base + 2]!;
      if (old[base + 3] === 0 || !keeps(slot)) continue;
      write(find(old[base]!, old[base + 1]!, slot), old[base]!, old[base + 1]!, slot, old[base + 3]!);
      nUsed += 1;
    }
  }

  /** Moves later entries of the same run back, so that no search stops at the new hole. */
  function removeAt(place: number): void {
    let hole = place;
    let next = (hole + 1) & (capacity - 1);
    while (places[4 * next + 3] !== 0) {
      const home = homeOf(places[4 * next + 1]!, places[4 * next + 2]!);
      if (((next - home) & (capacity - 1)) >= ((next - hole) & (capacity - 1))) {
        write(hole, places[4 * next]!, places[4 * next + 1]!, places[4 * next + 2]!, places[4 * next + 3]!);
        hole = next;
      }
      next = (next + 1) & (capacity - 1);
    }
    places[4 * hole + 3] = 0;
    nUsed -= 1;
  }

  return {
    size: () => nUsed,
    has: (hi: number, lo: number, slot: number): boolean => places[4 * find(hi, lo, slot) + 3]! > 0,
    count: (hi: number, lo: number, slot: number): number => places[4 * find(hi, lo, slot) + 3]!,
    /** @returns 1 when the key is new, else 0 */
    add(hi: number, lo: number, slot: number): 0 | 1 {
      if (3 * (nUsed + 1) > 2 * capacity) resize(2 * capacity, () => true);
      const at = find(hi, lo, slot);
      if (places[4 * at + 3]! > 0) {
        places[4 * at + 3]! += 1;
        return 0;
      }
      write(at, hi, lo, slot, 1);
      nUsed += 1;
      return 1;
    },
    /** @returns 1 when the last one went, else 0 */
    subtract(hi: number, lo: number, slot: number): 0 | 1 {
      const at = find(hi, lo, slot);
      const count = places[4 * at + 3]!;
      if (count === 0) return 0;
      if (count > 1) {
        places[4 * at + 3] = count - 1;
        return 0;
      }
      removeAt(at);
      return 1;
    },
    removeSlot: (gone: number): void => resize(capacity, (slot) => slot !== gone),
  };
}
