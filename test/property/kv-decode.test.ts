/**
 * Payloads of any version, written by an encoder of the test's own that picks among all forms MessagePack allows for a
 * value: what is decoded is what was written, and what msgpackr reads.
 */
import { describe, expect, test } from '@jest/globals';
import * as fc from 'fast-check';
import { Unpackr } from 'msgpackr';
import { createKvEventDecoder } from '../../src/kvevents/decode.ts';
import { batchJson } from '../../src/kvevents/event-json.ts';

const N_PAYLOADS = 2500;

/** Picks one of n ways to write something. */
type Choose = (n: number) => number;

function be(width: number, value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt.asUintN(64, value));
  return bytes.subarray(8 - width);
}

const tagged = (tag: number, ...rest: Buffer[]): Buffer => Buffer.concat([Buffer.from([tag]), ...rest]);

/** Any width that holds the number. */
function writeInt(value: bigint, choose: Choose): Buffer {
  const forms: Buffer[] = [];
  if (value >= 0n && value < 128n) forms.push(be(1, value));
  if (value < 0n && value >= -32n) forms.push(be(1, value));
  for (let i = 0; i < 4; i++) {
    const bits = 8n << BigInt(i);
    if (value >= 0n && value < 1n << bits) forms.push(tagged(0xcc + i, be(1 << i, value)));
    if (value >= -(1n << (bits - 1n)) && value < 1n << (bits - 1n)) forms.push(tagged(0xd0 + i, be(1 << i, value)));
  }
  return forms[choose(forms.length)]!;
}

/** @param small largest length of the one-byte form, −1 = there is none; then tags of 1, 2 and 4 length bytes, 0 = none */
function header(n: number, small: number, base: number, tags: readonly number[], choose: Choose): Buffer {
  const forms: Buffer[] = n <= small ? [Buffer.from([base | n])] : [];
  tags.forEach((tag, i) => {
    const width = 1 << i;
    if (tag !== 0 && n < 256 ** width) forms.push(tagged(tag, be(width, BigInt(n))));
  });
  return forms[choose(forms.length)]!;
}

function write(value: unknown, choose: Choose): Buffer {
  if (value === null) return Buffer.from([0xc0]);
  if (typeof value === 'boolean') return Buffer.from([value ? 0xc3 : 0xc2]);
  if (typeof value === 'bigint') return writeInt(value, choose);
  if (typeof value === 'number') {
    const bytes = Buffer.alloc(9, 0xcb);
    bytes.writeDoubleBE(value, 1);
    return bytes;
  }
  if (typeof value === 'string') {
    const bytes = Buffer.from(value);
    return Buffer.concat([header(bytes.length, 31, 0xa0, [0xd9, 0xda, 0xdb], choose), bytes]);
  }
  if (Buffer.isBuffer(value)) return Buffer.concat([header(value.length, -1, 0, [0xc4, 0xc5, 0xc6], choose), value]);
  if (Array.isArray(value)) {
    return Buffer.concat([header(value.length, 15, 0x90, [0, 0xdc, 0xdd], choose), ...value.map((v) => write(v, choose))]); // prettier-ignore
  }
  const entries = Object.entries(value as object);
  const pairs = entries.flatMap(([key, v]) => [write(key, choose), write(v, choose)]);
  return Buffer.concat([header(entries.length, 15, 0x80, [0, 0xde, 0xdf], choose), ...pairs]);
}

const int64 = fc.oneof(
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 64n - 1n }),
  fc.bigInt({ min: -300n, max: 300n }),
  fc.constantFrom(2n ** 31n, 2n ** 32n, 2n ** 53n, 2n ** 63n, -(2n ** 63n), 2n ** 64n - 1n),
);
const hash: fc.Arbitrary<unknown> = fc.oneof(
  int64,
  fc.uint8Array({ minLength: 8, maxLength: 33 }).map((bytes) => Buffer.from(bytes)),
);
const text = fc.string({ unit: 'grapheme', maxLength: 40 });
const orNull = <T>(value: fc.Arbitrary<T>): fc.Arbitrary<T | null> => fc.option(value, { nil: null });
const smallInt = fc.bigInt({ min: 0n, max: 70_000n });
const extraKey = fc.oneof(text, fc.tuple(text, fc.bigInt({ min: -4096n, max: 4096n })));

