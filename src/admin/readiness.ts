/** Readiness as a set of named conditions: each is `ok`, `ok, but …` for what still serves, or the reason why not. */

export type Readiness = {
  /** @param name one of the names given at creation; @param value `ok`, `ok, but …`, or a reason in a few words */
  set(name: string, value: string): void;
  ready(): boolean;
  snapshot(): { readonly ready: boolean; readonly conditions: Readonly<Record<string, string>> };
  /** Called when a condition changed, with whether all of them hold now. */
  onChange(listener: (ready: boolean) => void): () => void;
};

/** Every condition begins as `starting`. */
export function createReadiness(names: readonly string[]): Readiness {
  const conditions = new Map<string, string>(names.map((name) => [name, 'starting']));
  const listeners = new Set<(ready: boolean) => void>();
  const ready = (): boolean =>
    [...conditions.values()].every((value) => value === 'ok' || value.startsWith('ok, but '));
  return {
    set(name, value) {
      const before = conditions.get(name);
      if (before === undefined)
        throw new Error(`unknown readiness condition ${name}, expected one of ${names.join(', ')}`);
      if (before === value) return;
      conditions.set(name, value);
      for (const listener of [...listeners]) listener(ready());
    },
    ready,
    snapshot: () => ({ ready: ready(), conditions: Object.fromEntries(conditions) }),
    onChange(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
}
