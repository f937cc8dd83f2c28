import { Worker } from 'node:worker_threads';
import { describe, expect, jest, test } from '@jest/globals';
import type { BlockHashes } from '../../../src/prefix/block-hash.ts';
import {
  createPrefixIndexMemory,
  MAX_INDEX_SLOTS,
  NO_POSITION,
  openPrefixIndexReader,
  openPrefixIndexWriter,
  type BlockPosition,
  type IndexOwner,
  type PrefixIndexMemory,
  type PrefixIndexWriter,
} from '../../../src/prefix/prefix-index.ts';
import { createRandom } from '../../support/kv-events.ts';
import type { WriterOrder } from '../../support/prefix-index-worker.ts';
import { cpuMsOnce } from '../../support/cpu-time.ts';

/** Keys of a chain of n blocks, all different from any other seed's. */
function chainOf(n: number, seed: number): BlockHashes {
  const random = createRandom(seed);
  return Uint32Array.from({ length: 2 * n }, () => random(2 ** 32)) as BlockHashes;
}

/** Two chains, one after the other: the second part continues the first. */
function join(...parts: readonly Uint32Array[]): BlockHashes {
  return Uint32Array.from(parts.flatMap((part) => [...part])) as BlockHashes;
}

function open(maxBytes = 4 << 20) {
  const memory = createPrefixIndexMemory({ maxBytes });
  return { memory, writer: openPrefixIndexWriter(memory), reader: openPrefixIndexReader(memory) };
}

/** Stores a whole chain. @returns positions of what was stored */
function store(writer: PrefixIndexWriter, owner: IndexOwner, hashes: Uint32Array, medium: 0 | 1 | 2 = 0): Uint32Array {
  const n = hashes.length / 2;
  const positions = new Uint32Array(n);
  const nStored = writer.store(owner, medium, NO_POSITION, hashes, n, positions, new Uint8Array(n));
  return positions.subarray(0, nStored);
}

describe('holding', () => {
  test('every holder is found, 1024 slots at once', () => {
    const { writer, reader } = open();
    const chain = chainOf(40, 1);
    for (let slot = 0; slot < MAX_INDEX_SLOTS; slot++) {
      store(writer, writer.openOwner(slot), chain.subarray(0, 2 * (1 + (slot % 40))));
    }
    const match = reader.longestMatch(chain);
    for (let slot = 0; slot < MAX_INDEX_SLOTS; slot++) expect(match.blocks(slot)).toBe(1 + (slot % 40));
  });

  test('only candidates are reported', () => {
    const { writer, reader } = open();
    const chain = chainOf(5, 1);
    for (const slot of [3, 64, 65]) store(writer, writer.openOwner(slot), chain);
    const slots = new Uint32Array(32);
    slots[2] = 1 << 1;
    const match = reader.longestMatch(chain, slots);
    expect([3, 64, 65].map((slot) => match.blocks(slot))).toEqual([0, 0, 5]);
  });

  test('a match stays what it was while later ones are made', () => {
    const { writer, reader } = open();
    const chain = chainOf(5, 1);
    store(writer, writer.openOwner(3), chain);
    const match = reader.longestMatch(chain);
    reader.longestMatch(chainOf(5, 2));
    expect(match.blocks(3)).toBe(5);
  });

  test('prompts that part at any block are told apart', () => {
    const { writer, reader } = open();
    const trunk = chainOf(100, 1);
    for (let at = 0; at < 100; at++) {
      const branch = join(trunk.subarray(0, 2 * at), chainOf(7, 1000 + at));
      store(writer, writer.openOwner(at), branch);
    }
    for (let at = 0; at < 100; at++) {
      const match = reader.longestMatch(join(trunk.subarray(0, 2 * at), chainOf(7, 1000 + at)));
      const slots = Array.from({ length: 100 }, (_, slot) => slot);
      expect(slots.map((slot) => match.blocks(slot))).toEqual(
        slots.map((slot) => (slot === at ? at + 7 : Math.min(at, slot))),
      );
    }
  });

  test('a chain longer than a run can be continues in another', () => {
    const { writer, reader } = open(16 << 20);
    const chain = chainOf(70_000, 1);
    const owner = writer.openOwner(9);
    const positions = store(writer, owner, chain);
    expect(reader.longestMatch(chain).blocks(9)).toBe(70_000);
    writer.remove(owner, 0, positions.slice(65_000).reverse(), 5000);
    expect(reader.longestMatch(chain).blocks(9)).toBe(65_000);
    writer.remove(owner, 0, positions.slice(0, 65_000).reverse(), 65_000);
    expect(writer.stats().nBlocks).toBe(0);
  });

  test('memory comes back: a thousand rounds of storing and removing take no more than one', () => {
    const { writer } = open();
    const owner = writer.openOwner(0);
    let after = 0;
    for (let round = 0; round < 1000; round++) {
      const positions = store(writer, owner, chainOf(1 + (round % 90), round));
      expect(writer.remove(owner, 0, positions.slice().reverse(), positions.length)).toBe(positions.length);
      if (round === 0) after = writer.stats().nBytes;
    }
    expect(writer.stats()).toEqual({ nBlocks: 0, nBytes: after, evictedBlocks: 0 });
  });
});

