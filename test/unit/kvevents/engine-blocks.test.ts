import { describe, expect, test } from '@jest/globals';
import { batchOf, BLOCK, cleared, createIndexBench, promptOf, removed, stored } from '../../support/kv-events.ts';

const [b0, b1, b2] = [10, 11, 12] as const;
const A = 3;
const B = 700;

describe('memory', () => {
  test('that copies, adapters and parked blocks take is counted, and given back with them', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    const nBytes = (): number => bench.writer.stats().nBytes;
    const ids = Array.from({ length: 64 }, (_, i) => 100 + i);
    const all = stored(ids, null, promptOf(ids));
    source.apply(batchOf([all]));
    const once = nBytes();
    source.apply(batchOf([all]));
    expect(nBytes() - once).toBeGreaterThan(64 * 40);
    source.apply(batchOf([removed(ids)]));
    expect(nBytes()).toBe(once);
    const strays = Array.from({ length: 64 }, (_, i) => 1000 + i);
    source.apply(batchOf([stored(strays, 999, promptOf(strays))]));
    expect(nBytes() - once).toBeGreaterThan(64 * (BLOCK * 4 + 100));
    source.apply(batchOf([removed(strays)]));
    expect(nBytes()).toBe(once);
    const adapted = { extraKeys: undefined, loraName: 'L' };
    source.apply(batchOf([stored([7], null, promptOf([7]), adapted), all]));
    source.close();
    while (bench.engineBlocks.tidy(1000));
    expect(nBytes()).toBe(bench.emptyBytes);
  });

  test('of parked blocks is bounded by their tokens too', () => {
    const bench = createIndexBench({ limits: { maxParkedTokens: 10 * BLOCK } });
    const source = bench.source(A);
    const strays = Array.from({ length: 64 }, (_, i) => 1000 + i);
    const counts = source.apply(batchOf([stored(strays, 999, promptOf(strays))]));
    expect(counts).toMatchObject({ blocksParked: 64, blocksDropped: 54 });
    expect(source.stats()).toMatchObject({ nOrphans: 10, partial: true });
  });
});

test('a block whose name another one of the same event takes is forgotten for good', () => {
  const bench = createIndexBench();
  const source = bench.source(A);
  const ids = Array.from({ length: 30 }, (_, i) => 100 + i);
  source.apply(batchOf([stored(ids, null, promptOf(ids))]));
  // The last ones' names, for the first ones: whatever the engine means by them, it is not both.
  const renamed = [...ids.slice(-10), ...ids.slice(10)];
  expect(source.apply(batchOf([stored(renamed, null, promptOf(ids))]))).toMatchObject({ blocksConflicting: 10 });
  expect(bench.match(promptOf(ids)).blocks(A)).toBe(20);
  expect(source.stats()).toMatchObject({ nBlocks: 20, partial: true });
  source.close();
  while (bench.engineBlocks.tidy(1000));
  expect(bench.writer.stats()).toMatchObject({ nBlocks: 0, nBytes: bench.emptyBytes });
});

test('blocks with very many holes between them are forgotten from some hole on, for good', () => {
  const bench = createIndexBench({ maxBytes: 16 * 2 ** 20 });
  const source = bench.source(A);
  const other = bench.source(B);
  const ids = Array.from({ length: 12_000 }, (_, i) => 100 + i);
  const all = [stored(ids, null, promptOf(ids)), stored(ids, null, promptOf(ids), { medium: 'CPU' })];
  source.apply(batchOf([...all, all[0]!]));
  other.apply(batchOf(all));
  for (const medium of ['GPU', 'GPU', 'CPU']) {
    const odd = ids.filter((id) => id % 2 === 1);
    source.apply(batchOf([removed(odd, { medium })]));
  }
  const { nBlocks, partial } = source.stats();
  expect(partial).toBe(true);
  expect(nBlocks).toBeGreaterThan(1000);
  expect(nBlocks).toBeLessThan(5000);
  expect(bench.match(promptOf(ids)).blocks(A)).toBe(1);
  expect(bench.match(promptOf(ids)).blocks(B)).toBe(ids.length);
  // A name that was forgotten leads nowhere, and no copy is remembered.
  expect(source.apply(batchOf([stored([5], ids.at(-2)!, promptOf([5]))]))).toMatchObject({ blocksParked: 1 });
  source.apply(batchOf([all[0]!]));
  const tail = ids.slice(-5);
  expect(source.apply(batchOf([removed(tail)]))).toMatchObject({ blocksRemoved: 5 });
  expect(bench.match(promptOf(ids)).blocks(A)).toBe(ids.length - 5);
  for (const one of [source, other]) one.close();
  while (bench.engineBlocks.tidy(1000));
  // The table of names keeps its parts, not what was in them.
  const usual = createIndexBench({ maxBytes: 16 * 2 ** 20 });
  const only = usual.source(A);
  only.apply(batchOf(all));
  only.close();
  while (usual.engineBlocks.tidy(1000));
  expect(bench.writer.stats()).toEqual(usual.writer.stats());
});

