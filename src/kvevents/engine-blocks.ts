/**
 * From what engines announce to what the index holds: engine hashes become own keys, copies are counted, media told
 * apart. Pure: no log, no clock, no I/O; `apply` returns counts and its caller records them. The rules for one engine
 * are in engine-mirror.ts; here engines are grouped into sources and share names and index.
 */
import { WarmpathError, errorText } from '../errors.ts';
import type { BlockHasher } from '../prefix/block-hash.ts';
import type { IndexOwner, PrefixIndexWriter } from '../prefix/prefix-index.ts';
import {
  createEngineMirror,
  createEngineScratch,
  noCounts,
  type ApplyResult,
  type EngineBlocksLimits,
  type EngineBlocksStats,
  type EngineMirror,
  type EngineShared,
} from './engine-mirror.ts';
import { createEngineNames, NAME_BYTES_PER_CHUNK } from './engine-names.ts';
import type { KvEventBatch } from './kv-event.ts';
import { decodeSnapshot, encodeSnapshot } from './source-snapshot.ts';

export type { ApplyResult, EngineBlocksLimits, EngineBlocksStats } from './engine-mirror.ts';

export type EngineBlocksSource = {
  apply(batch: KvEventBatch): ApplyResult;
  /** Forgets everything, including what was learnt about the engine's version. Matches end at once. */
  clear(): void;
  /** Clears and gives the source's place in the index back; no call may follow. */
  close(): void;
  stats(): EngineBlocksStats;
  /**
   * All that is known now, bit by bit, to be taken over by a replica with the same hash seed; null where that cannot be said,
   * or when something changes before it is over.
   */
  snapshot(): Generator<void, Uint32Array | null>;
  /**
   * Forgets what is known and takes a snapshot over, bit by bit. Nothing may be applied before it is over; `clear` ends it.
   * @throws WarmpathError `peer_failed`, and then knows nothing
   */
  restore(snapshot: Uint32Array): Generator<void, void>;
};

export type EngineBlocks = {
  /**
   * Takes out some of what sources no longer hold after a clear or close; nothing of it is in any match meanwhile.
   * Every `apply` does a little of it; call this when there is time.
   * @returns whether any is left
   */
  tidy(maxBlocks: number): boolean;
  /** @param rank data-parallel rank of batches that name none; @param model canonical served name */
  openSource(source: { slot: number; rank: number; model: string }): EngineBlocksSource;
};

const DEFAULT_LIMITS: EngineBlocksLimits = {
  maxParkedBlocks: 4096,
  maxParkedTokens: 1 << 20,
  maxRoots: 1024,
  maxRanks: 64,
};
/** Taken out by the way of every batch. */
const TIDY_BLOCKS = 512;

export function createEngineBlocks(deps: {
  index: PrefixIndexWriter;
  hasher: BlockHasher;
  limits?: Partial<EngineBlocksLimits>;
}): EngineBlocks {
  const { index, hasher } = deps;
  const names = createEngineNames(index.nChunks, index.maxBytes);
  const byOwner = new Map<IndexOwner, EngineMirror>();
  const limits = { ...DEFAULT_LIMITS, ...deps.limits };
  const memory = { nBytes: 0 };
  const shared: EngineShared = { index, hasher, names, byOwner, limits, memory, scratch: createEngineScratch() };
  index.observe({
    bytesPerChunk: NAME_BYTES_PER_CHUNK,
    otherBytes: () => names.nBytes() + memory.nBytes,
    unheld: (position) => names.drop(position),
    dropping(owner, position) {
      names.dropOwn(owner, position);
      byOwner.get(owner)?.evicted(position);
    },
  });

  return {
    tidy: (maxBlocks) => index.sweep(maxBlocks),
    openSource({ slot, rank, model }) {
      const ranks = new Map<number, EngineMirror>();
      let nChanges = 0;
      let nClears = 0;
      const mirrorOf = (id: number): EngineMirror => {
        const mirror = createEngineMirror(shared, { slot, rank: id, model }, () => void nChanges++);
        ranks.set(id, mirror);
        return mirror;
      };
      const clear = (): void => {
        nChanges++;
        nClears++;
        for (const mirror of ranks.values()) mirror.close();
        ranks.clear();
      };
      function* fill(words: Uint32Array): Generator<void, 'whole'> {
        for (const engine of yield* decodeSnapshot(words)) {
          try {
            yield* mirrorOf(engine.rank).restore(engine);
          } catch (error) {
            throw new WarmpathError('peer_failed', `snapshot refused: ${errorText(error)}`, { cause: error });
          }
        }
        return 'whole';
      }
      return {
        apply(batch) {
          const counts = noCounts();
          const id = batch.dataParallelRank ?? rank;
          let mirror = ranks.get(id);
          if (mirror === undefined) {
            if (ranks.size >= shared.limits.maxRanks) {
              counts.nSkipped += batch.events.length;
              return counts;
            }
            mirror = mirrorOf(id);
          }
          nChanges++;
          mirror.apply(batch.events, counts);
          index.sweep(TIDY_BLOCKS);
          return counts;
        },
        clear,
        close: clear,
        snapshot() {
          const seen = nChanges;
          return unless(
            () => nChanges !== seen,
            encodeSnapshot([...ranks.values()].map((mirror) => mirror.recorded())),
          );
        },
        *restore(words) {
          clear();
          const seen = nClears;
          try {
            const whole = yield* unless(() => nClears !== seen, fill(words));
            if (whole === null) throw new WarmpathError('peer_failed', 'snapshot refused: overtaken');
          } catch (error) {
            if (nClears === seen) clear();
            throw error;
          }
        },
        stats: () => sumStats([...ranks.values()].map((mirror) => mirror.stats())),
      };
    },
  };
}

/** The work, given up at the first step that comes after something has happened. */
function* unless<T>(hasHappened: () => boolean, work: Generator<void, T>): Generator<void, T | null> {
  while (!hasHappened()) {
    const { done, value } = work.next();
    if (done === true) return value;
    yield;
  }
  return null;
}

function sumStats(ranks: readonly EngineBlocksStats[]): EngineBlocksStats {
  const sizes = new Set(ranks.map((rank) => rank.blockSizeTokens).filter((size) => size !== null));
  const extraKeys = new Set(ranks.map((rank) => rank.reportsExtraKeys));
  return {
    nBlocks: ranks.reduce((sum, rank) => sum + rank.nBlocks, 0),
    blockSizeTokens: sizes.size === 1 ? [...sizes][0]! : null,
    reportsExtraKeys: extraKeys.has('no') ? 'no' : extraKeys.has('yes') ? 'yes' : 'unknown',
    indexable: ranks.every((rank) => rank.indexable),
    partial: ranks.some((rank) => rank.partial),
    nOrphans: ranks.reduce((sum, rank) => sum + rank.nOrphans, 0),
  };
}
