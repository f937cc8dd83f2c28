/** What peers keep about requests they routed: counts in flight, and which prefixes went where. */
import { BlockCache } from '../block-cache.ts';
import type { EngineRequest } from '../engine.ts';
import type { EngineProbe } from './policy.ts';

/** A sum per engine over requests in flight there. */
export type InFlightSum = {
  of(engine: EngineProbe): number;
  add(request: EngineRequest, engine: EngineProbe, amount: number): void;
  /** Subtracts what was added for the request; a second call changes nothing. */
  remove(request: EngineRequest, engine: EngineProbe): void;
};

export function createInFlightSum(): InFlightSum {
  const sums = new Map<number, number>();
  const amounts = new Map<number, number>();
  return {
    of: ({ id }) => sums.get(id) ?? 0,
    add(request, { id }, amount) {
      amounts.set(request.index, amount);
      sums.set(id, (sums.get(id) ?? 0) + amount);
    },
    remove(request, { id }) {
      const amount = amounts.get(request.index);
      if (amount === undefined) return;
      amounts.delete(request.index);
      sums.set(id, (sums.get(id) ?? 0) - amount);
    },
  };
}

/** Prefixes by own decisions, per engine, least recently routed ones forgotten first. */
export type RoutedIndex = {
  matchedBlocks(request: EngineRequest, engine: EngineProbe): number;
  add(request: EngineRequest, engine: EngineProbe): void;
  forget(engine: EngineProbe): void;
};

export function createRoutedIndex(maxBlocksPerEngine: number): RoutedIndex {
  const caches = new Map<number, BlockCache>();
  return {
    matchedBlocks: ({ blocks }, { id }) => caches.get(id)?.matchLength(blocks) ?? 0,
    add({ blocks }, { id }) {
      let cache = caches.get(id);
      if (!cache) caches.set(id, (cache = new BlockCache(maxBlocksPerEngine)));
      for (let i = blocks.length - 1; i >= 0; i--) {
        if (cache.acquire(blocks[i]!)) cache.release(blocks[i]!);
      }
      cache.takeChanges();
    },
    forget: ({ id }) => void caches.delete(id),
  };
}

/** Blocks as KV events announce them. */
export type AnnouncedBlocks = {
  matchedBlocks(request: EngineRequest, engine: EngineProbe): number;
  /** @param id of the engine */
  nBlocks(id: number): number;
  apply(engine: EngineProbe, changes: readonly number[]): void;
  forget(engine: EngineProbe): void;
};

export function createAnnouncedBlocks(): AnnouncedBlocks {
  const held = new Map<number, Set<number>>();
  return {
    matchedBlocks({ blocks }, { id }) {
      const ofEngine = held.get(id);
      if (!ofEngine) return 0;
      let n = 0;
      while (n < blocks.length && ofEngine.has(blocks[n]!)) n += 1;
      return n;
    },
    nBlocks: (id) => held.get(id)?.size ?? 0,
    apply({ id }, changes) {
      let ofEngine = held.get(id);
      if (!ofEngine) held.set(id, (ofEngine = new Set()));
      for (const change of changes) {
        if (change >= 0) ofEngine.add(change);
        else ofEngine.delete(~change);
      }
    },
    forget: ({ id }) => void held.delete(id),
  };
}