describe('texts that an engine chooses', () => {
  test('count against the bound of parked blocks', () => {
    const bench = createIndexBench({ limits: { maxParkedTokens: 4000 } });
    const source = bench.source(A);
    const before = bench.writer.stats().nBytes;
    for (let id = 1; id <= 20; id++) {
      source.apply(batchOf([stored([id], 999, promptOf([id]), { extraKeys: [[`${id}`.padEnd(1000, 'x')]] })]));
    }
    expect(source.stats()).toMatchObject({ nOrphans: 7, partial: true });
    expect(bench.writer.stats().nBytes - before).toBeGreaterThan(7 * 2000);
  });

  test('of any length tell salts and adapters apart where hashes may not', () => {
    for (const [what, other] of [
      ['s', 't'],
      ['s'.repeat(500), `${'s'.repeat(499)}t`],
    ] as const) {
      const bench = createIndexBench();
      const source = bench.source(A);
      const salted = (cacheSalt: string) => ({ extraKeys: undefined, cacheSalt });
      source.apply(batchOf([stored([b0], null, promptOf([b0]), salted(what))]));
      source.apply(batchOf([stored([b1], b0, promptOf([b1]), salted(other))]));
      expect(bench.match(promptOf([b0, b1]), { extraKeys: [[what], null] }).blocks(A)).toBe(1);
      source.apply(batchOf([stored([b1], b0, promptOf([b1]), salted(what))]));
      expect(bench.match(promptOf([b0, b1]), { extraKeys: [[what], null] }).blocks(A)).toBe(2);
      const adapted = { extraKeys: undefined, loraName: what.padEnd(300, 'x') };
      for (let n = 0; n < 2; n++) source.apply(batchOf([stored([b2], null, promptOf([b2]), adapted)]));
      expect(bench.match(promptOf([b2]), { adapter: adapted.loraName }).blocks(A)).toBe(1);
    }
  });
});

describe('room', () => {
  test('that parked blocks take from the very block they hang on costs them, and nothing is mixed up or lost', () => {
    let nEvicted = 0;
    // One of these leaves just too little.
    for (let nBlocks = 130; nBlocks < 180; nBlocks += 3) {
      const bench = createIndexBench({ maxBytes: 90_000 });
      const source = bench.source(A);
      const ids = Array.from({ length: nBlocks }, (_, i) => 100 + i);
      const strays = Array.from({ length: 30 }, (_, i) => 5000 + i);
      source.apply(batchOf(strays.map((id) => stored([id], ids.at(-1)!, promptOf([id])))));
      source.apply(batchOf([stored(ids, null, promptOf(ids))]));
      nEvicted += bench.writer.stats().evictedBlocks;
      source.close();
      while (bench.engineBlocks.tidy(1000));
      expect([nBlocks, bench.writer.stats().nBytes]).toEqual([nBlocks, bench.emptyBytes]);
    }
    expect(nEvicted).toBeGreaterThan(0);
  });

  test('for owners never runs out, however often one batch clears and stores', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    const again = [cleared, stored([b0], null, promptOf([b0]))];
    const counts = source.apply(batchOf(Array.from({ length: 17_000 }, () => again).flat()));
    expect(counts).toMatchObject({ nCleared: 17_000, blocksStored: 17_000 });
    while (bench.engineBlocks.tidy(1000));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(1);
  });
});

