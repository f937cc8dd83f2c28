import { describe, expect, test } from '@jest/globals';
import type { BlockHashes } from '../../../src/prefix/block-hash.ts';
import { createEvictionAges } from '../../../src/prefix/eviction-ages.ts';
import { createVirtualClock } from '../../../src/replay/virtual-clock.ts';
import { createRandom } from '../../support/kv-events.ts';

/** Blocks with these low words. */
const blocks = (...lows: number[]): BlockHashes => Uint32Array.from(lows.flatMap((low) => [1, low])) as BlockHashes;

function anAges(capacity: number | null) {
  const clock = createVirtualClock();
  const cache = { capacity };
  const ages = createEvictionAges(clock, { capacityBlocks: () => cache.capacity });
  return { ages, clock, cache };
}

describe('the age of what a prompt pushes out', () => {
  test('is not known of a slot nothing was sent to, of a cache of unknown size, and of another process', () => {
    const { ages, clock, cache } = anAges(4);
    expect(ages.ageMs(1, 4)).toBeNull();
    ages.used(1, blocks(1, 2, 3, 4));
    clock.advanceTo(500);
    expect(ages.ageMs(1, 1)).toBe(500);
    expect(ages.ageMs(2, 1)).toBeNull();
    ages.forget(1);
    expect(ages.ageMs(1, 1)).toBeNull();
    ages.used(1, blocks(1, 2, 3, 4));
    cache.capacity = null;
    expect(ages.ageMs(1, 1)).toBeNull();
    ages.used(1, blocks(5));
    cache.capacity = 4;
    expect(ages.ageMs(1, 1)).toBeNull();
  });

  test('is of the youngest block that goes; while there is room nothing does', () => {
    const { ages, clock } = anAges(4);
    ages.used(1, blocks(1, 2));
    clock.advanceTo(100);
    ages.used(1, blocks(3));
    clock.advanceTo(300);
    expect([0, 1, 2, 3, 4].map((n) => ages.ageMs(1, n))).toEqual([null, null, 300, 300, 200]);
  });

  test('a block used again is as young as its last use, and the end of a prompt goes before its start', () => {
    const { ages, clock } = anAges(3);
    ages.used(1, blocks(1, 2, 3));
    clock.advanceTo(100);
    ages.used(1, blocks(1));
    clock.advanceTo(150);
    ages.used(1, blocks(4));
    // 3 went for 4; left are 2 of the first moment, 1 and 4.
    clock.advanceTo(200);
    expect([1, 2, 3].map((n) => ages.ageMs(1, n))).toEqual([200, 100, 50]);
  });

  test('of a large cache a sample tells it within a few per cent of all blocks', () => {
    const capacity = 20_000;
    const { ages, clock } = anAges(capacity);
    const random = createRandom(11);
    const lastUse = new Map<number, number>();
    for (let prompt = 0; prompt < 3000; prompt++) {
      clock.advanceTo(100 * prompt);
      // A few begin as an earlier one did.
      const first = 1000 * (random(5) === 0 ? random(prompt + 1) : prompt);
      const lows = Array.from({ length: 10 + random(80) }, (_, i) => Math.imul(first + i, 0x9e3779b1) >>> 0);
      ages.used(1, blocks(...lows));
      for (const low of lows.toReversed()) {
        lastUse.delete(low);
        lastUse.set(low, clock.nowMs());
      }
      for (const low of lastUse.keys()) {
        if (lastUse.size <= capacity) break;
        lastUse.delete(low);
      }
    }
    const uses = [...lastUse.values()];
    for (const nBlocks of [200, 1000, 5000]) {
      const exactMs = clock.nowMs() - uses[nBlocks - 1 - (capacity - uses.length)]!;
      expect(Math.abs(ages.ageMs(1, nBlocks)! / exactMs - 1)).toBeLessThan(0.1);
    }
  });
});
