import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createCacheTrust, creditedTokens, type CacheEvidence } from '../../../src/load/cache-trust.ts';
import { createFakeClock, type FakeClock } from '../../support/fake-clock.ts';

function anEvidence(clock: FakeClock, changes: Partial<CacheEvidence> = {}): CacheEvidence {
  return { provenUnixMs: clock.unixMs(), lagMs: 0, heldTokens: 1000, capacityTokens: 1000, allPerOwn: 1, ...changes };
}

describe('how fresh announced blocks are', () => {
  test.each([
    ['events that are whole and in time', { doneMs: 0, evidence: {} }, 1],
    ['silent for a minute, and nothing was computed', { doneMs: null, evidence: {} }, 1],
    ['a quarter of a full cache was computed since', { doneMs: 30_000, evidence: {} }, 0.75],
    ['… and as much by others', { doneMs: 30_000, evidence: { allPerOwn: 2 } }, 0.5],
    ['… which found room', { doneMs: 30_000, evidence: { capacityTokens: 1250 } }, 1],
    ['… some of which found room', { doneMs: 30_000, evidence: { capacityTokens: 1150 } }, 0.9],
    ['… in a cache of unknown size', { doneMs: 30_000, evidence: { capacityTokens: null } }, 0.75],
    ['… more than it holds', { doneMs: 30_000, evidence: { heldTokens: 200, capacityTokens: 200 } }, 0],
    ['done just behind the last batch: it may have been in it', { doneMs: 1000, evidence: {} }, 1],
    ['the same, of events that come late', { doneMs: 1000, evidence: { lagMs: 5000 } }, 0.75],
    ['never whole', { doneMs: null, evidence: { provenUnixMs: null } }, 0],
  ] as const)('%s', (_name, { doneMs, evidence }, expected) => {
    const clock = createFakeClock();
    const trust = createCacheTrust(clock);
    const proven = anEvidence(clock, evidence);
    clock.advance(60_000);
    if (doneMs !== null) trust.computed(0, 250, doneMs);
    expect(trust.of(0, proven).fresh).toBeCloseTo(expected);
    expect(trust.of(1, anEvidence(clock)).fresh).toBe(1);
  });

  test('falls with every prompt computed unseen, and is whole again with the next batch', () => {
    const clock = createFakeClock();
    const trust = createCacheTrust(clock);
    const proven = anEvidence(clock);
    const seen: number[] = [];
    for (let n = 1; n <= 1000; n++) {
      clock.advance(1000);
      trust.computed(0, 2, clock.nowMs());
      seen.push(trust.of(0, proven).fresh);
    }
    expect(seen).toEqual([...seen].sort((a, b) => b - a));
    expect(seen[200]).toBeCloseTo(0.6, 1);
    expect(seen.at(-1)).toBe(0);
    expect(trust.of(0, anEvidence(clock)).fresh).toBe(1);
  });

  test('no events that are believed: nothing announced counts', () => {
    expect(createCacheTrust(createFakeClock()).of(0, null).fresh).toBe(0);
  });
});

describe('whether an endpoint keeps its word', () => {
  const afterPromises = (n: number, foundPart: number): number => {
    const clock = createFakeClock();
    const trust = createCacheTrust(clock);
    trust.served(9, 100, 100);
    for (let i = 0; i < n; i++) trust.served(0, 100 + i, (100 + i) * foundPart);
    return trust.of(0, null).delivered;
  };

  test('is believed of one nobody has asked, and of one that falls short by what waiting explains', () => {
    expect(afterPromises(0, 0)).toBe(1);
    expect(afterPromises(1000, 0.95)).toBe(1);
  });

  test('one that finds half of what was promised is soon credited with about half, one miss is forgiven', () => {
    expect(afterPromises(1, 0)).toBe(1);
    expect(afterPromises(300, 0.5)).toBeGreaterThan(0.5);
    expect(afterPromises(300, 0.5)).toBeLessThan(0.65);
    expect(afterPromises(300, 0)).toBeLessThan(0.12);
  });

  test('more than was promised makes up for nothing', () => {
    const trust = createCacheTrust(createFakeClock());
    for (let i = 0; i < 100; i++) {
      trust.served(0, 100, 0);
      trust.served(0, 100, 10_000);
    }
    expect(trust.of(0, null).delivered).toBeLessThan(0.65);
  });

  test('where no engine ever found anything, zeros may be what is filled in by one that counts nothing', () => {
    const trust = createCacheTrust(createFakeClock());
    for (let i = 0; i < 100; i++) trust.served(i % 4, 100, 0);
    expect(trust.of(0, null).delivered).toBe(1);
  });

  test('is forgotten with the process, and nonsense teaches nothing', () => {
    const clock = createFakeClock();
    const trust = createCacheTrust(clock);
    trust.served(1, 1, 1);
    for (let i = 0; i < 100; i++) trust.served(0, 100, 0);
    trust.computed(0, 500, 10_000);
    trust.forget(0);
    for (const wrong of [NaN, -1]) {
      trust.served(0, 100, wrong);
      trust.served(0, wrong, 0);
      trust.computed(0, wrong, 10_000);
    }
    expect(trust.of(0, { ...anEvidence(clock), provenUnixMs: clock.unixMs() - 60_000 })).toEqual({
      fresh: 1,
      delivered: 1,
    });
  });
});

test('a credit lies between what was routed and what is said to be there, and rises with every weight', () => {
  const weight = fc.double({ min: 0, max: 1, noNaN: true });
  const tokens = fc.integer({ min: 0, max: 100_000 });
  fc.assert(
    fc.property(tokens, tokens, weight, weight, weight, (routedTokens, announcedTokens, worth, fresh, less) => {
      const credit = (announced: number): number =>
        creditedTokens({ routedTokens, announcedTokens, worth }, { fresh: announced, delivered: 1 });
      expect(credit(fresh)).toBeGreaterThanOrEqual(routedTokens);
      expect(credit(fresh)).toBeLessThanOrEqual(Math.max(routedTokens, announcedTokens));
      expect(credit(fresh * less)).toBeLessThanOrEqual(credit(fresh));
      expect(credit(0)).toBe(routedTokens);
    }),
  );
});
