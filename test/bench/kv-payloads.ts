/** Payloads as vLLM ≥ 0.24 publishes them: batches of events as maps. */
import { Packr } from 'msgpackr';
import { createRandom } from '../support/kv-events.ts';
import { mix32 } from './kv-workload.ts';

const packr = new Packr({ useRecords: false });
export const BLOCK_SIZE = 16;
const VOCABULARY = 128_000;

export function packBatch(events: readonly object[], ts = Date.now() / 1000): Buffer {
  return Buffer.from(packr.pack([ts, events, 0]));
}

/** A well mixed 64-bit hash of a block's number: always one that the wire has as a uint64. */
export function hashWords(block: number): readonly [number, number] {
  return [(mix32(block, 3) | 0x8000_0000) >>> 0, mix32(block, 4)];
}

export function wireHash(block: number): bigint {
  const [high, low] = hashWords(block);
  return (BigInt(high) << 32n) | BigInt(low);
}

/** Tokens of consecutive blocks, told apart by the number of the first. */
export function tokensOf(firstBlock: number, nBlocks: number): number[] {
  const random = createRandom(firstBlock);
  return Array.from({ length: nBlocks * BLOCK_SIZE }, () => random(VOCABULARY));
}

export function storedMap(firstBlock: number, nBlocks: number, parent: number | null): object {
  return {
    type: 'BlockStored',
    block_hashes: Array.from({ length: nBlocks }, (_, i) => wireHash(firstBlock + i)),
    parent_block_hash: parent === null ? null : wireHash(parent),
    token_ids: tokensOf(firstBlock, nBlocks),
    block_size: BLOCK_SIZE,
    lora_id: null,
    medium: 'GPU',
    lora_name: null,
    extra_keys: Array.from({ length: nBlocks }, () => null),
    group_idx: 0,
    kv_cache_spec_kind: 'full_attention',
    kv_cache_spec_sliding_window: null,
  };
}

export function removedMap(block: number): object {
  return { type: 'BlockRemoved', block_hashes: [wireHash(block)], medium: 'GPU', group_idx: 0 };
}
