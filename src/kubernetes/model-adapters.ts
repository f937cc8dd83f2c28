/** `ModelAdapter` (model.aibrix.ai/v1alpha1): which pods have loaded which LoRA adapter. No I/O. */
import { listOf, recordOf, textOf, type ResourceRef } from './objects.ts';

export type ModelAdapter = {
  /** What requests call it: the name of the resource. */
  readonly name: string;
  readonly isTerminating: boolean;
  /** Names of the pods that have loaded it. */
  readonly instances: readonly string[];
};

export function modelAdapters(namespace: string): ResourceRef {
  return { group: 'model.aibrix.ai', version: 'v1alpha1', plural: 'modeladapters', namespace };
}

export function readModelAdapter(object: unknown): ModelAdapter {
  const adapter = recordOf(object);
  const metadata = recordOf(adapter.metadata);
  const instances = listOf(recordOf(adapter.status).instances).map(textOf);
  return {
    name: textOf(metadata.name),
    isTerminating: textOf(metadata.deletionTimestamp) !== '',
    instances: instances.filter((name) => name !== '').sort(),
  };
}

/** @returns adapter names by pod name, each list in alphabetical order */
export function adaptersByPod(adapters: readonly ModelAdapter[]): ReadonlyMap<string, readonly string[]> {
  const byPod = new Map<string, string[]>();
  for (const { name, isTerminating, instances } of adapters) {
    // Unloading has begun: the pods listed may have it no more.
    if (isTerminating) continue;
    for (const pod of new Set(instances)) {
      const names = byPod.get(pod);
      if (names === undefined) byPod.set(pod, [name]);
      else names.push(name);
    }
  }
  for (const names of byPod.values()) names.sort();
  return byPod;
}
