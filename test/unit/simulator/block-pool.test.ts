import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { noneHashOf, prefixTokenIds, type ChainRoot } from '../../../src/simulator/block-chain.ts';
import { BlockPool, type PoolEvent, type UncachedBlocks } from '../../../src/simulator/block-pool.ts';
import { createSequence, createSequenceCache, type Sequence } from '../../../src/simulator/sequence-cache.ts';

const BLOCK = 4;

function aRoot(parts: Partial<ChainRoot> = {}): ChainRoot {
  return { noneHash: noneHashOf(1), lora: null, cacheSalt: null, features: [], ...parts };
}

/** `nBlocks` usable blocks of 4 tokens. */
function aCache(nBlocks: number, uncached: UncachedBlocks = 'reused_first') {
  const pool = new BlockPool(nBlocks + 1, uncached);
  const cache = createSequenceCache(pool, BLOCK);
  return {
    pool,
    cache,
    /** Looks the tokens up and makes room for all of them, as an engine with one step per prompt does. */
    admit(tokenIds: readonly number[], root = aRoot()): { sequence: Sequence; nCached: number } | 'no_room' {
      const sequence = createSequence(root, tokenIds);
      const hits = cache.lookUp(sequence);
      if (cache.allocate(sequence, tokenIds.length, hits) === 'no_room') return 'no_room';
      return { sequence, nCached: hits.length * BLOCK };
    },
    /** Admits, which must succeed, and releases. Gives what happened, blocks named by the last token of their prefix. */
    pass(tokenIds: readonly number[], root = aRoot()): string[] {
      const admitted = this.admit(tokenIds, root);
      if (admitted === 'no_room') throw new Error('no room');
      cache.release(admitted.sequence);
      return pool.takeEvents().map(shortly);
    },
  };
}

function shortly(event: PoolEvent): string {
  if (event.type === 'AllBlocksCleared') return 'clear';
  if (event.type === 'BlockRemoved') return `-${event.block.tokenIds.at(-1)}`;
  return event.blocks.map((block) => `+${block.tokenIds.at(-1)}`).join('');
}

/** first, first+1, … */
function tokens(first: number, n: number): number[] {
  return Array.from({ length: n }, (_, i) => first + i);
}

describe('the block pool', () => {
  test('stores full blocks only, as one event', () => {
    expect(aCache(10).pass(tokens(1, 11))).toEqual(['+4+8']);
  });

  test('finds a prefix again and announces only what is new', () => {
    const it = aCache(10);
    expect(it.pass(tokens(1, 9))).toEqual(['+4+8']);
    expect(it.pass(tokens(1, 14))).toEqual(['+12']);
  });

  test('computes the last block of a fully cached prompt again, into a second copy', () => {
    const it = aCache(10);
    it.pass(tokens(1, 8));
    expect(it.pass(tokens(1, 8))).toEqual(['+8']);
    const copies = [...it.pool.resident()].map(({ block, nCopies }) => [block.tokenIds.at(-1), nCopies]);
    expect(copies).toEqual([
      [4, 1],
      [8, 2],
    ]);
  });

  test('evicts the least recently used prompt, tail first, before it stores', () => {
    const it = aCache(4);
    it.pass(tokens(1, 8));
    it.pass(tokens(101, 8));
    expect(it.pass(tokens(201, 8))).toEqual(['-8', '-4', '+204+208']);
  });

  test('a prompt that was used again is evicted after one that was not', () => {
    const it = aCache(5);
    it.pass(tokens(1, 8));
    it.pass(tokens(101, 8));
    it.pass(tokens(1, 9));
    expect(it.pass(tokens(201, 8))).toEqual(['-108', '+204+208']);
    expect(it.pass(tokens(301, 8))).toEqual(['-104', '-8', '+304+308']);
  });

  test('newer engines reuse blocks without content first, older ones in order', () => {
    const newer = aCache(7, 'reused_first');
    newer.pass(tokens(1, 9));
    newer.pass(tokens(101, 9));
    expect(newer.pass(tokens(201, 9))).toEqual(['+204+208']);
    const older = aCache(7, 'in_order');
    older.pass(tokens(1, 9));
    older.pass(tokens(101, 9));
    expect(older.pass(tokens(201, 9))).toEqual(['-8', '+204+208']);
  });

  test('blocks in use are never evicted: without room nothing changes', () => {
    const it = aCache(4);
    const held = it.admit(tokens(1, 12));
    it.pool.takeEvents();
    expect(it.admit(tokens(101, 8))).toBe('no_room');
    expect(it.pool.takeEvents()).toEqual([]);
    expect(it.pool.nFree).toBe(1);
    expect(held).toMatchObject({ nCached: 0 });
  });

  test('the prefix found for a prompt does not count as room for the rest of it', () => {
    const it = aCache(3);
    it.pass(tokens(1, 8));
    expect(it.admit(tokens(1, 16))).toBe('no_room');
    expect(it.pass(tokens(1, 12))).toEqual(['+12']);
  });

  test('a reset forgets everything, and is refused while a block is in use', () => {
    const it = aCache(4);
    const held = it.admit(tokens(1, 8));
    expect(it.pool.reset()).toBe('in_use');
    if (held !== 'no_room') it.cache.release(held.sequence);
    it.pool.takeEvents();
    expect(it.pool.reset()).toBe('done');
    expect(it.pool.reset()).toBe('done');
    expect(it.pool.takeEvents().map(shortly)).toEqual(['clear', 'clear']);
    expect(it.pass(tokens(1, 8))).toEqual(['+4+8']);
  });

  test('salt, adapter and image tell equal tokens apart', () => {
    const it = aCache(20);
    const roots = [
      aRoot(),
      aRoot({ cacheSalt: 'tenant-a' }),
      aRoot({ cacheSalt: 'tenant-b' }),
      aRoot({ lora: { id: 1, name: 'sql' } }),
      aRoot({ features: [{ identifier: 'cat', offset: 2, length: 4 }] }),
      aRoot({ features: [{ identifier: 'dog', offset: 2, length: 4 }] }),
    ];
    for (const root of roots) expect(it.pass(tokens(1, 8), root)).toEqual(['+4+8']);
  });

  test('extra keys are the adapter in every block, the salt in the first, images where they are', () => {
    const it = aCache(20);
    it.pass(
      tokens(1, 12),
      aRoot({
        cacheSalt: 'tenant-a',
        lora: { id: 1, name: 'sql' },
        features: [{ identifier: 'cat', offset: 3, length: 3 }],
      }),
    );
    expect([...it.pool.resident()].map(({ block }) => block.extraKeys)).toEqual([
      ['sql', ['cat', 3], 'tenant-a'],
      ['sql', ['cat', -1]],
      ['sql'],
    ]);
  });
});

