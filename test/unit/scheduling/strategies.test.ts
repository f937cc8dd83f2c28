import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { schedule } from '../../../src/scheduling/scheduler.ts';
import { rank, type EngineSignals, type RankInput, type SessionHint } from '../../../src/scheduling/strategies.ts';
import {
  knownNames,
  parseStrategy,
  STRATEGY_NAMES,
  strategyNotice,
  usesPrompt,
} from '../../../src/scheduling/strategy-names.ts';
import { aStrategy } from '../../support/routing.ts';

type Changes = {
  requests?: number;
  utilization?: number;
  cachedTokens?: number;
  waitMs?: number;
  kvUsage?: number | null;
  answerMs?: number | null;
  tokensPerSecond?: number;
};

/** Chance that always gives the same: the order of ties is known. */
const STILL = (): number => 0.999;

function anInput(endpoints: readonly Changes[], session: SessionHint | null = null, random = STILL): RankInput {
  const candidates = endpoints.map(({ requests = 0, utilization = 0, cachedTokens = 0, waitMs = 0 }, n) => ({
    address: `10.0.0.${n + 1}:8000`,
    trust: 'exact' as const,
    cachedTokens,
    evictedAgeMs: null,
    load: {
      requests,
      tokens: 0,
      outputTokens: 0,
      contextTokens: 0,
      waiting: 0,
      arrivalsPerSecond: 0,
      utilization,
      savableUtilization: utilization,
      waitMs,
      unseenMs: 0,
      unseenPrompts: 0,
      passPrompts: 0,
      passRoomTokens: 0,
      prefillSetupMs: 0,
      prefillMsPerToken: 0.125,
    },
  }));
  const input = { candidates, promptTokens: 1600, tieKey: 7, sharers: 0 };
  const signals = endpoints.map(({ kvUsage = null, answerMs = null, tokensPerSecond = 0 }): EngineSignals => ({
    kvUsage,
    answerMs,
    tokensPerSecond,
  }));
  return { schedule: input, scheduled: schedule(input), signals: () => signals, session, random };
}

function choice(strategy: string, endpoints: readonly Changes[], session: SessionHint | null = null): number {
  return rank(aStrategy(strategy), anInput(endpoints, session)).order[0]!;
}

