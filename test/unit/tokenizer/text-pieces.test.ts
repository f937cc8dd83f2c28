/** The arithmetic of text keys against its definition in exact integers. */
import { expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createTextPieces, TEXT_PIECE } from '../../../src/tokenizer/text-pieces.ts';

const MASK = 0xffff_ffff;

/** Σ word · key mod 2^64 in exact integers, then the same rounds, one step per line. */
function plain(keys: Uint32Array, words: Uint32Array, state: readonly [number, number]): [number, number] {
  let [h, l] = state;
  for (let at = 0; at < words.length; at += TEXT_PIECE) {
    let sum = 0n;
    for (let i = 0; i < TEXT_PIECE; i++) sum += BigInt(words[at + i]!) * BigInt(keys[i]!);
    l ^= Number(sum & 0xffff_ffffn);
    h ^= Number((sum >> 32n) & 0xffff_ffffn);
    l = Math.imul(l ^ (l >>> 15), 0x2c1b3c6d);
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    l = (l + ((h << 11) | (h >>> 21))) | 0;
    h ^= (l << 19) | (l >>> 13);
    l = Math.imul(l ^ (l >>> 15), 0x297a2d39);
    h = Math.imul(h ^ (h >>> 16), 0xc2b2ae35);
  }
  return [h >>> 0, l >>> 0];
}

const aWord = fc.oneof(fc.constantFrom(0, 1, 0x8000_0000, MASK), fc.integer({ min: 0, max: MASK }));
const someWords = (n: number): fc.Arbitrary<Uint32Array> =>
  fc.array(aWord, { minLength: n, maxLength: n }).map((words) => Uint32Array.from(words));

test('sums are exact for any words and keys, also the largest', () => {
  fc.assert(
    fc.property(someWords(TEXT_PIECE), someWords(3 * TEXT_PIECE), aWord, aWord, (keys, words, hi, lo) => {
      const state = Uint32Array.of(hi, lo);
      createTextPieces(keys)(words, 1, 3, state, state, 0);
      expect([...state]).toEqual(plain(keys, words, [hi, lo]));
    }),
  );
  const largest = new Uint32Array(TEXT_PIECE).fill(MASK);
  const state = new Uint32Array(2);
  createTextPieces(largest)(largest, 1, 1, state, state, 0);
  expect([...state]).toEqual(plain(largest, largest, [0, 0]));
});

test('chunks are chained: each key is the state after it, whatever is hashed in one call', () => {
  const keys = Uint32Array.from({ length: TEXT_PIECE }, (_, i) => Math.imul(i + 1, 0x9e3779b1) >>> 0);
  const hash = createTextPieces(keys);
  const words = Uint32Array.from({ length: 8 * TEXT_PIECE }, (_, i) => Math.imul(i, 0x85ebca6b) >>> 0);
  const out = new Uint32Array(2 + 2 * 4);
  hash(words, 4, 2, Uint32Array.of(1, 2), out, 2);
  const state = Uint32Array.of(1, 2);
  for (let chunk = 0; chunk < 4; chunk++) {
    hash(words.subarray(2 * TEXT_PIECE * chunk), 1, 2, state, state, 0);
    expect([...state]).toEqual([...out.subarray(2 + 2 * chunk, 4 + 2 * chunk)]);
  }
});
