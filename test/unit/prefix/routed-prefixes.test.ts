import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import type { BlockHashes } from '../../../src/prefix/block-hash.ts';
import { createRoutedPrefixes, type Booking, type BookingEnd } from '../../../src/prefix/routed-prefixes.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

/** A chain spelt as a text: equal beginnings give equal keys. */
function aChain(text: string): BlockHashes {
  const words = new Uint32Array(2 * text.length);
  let state = 17;
  for (let i = 0; i < text.length; i++) {
    state = Math.imul(state ^ text.charCodeAt(i), 0x01000193) >>> 0;
    words[2 * i] = state;
    words[2 * i + 1] = Math.imul(state, 0x9e3779b1) >>> 0;
  }
  return words as BlockHashes;
}

describe('prefixes on their way to an endpoint', () => {
  test('a booked chain matches as far as it is shared, only where it was sent', () => {
    const routed = createRoutedPrefixes(createFakeClock());
    routed.book(2, aChain('abcdef'));
    const match = routed.longestMatch(aChain('abcxyz'));
    expect([match.blocks(2), match.blocks(1)]).toEqual([3, 0]);
    expect(routed.longestMatch(aChain('xbc')).blocks(2)).toBe(0);
  });

  test('routed, no event comes, the request ends: the entry is gone after the grace', () => {
    const clock = createFakeClock();
    const routed = createRoutedPrefixes(clock, { graceMs: 2000 });
    routed.book(0, aChain('abc')).end('grace');
    clock.advance(1999);
    expect(routed.longestMatch(aChain('abc')).blocks(0)).toBe(3);
    clock.advance(1);
    expect(routed.longestMatch(aChain('abc')).blocks(0)).toBe(0);
    expect(routed.stats().nBlocks).toBe(0);
  });

  test('a failed request takes its own booking away and nobody else’s', () => {
    const routed = createRoutedPrefixes(createFakeClock());
    routed.book(0, aChain('abc'));
    const failed = routed.book(0, aChain('abde'));
    failed.end('drop');
    failed.end('drop');
    expect(routed.longestMatch(aChain('abde')).blocks(0)).toBe(2);
    expect(routed.longestMatch(aChain('abc')).blocks(0)).toBe(3);
  });

  test('an endpoint without events keeps the latest served chains within its bound', () => {
    const routed = createRoutedPrefixes(createFakeClock(), { keptBlocksPerSlot: 6 });
    for (const text of ['aaa', 'bbb', 'ccc']) routed.book(0, aChain(text)).end('keep');
    expect(['aaa', 'bbb', 'ccc'].map((text) => routed.longestMatch(aChain(text)).blocks(0))).toEqual([0, 3, 3]);
  });

  test('an engine that says how much it keeps is believed, one that says nothing gets the common bound', () => {
    const routed = createRoutedPrefixes(createFakeClock(), {
      keptBlocksPerSlot: 6,
      keptBlocks: (slot) => (slot === 1 ? 3 : null),
    });
    for (const slot of [0, 1]) {
      for (const chain of ['abc', 'def']) routed.book(slot, aChain(chain)).end('keep');
    }
    const kept = (slot: number): number[] =>
      ['abc', 'def'].map((chain) => routed.longestMatch(aChain(chain)).blocks(slot));
    expect(kept(0)).toEqual([3, 3]);
    expect(kept(1)).toEqual([0, 3]);
  });

  test('a forgotten slot is empty, and bookings made before it do not take from those made after', () => {
    const routed = createRoutedPrefixes(createFakeClock());
    const before = routed.book(0, aChain('abc'));
    routed.forget(0);
    expect(routed.longestMatch(aChain('abc')).blocks(0)).toBe(0);
    routed.book(0, aChain('abc'));
    before.end('drop');
    expect(routed.longestMatch(aChain('abc')).blocks(0)).toBe(3);
  });

  test('a chain beyond the bound is refused and counted, the others stay', () => {
    const routed = createRoutedPrefixes(createFakeClock(), { maxBlocks: 4 });
    routed.book(0, aChain('abc'));
    routed.book(0, aChain('xyz')).end('drop');
    expect(routed.stats()).toEqual({ nBlocks: 3, nRefused: 1 });
  });

  test('prompts shorter than a block are not remembered', () => {
    const routed = createRoutedPrefixes(createFakeClock());
    const before = process.memoryUsage().heapUsed;
    for (let i = 0; i < 200_000; i++) routed.book(0, aChain('')).end('keep');
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(20 * 2 ** 20);
  });

  test('short prompts that all differ are bounded too, though they have few blocks', () => {
    const routed = createRoutedPrefixes(createFakeClock(), { maxBlocks: 1000 });
    for (let i = 0; i < 1000; i++) routed.book(0, aChain(String.fromCharCode(i)));
    expect(routed.stats()).toEqual({ nBlocks: 125, nRefused: 875 });
  });

  test('when the table is full, memories of served requests give way to requests on their way', () => {
    const routed = createRoutedPrefixes(createFakeClock(), { maxBlocks: 9 });
    for (const [slot, text] of [
      [0, 'aaa'],
      [1, 'bbb'],
      [2, 'ccc'],
    ] as const)
      routed.book(slot, aChain(text)).end('keep');
    routed.book(3, aChain('ddd'));
    expect(routed.longestMatch(aChain('ddd')).blocks(3)).toBe(3);
    expect(routed.stats()).toEqual({ nBlocks: 9, nRefused: 0 });
    for (const text of ['eee', 'fff', 'ggg']) routed.book(3, aChain(text));
    expect(routed.stats()).toEqual({ nBlocks: 9, nRefused: 1 });
  });

  test('any history of bookings equals counting in a Map', () => {
    const step = fc.record({
      slot: fc.nat(2),
      text: fc.string({ unit: fc.constantFrom('a', 'b'), minLength: 1, maxLength: 12 }),
      endAfter: fc.nat(20),
      how: fc.constantFrom<BookingEnd>('drop', 'grace'),
      forget: fc.nat(30),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
        const clock = createFakeClock();
        const routed = createRoutedPrefixes(clock, { graceMs: 0 });
        let model: { slot: number; text: string; booking: Booking; endAt: number; how: BookingEnd }[] = [];
        steps.forEach(({ slot, text, endAfter, how, forget }, now) => {
          model.push({ slot, text, booking: routed.book(slot, aChain(text)), endAt: now + endAfter, how });
          for (const ended of model.filter(({ endAt }) => endAt <= now)) ended.booking.end(ended.how);
          clock.advance(0);
          model = model.filter(({ endAt }) => endAt > now);
          if (forget < 3) {
            routed.forget(forget);
            model = model.filter((booked) => booked.slot !== forget);
          }
          for (const other of [0, 1, 2]) {
            const texts = model.filter((booked) => booked.slot === other).map((booked) => booked.text);
            let expected = 0;
            while (expected < text.length && texts.some((one) => one.startsWith(text.slice(0, expected + 1))))
              expected += 1;
            const match = routed.longestMatch(aChain(text));
            expect(match.blocks(other)).toBe(expected);
            for (let n = 1; n <= text.length; n++) {
              const holders = texts.filter((one) => one.startsWith(text.slice(0, n)));
              expect(match.bookings(other, n)).toBe(holders.length);
            }
          }
        });
        const distinct = new Set(
          model.flatMap(({ slot, text }) => [...text].map((_, i) => `${slot}${text.slice(0, i + 1)}`)),
        );
        expect(routed.stats().nBlocks).toBe(distinct.size);
      }),
      { numRuns: 60 },
    );
  });
});
