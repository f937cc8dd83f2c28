/**
 * The arithmetic of block keys in plain TypeScript: the definition, what is used where WebAssembly is not, and the measure
 * the other one is tested against. What is hashed, and why, is said in block-hash.ts.
 *
 * The sums use doubles with 16-bit halves of the keys: 16 · 2^32 · 2^16 = 2^52, so they are exact.
 */

/** Tokens that are multiplied and added up before they enter the state. */
export const PIECE = 16;

/**
 * Hashes `nBlocks` blocks of `nPieces` whole pieces each, from token `start` on.
 * @param state [hi, lo] before the first block, after the call that of the last
 * @param out receives the state after every block, from word `outAt` on
 */
export type HashPieces = (
  tokenIds: Uint32Array,
  start: number,
  nBlocks: number,
  nPieces: number,
  state: Uint32Array,
  out: Uint32Array,
  outAt: number,
) => void;

/** @param keys 16 words of the first sum, then 16 of the second */
export function createPlainPieces(keys: Uint32Array): HashPieces {
  const halves = splitKeys(keys);
  return (tokenIds, start, nBlocks, nPieces, state, out, outAt) => {
    let h = state[0]! | 0;
    let l = state[1]! | 0;
    let at = start;
    for (let block = 0; block < nBlocks; block++) {
      for (let p = 0; p < nPieces; p++) {
        let a = 0;
        let b = 0;
        let c = 0;
        let d = 0;
        for (let i = 0; i < 4 * PIECE; i += 4) {
          const token = tokenIds[at++]!;
          a += token * halves[i]!;
          b += token * halves[i + 1]!;
          c += token * halves[i + 2]!;
          d += token * halves[i + 3]!;
        }
        // S = a + b · 2^16 as two words; the carry shows as a low word smaller than one of its summands.
        let low = a | 0;
        let sum = (low + (b << 16)) | 0;
        let carry = sum >>> 0 < low >>> 0 ? 1 : 0;
        l ^= sum;
        h ^= ((a * 2 ** -32) | 0) + ((b * 2 ** -16) | 0) + carry;
        l = Math.imul(l ^ (l >>> 15), 0x2c1b3c6d);
        h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
        l = (l + ((h << 11) | (h >>> 21))) | 0;
        h ^= (l << 19) | (l >>> 13);
        low = c | 0;
        sum = (low + (d << 16)) | 0;
        carry = sum >>> 0 < low >>> 0 ? 1 : 0;
        l ^= sum;
        h ^= ((c * 2 ** -32) | 0) + ((d * 2 ** -16) | 0) + carry;
        l = Math.imul(l ^ (l >>> 15), 0x297a2d39);
        h = Math.imul(h ^ (h >>> 16), 0xc2b2ae35);
        l = (l + ((h << 13) | (h >>> 19))) | 0;
        h ^= (l << 17) | (l >>> 15);
      }
      out[outAt + 2 * block] = h;
      out[outAt + 2 * block + 1] = l;
    }
    state[0] = h;
    state[1] = l;
  };
}

/** [low 16 bits of S1 keys, high of S1, low of S2, high of S2] · 16, as doubles. */
function splitKeys(keys: Uint32Array): Float64Array {
  const halves = new Float64Array(4 * PIECE);
  for (let i = 0; i < PIECE; i++) {
    halves[4 * i] = keys[i]! & 0xffff;
    halves[4 * i + 1] = keys[i]! >>> 16;
    halves[4 * i + 2] = keys[PIECE + i]! & 0xffff;
    halves[4 * i + 3] = keys[PIECE + i]! >>> 16;
  }
  return halves;
}