describe('what others fail', () => {
  test('20: three blocks in one event are three blocks', () => {
    const bench = createIndexBench();
    const counts = bench.source(A).apply(batchOf([stored([b0, b1, b2], null, promptOf([b0, b1, b2]))]));
    const match = bench.match(promptOf([b0, b1, b2]));
    expect([match.nBlocks, match.blocks(A), match.blocksIn(A, 'gpu'), match.blocks(B)]).toEqual([3, 3, 3, 0]);
    expect(counts).toMatchObject({ nStored: 1, blocksStored: 3, blocksParked: 0 });
  });

  test('21: three events of one block each give the same index', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    source.apply(batchOf([stored([b1], b0, promptOf([b1])), stored([b2], b1, promptOf([b2]))]));
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(3);
    expect(source.stats()).toMatchObject({ nBlocks: 3, blockSizeTokens: BLOCK, nOrphans: 0 });
  });

  test('22: a block whose parent the pod does not hold is no match', () => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]))]));
    const other = bench.source(B);
    expect(other.apply(batchOf([stored([b1], b0, promptOf([b1]))]))).toMatchObject({ blocksParked: 1 });
    const match = bench.match(promptOf([b0, b1]));
    expect([match.blocks(A), match.blocks(B)]).toEqual([1, 0]);
  });

  test('23: a removal on one pod leaves the other pod alone', () => {
    const bench = createIndexBench();
    const a = bench.source(A);
    const b = bench.source(B);
    a.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    b.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    a.apply(batchOf([removed([b0])]));
    const match = bench.match(promptOf([b0]));
    expect([match.blocks(A), match.blocks(B)]).toEqual([0, 1]);
  });

  test('24: an unknown parent never becomes a root', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], 99, promptOf([b0]))]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
    expect(source.stats()).toMatchObject({ nBlocks: 0, nOrphans: 1 });
  });

  test('25: after a clear, a child of a cleared block is nothing, and no memory is kept', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    source.apply(batchOf([cleared, stored([b1], b0, promptOf([b1]))]));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(0);
    expect(bench.engineBlocks.tidy(1000)).toBe(false);
    const fresh = createIndexBench();
    fresh.source(A).apply(batchOf([stored([b1], b0, promptOf([b1]))]));
    expect(bench.writer.stats()).toEqual(fresh.writer.stats());
  });

  test('26: one block of a prompt of 200 is a match of one block', () => {
    const bench = createIndexBench();
    const ids = Array.from({ length: 200 }, (_, i) => 1000 + i);
    bench.source(A).apply(batchOf([stored([1000], null, promptOf([1000]))]));
    const match = bench.match(promptOf(ids));
    expect([match.nBlocks, match.blocks(A)]).toEqual([200, 1]);
  });

  test('29: the same tokens under an adapter belong to that adapter only', () => {
    const bench = createIndexBench();
    const lora = { loraName: 'L1', loraId: 1, extraKeys: [['L1']] };
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]), lora)]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
    expect(bench.match(promptOf([b0]), { adapter: 'L1' }).blocks(A)).toBe(1);
    expect(bench.match(promptOf([b0]), { adapter: 'L2' }).blocks(A)).toBe(0);
  });
});

