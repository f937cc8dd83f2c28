/** Copies of an engine's blocks beyond the first in each medium: engines recompute the last block of a fully cached prompt. */
import type { BlockPosition, MediumIndex } from '../prefix/prefix-index.ts';
import { createCountedMap, type MemoryCount } from './counted-memory.ts';

export type BlockCopies = {
  /** Whether there are any. */
  isEmpty(): boolean;
  /** Beyond the first. */
  of(position: BlockPosition, medium: MediumIndex): number;
  add(position: BlockPosition, medium: MediumIndex, n: number): void;
  /** @returns false when there is no copy beyond the first */
  take(position: BlockPosition, medium: MediumIndex): boolean;
  /** Of one block, in all media. */
  forget(position: BlockPosition): void;
  clear(): void;
};

export const MEDIA_INDEXES: readonly MediumIndex[] = [0, 1, 2];

export function createBlockCopies(memory: MemoryCount): BlockCopies {
  const copies = createCountedMap<number, number>(memory);
  return {
    isEmpty: () => copies.size() === 0,
    of: (position, medium) => copies.get(keyOf(position, medium)) ?? 0,
    add(position, medium, n) {
      const key = keyOf(position, medium);
      copies.set(key, (copies.get(key) ?? 0) + n);
    },
    take(position, medium) {
      const key = keyOf(position, medium);
      const n = copies.get(key);
      if (n === undefined) return false;
      if (n === 1) copies.delete(key);
      else copies.set(key, n - 1);
      return true;
    },
    forget(position) {
      if (copies.size() > 0) for (const medium of MEDIA_INDEXES) copies.delete(keyOf(position, medium));
    },
    clear: () => copies.clear(),
  };
}

function keyOf(position: BlockPosition, medium: MediumIndex): number {
  return position * MEDIA_INDEXES.length + medium;
}
