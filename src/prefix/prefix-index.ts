/**
 * Which endpoint holds which blocks of which prompt: one writer, any number of lock-free readers, in shared memory.
 * Knows slots, owners and keys only; what an event, a pod or a model is, it never sees. An owner is one engine behind
 * a slot (a slot has several where data-parallel ranks share an address), and a match is one owner's: blocks of two
 * engines are never added up.
 */
import type { BlockHashes } from './block-hash.ts';
import { MEDIA, type Medium, type PrefixMatch } from './prefix-match.ts';

/** Structured-cloneable: hand it to another thread and open a reader there. */
export type PrefixIndexMemory = {
  readonly maxBytes: number;
  readonly control: SharedArrayBuffer;
  readonly words: SharedArrayBuffer;
};

/** One engine behind a slot. */
export type IndexOwner = number & { readonly brand: 'IndexOwner' };
/** Where the index keeps a block; stable while any owner holds it, never 0. */
export type BlockPosition = number & { readonly brand: 'BlockPosition' };
/** Parent of a prompt's first block. */
export const NO_POSITION = 0 as BlockPosition;
/** Bit set of slots, 32 words: word s >>> 5, bit s & 31. */
export type SlotMask = Uint32Array;

export type PrefixIndexStats = {
  /** (block, owner, medium) entries held. */
  readonly nBlocks: number;
  readonly nBytes: number;
  readonly evictedBlocks: number;
};

export type PrefixIndexReader = {
  /** @param slots candidates; all when left out */
  longestMatch(hashes: BlockHashes, slots?: SlotMask): PrefixMatch;
  stats(): PrefixIndexStats;
};

export type PrefixIndexWriter = {
  openOwner(slot: number): IndexOwner;
  /** The owner must hold nothing any more. */
  closeOwner(owner: IndexOwner): void;
  /**
   * Marks consecutive blocks as held; holding them already changes nothing.
   * @param parent block before the first, `NO_POSITION` at the start of a prompt
   * @param hashes 2 words [hi, lo] per block
   * @param positions receives where each block is
   * @returns how many of the first blocks were stored: fewer than `nBlocks` when the byte budget is used up
   */
  store(
    owner: IndexOwner,
    medium: Medium,
    parent: BlockPosition,
    hashes: Uint32Array,
    nBlocks: number,
    positions: Uint32Array,
  ): number;
  /** Removes one block from one medium of an owner; not holding it changes nothing. */
  remove(owner: IndexOwner, medium: Medium, position: BlockPosition): void;
  holds(owner: IndexOwner, medium: Medium, position: BlockPosition): boolean;
  /** Where a block is, `NO_POSITION` when nobody holds it. */
  locate(hi: number, lo: number): BlockPosition;
  /** Counts what was dropped to stay inside the byte budget. */
  countEvicted(nBlocks: number): void;
  stats(): PrefixIndexStats;
};

/** Slots of endpoints are 0 to this minus one. */
export const MAX_INDEX_SLOTS = 1024;
const MAX_OWNERS = 4096;
// Control words.
const VERSION = 0;
const HELD = 1;
const EVICTED = 2;
const OWNER_SLOT = 8;
// A block: key, next in its bucket, first cell. A cell: owner and medium, next.
const BLOCK_WORDS = 4;
const CELL_WORDS = 2;
const BYTES_PER_BLOCK = 4 * (BLOCK_WORDS + 2 * CELL_WORDS + 1);

export function createPrefixIndexMemory(options: { maxBytes: number }): PrefixIndexMemory {
  const nBlocks = Math.max(64, Math.floor(options.maxBytes / BYTES_PER_BLOCK));
  return {
    maxBytes: options.maxBytes,
    control: new SharedArrayBuffer(4 * (OWNER_SLOT + MAX_OWNERS)),
    words: new SharedArrayBuffer(nBlocks * BYTES_PER_BLOCK),
  };
}

function layout(memory: PrefixIndexMemory) {
  const nBlocks = memory.words.byteLength / BYTES_PER_BLOCK;
  const blockBytes = 4 * BLOCK_WORDS * nBlocks;
  return {
    nBlocks,
    control: new Int32Array(memory.control),
    blocks: new Uint32Array(memory.words, 0, BLOCK_WORDS * nBlocks),
    cells: new Uint32Array(memory.words, blockBytes, 2 * CELL_WORDS * nBlocks),
    buckets: new Uint32Array(memory.words, blockBytes + 8 * CELL_WORDS * nBlocks, nBlocks),
  };
}

