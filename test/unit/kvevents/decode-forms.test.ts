/** Every form the engines write, by hand and byte by byte where an encoder would choose for us. */
import { describe, expect, test } from '@jest/globals';
import { Packr } from 'msgpackr';
import { createKvEventDecoder } from '../../../src/kvevents/decode.ts';
import { batchJson } from '../../../src/kvevents/event-json.ts';

const packr = new Packr({ useRecords: false });
const pack = (value: unknown): Buffer => packr.pack(value);

type Json = Record<string, unknown>;
type BatchJson = { ts: number; events: Json[]; data_parallel_rank: number | null; skipped: string[] };

const decode = (payload: Uint8Array): BatchJson =>
  batchJson(createKvEventDecoder().decode(payload), 'ids') as unknown as BatchJson;
const decodeEvents = (...events: unknown[]): BatchJson => decode(pack([1.5, events, 0]));

/** A batch of one BlockRemoved whose single hash is these bytes. */
const hashOf = (hex: string): unknown => {
  const event = Buffer.concat([
    Buffer.from('92ac', 'hex'),
    Buffer.from('BlockRemoved'),
    Buffer.from('91' + hex, 'hex'),
  ]);
  const { events, skipped } = decode(Buffer.concat([Buffer.from('930191', 'hex'), event, Buffer.from('00', 'hex')]));
  return events.length === 1 ? (events[0]!['block_hashes'] as string[])[0] : skipped[0];
};

describe('a hash is one key, however it is written', () => {
  const minusOne = (2n ** 64n - 1n).toString();
  test.each([
    ['positive fixint', '05', '5'],
    ['0', '00', '0'],
    ['negative fixint', 'ff', minusOne],
    ['uint8', 'cc05', '5'],
    ['uint16', 'cd0005', '5'],
    ['uint32', 'ce00000005', '5'],
    ['uint64', 'cf0000000000000005', '5'],
    ['int8', 'd005', '5'],
    ['int16', 'd10005', '5'],
    ['int32', 'd200000005', '5'],
    ['int64', 'd30000000000000005', '5'],
    ['negative int8', 'd0ff', minusOne],
    ['negative int16', 'd1ffff', minusOne],
    ['negative int32', 'd2ffffffff', minusOne],
    ['negative int64', 'd3ffffffffffffffff', minusOne],
    ['uint64 above 2^63', 'cfffffffffffffffff', minusOne],
    ['8 bytes', 'c408ffffffffffffffff', minusOne],
    ['16 bytes: the last 8', 'c4100011223344556677ffffffffffffffff', minusOne],
    ['32 bytes: the last 8', `c420${'11'.repeat(24)}0000000000000005`, '5'],
    ['32 bytes under a bin16 header', `c50020${'11'.repeat(24)}0000000000000005`, '5'],
    ['32 bytes under a bin32 header', `c600000020${'11'.repeat(24)}0000000000000005`, '5'],
    ['fewer than 8 bytes: the number they spell', 'c4020102', '258'],
    ['no bytes', 'c400', 'bad_hash'],
    ['65 bytes', `c441${'00'.repeat(65)}`, 'bad_hash'],
    ['nil', 'c0', 'bad_hash'],
    ['true', 'c3', 'bad_hash'],
    ['a float, even a whole one', 'cb4014000000000000', 'bad_hash'],
    ['a float32', 'ca40a00000', 'bad_hash'],
    ['text', 'a135', 'bad_hash'],
    ['an extension of 8 bytes', 'd705ffffffffffffffff', 'bad_hash'],
    ['a timestamp extension', 'd6ff00000005', 'bad_hash'],
    ['a list', '9105', 'bad_hash'],
    ['a map', '81a16805', 'bad_hash'],
  ])('%s', (_, hex, want) => expect(hashOf(hex)).toBe(want));

  test('and the same holds for a parent', () => {
    const parents = [-1, 2n ** 64n - 1n, Buffer.from(`${'22'.repeat(24)}${'ff'.repeat(8)}`, 'hex')];
    const { events } = decodeEvents(...parents.map((parent) => ['BlockStored', [1], parent, [7], 1, null]));
    expect(events.map(({ parent_block_hash }) => parent_block_hash)).toEqual([minusOne, minusOne, minusOne]);
  });
});

