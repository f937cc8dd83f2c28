import { describe, expect, test } from '@jest/globals';
import { OWN_POLICY, PEER_POLICIES, POLICIES } from '../../../src/replay/policies/policies.ts';
import type { CreatePolicy } from '../../../src/replay/policies/policy.ts';
import { replay, type Scenario } from '../../../src/replay/replay.ts';
import { percentile, pooledLruHitRate, summarize } from '../../../src/replay/summary.ts';
import { syntheticWorkload } from '../../../src/replay/synthetic-workloads.ts';
import { polynomialTiming, simpleTiming } from '../../../src/replay/timing.ts';
import type { Workload } from '../../../src/replay/workload.ts';
import { aScenario, aWorkload } from './builders.ts';
import { cpuMs } from '../../support/cpu-time.ts';

function run(policy: string, workload: Workload, changes: Partial<Scenario> & { engines?: number } = {}) {
  return replay(workload, POLICIES[policy]!, aScenario(changes));
}

describe('a replay', () => {
  test('round robin over two engines is what one can compute by hand', () => {
    const workload = aWorkload([
      { at: 0, prompt: 1000, ids: [1, 2] },
      { at: 0, prompt: 500, ids: [3] },
      { at: 400, prompt: 1000, ids: [1, 2] },
      { at: 400, prompt: 500, ids: [3] },
    ]);
    const { requests, queriedTokens, cachedTokens } = run('round-robin', workload);
    expect(requests.map(({ ttftMs, engine }) => [Math.round(ttftMs), engine])).toEqual([
      // 1000 tokens, its own first token, and what the next prompt computes in the rest of its last pass.
      [1003, 0],
      [501, 1],
      // Behind the first one and served from what it left: one token, in the same pass.
      [603, 0],
      // A pass that decodes takes 25 ms at least.
      [126, 1],
    ]);
    expect([queriedTokens, cachedTokens]).toEqual([3000, 1498]);
  });

  test('speed moves arrivals closer, nothing else', () => {
    const workload = aWorkload([
      { at: 0, prompt: 100, ids: [1] },
      { at: 10_000, prompt: 100, ids: [2] },
    ]);
    expect(run('round-robin', workload, { speed: 4 }).requests[1]!.arrivalMs).toBe(2500);
  });

  test.each(Object.keys(POLICIES))('%s: equal input gives equal output, and every request is answered', (policy) => {
    const workload = syntheticWorkload('chat', 150, 3);
    for (const timing of [simpleTiming(8000, 512), polynomialTiming]) {
      const changes = { engines: 4, cacheBlocks: timing === polynomialTiming ? 4000 : 500, timing };
      const outcome = run(policy, workload, changes);
      expect(run(policy, workload, changes)).toEqual(outcome);
      expect(summarize(outcome)).toMatchObject({ requests: 150, unanswered: 0 });
      expect(outcome.requestsPerEngine.reduce((a, b) => a + b, 0)).toBe(150);
    }
  });

  test.each(Object.keys(POLICIES))(
    '%s survives crashes, restarts, new engines, late and lost events and replicas',
    (policy) => {
      const workload = syntheticWorkload('rag', 300, 3);
      const endMs = workload.requests.at(-1)!.arrivalMs;
      const outcome = run(policy, workload, {
        engines: 3,
        timing: simpleTiming(8000, 512),
        crashes: [
          { engine: 0, atMs: endMs / 4, restartAtMs: endMs / 2 },
          { engine: 1, atMs: endMs / 3, restartAtMs: null },
        ],
        scaleOuts: [{ engines: 2, atMs: endMs / 2 }],
        eventDelayMs: 500,
        eventLoss: 0.2,
        replicas: 3,
        routerDeaths: [
          { atMs: endMs / 5, unnoticedMs: 3000, backAtMs: endMs / 2 },
          { atMs: (3 * endMs) / 4, unnoticedMs: 0, backAtMs: null },
        ],
      });
      expect(summarize(outcome).unanswered).toBe(0);
      expect(outcome.requestsPerEngine).toHaveLength(5);
      expect(outcome.requestsPerEngine[3]! + outcome.requestsPerEngine[4]!).toBeGreaterThan(0);
      const lateOnes = outcome.requests.filter(({ arrivalMs }) => arrivalMs > endMs / 2);
      expect(lateOnes.some(({ engine }) => engine === 1)).toBe(false);
    },
  );

  test('a router that dies is replaced by one that has heard everything and sent nothing; back, it knows what engines hold', () => {
    const told: string[] = [];
    let nRouters = 0;
    const createPolicy: CreatePolicy = ({ clock }) => {
      const router = nRouters++;
      const seconds = (): number => clock.nowMs() / 1000;
      return {
        choose: (request, engines) => {
          told.push(`${router} chooses for ${request.index} at ${seconds()}`);
          return engines[0]!;
        },
        onEnd: (request) => void told.push(`${router} sees the end of ${request.index}`),
        onBlocks: (_engine, changes) => void told.push(`${router} hears of ${[...changes].sort().join()}`),
      };
    };
    const lines = [0, 10, 12, 20, 30].map((second, i) => ({ at: 1000 * second, prompt: 512, ids: [i] }));
    const { requests } = replay(
      aWorkload(lines),
      createPolicy,
      aScenario({
        engines: 1,
        replicas: 2,
        deciding: 'first',
        routerDeaths: [{ atMs: 5000, unnoticedMs: 6000, backAtMs: 25_000 }],
      }),
    );
    expect(requests.filter(({ ttftMs }) => ttftMs < 0)).toEqual([]);
    expect(told).toEqual([
      '0 chooses for 0 at 0',
      '0 hears of 0',
      '1 hears of 0',
      '0 sees the end of 0',
      // Nobody chooses for request 1: it is not noticed yet.
      '1 hears of 1',
      '1 chooses for 2 at 12',
      '1 hears of 2',
      '1 sees the end of 2',
      '1 chooses for 3 at 20',
      '1 hears of 3',
      '1 sees the end of 3',
      '2 hears of 0,1,2,3',
      '2 chooses for 4 at 30',
      '1 hears of 4',
      '2 hears of 4',
      '2 sees the end of 4',
    ]);
  });

  test.each([
    ['all decide', 'all', ['0', '1', '2', '-', '1', '2', '1', '2', '2', '3', '1']],
    ['the first decides', 'first', ['0', '0', '0', '-', '1', '2', '1', '2', '3', '3', '3']],
  ] as const)(
    'where %s, the others share the requests of a router that dies, until it is back',
    (_, deciding, expected) => {
      const chosen: string[] = [];
      let nRouters = 0;
      const createPolicy: CreatePolicy = () => {
        const router = String(nRouters++);
        return {
          choose: (request, engines) => {
            chosen[request.index] = router;
            return engines[0]!;
          },
        };
      };
      const seconds = [0, 1, 2, 3, 10, 11, 12, 13, 21, 22, 23];
      const lines = seconds.map((second, i) => ({ at: 1000 * second, prompt: 512, ids: [i] }));
      const routerDeaths = [{ atMs: 2500, unnoticedMs: 6000, backAtMs: 20_000 }];
      replay(aWorkload(lines), createPolicy, aScenario({ engines: 1, replicas: 3, deciding, routerDeaths }));
      // Nobody chooses for what comes before it is noticed.
      expect(Array.from(seconds, (_, i) => chosen[i] ?? '-')).toEqual(expected);
    },
  );

  test('the pooled cache is a plain LRU over everything, in the order of arrival', () => {
    const workload = aWorkload([
      { at: 0, prompt: 1024, ids: [1, 2] },
      { at: 1, prompt: 1024, ids: [3, 4] },
      { at: 2, prompt: 1100, ids: [1, 2, 5] },
    ]);
    const timing = simpleTiming(1000, 512);
    expect(pooledLruHitRate(workload, timing, 4)).toBeCloseTo(1024 / 3148, 9);
    expect(pooledLruHitRate(workload, timing, 3)).toBeCloseTo(512 / 3148, 9);
  });

  test('percentiles are nearest ranks', () => {
    const sorted = Array.from({ length: 100 }, (_, i) => i + 1);
    expect([0, 0.5, 0.9, 0.99, 1].map((part) => percentile(sorted, part))).toEqual([1, 50, 90, 99, 100]);
    expect(percentile([], 0.5)).toBe(0);
  });

  test('ten times the requests take about ten times as long, not a hundred', () => {
    const timeOf = (n: number): number => {
      const workload = syntheticWorkload('chat', n, 1);
      return cpuMs(() => {
        run(OWN_POLICY, workload, { engines: 8, cacheBlocks: 2000, timing: simpleTiming(8000, 512) });
      });
    };
    timeOf(400);
    const small = Math.max(5, Math.min(timeOf(400), timeOf(400)));
    expect(timeOf(4000) / small).toBeLessThan(40);
  });
});

describe('the own policy against every peer, on seeded workloads', () => {
  /** Part of the best peer's mean time to first token that is allowed: what was measured, and a margin. */
  test.each([
    ['rag', 2, 0.85],
    ['agents', 1, 0.95],
    ['shared-prompts', 3, 0.98],
    ['one-prefix', 1, 1.0],
  ])('%s at speed %d stays below %d of the best one', (name, speed, allowed) => {
    const workload = syntheticWorkload(name, 1500, 1);
    const changes = { engines: 8, cacheBlocks: 2000, speed, timing: simpleTiming(8000, 512) };
    const ttft = (policy: string): number => summarize(run(policy, workload, changes)).ttftMs.mean;
    expect(ttft(OWN_POLICY)).toBeLessThan(allowed * Math.min(...PEER_POLICIES.map(ttft)));
  });
});