function bucketOf(hi: number, lo: number, nBuckets: number): number {
  return Math.floor(((Math.imul(hi ^ (lo >>> 16), 0x9e3779b1) ^ lo) >>> 0) * nBuckets * 2 ** -32);
}

function statsOf(control: Int32Array): PrefixIndexStats {
  const nBlocks = Atomics.load(control, HELD);
  return { nBlocks, nBytes: nBlocks * BYTES_PER_BLOCK, evictedBlocks: Atomics.load(control, EVICTED) };
}

export function openPrefixIndexWriter(memory: PrefixIndexMemory): PrefixIndexWriter {
  const { control, blocks, cells, buckets, nBlocks: capacity } = layout(memory);
  let nextBlock = 1;
  let freeBlock = 0;
  let nextCell = 1;
  let freeCell = 0;
  const cellCapacity = 2 * capacity;

  function find(hi: number, lo: number): number {
    let at = buckets[bucketOf(hi, lo, capacity)]!;
    while (at !== 0 && (blocks[at * 4] !== hi || blocks[at * 4 + 1] !== lo)) at = blocks[at * 4 + 2]!;
    return at;
  }

  function add(hi: number, lo: number): number {
    let at = freeBlock;
    if (at !== 0) freeBlock = blocks[at * 4 + 2]!;
    else if (nextBlock < capacity) at = nextBlock++;
    else return 0;
    const bucket = bucketOf(hi, lo, capacity);
    blocks[at * 4] = hi;
    blocks[at * 4 + 1] = lo;
    blocks[at * 4 + 2] = buckets[bucket]!;
    blocks[at * 4 + 3] = 0;
    buckets[bucket] = at;
    return at;
  }

  function free(at: number): void {
    const bucket = bucketOf(blocks[at * 4]!, blocks[at * 4 + 1]!, capacity);
    let link = buckets[bucket]!;
    if (link === at) buckets[bucket] = blocks[at * 4 + 2]!;
    else {
      while (blocks[link * 4 + 2] !== at) link = blocks[link * 4 + 2]!;
      blocks[link * 4 + 2] = blocks[at * 4 + 2]!;
    }
    blocks[at * 4 + 2] = freeBlock;
    freeBlock = at;
  }

  /** The cell of (owner, medium) at a block, 0 = none. */
  function cellOf(at: number, holder: number): number {
    let cell = blocks[at * 4 + 3]!;
    while (cell !== 0 && cells[cell * 2] !== holder) cell = cells[cell * 2 + 1]!;
    return cell;
  }

  function hold(at: number, holder: number): boolean {
    if (cellOf(at, holder) !== 0) return true;
    let cell = freeCell;
    if (cell !== 0) freeCell = cells[cell * 2 + 1]!;
    else if (nextCell < cellCapacity) cell = nextCell++;
    else return false;
    cells[cell * 2] = holder;
    cells[cell * 2 + 1] = blocks[at * 4 + 3]!;
    blocks[at * 4 + 3] = cell;
    Atomics.add(control, HELD, 1);
    return true;
  }

  return {
    openOwner(slot) {
      if (!(slot >= 0 && slot < MAX_INDEX_SLOTS)) {
        throw new RangeError(`endpoint slot ${slot}, expected 0 to ${MAX_INDEX_SLOTS - 1}`);
      }
      for (let owner = 0; owner < MAX_OWNERS; owner++) {
        if (control[OWNER_SLOT + owner] !== 0) continue;
        Atomics.store(control, OWNER_SLOT + owner, slot + 1);
        return owner as IndexOwner;
      }
      throw new RangeError(`more than ${MAX_OWNERS} owners in the prefix index`);
    },
    closeOwner(owner) {
      Atomics.store(control, OWNER_SLOT + owner, 0);
    },
    store(owner, medium, _parent, hashes, nBlocks, positions) {
      const holder = holderWord(owner, medium);
      Atomics.add(control, VERSION, 1);
      let stored = 0;
      for (; stored < nBlocks; stored++) {
        const hi = hashes[2 * stored]!;
        const lo = hashes[2 * stored + 1]!;
        const known = find(hi, lo);
        const at = known !== 0 ? known : add(hi, lo);
        if (at === 0) break;
        if (!hold(at, holder)) {
          if (known === 0) free(at);
          break;
        }
        positions[stored] = at;
      }
      Atomics.add(control, VERSION, 1);
      return stored;
    },
    remove(owner, medium, at) {
      const cell = cellOf(at, holderWord(owner, medium));
      if (cell === 0) return;
      Atomics.add(control, VERSION, 1);
      let link = blocks[at * 4 + 3]!;
      if (link === cell) blocks[at * 4 + 3] = cells[cell * 2 + 1]!;
      else {
        while (cells[link * 2 + 1] !== cell) link = cells[link * 2 + 1]!;
        cells[link * 2 + 1] = cells[cell * 2 + 1]!;
      }
      cells[cell * 2 + 1] = freeCell;
      freeCell = cell;
      if (blocks[at * 4 + 3] === 0) free(at);
      Atomics.sub(control, HELD, 1);
      Atomics.add(control, VERSION, 1);
    },
    locate: (hi, lo) => find(hi, lo) as BlockPosition,
    holds: (owner, medium, at) => cellOf(at, holderWord(owner, medium)) !== 0,
    countEvicted(nBlocks) {
      Atomics.add(control, EVICTED, nBlocks);
    },
    stats: () => statsOf(control),
  };
}