/** The same cache without linked lists, maps or copies: lists of prefixes, searched from the start. */
class NaiveCache {
  /** Least recently used first. */
  free: { id: number; prefix: string | null }[];
  readonly held = new Map<number, { users: number; prefix: string | null; order: number }>();
  readonly order = new Map<number, number>();
  #stored = 0;
  readonly uncached: UncachedBlocks;

  constructor(nBlocks: number, uncached: UncachedBlocks) {
    this.free = Array.from({ length: nBlocks }, (_, id) => ({ id, prefix: null }));
    this.uncached = uncached;
  }

  admit(tokenIds: readonly number[]): { ids: number[]; nHits: number; log: string[] } | 'no_room' {
    const nFull = Math.floor(tokenIds.length / BLOCK);
    const nAll = Math.ceil(tokenIds.length / BLOCK);
    const hits: number[] = [];
    while (hits.length < Math.floor((tokenIds.length - 1) / BLOCK)) {
      const id = this.find(tokenIds.slice(0, (hits.length + 1) * BLOCK).join());
      if (id === undefined) break;
      hits.push(id);
    }
    const nFreeHits = hits.filter((id) => this.free.some((block) => block.id === id)).length;
    if (nAll - hits.length + nFreeHits > this.free.length) return 'no_room';
    for (const id of hits) {
      const at = this.free.findIndex((block) => block.id === id);
      if (at >= 0) {
        const [block] = this.free.splice(at, 1);
        this.held.set(id, { users: 1, prefix: block!.prefix, order: this.order.get(id)! });
      } else this.held.get(id)!.users++;
    }
    const log: string[] = [];
    const ids = [...hits];
    while (ids.length < nAll) {
      const block = this.free.shift()!;
      if (block.prefix !== null) log.push(`-${block.prefix}`);
      this.held.set(block.id, { users: 1, prefix: null, order: 0 });
      ids.push(block.id);
    }
    for (let i = hits.length; i < nFull; i++) {
      const prefix = tokenIds.slice(0, (i + 1) * BLOCK).join();
      this.held.get(ids[i]!)!.prefix = prefix;
      this.order.set(ids[i]!, ++this.#stored);
      log.push(`+${prefix}`);
    }
    return { ids, nHits: hits.length, log };
  }

  release(ids: readonly number[]): void {
    for (const id of [...ids].reverse()) {
      const block = this.held.get(id)!;
      if (--block.users > 0) continue;
      this.held.delete(id);
      if (block.prefix === null && this.uncached === 'reused_first') this.free.unshift({ id, prefix: null });
      else this.free.push({ id, prefix: block.prefix });
    }
  }

  /** The copy that was stored first. */
  find(prefix: string): number | undefined {
    const copies = [
      ...this.free.filter((block) => block.prefix === prefix).map((block) => block.id),
      ...[...this.held].filter(([, block]) => block.prefix === prefix).map(([id]) => id),
    ];
    return copies.sort((a, b) => this.order.get(a)! - this.order.get(b)!)[0];
  }

  resident(): string[] {
    const prefixes = [...this.free, ...this.held.values()].map((block) => block.prefix);
    return prefixes.filter((prefix) => prefix !== null).sort();
  }
}

describe('the block pool against a naive cache', () => {
  /** Few distinct tokens, so that prefixes are shared. */
  const aPrompt = fc.array(fc.integer({ min: 0, max: 1 }), { minLength: 1, maxLength: 22 });
  const aStep = fc.record({ prompt: aPrompt, releaseAt: fc.nat({ max: 5 }) });
  const uncached = fc.constantFrom<UncachedBlocks>('reused_first', 'in_order');

  test('same hits, same events, same resident copies on random histories', () => {
    fc.assert(
      fc.property(fc.array(aStep, { maxLength: 40 }), fc.integer({ min: 2, max: 16 }), uncached, (steps, n, mode) => {
        const real = aCache(n, mode);
        const naive = new NaiveCache(n, mode);
        const open: { sequence: Sequence; ids: number[] }[] = [];
        for (const { prompt, releaseAt } of steps) {
          const admitted = real.admit(prompt);
          const expected = naive.admit(prompt);
          const log = real.pool.takeEvents().flatMap(prefixes);
          if (admitted === 'no_room' || expected === 'no_room') {
            expect(admitted).toBe(expected);
            expect(log).toEqual([]);
          } else {
            expect(admitted.nCached).toBe(expected.nHits * BLOCK);
            expect(log).toEqual(expected.log);
            open.push({ sequence: admitted.sequence, ids: expected.ids });
          }
          // Up to six requests stay open at a time.
          while (open.length > releaseAt) {
            const { sequence, ids } = open.splice(releaseAt % open.length, 1)[0]!;
            real.cache.release(sequence);
            naive.release(ids);
          }
          expect(real.pool.nFree).toBe(naive.free.length);
          expect(residentPrefixes(real.pool)).toEqual(naive.resident());
        }
      }),
      { numRuns: 300 },
    );
  });

  test('the parent of a store is resident, and events alone give the resident copies', () => {
    fc.assert(
      fc.property(fc.array(aStep, { maxLength: 40 }), fc.integer({ min: 2, max: 16 }), uncached, (steps, n, mode) => {
        const real = aCache(n, mode);
        const copies = new Map<string, number>();
        const open: Sequence[] = [];
        for (const { prompt, releaseAt } of steps) {
          const admitted = real.admit(prompt);
          if (admitted !== 'no_room') open.push(admitted.sequence);
          for (const event of real.pool.takeEvents()) {
            if (event.type === 'BlockStored' && event.parent !== null) {
              expect(copies.get(prefixTokenIds(event.parent).join())).toBeGreaterThan(0);
            }
            for (const change of prefixes(event)) {
              const key = change.slice(1);
              copies.set(key, (copies.get(key) ?? 0) + (change.startsWith('+') ? 1 : -1));
            }
          }
          while (open.length > releaseAt) real.cache.release(open.splice(releaseAt % open.length, 1)[0]!);
        }
        const fromEvents = [...copies].flatMap(([key, count]) => Array.from({ length: count }, () => key)).sort();
        expect(residentPrefixes(real.pool)).toEqual(fromEvents);
      }),
      { numRuns: 300 },
    );
  });

  function prefixes(event: PoolEvent): string[] {
    if (event.type === 'AllBlocksCleared') return [];
    if (event.type === 'BlockRemoved') return [`-${prefixTokenIds(event.block).join()}`];
    return event.blocks.map((block) => `+${prefixTokenIds(block).join()}`);
  }

  function residentPrefixes(pool: BlockPool): string[] {
    return [...pool.resident()]
      .flatMap(({ block, nCopies }) => Array.from({ length: nCopies }, () => prefixTokenIds(block).join()))
      .sort();
  }
});
