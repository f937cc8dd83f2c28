/** `InferencePool` (inference.networking.k8s.io/v1): which pods and which of their ports it stands for. No I/O. */
import { listOf, recordOf, textOf, textsOf, type ResourceRef } from './objects.ts';

export type InferencePool =
  | {
      readonly kind: 'pool';
      readonly name: string;
      /** As the API server takes it. */
      readonly labelSelector: string;
      /** One to eight, each a port of its own on every pod. */
      readonly targetPorts: readonly number[];
    }
  /** Exists and cannot be followed. */
  | { readonly kind: 'unusable'; readonly name: string; readonly reason: string };

export function inferencePools(namespace: string): ResourceRef {
  return { group: 'inference.networking.k8s.io', version: 'v1', plural: 'inferencepools', namespace };
}

export function readInferencePool(object: unknown): InferencePool {
  const pool = recordOf(object);
  const name = textOf(recordOf(pool.metadata).name);
  const spec = recordOf(pool.spec);
  const matchLabels = Object.entries(textsOf(recordOf(spec.selector).matchLabels));
  const targetPorts = listOf(spec.targetPorts).map((one) => recordOf(one).number);
  if (matchLabels.length === 0) {
    return { kind: 'unusable', name, reason: 'spec.selector.matchLabels must have at least one label' };
  }
  if (targetPorts.length === 0 || !targetPorts.every(isPort) || new Set(targetPorts).size < targetPorts.length) {
    return { kind: 'unusable', name, reason: 'spec.targetPorts must be different ports from 1 to 65535' };
  }
  // Sorted, so that the same selector written in another order is the same selector.
  const labelSelector = matchLabels
    .map(([key, value]) => `${key}=${value}`)
    .sort()
    .join(',');
  return { kind: 'pool', name, labelSelector, targetPorts };
}

function isPort(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= 65_535;
}
