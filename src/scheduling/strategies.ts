/**
 * Ranks endpoints by a named strategy or a mix of them. `prefix-cache` is scheduler.ts with a credit for sessions; the
 * others look at one signal each. What is not known of an endpoint counts as the mean of the others: neither a reason to
 * choose it nor to avoid it. Pure but for the chance it is handed.
 */
import { rendezvousWeight, type ScheduleInput, type ScheduleResult } from './scheduler.ts';
import type { Strategy, StrategyName } from './strategy-names.ts';

/** What strategies look at beside the load; null = not known. */
export type EngineSignals = {
  /** 0…1 */
  readonly kvUsage: number | null;
  /** Mean time to a whole answer of late, milliseconds. */
  readonly answerMs: number | null;
  /** Prompt and answer tokens served of late. */
  readonly tokensPerSecond: number;
};

export type SessionHint = {
  /** Names the session: the same on every replica. */
  readonly key: number;
  /** Where its last request went, an index into the candidates; null = not remembered, or gone. */
  readonly home: number | null;
};

export type RankInput = {
  readonly schedule: ScheduleInput;
  /** What `schedule` says of it: costs are shown whatever the strategy. */
  readonly scheduled: ScheduleResult;
  /** One per candidate; asked only by strategies that look at them. */
  readonly signals: () => readonly EngineSignals[];
  readonly session: SessionHint | null;
  /** 0 ≤ n < 1 */
  readonly random: () => number;
};

export type Ranking = {
  /** Every candidate once, best first. */
  readonly order: readonly number[];
  readonly reason: ScheduleResult['reason'] | 'session' | StrategyName | 'mix';
};

/** A session's endpoint may cost so much more than the best one: a person does not feel it… */
const SESSION_CREDIT_MS = 200;
/** …or this part of what is not known to be cached: it was there before, so some of it may be. */
const SESSION_CREDIT_PART = 0.5;
/** AIBrix: more requests apart than that, and prefixes do not count. */
const AIBRIX_IMBALANCE = 16;
const AIBRIX_SIGMAS = 2;

export function rank({ parts }: Strategy, input: RankInput): Ranking {
  const { candidates } = input.schedule;
  if (candidates.length === 0) return { order: [], reason: 'no candidate' };
  if (candidates.length === 1) return { order: [0], reason: 'only candidate' };
  if (parts.length > 1) return { order: byValue(mixed(parts, input), input), reason: 'mix' };
  const { name } = parts[0]!;
  switch (name) {
    case 'prefix-cache':
      return byCost(input);
    case 'random':
      return { order: shuffled(candidates.length, input.random), reason: name };
    case 'power-of-two':
      return { order: powerOfTwo(input), reason: name };
    case 'aibrix-prefix-cache':
      return { order: aibrixPrefixCache(input), reason: name };
    default:
      return { order: byValue(valuesOf(name, input), input), reason: name };
  }
}

/** One value per candidate, lower is better. */
function valuesOf(name: StrategyName, { schedule, scheduled, signals, session }: RankInput): readonly number[] {
  const { candidates } = schedule;
  switch (name) {
    case 'least-busy-time':
      return candidates.map(({ load }) => load.utilization);
    case 'least-latency':
      return known(signals().map(({ answerMs }) => answerMs));
    case 'least-kv-cache':
      return known(signals().map(({ kvUsage }) => kvUsage));
    case 'least-utilization': {
      const usage = known(signals().map(({ kvUsage }) => kvUsage));
      return candidates.map(({ load }, i) => Math.max(load.utilization, usage[i]!));
    }
    case 'throughput':
      return signals().map(({ tokensPerSecond }) => tokensPerSecond);
    case 'session-affinity':
      return session === null
        ? requestsOf(schedule)
        : candidates.map((one) => -rendezvousWeight(session.key, one.address));
    case 'prefix-cache':
      return scheduled.costsMs;
    case 'least-request':
    case 'random':
    case 'power-of-two':
    case 'aibrix-prefix-cache':
      return requestsOf(schedule);
  }
}

