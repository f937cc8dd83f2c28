/** Names a simulated pod answers to: its base model and LoRA adapters, which may come and go at run time. */
import type { LoraAdapter } from './block-chain.ts';

export type ServedModel = { readonly name: string; readonly lora: LoraAdapter | null };

export type ServedModels = {
  readonly base: string;
  /** @param name null asks for the base model; undefined means unknown */
  resolve(name: string | null): ServedModel | undefined;
  /** Base first, adapters in the order they were loaded. */
  list(): readonly ServedModel[];
  /** @param path where its weights lie */
  load(adapter: string, path: string): 'done' | 'already_loaded';
  unload(adapter: string): 'done' | 'unknown';
};

export function createServedModels(base: string, adapters: readonly string[]): ServedModels {
  const loaded = new Map<string, LoraAdapter>();
  // Ids are never given twice: a reloaded adapter is another one to the engine.
  let lastId = 0;
  const load = (name: string, path: string): 'done' | 'already_loaded' => {
    if (name === base || loaded.has(name)) return 'already_loaded';
    loaded.set(name, { id: ++lastId, name, path });
    return 'done';
  };
  for (const name of adapters) load(name, name);
  return {
    base,
    resolve(name) {
      if (name === null || name === base) return { name: base, lora: null };
      const lora = loaded.get(name);
      return lora === undefined ? undefined : { name, lora };
    },
    list: () => [{ name: base, lora: null }, ...Array.from(loaded.values(), (lora) => ({ name: lora.name, lora }))],
    load,
    unload: (name) => (loaded.delete(name) ? 'done' : 'unknown'),
  };
}
