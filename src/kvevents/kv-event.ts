/**
 * KV events as the decoder hands them on: engine hashes as two 32-bit words, every wire form already levelled.
 * Arrays inside a batch may be views of the decoder's reusable memory: valid until its next call.
 */
import type { ExtraKey } from '../tokenizer/tokenizer.ts';

export type BlockStored = {
  readonly type: 'BlockStored';
  /** Engine hashes, 2 words [hi, lo] per block, in chain order. */
  readonly blockHashes: Uint32Array;
  /** [hi, lo] of the block before the first, null at the start of a prompt. */
  readonly parentBlockHash: readonly [number, number] | null;
  /** Tokens of all blocks, concatenated; empty in placeholder events. */
  readonly tokenIds: Uint32Array;
  readonly blockSizeTokens: number;
  /** Local to its engine; only meaningful where `loraName` is null. */
  readonly loraId: number | null;
  readonly loraName: string | null;
  /** As sent (`GPU`, `CPU`, …), null where the version does not say. */
  readonly medium: string | null;
  /** Undefined: the version does not report extra keys. Null: none of the blocks has any. Else one entry per block. */
  readonly extraKeys: readonly (readonly ExtraKey[] | null)[] | null | undefined;
  readonly groupIdx: number | null;
  /** `full_attention`, `sliding_window`, `mla`, …; null where the version does not say. */
  readonly kvCacheSpecKind: string | null;
};

export type BlockRemoved = {
  readonly type: 'BlockRemoved';
  readonly blockHashes: Uint32Array;
  readonly medium: string | null;
  readonly groupIdx: number | null;
};

export type AllBlocksCleared = { readonly type: 'AllBlocksCleared' };

export type KvEvent = BlockStored | BlockRemoved | AllBlocksCleared;

export type KvEventBatch = {
  /** Unix seconds at the engine. */
  readonly ts: number;
  readonly events: readonly KvEvent[];
  readonly dataParallelRank: number | null;
  /** One reason per event that was skipped, for the counters. */
  readonly skipped: readonly string[];
};