describe('arrays of every length say which version wrote them', () => {
  const all = [
    'BlockStored',
    [7],
    6,
    [1, 2],
    2,
    3,
    'GPU',
    'lora',
    [['lora']],
    1,
    'full_attention',
    4,
    'later',
    { a: [1] },
  ];
  const fields = {
    type: 'BlockStored', block_hashes: ['7'], parent_block_hash: '6', token_ids: [1, 2], block_size: 2, lora_id: 3,
    medium: 'GPU', lora_name: 'lora', extra_keys: [['lora']], group_idx: 1, kv_cache_spec_kind: 'full_attention',
    kv_cache_spec_sliding_window: 4,
  }; // prettier-ignore
  const names = Object.keys(fields) as (keyof typeof fields)[];

  test.each(Array.from({ length: all.length - 4 }, (_, i) => i + 5))('BlockStored of %d elements', (n) => {
    const { events, skipped } = decodeEvents(all.slice(0, n));
    const want = Object.fromEntries(names.map((name, i) => [name, i < n ? fields[name] : null]));
    expect([events, skipped]).toEqual([[want], []]);
  });

  test.each([1, 2, 3, 4])('BlockStored of %d elements is no BlockStored', (n) => {
    expect(decodeEvents(all.slice(0, n))).toMatchObject({ events: [], skipped: ['missing_field'] });
  });

  test.each([
    [['BlockRemoved', [7]], { medium: null, group_idx: null }],
    [['BlockRemoved', [7], 'CPU'], { medium: 'CPU', group_idx: null }],
    [['BlockRemoved', [7], null, 2], { medium: null, group_idx: 2 }],
    [['BlockRemoved', [7], 'GPU', 2, 'later', [1, { b: 2 }]], { medium: 'GPU', group_idx: 2 }],
  ])('%j', (event, more) => {
    expect(decodeEvents(event).events).toEqual([{ type: 'BlockRemoved', block_hashes: ['7'], ...more }]);
  });

  test('AllBlocksCleared of any length, and with any fields, clears', () => {
    const forms = [
      ['AllBlocksCleared'],
      ['AllBlocksCleared', 'GPU', { a: 1 }],
      { type: 'AllBlocksCleared' },
      { medium: 5, block_hashes: 'x', type: 'AllBlocksCleared', reason: [1] },
    ];
    const { events, skipped } = decodeEvents(...forms);
    expect([events, skipped]).toEqual([forms.map(() => ({ type: 'AllBlocksCleared' })), []]);
  });
});

describe('maps', () => {
  const stored = { type: 'BlockStored', block_hashes: [7], parent_block_hash: null, token_ids: [1], block_size: 1 };

  test('fields that are null and fields that are not there mean the same', () => {
    const nulls = { lora_id: null, medium: null, lora_name: null, extra_keys: null, group_idx: null,
      kv_cache_spec_kind: null, kv_cache_spec_sliding_window: null, locality: null, ownership: null, session_id: null,
      cache_salt: null }; // prettier-ignore
    const { events } = decodeEvents({ ...stored, ...nulls }, stored);
    expect(events[0]).toEqual(events[1]);
    expect(events[0]).not.toHaveProperty('session_id');
  });

  test.each([
    ['an extension', Buffer.from('d40501', 'hex')],
    ['a nested map', pack({ a: { b: [1, { c: null }] } })],
    ['a float', pack(1.5)],
    ['bytes', pack(Buffer.from('x'))],
    ['a large integer', pack(2n ** 63n)],
  ])('%s in a field nobody knows is passed over', (_, value) => {
    const entry = Buffer.concat([pack('remaining_copies'), value]);
    const event = pack(stored);
    // msgpackr writes a map16 header.
    const longer = Buffer.concat([Buffer.from([0xde, 0, event[2]! + 1]), event.subarray(3), entry]);
    const payload = Buffer.concat([
      Buffer.from('930192', 'hex'),
      longer,
      pack(['BlockRemoved', [9]]),
      Buffer.from([0]),
    ]);
    expect(decode(payload)).toMatchObject({ skipped: [], events: [{ block_hashes: ['7'] }, { block_hashes: ['9'] }] });
  });

  test.each([
    ['session_id', 5],
    ['session_id', 'x'.repeat(9000)],
    ['ownership', ['fs']],
    ['kv_cache_spec_sliding_window', 1.5],
  ])('%s of another kind costs nothing but itself', (field, value) => {
    const { events, skipped } = decodeEvents({ ...stored, [field]: value });
    expect([events.length, skipped, events[0]![field] ?? null]).toEqual([1, [], null]);
  });

  test.each([
    ['lora_name', { name: 'sql', path: '/a' }, 'bad_field'],
    ['lora_name', ['sql'], 'bad_field'],
    ['lora_id', { id: 3 }, 'bad_field'],
    ['lora_id', 1.5, 'bad_field'],
    ['cache_salt', 5, 'bad_field'],
    ['medium', ['GPU'], 'bad_field'],
    ['group_idx', 'x', 'bad_field'],
    ['kv_cache_spec_kind', 7, 'bad_field'],
    ['locality', 7, 'bad_field'],
    ['block_size', 16.5, 'bad_block_size'],
    ['block_size', -1, 'bad_block_size'],
    ['parent_block_hash', [0, 0], 'bad_hash'],
  ] as const)('%s that is %j tells another prefix: the event is skipped', (field, value, reason) => {
    const { events, skipped } = decodeEvents({ ...stored, [field]: value });
    expect([events, skipped]).toEqual([[], [reason]]);
  });

  test('a map may be written with every width of header', () => {
    const pairs = Buffer.concat([pack('type'), pack('BlockRemoved'), pack('block_hashes'), pack([9])]);
    for (const header of ['82', 'de0002', 'df00000002']) {
      const event = Buffer.concat([Buffer.from(header, 'hex'), pairs]);
      for (const list of ['91', 'dc0001', 'dd00000001']) {
        const payload = Buffer.concat([Buffer.from('9301' + list, 'hex'), event, Buffer.from([0])]);
        expect(decode(payload).events).toMatchObject([{ block_hashes: ['9'] }]);
      }
    }
  });

  test('keys and words of every width of header', () => {
    const str = (text: string, header: string): Buffer =>
      Buffer.concat([Buffer.from(header, 'hex'), Buffer.from(text)]);
    const event = Buffer.concat([
      Buffer.from('82', 'hex'),
      str('type', 'd904'),
      str('BlockRemoved', 'da000c'),
      str('block_hashes', 'db0000000c'),
      pack([9]),
    ]);
    const payload = Buffer.concat([Buffer.from('930191', 'hex'), event, Buffer.from([0])]);
    expect(decode(payload).events).toMatchObject([{ block_hashes: ['9'] }]);
  });
});

