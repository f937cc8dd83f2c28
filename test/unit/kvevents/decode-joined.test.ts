import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { Packr } from 'msgpackr';
import { createKvEventDecoder } from '../../../src/kvevents/decode.ts';
import type { KvEvent, KvEventBatch } from '../../../src/kvevents/kv-event.ts';

const packr = new Packr({ useRecords: false });

/** Long ones, as engines send them, and all the others. */
const hash = fc.oneof(
  { weight: 5, arbitrary: fc.bigInt({ min: 2n ** 63n, max: 2n ** 64n - 1n }) },
  fc.nat(300),
  fc.bigInt({ min: -(2n ** 63n), max: -(2n ** 62n) }),
  fc.uint8Array({ minLength: 7, maxLength: 32 }).map((bytes) => Buffer.from(bytes)),
);
const hashes = fc.oneof({ weight: 6, arbitrary: hash.map((one) => [one]) }, fc.array(hash, { maxLength: 3 }));
const medium = fc.constantFrom('GPU', 'GPU', 'GPU', 'CPU', null);
const event = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      type: fc.constant('BlockRemoved'),
      block_hashes: hashes,
      medium,
      group_idx: fc.constantFrom(0, 0, 1),
    }),
  },
  { weight: 4, arbitrary: fc.tuple(fc.constant('BlockRemoved'), hashes, medium) },
  fc.constant({ type: 'AllBlocksCleared' }),
  fc.constant(['BlockStored', [7], null, [1, 2, 3, 4], 4, null, 'GPU']),
  fc.constant({ type: 'SomethingNew', block_hashes: [1] }),
  fc.constant({ type: 'BlockRemoved', block_hashes: 'none' }),
  fc.constant(17),
);

/** Every removed hash by itself, with what is said of it. */
function removals(batch: KvEventBatch): unknown[] {
  return batch.events.flatMap((one: KvEvent): unknown[] => {
    if (one.type !== 'BlockRemoved') return [one];
    const { blockHashes, nEvents: _, ...rest } = one;
    const nHashes = blockHashes.length / 2;
    return Array.from({ length: nHashes }, (__, i) => ({ ...rest, hash: [...blockHashes.subarray(2 * i, 2 * i + 2)] }));
  });
}

describe('joined removals', () => {
  test('say the same as removals apart, and how many there were', () => {
    const joining = createKvEventDecoder({}, 'joined');
    const plain = createKvEventDecoder();
    fc.assert(
      fc.property(fc.array(event, { maxLength: 30 }), (events) => {
        const payload = Buffer.from(packr.pack([1.5, events, 0]));
        const apart = plain.decode(payload);
        const joined = joining.decode(payload);
        expect(removals(joined)).toEqual(removals(apart));
        expect(joined.skipped).toEqual(apart.skipped);
        const nJoined = joined.events.reduce((sum, e) => sum + (e.type === 'BlockRemoved' ? (e.nEvents ?? 1) : 1), 0);
        expect(nJoined).toBe(apart.events.length);
        // What a doubt spares is the same.
        const before = (batch: KvEventBatch): unknown[] =>
          removals({ ...batch, events: batch.events.slice(0, batch.doubt?.nEventsBefore ?? 0) });
        expect(before(joined)).toEqual(before(apart));
      }),
      { numRuns: 500 },
    );
  });

  test('of a whole step are one event', () => {
    const gone = Array.from({ length: 40 }, (_, i) => ({
      type: 'BlockRemoved',
      block_hashes: [2n ** 63n + BigInt(i)],
      medium: 'GPU',
    }));
    const { events } = createKvEventDecoder({}, 'joined').decode(Buffer.from(packr.pack([1, gone, 0])));
    expect(events).toHaveLength(1);
    expect(events[0]).toMatchObject({ type: 'BlockRemoved', nEvents: 40, medium: 'GPU' });
  });

  test('that end early are refused', () => {
    const gone = [2n ** 63n, 2n ** 63n + 1n].map((one) => ({ type: 'BlockRemoved', block_hashes: [one] }));
    const payload = Buffer.from(packr.pack([1, gone]));
    const decoder = createKvEventDecoder({}, 'joined');
    for (let n = 0; n < payload.length; n++) {
      expect(() => decoder.decode(payload.subarray(0, n))).toThrow(
        expect.objectContaining({ code: 'kv_payload_invalid' }),
      );
    }
  });
});
