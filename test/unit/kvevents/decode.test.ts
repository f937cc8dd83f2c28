import { readFileSync, readdirSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { Unpackr } from 'msgpackr';
import { createKvEventDecoder } from '../../../src/kvevents/decode.ts';
import { batchJson } from '../../../src/kvevents/event-json.ts';

// Origin of the fixtures: constructed payloads with expectations, and batches captured from vLLM 0.22.1 and 0.32.0.
const FIXTURES = new URL('../../fixtures/kv-events/', import.meta.url);

type Hash = { u64: string };
type ExpectedEvent = Record<string, unknown> & { block_hashes?: Hash[]; parent_block_hash?: Hash | null };
type Vector = {
  name: string;
  category: string;
  hex: string;
  expect: { ts: number; events: ExpectedEvent[]; data_parallel_rank: number | null } | null;
};

const { vectors } = readJson('vectors.json') as { vectors: Vector[] };

/** A vector's expectation in the words of `batchJson`. */
function expectedEvents(events: ExpectedEvent[]): unknown[] {
  return events
    .filter((event) => !('unknown' in event) && !('invalid' in event))
    .map((event) => {
      const { namespaced_block_hashes: _a, namespaced_parent_block_hash: _b, ...fields } = event;
      if (event.block_hashes) fields.block_hashes = event.block_hashes.map((hash) => hash.u64) as never;
      if ('parent_block_hash' in event) fields.parent_block_hash = (event.parent_block_hash?.u64 ?? null) as never;
      return fields;
    });
}

describe('the payload vectors', () => {
  test.each(vectors.filter((vector) => vector.expect !== null))('$name is decoded as expected', (vector) => {
    const batch = batchJson(createKvEventDecoder().decode(Buffer.from(vector.hex, 'hex')), 'ids');
    const expected = vector.expect!;
    expect(batch.ts).toBe(expected.ts);
    expect(batch.data_parallel_rank).toBe(expected.data_parallel_rank);
    expect(batch.events).toEqual(expectedEvents(expected.events));
    expect(batch.skipped).toHaveLength(expected.events.filter((e) => 'unknown' in e || 'invalid' in e).length);
  });

  test.each(vectors.filter((vector) => vector.expect === null))('$name is refused as a whole', (vector) => {
    expect(() => createKvEventDecoder().decode(Buffer.from(vector.hex, 'hex'))).toThrow(
      expect.objectContaining({ code: 'kv_payload_invalid' }),
    );
  });
});

describe('batches captured from vLLM', () => {
  test.each(capturedPayloads())('$name is what msgpackr reads', ({ payload }) => {
    const reference = new Unpackr({ useRecords: false, mapsAsObjects: true }).unpack(payload) as unknown[];
    const batch = batchJson(createKvEventDecoder().decode(payload), 'ids');
    expect(batch.ts).toBe(reference[0]);
    expect(batch.data_parallel_rank).toBe(reference[2]);
    expect(batch.skipped).toEqual([]);
    const events = reference[1] as (Record<string, unknown> | unknown[])[];
    (batch.events as Record<string, unknown>[]).forEach((event, i) => {
      for (const [key, value] of Object.entries(asMap(events[i]!)))
        expect([key, event[key]]).toEqual([key, plain(key, value)]);
    });
    expect(batch.events).toHaveLength(events.length);
  });
});

const ORDER: Record<string, readonly string[]> = {
  BlockStored: ['type', 'block_hashes', 'parent_block_hash', 'token_ids', 'block_size', 'lora_id', 'medium', 'lora_name',
    'extra_keys', 'group_idx', 'kv_cache_spec_kind', 'kv_cache_spec_sliding_window'],
  BlockRemoved: ['type', 'block_hashes', 'medium', 'group_idx'],
  AllBlocksCleared: ['type'],
}; // prettier-ignore

function asMap(event: Record<string, unknown> | unknown[]): Record<string, unknown> {
  if (!Array.isArray(event)) return event;
  return Object.fromEntries(event.map((value, i) => [ORDER[event[0] as string]![i], value]));
}

function plain(key: string, value: unknown): unknown {
  if (key === 'block_hashes') return (value as unknown[]).map(canonical);
  if (key === 'parent_block_hash') return value === null ? null : canonical(value);
  return value;
}

function canonical(hash: unknown): string {
  if (hash instanceof Uint8Array)
    return Buffer.from(hash)
      .readBigUInt64BE(hash.length - 8)
      .toString();
  return BigInt.asUintN(64, BigInt(hash as number)).toString();
}

function capturedPayloads(): { name: string; payload: Buffer }[] {
  type Step = { name: string; events?: { frames_hex: string[] }[] };
  return readdirSync(new URL('captured/', FIXTURES)).flatMap((file) =>
    (readJson(`captured/${file}`) as { steps: Step[] }).steps.flatMap((step) =>
      (step.events ?? []).map((event, i) => ({
        name: `${file} ${step.name} ${i}`,
        payload: Buffer.from(event.frames_hex.at(-1)!, 'hex'),
      })),
    ),
  );
}

function readJson(path: string): unknown {
  return JSON.parse(readFileSync(new URL(path, FIXTURES), 'utf8'));
}
