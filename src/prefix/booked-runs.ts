/**
 * Block chains that several slots hold, as a tree of runs: a run is a stretch of blocks that every chain through its first
 * block has in common, so it is counted once however many blocks it has. A chain costs a step per run, which is where it
 * parts from others, not per block. As hashes are chained, the hash of a run's first block names all that comes before it.
 *
 * Runs are split where chains part and go with the last chain through them; they are not joined again.
 */
import type { BlockHashes } from './block-hash.ts';

export type BookedRuns = {
  /** One more chain of the slot. @returns blocks that are new there */
  add(slot: number, hashes: BlockHashes): number;
  /** Takes a chain back that was added to the slot before. @returns blocks that are gone from there */
  subtract(slot: number, hashes: BlockHashes): number;
  removeSlot(slot: number): void;
  /** Of the moment: what is added or taken back later may or may not show in it. */
  follow(hashes: BlockHashes): BookedPath;
  readonly nRuns: number;
};

/** A chain as far as anybody holds it. */
export type BookedPath = {
  /** Blocks from the first on that the slot holds. */
  blocks(slot: number): number;
  /** Chains of the slot that have at least the first `nBlocks` blocks, `nBlocks` > 0. */
  chains(slot: number, nBlocks: number): number;
};

type Run = {
  /** Its own: cut out of a chain, a run must not keep the whole of it in memory. */
  hashes: Uint32Array;
  /** Most runs are of one slot: it, or none, and how many chains of it have the whole run. */
  slot: number;
  nChains: number;
  /** The same of further slots. */
  others: Map<number, number> | null;
};

const NO_SLOT = -1;

export function createBookedRuns(): BookedRuns {
  const runs = createRunTable();

  /** The run keeps its first blocks; the others become a run of their own. */
  function split(run: Run, nBlocks: number): void {
    const { slot, nChains, others } = run;
    runs.insert({ hashes: run.hashes.slice(2 * nBlocks), slot, nChains, others: others && new Map(others) });
    run.hashes = run.hashes.slice(0, 2 * nBlocks);
  }

  return {
    add(slot, hashes) {
      let nNew = 0;
      for (let at = 0; at < hashes.length;) {
        const run = runs.find(hashes[at]!, hashes[at + 1]!);
        if (run === null) {
          runs.insert({ hashes: at === 0 ? hashes : hashes.slice(at), slot, nChains: 1, others: null });
          return nNew + (hashes.length - at) / 2;
        }
        const nShared = sharedBlocks(run.hashes, hashes, at);
        if (2 * nShared < run.hashes.length) split(run, nShared);
        const before = chainsOf(run, slot);
        if (before === 0) nNew += nShared;
        setChains(run, slot, before + 1);
        at += 2 * nShared;
      }
      return nNew;
    },
    subtract(slot, hashes) {
      let nGone = 0;
      for (let at = 0; at < hashes.length;) {
        const run = runs.find(hashes[at]!, hashes[at + 1]!);
        const before = run === null ? 0 : chainsOf(run, slot);
        if (run === null || before === 0) return nGone;
        at += run.hashes.length;
        setChains(run, slot, before - 1);
        if (before === 1) nGone += run.hashes.length / 2;
        if (isEmpty(run)) runs.remove(run);
      }
      return nGone;
    },
    removeSlot(slot) {
      const emptied: Run[] = [];
      runs.forEach((run) => {
        setChains(run, slot, 0);
        if (isEmpty(run)) emptied.push(run);
      });
      for (const run of emptied) runs.remove(run);
    },
    follow(hashes) {
      const path: Run[] = [];
      /** Blocks up to the end of each run, or to where the chain leaves it. */
      const ends: number[] = [];
      for (let at = 0; at < hashes.length;) {
        const run = runs.find(hashes[at]!, hashes[at + 1]!);
        if (run === null) break;
        const nShared = sharedBlocks(run.hashes, hashes, at);
        path.push(run);
        ends.push(at / 2 + nShared);
        if (2 * nShared < run.hashes.length) break;
        at += 2 * nShared;
      }
      return {
        blocks(slot) {
          // Who holds a run holds all before it.
          const nHeld = firstWhere(path.length, (i) => chainsOf(path[i]!, slot) === 0);
          return nHeld === 0 ? 0 : ends[nHeld - 1]!;
        },
        chains(slot, nBlocks) {
          const which = firstWhere(ends.length, (i) => ends[i]! >= nBlocks);
          return which === path.length ? 0 : chainsOf(path[which]!, slot);
        },
      };
    },
    get nRuns() {
      return runs.size();
    },
  };
}

