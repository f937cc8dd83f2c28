/**
 * Pool events → payload bytes of one batch, as msgspec writes vLLM's structs: arrays with every field (up to 0.23) or
 * maps that leave out fields equal to their default (0.24 and later). The batch itself is an array in both.
 */
import type { ExtraKey } from '../tokenizer/tokenizer.ts';
import type { ChainBlock } from './block-chain.ts';
import type { PoolEvent } from './block-pool.ts';
import { MsgpackWriter } from './msgpack-writer.ts';

export type EventsForm = 'arrays' | 'maps';

/** int: the last 8 bytes of the digest, big-endian, as uint64 (vLLM's default). bytes: the whole digest. */
export type HashForm = 'int' | 'bytes';

export type BatchForm = {
  readonly events: EventsForm;
  readonly hashes: HashForm;
  readonly blockSizeTokens: number;
  readonly dataParallelRank: number;
};

const MEDIUM = 'GPU';
const SPEC_KIND = 'full_attention';
const GROUP_IDX = 0;

/** @param unixSeconds `ts` of the batch */
export function encodeBatch(events: readonly PoolEvent[], unixSeconds: number, form: BatchForm): Buffer {
  const writer = new MsgpackWriter();
  writer.array(3).float64(unixSeconds).array(events.length);
  for (const event of events) {
    if (form.events === 'arrays') writeArrayEvent(writer, event, form);
    else writeMapEvent(writer, event, form);
  }
  return writer.int(form.dataParallelRank).toBuffer();
}

/** Field order of vLLM 0.22: 12 elements for a store, 4 for a removal, 1 for a clear, the tag included. */
function writeArrayEvent(writer: MsgpackWriter, event: PoolEvent, form: BatchForm): void {
  switch (event.type) {
    case 'BlockStored':
      writer.array(12).string(event.type);
      writeHashes(writer, event.blocks, form);
      writeHash(writer, event.parent, form);
      writeTokenIds(writer, event.blocks, form);
      writer.int(form.blockSizeTokens);
      writeLoraId(writer, event.blocks);
      writer.string(MEDIUM);
      writeLoraName(writer, event.blocks);
      writeExtraKeys(writer, event.blocks);
      writer.int(GROUP_IDX).string(SPEC_KIND).nil();
      return;
    case 'BlockRemoved':
      writer.array(4).string(event.type);
      writeHashes(writer, [event.block], form);
      writer.string(MEDIUM).int(GROUP_IDX);
      return;
    case 'AllBlocksCleared':
      writer.array(1).string(event.type);
  }
}

/** Keys of vLLM 0.24 and later; `kv_cache_spec_sliding_window`, `locality` and the like equal their default and are absent. */
function writeMapEvent(writer: MsgpackWriter, event: PoolEvent, form: BatchForm): void {
  switch (event.type) {
    case 'BlockStored':
      writer.map(11).string('type').string(event.type);
      writer.string('block_hashes');
      writeHashes(writer, event.blocks, form);
      writer.string('parent_block_hash');
      writeHash(writer, event.parent, form);
      writer.string('token_ids');
      writeTokenIds(writer, event.blocks, form);
      writer.string('block_size').int(form.blockSizeTokens);
      writer.string('lora_id');
      writeLoraId(writer, event.blocks);
      writer.string('medium').string(MEDIUM);
      writer.string('lora_name');
      writeLoraName(writer, event.blocks);
      writer.string('extra_keys');
      writeExtraKeys(writer, event.blocks);
      writer.string('group_idx').int(GROUP_IDX);
      writer.string('kv_cache_spec_kind').string(SPEC_KIND);
      return;
    case 'BlockRemoved':
      writer.map(4).string('type').string(event.type);
      writer.string('block_hashes');
      writeHashes(writer, [event.block], form);
      writer.string('medium').string(MEDIUM).string('group_idx').int(GROUP_IDX);
      return;
    case 'AllBlocksCleared':
      writer.map(1).string('type').string(event.type);
  }
}

function writeHashes(writer: MsgpackWriter, blocks: readonly ChainBlock[], form: BatchForm): void {
  writer.array(blocks.length);
  for (const block of blocks) writeHash(writer, block, form);
}

function writeHash(writer: MsgpackWriter, block: ChainBlock | null, form: BatchForm): void {
  if (block === null) writer.nil();
  else if (form.hashes === 'bytes') writer.bytes(block.digest);
  else writer.uint64(block.digest.readBigUInt64BE(block.digest.length - 8));
}

function writeTokenIds(writer: MsgpackWriter, blocks: readonly ChainBlock[], form: BatchForm): void {
  writer.array(blocks.length * form.blockSizeTokens);
  for (const block of blocks) for (const id of block.tokenIds) writer.int(id);
}

function writeLoraId(writer: MsgpackWriter, blocks: readonly ChainBlock[]): void {
  const lora = blocks[0]!.lora;
  if (lora === null) writer.nil();
  else writer.int(lora.id);
}

function writeLoraName(writer: MsgpackWriter, blocks: readonly ChainBlock[]): void {
  const lora = blocks[0]!.lora;
  if (lora === null) writer.nil();
  else writer.string(lora.name);
}

function writeExtraKeys(writer: MsgpackWriter, blocks: readonly ChainBlock[]): void {
  writer.array(blocks.length);
  for (const { extraKeys } of blocks) {
    if (extraKeys === null) {
      writer.nil();
      continue;
    }
    writer.array(extraKeys.length);
    for (const key of extraKeys) writeExtraKey(writer, key);
  }
}

function writeExtraKey(writer: MsgpackWriter, key: ExtraKey): void {
  if (typeof key === 'string') writer.string(key);
  else writer.array(2).string(key[0]).int(key[1]);
}
