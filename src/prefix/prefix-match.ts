/** What a look-up of a block chain in the index says. */

/** Media of a KV block in the order of their speed. */
export const MEDIA = ['gpu', 'host', 'disk'] as const;
export type Medium = (typeof MEDIA)[number];

/**
 * Longest contiguous match per endpoint slot. `blocks(slot)` counts blocks resident from the start of the prompt in any
 * medium; of these `gpuBlocks(slot)` are on the GPU, and so on. A slot that never matched gives 0.
 */
export type PrefixMatch = {
  /** Blocks of the looked-up chain. */
  readonly nBlocks: number;
  blocks(slot: number): number;
  blocksIn(slot: number, medium: Medium): number;
};
