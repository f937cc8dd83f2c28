/**
 * Chooses the endpoint: lowest cost in milliseconds of delay, to this request and to the ones after it; near-ties by
 * rendezvous hash. Knows cached tokens and load, never tokens, hashes, protobuf or Kubernetes. docs/design.md derives the
 * cost.
 */
import type { Trust } from '../endpoints/endpoint.ts';
import type { Load } from '../load/in-flight.ts';

export type Candidate = {
  /** `ip:port`: identity for ties, the same on every replica. */
  readonly address: string;
  readonly trust: Trust;
  /** Prompt tokens expected to be resident when the request starts, at most promptTokens. */
  readonly cachedTokens: number;
  /** Since the last use of what the prompt would push out there, milliseconds; null = nothing, or not known. */
  readonly evictedAgeMs: number | null;
  readonly load: Load;
};

export type ScheduleInput = {
  readonly candidates: readonly Candidate[];
  readonly promptTokens: number;
  /**
   * Names the prompt for ties: prompts that go on equally after what is cached give equal keys, on every replica that has the
   * same hash seed.
   */
  readonly tieKey: number;
  /**
   * Others that a copy of the longest cached part would serve, anywhere: requests in flight that begin with it, or prompts
   * of late that parted from others behind it.
   */
  readonly sharers: number;
};

export type ScheduleResult = {
  /** Indexes into `candidates`, best first; empty only when there are none. */
  readonly order: readonly number[];
  /** Cost of every candidate in milliseconds, same order as `candidates`. */
  readonly costsMs: readonly number[];
  readonly reason: 'lowest cost' | 'near tie' | 'only candidate' | 'no candidate';
};

/**
 * What a millisecond of prompt computing costs others where nobody waits: it pushes out of the cache what they will ask
 * for. Computing that again delays somebody only while an engine is busy, and costs what is busy then: utilization².
 */
const EVICTION_COST = 100;
const MOST_EVICTION_COST = 20;
/** One cache for all would push out the oldest of all: what is younger by a factor of e is asked for again that much more often. */
const YOUNGER_COST = 0.03;
const LEAST_AGE_MS = 1000;
/** For every request that waits, on average and at the endpoint itself: as many are yet to come, and will wait longer. */
const WAITING_COST = 3;
const OWN_WAITING_COST = 2;
/** Answers under way there wait, in part, while the prompt is computed: milliseconds per answer and millisecond of it. */
const ANSWERS_COST = 0.03;
/** A step of decoding reads the context of all answers: milliseconds per token that is there, over the own answer. */
const CONTEXT_MS_PER_TOKEN = 0.0008;
/** What others send unseen delays this request, or this request delays each of theirs, whichever comes first. */
const UNSEEN_PROMPTS_COST = 2;
/** Costs this close, in parts of the prompt's time without any cache, are equal: below what estimates can tell apart. */
const NEAR_TIE_PART = 0.02;
const NEAR_TIE_MS = 1;

