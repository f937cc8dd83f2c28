/** Options of the picker that a test or bench has no opinion on. */
import type { PickerOptions } from '../../src/endpoint-picker.ts';
import { parseStrategy, type Strategy } from '../../src/scheduling/strategy-names.ts';

export const PREFIX_CACHE_ONLY: Pick<PickerOptions, 'strategy' | 'shedding' | 'mediaWeights' | 'testSelectionHeader'> =
  {
    strategy: { default: aStrategy('prefix-cache'), header: '', allowed: [] },
    mediaWeights: { gpu: 1, host: 0.75, disk: 0.25 },
    shedding: { sheddableObjectives: [], priorityOf: () => null, shedWaitMs: 2000 },
    testSelectionHeader: '',
  };

export function aStrategy(text: string): Strategy {
  const parsed = parseStrategy(text);
  if (parsed.kind === 'mistake') throw new Error(`expected ${parsed.expected}, got ${text}`);
  return parsed.strategy;
}