describe('the batch', () => {
  const removed = ['BlockRemoved', [9]];
  test.each([
    ['two elements', [1.5, [removed]], null],
    ['rank null', [1.5, [removed], null], null],
    ['rank 3', [1.5, [removed], 3], 3],
    ['a publisher id behind the rank', [1.5, [removed], 3, Buffer.alloc(16, 7)], 3],
    ['more elements to come', [1.5, [removed], 3, 'id', { a: 1 }, [2]], 3],
    ['a map', { ts: 1.5, events: [removed], data_parallel_rank: 3 }, 3],
    ['a map in another order, with more', { data_parallel_rank: 3, id: [1], events: [removed], ts: 1.5 }, 3],
    ['a map with SGLang’s word for the rank', { ts: 1.5, events: [removed], attn_dp_rank: 3 }, 3],
    ['a map without a rank', { ts: 1.5, events: [removed] }, null],
  ])('%s', (_, batch, rank) => {
    expect(decode(pack(batch))).toMatchObject({ ts: 1.5, data_parallel_rank: rank, events: [{ block_hashes: ['9'] }] });
  });

  test.each([
    ['float64', 'cb3ff8000000000000', 1.5],
    ['float32', 'ca3fc00000', 1.5],
    ['seconds as an integer', 'ce68c1a4b8', 1_757_521_080],
    ['milliseconds as an integer', 'cf0000019934d2b070', 1_757_527_847_024],
    ['nanoseconds, more than a double counts exactly', 'cf186302a2b5c4d300', Number(0x186302a2b5c4d300n)],
    ['a negative integer', 'd3ffffffffffffffff', -1],
  ])('a timestamp as %s', (_, hex, ts) => {
    const payload = Buffer.concat([Buffer.from(`93${hex}`, 'hex'), pack([]), Buffer.from([0])]);
    expect(decode(payload)).toEqual({ ts, events: [], data_parallel_rank: 0, skipped: [] });
  });

  test.each([
    ['a timestamp of nothing', [null, []]],
    ['a timestamp that is a moment', Buffer.from('92d6ff0000000590', 'hex')],
    ['events of nothing', [1, null]],
    ['a rank that is a float', [1, [], 0.5]],
    ['a rank beyond counting', [1, [], 2n ** 63n]],
    ['true', true],
    ['nothing', null],
    ['bytes', Buffer.from([1])],
  ])('%s: refused as a whole', (_, batch) => {
    const payload = Buffer.isBuffer(batch) && batch.length > 4 ? batch : pack(batch);
    expect(() => decode(payload)).toThrow(expect.objectContaining({ code: 'kv_payload_invalid' }));
  });
});

