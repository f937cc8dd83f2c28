import { expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createFifo } from '../../../src/prefix/fifo.ts';

/** Numbers are pushed, so many at a time; negative ones taken out. */
const steps = fc.array(fc.integer({ min: -200, max: 200 }), { maxLength: 40 });

test('what is first in is first out', () => {
  fc.assert(
    fc.property(steps, (all) => {
      const fifo = createFifo<number>();
      const plain: number[] = [];
      let next = 0;
      for (const n of all) {
        for (let i = 0; i < n; i++) {
          fifo.push(next);
          plain.push(next++);
        }
        for (let i = 0; i < -n; i++) {
          expect(fifo.first()).toBe(plain[0]);
          expect(fifo.shift()).toBe(plain.shift());
        }
        expect(fifo.size).toBe(plain.length);
      }
    }),
  );
});
