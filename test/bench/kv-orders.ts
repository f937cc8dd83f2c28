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
  readonly load: Load;
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

/** What one batch of an engine stores; it also removes as many, the oldest, an event each. */
export type Batches = {
  /** Of one prompt. */
  readonly prefillBlocks: number;
  /** One each of so many answers. */
  readonly decodeBlocks: number;
  readonly perSecond: number;
  /** What an engine holds. */
  readonly residentBlocks: number;
};
export type Load = 'small' | 'traffic' | 'saturated';
export const BATCHES: Readonly<Record<Load, Batches>> = {
  /** As many messages as possible. */
  small: { prefillBlocks: 4, decodeBlocks: 0, perSecond: 100, residentBlocks: 80 },
  /** An engine of 8,000 tokens/s that is never idle, on a public trace: the row with most batches of kv-rate.bench.ts. */
  traffic: { prefillBlocks: 15, decodeBlocks: 1, perSecond: 30, residentBlocks: 16_384 },
  /** 20,000 tokens/s prefilled and at the same time 256 answers decoded at 50 tokens/s, in 50 steps a second. */
  saturated: { prefillBlocks: 25, decodeBlocks: 16, perSecond: 50, residentBlocks: 16_384 },
};
/** Number of the first block that is a mark. */
export const FIRST_MARK = 1 << 28;

/** The same in every process of this machine. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6;