describe('engines beside vLLM', () => {
  const tokens = [1, 2, 3, 4];
  test('SGLang’s arrays: a salt in a map where vLLM has the adapter’s name, with fields to come', () => {
    const metadata = { cache_salt: 'tenant', session_id: 's', later: [1] };
    const { events } = decodeEvents(['BlockStored', [-7], null, tokens, 4, null, 'GPU', metadata]);
    expect(events).toMatchObject([{ lora_name: null, cache_salt: 'tenant', session_id: 's', medium: 'GPU' }]);
  });

  test('something else in that map is not taken for nothing', () => {
    const nested = { name: 'sql', path: '/adapters/sql' };
    expect(decodeEvents(['BlockStored', [-7], null, tokens, 4, null, 'GPU', nested])).toMatchObject({
      events: [],
      skipped: ['bad_field'],
    });
  });

  test('SGLang’s maps: salt and adapter beside the hashes, namespaced hashes passed over', () => {
    const event = { type: 'BlockStored', block_hashes: [-7], parent_block_hash: null, token_ids: tokens, block_size: 4,
      lora_id: null, cache_salt: 'tenant', session_id: 's', lora_name: 'sql', namespaced_block_hashes: [5],
      namespaced_parent_block_hash: null }; // prettier-ignore
    expect(decodeEvents(event).events).toMatchObject([{ cache_salt: 'tenant', lora_name: 'sql', extra_keys: null }]);
  });

  test('SGLang with EAGLE: tokens in pairs cannot be indexed, the event is skipped', () => {
    const bigrams = ['BlockStored', [-7], null, [[1, 2], [2, 3]], 2, null]; // prettier-ignore
    expect(decodeEvents(bigrams, ['BlockRemoved', [1]])).toMatchObject({ skipped: ['bad_token'], events: [{}] });
  });

  test('TensorRT-LLM: a heartbeat is a batch without events', () => {
    expect(decode(pack([1.5, [], 4]))).toEqual({ ts: 1.5, events: [], data_parallel_rank: 4, skipped: [] });
  });

  test('Mooncake: milliseconds, its own fields beside the usual ones, no tokens', () => {
    const event = { event_type: 'stored', type: 'BlockStored', event_id: 7, block_hashes: [2n ** 63n], seq_hashes: [1n],
      base_block_idx: 0, parent_block_hash: null, token_ids: null, block_size: 0, tenant_id: 't', backend_id: 1,
      medium: 'cpu' }; // prettier-ignore
    const { ts, events } = decode(pack([1_757_500_000_250, [event], 0]));
    expect([ts, events]).toMatchObject([1_757_500_000_250, [{ token_ids: [], medium: 'cpu', block_hashes: [(2n ** 63n).toString()] }]]); // prettier-ignore
  });

  test('llm-d: arrays of 9 with parent 0, and storage events without tokens', () => {
    const simulated = ['BlockStored', [7n], 0n, tokens, 4, 0, 'gpu', 'm', null];
    const shared = ['BlockStored', [7n, 8n], 0, [], 0, null, 'SHARED_STORAGE'];
    expect(decodeEvents(simulated, shared).events).toMatchObject([
      { parent_block_hash: '0', medium: 'gpu', lora_id: 0, lora_name: 'm' },
      { parent_block_hash: '0', medium: 'SHARED_STORAGE', token_ids: [], block_size: 0 },
    ]);
  });
});

describe('extra keys', () => {
  const stored = (extra_keys: unknown, n = 2): unknown => ({ type: 'BlockStored', parent_block_hash: null, extra_keys,
    block_hashes: Array.from({ length: n }, (_, i) => i), token_ids: new Array(n).fill(1), block_size: 1 }); // prettier-ignore
  test.each([
    ['nothing', null, null],
    ['nothing for any block', [null, null], [null, null]],
    ['lists of nothing', [[], null], [null, null]],
    ['a salt', [['salt'], null], [['salt'], null]],
    ['adapter, image, salt', [['sql', ['img', 5], 'salt'], ['sql', ['img', -11]]], [['sql', ['img', 5], 'salt'], ['sql', ['img', -11]]]],
    ['bare identifiers', [['img'], ['img', 'img2']], [['img'], ['img', 'img2']]],
  ])('%s', (_, keys, want) => {
    expect(decodeEvents(stored(keys)).events).toMatchObject([{ extra_keys: want }]);
  }); // prettier-ignore

  test.each([
    ['digests', Buffer.from('0102', 'hex'), { bytes: '0102' }],
    ['three elements', ['img', 1, 2], { msgpack: '93a3696d670102' }],
    ['an offset that is a float', ['img', 1.5], { msgpack: '92a3696d67cb3ff8000000000000' }],
    ['null', null, { msgpack: 'c0' }],
    ['a map', { a: 1 }, { msgpack: expect.any(String) }],
  ])('%s inside an entry are a key no request can have', (_, key, want) => {
    expect(decodeEvents(stored([[key], null])).events).toMatchObject([{ extra_keys: [[want], null] }]);
  });

  test.each([[[null]], [[null, null, null]], ['x'], [{ a: 1 }], [[5, null]]])('%j for two blocks: skipped', (keys) => {
    expect(decodeEvents(stored(keys))).toMatchObject({ events: [], skipped: ['bad_extra_keys'] });
  });
});
