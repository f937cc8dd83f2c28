/**
 * How long exact tokens take to come, per model: prompts of one may be long, or its servers slow, while those of another
 * answer at once. Says what a wait is worth, and whether any is.
 */

export type AnswerTimes = {
  /** The smoothed wait for an answer, milliseconds, at most the budget. */
  expectedWaitMs(model: string): number;
  /** False while answers hardly ever come within the budget: waits would only delay. */
  areInTime(model: string): boolean;
  /** An answer, or the end of a call without one, took so long, whether or not somebody waited for it. */
  note(model: string, durationMs: number): void;
};

type Times = { expectedWaitMs: number; inTime: number };

const SMOOTHING = 0.1;
/** Share of answers within the budget, smoothed: below it waits end without tokens four times out of five. */
const WORTHWHILE_IN_TIME = 0.2;
/** Models come from discovery; this bounds a mistake there. */
const MAX_MODELS = 1000;

export function createAnswerTimes(budgetMs: number): AnswerTimes {
  const models = new Map<string, Times>();
  return {
    expectedWaitMs: (model) => models.get(model)?.expectedWaitMs ?? budgetMs,
    areInTime: (model) => (models.get(model)?.inTime ?? 1) >= WORTHWHILE_IN_TIME,
    note(model, durationMs) {
      let times = models.get(model);
      if (times === undefined) {
        if (models.size >= MAX_MODELS) models.delete(models.keys().next().value!);
        models.set(model, (times = { expectedWaitMs: budgetMs, inTime: 1 }));
      }
      times.expectedWaitMs += (Math.min(durationMs, budgetMs) - times.expectedWaitMs) * SMOOTHING;
      times.inTime += ((durationMs <= budgetMs ? 1 : 0) - times.inTime) * SMOOTHING;
    },
  };
}
