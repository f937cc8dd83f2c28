/**
 * Chooses the endpoint: lowest cost in milliseconds of delay, near-ties by rendezvous hash. Knows cached tokens and load,
 * never tokens, hashes, protobuf or Kubernetes. docs/design.md derives the cost.
 */
import type { Trust } from '../endpoints/endpoint.ts';
import type { Load } from '../load/in-flight.ts';

export type Candidate = {
  /** `ip:port`: identity for ties, so that replicas agree. */
  readonly address: string;
  readonly trust: Trust;
  /** Prompt tokens expected to be resident when the request starts, at most promptTokens. */
  readonly cachedTokens: number;
  readonly load: Load;
};

export type ScheduleInput = {
  readonly candidates: readonly Candidate[];
  readonly promptTokens: number;
  /** Names the prompt for ties: equal prompts give equal keys on every replica. */
  readonly tieKey: number;
  readonly prefillTokensPerSecond: number;
};

export type ScheduleResult = {
  /** Indexes into `candidates`, best first; empty only when there are none. */
  readonly order: readonly number[];
  /** Cost of every candidate in milliseconds, same order as `candidates`. */
  readonly costsMs: readonly number[];
  readonly reason: 'lowest cost' | 'near tie' | 'only candidate' | 'no candidate';
};

/**
 * Delay that one recomputed token causes to others: what it evicts must be recomputed, and who waits behind it waits
 * longer. A study of a public conversation trace found 3 + 4 × (mean waiting requests per endpoint) to win at every load.
 */
const EXTERNALITY_BASE = 3;
const EXTERNALITY_PER_WAITING = 4;
/** Delay added to a new request by every one already running there: a decode step grows with its batch. */
const DECODE_INTERFERENCE_MS = 2;
/** Costs this close are equal: below what the load estimate can tell apart. */
const NEAR_TIE_RATIO = 1.02;
const NEAR_TIE_MS = 1;

/** Ranks every candidate; pure, O(n log n) in the number of candidates. */
export function schedule(input: ScheduleInput): ScheduleResult {
  const { candidates, promptTokens, tieKey, prefillTokensPerSecond } = input;
  if (candidates.length === 0) return { order: [], costsMs: [], reason: 'no candidate' };
  const msPerToken = 1000 / prefillTokensPerSecond;
  const meanServiceMs = Math.max(1, promptTokens * msPerToken);
  let nWaiting = 0;
  // Waiting requests are not visible one by one: the backlog in units of a request like this one stands for them.
  for (const { load } of candidates) nWaiting += Math.min(load.requests, load.waitMs / meanServiceMs);
  const meanWaiting = nWaiting / candidates.length;
  const externality = EXTERNALITY_BASE + EXTERNALITY_PER_WAITING * meanWaiting;
  const costsMs = candidates.map(
    ({ load, cachedTokens }) =>
      load.waitMs +
      (promptTokens - cachedTokens) * msPerToken * (1 + externality) +
      load.requests * DECODE_INTERFERENCE_MS,
  );
  const order = candidates.map((_, index) => index);
  order.sort((a, b) => costsMs[a]! - costsMs[b]!);
  const limitMs = costsMs[order[0]!]! * NEAR_TIE_RATIO + NEAR_TIE_MS;
  let nTied = 1;
  while (nTied < order.length && costsMs[order[nTied]!]! <= limitMs) nTied += 1;
  if (nTied > 1) {
    const weight = (index: number): number => rendezvousWeight(tieKey, candidates[index]!.address);
    const tied = order.slice(0, nTied).sort((a, b) => weight(b) - weight(a));
    order.splice(0, nTied, ...tied);
  }
  const reason = candidates.length === 1 ? 'only candidate' : nTied > 1 ? 'near tie' : 'lowest cost';
  return { order, costsMs, reason };
}

/** Highest random weight (rendezvous) hashing: FNV-1a of the address, started from the key, finished by murmur3's mixer. */
export function rendezvousWeight(key: number, address: string): number {
  let h = (0x811c9dc5 ^ key) >>> 0;
  for (let i = 0; i < address.length; i++) h = Math.imul(h ^ address.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
