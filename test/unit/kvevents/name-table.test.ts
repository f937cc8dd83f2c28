/** The names' table beside a plain map, through growth, splits, overflowing buckets and shrinking. */
import { describe, expect, test } from '@jest/globals';
import { createNameTable, UNCLEAR } from '../../../src/kvevents/name-table.ts';
import { createRandom } from '../../support/kv-events.ts';

type Entry = { readonly hi: number; readonly lo: number; readonly value: number };

function aTable() {
  const upperWords = new Map<number, number>();
  const table = createNameTable(2 ** 20, (value) => upperWords.get(value)!);
  const held: Entry[] = [];
  return {
    table,
    held,
    add(hi: number, lo: number, value: number): void {
      upperWords.set(value, hi | 0);
      expect(table.insert(hi | 0, lo | 0, value, 'always')).toBe(0);
      held.push({ hi: hi | 0, lo: lo | 0, value });
    },
    removeAt(i: number): void {
      const { hi, lo, value } = held[i]!;
      table.remove(hi, lo & 0xffff, value);
      held[i] = held.at(-1)!;
      held.pop();
    },
    under(hi: number, lo: number): number[] {
      const found: number[] = [];
      for (let value = table.first(hi, lo); value !== 0; value = table.next()) found.push(value);
      return found.sort((a, b) => a - b);
    },
    peek: (hi: number, lo: number): number => table.peek(table.placeOf(hi, lo), hi, lo),
  };
}

describe('names and the values under them', () => {
  test('are what a plain map says, however often they come and go', () => {
    const random = createRandom(3);
    const { table, held, add, removeAt, under, peek } = aTable();
    let next = 1;
    for (const [share, nSteps] of [
      [90, 6000],
      [10, 6500],
      [60, 4000],
    ] as const) {
      for (let step = 0; step < nSteps; step++) {
        if (random(100) >= share) {
          if (held.length > 0) removeAt(random(held.length));
        } else if (held.length > 0 && random(20) === 0) {
          // The name of another one, or half of it.
          const { hi, lo } = held[random(held.length)]!;
          add(random(2) === 0 ? hi : random(2 ** 32), lo, next++);
        } else add(random(2 ** 32), random(2 ** 32), next++);
      }
      const values = new Map<string, number[]>();
      for (const { hi, lo, value } of held) values.set(`${hi} ${lo}`, [...(values.get(`${hi} ${lo}`) ?? []), value]);
      for (const { hi, lo, value } of held) {
        const expected = values.get(`${hi} ${lo}`)!.sort((a, b) => a - b);
        expect(under(hi, lo)).toEqual(expected);
        expect(peek(hi, lo)).toBe(expected.length === 1 ? value : UNCLEAR);
        expect([value, UNCLEAR]).toContain(expected.length === 1 ? table.guess(table.placeOf(hi, lo), lo) : UNCLEAR);
        expect(table.lowerWordOf(hi, lo & 0xffff, value)).toBe(lo);
      }
      for (let i = 0; i < 1000; i++) expect(peek(random(2 ** 32) | 0, random(2 ** 32) | 0)).toBe(0);
    }
  });

  test('take up no more than a cache line and a half for seven, and give nearly all of it back', () => {
    const random = createRandom(5);
    const { table, held, add, removeAt } = aTable();
    const empty = table.nBytes();
    for (let i = 1; i <= 20_000; i++) add(random(2 ** 32), random(2 ** 32), i);
    expect(table.nBytes()).toBeLessThan((20_000 * 96) / 7);
    while (held.length > 0) removeAt(held.length - 1);
    expect(table.nBytes()).toBeLessThan(empty + 100 * (256 + 72));
  });
});
