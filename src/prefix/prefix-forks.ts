/**
 * Where prompts part ways: how many of late found everything cached up to a block and nothing behind it. A system prompt has
 * many such ends, a chat has one per turn and each at another block. So it tells whether a copy of a prefix will serve others
 * than the one it is made for. Keys only, one thread, no I/O.
 */
import type { Clock } from '../clock.ts';
import { createLruMap } from '../lru-map.ts';
import type { BlockHashes } from './block-hash.ts';

/** Names the last block that was found. */
export type ForkKey = number;

export type PrefixForks = {
  /** Prompts that ended there, each weighing less the longer ago it was. @param key null = nothing was found */
  count(key: ForkKey | null): number;
  add(key: ForkKey | null): void;
};

/** A prompt weighs 1/e after that time. */
const MEMORY_MS = 60_000;
/** Most ends come once: the longest unused go first. */
const MAX_FORKS = 16_384;

export function createPrefixForks(clock: Clock): PrefixForks {
  const forks = createLruMap<ForkKey, { readonly n: number; readonly atMs: number }>();

  function count(key: ForkKey | null): number {
    const fork = key === null ? undefined : forks.get(key);
    return fork === undefined ? 0 : fork.n * Math.exp((fork.atMs - clock.nowMs()) / MEMORY_MS);
  }

  return {
    count,
    add(key) {
      if (key === null) return;
      forks.set(key, { n: count(key) + 1, atMs: clock.nowMs() });
      if (forks.size > MAX_FORKS) forks.delete(forks.oldest()!.key);
    },
  };
}

/** @param nBlocks how many of the first blocks were found */
export function forkKey(hashes: BlockHashes, nBlocks: number): ForkKey | null {
  if (nBlocks === 0) return null;
  // 53 bits: as many as a number holds.
  return (hashes[2 * nBlocks - 2]! & 0x1fffff) * 0x1_0000_0000 + hashes[2 * nBlocks - 1]!;
}
