import { describe, expect, test } from '@jest/globals';
import { unpack } from 'msgpackr';
import type { ChainBlock, LoraAdapter } from '../../../src/simulator/block-chain.ts';
import type { PoolEvent } from '../../../src/simulator/block-pool.ts';
import { encodeBatch, type BatchForm } from '../../../src/simulator/kv-event-encoding.ts';
import { MsgpackWriter } from '../../../src/simulator/msgpack-writer.ts';
import type { ExtraKey } from '../../../src/tokenizer/tokenizer.ts';
import { readCapture } from '../../support/vllm-captures.ts';

const CAPTURES: readonly (readonly [string, Pick<BatchForm, 'events' | 'hashes'>])[] = [
  ['vllm-0.22.1-lora-int-basic', { events: 'arrays', hashes: 'int' }],
  ['vllm-0.22.1-lora-int-salt-lora', { events: 'arrays', hashes: 'int' }],
  ['vllm-0.32.0-lora-int-basic', { events: 'maps', hashes: 'int' }],
  ['vllm-0.32.0-lora-int-salt-lora', { events: 'maps', hashes: 'int' }],
  ['vllm-0.32.0-lora-int-reset', { events: 'maps', hashes: 'int' }],
  ['vllm-0.32.0-bytes-smallcache-eviction', { events: 'maps', hashes: 'bytes' }],
];

function aBlock(parts: Partial<ChainBlock> = {}): ChainBlock {
  return {
    digest: Buffer.from('00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff', 'hex'),
    key: '',
    parent: null,
    tokenIds: Uint32Array.of(0, 127, 128, 255, 256, 65_535, 65_536, 102_363),
    extraKeys: null,
    lora: null,
    ...parts,
  };
}

const FORM: BatchForm = { events: 'maps', hashes: 'int', blockSizeTokens: 8, dataParallelRank: 0 };
const STORED: PoolEvent = { type: 'BlockStored', blocks: [aBlock()], parent: null };

describe('KV event encoding', () => {
  test.each(CAPTURES)('writes the events of %s with exactly the bytes real vLLM sent', (name, form) => {
    const { steps, blockSizeTokens } = readCapture(name);
    const batches = steps.flatMap((step) => step.events);
    expect(batches.length).toBeGreaterThan(2);
    for (const { payload, decoded } of batches) {
      const [ts, events, rank] = decoded as [number, unknown[], number];
      const encoded = encodeBatch(events.map(toPoolEvent), ts, { ...form, blockSizeTokens, dataParallelRank: rank });
      expect(encoded.toString('hex')).toBe(payload.toString('hex'));
    }
  });

  test('maps carry the documented keys in their order', () => {
    const [ts, events, rank] = unpack(encodeBatch([STORED], 1.5, { ...FORM, dataParallelRank: 3 })) as [
      number,
      object[],
      number,
    ];
    expect([ts, rank]).toEqual([1.5, 3]);
    expect(Object.entries(events[0]!)).toEqual([
      ['type', 'BlockStored'],
      ['block_hashes', [0x8899aabbccddeeffn]],
      ['parent_block_hash', null],
      ['token_ids', [0, 127, 128, 255, 256, 65_535, 65_536, 102_363]],
      ['block_size', 8],
      ['lora_id', null],
      ['medium', 'GPU'],
      ['lora_name', null],
      ['extra_keys', [null]],
      ['group_idx', 0],
      ['kv_cache_spec_kind', 'full_attention'],
    ]);
  });

  test('the int form of a hash is the last eight bytes of its byte form', () => {
    const int = unpack(encodeBatch([STORED], 0, { ...FORM, events: 'arrays' })) as [number, unknown[][]];
    const bytes = unpack(encodeBatch([STORED], 0, { ...FORM, events: 'arrays', hashes: 'bytes' })) as typeof int;
    const raw = (bytes[1][0]![1] as Buffer[])[0]!;
    expect(raw).toHaveLength(32);
    expect((int[1][0]![1] as bigint[])[0]).toBe(raw.readBigUInt64BE(24));
  });

  test('an image key is a pair of identifier and offset, negative once the item began earlier', () => {
    const blocks = [aBlock({ extraKeys: [['cat', 3]] }), aBlock({ extraKeys: [['cat', -5]] })];
    const [, events] = unpack(encodeBatch([{ type: 'BlockStored', blocks, parent: null }], 0, FORM)) as [
      number,
      { extra_keys: unknown }[],
    ];
    expect(events[0]!.extra_keys).toEqual([[['cat', 3]], [['cat', -5]]]);
  });
});