describe('order and splits', () => {
  test('blocks that come before their parent are placed when it comes', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b2], b1, promptOf([b2])), stored([b1], b0, promptOf([b1]))]));
    expect(source.stats()).toMatchObject({ nBlocks: 0, nOrphans: 2 });
    expect(source.apply(batchOf([stored([b0], null, promptOf([b0]))]))).toMatchObject({ blocksPlaced: 2 });
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(3);
    expect(source.stats()).toMatchObject({ nBlocks: 3, nOrphans: 0 });
  });

  test('a parked block is gone with a clear: its parent, when it comes, brings nothing along', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b1], b0, promptOf([b1]))]));
    expect(source.stats()).toMatchObject({ nOrphans: 1 });
    source.apply(batchOf([{ type: 'AllBlocksCleared' }, stored([b0], null, promptOf([b0]))]));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(1);
    expect(source.stats()).toMatchObject({ nBlocks: 1, nOrphans: 0 });
  });

  test('a parked block that was removed meanwhile is not placed, what hangs on it is', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b1, b2], b0, promptOf([b1, b2])), removed([b1])]));
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(1);
    source.apply(batchOf([stored([b1], b0, promptOf([b1]))]));
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(3);
  });

  test('no more than the limit wait, the oldest go and the source is partial', () => {
    const bench = createIndexBench({ limits: { maxParkedBlocks: 3 } });
    const source = bench.source(A);
    const ids = [20, 21, 22, 23, 24];
    expect(source.apply(batchOf([stored(ids, b0, promptOf(ids))]))).toMatchObject({ blocksDropped: 2 });
    expect(source.stats()).toMatchObject({ nOrphans: 3, partial: true });
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    expect(bench.match(promptOf([b0, ...ids])).blocks(A)).toBe(1);
  });

  test('a hole in the middle ends the match there until it is filled', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0, b1, b2], null, promptOf([b0, b1, b2])), removed([b1])]));
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(1);
    source.apply(batchOf([stored([b1], b0, promptOf([b1]))]));
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(3);
  });

  test('a removed parent leaves its children where they are', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0, b1], null, promptOf([b0, b1])), removed([b0])]));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(0);
    source.apply(batchOf([stored([b2], b1, promptOf([b2])), stored([b0], null, promptOf([b0]))]));
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(3);
  });
});

describe('copies', () => {
  test('a block is gone when as many copies were removed as stored', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    const again = stored([b1], b0, promptOf([b1]));
    source.apply(batchOf([stored([b0, b1], null, promptOf([b0, b1])), again, again]));
    expect(source.apply(batchOf([removed([b1, b1])]))).toMatchObject({ blocksRemoved: 2 });
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(2);
    source.apply(batchOf([removed([b1])]));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(1);
  });

  test('a removal of nothing is counted and changes nothing, now and later', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    expect(source.apply(batchOf([removed([b1, b2]), removed([b0, b0])]))).toMatchObject({
      blocksRemoved: 1,
      blocksUnknownRemoved: 3,
    });
    source.apply(batchOf([stored([b0, b1], null, promptOf([b0, b1]))]));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(2);
  });

  test('ranks behind one slot count apart, and their blocks are not added up', () => {
    const bench = createIndexBench();
    const first = bench.source(A, 0);
    const second = bench.source(A, 1);
    first.apply(batchOf([stored([b0], null, promptOf([b0]))], 0));
    second.apply(batchOf([stored([b0, b1], null, promptOf([b0, b1]))], 1));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(2);
    second.apply(batchOf([removed([b1, b0])], 1));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(1);
    second.apply(batchOf([stored([b1], b0, promptOf([b1]))], 1));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(1);
  });

  test('a batch of another rank of the same source is that rank’s', () => {
    const bench = createIndexBench();
    const source = bench.source(A, 0);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))], 0));
    source.apply(batchOf([stored([b0], null, promptOf([b0]))], 1));
    source.apply(batchOf([cleared], 0));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(1);
    source.apply(batchOf([removed([b0])], 1));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
  });
});

