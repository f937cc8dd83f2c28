/** A block hasher whose seed is settled when it is first used: a replica that starts may yet take over its siblings' seed. */
import { createBlockHasher, type BlockHasher, type HashSeed } from './block-hash.ts';

/** @param seed read at the first use */
export function createLateHasher(seed: HashSeed): BlockHasher {
  let made: BlockHasher | null = null;
  const hasher = (): BlockHasher => (made ??= createBlockHasher(seed));
  return {
    root: (...given) => hasher().root(...given),
    blocks: (...given) => hasher().blocks(...given),
    continueBlocks: (...given) => hasher().continueBlocks(...given),
  };
}
