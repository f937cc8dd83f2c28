import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { rendezvousWeight, schedule, type Candidate } from '../../../src/scheduling/scheduler.ts';

type Changes = {
  cachedTokens?: number;
  waitMs?: number;
  requests?: number;
  arrivalsPerSecond?: number;
  msPerToken?: number;
  contextTokens?: number;
  unseenMs?: number;
  unseenPrompts?: number;
  passPrompts?: number;
  passRoomTokens?: number;
  savableUtilization?: number;
  setupMs?: number;
  evictedAgeMs?: number | null;
};

function aCandidate(n: number, changes: Changes = {}): Candidate {
  const { cachedTokens = 0, waitMs = 0, requests = 0, arrivalsPerSecond = 0, msPerToken = 0.125 } = changes;
  const { contextTokens = 0, unseenMs = 0, unseenPrompts = 0, passPrompts = 0, passRoomTokens = 0 } = changes;
  const { savableUtilization = 0.4, setupMs = 0, evictedAgeMs = null } = changes;
  const load = {
    requests,
    tokens: 0,
    outputTokens: 0,
    contextTokens,
    waiting: 0,
    arrivalsPerSecond,
    utilization: 0.4,
    savableUtilization,
    waitMs,
    unseenMs,
    unseenPrompts,
    passPrompts,
    passRoomTokens,
    prefillSetupMs: setupMs,
    prefillMsPerToken: msPerToken,
  };
  return { address: `10.0.0.${n}:8000`, trust: 'exact', cachedTokens, evictedAgeMs, load };
}

function choose(candidates: readonly Candidate[], promptTokens = 1600, tieKey = 7, sharers = 0) {
  return schedule({ candidates, promptTokens, tieKey, sharers });
}