describe('the msgpack writer', () => {
  test.each([
    [0, '00'],
    [127, '7f'],
    [128, 'cc80'],
    [255, 'ccff'],
    [256, 'cd0100'],
    [65_536, 'ce00010000'],
    [4_294_967_295, 'ceffffffff'],
    [4_294_967_296, 'cf0000000100000000'],
    [-1, 'ff'],
    [-32, 'e0'],
    [-33, 'd0df'],
    [-129, 'd1ff7f'],
    [-32_769, 'd2ffff7fff'],
    [-2_147_483_649, 'd3ffffffff7fffffff'],
  ])('writes %d in its smallest form', (value, hex) => {
    expect(new MsgpackWriter().int(value).toBuffer().toString('hex')).toBe(hex);
  });

  test.each([31, 32, 255, 256, 65_536])('a string of %d bytes, an array and bytes of that size come back', (n) => {
    const writer = new MsgpackWriter()
      .array(2 + n)
      .string('é'.repeat(Math.floor(n / 2)).padEnd(n - Math.floor(n / 2), 'x'));
    writer.bytes(Buffer.alloc(n, 7));
    for (let i = 0; i < n; i++) writer.int(i);
    const [text, bytes, ...ints] = unpack(writer.toBuffer()) as [string, Buffer, ...number[]];
    expect(Buffer.byteLength(text)).toBe(n);
    expect(bytes).toEqual(Buffer.alloc(n, 7));
    expect(ints.at(-1)).toBe(n - 1);
  });
});

/** A decoded event of either form → what the simulator would have encoded. */
function toPoolEvent(event: unknown): PoolEvent {
  const fields = Array.isArray(event) ? namedFields(event as unknown[]) : (event as Record<string, unknown>);
  const type = fields['type'];
  if (type === 'AllBlocksCleared') return { type };
  const digests = (fields['block_hashes'] as (bigint | Buffer)[]).map(toDigest);
  if (type === 'BlockRemoved') return { type, block: aBlock({ digest: digests[0]! }) };
  const size = fields['block_size'] as number;
  const tokenIds = fields['token_ids'] as number[];
  const name = fields['lora_name'] as string | null;
  const lora: LoraAdapter | null = name === null ? null : { name, id: fields['lora_id'] as number };
  const extraKeys = fields['extra_keys'] as (ExtraKey[] | null)[];
  const parent = fields['parent_block_hash'] as bigint | Buffer | null;
  return {
    type: 'BlockStored',
    parent: parent === null ? null : aBlock({ digest: toDigest(parent) }),
    blocks: digests.map((digest, i) =>
      aBlock({
        digest,
        lora,
        extraKeys: extraKeys[i]!,
        tokenIds: Uint32Array.from(tokenIds.slice(i * size, (i + 1) * size)),
      }),
    ),
  };
}

function namedFields(event: readonly unknown[]): Record<string, unknown> {
  const names =
    event[0] === 'BlockStored'
      ? 'type block_hashes parent_block_hash token_ids block_size lora_id medium lora_name extra_keys group_idx kv_cache_spec_kind kv_cache_spec_sliding_window'
      : 'type block_hashes medium group_idx';
  return Object.fromEntries(names.split(' ').map((name, i) => [name, event[i]]));
}

function toDigest(hash: bigint | number | Buffer): Buffer {
  if (Buffer.isBuffer(hash)) return hash;
  const digest = Buffer.alloc(32);
  digest.writeBigUInt64BE(BigInt(hash), 24);
  return digest;
}
