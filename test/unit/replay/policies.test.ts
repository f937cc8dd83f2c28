import { describe, expect, test } from '@jest/globals';
import { createFakeClock } from '../../support/fake-clock.ts';
import type { EngineRequest } from '../../../src/replay/engine.ts';
import { POLICIES } from '../../../src/replay/policies/policies.ts';
import type { EngineProbe, Policy } from '../../../src/replay/policies/policy.ts';
import { createRandom } from '../../../src/replay/random.ts';

type Shown = { running?: number; waiting?: number; kvUsage?: number };

function aFleet(shown: readonly Shown[]): EngineProbe[] {
  return shown.map(({ running = 0, waiting = 0, kvUsage = 0 }, id) => ({
    id,
    address: `10.0.0.${id}:8000`,
    nRunning: () => running,
    nWaiting: () => waiting,
    kvUsage: () => kvUsage,
    secrets: { has: () => false, computedTokens: () => 0, prefillMs: (nTokens) => nTokens },
  }));
}

function aPolicy(name: string, cacheBlocks = 100): Policy {
  const clock = createFakeClock();
  return POLICIES[name]!({ clock, random: createRandom(1), blockTokens: 512, cacheBlocks, events: 'whole' });
}

let nextIndex = 0;
function aRequest(ids: readonly number[], promptTokens = 512 * ids.length): EngineRequest {
  return { index: nextIndex++, promptTokens, outputTokens: 1, blocks: Int32Array.from(ids) };
}

/** Sends requests of one block nobody else asks for until engine `id` has `n` more than before. */
function load(policy: Policy, fleet: readonly EngineProbe[], id: number, n: number): EngineRequest[] {
  return Array.from({ length: n }, () => {
    const request = aRequest([1_000_000 + nextIndex]);
    policy.choose(request, [fleet[id]!]);
    return request;
  });
}

describe('peer policies, as their documents define them', () => {
  test('round-robin takes turns', () => {
    const policy = aPolicy('round-robin');
    const fleet = aFleet([{}, {}, {}]);
    expect([0, 1, 2, 3].map(() => policy.choose(aRequest([1]), fleet).id)).toEqual([0, 1, 2, 0]);
  });

  test('least-request counts what has not ended', () => {
    const policy = aPolicy('least-request');
    const fleet = aFleet([{}, {}]);
    const [first] = load(policy, fleet, 0, 1);
    expect(policy.choose(aRequest([1]), fleet).id).toBe(1);
    policy.onEnd!(first!, fleet[0]!, 'completed');
    expect(policy.choose(aRequest([1]), fleet).id).toBe(0);
  });

  test('aibrix-prefix-cache: longest match, unless one endpoint is more than 16 requests ahead of another', () => {
    const policy = aPolicy('aibrix-prefix-cache');
    const fleet = aFleet([{}, {}]);
    policy.choose(aRequest([1, 2, 3]), [fleet[0]!]);
    expect(policy.choose(aRequest([1, 2, 9]), fleet).id).toBe(0);
    load(policy, fleet, 0, 15);
    expect(policy.choose(aRequest([1, 2, 10]), fleet).id).toBe(1);
  });

  test('llm-d-default: a full match outweighs the longest queue, not queue and KV usage together', () => {
    const policy = aPolicy('llm-d-default');
    const warm = aFleet([{ waiting: 9 }, {}]);
    policy.choose(aRequest([1, 2]), [warm[0]!]);
    expect(policy.choose(aRequest([1, 2]), warm).id).toBe(0);
    const other = aPolicy('llm-d-default');
    const full = aFleet([{ waiting: 9, kvUsage: 0.9 }, {}]);
    other.choose(aRequest([1, 2]), [full[0]!]);
    expect(other.choose(aRequest([1, 2]), full).id).toBe(1);
  });

  test('llm-d-sticky: 80 % of the prompt is needed to stay', () => {
    const policy = aPolicy('llm-d-sticky');
    const fleet = aFleet([{}, {}]);
    policy.choose(aRequest([1, 2, 3, 4, 5]), [fleet[0]!]);
    expect(policy.choose(aRequest([1, 2, 3, 4, 6]), fleet).id).toBe(0);
    expect(policy.choose(aRequest([1, 2, 3, 7, 8]), fleet).id).toBe(1);
  });

  test('dynamo: announced blocks are credit, blocks in use are cost', () => {
    const policy = aPolicy('dynamo');
    const fleet = aFleet([{}, {}]);
    policy.onBlocks!(fleet[0]!, [1, 2], { sentMs: 0, comes: 'next' });
    const request = aRequest([1, 2, 3]);
    expect(policy.choose(request, fleet).id).toBe(0);
    policy.onBlocks!(fleet[0]!, [~1], { sentMs: 0, comes: 'next' });
    expect(policy.choose(aRequest([1, 2, 3]), fleet).id).toBe(1);
  });

  test('smg-cache-aware: the match must be 30 % of the prompt; 64 requests of difference send to the shortest queue', () => {
    const policy = aPolicy('smg-cache-aware');
    const fleet = aFleet([{}, {}]);
    policy.choose(aRequest([1, 2, 3]), [fleet[0]!]);
    expect(policy.choose(aRequest([1, 4, 5, 6]), fleet).id).toBe(1);
    load(policy, fleet, 0, 60);
    expect(policy.choose(aRequest([1, 2, 3]), fleet).id).toBe(0);
    load(policy, fleet, 0, 10);
    expect(policy.choose(aRequest([1, 2, 3]), fleet).id).toBe(1);
  });

  test('chwbl: one prefix stays together until its endpoint has more than 1.25 times the mean', () => {
    const policy = aPolicy('chwbl');
    const fleet = aFleet([{}, {}, {}, {}]);
    const counts = new Map<number, number>();
    for (let i = 0; i < 400; i++) {
      const { id } = policy.choose(aRequest([1, 10 + i]), fleet);
      counts.set(id, (counts.get(id) ?? 0) + 1);
    }
    expect(Math.max(...counts.values())).toBeLessThanOrEqual(Math.ceil((1.25 * 400) / 4));
    expect(Math.max(...counts.values())).toBeGreaterThan(110);
  });
});