describe('retired owners', () => {
  test('are out of sight at once and leave nothing behind when swept', () => {
    const { writer, reader } = open();
    const empty = writer.stats();
    const owner = writer.openOwner(3);
    const chain = chainOf(1000, 1);
    store(writer, owner, chain);
    store(writer, owner, chain, 1);
    writer.retireOwner(owner);
    expect(reader.longestMatch(chain).blocks(3)).toBe(0);
    expect(writer.stats().nBlocks).toBe(0);
    let rounds = 1;
    while (writer.sweep(100)) rounds++;
    expect(rounds).toBeGreaterThanOrEqual(20);
    expect(writer.stats().nBytes).toBeLessThanOrEqual(empty.nBytes + 64);
  });

  test('a slot that is used again starts empty while its old blocks are still being swept', () => {
    const { writer, reader } = open();
    const chain = chainOf(100, 1);
    const old = writer.openOwner(3);
    store(writer, old, chain);
    writer.retireOwner(old);
    const fresh = writer.openOwner(3);
    store(writer, fresh, chain.subarray(0, 20));
    expect(reader.longestMatch(chain).blocks(3)).toBe(10);
    while (writer.sweep(7));
    expect(reader.longestMatch(chain).blocks(3)).toBe(10);
  });

  test('sweeping takes time for what the owner held, not for what the index holds', () => {
    const cost = (nOthers: number): number => {
      const { writer } = open(32 << 20);
      for (let i = 0; i < nOthers; i++) store(writer, writer.openOwner(i % 8), chainOf(100, i));
      const owner = writer.openOwner(900);
      for (let i = 0; i < 300; i++) store(writer, owner, chainOf(30, 1_000_000 + i));
      writer.retireOwner(owner);
      return cpuMsOnce(() => {
        while (writer.sweep(1000));
      });
    };
    cost(10);
    const best = (n: number): number => Math.min(...[1, 2, 3].map(() => cost(n)));
    expect(best(1600)).toBeLessThan(6 * best(50) + 10);
  });
});

describe('byte budget', () => {
  test('is kept: the largest owner gives way, the others lose nothing', () => {
    const { writer, reader } = open(1 << 20);
    const dropped = new Map<IndexOwner, number>();
    writer.observe({
      unheld: () => {},
      dropping: (owner) => void dropped.set(owner, (dropped.get(owner) ?? 0) + 1),
      bytesPerChunk: 0,
      otherBytes: () => 0,
    });
    const small = writer.openOwner(1);
    const large = writer.openOwner(2);
    const kept = chainOf(200, 1);
    store(writer, small, kept);
    for (let i = 0; i < 2000; i++) {
      const chain = chainOf(50, 100 + i);
      expect(store(writer, large, chain)).toHaveLength(50);
      expect(reader.longestMatch(chain).blocks(2)).toBe(50);
      expect(writer.stats().nBytes).toBeLessThanOrEqual(1 << 20);
    }
    expect(reader.longestMatch(kept).blocks(1)).toBe(200);
    expect([...dropped.keys()]).toEqual([large]);
    expect(writer.stats().evictedBlocks).toBe(dropped.get(large));
    expect(writer.heldBy(large) + dropped.get(large)!).toBe(100_000);
  });

  test('what is used stays longer than what is not', () => {
    const { writer, reader } = open(1 << 20);
    const owner = writer.openOwner(2);
    const used = Array.from({ length: 20 }, (_, i) => chainOf(50, i));
    for (const chain of used) store(writer, owner, chain);
    let nLost = 0;
    for (let i = 0; i < 1500; i++) {
      store(writer, owner, chainOf(50, 1000 + i));
      for (const chain of used) reader.longestMatch(chain);
    }
    for (const chain of used) if (reader.longestMatch(chain).blocks(2) < 50) nLost++;
    expect(nLost).toBeLessThan(4);
  });

  test('a store larger than the whole budget is refused, not half believed', () => {
    const { writer, reader } = open(200_000);
    const chain = chainOf(60_000, 1);
    const owner = writer.openOwner(0);
    const positions = store(writer, owner, chain);
    expect(reader.longestMatch(chain).blocks(0)).toBe(positions.length);
    expect(positions.length).toBeLessThan(60_000);
  });
});

