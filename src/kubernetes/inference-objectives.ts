/**
 * `InferenceObjective` (v1alpha2 of inference.networking.x-k8s.io, since llm-d 0.8 of llm-d.ai): how important requests are that
 * name it. No I/O.
 */
import { recordOf, textOf, type ResourceRef } from './objects.ts';

export type InferenceObjective = {
  /** What requests name in `x-gateway-inference-objective`. */
  readonly name: string;
  /** 0 unless said. */
  readonly priority: number;
  /** The InferencePool it is meant for. */
  readonly pool: string;
};

/** Both are followed, each where its CRD exists. */
export const OBJECTIVE_GROUPS = ['inference.networking.x-k8s.io', 'llm-d.ai'] as const;
export type ObjectiveGroup = (typeof OBJECTIVE_GROUPS)[number];

export function inferenceObjectives(group: ObjectiveGroup, namespace: string): ResourceRef {
  return { group, version: 'v1alpha2', plural: 'inferenceobjectives', namespace };
}

export function readInferenceObjective(object: unknown): InferenceObjective {
  const { metadata, spec } = recordOf(object);
  const { priority, poolRef } = recordOf(spec);
  return {
    name: textOf(recordOf(metadata).name),
    priority: typeof priority === 'number' && Number.isFinite(priority) ? priority : 0,
    pool: textOf(recordOf(poolRef).name),
  };
}

/**
 * @param pool only those meant for this InferencePool; null = all
 * @returns priorities by name; where both groups have a name, the lower one: whoever moves from one to the other loses no limit
 */
export function prioritiesByName(
  objectives: readonly InferenceObjective[],
  pool: string | null,
): ReadonlyMap<string, number> {
  const priorities = new Map<string, number>();
  for (const one of objectives) {
    if (one.name === '' || (pool !== null && one.pool !== pool)) continue;
    priorities.set(one.name, Math.min(one.priority, priorities.get(one.name) ?? Infinity));
  }
  return priorities;
}
