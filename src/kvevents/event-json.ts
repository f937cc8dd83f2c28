/**
 * KV events as JSON for people and programs: the field names of the wire, hashes as decimal strings of their canonical 64
 * bits, and token counts in place of token ids unless asked otherwise.
 */
import type { ExtraKey } from '../tokenizer/tokenizer.ts';
import type { BlockStored, KvEvent, KvEventBatch } from './kv-event.ts';

/** `counts`: token ids are prompt content and stay out, `token_ids` is how many they are; `ids`: they are written. */
export type TokenOutput = 'counts' | 'ids';

type Json = Record<string, unknown>;

export function batchJson(batch: KvEventBatch, tokens: TokenOutput): Json {
  return {
    ts: batch.ts,
    events: batch.events.map((event) => eventJson(event, tokens)),
    data_parallel_rank: batch.dataParallelRank,
    skipped: batch.skipped,
  };
}

export function eventJson(event: KvEvent, tokens: TokenOutput): Json {
  if (event.type === 'AllBlocksCleared') return { type: event.type };
  const block_hashes = hashList(event.blockHashes);
  const where = { medium: event.medium, group_idx: event.groupIdx };
  const tier = {
    ...present('locality', event.locality),
    ...present('ownership', event.ownership),
  };
  if (event.type === 'BlockRemoved') return { type: event.type, block_hashes, ...where, ...tier };
  const parent = event.parentBlockHash;
  return {
    type: event.type,
    block_hashes,
    parent_block_hash: parent === null ? null : hashText(parent[0], parent[1]),
    token_ids: tokens === 'ids' ? [...event.tokenIds] : event.tokenIds.length,
    block_size: event.blockSizeTokens,
    lora_id: event.loraId,
    medium: event.medium,
    lora_name: event.loraName,
    extra_keys: extraKeysJson(event.extraKeys, block_hashes.length),
    group_idx: event.groupIdx,
    kv_cache_spec_kind: event.kvCacheSpecKind,
    kv_cache_spec_sliding_window: event.kvCacheSpecSlidingWindow ?? null,
    ...tier,
    ...present('session_id', event.sessionId),
    ...present('cache_salt', event.cacheSalt),
  };
}

function extraKeysJson(extraKeys: BlockStored['extraKeys'], nBlocks: number): unknown {
  if (extraKeys === undefined) return null;
  if (extraKeys === null) return new Array<null>(nBlocks).fill(null);
  return extraKeys.map((ofBlock) => (ofBlock === null ? null : ofBlock.map(extraKeyJson)));
}

/** A digest as its bytes in hex; a form that is not known yet as its MessagePack in hex. */
function extraKeyJson(key: ExtraKey): unknown {
  if (typeof key !== 'string' || !/^\0[0-9a-f]+$/.test(key)) return key;
  const hex = key.slice(1);
  const headerBytes = { c4: 2, c5: 3, c6: 5 }[hex.slice(0, 2)];
  return headerBytes === undefined ? { msgpack: hex } : { bytes: hex.slice(2 * headerBytes) };
}

/** Fields that most events do not have are left out there. */
function present(key: string, value: string | null | undefined): Json {
  return value === null || value === undefined ? {} : { [key]: value };
}

function hashList(words: Uint32Array): string[] {
  const texts: string[] = [];
  for (let i = 0; i < words.length; i += 2) texts.push(hashText(words[i]!, words[i + 1]!));
  return texts;
}

function hashText(hi: number, lo: number): string {
  return ((BigInt(hi) << 32n) | BigInt(lo)).toString();
}