describe('hooks', () => {
  test('tell every position that nobody holds any more, exactly once', () => {
    const { writer } = open();
    const free: number[] = [];
    writer.observe({
      unheld: (position) => void free.push(position),
      dropping: () => {},
      bytesPerChunk: 0,
      otherBytes: () => 0,
    });
    const [a, b] = [writer.openOwner(0), writer.openOwner(1)];
    const chain = chainOf(30, 1);
    const positions = store(writer, a, chain);
    store(writer, b, chain.subarray(0, 20));
    writer.remove(a, 0, positions.slice().reverse(), 30);
    expect(free.sort((x, y) => x - y)).toEqual([...positions.subarray(10)].sort((x, y) => x - y));
    writer.retireOwner(b);
    while (writer.sweep(3));
    expect(free.sort((x, y) => x - y)).toEqual([...positions].sort((x, y) => x - y));
  });

  test('positions stay while any owner holds the block', () => {
    const { writer } = open();
    const [a, b] = [writer.openOwner(0), writer.openOwner(1)];
    const chain = chainOf(30, 1);
    const first = store(writer, a, chain);
    expect([...store(writer, b, chain)]).toEqual([...first]);
    writer.remove(a, 0, first, 30);
    expect(writer.mediaAt(b, first[29]! as BlockPosition)).toBe(1);
    expect([...store(writer, a, chain)]).toEqual([...first]);
  });
});

describe('another thread', () => {
  test('reads while one writes, and never sees what was not there', async () => {
    const memory: PrefixIndexMemory = createPrefixIndexMemory({ maxBytes: 4 << 20 });
    const trunk = chainOf(60, 1);
    const chains = Array.from({ length: 12 }, (_, i) => join(trunk, chainOf(140, 100 + i)));
    const strangers = chains.map((chain, i) => join(chain.subarray(0, 2 * 60), chainOf(5, 5000 + i)));
    const control = new Int32Array(new SharedArrayBuffer(8));
    const order: WriterOrder = { memory, control, chains };
    const worker = new Worker(new URL('../../support/prefix-index-worker.ts', import.meta.url), { workerData: order });
    const ended = new Promise<number[]>((resolve, reject) => worker.once('message', resolve).once('error', reject));
    const reader = openPrefixIndexReader(memory);
    let nBlocks = 0;
    const deadline = performance.now() + 15_000;
    for (let i = 0; Atomics.load(control, 1) < 20_000 && performance.now() < deadline; i++) {
      const at = i % chains.length;
      const match = reader.longestMatch(chains[at]!);
      for (let slot = 0; slot < chains.length; slot++) {
        // Another owner's chain is the same for the first 60 blocks only.
        if (slot !== at) expect(match.blocks(slot)).toBeLessThanOrEqual(60);
        nBlocks += match.blocks(slot);
      }
      expect(match.blocks(chains.length)).toBe(0);
      const none = reader.longestMatch(strangers[at]!);
      for (let slot = 0; slot < chains.length; slot++) expect(none.blocks(slot)).toBeLessThanOrEqual(60);
    }
    Atomics.store(control, 0, 1);
    const held = await ended;
    await worker.terminate();
    expect(Atomics.load(control, 1)).toBeGreaterThanOrEqual(20_000);
    expect(nBlocks).toBeGreaterThan(0);
    // Quiet again: exactly what the writer holds.
    for (const [at, chain] of chains.entries()) {
      const match = reader.longestMatch(chain);
      expect(held.map((_, slot) => match.blocks(slot))).toEqual(
        held.map((n, slot) => (slot === at ? n : Math.min(n, 60))),
      );
    }
  });

  test('an owner that gets the number of another one between two reads is not credited with its blocks', () => {
    const chain = chainOf(40, 1);
    /** The look-up's atomic operation after which the writer comes; undefined = it had fewer. */
    const matchedWhenDisturbed = (after: number): readonly number[] | undefined => {
      const { writer, reader } = open();
      const first = writer.openOwner(3);
      store(writer, first, chain);
      let nOperations = 0;
      const disturb = (): void => {
        if (++nOperations !== after) return;
        writer.retireOwner(first);
        for (let next: IndexOwner | null = null; next !== first;) {
          if (next !== null) writer.retireOwner(next);
          writer.sweep(1000);
          next = writer.openOwner(5);
        }
      };
      const { load, store: write } = Atomics;
      const spies = [
        jest.spyOn(Atomics, 'load').mockImplementation(((...args: Parameters<typeof load>) => {
          const value = load(...args);
          disturb();
          return value;
        }) as typeof load),
        jest.spyOn(Atomics, 'store').mockImplementation(((...args: Parameters<typeof write>) => {
          const value = write(...args);
          disturb();
          return value;
        }) as typeof write),
      ];
      try {
        const match = reader.longestMatch(chain);
        return nOperations < after ? undefined : [match.blocks(3), match.blocks(5)];
      } finally {
        for (const spy of spies) spy.mockRestore();
      }
    };
    let nDisturbed = 0;
    for (let found = matchedWhenDisturbed(1); found !== undefined; found = matchedWhenDisturbed(nDisturbed + 1)) {
      // Nothing is known of the first owner any more, and the other one has announced nothing.
      expect([nDisturbed, ...found]).toEqual([nDisturbed, 0, 0]);
      nDisturbed++;
    }
    expect(nDisturbed).toBeGreaterThan(3);
  });
});
