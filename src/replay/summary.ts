/** What a replay comes to, in numbers a table, JSON lines and the plot share; and the mark of one pooled cache. */
import { BlockCache } from './block-cache.ts';
import type { ReplayOutcome, RequestOutcome } from './replay.ts';
import { engineBlocks, type TimingModel } from './timing.ts';
import type { Workload } from './workload.ts';

export type Summary = {
  readonly requests: number;
  /** Requests without an answer: 0 unless no engine is left. */
  readonly unanswered: number;
  /** Cached ÷ prompt tokens at admission; a request that lost its place is admitted, and counted, again. */
  readonly hitRate: number;
  readonly ttftMs: {
    readonly mean: number;
    readonly p50: number;
    readonly p90: number;
    readonly p95: number;
    readonly p99: number;
  };
  readonly e2eMs: { readonly mean: number; readonly p99: number };
  /** Busiest engine ÷ mean, in time spent computing; 1 = even. */
  readonly imbalance: number;
  readonly preemptions: number;
  readonly requestsPerEngine: readonly number[];
  readonly computedTokensPerEngine: readonly number[];
  /** Hit rate by arrival, in `TIMELINE_PARTS` equal parts of the workload's time. */
  readonly hitRateTimeline: readonly number[];
  readonly ttftMsTimeline: readonly number[];
};

export const TIMELINE_PARTS = 24;

export function summarize(outcome: ReplayOutcome): Summary {
  const answered = outcome.requests.filter(({ ttftMs }) => ttftMs >= 0);
  const ttfts = answered.map(({ ttftMs }) => ttftMs).sort((a, b) => a - b);
  const e2es = answered
    .filter(({ e2eMs }) => e2eMs >= 0)
    .map(({ e2eMs }) => e2eMs)
    .sort((a, b) => a - b);
  const { busyMsPerEngine } = outcome;
  return {
    requests: outcome.requests.length,
    unanswered: outcome.requests.length - answered.length,
    hitRate: outcome.cachedTokens / Math.max(1, outcome.queriedTokens),
    ttftMs: {
      mean: mean(ttfts),
      p50: percentile(ttfts, 0.5),
      p90: percentile(ttfts, 0.9),
      p95: percentile(ttfts, 0.95),
      p99: percentile(ttfts, 0.99),
    },
    e2eMs: { mean: mean(e2es), p99: percentile(e2es, 0.99) },
    imbalance: Math.max(...busyMsPerEngine) / (mean(busyMsPerEngine) || 1),
    preemptions: outcome.preemptions,
    requestsPerEngine: outcome.requestsPerEngine,
    computedTokensPerEngine: outcome.computedTokensPerEngine,
    hitRateTimeline: timeline(outcome.requests, (part) => {
      const tokens = part.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
      return tokens === 0 ? 0 : part.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0) / tokens;
    }),
    ttftMsTimeline: timeline(outcome.requests, (part) => mean(part.map(({ ttftMs }) => Math.max(0, ttftMs)))),
  };
}

/** Hit rate of one cache as large as all engines' together, served in the order of arrival, without a wait. */
export function pooledLruHitRate(workload: Workload, timing: TimingModel, totalBlocks: number): number {
  const cache = new BlockCache(totalBlocks);
  let hits = 0;
  let tokens = 0;
  for (const { blocks, promptTokens } of workload.requests) {
    const ids = engineBlocks(blocks, workload.blockTokens, promptTokens, timing);
    hits += Math.min(cache.matchLength(ids) * timing.blockTokens, promptTokens - 1);
    tokens += promptTokens;
    for (let i = ids.length - 1; i >= 0; i--) if (cache.acquire(ids[i]!)) cache.release(ids[i]!);
    cache.takeChanges();
  }
  return hits / Math.max(1, tokens);
}

/** Nearest rank; 0 of nothing. @param sorted ascending */
export function percentile(sorted: readonly number[], part: number): number {
  return sorted.length === 0
    ? 0
    : sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(part * sorted.length) - 1))]!;
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((a, b) => a + b, 0) / values.length;
}

function timeline(requests: readonly RequestOutcome[], value: (part: readonly RequestOutcome[]) => number): number[] {
  const parts: RequestOutcome[][] = Array.from({ length: TIMELINE_PARTS }, () => []);
  const endMs = (requests.at(-1)?.arrivalMs ?? 0) + 1;
  for (const request of requests) parts[Math.floor((request.arrivalMs / endMs) * TIMELINE_PARTS)]!.push(request);
  return parts.map(value);
}