function holderWord(owner: IndexOwner, medium: Medium): number {
  return (owner << 2) | MEDIA.indexOf(medium);
}

const MAX_TRIES = 200;

export function openPrefixIndexReader(memory: PrefixIndexMemory): PrefixIndexReader {
  const { control, blocks, cells, buckets, nBlocks: capacity } = layout(memory);
  const reach = new Uint32Array(MAX_OWNERS);
  const inMedium = new Uint32Array(MAX_OWNERS * 4);
  const best = new Uint8Array(MAX_OWNERS);

  /** @returns false when the writer came between */
  function walk(hashes: BlockHashes, slots: SlotMask | undefined): boolean {
    const version = Atomics.load(control, VERSION);
    if ((version & 1) !== 0) return false;
    reach.fill(0);
    inMedium.fill(0);
    const nBlocks = hashes.length / 2;
    for (let depth = 0; depth < nBlocks; depth++) {
      const hi = hashes[2 * depth]!;
      const lo = hashes[2 * depth + 1]!;
      let at = buckets[bucketOf(hi, lo, capacity)]!;
      let steps = 0;
      while (at !== 0 && (blocks[at * 4] !== hi || blocks[at * 4 + 1] !== lo)) {
        at = blocks[at * 4 + 2] ?? 0;
        if (++steps > 1000) return false;
      }
      if (at === 0) break;
      const seen: number[] = [];
      for (let cell = blocks[at * 4 + 3]!; cell !== 0; cell = cells[cell * 2 + 1] ?? 0) {
        if (++steps > 4 * MAX_OWNERS) return false;
        const holder = cells[cell * 2]!;
        const owner = holder >>> 2;
        const slot = (control[OWNER_SLOT + owner] ?? 0) - 1;
        if (slot < 0 || (slots !== undefined && ((slots[slot >>> 5]! >>> (slot & 31)) & 1) === 0)) continue;
        if (reach[owner] === depth) {
          reach[owner] = depth + 1;
          best[owner] = holder & 3;
          seen.push(owner);
        } else if (reach[owner] === depth + 1 && (holder & 3) < best[owner]!) best[owner] = holder & 3;
      }
      if (seen.length === 0) break;
      for (const owner of seen) inMedium[owner * 4 + best[owner]!]!++;
    }
    return Atomics.load(control, VERSION) === version;
  }

  return {
    longestMatch(hashes, slots) {
      let tries = 0;
      while (!walk(hashes, slots)) if (++tries >= MAX_TRIES) return matchOf(hashes.length / 2, new Map());
      const found = new Map<number, Uint32Array>();
      for (let owner = 0; owner < MAX_OWNERS; owner++) {
        const nBlocks = reach[owner]!;
        if (nBlocks === 0) continue;
        const slot = control[OWNER_SLOT + owner]! - 1;
        const own = Uint32Array.of(...inMedium.subarray(owner * 4, owner * 4 + 3), nBlocks);
        const known = found.get(slot);
        if (known === undefined || isBetter(own, known)) found.set(slot, own);
      }
      return matchOf(hashes.length / 2, found);
    },
    stats: () => statsOf(control),
  };
}

/** More blocks are better; as many on faster media too. */
function isBetter(a: Uint32Array, b: Uint32Array): boolean {
  if (a[3] !== b[3]) return a[3]! > b[3]!;
  return a[0] !== b[0] ? a[0]! > b[0]! : a[1]! > b[1]!;
}

function matchOf(nBlocks: number, found: ReadonlyMap<number, Uint32Array>): PrefixMatch {
  return {
    nBlocks,
    blocks: (slot) => found.get(slot)?.[3] ?? 0,
    blocksIn: (slot, medium) => found.get(slot)?.[MEDIA.indexOf(medium)] ?? 0,
  };
}
