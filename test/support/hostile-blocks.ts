/** Blocks made to collide: all but two tokens are zero, and those two always have the same sum. */
import type { BlockHasher } from '../../src/prefix/block-hash.ts';

const SIZE = 16;
const PAIRS = (SIZE * (SIZE - 1)) / 2;
const SUM = 1 << 17;

/** How many of so many different blocks have the key of another one. */
export function countHostileCollisions(hasher: BlockHasher, nBlocks: number): number {
  const root = hasher.root('m', null, SIZE);
  const nValues = Math.ceil(nBlocks / PAIRS);
  if (nValues >= SUM) throw new RangeError(`${nBlocks} blocks, limit ${PAIRS * (SUM - 1)}`);
  const keys = new BigUint64Array(PAIRS * nValues);
  const words = new Uint32Array(keys.buffer);
  const tokenIds = new Uint32Array(SIZE);
  let n = 0;
  for (let p = 0; p < SIZE; p++) {
    for (let q = 0; q < p; q++) {
      for (let value = 1; value <= nValues; value++) {
        tokenIds[p] = value;
        tokenIds[q] = SUM - value;
        hasher.continueBlocks(root[0], root[1], tokenIds, 1, SIZE, null, words.subarray(2 * n));
        n++;
      }
      tokenIds[p] = tokenIds[q] = 0;
    }
  }
  keys.sort();
  let nCollisions = 0;
  for (let i = 1; i < keys.length; i++) if (keys[i] === keys[i - 1]) nCollisions++;
  return nCollisions;
}
