/** Bytes in pieces of any size, wanted in one. */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { Pieces } from '../../../src/extproc/pieces.ts';

describe('pieces', () => {
  test('come out as the bytes they were, however they are added and taken', () => {
    const piece = fc.oneof(
      fc.uint8Array({ maxLength: 40 }),
      fc.integer({ min: 900, max: 5_000 }).map((length) => new Uint8Array(length).fill(length)),
    );
    const step = fc.record({ piece, part: fc.double({ min: 0, max: 1, noNaN: true }), takes: fc.boolean() });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const pieces = new Pieces();
        let expected = Buffer.alloc(0);
        const handedOut: [Buffer, Buffer][] = [];
        for (const { piece: bytes, part, takes } of steps) {
          pieces.add(Buffer.from(bytes));
          expected = Buffer.concat([expected, bytes]);
          if (takes) {
            const n = Math.floor(part * expected.length);
            const taken = pieces.take(n);
            handedOut.push([taken, Buffer.from(expected.subarray(0, n))]);
            expected = expected.subarray(n);
          }
          expect(pieces.nBytes).toBe(expected.length);
        }
        handedOut.push([pieces.take(expected.length), expected]);
        // Nothing handed out is written over by what came later.
        for (const [taken, was] of handedOut) expect(taken.equals(was)).toBe(true);
      }),
    );
  });

  test('one piece is not copied, whole or in part', () => {
    const piece = Buffer.from('hello');
    const pieces = new Pieces();
    pieces.add(piece);
    expect(pieces.take(2).buffer).toBe(piece.buffer);
    expect(pieces.take(3).buffer).toBe(piece.buffer);
  });

  test('small ones hold neither their buffers nor a view each', () => {
    const nPieces = 100_000;
    const networkBuffer = Buffer.alloc(64 * 1024, 1);
    const pieces = new Pieces();
    for (let i = 0; i < nPieces; i++) pieces.add(networkBuffer.subarray(i % 1000, (i % 1000) + 1));
    const kept = pieces.kept();
    expect(kept.length).toBeLessThan(nPieces / 1000);
    expect(kept.filter(({ buffer }) => buffer === networkBuffer.buffer).length).toBeLessThanOrEqual(1);
    expect(pieces.take(nPieces).equals(Buffer.alloc(nPieces, 1))).toBe(true);
  });
});
