/**
 * InferenceObjectives as they come, from every API group that may have them: whose priorities count, and what is in the way
 * of reading them. Nobody waits for objectives, and without any nothing is refused.
 */
import type { Log } from '../log.ts';
import {
  OBJECTIVE_GROUPS,
  prioritiesByName,
  type InferenceObjective,
  type ObjectiveGroup,
} from './inference-objectives.ts';
import type { Trouble } from './reflector.ts';

export type ObjectivesListenerDeps = {
  readonly log: Log;
  /** Priorities by name, after every change. */
  onObjectives(priorities: ReadonlyMap<string, number>): void;
  /** Where objectives were asked for: what keeps all groups from being read, null = nothing any more. */
  onProblem(problem: string | null): void;
};

export type ObjectivesListenerOptions = {
  /** `auto`: that there are none is no problem, and told once. */
  readonly wanted: 'auto' | 'on';
  /** Only those meant for this InferencePool; null = all. */
  readonly pool: string | null;
};

export type ObjectivesListener = {
  onSnapshot(objectives: readonly InferenceObjective[]): void;
  onTrouble(trouble: Trouble | null): void;
};

export function createObjectivesListener(
  { log, onObjectives, onProblem }: ObjectivesListenerDeps,
  { wanted, pool }: ObjectivesListenerOptions,
): (group: ObjectiveGroup) => ObjectivesListener {
  const byGroup = new Map<ObjectiveGroup, readonly InferenceObjective[]>();
  const troubles = new Map<ObjectiveGroup, Trouble>();
  let isTold = false;

  function show(): void {
    const all = OBJECTIVE_GROUPS.flatMap((group) => byGroup.get(group) ?? []);
    onObjectives(prioritiesByName(all, pool));
  }

  function tell(): void {
    // One of the groups is enough.
    const why =
      troubles.size < OBJECTIVE_GROUPS.length ? null : [...troubles.values()].map(({ text }) => text).join('; ');
    if (wanted === 'on') return onProblem(why);
    if (why === null || isTold) return;
    isTold = true;
    log.info('no InferenceObjectives: only routing.sheddableObjectives and numbers below zero may be refused', { why });
  }

  return (group) => ({
    onSnapshot(objectives) {
      byGroup.set(group, objectives);
      show();
    },
    onTrouble(trouble) {
      if (trouble === null) troubles.delete(group);
      else troubles.set(group, trouble);
      tell();
      // The CRD is gone, and with it the objects; with any other trouble the last known ones stay.
      if (trouble?.cause === 'not_found' && byGroup.delete(group)) show();
    },
  });
}