describe('media', () => {
  test('a block counts on its fastest medium, and only leaves when all have dropped it', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0, b1, b2], null, promptOf([b0, b1, b2]))]));
    source.apply(batchOf([stored([b0, b1], null, promptOf([b0, b1]), { medium: 'CPU' })]));
    source.apply(batchOf([removed([b2, b1])]));
    const match = bench.match(promptOf([b0, b1, b2]));
    expect([match.blocks(A), match.blocksIn(A, 'gpu'), match.blocksIn(A, 'host')]).toEqual([2, 1, 1]);
    source.apply(batchOf([removed([b1], { medium: 'CPU' })]));
    expect(bench.match(promptOf([b0, b1, b2])).blocks(A)).toBe(1);
  });

  test.each([
    [null, 'gpu'],
    ['GPU', 'gpu'],
    ['CPU', 'host'],
    ['CPU_PINNED', 'host'],
    ['STORAGE', 'disk'],
    ['DISK', 'disk'],
    ['EXTERNAL', 'disk'],
  ] as const)('medium %s is %s', (medium, found) => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]), { medium })]));
    expect(bench.match(promptOf([b0])).blocksIn(A, found)).toBe(1);
  });

  test('placeholders are joined by engine hash, whichever comes first', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    const placeholder = (hash: number) =>
      stored([hash], null, new Uint32Array(0), { blockSizeTokens: 0, medium: 'CPU', extraKeys: undefined });
    source.apply(batchOf([placeholder(b1), stored([b0, b1], null, promptOf([b0, b1])), placeholder(b0)]));
    source.apply(batchOf([removed([b1, b0])]));
    const match = bench.match(promptOf([b0, b1]));
    expect([match.blocks(A), match.blocksIn(A, 'host')]).toEqual([2, 2]);
    expect(source.stats()).toMatchObject({ reportsExtraKeys: 'yes', nOrphans: 0 });
  });
});

describe('what cannot be indexed', () => {
  test('an engine with a sliding-window group promises nothing', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    expect(source.stats().indexable).toBe(true);
    const window = stored([b0], null, promptOf([b0]), { groupIdx: 1, kvCacheSpecKind: 'sliding_window' });
    expect(source.apply(batchOf([window]))).toMatchObject({ blocksUnindexable: 1 });
    expect(source.stats()).toMatchObject({ indexable: false, nBlocks: 0 });
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
    source.clear();
    expect(source.stats().indexable).toBe(true);
  });

  test.each(['full_attention', 'mla_attention', null])('a single group of kind %s is indexed', (kvCacheSpecKind) => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]), { kvCacheSpecKind, groupIdx: 2 })]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(1);
  });

  test('a removal in another group does not touch the mirrored one', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0])), removed([b0], { groupIdx: 1 })]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(1);
  });

  test.each([
    ['fewer hashes than blocks of tokens', { tokenIds: promptOf([b0, b1]) }],
    ['extra keys for other blocks', { extraKeys: [null, null] }],
    ['a block size of 0', { blockSizeTokens: 0 }],
    ['a block size beyond reason', { blockSizeTokens: 70_000, tokenIds: new Uint32Array(70_000) }],
  ])('%s: not indexed by position', (_, more) => {
    const bench = createIndexBench();
    const source = bench.source(A);
    expect(source.apply(batchOf([stored([b0], null, promptOf([b0]), more)]))).toMatchObject({ blocksSparse: 1 });
    expect(source.stats()).toMatchObject({ nBlocks: 0, blockSizeTokens: null });
  });

  test('a local LoRA id without a name matches no request', () => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]), { loraId: 3 })]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
    expect(bench.match(promptOf([b0]), { adapter: '3' }).blocks(A)).toBe(0);
  });

  test('a hash that comes to name another block is not believed for the first any more', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    expect(source.apply(batchOf([stored([b0], null, promptOf([b1]))]))).toMatchObject({ blocksConflicting: 1 });
    expect([bench.match(promptOf([b0])).blocks(A), bench.match(promptOf([b1])).blocks(A)]).toEqual([0, 1]);
    source.apply(batchOf([removed([b0])]));
    expect(bench.match(promptOf([b1])).blocks(A)).toBe(0);
  });
});

