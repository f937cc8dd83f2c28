/** Any bytes: refused or skipped, never a crash, a stall, or memory beyond what was sent. */
import { readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import * as fc from 'fast-check';
import { Packr } from 'msgpackr';
import { createKvEventDecoder, SKIP_REASONS, type DecodeLimits } from '../../../src/kvevents/decode.ts';
import { batchJson } from '../../../src/kvevents/event-json.ts';
import type { BlockStored, KvEventBatch } from '../../../src/kvevents/kv-event.ts';

const packr = new Packr({ useRecords: false });
const pack = (value: unknown): Buffer => packr.pack(value);
const decode = (payload: Uint8Array, limits?: Partial<DecodeLimits>): KvEventBatch =>
  createKvEventDecoder(limits).decode(payload);

const STORED = {
  type: 'BlockStored',
  block_hashes: [1, 2],
  parent_block_hash: null,
  token_ids: [1, 2, 3, 4],
  block_size: 2,
};
const REMOVED = { type: 'BlockRemoved', block_hashes: [7], medium: 'GPU' };
const batchOf = (...events: unknown[]): Buffer => pack([1.5, events, 0]);

describe('a payload that is no batch is refused with what, got and expected', () => {
  test.each([
    ['a map without events', pack({ ts: 1 }), 'KV batch incomplete: expected the keys ts and events'],
    ['events that are a map', pack([1, {}]), 'events of a KV batch are no array: first byte 0xde'],
    ['a timestamp that is text', pack(['now', []]), 'KV batch timestamp is no number: first byte 0xa3'],
    ['a rank that is text', pack([1, [], 'x']), 'data_parallel_rank of a KV batch must be an integer from 0 or null'],
    ['a negative rank', pack([1, [], -1]), 'data_parallel_rank of a KV batch must be an integer from 0 or null'],
    ['a batch of one element', pack([1]), 'KV batch too short: 1 elements, expected at least 2'],
    ['trailing bytes', Buffer.concat([pack([1, []]), Buffer.from('x')]), 'KV payload goes on after the batch: 1 bytes left'],
    ['text', Buffer.from('{"ts":1}'), 'KV payload is no batch: first byte 0x7b, expected array or map'],
    ['a map that ends early', Buffer.from('dfffffffff', 'hex'), 'KV payload ends early: map of 4294967295 at 5, 0 bytes left'],
    ['a reserved byte in an unknown field', Buffer.from('9401 90 00 c1'.replaceAll(' ', ''), 'hex'), 'KV payload holds the reserved byte 0xc1 at 4'],
  ])('%s', (_what, payload, message) => {
    expect(() => decode(payload)).toThrow(expect.objectContaining({ code: 'kv_payload_invalid', message }));
  }); // prettier-ignore

  test('too many bytes, too many events', () => {
    const payload = batchOf(REMOVED, REMOVED, REMOVED);
    expect(() => decode(payload, { maxPayloadBytes: 20 })).toThrow(
      `KV payload too large: ${payload.length} bytes, limit 20`,
    );
    expect(() => decode(payload, { maxEventsPerBatch: 2 })).toThrow('KV batch too large: 3 events, limit 2');
  });
});

describe('an event that is not understood is skipped, and its neighbours stand', () => {
  const long = 'x'.repeat(9000);
  test.each([
    ['a number', 5, 'no_event'],
    ['a map of nothing', {}, 'no_event'],
    ['a tag that is a number', [1, 2], 'no_event'],
    ['another tag', { type: 'BlockMoved', block_hashes: 'odd' }, 'unknown_type'],
    ['no hashes', { type: 'BlockRemoved' }, 'missing_field'],
    ['a store without parent', { ...STORED, parent_block_hash: undefined }, 'missing_field'],
    ['hashes that are a number', { ...REMOVED, block_hashes: 1 }, 'bad_hash'],
    ['a hash that is a float', { ...REMOVED, block_hashes: [0.5] }, 'bad_hash'],
    ['a hash that is null', { ...REMOVED, block_hashes: [null] }, 'bad_hash'],
    ['a hash of no bytes', { ...REMOVED, block_hashes: [Buffer.alloc(0)] }, 'bad_hash'],
    ['a parent that is text', { ...STORED, parent_block_hash: 'x' }, 'bad_hash'],
    ['a token of 2^32', { ...STORED, token_ids: [1, 2, 3, 4294967296] }, 'bad_token'],
    ['a token that is a pair', { ...STORED, token_ids: [[1, 2], 3] }, 'bad_token'],
    ['a token that is a float', { ...STORED, token_ids: [1.5, 2, 3, 4] }, 'bad_token'],
    ['tokens that are bytes', { ...STORED, token_ids: Buffer.alloc(4) }, 'bad_token'],
    ['a block size of 65537', { ...STORED, block_size: 65_537 }, 'bad_block_size'],
    ['a negative block size', { ...STORED, block_size: -2 }, 'bad_block_size'],
    ['no block size', { ...STORED, block_size: null }, 'bad_block_size'],
    ['a medium that is a number', { ...REMOVED, medium: 3 }, 'bad_field'],
    ['an adapter name without end', { ...STORED, lora_name: long }, 'bad_field'],
    ['extra keys that are text', { ...STORED, extra_keys: 'x' }, 'bad_extra_keys'],
    ['extra keys of one block that are text', { ...STORED, extra_keys: [null, 'x'] }, 'bad_extra_keys'],
    ['extra keys for fewer blocks', { ...STORED, extra_keys: [null] }, 'bad_extra_keys'],
    ['an extra key without end', { ...STORED, extra_keys: [[long], null] }, 'too_large'],
  ])('%s', (_what, event, reason) => {
    const odd = JSON.parse(JSON.stringify(event)) as unknown; // drops what is undefined
    const events = typeof event === 'object' && JSON.stringify(event).includes('"Buffer"') ? event : odd;
    const batch = decode(batchOf(REMOVED, events, REMOVED));
    expect(batch.skipped).toEqual([reason]);
    expect(batch.events.map(({ type }) => type)).toEqual(['BlockRemoved', 'BlockRemoved']);
    expect(SKIP_REASONS).toContain(reason);
  });

  test('more blocks or tokens than allowed', () => {
    expect(decode(batchOf(STORED), { maxBlocksPerEvent: 1 }).skipped).toEqual(['too_large']);
    expect(decode(batchOf(STORED), { maxTokensPerEvent: 3 }).skipped).toEqual(['too_large']);
  });

  test('only what may have been a removal puts what came before it in doubt', () => {
    const badStore = { ...STORED, token_ids: ['x'] };
    expect(decode(batchOf(REMOVED, badStore, { type: 'New' })).doubt).toBeNull();
    expect(decode(batchOf(REMOVED, null, STORED)).doubt).toEqual({ nEventsBefore: 1 });
    expect(decode(batchOf({ ...REMOVED, block_hashes: ['x'] }, STORED)).doubt).toEqual({ nEventsBefore: 0 });
  });
});

describe('forms that need care', () => {
  test('a hash is its low 64 bits, however it is written', () => {
    const bytes = Buffer.from('00112233445566778899aabbccddeeff', 'hex');
    const forms = [-1, 2n ** 64n - 1n, bytes, Buffer.from('0102', 'hex'), 5];
    const { events } = batchJson(decode(batchOf({ ...REMOVED, block_hashes: forms })), 'ids') as {
      events: { block_hashes: string[] }[];
    };
    expect(events[0]!.block_hashes).toEqual([
      '18446744073709551615',
      '18446744073709551615',
      BigInt('0x8899aabbccddeeff').toString(),
      '258',
      '5',
    ]);
  });

  test('keys in another order, twice, or not text; a type at the end', () => {
    const event = new Map<unknown, unknown>([
      ['block_hashes', [9]],
      [17, 'ignored'],
      [null, [1, [2, { a: 3 }]]],
      ['medium', 'CPU'],
      ['type', 'BlockRemoved'],
    ]);
    expect(decode(batchOf(event)).events).toEqual([
      { type: 'BlockRemoved', blockHashes: Uint32Array.of(0, 9), medium: 'CPU', groupIdx: null },
    ]);
  });

  test('extra keys that are neither text nor a pair become text no request can name, other for other bytes', () => {
    const keys = [
      ['salt', ['img', -3], Buffer.from([1, 2])],
      [Buffer.from([1, 3]), 5, ['a', 'b']],
    ];
    const [event] = decode(batchOf({ ...STORED, extra_keys: keys })).events as BlockStored[];
    const [first, second] = event!.extraKeys!;
    expect(first!.slice(0, 2)).toEqual(['salt', ['img', -3]]);
    const odd = [...first!.slice(2), ...second!] as string[];
    expect(odd.every((key) => key.startsWith('\0'))).toBe(true);
    expect(new Set(odd).size).toBe(4);
  });

  test('Mooncake: a batch in milliseconds whose events carry other fields and no tokens', () => {
    const event = { event_type: 'stored', type: 'BlockStored', block_hashes: [3n], token_ids: null, seq_hashes: [1] };
    const batch = decode(pack([1_757_500_000_250, [event], 0]));
    expect(batch.ts).toBe(1_757_500_000_250);
    expect(batch.events[0]).toMatchObject({ type: 'BlockStored', tokenIds: new Uint32Array(0), blockSizeTokens: 0 });
  });

  test('token ids of every width', () => {
    const ids = [0, 127, 128, 255, 256, 65_535, 65_536, 4_294_967_295];
    const [event] = decode(batchOf({ ...STORED, token_ids: ids, block_size: 4 })).events as BlockStored[];
    expect([...event!.tokenIds]).toEqual(ids);
    const wide = [1n, 2n, 3n, 4n];
    expect([...(decode(batchOf({ ...STORED, token_ids: wide })).events[0] as BlockStored).tokenIds]).toEqual([
      1, 2, 3, 4,
    ]);
  });

  test('arrays of one batch do not share memory, and a batch larger than the kept memory is whole', () => {
    const ids = Array.from({ length: 200_000 }, (_, i) => i);
    const large = { ...STORED, block_hashes: [1], token_ids: ids, block_size: 200_000 };
    const events = decode(batchOf(STORED, large, large, STORED), { maxBlockSizeTokens: 1 << 20 })
      .events as BlockStored[];
    expect(events.map(({ tokenIds }) => tokenIds.length)).toEqual([4, 200_000, 200_000, 4]);
    for (const { tokenIds } of events.slice(1, 3)) expect(tokenIds.every((id, i) => id === i)).toBe(true);
    expect([...events[0]!.tokenIds, ...events[3]!.tokenIds]).toEqual([1, 2, 3, 4, 1, 2, 3, 4]);
  });
});

describe('fuzzing', () => {
  const { vectors } = JSON.parse(
    readFileSync(new URL('../../fixtures/kv-events/vectors.json', import.meta.url), 'utf8'),
  ) as { vectors: { hex: string; expect: object | null }[] };
  const payloads = vectors
    .filter((vector) => vector.expect !== null)
    .map(({ hex }) => Buffer.from(hex, 'hex'))
    .filter(({ length }) => length < 2000);
  const decoder = createKvEventDecoder();

  /** Refused or decoded; anything else is a fault. */
  const survives = (payload: Uint8Array): void => {
    try {
      const batch = decoder.decode(payload);
      for (const reason of batch.skipped) expect(SKIP_REASONS).toContain(reason);
    } catch (error) {
      expect(error).toMatchObject({ code: 'kv_payload_invalid' });
    }
  };

  test('every truncation of every vector is refused', () => {
    for (const payload of payloads) {
      for (let n = 0; n < payload.length; n++) {
        let refusal: unknown = `decoded ${n} of ${payload.length} bytes`;
        try {
          decoder.decode(payload.subarray(0, n));
        } catch (error) {
          refusal = (error as { code: unknown }).code;
        }
        if (refusal !== 'kv_payload_invalid') expect(refusal).toBe('kv_payload_invalid');
      }
    }
    expect(payloads.length).toBeGreaterThan(20);
  });

  test('flipped bits and foreign bytes are refused or skipped', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...payloads),
        fc.array(fc.tuple(fc.nat(2000), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        (payload, changes) => {
          const changed = Buffer.from(payload);
          for (const [at, byte] of changes) changed[at % changed.length] = byte;
          survives(changed);
        },
      ),
      { numRuns: 5000 },
    );
  });

  test('any bytes are refused or decoded', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => survives(Buffer.concat([Buffer.from([0x93]), bytes]))),
      { numRuns: 5000 },
    );
  });

  test('any value that msgpackr writes as an event leaves its neighbours as they are', () => {
    fc.assert(
      fc.property(fc.anything({ withBigInt: false, maxDepth: 3 }), (value) => {
        const batch = decoder.decode(batchOf(STORED, value ?? null, REMOVED));
        expect(batch.events.map(({ type }) => type)).toEqual(['BlockStored', 'BlockRemoved']);
        expect(batch.skipped).toHaveLength(1);
      }),
      { numRuns: 2000 },
    );
  });

  test('deep nesting costs no stack, and huge headers no memory', () => {
    const deep = Buffer.concat([Buffer.from('9301', 'hex'), Buffer.alloc(200_000, 0x91), Buffer.from('c000', 'hex')]);
    survives(deep);
    const nested = Buffer.concat([Buffer.from('93019291', 'hex'), Buffer.alloc(200_000, 0x91), Buffer.from('c0', 'hex'), pack(REMOVED), Buffer.from('00', 'hex')]); // prettier-ignore
    expect(decoder.decode(nested)).toMatchObject({ skipped: ['no_event'], events: [{ type: 'BlockRemoved' }] });
    const before = process.memoryUsage().arrayBuffers;
    for (const header of ['ddffffffff', 'dfffffffff', 'c6ffffffff', 'dbffffffff', 'c9ffffffff01']) {
      survives(Buffer.from(`930191${header}00`, 'hex'));
      survives(Buffer.from(`9301918ba474797065ab426c6f636b53746f726564ac626c6f636b5f686173686573${header}00`, 'hex'));
    }
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(1_000_000);
  });
});

test('decoding time grows with the payload and not faster', () => {
  const microseconds = (nBlocks: number): number => {
    const event = {
      ...STORED,
      block_hashes: Array.from({ length: nBlocks }, (_, i) => i),
      token_ids: Array.from({ length: nBlocks * 16 }, (_, i) => i * 7),
      block_size: 16,
    };
    const payload = batchOf(event);
    const decoder = createKvEventDecoder();
    // Of the processor and not of the clock: other work on the machine does not count.
    const times = Array.from({ length: 15 }, () => {
      const before = process.cpuUsage();
      for (let i = 0; i < 64_000 / nBlocks; i++) decoder.decode(payload);
      const { user } = process.cpuUsage(before);
      return user / (64_000 / nBlocks);
    });
    return Math.min(...times.slice(5));
  };
  microseconds(4000);
  const small = Math.max(microseconds(2000), 10);
  expect(microseconds(32_000) / small).toBeLessThan(16 * 6);
});
