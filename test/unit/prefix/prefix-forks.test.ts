import { describe, expect, test } from '@jest/globals';
import type { BlockHashes } from '../../../src/prefix/block-hash.ts';
import { createPrefixForks, forkKey } from '../../../src/prefix/prefix-forks.ts';
import { createVirtualClock } from '../../../src/replay/virtual-clock.ts';

const CHAIN = new Uint32Array([1, 2, 3, 4, 5, 6]) as BlockHashes;

describe('where prompts part ways', () => {
  test('every prompt that ended at a block counts there, and nowhere else', () => {
    const forks = createPrefixForks(createVirtualClock());
    forks.add(forkKey(CHAIN, 2));
    forks.add(forkKey(CHAIN, 2));
    expect(forks.count(forkKey(CHAIN, 2))).toBe(2);
    expect(forks.count(forkKey(CHAIN, 1))).toBe(0);
    expect(forks.count(forkKey(CHAIN, 3))).toBe(0);
  });

  test('a prompt of which nothing was found has parted from nobody', () => {
    const forks = createPrefixForks(createVirtualClock());
    expect(forkKey(CHAIN, 0)).toBeNull();
    forks.add(null);
    expect(forks.count(null)).toBe(0);
  });

  test('what is long ago counts little', () => {
    const clock = createVirtualClock();
    const forks = createPrefixForks(clock);
    forks.add(forkKey(CHAIN, 1));
    clock.advanceTo(60_000);
    expect(forks.count(forkKey(CHAIN, 1))).toBeCloseTo(Math.exp(-1));
    forks.add(forkKey(CHAIN, 1));
    expect(forks.count(forkKey(CHAIN, 1))).toBeCloseTo(1 + Math.exp(-1));
  });

  test('of many ends the longest unused are forgotten', () => {
    const forks = createPrefixForks(createVirtualClock());
    forks.add(1);
    forks.add(2);
    forks.add(1);
    for (let key = 3; key <= 16_385; key++) forks.add(key);
    expect(forks.count(1)).toBe(2);
    expect(forks.count(2)).toBe(0);
  });
});
