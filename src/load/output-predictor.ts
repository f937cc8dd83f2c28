/**
 * How many tokens an answer will have, before it begins: what answers to prompts of about this length had of late, per
 * model. Prompts of one power of two are one bucket; few answers in a bucket lean on its neighbours and on all of the
 * model. Synchronous; the clock is injected.
 */
import type { Clock } from '../clock.ts';

export type OutputPredictor = {
  observe(model: string, promptTokens: number, outputTokens: number): void;
  /** Expected tokens of the answer; null before the model's first one. */
  predict(model: string, promptTokens: number): number | null;
};

export type OutputPredictorOptions = {
  /** Answers older than that are forgotten. */
  readonly windowMs?: number;
};

const WINDOW_MS = 600_000;
/** The window moves in so many steps. */
const N_STEPS = 10;
/** Prompts up to 2^20 tokens; longer ones are the last bucket's. */
const N_BUCKETS = 21;
/** An answer of the next bucket weighs so much, one of any other as one of so few. */
const NEIGHBOUR_WEIGHT = 0.25;
const MODEL_ANSWERS = 4;
/** Models beyond are not remembered: a fleet serves few. */
const MAX_MODELS = 256;

/** Per step and bucket: number of answers, and their tokens. */
type Window = { counts: Float64Array; sums: Float64Array; step: number };

export function createOutputPredictor(
  clock: Clock,
  { windowMs = WINDOW_MS }: OutputPredictorOptions = {},
): OutputPredictor {
  const windows = new Map<string, Window>();
  const stepMs = windowMs / N_STEPS;

  /** Empties the steps that the window has left. */
  function moveOn(window: Window): void {
    const now = Math.floor(clock.nowMs() / stepMs);
    for (let step = Math.max(window.step + 1, now - N_STEPS + 1); step <= now; step++) {
      const at = (step % N_STEPS) * N_BUCKETS;
      window.counts.fill(0, at, at + N_BUCKETS);
      window.sums.fill(0, at, at + N_BUCKETS);
    }
    window.step = Math.max(window.step, now);
  }

  return {
    observe(model, promptTokens, outputTokens) {
      if (!(promptTokens >= 0) || !(outputTokens >= 0) || !Number.isFinite(promptTokens + outputTokens)) return;
      let window = windows.get(model);
      if (window === undefined) {
        if (windows.size >= MAX_MODELS) return;
        const n = N_STEPS * N_BUCKETS;
        window = { counts: new Float64Array(n), sums: new Float64Array(n), step: Math.floor(clock.nowMs() / stepMs) };
        windows.set(model, window);
      }
      moveOn(window);
      const at = (window.step % N_STEPS) * N_BUCKETS + bucketOf(promptTokens);
      window.counts[at]! += 1;
      window.sums[at]! += outputTokens;
    },
    predict(model, promptTokens) {
      const window = windows.get(model);
      if (window === undefined) return null;
      moveOn(window);
      const own = bucketOf(promptTokens);
      let [n, sum, nAll, sumAll] = [0, 0, 0, 0];
      for (let i = 0; i < window.counts.length; i++) {
        const count = window.counts[i]!;
        if (count === 0) continue;
        const distance = Math.abs((i % N_BUCKETS) - own);
        const weight = distance === 0 ? 1 : distance === 1 ? NEIGHBOUR_WEIGHT : 0;
        n += weight * count;
        sum += weight * window.sums[i]!;
        nAll += count;
        sumAll += window.sums[i]!;
      }
      if (nAll === 0) return null;
      return (sum + (MODEL_ANSWERS * sumAll) / nAll) / (n + MODEL_ANSWERS);
    },
  };
}

function bucketOf(promptTokens: number): number {
  return Math.min(N_BUCKETS - 1, Math.floor(Math.log2(promptTokens + 1)));
}