describe('a strategy by name', () => {
  test.each<[string, Changes[], number]>([
    ['prefix-cache', [{ requests: 1 }, { cachedTokens: 1500, requests: 2 }, {}], 1],
    ['prefix-cache-preble', [{ requests: 1 }, { cachedTokens: 1500, requests: 2 }, {}], 1],
    ['least-request', [{ requests: 4 }, { requests: 2 }, { requests: 3 }], 1],
    ['least-busy-time', [{ utilization: 0.5 }, { utilization: 0.6 }, { utilization: 0.1, requests: 9 }], 2],
    ['least-latency', [{ answerMs: 900 }, { answerMs: 300, requests: 9 }, { answerMs: 500 }], 1],
    ['least-kv-cache', [{ kvUsage: 0.9 }, { kvUsage: 0.5 }, { kvUsage: 0.7 }], 1],
    [
      'least-utilization',
      [
        { utilization: 0.1, kvUsage: 0.9 },
        { utilization: 0.6, kvUsage: 0.1 },
      ],
      1,
    ],
    ['throughput', [{ tokensPerSecond: 900 }, { tokensPerSecond: 100 }, { tokensPerSecond: 500 }], 1],
    ['power-of-two', [{ requests: 3 }, { requests: 2 }], 1],
    ['session-affinity', [{ requests: 3 }, { requests: 2 }], 1],
    ['aibrix-prefix-cache', [{ requests: 1 }, { requests: 2, cachedTokens: 800 }, { requests: 0 }], 1],
  ])('%s chooses %j', (strategy, endpoints, expected) => {
    expect(choice(strategy, endpoints)).toBe(expected);
  });

  test.each<[string, Changes[], number]>([
    ['least-kv-cache', [{ kvUsage: 0.9 }, {}, { kvUsage: 0.1 }], 2],
    ['least-latency', [{ answerMs: 100 }, {}, { answerMs: 500 }], 0],
    ['least-utilization', [{ kvUsage: 0.4, utilization: 0.1 }, { utilization: 0.5 }], 0],
  ])('%s: what is not known is neither good nor bad: %j', (strategy, endpoints, expected) => {
    expect(choice(strategy, endpoints)).toBe(expected);
  });

  test('random uses every endpoint, about equally', () => {
    let seed = 1;
    const random = (): number => (seed = (seed * 16807) % 2147483647) / 2147483647;
    const counts = [0, 0, 0, 0];
    for (let i = 0; i < 4000; i++) {
      counts[rank(aStrategy('random'), anInput([{}, {}, { requests: 50 }, {}], null, random)).order[0]!]! += 1;
    }
    for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(150);
  });

  test('power-of-two avoids the busiest of three always, least-request herds nobody on a tie', () => {
    let seed = 7;
    const random = (): number => (seed = (seed * 16807) % 2147483647) / 2147483647;
    const chosen = new Set<number>();
    for (let i = 0; i < 500; i++) {
      const busy = anInput([{ requests: 9 }, { requests: 1 }, { requests: 2 }], null, random);
      expect(rank(aStrategy('power-of-two'), busy).order[0]).not.toBe(0);
      chosen.add(rank(aStrategy('least-request'), anInput([{}, {}, {}], null, random)).order[0]!);
    }
    expect(chosen.size).toBe(3);
  });

  describe('aibrix-prefix-cache', () => {
    const spread = (...requests: number[]): Changes[] => requests.map((n) => ({ requests: n }));

    test('beyond a difference of 16 requests prefixes do not count, at 16 they do', () => {
      const at16 = spread(16, 0, 8);
      const at17 = spread(17, 0, 8);
      at16[2] = at17[2] = { requests: 8, cachedTokens: 1600 };
      expect(choice('aibrix-prefix-cache', at16)).toBe(2);
      expect(choice('aibrix-prefix-cache', at17)).toBe(1);
    });

    test('beyond it the longest match among those with the fewest requests is chosen', () => {
      const endpoints = spread(20, 0, 0, 0);
      endpoints[0] = { requests: 20, cachedTokens: 1600 };
      endpoints[2] = { requests: 0, cachedTokens: 160 };
      endpoints[3] = { requests: 0, cachedTokens: 800 };
      expect(choice('aibrix-prefix-cache', endpoints)).toBe(3);
    });

    test('a match above mean + 2σ of the requests is passed over for the next longest', () => {
      const endpoints = spread(1, 1, 1, 1, 1, 1, 1, 1, 1, 12);
      endpoints[9] = { requests: 12, cachedTokens: 1600 };
      endpoints[4] = { requests: 1, cachedTokens: 160 };
      expect(choice('aibrix-prefix-cache', endpoints)).toBe(4);
    });

    test('of equal matches the one with fewer requests, without any match the fewest requests', () => {
      expect(
        choice('aibrix-prefix-cache', [
          { requests: 3, cachedTokens: 800 },
          { requests: 2, cachedTokens: 800 },
        ]),
      ).toBe(1);
      expect(choice('aibrix-prefix-cache', spread(3, 2, 4))).toBe(1);
    });
  });

  describe('sessions', () => {
    const idle = Array.from({ length: 5 }, () => ({}));

    test('session-affinity: the same endpoint for a session on every replica, moved only when its endpoint goes', () => {
      for (let key = 0; key < 200; key++) {
        const session = { key: Math.imul(key + 1, 0x9e3779b1) >>> 0, home: null };
        const busy = idle.map((_, n) => ({ requests: n * 7 }));
        const first = choice('session-affinity', idle, session);
        expect(choice('session-affinity', busy, session)).toBe(first);
        if (first < 4) expect(choice('session-affinity', idle.slice(0, 4), session)).toBe(first);
      }
    });

    test('prefix-cache: a session stays where it was while that costs little, and leaves when it is overloaded', () => {
      const home = { key: 5, home: 2 };
      expect(choice('prefix-cache', [{}, {}, { requests: 2 }], home)).toBe(2);
      expect(choice('prefix-cache', [{}, {}, { requests: 2, waitMs: 20_000 }], home)).not.toBe(2);
      expect(choice('prefix-cache', [{ cachedTokens: 1590 }, {}, { requests: 8, waitMs: 400 }], home)).toBe(0);
    });
  });
});

