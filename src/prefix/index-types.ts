/** What the prefix index takes and gives; prefix-index.ts opens it. */
import type { BlockHashes } from './block-hash.ts';
import type { PrefixMatch } from './prefix-match.ts';

/** Structured-cloneable: hand it to another thread and open a reader there. */
export type PrefixIndexMemory = {
  readonly maxBytes: number;
  readonly control: SharedArrayBuffer;
  readonly heads: SharedArrayBuffer;
  readonly lines: SharedArrayBuffer;
  readonly keys: SharedArrayBuffer;
};

/** One engine behind a slot. */
export type IndexOwner = number & { readonly brand: 'IndexOwner' };
/** Where the index keeps a block; stable while any owner holds it, never 0. */
export type BlockPosition = number & { readonly brand: 'BlockPosition' };
/** Parent of a prompt's first block. */
export const NO_POSITION = 0 as BlockPosition;
/** Place of a medium in `MEDIA`. */
export type MediumIndex = 0 | 1 | 2;
/** Bit set of slots, 32 words: word s >>> 5, bit s & 31. */
export type SlotMask = Uint32Array;
/** Slots of endpoints are 0 to this minus one. */
export const MAX_INDEX_SLOTS = 1024;

export type PrefixIndexStats = {
  /** (block, owner, medium) entries held. */
  readonly nBlocks: number;
  /** Everything in use, the writer's own tables included. */
  readonly nBytes: number;
  /** Entries dropped to stay inside the byte budget. */
  readonly evictedBlocks: number;
};

export type PrefixIndexReader = {
  /** @param slots candidates; all when left out */
  longestMatch(hashes: BlockHashes, slots?: SlotMask): PrefixMatch;
  stats(): PrefixIndexStats;
};

export type PrefixIndexWriter = {
  readonly maxBytes: number;
  /** Positions are below 8 times this. */
  readonly nChunks: number;
  /** Tells `hooks` from now on; there is one observer. */
  observe(hooks: PrefixIndexHooks): void;
  openOwner(slot: number): IndexOwner;
  /** Readers stop seeing the owner at once; what it holds is taken out by `sweep`. No call may name it again. */
  retireOwner(owner: IndexOwner): void;
  /** Takes out some blocks of retired owners. @returns whether any are left */
  sweep(maxBlocks: number): boolean;
  /**
   * Marks consecutive blocks as held; those held already stay as they are.
   * @param parent block before the first, held by the owner; `NO_POSITION` at the start of a prompt
   * @param hashes 2 words [hi, lo] per block
   * @param positions receives where each block is
   * @param wasHeld receives 1 for every block the owner held in this medium already, else 0
   * @returns how many of the first blocks were stored: fewer than `nBlocks` when there is no room in the byte budget
   */
  store(
    owner: IndexOwner,
    medium: MediumIndex,
    parent: BlockPosition,
    hashes: Uint32Array,
    nBlocks: number,
    positions: Uint32Array,
    wasHeld: Uint8Array,
  ): number;
  /** Marks a block that the owner holds somewhere as held in this medium too. @returns false when there is no room */
  hold(owner: IndexOwner, medium: MediumIndex, position: BlockPosition): boolean;
  /** Removes blocks from one medium of an owner. @returns how many it held */
  remove(owner: IndexOwner, medium: MediumIndex, positions: Uint32Array, nPositions: number): number;
  /** Key of a held block, [hi, lo]. */
  keyAt(position: BlockPosition, out: Uint32Array): void;
  /** Whether an owner holds the block with this key where it was, though others may have been dropped since to make room. */
  holds(owner: IndexOwner, position: BlockPosition, hi: number, lo: number): boolean;
  /** Bit set (1 << medium) of where an owner holds a block. */
  mediaAt(owner: IndexOwner, position: BlockPosition): number;
  /**
   * Every block an owner holds together with all before it in its prompt, each after the one before it, bit by bit: nothing
   * of the owner may change before it is over, whatever happens to others.
   * @param visit gets the position, the number of the block before (they are numbered from 1 as they are taken; 0 = start of
   *   a prompt) and the media as a bit set; a block it does not take hides what comes behind it
   * @returns whether that were all it holds
   */
  walk(
    owner: IndexOwner,
    visit: (position: BlockPosition, before: number, media: number) => boolean,
  ): Generator<void, boolean>;
  /** (block, medium) entries of an owner. */
  heldBy(owner: IndexOwner): number;
  stats(): PrefixIndexStats;
};

/** What the writer tells the one who uses it. Hooks must not call the writer. */
export type PrefixIndexHooks = {
  /** Nobody holds this block any more; its position may be given to another one. */
  unheld(position: BlockPosition): void;
  /** The owner is about to lose this block in all media: to make room, or because it was retired. */
  dropping(owner: IndexOwner, position: BlockPosition): void;
  /** Memory of the user's own that counts against the budget: for every 8 positions in use, and beside that. */
  readonly bytesPerChunk: number;
  otherBytes(): number;
};
