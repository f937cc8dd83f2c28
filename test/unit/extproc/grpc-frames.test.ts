/** Messages on an HTTP/2 stream, cut in every way. */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { FrameReader, frameOf } from '../../../src/extproc/grpc-frames.ts';

const MAX_BYTES = 20_000;

/** The frame by the book, in one buffer. */
function framed(message: Buffer, flag = 0): Buffer {
  const prefix = Buffer.alloc(5);
  prefix[0] = flag;
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

function readAll(reader: FrameReader): (Buffer | string)[] {
  const all: (Buffer | string)[] = [];
  for (let next = reader.next(); next !== null; next = reader.next()) {
    all.push(next);
    if (typeof next === 'string') break;
  }
  return all;
}

describe('reading', () => {
  test('wherever they are cut, the same messages come out, and nothing of the next one before it is whole', () => {
    const messages = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 6 });
    fc.assert(
      fc.property(messages, fc.array(fc.nat(400), { maxLength: 12 }), (contents, cuts) => {
        const expected = contents.map((bytes) => Buffer.from(bytes));
        const wire = Buffer.concat(expected.map((message) => framed(message)));
        const reader = new FrameReader(MAX_BYTES);
        const got: (Buffer | string)[] = [];
        let at = 0;
        for (const length of [...cuts, wire.length]) {
          reader.add(wire.subarray(at, at + length));
          at = Math.min(wire.length, at + length);
          got.push(...readAll(reader));
          let nWhole = 0;
          for (let end = 0; nWhole < expected.length; nWhole++) {
            end += 5 + expected[nWhole]!.length;
            if (end > at) break;
          }
          expect(got).toHaveLength(nWhole);
        }
        expect(got).toEqual(expected);
      }),
    );
  });

  test('a message that came in one piece is not copied', () => {
    const wire = framed(Buffer.from('hello'));
    const reader = new FrameReader(MAX_BYTES);
    reader.add(wire);
    expect((reader.next() as Buffer).buffer).toBe(wire.buffer);
  });

  test.each([
    ['compressed', framed(Buffer.from('x'), 1)],
    ['too_large', framed(Buffer.alloc(MAX_BYTES + 1)).subarray(0, 5)],
  ] as const)('%s is told as soon as the prefix is there, after the messages before it', (problem, bad) => {
    const reader = new FrameReader(MAX_BYTES);
    reader.add(Buffer.concat([framed(Buffer.from('good')), bad]));
    expect(readAll(reader)).toEqual([Buffer.from('good'), problem]);
  });

  test('the largest message allowed is read', () => {
    const reader = new FrameReader(MAX_BYTES);
    reader.add(framed(Buffer.alloc(MAX_BYTES)));
    expect(reader.next()).toHaveLength(MAX_BYTES);
  });
});

test.each([0, 1, 4096, 4097, 100_000])('a message of %i bytes is written behind its length', (nBytes) => {
  const message = Buffer.alloc(nBytes, 7);
  expect(Buffer.concat(frameOf(message))).toEqual(framed(message));
});
