/**
 * Work nobody waits for gives way: a request whose objective is below zero is refused while every endpoint that could
 * serve it has a longer wait than allowed. Nothing else is ever refused for load.
 */
import type { PickError, PickRequest } from '../extproc/picker.ts';

export type SheddingOptions = {
  /** Names of objectives whose priority is below zero, whatever else is said of them. */
  readonly sheddableObjectives: readonly string[];
  /** What is said of others; null = nothing. */
  readonly priorityOf: (objective: string) => number | null;
  readonly shedWaitMs: number;
};

const OBJECTIVE_HEADERS = ['x-gateway-inference-objective', 'x-llm-d-inference-objective'];

/** @param leastWaitMs of all endpoints that could serve the request */
export function shed(
  { sheddableObjectives, priorityOf, shedWaitMs }: SheddingOptions,
  pick: Pick<PickRequest, 'header'>,
  leastWaitMs: number,
  model: string,
): PickError | null {
  if (leastWaitMs <= shedWaitMs) return null;
  const objective = OBJECTIVE_HEADERS.map((name) => pick.header(name)?.trim()).find((value) => value !== undefined);
  if (objective === undefined) return null;
  const isSheddable = /^-\d{1,9}$/.test(objective)
    ? Number(objective) < 0
    : sheddableObjectives.includes(objective) || (priorityOf(objective) ?? 0) < 0;
  if (!isSheddable) return null;
  return {
    kind: 'error',
    status: 429,
    type: 'rate_limit_error',
    code: 'overloaded',
    param: null,
    message: 'Every endpoint is busy, and requests of this objective give way. Try again later.',
    reason: 'shed',
    model,
    retryAfterSeconds: Math.max(1, Math.ceil((leastWaitMs - shedWaitMs) / 1000)),
  };
}
