import { describe, expect, test } from '@jest/globals';
import type { BlockHashes } from '../../../src/prefix/block-hash.ts';
import { createBookedRuns } from '../../../src/prefix/booked-runs.ts';

/** A chain spelt as a text: equal beginnings give equal keys. */
function aChain(text: string): BlockHashes {
  const words = new Uint32Array(2 * text.length);
  let state = 17;
  for (let i = 0; i < text.length; i++) {
    state = Math.imul(state ^ text.charCodeAt(i), 0x01000193) >>> 0;
    words[2 * i] = Math.imul(state, 0x9e3779b1) >>> 0;
    words[2 * i + 1] = state;
  }
  return words as BlockHashes;
}

describe('runs of booked blocks', () => {
  test('a chain is one run however long it is, and parts only where another leaves it', () => {
    const runs = createBookedRuns();
    expect(runs.add(0, aChain('a'.repeat(1000)))).toBe(1000);
    expect(runs.add(1, aChain('a'.repeat(1000)))).toBe(1000);
    expect(runs.nRuns).toBe(1);
    expect(runs.add(0, aChain('aaab'))).toBe(1);
    expect(runs.add(0, aChain('aa'))).toBe(0);
    // aa, a, a…, b
    expect(runs.nRuns).toBe(4);
  });

  test('nothing is left when every chain is taken back, in whatever order', () => {
    const texts = ['system', 'systematic', 'sys', 'syntax', 'system', 'other'];
    for (let first = 0; first < texts.length; first++) {
      const runs = createBookedRuns();
      for (const text of texts) runs.add(3, aChain(text));
      const order = [...texts.slice(first), ...texts.slice(0, first)];
      const nGone = order.map((text) => runs.subtract(3, aChain(text)));
      expect(nGone.reduce((sum, n) => sum + n, 0)).toBe(
        'system'.length + 'atic'.length + 'ntax'.length + 'other'.length,
      );
      expect(runs.nRuns).toBe(0);
      expect(runs.follow(aChain('system')).blocks(3)).toBe(0);
    }
  });

  test('a chain that was never added takes nothing', () => {
    const runs = createBookedRuns();
    runs.add(0, aChain('abc'));
    expect([runs.subtract(1, aChain('abc')), runs.subtract(0, aChain('xyz'))]).toEqual([0, 0]);
    expect(runs.follow(aChain('abc')).blocks(0)).toBe(3);
  });

  test('thousands of runs whose hashes fall to the same places are found, and the rest of them after half is gone', () => {
    const runs = createBookedRuns();
    const chains = Array.from({ length: 5000 }, (_, i) => Uint32Array.of(i, i % 7) as BlockHashes);
    for (const chain of chains) runs.add(0, chain);
    chains.forEach((chain, i) => i % 2 === 0 && runs.subtract(0, chain));
    expect(chains.map((chain) => runs.follow(chain).blocks(0))).toEqual(chains.map((_, i) => i % 2));
    runs.removeSlot(0);
    expect(runs.nRuns).toBe(0);
  });
});
