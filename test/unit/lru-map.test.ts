import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createLruMap } from '../../src/lru-map.ts';

type Step = { readonly kind: 'set' | 'get' | 'delete' | 'drop oldest'; readonly key: number; readonly value: number };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.record({
    kind: fc.constantFrom('set', 'set', 'get', 'delete', 'drop oldest'),
    key: fc.nat(9),
    value: fc.nat(),
  }),
  { maxLength: 200 },
);

describe('a map in the order of use', () => {
  test('does what a Map does whose entries are deleted and set again at every use', () => {
    fc.assert(
      fc.property(steps, (all) => {
        const lru = createLruMap<number, number>();
        const plain = new Map<number, number>();
        for (const { kind, key, value } of all) {
          if (kind === 'get') expect(lru.get(key)).toBe(plain.get(key));
          if (kind === 'set') {
            lru.set(key, value);
            plain.delete(key);
            plain.set(key, value);
          }
          const [first] = kind === 'drop oldest' ? plain.keys() : [key];
          if (kind === 'drop oldest' || kind === 'delete') {
            if (first !== undefined) lru.delete(first);
            plain.delete(first!);
          }
          expect(lru.size).toBe(plain.size);
          const [oldest] = plain;
          expect(lru.oldest()).toEqual(
            oldest === undefined ? null : expect.objectContaining({ key: oldest[0], value: oldest[1] }),
          );
        }
        const inOrder: number[] = [];
        for (let next = lru.oldest(); next !== null; next = next.newer) inOrder.push(next.key);
        expect(inOrder).toEqual([...plain.keys()]);
      }),
    );
  });
});
