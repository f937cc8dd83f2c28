/** What the KV bench and its helpers in other threads and processes say to each other. */
import type { PrefixIndexMemory } from '../../src/prefix/prefix-index.ts';

/** To kv-index-thread.ts. */
export type IndexThreadOrder = {
  readonly nEngines: number;
  readonly nEntries: number;
  readonly seed: number;
  /** [0]: what to do, set back to `REST` by the thread when it is done. [1]: operations done. */
  readonly control: Int32Array;
  readonly opsPerSecond: number;
};
export type IndexThreadReport =
  | { readonly kind: 'filled'; readonly memory: PrefixIndexMemory; readonly longestUs: number }
  | { readonly kind: 'removed'; readonly longestUs: number };

export const REST = 0;
export const CHURN = 1;
export const REMOVE_ENDPOINT = 2;
export const END = 3;

/** To kv-publishers.ts. */
export type PublishOrder = {
  readonly load: 'small' | 'engine';
  readonly nSources: number;
  /** Of all sources together. */
  readonly batchesPerSecond: number;
  readonly seconds: number;
  /** Every so many batches one carries a block that was never sent before; 0 = none. */
  readonly markEvery: number;
};
export type PublishReport = {
  /** When each mark was handed to its socket, in milliseconds of the system's monotonic clock. */
  readonly sentMs: readonly number[];
  readonly nBatches: number;
  readonly lateMs: number;
};

/** An engine under load: 20,000 tokens/s prefilled and 256 sequences decoded at 50 tokens/s, in 50 steps a second. */
export const PREFILL_BLOCKS = 25;
export const DECODE_BLOCKS = 16;
export const ENGINE_BLOCKS_PER_BATCH = PREFILL_BLOCKS + DECODE_BLOCKS;
export const ENGINE_BATCHES_PER_SECOND = 50;
/** Number of the first block that is a mark. */
export const FIRST_MARK = 1 << 28;

/** The same in every process of this machine. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6;
