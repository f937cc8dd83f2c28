/**
 * The arithmetic of block keys in plain TypeScript: the definition, and what runs. What is hashed, and why, is said in
 * block-hash.ts; the same in WebAssembly, which waits for V8, is hash-pieces-wasm.ts.
 *
 * The sums use doubles, which are exact up to 2^53 = 8 · 2^18 · 2^32: eight tokens at a time where all are below 2^18, as in
 * every vocabulary there is, else with the tokens split in halves.
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

const WIDE_TOKEN_BITS = 18;
const HALF = PIECE / 2;

/** @param keys 16 words of the first sum, then 16 of the second */
export function createPlainPieces(keys: Uint32Array): HashPieces {
  const factors = interleave(keys);
  const wide = new Int32Array(4);
  return (tokenIds, start, nBlocks, nPieces, state, out, outAt) => {
    let h = state[0]! | 0;
    let l = state[1]! | 0;
    let at = start;
    for (let block = 0; block < nBlocks; block++) {
      for (let p = 0; p < nPieces; p++, at += PIECE) {
        // S1 = a + b and S2 = c + d, of the first and the second eight tokens; two of each a turn.
        let a = 0;
        let b = 0;
        let c = 0;
        let d = 0;
        let allBits = 0;
        for (let i = 0, token = at; i < 4 * HALF; i += 8, token += 2) {
          const t0 = tokenIds[token]!;
          const t1 = tokenIds[token + 1]!;
          const t8 = tokenIds[token + HALF]!;
          const t9 = tokenIds[token + HALF + 1]!;
          allBits |= t0 | t1 | t8 | t9;
          a += t0 * factors[i]! + t1 * factors[i + 4]!;
          b += t8 * factors[i + 1]! + t9 * factors[i + 5]!;
          c += t0 * factors[i + 2]! + t1 * factors[i + 6]!;
          d += t8 * factors[i + 3]! + t9 * factors[i + 7]!;
        }
        let low1: number;
        let high1: number;
        let low2: number;
        let high2: number;
        if (allBits >>> WIDE_TOKEN_BITS === 0) {
          // As two words; the carry shows as a low word smaller than one of its summands.
          low1 = ((a | 0) + (b | 0)) | 0;
          high1 = (upper(a) + upper(b) + (low1 >>> 0 < (a | 0) >>> 0 ? 1 : 0)) | 0;
          low2 = ((c | 0) + (d | 0)) | 0;
          high2 = (upper(c) + upper(d) + (low2 >>> 0 < (c | 0) >>> 0 ? 1 : 0)) | 0;
        } else {
          sumWide(tokenIds, at, factors, wide);
          low1 = wide[0]!;
          high1 = wide[1]!;
          low2 = wide[2]!;
          high2 = wide[3]!;
        }
        l ^= low1;
        h ^= high1;
        l = Math.imul(l ^ (l >>> 15), 0x2c1b3c6d);
        h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
        l = (l + ((h << 11) | (h >>> 21))) | 0;
        h ^= (l << 19) | (l >>> 13);
        l ^= low2;
        h ^= high2;
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

/** Both sums of a piece with tokens of any size. @param sums receives [low, high] of each */
function sumWide(tokenIds: Uint32Array, start: number, factors: Float64Array, sums: Int32Array): void {
  for (let sum = 0; sum < 2; sum++) {
    let lower = 0;
    let upperHalves = 0;
    for (let i = 0; i < PIECE; i++) {
      const token = tokenIds[start + i]!;
      const key = factors[factorAt(i, sum)]!;
      lower += (token & 0xffff) * key;
      upperHalves += (token >>> 16) * key;
    }
    const low = ((lower | 0) + (upperHalves << 16)) | 0;
    const carry = low >>> 0 < (lower | 0) >>> 0 ? 1 : 0;
    sums[2 * sum] = low;
    sums[2 * sum + 1] = upper(lower) + ((upperHalves * 2 ** -16) | 0) + carry;
  }
}

/** A sum without its lower 32 bits. */
function upper(sum: number): number {
  return (sum * 2 ** -32) | 0;
}

/** Keys as doubles, in the order in which they are needed: for tokens i and i + 8, of the first sum and of the second. */
function interleave(keys: Uint32Array): Float64Array {
  const factors = new Float64Array(2 * PIECE);
  for (let sum = 0; sum < 2; sum++) {
    for (let i = 0; i < PIECE; i++) factors[factorAt(i, sum)] = keys[sum * PIECE + i]!;
  }
  return factors;
}

function factorAt(token: number, sum: number): number {
  return 4 * (token % HALF) + 2 * sum + (token < HALF ? 0 : 1);
}
