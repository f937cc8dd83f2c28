/**
 * The arithmetic of text keys. As that of block keys (prefix/hash-pieces.ts) with one sum instead of two and pieces of twice
 * the size: 64 KB of text are hashed with every request, in two thirds of the time. Per piece of 32 words, as two doubles,
 *   S = Σ word[i] · key[i] mod 2^64    (keys: 32 bits each, secret)
 * which for two different pieces is equal with probability ≤ 2^-32, whoever chose them, and for pieces nobody chose about as
 * seldom as 64 bits are. A block key is a promise about a cache and has both sums; a text key only finds what was learnt of
 * a prompt, and that is compared with exact tokens again and again.
 */

/** Words of 4 bytes that are multiplied and added up before they enter the state: 32 · 2^32 · 2^16 = 2^53, still exact. */
export const TEXT_PIECE = 32;

/**
 * Hashes `nChunks` chunks of `nPieces` whole pieces each, from the first word on.
 * @param state [hi, lo] before the first chunk, after the call that of the last
 * @param out receives the state after every chunk, from word `outAt` on
 */
export type HashText = (
  words: Uint32Array,
  nChunks: number,
  nPieces: number,
  state: Uint32Array,
  out: Uint32Array,
  outAt: number,
) => void;

/** @param keys TEXT_PIECE secret words */
export function createTextPieces(keys: Uint32Array): HashText {
  const halves = new Float64Array(2 * TEXT_PIECE);
  for (let i = 0; i < TEXT_PIECE; i++) {
    halves[2 * i] = keys[i]! & 0xffff;
    halves[2 * i + 1] = keys[i]! >>> 16;
  }
  return (words, nChunks, nPieces, state, out, outAt) => {
    let h = state[0]! | 0;
    let l = state[1]! | 0;
    let at = 0;
    for (let chunk = 0; chunk < nChunks; chunk++) {
      for (let p = 0; p < nPieces; p++) {
        let a = 0;
        let b = 0;
        // Four words a turn: an addition has to wait for the one before it.
        for (let i = 0; i < 2 * TEXT_PIECE; i += 8, at += 4) {
          const w0 = words[at]!;
          const w1 = words[at + 1]!;
          const w2 = words[at + 2]!;
          const w3 = words[at + 3]!;
          a += w0 * halves[i]! + w1 * halves[i + 2]! + (w2 * halves[i + 4]! + w3 * halves[i + 6]!);
          b += w0 * halves[i + 1]! + w1 * halves[i + 3]! + (w2 * halves[i + 5]! + w3 * halves[i + 7]!);
        }
        // S = a + b · 2^16 as two words; the carry shows as a low word smaller than one of its summands.
        const low = a | 0;
        const sum = (low + (b << 16)) | 0;
        const carry = sum >>> 0 < low >>> 0 ? 1 : 0;
        l ^= sum;
        h ^= ((a * 2 ** -32) | 0) + ((b * 2 ** -16) | 0) + carry;
        l = Math.imul(l ^ (l >>> 15), 0x2c1b3c6d);
        h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
        l = (l + ((h << 11) | (h >>> 21))) | 0;
        h ^= (l << 19) | (l >>> 13);
        l = Math.imul(l ^ (l >>> 15), 0x297a2d39);
        h = Math.imul(h ^ (h >>> 16), 0xc2b2ae35);
      }
      out[outAt + 2 * chunk] = h;
      out[outAt + 2 * chunk + 1] = l;
    }
    state[0] = h;
    state[1] = l;
  };
}
