/** How ingest grows with the number of engines: as ratios of the best of several rounds. */
import { describe, expect, test } from '@jest/globals';
import { batchOf, createIndexBench, promptOf, removed, stored } from '../../support/kv-events.ts';

const BLOCKS = 8;

/** Time of one event, with so many engines that each hold something of their own. */
function eventMs(nEngines: number): number {
  const bench = createIndexBench({ maxBytes: 16 * 2 ** 20 });
  const sources = Array.from({ length: nEngines }, (_, slot) => bench.source(slot));
  const chains = sources.map((_, i) => Array.from({ length: BLOCKS }, (__, k) => 1000 + i * BLOCKS + k));
  const stores = chains.map((ids) => batchOf([stored(ids, null, promptOf(ids))]));
  const removals = chains.map((ids) => batchOf([removed(ids.toReversed())]));
  let least = Infinity;
  for (let round = 0; round < 20; round++) {
    const start = performance.now();
    for (let i = 0; i < 64; i++) {
      const at = (round * 64 + i) % nEngines;
      sources[at]!.apply(stores[at]!);
      sources[at]!.apply(removals[at]!);
    }
    least = Math.min(least, performance.now() - start);
  }
  return least / 128;
}

describe('ingest', () => {
  test('of one event costs about the same beside 16 engines and beside 1000', () => {
    eventMs(16);
    const ratio = eventMs(1000) / eventMs(16);
    // A look through all engines would take sixty times as long.
    expect(ratio).toBeLessThan(15);
  });
});