describe('a weighted mix', () => {
  test('each part is scaled to 0…1 and weighted', () => {
    const endpoints = [
      { requests: 10, kvUsage: 0.1 },
      { requests: 0, kvUsage: 0.9 },
      { requests: 4, kvUsage: 0.3 },
    ];
    expect(choice('least-request:1,least-kv-cache:1', endpoints)).toBe(2);
    expect(choice('least-request:9,least-kv-cache', endpoints)).toBe(1);
    expect(choice('least-request,least-kv-cache:9', endpoints)).toBe(0);
    expect(choice('least-request:0,least-kv-cache', endpoints)).toBe(0);
  });

  test('a part in which all are equal, or which knows nothing, decides nothing', () => {
    const endpoints = [{ requests: 3 }, { requests: 1 }, { requests: 2 }];
    expect(choice('least-kv-cache:100,session-affinity:100,least-request', endpoints)).toBe(1);
  });

  test('costs and sessions mix with the rest', () => {
    const endpoints = [{ requests: 1 }, { requests: 1, cachedTokens: 1590 }, { requests: 0 }];
    expect(choice('prefix-cache:5,least-request', endpoints)).toBe(1);
    const session = { key: 3, home: null };
    const owner = choice('session-affinity', endpoints, session);
    expect(choice('session-affinity:50,least-request', endpoints, session)).toBe(owner);
  });
});

test('any strategy on anything ranks every endpoint exactly once', () => {
  const endpoint = fc.record({
    requests: fc.nat(40),
    utilization: fc.double({ min: 0, max: 3, noNaN: true }),
    cachedTokens: fc.nat(1600),
    waitMs: fc.nat(60_000),
    kvUsage: fc.option(fc.double({ min: 0, max: 1, noNaN: true })),
    answerMs: fc.option(fc.nat(100_000)),
    tokensPerSecond: fc.nat(100_000),
  });
  const mix = fc
    .subarray(['prefix-cache', 'least-request', 'least-kv-cache', 'throughput', 'session-affinity'], { minLength: 1 })
    .map((names) => names.map((name, i) => `${name}:${i + 1}`).join(','));
  fc.assert(
    fc.property(
      fc.oneof(fc.constantFrom(...knownNames()), mix),
      fc.array(endpoint, { maxLength: 12 }),
      fc.option(fc.record({ key: fc.nat(), home: fc.option(fc.nat(11)) })),
      fc.infiniteStream(fc.double({ min: 0, max: 0.999, noNaN: true })),
      (strategy, endpoints, session, chances) => {
        const home = session?.home ?? null;
        const hint =
          session === null ? null : { key: session.key, home: home !== null && home < endpoints.length ? home : null };
        const { order } = rank(
          aStrategy(strategy),
          anInput(endpoints, hint, () => chances.next().value as number),
        );
        expect([...order].sort((a, b) => a - b)).toEqual(endpoints.map((_, index) => index));
      },
    ),
    { numRuns: 300 },
  );
});

describe('how a strategy is written', () => {
  test.each([
    'fastest',
    '',
    'least-request,',
    'least-request:x',
    'least-request:-1',
    'a:1:2',
    'least-request:0',
    'least-request:2,prefix-cache,least-request',
    'prefix-cache,prefix-cache-preble',
    `least-request,${' '.repeat(500)}prefix-cache`,
    'Random',
  ])('"%s" is a mistake', (text) => {
    expect(parseStrategy(text).kind).toBe('mistake');
  });

  test('what has no score per endpoint is no part of a mix', () => {
    expect(parseStrategy('random,least-request')).toEqual({
      kind: 'mistake',
      expected: 'a mix without random, power-of-two, aibrix-prefix-cache',
    });
    expect(parseStrategy('fastest')).toMatchObject({
      expected: expect.stringMatching(/^one of prefix-cache, random, /),
    });
  });

  test('aliases are served under their own name, with a notice', () => {
    expect(aStrategy(' prefix-cache-preble ').parts).toEqual([{ name: 'prefix-cache', weight: 1 }]);
    expect(strategyNotice('prefix-cache-preble')).toBe('prefix-cache-preble is served by prefix-cache');
    expect(strategyNotice('least-request:2,prefix-cache')).toBeNull();
  });

  test('only what depends on the prompt has it tokenized', () => {
    expect(STRATEGY_NAMES.filter((name) => usesPrompt(aStrategy(name)))).toEqual([
      'prefix-cache',
      'aibrix-prefix-cache',
    ]);
    expect(usesPrompt(aStrategy('least-request:2,prefix-cache'))).toBe(true);
  });
});
