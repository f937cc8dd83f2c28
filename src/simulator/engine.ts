/**
 * One simulated engine: steps over the scheduler's plans that take as long as their tokens take, so that a cached prefix
 * really shortens the time to the first token. One event batch leaves at the end of a step, only if something happened,
 * and before the step's tokens are delivered. Time is injected; sockets and texts are not its business.
 */
import type { Clock, Timer } from '../clock.ts';
import type { MultimodalFeature } from '../tokenizer/tokenizer.ts';
import { noneHashOf, prefixTokenIds, type LoraAdapter } from './block-chain.ts';
import { BlockPool, type PoolEvent, type UncachedBlocks } from './block-pool.ts';
import { createHistogram, type HistogramSnapshot } from './histogram.ts';
import { createScheduler, type ScheduledRequest, type StepPlan } from './scheduler.ts';
import { createSequence, createSequenceCache } from './sequence-cache.ts';

export type EngineOptions = {
  readonly blockSizeTokens: number;
  /** Physical blocks, one of which is the null block. */
  readonly nBlocks: number;
  readonly uncachedBlocks: UncachedBlocks;
  readonly prefillTokensPerSecond: number;
  /** Time a step takes on top of its prefill when it decodes for at least one request. */
  readonly decodeStepMs: number;
  readonly maxBatchedTokens: number;
  readonly maxSequences: number;
  /** Engines with different seeds name the same blocks differently. */
  readonly seed: number;
};

export type EngineRequest = {
  readonly id: string;
  /** Not empty; with `maxTokens` it fits into the cache. */
  readonly promptTokenIds: Iterable<number>;
  readonly features: readonly MultimodalFeature[];
  readonly lora: LoraAdapter | null;
  readonly cacheSalt: string | null;
  readonly cacheReads: 'allowed' | 'skipped';
  /** Tokens to generate, at least 1. */
  readonly maxTokens: number;
  /** Why the answer ends after them; counted only. */
  readonly finishReason: 'length' | 'stop';
  /** The token at `index` of the answer. */
  generate(index: number): number;
  /** Called once per generated token, in order, until `last` is true or the request is aborted. */
  onToken(output: { readonly tokenId: number; readonly cachedTokens: number; readonly last: boolean }): void;
};

export type EngineStats = {
  readonly running: number;
  readonly waiting: number;
  /** Part of the usable blocks in use, 0…1. */
  readonly kvCacheUsage: number;
  readonly steps: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generationTokens: number;
  readonly finishedRequests: number;
  readonly finishedByReason: Readonly<Record<'length' | 'stop', number>>;
  readonly abortedRequests: number;
  readonly preemptions: number;
  readonly prefixCacheQueryTokens: number;
  readonly prefixCacheHitTokens: number;
  /** Names of adapters with a request running or waiting. */
  readonly runningAdapters: readonly string[];
  readonly waitingAdapters: readonly string[];
  readonly timeToFirstTokenSeconds: HistogramSnapshot;
  readonly requestLatencySeconds: HistogramSnapshot;
};

/** A findable block as tests compare it with an index. */
export type ResidentBlock = {
  /** The engine's name: 32 bytes. */
  readonly digest: Buffer;
  /** Physical copies. */
  readonly nCopies: number;
  /** All tokens from the start of the prompt to the end of this block. */
  prefixTokenIds(): Uint32Array;
};

export type Engine = {
  /** Several requests at once reach the same step. */
  submit(requests: readonly EngineRequest[]): void;
  /** Takes effect between steps; unknown ids are ignored. */
  abort(id: string): void;
  resetPrefixCache(): 'done' | 'in_use';
  /** Finishes the step under way, then does nothing until `resume`. */
  stall(): void;
  resume(): void;
  /** Every request is dropped without a further call. */
  stop(): void;
  stats(): EngineStats;
  residentBlocks(): ResidentBlock[];
};

/** Being late by up to this much is made up by the following steps; a longer pause of the process is not. */
const MAX_CATCH_UP_MS = 20;

/** Bucket bounds of vLLM's latency histograms, thinned out. */
const LATENCY_BOUNDS_SECONDS = [0.01, 0.02, 0.04, 0.08, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 160];

type LiveRequest = ScheduledRequest & {
  readonly request: EngineRequest;
  readonly submittedMs: number;
  nGenerated: number;
};