const storedFields = fc.integer({ min: 1, max: 6 }).chain((nBlocks) =>
  fc.integer({ min: 1, max: 20 }).chain((size) =>
    fc.record({
      block_hashes: fc.array(hash, { minLength: nBlocks, maxLength: nBlocks }),
      parent_block_hash: orNull(hash),
      token_ids: fc.array(fc.bigInt({ min: 0n, max: 2n ** 32n - 1n }), { minLength: nBlocks * size, maxLength: nBlocks * size }),
      block_size: fc.constant(BigInt(size)),
      lora_id: orNull(smallInt),
      medium: orNull(fc.constantFrom('GPU', 'CPU', 'STORAGE', 'CPU_PINNED')),
      lora_name: orNull(text),
      extra_keys: orNull(fc.array(orNull(fc.array(extraKey, { minLength: 1, maxLength: 3 })), { minLength: nBlocks, maxLength: nBlocks })),
      group_idx: orNull(smallInt),
      kv_cache_spec_kind: orNull(fc.constantFrom('full_attention', 'sliding_window')),
      kv_cache_spec_sliding_window: orNull(smallInt),
    }),
  ),
); // prettier-ignore
const mapOnly = fc.record(
  { locality: orNull(text), ownership: orNull(text), session_id: orNull(text), cache_salt: orNull(text) },
  { requiredKeys: [] },
);
const foreign = fc.anything({ withBigInt: true, maxDepth: 2, values: [fc.boolean(), fc.constant(null), text, int64] });
const plainForeign = foreign.filter(isPlain);

function isPlain(value: unknown): boolean {
  if (value === null || ['boolean', 'string', 'bigint'].includes(typeof value)) return typeof value !== 'bigint' || (value < 2n ** 64n && value >= -(2n ** 63n)); // prettier-ignore
  if (Array.isArray(value)) return value.every(isPlain);
  return typeof value === 'object' && !('__proto__' in value && Object.hasOwn(value, '__proto__')) && Object.values(value).every(isPlain); // prettier-ignore
}

const storedEvent = fc.oneof(
  // Arrays: every field up to a length, then elements to come.
  fc
    .tuple(storedFields, fc.integer({ min: 4, max: 11 }), fc.array(plainForeign, { maxLength: 2 }))
    .map(([fields, n, more]) => ['BlockStored', ...Object.values(fields).slice(0, n), ...(n === 11 ? more : [])]),
  // Maps: optional ones may be missing, others may follow.
  fc
    .tuple(storedFields, mapOnly, fc.subarray(['lora_id', 'medium', 'lora_name', 'extra_keys', 'group_idx', 'kv_cache_spec_kind', 'kv_cache_spec_sliding_window']), plainForeign)
    .map(([fields, more, absent, odd]) => {
      const event: Record<string, unknown> = { type: 'BlockStored', ...fields, ...more, odd };
      for (const name of absent) delete event[name];
      return event;
    }),
); // prettier-ignore
const removedEvent = fc
  .record({ hashes: fc.array(hash, { maxLength: 6 }), medium: orNull(text), group: orNull(smallInt), form: fc.nat(4) })
  .map(({ hashes, medium, group, form }) =>
    form === 4
      ? { type: 'BlockRemoved', block_hashes: hashes, medium, group_idx: group }
      : ['BlockRemoved', hashes, medium, group].slice(0, 2 + form),
  );