function chainsOf(run: Run, slot: number): number {
  return run.slot === slot ? run.nChains : (run.others?.get(slot) ?? 0);
}

function setChains(run: Run, slot: number, nChains: number): void {
  if (run.slot === slot) {
    run.nChains = nChains;
    if (nChains === 0) run.slot = NO_SLOT;
  } else if (nChains === 0) {
    run.others?.delete(slot);
  } else if (run.slot === NO_SLOT && run.others?.has(slot) !== true) {
    run.slot = slot;
    run.nChains = nChains;
  } else {
    run.others ??= new Map();
    run.others.set(slot, nChains);
  }
}

function isEmpty({ slot, others }: Run): boolean {
  return slot === NO_SLOT && (others === null || others.size === 0);
}

/** Blocks the run and the chain from word `at` on have in common; the first is known to be. */
function sharedBlocks(run: Uint32Array, hashes: BlockHashes, at: number): number {
  let same = 1;
  let other = Math.min(run.length, hashes.length - at) / 2 + 1;
  while (other - same > 1) {
    const depth = (same + other) >>> 1;
    const last = 2 * depth - 2;
    if (run[last] === hashes[at + last] && run[last + 1] === hashes[at + last + 1]) same = depth;
    else other = depth;
  }
  return same;
}

/** The first of `n` for which a condition holds that holds for all after it; `n` where it holds for none. */
function firstWhere(n: number, holds: (index: number) => boolean): number {
  let from = 0;
  let to = n;
  while (from < to) {
    const middle = (from + to) >>> 1;
    if (holds(middle)) to = middle;
    else from = middle + 1;
  }
  return from;
}

/** Hash of the first block → run: open addressing with linear probing, at most 2/3 full, holes closed on removal. */
function createRunTable() {
  let places: (Run | null)[] = new Array<Run | null>(1024).fill(null);
  /** Low word of the hash of the run at each place: a search passes by other runs without reading them from all over memory. */
  let lowWords = new Uint32Array(places.length);
  let mask = places.length - 1;
  let nUsed = 0;

  function placeOf(hi: number, lo: number): number {
    let place = lo & mask;
    for (let run = places[place]; run; run = places[place]) {
      if (lowWords[place] === lo && run.hashes[0] === hi) break;
      place = (place + 1) & mask;
    }
    return place;
  }

  function put(run: Run): void {
    const lo = run.hashes[1]!;
    const place = placeOf(run.hashes[0]!, lo);
    places[place] = run;
    lowWords[place] = lo;
  }

  return {
    size: () => nUsed,
    find: (hi: number, lo: number): Run | null => places[placeOf(hi, lo)]!,
    /** Of a run whose first block has none yet. */
    insert(run: Run): void {
      if (3 * (nUsed + 1) > 2 * places.length) {
        const old = places;
        places = new Array<Run | null>(2 * old.length).fill(null);
        lowWords = new Uint32Array(places.length);
        mask = places.length - 1;
        for (const one of old) if (one !== null) put(one);
      }
      put(run);
      nUsed += 1;
    },
    remove(run: Run): void {
      let hole = placeOf(run.hashes[0]!, run.hashes[1]!);
      // Moves later runs back, so that no search stops at the new hole.
      let next = (hole + 1) & mask;
      for (let later = places[next]; later; later = places[next]) {
        if (((next - lowWords[next]!) & mask) >= ((next - hole) & mask)) {
          places[hole] = later;
          lowWords[hole] = lowWords[next]!;
          hole = next;
        }
        next = (next + 1) & mask;
      }
      places[hole] = null;
      nUsed -= 1;
    },
    forEach(visit: (run: Run) => void): void {
      for (const run of places) if (run !== null) visit(run);
    },
  };
}
