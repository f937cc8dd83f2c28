/**
 * Which tokens one engine step computes: running requests first, then waiting ones first come first served, under a
 * token budget with chunked prefill; when the cache has no room the youngest running request is preempted. After vLLM's
 * v1 scheduler. Synchronous; how long a step takes is the engine's business.
 */
import type { BlockPool } from './block-pool.ts';
import type { Sequence, SequenceCache } from './sequence-cache.ts';

export type ScheduledRequest = {
  readonly id: string;
  readonly sequence: Sequence;
  /** Cached blocks are not read (a request for prompt log-probabilities needs every position computed). */
  readonly cacheReads: 'allowed' | 'skipped';
  /** Tokens whose KV is in the cache. */
  nComputed: number;
  /** Prompt tokens served from the cache when the request was first scheduled, null before. */
  cachedTokens: number | null;
};

export type StepPlan<R extends ScheduledRequest> = {
  readonly parts: readonly { readonly request: R; readonly nTokens: number }[];
  /** Tokens of prompts (or of preempted sequences) computed in this step. */
  readonly nPrefillTokens: number;
  /** Requests that compute just their newest token. */
  readonly nDecodes: number;
};

export type SchedulerLimits = { readonly maxBatchedTokens: number; readonly maxSequences: number };

export type SchedulerCounters = {
  prefixCacheQueryTokens: number;
  prefixCacheHitTokens: number;
  preemptions: number;
};

export type Scheduler<R extends ScheduledRequest> = {
  readonly running: readonly R[];
  readonly waiting: readonly R[];
  readonly counters: Readonly<SchedulerCounters>;
  add(request: R): void;
  /** Plans the next step and reserves its blocks. */
  plan(): StepPlan<R>;
  /** Takes a request out, wherever it is, and hands its blocks back. */
  remove(request: R): void;
};

export function createScheduler<R extends ScheduledRequest>(
  pool: BlockPool,
  cache: SequenceCache,
  limits: SchedulerLimits,
): Scheduler<R> {
  let running: R[] = [];
  const waiting: R[] = [];
  const counters: SchedulerCounters = { prefixCacheQueryTokens: 0, prefixCacheHitTokens: 0, preemptions: 0 };

  const preemptYoungest = (): R => {
    const victim = running.pop()!;
    cache.release(victim.sequence);
    victim.nComputed = 0;
    waiting.unshift(victim);
    counters.preemptions++;
    return victim;
  };

  /** @returns tokens given to the request, 0 when it had to be preempted itself */
  const continueRunning = (request: R, budget: number): number => {
    const nTokens = Math.min(request.sequence.tokenIds.length - request.nComputed, budget);
    while (cache.allocate(request.sequence, request.nComputed + nTokens, []) === 'no_room') {
      if (preemptYoungest() === request) return 0;
    }
    return nTokens;
  };

  /** @returns tokens given to the request, 0 when the cache has no room for it now */
  const admit = (request: R, budget: number): number => {
    const { sequence } = request;
    const hits = request.cacheReads === 'allowed' ? cache.lookUp(sequence) : [];
    const nCached = hits.length * cache.blockSizeTokens;
    const nTokens = Math.min(sequence.tokenIds.length - nCached, budget);
    if (cache.allocate(sequence, nCached + nTokens, hits) === 'no_room') return 0;
    request.nComputed = nCached;
    if (request.cachedTokens === null) {
      request.cachedTokens = nCached;
      if (request.cacheReads === 'allowed') {
        counters.prefixCacheQueryTokens += sequence.tokenIds.length;
        counters.prefixCacheHitTokens += nCached;
      }
    }
    return nTokens;
  };

  return {
    get running() {
      return running;
    },
    waiting,
    counters,
    add: (request) => void waiting.push(request),

    plan() {
      const parts: { request: R; nTokens: number }[] = [];
      let budget = limits.maxBatchedTokens;
      let nPrefillTokens = 0;
      let nDecodes = 0;
      const give = (request: R, nTokens: number): void => {
        parts.push({ request, nTokens });
        budget -= nTokens;
        const isDecode = nTokens === 1 && request.nComputed >= request.sequence.nPromptTokens;
        if (isDecode) nDecodes++;
        else nPrefillTokens += nTokens;
      };

      const nPreemptedBefore = counters.preemptions;
      for (let i = 0; i < running.length && budget > 0; i++) {
        const nTokens = continueRunning(running[i]!, budget);
        if (nTokens === 0) break;
        give(running[i]!, nTokens);
      }
      // A step that had to preempt has no room for newcomers.
      while (counters.preemptions === nPreemptedBefore && waiting.length > 0 && budget > 0) {
        if (running.length === limits.maxSequences) break;
        const request = waiting[0]!;
        const nTokens = admit(request, budget);
        if (nTokens === 0) break;
        waiting.shift();
        running.push(request);
        give(request, nTokens);
      }
      return { parts, nPrefillTokens, nDecodes };
    },

    remove(request) {
      const at = waiting.indexOf(request);
      if (at >= 0) waiting.splice(at, 1);
      running = running.filter((other) => other !== request);
      cache.release(request.sequence);
    },
  };
}
