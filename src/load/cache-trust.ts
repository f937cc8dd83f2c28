/**
 * What a promise of cached tokens is worth, per endpoint, as two weights from 0 to 1.
 *
 * `fresh`: of the blocks that events have announced, the part expected to be there still. Prompts computed since the events
 * were last known to be whole have pushed as many tokens out of the cache, the longest unused ones, and nobody was told. Which
 * those are is not known, so of `held` tokens each is gone with the same chance: pushed out ÷ held. An engine that computed
 * nothing meanwhile lost nothing, however long its events have been silent.
 *
 * `delivered`: of the tokens that were promised there of late, the part that the engine then found, as far as it is short of
 * what a right view delivers. Until an endpoint has shown some, as if it had kept its word a few times. Synchronous; the clock
 * is injected.
 */
import type { Clock } from '../clock.ts';

export type CreditWeights = { readonly fresh: number; readonly delivered: number };

/** What is known of the events of an endpoint, and of its cache. */
export type CacheEvidence = {
  /** When nothing was missing for the last time; null = never. */
  readonly provenUnixMs: number | null;
  /** How much later than usual events come. */
  readonly lagMs: number | null;
  /** In the endpoint's cache by its events. */
  readonly heldTokens: number;
  /** Null = not known: then it is taken to be full. */
  readonly capacityTokens: number | null;
  /** Requests of everybody ÷ own ones, at least 1. */
  readonly allPerOwn: number;
};

export type CacheTrust = {
  /** @param evidence null = nothing is announced */
  of(slot: number, evidence: CacheEvidence | null): CreditWeights;
  /** The endpoint has computed so many tokens of a prompt, and was done at that time of the clock. */
  computed(slot: number, tokens: number, atMs: number): void;
  /** What a prompt was promised when it was sent there, and what the engine says it found. */
  served(slot: number, promisedTokens: number, foundTokens: number): void;
  /** Another process is behind the slot. */
  forget(slot: number): void;
};

type Computed = { tokens: number; atMs: number };
type Promises = { n: number; promised: number; found: number };

/** Events leave with the end of an engine step: prompts that were done so shortly after the last ones may be in them. */
const GRACE_MS = 2_000;
/** Per endpoint; beyond, the oldest are added up. */
const MAX_COMPUTED = 256;
/** A promise weighs half after 69 further ones. */
const MEMORY = 0.99;
/** Promises that an endpoint nobody has asked is taken to have kept. */
const ASSUMED_KEPT = 10;
/** What is there at the choice may be pushed out before the prompt's turn: so much is found where the view is right. */
const RIGHT_PART = 0.9;

export function createCacheTrust(clock: Clock): CacheTrust {
  const computed = new Map<number, Computed[]>();
  const promises = new Map<number, Promises>();
  /** Some servers fill in 0 where they count nothing: a zero says something once anybody has said more. */
  let isCounted = false;

  /** Tokens computed after that time of the clock; forgets the others. */
  function computedSince(slot: number, sinceMs: number): number {
    const all = computed.get(slot);
    if (all === undefined || all.length === 0) return 0;
    let n = 0;
    let tokens = 0;
    for (const one of all) {
      if (one.atMs <= sinceMs) continue;
      all[n++] = one;
      tokens += one.tokens;
    }
    all.length = n;
    return tokens;
  }

  function fresh(slot: number, evidence: CacheEvidence): number {
    const { provenUnixMs, lagMs, heldTokens, capacityTokens, allPerOwn } = evidence;
    if (provenUnixMs === null) return 0;
    const ageMs = Math.max(0, clock.unixMs() - provenUnixMs) + Math.max(0, lagMs ?? 0);
    const unseen = allPerOwn * computedSince(slot, clock.nowMs() - ageMs + GRACE_MS);
    const room = capacityTokens === null ? 0 : Math.max(0, capacityTokens - heldTokens);
    return unseen <= room ? 1 : Math.max(0, 1 - (unseen - room) / heldTokens);
  }

  function delivered(slot: number): number {
    const own = promises.get(slot);
    if (own === undefined) return 1;
    const foundPart = ((own.n * own.found) / own.promised + ASSUMED_KEPT) / (own.n + ASSUMED_KEPT);
    return Math.min(1, foundPart / RIGHT_PART);
  }

  return {
    of: (slot, evidence) => ({
      fresh: evidence === null ? 0 : fresh(slot, evidence),
      delivered: delivered(slot),
    }),
    computed(slot, tokens, atMs) {
      if (!(tokens > 0)) return;
      let all = computed.get(slot);
      if (all === undefined) computed.set(slot, (all = []));
      all.push({ tokens, atMs });
      if (all.length <= MAX_COMPUTED) return;
      const [oldest] = all.splice(0, 1);
      all[0]!.tokens += oldest!.tokens;
    },
    served(slot, promisedTokens, foundTokens) {
      isCounted ||= foundTokens > 0;
      if (!isCounted || !(promisedTokens > 0) || !(foundTokens >= 0)) return;
      let own = promises.get(slot);
      if (own === undefined) promises.set(slot, (own = { n: 0, promised: 0, found: 0 }));
      own.n = own.n * MEMORY + 1;
      own.promised = own.promised * MEMORY + promisedTokens;
      // More than promised makes up for no promise broken.
      own.found = own.found * MEMORY + Math.min(foundTokens, promisedTokens);
    },
    forget(slot) {
      computed.delete(slot);
      promises.delete(slot);
    },
  };
}

/**
 * Tokens that a request is credited with: those routed there before will be there when it starts; announced ones behind
 * them as far as they are fresh, worth what their medium is worth; and all as far as the endpoint keeps its word.
 * @param cached `worth`, 0…1: of an announced token on average, less where it must be fetched from the host or a disk
 */
export function creditedTokens(
  cached: { readonly routedTokens: number; readonly announcedTokens: number; readonly worth: number },
  { fresh, delivered }: CreditWeights,
): number {
  const { routedTokens, announcedTokens, worth } = cached;
  return delivered * (routedTokens + fresh * worth * Math.max(0, announcedTokens - routedTokens));
}