describe('the choice of an endpoint', () => {
  test('a cold prompt goes where what it pushes out was unused for longest', () => {
    const aged = (n: number, evictedAgeMs: number | null): Candidate => aCandidate(n, { evictedAgeMs });
    for (let tieKey = 0; tieKey < 20; tieKey++) {
      expect(choose([aged(1, 20_000), aged(2, 90_000), aged(3, 30_000)], 16_000, tieKey).order[0]).toBe(1);
    }
    const ofNobody = choose([aged(1, null), aged(2, null)]).costsMs;
    expect(choose([aged(1, 50_000), aged(2, 50_000)]).costsMs).toEqual(ofNobody);
  });

  test('the warm endpoint wins among idle ones', () => {
    const { order, reason } = choose([aCandidate(1), aCandidate(2, { cachedTokens: 1200 }), aCandidate(3)]);
    expect(order[0]).toBe(1);
    expect(reason).toBe('lowest cost');
  });

  test('one matching block of two hundred does not beat an idle endpoint when its holder is busy', () => {
    const { order } = choose([aCandidate(1, { cachedTokens: 16, waitMs: 400 }), aCandidate(2)], 3200);
    expect(order[0]).toBe(1);
  });

  test('a warm endpoint loses when its backlog outweighs what its cache saves', () => {
    const { order } = choose([aCandidate(1, { cachedTokens: 1600, waitMs: 60_000, requests: 30 }), aCandidate(2)]);
    expect(order[0]).toBe(1);
  });

  test('a prompt keeps away from a pass that it would make longer for others, as far as it has room there', () => {
    const shared = { passPrompts: 3, passRoomTokens: 800 };
    expect(choose([aCandidate(1, shared), aCandidate(2, { waitMs: 250 })]).order).toEqual([1, 0]);
    expect(choose([aCandidate(1, shared), aCandidate(2, { waitMs: 350 })]).order).toEqual([0, 1]);
    // Nothing to compute there, nobody is delayed.
    const warm = aCandidate(1, { ...shared, cachedTokens: 1600 });
    expect(choose([warm, aCandidate(2, { cachedTokens: 1600, waitMs: 250 })]).order).toEqual([0, 1]);
  });

  test('where a pass is to begin anyway, a prompt that joins it does not pay for its beginning', () => {
    const joined = aCandidate(1, { setupMs: 100, waitMs: 250, passPrompts: 1, passRoomTokens: 0 });
    expect(choose([joined, aCandidate(2, { setupMs: 100, waitMs: 200 })]).order).toEqual([0, 1]);
    expect(choose([joined, aCandidate(2, { setupMs: 100, waitMs: 100 })]).order).toEqual([1, 0]);
  });

  test('a warm endpoint is waited for the longer, the more of the busy time a cache could save', () => {
    const candidates = (savableUtilization: number): Candidate[] => [
      aCandidate(1, { savableUtilization, cachedTokens: 1500, waitMs: 400 }),
      aCandidate(2, { savableUtilization }),
    ];
    expect(choose(candidates(0.4)).order[0]).toBe(0);
    // Just as busy, but with what every prompt takes.
    expect(choose(candidates(0.05)).order[0]).toBe(1);
  });

  test('a prefix that many want at once is copied to an idle endpoint, one that nobody else wants is not', () => {
    const candidates = [aCandidate(1, { cachedTokens: 1500, waitMs: 900, requests: 6 }), aCandidate(2)];
    expect(choose(candidates).order[0]).toBe(0);
    expect(choose(candidates, 1600, 7, 30).order[0]).toBe(1);
  });

  test('an endpoint half as fast has to save twice the time to be worth the wait', () => {
    const slow = aCandidate(1, { msPerToken: 0.25 });
    expect(choose([slow, aCandidate(2)]).order[0]).toBe(1);
    expect(choose([slow, aCandidate(2, { waitMs: 5000, requests: 3 })]).order[0]).toBe(0);
  });

  test('a long cold prompt does not go where many short ones wait, a short one does', () => {
    const candidates = [
      aCandidate(1, { waitMs: 1000, arrivalsPerSecond: 20, requests: 20 }),
      aCandidate(2, { waitMs: 3000, arrivalsPerSecond: 0.3, requests: 1 }),
    ];
    expect(choose(candidates, 16_000).order[0]).toBe(1);
    expect(choose(candidates, 100).order[0]).toBe(0);
  });

  test('a prompt that is not shown goes where the fewest requests are', () => {
    for (const tieKey of [0, 1, 2, 3]) {
      const candidates = [
        aCandidate(1, { requests: 3 }),
        aCandidate(2, { requests: 1 }),
        aCandidate(3, { requests: 2 }),
      ];
      expect(choose(candidates, 0, tieKey).order).toEqual([1, 2, 0]);
    }
  });

  test('where others send unseen, an idle endpoint that is left alone is preferred, a warm one still wins', () => {
    const foreign = aCandidate(1, { unseenMs: 200 });
    for (const tieKey of [1, 2, 3, 4]) expect(choose([foreign, aCandidate(2)], 1600, tieKey).order[0]).toBe(1);
    expect(choose([aCandidate(1, { unseenMs: 200, cachedTokens: 1500 }), aCandidate(2)]).order[0]).toBe(0);
  });

  test('where others send unseen, a long cold prompt gives way to them sooner than a short one', () => {
    const candidates = [aCandidate(1, { unseenMs: 50, unseenPrompts: 0.5 }), aCandidate(2, { waitMs: 200 })];
    expect(choose(candidates, 400).order[0]).toBe(0);
    expect(choose(candidates, 4000).order[0]).toBe(1);
  });

  test('a long prompt keeps away from answers under way, and from much context, when all else is equal', () => {
    const idle = aCandidate(2);
    for (const tieKey of [1, 2, 3, 4]) {
      expect(choose([aCandidate(1, { requests: 8 }), idle], 16_000, tieKey).order[0]).toBe(1);
      expect(choose([aCandidate(1, { contextTokens: 200_000 }), idle], 1600, tieKey).order[0]).toBe(1);
    }
  });

  test('equal endpoints share cold prompts evenly, and every replica makes the same choice', () => {
    const candidates = [1, 2, 3, 4].map((n) => aCandidate(n));
    const counts = [0, 0, 0, 0];
    for (let key = 0; key < 4000; key++) {
      const tieKey = Math.imul(key + 1, 0x9e3779b1) >>> 0;
      const { order, reason } = choose(candidates, 1600, tieKey);
      const shuffled = choose([...candidates].reverse(), 1600, tieKey);
      expect(candidates.length - 1 - shuffled.order[0]!).toBe(order[0]);
      expect(reason).toBe('near tie');
      counts[order[0]!]! += 1;
    }
    for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(150);
  });

  test('no candidate is a value, not a failure', () => {
    expect(choose([])).toEqual({ order: [], costsMs: [], reason: 'no candidate' });
  });

  test('every candidate is ranked exactly once, and nobody dominated is chosen', () => {
    const candidate = fc.record({ cachedTokens: fc.nat(1600), waitMs: fc.nat(5000), requests: fc.nat(50) });
    fc.assert(
      fc.property(fc.array(candidate, { minLength: 1, maxLength: 20 }), fc.nat(), (drawn, tieKey) => {
        const candidates = drawn.map((changes, n) => aCandidate(n, changes));
        const { order, costsMs } = choose(candidates, 1600, tieKey);
        expect([...order].sort((a, b) => a - b)).toEqual(candidates.map((_, index) => index));
        const chosen = drawn[order[0]!]!;
        const dominates = (other: typeof chosen): boolean =>
          other.cachedTokens > chosen.cachedTokens + 160 &&
          other.waitMs + 200 < chosen.waitMs &&
          other.requests < chosen.requests;
        expect(drawn.some(dominates)).toBe(false);
        expect(costsMs[order[0]!]!).toBeLessThanOrEqual(Math.min(...costsMs) + 1600 * 0.125 * 0.02 + 1);
      }),
    );
  });

  test('rendezvous: removing an endpoint moves only the keys it had', () => {
    const addresses = ['a:1', 'b:1', 'c:1', 'd:1'];
    const owner = (key: number, among: readonly string[]): string =>
      among.reduce((best, next) => (rendezvousWeight(key, next) > rendezvousWeight(key, best) ? next : best));
    for (let key = 0; key < 500; key++) {
      const before = owner(key, addresses);
      const after = owner(
        key,
        addresses.filter((address) => address !== 'c:1'),
      );
      if (before !== 'c:1') expect(after).toBe(before);
    }
  });
});