function requestsOf({ candidates }: ScheduleInput): number[] {
  return candidates.map(({ load }) => load.requests);
}

/** Each part's values scaled to 0…1 and weighted; a part in which all are equal decides nothing. */
function mixed(parts: Strategy['parts'], input: RankInput): readonly number[] {
  const sums = input.schedule.candidates.map(() => 0);
  for (const { name, weight } of parts) {
    const values = mixedValues(name, input);
    const least = Math.min(...values);
    const most = Math.max(...values);
    if (most > least) values.forEach((value, i) => (sums[i]! += (weight * (value - least)) / (most - least)));
  }
  return sums;
}

/** In a mix a session has one endpoint, the others are equally wrong; a request without one leaves the rest to decide. */
function mixedValues(name: StrategyName, input: RankInput): readonly number[] {
  if (name !== 'session-affinity') return valuesOf(name, input);
  if (input.session === null) return input.schedule.candidates.map(() => 0);
  const values = valuesOf(name, input);
  const least = Math.min(...values);
  return values.map((value) => (value === least ? 0 : 1));
}

/** The cost, and the credit a session has with the endpoint it was at. */
function byCost({ schedule, scheduled, session }: RankInput): Ranking {
  const { order, costsMs, reason } = scheduled;
  if (session === null) return { order, reason };
  const { candidates, promptTokens } = schedule;
  const owner = candidates.reduce((best, { address }, i) => {
    return rendezvousWeight(session.key, address) > rendezvousWeight(session.key, candidates[best]!.address) ? i : best;
  }, 0);
  const home = session.home ?? owner;
  const { load, cachedTokens } = candidates[home]!;
  const creditMs = SESSION_CREDIT_MS + SESSION_CREDIT_PART * (promptTokens - cachedTokens) * load.prefillMsPerToken;
  if (home === order[0] || costsMs[home]! - creditMs > costsMs[order[0]!]!) return { order, reason };
  return { order: [home, ...order.filter((index) => index !== home)], reason: 'session' };
}

function powerOfTwo({ schedule, random }: RankInput): readonly number[] {
  const order = shuffled(schedule.candidates.length, random);
  const requests = (place: number): number => schedule.candidates[order[place]!]!.load.requests;
  if (requests(1) < requests(0)) [order[0], order[1]] = [order[1]!, order[0]!];
  return order;
}

/** The selection gates of the AIBrix gateway's prefix cache router. σ is that of a sample, over all endpoints. */
function aibrixPrefixCache(input: RankInput): readonly number[] {
  const { candidates } = input.schedule;
  const requests = requestsOf(input.schedule);
  const byRequests = byValue(requests, input);
  const mean = requests.reduce((sum, n) => sum + n, 0) / requests.length;
  const variance = requests.reduce((sum, n) => sum + (n - mean) ** 2, 0) / (requests.length - 1);
  const limit = mean + AIBRIX_SIGMAS * Math.sqrt(variance);
  const least = Math.min(...requests);
  // Far apart, only those with the fewest stay.
  const most = Math.max(...requests) - least > AIBRIX_IMBALANCE ? least : limit;
  const isMatch = (i: number): boolean => candidates[i]!.cachedTokens > 0 && requests[i]! <= most;
  const matches = byRequests.filter(isMatch).sort((a, b) => candidates[b]!.cachedTokens - candidates[a]!.cachedTokens);
  return [...matches, ...byRequests.filter((i) => !isMatch(i))];
}

/** Lowest first; what is equal in an order of chance, so that nobody is the first of all ties. */
function byValue(values: readonly number[], { random }: Pick<RankInput, 'random'>): number[] {
  return shuffled(values.length, random).sort((a, b) => values[a]! - values[b]!);
}

function shuffled(n: number, random: () => number): number[] {
  const order = Array.from({ length: n }, (_, index) => index);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

function known(values: readonly (number | null)[]): readonly number[] {
  const told = values.filter((value) => value !== null);
  const mean = told.reduce((sum, value) => sum + value, 0) / Math.max(1, told.length);
  return values.map((value) => value ?? mean);
}
