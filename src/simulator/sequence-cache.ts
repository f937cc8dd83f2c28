/**
 * The KV cache as requests see it: which leading tokens of a sequence are already computed, room for the next ones, and
 * the hand-back. After vLLM's v1 KV cache manager; time and scheduling are the scheduler's.
 */
import { chainBlock, type ChainBlock, type ChainRoot } from './block-chain.ts';
import type { BlockId, BlockPool } from './block-pool.ts';

/** Tokens of one request (prompt, then generated ones appended) and the physical blocks it holds. */
export type Sequence = {
  readonly root: ChainRoot;
  readonly tokenIds: number[];
  readonly nPromptTokens: number;
  /** Names of the full blocks of `tokenIds`, extended as they are needed. */
  readonly chain: ChainBlock[];
  blockIds: BlockId[];
  /** Leading blocks of `blockIds` that are findable in the pool. */
  nRegistered: number;
};

export type SequenceCache = {
  readonly blockSizeTokens: number;
  /**
   * Physical blocks of the longest cached prefix. At least one token is left to compute: a fully cached prompt gives all
   * blocks but the last, which is then computed again into a second copy.
   */
  lookUp(sequence: Sequence): BlockId[];
  /**
   * Room for the tokens up to `nTokens`; blocks that will be full by then become findable at once, so that an equal
   * prompt in the same step finds them.
   * @param hits blocks from `lookUp` when the sequence holds none yet, else empty
   * @returns 'no_room' leaves everything as it was
   */
  allocate(sequence: Sequence, nTokens: number, hits: readonly BlockId[]): 'done' | 'no_room';
  /** Hands all blocks back, tail first, so that children leave the cache before their parents. */
  release(sequence: Sequence): void;
};

export function createSequence(root: ChainRoot, promptTokenIds: Iterable<number>): Sequence {
  const tokenIds = [...promptTokenIds];
  return { root, tokenIds, nPromptTokens: tokenIds.length, chain: [], blockIds: [], nRegistered: 0 };
}

export function createSequenceCache(pool: BlockPool, blockSizeTokens: number): SequenceCache {
  const chainUpTo = (sequence: Sequence, nBlocks: number): readonly ChainBlock[] => {
    const { chain, tokenIds, root } = sequence;
    while (chain.length < nBlocks) {
      const start = chain.length * blockSizeTokens;
      const ids = Uint32Array.from(tokenIds.slice(start, start + blockSizeTokens));
      chain.push(chainBlock(root, chain.at(-1) ?? null, ids, start));
    }
    return chain;
  };

  return {
    blockSizeTokens,

    lookUp(sequence) {
      const limit = Math.floor((sequence.tokenIds.length - 1) / blockSizeTokens);
      const hits: BlockId[] = [];
      while (hits.length < limit) {
        const id = pool.find(chainUpTo(sequence, hits.length + 1)[hits.length]!.key);
        if (id === undefined) break;
        hits.push(id);
      }
      return hits;
    },

    allocate(sequence, nTokens, hits) {
      const nWanted = Math.ceil(nTokens / blockSizeTokens);
      const nNew = Math.max(0, nWanted - sequence.blockIds.length - hits.length);
      // Unused hits sit in the free queue: they cannot be found room for others at the same time.
      const nHitsFree = hits.reduce((n, id) => n + (pool.isFree(id) ? 1 : 0), 0);
      if (nNew + nHitsFree > pool.nFree) return 'no_room';
      pool.touch(hits);
      sequence.blockIds.push(...hits, ...pool.allocate(nNew));
      sequence.nRegistered += hits.length;
      const nFull = Math.floor(Math.min(nTokens, sequence.tokenIds.length) / blockSizeTokens);
      if (nFull > sequence.nRegistered) {
        const from = sequence.nRegistered;
        pool.register(sequence.blockIds.slice(from, nFull), chainUpTo(sequence, nFull).slice(from, nFull));
        sequence.nRegistered = nFull;
      }
      return 'done';
    },

    release(sequence) {
      pool.free(sequence.blockIds.reverse());
      sequence.blockIds = [];
      sequence.nRegistered = 0;
    },
  };
}
