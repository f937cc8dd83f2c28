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
  /**
   * Undefined: no extra keys reported (absent or null on the wire). Null: a list was sent and all its entries are null.
   * Else one entry per block. Keys that are neither text nor [text, offset] come as text that begins with U+0000.
   */
  readonly extraKeys: readonly (readonly ExtraKey[] | null)[] | null | undefined;
  readonly groupIdx: number | null;
  /** `full_attention`, `sliding_window`, `mla`, …; null where the version does not say. */
  readonly kvCacheSpecKind: string | null;
  readonly kvCacheSpecSlidingWindow?: number | null;
  /** SGLang: salt of the whole prompt, sent with every event of it and not among the extra keys. */
  readonly cacheSalt?: string | null;
  /** `LOCAL` or `REMOTE` (vLLM ≥ 0.26). */
  readonly locality?: string | null;
  /** Secondary tier that owns the block (vLLM ≥ 0.29). */
  readonly ownership?: string | null;
  readonly sessionId?: string | null;
};

export type BlockRemoved = {
  readonly type: 'BlockRemoved';
  /** Events of the wire this one stands for, 1 where left out. */
  readonly nEvents?: number;
  readonly blockHashes: Uint32Array;
  readonly medium: string | null;
  readonly groupIdx: number | null;
  readonly locality?: string | null;
  readonly ownership?: string | null;
};

export type AllBlocksCleared = { readonly type: 'AllBlocksCleared' };

export type KvEvent = BlockStored | BlockRemoved | AllBlocksCleared;

export type KvEventBatch = {
  /** Time at the engine as sent: Unix seconds, with Mooncake milliseconds. */
  readonly ts: number;
  readonly events: readonly KvEvent[];
  readonly dataParallelRank: number | null;
  /** One reason per event that was skipped, for the counters: one of `SKIP_REASONS` in decode.ts. */
  readonly skipped: readonly string[];
  /**
   * Set when a skipped event may have been a removal: whatever was stored before it, by earlier batches and by the first
   * `nEventsBefore` events of this one, may be gone.
   */
  readonly doubt?: { readonly nEventsBefore: number } | null;
};
