/**
 * How the index lies in shared memory, and the few look-ups writer and readers share.
 *
 * Blocks of one chain lie in runs: stretches that some prompt went through without a branch. A run is never split; what
 * continues differently is a child run that hangs at some offset of it. Two kinds of memory, in lines of 64 bytes:
 *   keys   chunks: the keys of 8 consecutive blocks of a run, [hi, lo] each; a block's position is 8 · chunk + index
 *   words  run records (below; lines that were runs stay runs, so that a reader never takes anything else for one) and
 *          lists: directories (the chunks of a run) and extents (who holds which stretch), in powers of two of lines
 * Keys are chained: one equal key at offset k proves that all blocks before it are equal too, so a run is compared at
 * its end, and by bisection where the prompt leaves it. Every key is in one place only: ancestors of a run exist as
 * long as the run does, held or not.
 */
import type { PrefixIndexStats } from './index-types.ts';

export type RunViews = {
  readonly keys: Uint32Array;
  readonly words: Uint32Array;
  /** The memory of `words`, for the version words. */
  readonly versions: Int32Array;
  /** Open addressing over the first key of every run: (hi, run) pairs; run 0 = empty. */
  readonly heads: Uint32Array;
  readonly nHeads: number;
  readonly control: Int32Array;
};

export const LINE_WORDS = 16;
export const LINE_BYTES = 64;
export const CHUNK_BLOCKS = 8;
/** Extents hold offsets in 16 bits. */
export const MAX_RUN_BLOCKS = 65_528;
export const MAX_OWNERS = 16_384;

// Words of a run record.
/** Odd while the record or its lists change. */
export const VERSION = 0;
export const LENGTH = 1;
export const PARENT = 2;
/** attach << 16 | highest attach offset of the children. Attach: number of the parent's blocks this run continues. */
export const ATTACH = 3;
export const N_CHILDREN = 4;
/** First line of the directory, 0 = in the record. */
export const DIRECTORY = 5;
/** First line of the extents, 0 = in the record. */
export const EXTENTS = 6;
/** extents << 16 | size class of the extents' lines << 8 | of the directory's. */
export const COUNTS = 7;
/** Clock of the last use, by writer or reader: a hint for eviction, so unsynchronised. */
export const STAMP = 8;
export const OWN_EXTENT = 9;
export const OWN_DIRECTORY = 12;
export const OWN_CHUNKS = LINE_WORDS - OWN_DIRECTORY;

// Words of an extent: holder = owner << 2 | medium; start << 16 | end; place in the owner's list of extents.
export const EXTENT_WORDS = 3;

// Control words.
export const HEADS_VERSION = 0;
export const N_HELD = 1;
export const N_EVICTED = 2;
export const CLOCK = 3;
/** Bytes in use, in lines. */
export const LINES_USED = 4;
/** Per owner: 0 = none, else generation << 16 | slot + 1. */
export const OWNERS = 16;
export const CONTROL_WORDS = OWNERS + MAX_OWNERS;

/** Word at which the directory entry of a chunk is. */
export function directoryEntry(words: Uint32Array, run: number, chunkIndex: number): number {
  const directory = words[run * LINE_WORDS + DIRECTORY]!;
  return (directory === 0 ? run * LINE_WORDS + OWN_DIRECTORY : directory * LINE_WORDS) + chunkIndex;
}

/** Word in `keys` of the key at an offset of a run. */
export function keyWord(words: Uint32Array, run: number, offset: number): number {
  return words[directoryEntry(words, run, offset >>> 3)]! * LINE_WORDS + 2 * (offset & 7);
}

/** Word of the first extent of a run. */
export function extentsWord(words: Uint32Array, run: number): number {
  const lines = words[run * LINE_WORDS + EXTENTS]!;
  return lines === 0 ? run * LINE_WORDS + OWN_EXTENT : lines * LINE_WORDS;
}

/** How many of the `n` keys from `first` on equal the run's blocks from `offset` on. */
export function countEqual(
  keys: Uint32Array,
  words: Uint32Array,
  run: number,
  offset: number,
  hashes: Uint32Array,
  first: number,
  n: number,
): number {
  let low = 0;
  let high = n;
  let probe = n - 1;
  while (low < high) {
    const key = keyWord(words, run, offset + probe);
    if (keys[key] === hashes[2 * (first + probe)] && keys[key + 1] === hashes[2 * (first + probe) + 1]) {
      low = probe + 1;
    } else high = probe;
    probe = (low + high) >>> 1;
  }
  return low;
}

/** Where a head with this upper key word is looked for first. */
export function headHome(hi: number, nHeads: number): number {
  return Math.floor(hi * nHeads * 2 ** -32);
}

/** The run whose first block has this key, 0 = none. */
export function findHead(views: RunViews, hi: number, lo: number): number {
  const { heads, nHeads, keys, words } = views;
  let at = headHome(hi, nHeads);
  for (let steps = 0; steps < nHeads; steps++) {
    const run = heads[2 * at + 1]!;
    if (run === 0) return 0;
    if (heads[2 * at] === hi && keys[keyWord(words, run, 0) + 1] === lo) return run;
    if (++at === nHeads) at = 0;
  }
  return 0;
}

export function indexStats(control: Int32Array): PrefixIndexStats {
  return {
    nBlocks: control[N_HELD]!,
    nBytes: control[LINES_USED]! * LINE_BYTES,
    evictedBlocks: control[N_EVICTED]!,
  };
}
