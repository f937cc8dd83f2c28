/**
 * Own decisions, short-lived: which block chains are on their way to which endpoint, though no event has said so yet.
 * Without it, every request of a burst with one prefix would look cold everywhere and be spread over the fleet.
 *
 * A booking holds every block of a chain, from the first on, for one slot; bookings of equal blocks are counted.
 * Endpoints that publish no events keep the bookings of served requests, the latest ones, up to a number of blocks: what
 * an engine's own LRU cache would still have. Slots and keys only, one thread, no I/O.
 */
import type { Clock } from '../clock.ts';
import { MAX_ENDPOINT_SLOTS } from '../endpoints/endpoint.ts';
import type { BlockHashes } from './block-hash.ts';
import { createBookedRuns, type BookedPath } from './booked-runs.ts';
import { createFifo, type Fifo } from './fifo.ts';

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
  /** What is booked or ended later may or may not show in it. */
  longestMatch(hashes: BlockHashes): RoutedMatch;
  /** Forgets everything of a slot: another process is behind it. Running bookings of it end without effect. */
  forget(slot: number): void;
  /** How often it was forgotten: what was sent there before belongs to another process. */
  generation(slot: number): number;
  stats(): { readonly nBlocks: number; readonly nRefused: number };
};

export type RoutedPrefixesOptions = {
  /** (block, slot) pairs over all slots. */
  readonly maxBlocks?: number;
  /** Blocks kept of one endpoint that publishes no events: where `keptBlocks` says nothing of it. */
  readonly keptBlocksPerSlot?: number;
  /** What the engine of a slot can keep, by its own word; null = it said nothing. */
  readonly keptBlocks?: (slot: number) => number | null;
  /** An event batch leaves with the end of its engine step: milliseconds, seconds for long prompts. */
  readonly graceMs?: number;
};

type InGrace = {
  readonly untilMs: number;
  readonly slot: number;
  readonly hashes: BlockHashes;
  readonly bookedIn: number;
};

/** In the order of their end. */
type Kept = { readonly chains: Fifo<BlockHashes>; nBlocks: number };

/** 8 bytes each at most. */
const MAX_BLOCKS = 2_000_000;
/** Half a KiB each: of blocks, one in eight may be where chains part. */
const BLOCKS_PER_RUN = 8;
/** 500 k tokens of 16-token blocks: the KV cache of an 8-billion-parameter model on a card of 80 GB. */
const KEPT_BLOCKS_PER_SLOT = 31_250;
const GRACE_MS = 2_000;
const KEPT_REPEATS = 8;

