/** What the demo found, as numbers, as the JSON programs read and as the table people read. */
import type { ChatOutcome } from './chat-client.ts';

export type Percentiles = { readonly p50: number; readonly p95: number; readonly p99: number };

export type RunReport = {
  readonly failed: number;
  /** Cached part of the prompt tokens, as the engines reported it with every answer. */
  readonly hitRate: number;
  /** Time to first token of answered requests. */
  readonly ttftMs: Percentiles;
  /** Requests each pod finished. */
  readonly perEndpoint: readonly number[];
};

export type DemoReport = {
  /** Version, null when the built-in driver stood in. */
  readonly envoy: string | null;
  readonly workload: { readonly requests: number; readonly idealHitRate: number };
  readonly roundRobin: RunReport;
  /** `predictedHitRate`: the same share as Warmpath foretold it when it picked. */
  readonly warmpath: RunReport & { readonly predictedHitRate: number };
};

export function runReport(outcomes: readonly ChatOutcome[], perEndpoint: readonly number[]): RunReport {
  const answered = outcomes.filter((outcome) => outcome.kind === 'answered');
  const sum = (of: (outcome: (typeof answered)[number]) => number): number =>
    answered.reduce((total, outcome) => total + of(outcome), 0);
  return {
    failed: outcomes.length - answered.length,
    hitRate: ratio(
      sum((outcome) => outcome.cachedTokens),
      sum((outcome) => outcome.promptTokens),
    ),
    ttftMs: percentiles(answered.map((outcome) => outcome.ttftMs)),
    perEndpoint,
  };
}

/** @returns 0 where there is nothing to divide by */
export function ratio(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}

/** Nearest rank. */
export function percentiles(values: readonly number[]): Percentiles {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (p: number): number => sorted[Math.max(0, Math.ceil((p / 100) * sorted.length) - 1)] ?? 0;
  return { p50: at(50), p95: at(95), p99: at(99) };
}

/** How often each failure was met, most frequent first. */
export function failureReasons(outcomes: readonly ChatOutcome[]): readonly (readonly [string, number])[] {
  const counts = new Map<string, number>();
  for (const outcome of outcomes) {
    if (outcome.kind === 'failed') counts.set(outcome.reason, (counts.get(outcome.reason) ?? 0) + 1);
  }
  return [...counts].sort(([, a], [, b]) => b - a);
}

/** One line, rates with four digits and times with one after the point. */
export function reportJson(report: DemoReport): string {
  return JSON.stringify(report, (key, value: unknown) => {
    if (typeof value !== 'number') return value;
    return Number(value.toFixed(key.endsWith('itRate') ? 4 : 1));
  });
}

export function reportTable({ envoy, workload, roundRobin, warmpath }: DemoReport): string {
  const percent = (rate: number): string => `${(100 * rate).toFixed(1)} %`;
  const ms = (value: number): string => `${value.toFixed(0)} ms`;
  const shared = (report: RunReport): string => report.perEndpoint.join(' ');
  const rows: (readonly [string, string, string])[] = [
    ['', 'round robin', 'Warmpath'],
    ['requests', String(workload.requests), String(workload.requests)],
    ['failed', String(roundRobin.failed), String(warmpath.failed)],
    ['token hit rate (engines)', percent(roundRobin.hitRate), percent(warmpath.hitRate)],
    ['  predicted by Warmpath', '–', percent(warmpath.predictedHitRate)],
    ['  ideal of this workload', percent(workload.idealHitRate), percent(workload.idealHitRate)],
    ['time to first token, p50', ms(roundRobin.ttftMs.p50), ms(warmpath.ttftMs.p50)],
    ['  p95', ms(roundRobin.ttftMs.p95), ms(warmpath.ttftMs.p95)],
    ['  p99', ms(roundRobin.ttftMs.p99), ms(warmpath.ttftMs.p99)],
    ['requests per pod', shared(roundRobin), shared(warmpath)],
  ];
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column as 0 | 1 | 2].length)));
  const lines = rows.map(
    ([name, left, right]) =>
      `${name.padEnd(widths[0]!)}   ${left.padStart(widths[1]!)}   ${right.padStart(widths[2]!)}`,
  );
  const through = envoy === null ? 'the built-in ext_proc driver (no Envoy)' : `Envoy ${envoy}`;
  return [`through ${through}`, '', ...lines].join('\n');
}