describe('what is learnt about a source', () => {
  test('a new block size forgets the blocks of the old one', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    const larger = stored([b1], null, promptOf([b1], 32), { blockSizeTokens: 32 });
    expect(source.apply(batchOf([larger]))).toMatchObject({ blockSizeChanges: 1, blocksStored: 1 });
    expect(source.stats()).toMatchObject({ blockSizeTokens: 32, nBlocks: 1 });
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
    expect(bench.match(promptOf([b1], 32), { size: 32 }).blocks(A)).toBe(1);
  });

  test('another block size in another medium stays out and changes nothing', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    const offloaded = stored([99], null, promptOf([b0], 256), { blockSizeTokens: 256, medium: 'CPU' });
    expect(source.apply(batchOf([offloaded]))).toMatchObject({ blocksUnindexable: 1 });
    expect(source.stats()).toMatchObject({ blockSizeTokens: BLOCK, nBlocks: 1 });
  });

  test('salts belong to the first block and to their tenant', () => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0, b1], null, promptOf([b0, b1]), { extraKeys: [['t1'], null] })]));
    const match = (salt: string | null) =>
      bench.match(promptOf([b0, b1]), { extraKeys: salt === null ? null : [[salt], null] }).blocks(A);
    expect([match(null), match('t1'), match('t2')]).toEqual([0, 2, 0]);
  });

  test('whether extra keys are reported: unknown, yes, and no as soon as one event lacks them', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    expect(source.stats().reportsExtraKeys).toBe('unknown');
    source.apply(batchOf([stored([b0], null, promptOf([b0]))]));
    expect(source.stats().reportsExtraKeys).toBe('yes');
    source.apply(batchOf([stored([b1], b0, promptOf([b1]), { extraKeys: undefined })]));
    expect(source.stats().reportsExtraKeys).toBe('no');
    source.clear();
    expect(source.stats().reportsExtraKeys).toBe('unknown');
  });

  test('engines that name blocks differently, alike, or by small numbers do not disturb each other', () => {
    const bench = createIndexBench();
    const ids = [b0, b1, b2];
    const sources = [0, 1, 2].map((slot) => bench.source(slot));
    sources[0]!.apply(batchOf([stored([1, 2, 3], null, promptOf(ids))]));
    sources[1]!.apply(batchOf([stored([3, 2, 1], null, promptOf(ids))]));
    sources[2]!.apply(batchOf([stored([1, 2, 3], null, promptOf(ids))]));
    sources[0]!.apply(batchOf([removed([3])]));
    sources[1]!.apply(batchOf([removed([1, 2])]));
    const match = bench.match(promptOf(ids));
    expect([0, 1, 2].map((slot) => match.blocks(slot))).toEqual([2, 1, 3]);
  });
});

describe('SGLang: salt and adapter are told beside hashes that may not cover them', () => {
  const plain = { extraKeys: undefined };
  const salted = (cacheSalt: string) => ({ ...plain, cacheSalt });
  const of = (bench: ReturnType<typeof createIndexBench>, ids: number[], salt: string | null, adapter?: string) =>
    bench.match(promptOf(ids), { adapter: adapter ?? null, extraKeys: salt === null ? null : ids.map((_, i) => (i === 0 ? [salt] : null)) }).blocks(A); // prettier-ignore

  test('blocks of a salted prompt belong to its tenant and to nobody else', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]), salted('t1'))]));
    source.apply(batchOf([stored([b1], b0, promptOf([b1]), salted('t1'))]));
    expect([of(bench, [b0, b1], null), of(bench, [b0, b1], 't1'), of(bench, [b0, b1], 't2')]).toEqual([0, 2, 0]);
    source.apply(batchOf([removed([b1])]));
    expect(of(bench, [b0, b1], 't1')).toBe(1);
  });

  test('a salt told only with the first event is that of all that follows', () => {
    const bench = createIndexBench();
    const events = [stored([b0], null, promptOf([b0]), salted('t1')), stored([b1], b0, promptOf([b1]), plain)];
    bench.source(A).apply(batchOf(events));
    expect([of(bench, [b0, b1], null), of(bench, [b0, b1], 't1')]).toEqual([0, 2]);
  });

  test('a salt that is also among the extra keys counts once', () => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]), { cacheSalt: 't1', extraKeys: [['t1']] })]));
    expect([of(bench, [b0], null), of(bench, [b0], 't1')]).toEqual([0, 1]);
  });

  test.each([
    ['salts', salted('t1'), 't1', undefined],
    ['adapters', { ...plain, loraName: 'L' }, null, 'L'],
  ])('one hash in two namespaces (%s): the last one announced is meant, a child of the other is not placed', (_, more, salt, adapter) => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]), plain), stored([b1], b0, promptOf([b1]), plain)]));
    const second = source.apply(batchOf([stored([b0], null, promptOf([b0]), more)]));
    expect(second).toMatchObject({ blocksConflicting: 1 });
    expect([of(bench, [b0, b1], null), of(bench, [b0, b1], salt, adapter)]).toEqual([0, 1]);
    // The plain prompt goes on; the block before it is now known as the other one.
    source.apply(batchOf([stored([b2], b0, promptOf([b2]), plain)]));
    expect([of(bench, [b0, b2], null), of(bench, [b0, b2], salt, adapter)]).toEqual([0, 1]);
    source.apply(batchOf([removed([b0])]));
    expect([of(bench, [b0], null), of(bench, [b0], salt, adapter)]).toEqual([0, 0]);
  }); // prettier-ignore

  test('a block that waits for its parent is not placed behind one of another namespace', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b1], b0, promptOf([b1]), salted('t1'))]));
    source.apply(batchOf([stored([b0], null, promptOf([b0]), plain)]));
    expect([of(bench, [b0, b1], null), of(bench, [b0, b1], 't1')]).toEqual([1, 0]);
    expect(source.stats()).toMatchObject({ partial: true, nOrphans: 0 });
  });
});

