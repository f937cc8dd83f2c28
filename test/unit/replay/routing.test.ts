/** What the own routing must not lose: a few cells of `make bench-routing` on seeded workloads. Virtual time: nothing here depends on speed. */
import { describe, expect, test } from '@jest/globals';
import { OWN_POLICY, PEER_POLICIES, POLICIES } from '../../../src/replay/policies/policies.ts';
import { replay, type Scenario } from '../../../src/replay/replay.ts';
import { summarize, type Summary } from '../../../src/replay/summary.ts';
import { syntheticWorkload } from '../../../src/replay/synthetic-workloads.ts';
import { simpleTiming } from '../../../src/replay/timing.ts';
import { aScenario } from './builders.ts';

const APPROXIMATE_PEERS = PEER_POLICIES.filter((policy) => policy !== 'dynamo');

const SEEDS = [5, 6, 7];

function run(
  name: string,
  policy: string,
  changes: Partial<Scenario> & { engines?: number } = {},
  seed = SEEDS[0]!,
): Summary {
  const scenario = aScenario({ engines: 8, timing: simpleTiming(8000, 512), cacheBlocks: 500, ...changes });
  return summarize(replay(syntheticWorkload(name, 400, seed), POLICIES[policy]!, scenario));
}

function leastMean(name: string, policies: readonly string[], changes: Partial<Scenario> = {}): number {
  return Math.min(...policies.map((policy) => run(name, policy, changes).ttftMs.mean));
}

function average(summaries: readonly Summary[]): number {
  return summaries.reduce((sum, { ttftMs }) => sum + ttftMs.mean, 0) / summaries.length;
}

describe('the own routing on seeded workloads', () => {
  test.each(['shared-prompts', 'chat', 'rag', 'agents'])(
    '%s: mean time to first token within 5 % of the best peer, or below, what is learnt on the way included',
    (name) => {
      expect(run(name, OWN_POLICY).ttftMs.mean / leastMean(name, PEER_POLICIES)).toBeLessThan(1.05);
    },
  );

  test('with lost, late or no events it is about as good as without', () => {
    const perfect = run('rag', OWN_POLICY).ttftMs.mean;
    expect(run('rag', OWN_POLICY, { eventLoss: 0.2 }).ttftMs.mean / perfect).toBeLessThan(1.05);
    expect(run('rag', OWN_POLICY, { eventDelayMs: 2000 }).ttftMs.mean / perfect).toBeLessThan(1.05);
    const none = { eventLoss: 1 };
    const blind = run('rag', OWN_POLICY, none).ttftMs.mean;
    expect(blind / leastMean('rag', APPROXIMATE_PEERS, none)).toBeLessThan(1.03);
  });

  test('an engine half as fast gets no more than its share', () => {
    const engineSpeeds = [1, 1, 1, 0.5];
    const { computedTokensPerEngine: computed } = run('shared-prompts', OWN_POLICY, { engineSpeeds, speed: 0.5 });
    expect(computed[3]! / computed.reduce((a, b) => a + b, 0)).toBeLessThan(0.5 / 3.5);
  });

  test('routers that do not talk lose little where requests come one by one', () => {
    const mean = (replicas: number): number => average(SEEDS.map((seed) => run('rag', OWN_POLICY, { replicas }, seed)));
    expect(mean(2) / mean(1)).toBeLessThan(1.2);
    expect(mean(4) / mean(1)).toBeLessThan(1.35);
  });

  test('a router that stood by loses next to nothing when it takes over, nor does the first one when it is back', () => {
    const mean = (routerDeaths: Scenario['routerDeaths']): number =>
      average(SEEDS.map((seed) => run('rag', OWN_POLICY, { replicas: 2, deciding: 'first', routerDeaths }, seed)));
    const calm = mean([]);
    expect(mean([{ atMs: 30_000, unnoticedMs: 3000, backAtMs: null }]) / calm).toBeLessThan(1.1);
    expect(mean([{ atMs: 30_000, unnoticedMs: 3000, backAtMs: 60_000 }]) / calm).toBeLessThan(1.1);
  });
});