export function createRoutedPrefixes(clock: Clock, options: RoutedPrefixesOptions = {}): RoutedPrefixes {
  const { maxBlocks = MAX_BLOCKS, keptBlocksPerSlot = KEPT_BLOCKS_PER_SLOT, graceMs = GRACE_MS, keptBlocks } = options;
  const runs = createBookedRuns();
  let nBlocks = 0;
  const maxRuns = Math.max(16, maxBlocks / BLOCKS_PER_RUN);
  const blocksOfSlot = new Int32Array(MAX_ENDPOINT_SLOTS);
  /** Changes when a slot is forgotten: older bookings then have nothing left to give back. */
  const generation = new Int32Array(MAX_ENDPOINT_SLOTS);
  /** Ended, in the order of their end; one timer for all of them. */
  const inGrace = createFifo<InGrace>();
  const kept = new Map<number, Kept>();
  let nRefused = 0;

  function add(slot: number, hashes: BlockHashes): void {
    const nNew = runs.add(slot, hashes);
    blocksOfSlot[slot]! += nNew;
    nBlocks += nNew;
  }

  function subtract(slot: number, hashes: BlockHashes): void {
    const nGone = runs.subtract(slot, hashes);
    blocksOfSlot[slot]! -= nGone;
    nBlocks -= nGone;
  }

  function keep(slot: number, hashes: BlockHashes): void {
    // A prompt shorter than a block leaves nothing to find.
    if (hashes.length === 0) return;
    let ofSlot = kept.get(slot);
    if (!ofSlot) kept.set(slot, (ofSlot = { chains: createFifo(), nBlocks: 0 }));
    ofSlot.chains.push(hashes);
    ofSlot.nBlocks += hashes.length / 2;
    const mostBlocks = keptBlocks?.(slot) ?? keptBlocksPerSlot;
    // Distinct blocks decide, as in the engine: ten turns of one chat are one chain, not ten. The second bound is for the
    // memory of one chain sent over and over.
    while (ofSlot.chains.size > 1 && (blocksOfSlot[slot]! > mostBlocks || ofSlot.nBlocks > KEPT_REPEATS * mostBlocks)) {
      dropOldest(slot, ofSlot);
    }
  }

  function dropOldest(slot: number, ofSlot: Kept): void {
    const oldest = ofSlot.chains.shift()!;
    ofSlot.nBlocks -= oldest.length / 2;
    subtract(slot, oldest);
    if (ofSlot.chains.size === 0) kept.delete(slot);
  }

  const isFull = (nMore: number): boolean => nBlocks + nMore > maxBlocks || runs.nRuns >= maxRuns;

  /** Memories of served requests give way to requests on their way, the largest one first. */
  function makeRoom(nMore: number): void {
    while (isFull(nMore) && kept.size > 0) {
      let largest: [number, Kept] | null = null;
      for (const entry of kept) if (largest === null || entry[1].nBlocks > largest[1].nBlocks) largest = entry;
      dropOldest(...largest!);
    }
  }

  function waitForGrace(): void {
    const first = inGrace.first();
    if (first !== undefined) clock.after(Math.max(0, first.untilMs - clock.nowMs()), endGrace);
  }

  function endGrace(): void {
    const nowMs = clock.nowMs();
    for (let one = inGrace.first(); one !== undefined && one.untilMs <= nowMs; one = inGrace.first()) {
      inGrace.shift();
      if (generation[one.slot] === one.bookedIn) subtract(one.slot, one.hashes);
    }
    waitForGrace();
  }

  return {
    book(slot, hashes) {
      // Nothing to remember, and no timer to forget it.
      if (hashes.length === 0) return { end: () => undefined };
      makeRoom(hashes.length / 2);
      if (isFull(hashes.length / 2)) {
        nRefused += 1;
        return { end: () => undefined };
      }
      add(slot, hashes);
      const bookedIn = generation[slot]!;
      let open = true;
      return {
        end(how) {
          if (!open) return;
          open = false;
          if (generation[slot] !== bookedIn) return;
          if (how === 'drop') return subtract(slot, hashes);
          if (how === 'keep') return keep(slot, hashes);
          inGrace.push({ untilMs: clock.nowMs() + graceMs, slot, hashes, bookedIn });
          if (inGrace.size === 1) waitForGrace();
        },
      };
    },
    longestMatch(hashes) {
      let path: BookedPath | null = null;
      return {
        // Most prompts are on their way to one place or none, and most endpoints have nothing on its way.
        blocks: (slot) => (blocksOfSlot[slot] === 0 ? 0 : (path ??= runs.follow(hashes)).blocks(slot)),
        bookings: (slot, nBlocks) =>
          nBlocks === 0 || blocksOfSlot[slot] === 0 ? 0 : (path ??= runs.follow(hashes)).chains(slot, nBlocks),
      };
    },
    forget(slot) {
      generation[slot]! += 1;
      kept.delete(slot);
      if (blocksOfSlot[slot] === 0) return;
      runs.removeSlot(slot);
      nBlocks -= blocksOfSlot[slot]!;
      blocksOfSlot[slot] = 0;
    },
    generation: (slot) => generation[slot]!,
    stats: () => ({ nBlocks, nRefused }),
  };
}
