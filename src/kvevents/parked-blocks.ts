/**
 * Blocks an engine announced that cannot be placed yet: their parent is unknown, or they were only located by name
 * (no tokens). Bounded; the oldest are dropped first. Nothing here is ever part of a match.
 */
import { MEDIA } from '../prefix/prefix-match.ts';
import type { ExtraKey } from '../tokenizer/tokenizer.ts';
import type { MemoryCount } from './counted-memory.ts';

export type EngineHashKey = string & { readonly brand: 'EngineHashKey' };

export type ParkedBlock = {
  readonly hash: EngineHashKey;
  /** Null: located only, neither parent nor tokens are known. */
  readonly content: ParkedContent | null;
  /** Copies per medium, in the order of `MEDIA`. All 0: gone again, kept only for the blocks parked behind it. */
  readonly copies: number[];
};

export type ParkedContent = {
  readonly parent: EngineHashKey;
  readonly tokenIds: Uint32Array;
  readonly extraKeys: readonly ExtraKey[] | null;
  /** The parent must have the same. */
  readonly namespace: string;
};

export type ParkedBlocks = {
  size(): number;
  /** Adds one copy of a block. @returns how many older blocks were dropped to make room */
  park(hash: EngineHashKey, content: ParkedContent | null, medium: number): number;
  /** @returns false when no such copy is parked */
  removeCopy(hash: EngineHashKey, medium: number): boolean;
  /** Takes a block out; its children stay and can be taken next. */
  take(hash: EngineHashKey): ParkedBlock | undefined;
  childrenOf(hash: EngineHashKey): readonly EngineHashKey[];
  clear(): void;
};

/** Of a parked block, beside its tokens and extra keys. */
const BYTES_PER_BLOCK = 512;

/** Of an extra key, beside its text. */
const WORDS_PER_EXTRA_KEY = 12;

/** @param maxWords of tokens and extra keys; @param memory counts what is parked */
export function createParkedBlocks(maxBlocks: number, maxWords: number, memory: MemoryCount): ParkedBlocks {
  // Maps keep insertion order: the first entry is the oldest.
  const blocks = new Map<EngineHashKey, ParkedBlock>();
  const children = new Map<EngineHashKey, Set<EngineHashKey>>();

  let nWords = 0;

  function count(block: ParkedBlock, sign: 1 | -1): void {
    const n = block.content === null ? 0 : wordsOf(block.content);
    nWords += sign * n;
    memory.nBytes += sign * (BYTES_PER_BLOCK + 4 * n);
  }

  function unlink(block: ParkedBlock): void {
    blocks.delete(block.hash);
    count(block, -1);
    if (block.content === null) return;
    const siblings = children.get(block.content.parent);
    siblings?.delete(block.hash);
    if (siblings?.size === 0) children.delete(block.content.parent);
  }

  /** A block without copies is only worth keeping while others are parked behind it. */
  function prune(start: ParkedBlock): void {
    let block: ParkedBlock | undefined = start;
    while (block !== undefined && !block.copies.some((n) => n > 0) && !children.has(block.hash)) {
      unlink(block);
      block = block.content === null ? undefined : blocks.get(block.content.parent);
    }
  }

  return {
    size: () => blocks.size,
    park(hash, content, medium) {
      const known = blocks.get(hash);
      const copies = known?.copies ?? MEDIA.map(() => 0);
      copies[medium]!++;
      if (known !== undefined && (known.content !== null || content === null)) return 0;
      const block = { hash, content, copies };
      if (known !== undefined) count(known, -1);
      blocks.set(hash, block);
      count(block, 1);
      if (content !== null) {
        const siblings = children.get(content.parent);
        if (siblings === undefined) children.set(content.parent, new Set([hash]));
        else siblings.add(hash);
      }
      let nDropped = 0;
      while (blocks.size > maxBlocks || (nWords > maxWords && blocks.size > 1)) {
        for (const oldest of blocks.values()) {
          unlink(oldest);
          break;
        }
        nDropped++;
      }
      return nDropped;
    },
    removeCopy(hash, medium) {
      const block = blocks.get(hash);
      if (block === undefined || block.copies[medium] === 0) return false;
      block.copies[medium]!--;
      prune(block);
      return true;
    },
    take(hash) {
      const block = blocks.get(hash);
      if (block === undefined) return undefined;
      unlink(block);
      const parent = block.content === null ? undefined : blocks.get(block.content.parent);
      if (parent !== undefined) prune(parent);
      return block;
    },
    childrenOf: (hash) => [...(children.get(hash) ?? [])],
    clear() {
      for (const block of blocks.values()) count(block, -1);
      blocks.clear();
      children.clear();
    },
  };
}

/** Words of 4 bytes. */
function wordsOf({ tokenIds, extraKeys }: ParkedContent): number {
  let n = tokenIds.length;
  for (const key of extraKeys ?? []) n += WORDS_PER_EXTRA_KEY + (typeof key === 'string' ? key : key[0]).length / 2;
  return Math.ceil(n);
}