describe('a parent of 0', () => {
  const zero = { parentBlockHash: [0, 0] as const };
  test('is no parent for tokens on the GPU (llm-d’s simulator)', () => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]), zero), stored([b1], b0, promptOf([b1]))]));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(2);
  });

  test('is unknown for a storage tier', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]), { ...zero, medium: 'SHARED_STORAGE' })]));
    expect([bench.match(promptOf([b0])).blocks(A), source.stats().nOrphans]).toEqual([0, 1]);
  });

  test('is a block for an engine that counts from 0', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    const blockHashes = Uint32Array.of(0, 0);
    source.apply(batchOf([stored([b0], null, promptOf([b0]), { blockHashes })]));
    source.apply(batchOf([stored([b1], null, promptOf([b1]), zero)]));
    expect([bench.match(promptOf([b0, b1])).blocks(A), bench.match(promptOf([b1])).blocks(A)]).toEqual([2, 0]);
    source.apply(batchOf([removed([], { blockHashes })]));
    expect(bench.match(promptOf([b0, b1])).blocks(A)).toBe(0);
  });
});

describe('groups and tiers that are not named', () => {
  test.each([
    ['fewer hashes than tokens', stored([b1], b0, promptOf([b1, b2]), { groupIdx: null, kvCacheSpecKind: null })],
    ['no hash at all', stored([], b0, promptOf([b1]), { groupIdx: null, kvCacheSpecKind: null })],
  ])('a sparse event with %s gives a second group away: the engine promises nothing', (_, sparse) => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]), { groupIdx: null, kvCacheSpecKind: null })]));
    source.apply(batchOf([sparse]));
    expect(source.stats()).toMatchObject({ indexable: false, nBlocks: 0 });
  });

  test('a removal that names no group may mean any', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    source.apply(batchOf([stored([b0], null, promptOf([b0]), { groupIdx: 2 }), removed([b0], { groupIdx: null })]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
  });

  test('what lies elsewhere is as slow as a disk, and leaves when it is removed there', () => {
    const bench = createIndexBench();
    const source = bench.source(A);
    const remote = { medium: 'CPU', locality: 'REMOTE' };
    source.apply(batchOf([stored([b0], null, promptOf([b0]), remote)]));
    expect(bench.match(promptOf([b0])).blocksIn(A, 'disk')).toBe(1);
    source.apply(batchOf([removed([b0], { medium: 'CPU' })]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(1);
    source.apply(batchOf([removed([b0], remote)]));
    expect(bench.match(promptOf([b0])).blocks(A)).toBe(0);
  });

  test('an empty adapter name, medium or salt is none', () => {
    const bench = createIndexBench();
    bench.source(A).apply(batchOf([stored([b0], null, promptOf([b0]), { loraName: '', medium: '', cacheSalt: '' })]));
    expect(bench.match(promptOf([b0])).blocksIn(A, 'gpu')).toBe(1);
  });
});