const clearedEvent = fc.constantFrom<unknown>(['AllBlocksCleared'], { type: 'AllBlocksCleared' });
const otherEvent = fc.oneof(fc.constant(['BlockTouched', [1n]]), fc.constant({ odd: 1n, type: 'BlockInactive' }));
const batch = fc
  .record({
    ts: fc.oneof(fc.double({ noNaN: true, noDefaultInfinity: true }), fc.bigInt({ min: 0n, max: 2n ** 52n })),
    events: fc.array(fc.oneof(storedEvent, storedEvent, removedEvent, clearedEvent, otherEvent), { maxLength: 5 }),
    data_parallel_rank: orNull(smallInt),
  })
  .chain((fields) => fc.constantFrom<unknown>(Object.values(fields).slice(0, 2), Object.values(fields), fields));

// --- what msgpackr makes of the same bytes, in the words of `batchJson`

const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true });
const STORED = ['type', 'block_hashes', 'parent_block_hash', 'token_ids', 'block_size', 'lora_id', 'medium', 'lora_name',
  'extra_keys', 'group_idx', 'kv_cache_spec_kind', 'kv_cache_spec_sliding_window']; // prettier-ignore
const ASIDE = ['locality', 'ownership', 'session_id', 'cache_salt'];
const REMOVED = ['type', 'block_hashes', 'medium', 'group_idx'];

function key(value: unknown): string {
  if (Buffer.isBuffer(value)) return value.readBigUInt64BE(value.length - 8).toString();
  return BigInt.asUintN(64, BigInt(value as number | bigint)).toString();
}

function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  return value ?? null;
}

type Json = Record<string, unknown>;

/** One entry per removed hash, however many an event has. */
function flat(events: readonly Json[]): Json[] {
  return events.flatMap((event) =>
    event['type'] === 'BlockRemoved'
      ? (event['block_hashes'] as string[]).map((hash) => ({ ...event, block_hashes: [hash] }))
      : [event],
  );
}

function reference(payload: Buffer): { events: Json[] } {
  const read = unpackr.unpack(payload) as unknown;
  const [ts, events, rank] = Array.isArray(read) ? (read as unknown[]) : Object.values(read as object);
  const known: Json[] = [];
  for (const event of events as (unknown[] | Record<string, unknown>)[]) {
    const type = (Array.isArray(event) ? event[0] : event['type']) as string;
    const names = type === 'BlockStored' ? STORED : type === 'BlockRemoved' ? REMOVED : ['type'];
    const named = Array.isArray(event) ? Object.fromEntries(event.map((value, i) => [names[i], value])) : event;
    if (!['BlockStored', 'BlockRemoved', 'AllBlocksCleared'].includes(type)) continue;
    const json = Object.fromEntries(names.map((name) => [name, plain(named[name])]));
    if (type !== 'AllBlocksCleared') json['block_hashes'] = (named['block_hashes'] as unknown[]).map(key);
    if (type === 'BlockStored') {
      const parent = named['parent_block_hash'];
      json['parent_block_hash'] = parent === null ? null : key(parent);
      for (const name of ASIDE) if (!Array.isArray(event) && (named[name] ?? null) !== null) json[name] = named[name];
    }
    known.push(json);
  }
  const batch = {
    ts: Number(ts),
    events: known,
    data_parallel_rank: plain(rank),
    skipped: (events as unknown[]).slice(known.length).map(() => 'unknown_type'),
  };
  return batch;
}

describe('random payloads', () => {
  const decoder = createKvEventDecoder();
  const joining = createKvEventDecoder({}, 'joined');
  test('valid ones of every version decode as msgpackr reads them, however their values are written', () => {
    fc.assert(
      fc.property(batch, fc.infiniteStream(fc.nat(11)), (value, choices) => {
        const payload = write(value, (n) => choices.next().value! % n);
        const want = reference(payload);
        expect(batchJson(decoder.decode(payload), 'ids')).toEqual(want);
        const joined = batchJson(joining.decode(payload), 'ids') as typeof want;
        expect({ ...joined, events: flat(joined.events) }).toEqual({ ...want, events: flat(want.events) });
      }),
      { numRuns: N_PAYLOADS },
    );
  });
});
