import { describe, expect, test } from '@jest/globals';
import { batchOf, BLOCK, cleared, createIndexBench, promptOf, removed, stored } from '../../support/kv-events.ts';

const [b0, b1, b2] = [10, 11, 12] as const;
const A = 3;
const B = 700;

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
    expect(bench.writer.stats()).toMatchObject({ nBlocks: 0, nBytes: bench.emptyBytes });
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
