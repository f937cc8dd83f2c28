/**
 * How long ago an engine last used what a prompt would push out of its cache, as own decisions tell it: per slot a sample of
 * the blocks sent there, in the order of their last use, as many as its cache holds. A block is in every sample or in none,
 * by its hash. Blocks of others' requests are not in it. Slots and hashes only, one thread, no I/O.
 */
import type { Clock } from '../clock.ts';
import { createLruMap, type LruMap } from '../lru-map.ts';
import type { BlockHashes } from './block-hash.ts';

export type EvictionAges = {
  /** A prompt of these blocks was sent there. */
  used(slot: number, hashes: BlockHashes): void;
  /** Milliseconds since the last use of the youngest block that `nBlocks` new ones push out; null = none, or not known. */
  ageMs(slot: number, nBlocks: number): number | null;
  /** Another process is behind the slot. */
  forget(slot: number): void;
};

export type EvictionAgesOptions = {
  /** Blocks of the slot's cache; null = not known, or filled by others as well: then nothing is known of ages. */
  readonly capacityBlocks: (slot: number) => number | null;
};

/** Most that is remembered of an endpoint. One prompt pushes out a few hundredths of a cache: a dozen of them. */
const SAMPLES = 512;

export function createEvictionAges(clock: Clock, { capacityBlocks }: EvictionAgesOptions): EvictionAges {
  /** Low word of a block's hash → last use. */
  const uses = new Map<number, LruMap<number, number>>();

  return {
    used(slot, hashes) {
      const capacity = capacityBlocks(slot);
      if (capacity === null) {
        uses.delete(slot);
        return;
      }
      const every = sampledOf(capacity);
      const nowMs = clock.nowMs();
      let ofSlot = uses.get(slot);
      if (ofSlot === undefined) uses.set(slot, (ofSlot = createLruMap()));
      // Engines forget the end of a prompt before its start.
      for (let i = hashes.length - 1; i > 0; i -= 2) {
        const key = hashes[i]!;
        if ((key & (every - 1)) === 0) ofSlot.set(key, nowMs);
      }
      while (ofSlot.size * every > capacity) ofSlot.delete(ofSlot.oldest()!.key);
    },
    ageMs(slot, nBlocks) {
      const ofSlot = uses.get(slot);
      const capacity = ofSlot === undefined ? null : capacityBlocks(slot);
      if (ofSlot === undefined || capacity === null) return null;
      const every = sampledOf(capacity);
      let nOut = Math.ceil((ofSlot.size * every + nBlocks - capacity) / every);
      let usedMs: number | null = null;
      for (let one = ofSlot.oldest(); one !== null && nOut-- > 0; one = one.newer) usedMs = one.value;
      return usedMs === null ? null : clock.nowMs() - usedMs;
    },
    forget: (slot) => void uses.delete(slot),
  };
}

/** One block in so many, a power of two. */
function sampledOf(capacityBlocks: number): number {
  return 2 ** Math.max(0, Math.ceil(Math.log2(capacityBlocks / SAMPLES)));
}
