/** How work grows with what there is: counts of steps, not times. */
import { describe, expect, test } from '@jest/globals';
import type { BlockHashes } from '../../../src/prefix/block-hash.ts';
import {
  createPrefixIndexMemory,
  NO_POSITION,
  openPrefixIndexReader,
  openPrefixIndexWriter,
  type BlockPosition,
  type IndexOwner,
} from '../../../src/prefix/prefix-index.ts';
import { createRandom } from '../../support/kv-events.ts';

function anIndex() {
  const memory = createPrefixIndexMemory({ maxBytes: 16 * 2 ** 20 });
  const writer = openPrefixIndexWriter(memory);
  const random = createRandom(1);
  let nDropped = 0;
  writer.observe({
    unheld: () => undefined,
    dropping: () => void nDropped++,
    bytesPerChunk: 0,
    otherBytes: () => 0,
  });
  return {
    writer,
    reader: openPrefixIndexReader(memory),
    keys: (nBlocks: number) => Uint32Array.from({ length: 2 * nBlocks }, () => random(2 ** 32)),
    /** Stores a chain. @returns the position of its last block */
    store(owner: IndexOwner, parent: BlockPosition, keys: Uint32Array): BlockPosition {
      const nBlocks = keys.length / 2;
      const positions = new Uint32Array(nBlocks);
      expect(writer.store(owner, 0, parent, keys, nBlocks, positions, new Uint8Array(nBlocks))).toBe(nBlocks);
      return positions[nBlocks - 1]! as BlockPosition;
    },
    dropped: () => nDropped,
  };
}

/** The same hashes, counting how often one is looked at. */
function counted(hashes: Uint32Array): { hashes: BlockHashes; reads: () => number } {
  let nReads = 0;
  const proxy = new Proxy(hashes, {
    get(target, key) {
      if (typeof key === 'string' && /^\d+$/.test(key)) nReads++;
      return Reflect.get(target, key, target) as unknown;
    },
  });
  return { hashes: proxy as BlockHashes, reads: () => nReads };
}

describe('a look-up', () => {
  /** Looks at hashes needed to find a prompt that is cut into runs of so many blocks. */
  function readsFor(nBlocks: number, runBlocks: number): number {
    const index = anIndex();
    const owner = index.writer.openOwner(0);
    const keys = index.keys(nBlocks);
    let parent = NO_POSITION;
    for (let at = 0; at < nBlocks; at += runBlocks) {
      const own = index.store(owner, parent, keys.subarray(2 * at, 2 * (at + runBlocks)));
      // Another prompt that goes on differently: what comes next cannot lie in the same run.
      index.store(owner, own, index.keys(1));
      parent = own;
    }
    const { hashes, reads } = counted(keys);
    expect(index.reader.longestMatch(hashes).blocks(0)).toBe(nBlocks);
    return reads();
  }

  test('of an unbranched prompt takes as many steps for 4096 blocks as for 64', () => {
    const short = readsFor(64, 64);
    expect(short).toBeGreaterThan(0);
    expect(readsFor(4096, 4096)).toBeLessThan(2 * short);
  });

  test('of a prompt that branches everywhere takes steps in proportion to its length', () => {
    const short = readsFor(64, 2);
    expect(readsFor(64 * 8, 2)).toBeLessThan(8 * 1.5 * short);
    expect(readsFor(64 * 32, 2)).toBeLessThan(32 * 1.5 * short);
  });

  test('that leaves a run in its middle takes steps in proportion to the logarithm of its length', () => {
    const reads = [256, 4096].map((nBlocks) => {
      const index = anIndex();
      const keys = index.keys(nBlocks);
      index.store(index.writer.openOwner(0), NO_POSITION, keys);
      const asked = keys.slice();
      asked.set(index.keys(nBlocks / 2), nBlocks);
      const { hashes, reads: nReads } = counted(asked);
      expect(index.reader.longestMatch(hashes).blocks(0)).toBe(nBlocks / 2);
      return nReads();
    });
    expect(reads[1]! - reads[0]!).toBeLessThan(6 * 4);
  });
});

describe('an owner that goes', () => {
  const OWN = 2000;
  const SLICE = 64;

  /** Slices until the last of its blocks is out, in an index that holds so many blocks of others. */
  function slicesWith(nOthers: number): number {
    const index = anIndex();
    const owner = index.writer.openOwner(0);
    const others = Array.from({ length: 8 }, (_, i) => index.writer.openOwner(i + 1));
    for (let i = 0; i < OWN; i += 50) index.store(owner, NO_POSITION, index.keys(50));
    for (let i = 0; i < nOthers; i += 50) index.store(others[i % 8]!, NO_POSITION, index.keys(50));
    index.writer.retireOwner(owner);
    expect(index.writer.stats().nBlocks).toBe(nOthers);
    let nSlices = 0;
    for (let isAnyLeft = true; isAnyLeft; nSlices++) {
      const before = index.dropped();
      isAnyLeft = index.writer.sweep(SLICE);
      // No slice does more than it was asked to: that is the longest pause.
      expect(index.dropped() - before).toBeLessThanOrEqual(SLICE);
    }
    expect(index.dropped()).toBe(OWN);
    return nSlices;
  }

  test('is taken out in slices, as many as its own blocks need, however much others hold', () => {
    const alone = slicesWith(0);
    expect(alone).toBeGreaterThanOrEqual(OWN / SLICE);
    expect(alone).toBeLessThan((OWN / SLICE) * 1.5);
    expect(slicesWith(100_000)).toBe(alone);
  });

  /** Shortest time of several rounds: of work that takes a millisecond, one round at least is not interrupted. */
  function clearMs(nOthers: number): number {
    const index = anIndex();
    const other = index.writer.openOwner(1);
    for (let i = 0; i < nOthers; i += 50) index.store(other, NO_POSITION, index.keys(50));
    let least = Infinity;
    for (let round = 0; round < 15; round++) {
      const owner = index.writer.openOwner(0);
      for (let i = 0; i < OWN; i += 50) index.store(owner, NO_POSITION, index.keys(50));
      const start = performance.now();
      index.writer.retireOwner(owner);
      while (index.writer.sweep(SLICE));
      least = Math.min(least, performance.now() - start);
    }
    return least;
  }

  test('costs its own blocks, not those of the whole index', () => {
    clearMs(0);
    // A walk through everything would take fifty times as long.
    expect(clearMs(100_000) / clearMs(OWN)).toBeLessThan(15);
  });
});