/** @param publish takes the events of one step and its time in Unix seconds */
export function createEngine(
  deps: { readonly clock: Clock; publish(events: readonly PoolEvent[], unixSeconds: number): void },
  options: EngineOptions,
): Engine {
  const { clock } = deps;
  const noneHash = noneHashOf(options.seed);
  const pool = new BlockPool(options.nBlocks, options.uncachedBlocks);
  const scheduler = createScheduler<LiveRequest>(pool, createSequenceCache(pool, options.blockSizeTokens), options);
  const live = new Map<string, LiveRequest>();
  const counters = { steps: 0, promptTokens: 0, cachedTokens: 0, generationTokens: 0, aborted: 0 };
  const finished = { length: 0, stop: 0 };
  const timeToFirstToken = createHistogram(LATENCY_BOUNDS_SECONDS);
  const requestLatency = createHistogram(LATENCY_BOUNDS_SECONDS);
  const aborted = new Set<LiveRequest>();
  let step: Timer | null = null;
  let state: 'serving' | 'stalled' | 'stopped' = 'serving';

  /** @param earliestMs a step that follows another one begins where that one should have ended, not where the timer fired */
  const startStep = (earliestMs: number): void => {
    if (step !== null || state !== 'serving' || live.size === 0) return;
    const plan = scheduler.plan();
    const nowMs = clock.nowMs();
    const endMs = Math.max(earliestMs, nowMs - MAX_CATCH_UP_MS) + durationMs(plan, options);
    step = clock.after(Math.max(0, endMs - nowMs), () => {
      // Calls that come back from the deliveries find the step still under way.
      finishStep(plan);
      step = null;
      startStep(endMs);
    });
  };

  const finishStep = (plan: StepPlan<LiveRequest>): void => {
    counters.steps++;
    const deliveries: (() => void)[] = [];
    for (const { request: entry, nTokens } of plan.parts) {
      entry.nComputed += nTokens;
      if (aborted.has(entry)) continue;
      if (entry.nComputed === entry.sequence.tokenIds.length) deliveries.push(generateToken(entry));
    }
    const events = pool.takeEvents();
    if (events.length > 0) deps.publish(events, clock.unixMs() / 1000);
    for (const deliver of deliveries) deliver();
    dropAborted();
  };

  const generateToken = (entry: LiveRequest): (() => void) => {
    const { request, sequence } = entry;
    const cachedTokens = entry.cachedTokens ?? 0;
    const tokenId = request.generate(entry.nGenerated++);
    counters.generationTokens++;
    if (entry.nGenerated === 1) {
      counters.promptTokens += sequence.nPromptTokens;
      counters.cachedTokens += cachedTokens;
      timeToFirstToken.observe(secondsSince(entry.submittedMs));
    }
    sequence.tokenIds.push(tokenId);
    const last = entry.nGenerated === request.maxTokens;
    if (last) {
      finished[request.finishReason]++;
      requestLatency.observe(secondsSince(entry.submittedMs));
      live.delete(entry.id);
      scheduler.remove(entry);
    }
    return () => request.onToken({ tokenId, cachedTokens, last });
  };

  const secondsSince = (ms: number): number => (clock.nowMs() - ms) / 1000;

  const dropAborted = (): void => {
    for (const entry of aborted) scheduler.remove(entry);
    aborted.clear();
  };

  return {
    submit(requests) {
      if (state === 'stopped') return;
      for (const request of requests) {
        const root = { noneHash, lora: request.lora, cacheSalt: request.cacheSalt, features: request.features };
        const entry: LiveRequest = {
          id: request.id,
          request,
          sequence: createSequence(root, request.promptTokenIds),
          cacheReads: request.cacheReads,
          nComputed: 0,
          cachedTokens: null,
          submittedMs: clock.nowMs(),
          nGenerated: 0,
        };
        live.set(entry.id, entry);
        scheduler.add(entry);
      }
      startStep(clock.nowMs());
    },

    abort(id) {
      const entry = live.get(id);
      if (entry === undefined) return;
      live.delete(id);
      counters.aborted++;
      aborted.add(entry);
      // A step under way still computes the request's tokens; its blocks are handed back after it.
      if (step === null) dropAborted();
    },

    resetPrefixCache: () => pool.reset(),

    stall() {
      if (state === 'serving') state = 'stalled';
    },

    resume() {
      if (state === 'stalled') state = 'serving';
      startStep(clock.nowMs());
    },

    stop() {
      state = 'stopped';
      step?.cancel();
      step = null;
      live.clear();
    },

    stats: () => ({
      running: scheduler.running.length,
      waiting: scheduler.waiting.length,
      kvCacheUsage: pool.usage,
      steps: counters.steps,
      promptTokens: counters.promptTokens,
      cachedTokens: counters.cachedTokens,
      generationTokens: counters.generationTokens,
      finishedRequests: finished.length + finished.stop,
      finishedByReason: { ...finished },
      abortedRequests: counters.aborted,
      ...scheduler.counters,
      runningAdapters: adapterNames(scheduler.running),
      waitingAdapters: adapterNames(scheduler.waiting),
      timeToFirstTokenSeconds: timeToFirstToken.snapshot(),
      requestLatencySeconds: requestLatency.snapshot(),
    }),

    residentBlocks: () =>
      Array.from(pool.resident(), ({ block, nCopies }) => ({
        digest: block.digest,
        nCopies,
        prefixTokenIds: () => prefixTokenIds(block),
      })),
  };
}

function durationMs(plan: StepPlan<LiveRequest>, options: EngineOptions): number {
  const prefillMs = (plan.nPrefillTokens / options.prefillTokensPerSecond) * 1000;
  return prefillMs + (plan.nDecodes > 0 ? options.decodeStepMs : 0);
}

function adapterNames(requests: readonly LiveRequest[]): string[] {
  return [...new Set(requests.flatMap(({ request }) => (request.lora === null ? [] : [request.lora.name])))];
}