/** Ranks every candidate; pure, O(n log n) in the number of candidates. */
export function schedule(input: ScheduleInput): ScheduleResult {
  const { candidates, promptTokens, sharers } = input;
  if (candidates.length === 0) return { order: [], costsMs: [], reason: 'no candidate' };
  let arrivalsPerSecond = 0;
  let waitMs = 0;
  let mostCached = 0;
  let msPerToken = 0;
  let utilization = 0;
  for (const { load, cachedTokens } of candidates) {
    arrivalsPerSecond += load.arrivalsPerSecond;
    waitMs += load.waitMs;
    utilization += load.savableUtilization / candidates.length;
    msPerToken += load.prefillMsPerToken / candidates.length;
    mostCached = Math.max(mostCached, cachedTokens);
  }
  // Little's law: how many wait = how many come × how long each waits.
  const meanWaiting = (arrivalsPerSecond / candidates.length) * (waitMs / candidates.length / 1000);
  const evictionCost = Math.min(MOST_EVICTION_COST, EVICTION_COST * utilization ** 2);
  let oldestMs = LEAST_AGE_MS;
  for (const { evictedAgeMs } of candidates) oldestMs = Math.max(oldestMs, evictedAgeMs ?? 0);
  // No function per candidate: numbers it shares with the loops around it would lie on the heap, each change a new one.
  const costsMs: number[] = [];
  for (const { load, cachedTokens, evictedAgeMs } of candidates) {
    const uncached = promptTokens - cachedTokens;
    // A pass begins once for all that share it.
    const setupMs = load.passPrompts > 0 ? 0 : load.prefillSetupMs;
    const computingMs = setupMs + uncached * load.prefillMsPerToken;
    // A second copy of a prefix that several want serves all of them: each bears its part.
    const copied = mostCached - cachedTokens;
    const borne = uncached - copied + copied / (1 + sharers);
    const waiting = load.arrivalsPerSecond * (load.waitMs / 1000);
    // What is pushed out is computed again anywhere, those who wait wait here.
    const younger = Math.log(oldestMs / Math.max(LEAST_AGE_MS, evictedAgeMs ?? oldestMs));
    const evictionMs = borne * msPerToken * evictionCost * (1 + YOUNGER_COST * younger);
    const queueMs = borne * load.prefillMsPerToken * (WAITING_COST * meanWaiting + OWN_WAITING_COST * waiting);
    const answersMs = Math.max(0, load.requests - load.waiting) * computingMs * ANSWERS_COST;
    const contextMs = (load.contextTokens * CONTEXT_MS_PER_TOKEN * load.prefillMsPerToken) / msPerToken;
    const unseenMs = load.unseenMs + UNSEEN_PROMPTS_COST * load.unseenPrompts * computingMs;
    // Those that share its pass get their first tokens at the end of it, too.
    const passMs = load.passPrompts * Math.min(uncached, load.passRoomTokens) * load.prefillMsPerToken;
    costsMs.push(load.waitMs + computingMs + passMs + evictionMs + queueMs + answersMs + contextMs + unseenMs);
  }
  let cheapest = 0;
  for (let i = 1; i < costsMs.length; i++) if (costsMs[i]! < costsMs[cheapest]!) cheapest = i;
  const best = candidates[cheapest]!.load;
  const promptMs = best.prefillSetupMs + promptTokens * best.prefillMsPerToken;
  const limitMs = costsMs[cheapest]! + NEAR_TIE_PART * promptMs + NEAR_TIE_MS;
  let nTied = 0;
  for (const costMs of costsMs) if (costMs <= limitMs) nTied += 1;
  const order = nTied > 1 ? tiedFirst(input, costsMs, limitMs) : byCost(costsMs);
  const reason = candidates.length === 1 ? 'only candidate' : nTied > 1 ? 'near tie' : 'lowest cost';
  return { order, costsMs, reason };
}

function byCost(costsMs: readonly number[]): number[] {
  return costsMs.map((_, index) => index).sort((a, b) => compare(costsMs[a]!, costsMs[b]!));
}

/** Among those up to the limit the order is that of their weights. */
function tiedFirst(
  { candidates, promptTokens, tieKey }: ScheduleInput,
  costsMs: readonly number[],
  limitMs: number,
): number[] {
  const isTied = (index: number): boolean => costsMs[index]! <= limitMs;
  const weights = candidates.map(({ address }, index) => (isTied(index) ? rendezvousWeight(tieKey, address) : 0));
  // Of a prompt that is not shown nothing can be told but how many requests there are.
  const requests = (index: number): number => (promptTokens === 0 ? candidates[index]!.load.requests : 0);
  const byTie = (a: number, b: number): number => requests(a) - requests(b) || compare(weights[b]!, weights[a]!);
  return costsMs
    .map((_, index) => index)
    .sort((a, b) => (isTied(a) && isTied(b) && byTie(a, b)) || compare(costsMs[a]!, costsMs[b]!));
}

/** Ascending. */
function compare(a: number, b: number): number {
  return a < b ? -1 : Number(a > b);
}

/** Highest random weight (rendezvous) hashing: FNV-1a of the address, started from the key, finished by murmur3's mixer. */
export function rendezvousWeight(key: number, address: string): number {
  let h = (0x811c9dc5 ^ key) >>> 0;
  for (let i = 0; i < address.length; i++) h = Math.imul(h ^ address.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
