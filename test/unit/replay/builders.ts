/** Small workloads and scenarios of the replay's own tests. */
import { simpleTiming } from '../../../src/replay/timing.ts';
import type { Scenario } from '../../../src/replay/replay.ts';
import { createWorkloadBuilder, type Workload } from '../../../src/replay/workload.ts';

export type Line = { at?: number; prompt: number; output?: number; ids: readonly number[] };

export function aWorkload(lines: readonly Line[]): Workload {
  const builder = createWorkloadBuilder('test');
  for (const { at = 0, prompt, output = 1, ids } of lines) builder.add(at, prompt, output, ids);
  return builder.build();
}

export function aScenario(changes: Partial<Scenario> & { engines?: number } = {}): Scenario {
  const { engines = 2, ...others } = changes;
  return {
    timing: simpleTiming(1000, 512),
    engineSpeeds: Array.from({ length: engines }, () => 1),
    speed: 1,
    cacheBlocks: 100,
    eventDelayMs: 0,
    eventLoss: 0,
    crashes: [],
    scaleOuts: [],
    replicas: 1,
    deciding: 'all',
    routerDeaths: [],
    seed: 1,
    ...others,
  };
}

export async function* linesOf(text: string): AsyncGenerator<string> {
  yield* text.split('\n');
}
