/**
 * A workload (kv-workload.ts) applied to engine blocks and index as decoded events, and to the usual index as bigints. The
 * hash is stubbed, a block is one "token": what is measured is names, runs and extents. Making the events costs time
 * itself; `prepare` passes do only that, to be subtracted.
 */
import { createEngineBlocks, type EngineBlocksSource } from '../../src/kvevents/engine-blocks.ts';
import type { BlockRemoved, BlockStored, KvEventBatch } from '../../src/kvevents/kv-event.ts';
import type { BlockHasher } from '../../src/prefix/block-hash.ts';
import { createPrefixIndexMemory, openPrefixIndexWriter } from '../../src/prefix/prefix-index.ts';
import type { UsualIndex } from './kv-usual.ts';
import { mix32, type Stretch, type Workload } from './kv-workload.ts';

/** shared: engines give a block the same hash. private: each its own, as with a seed per process. */
export type EngineHashes = 'shared' | 'private';
export type Pass = 'prepare' | 'apply';

const REMOVALS_PER_BATCH = 256;
const CHURN_BLOCKS = 32;

/** Own keys of blocks, as the stubbed hash gives them: [hi, lo] each. */
export function keysOf(blocks: Uint32Array): Uint32Array {
  const keys = new Uint32Array(2 * blocks.length);
  writeKeys(blocks, blocks.length, keys);
  return keys;
}

function writeKeys(blocks: Uint32Array, n: number, keys: Uint32Array): void {
  for (let i = 0; i < n; i++) {
    keys[2 * i] = mix32(blocks[i]!, 1);
    keys[2 * i + 1] = mix32(blocks[i]!, 2);
  }
}

const stubbedHasher = {
  root: () => [1, 2],
  continueBlocks: (_hi: number, _lo: number, tokens: Uint32Array, n: number, _: number, __: null, out: Uint32Array) =>
    writeKeys(tokens, n, out),
} as unknown as BlockHasher;

export type IndexLoad = ReturnType<typeof createIndexLoad>;

export function createIndexLoad(workload: Workload, hashes: EngineHashes) {
  const memory = createPrefixIndexMemory({ maxBytes: Math.max(2 ** 24, workload.nEntries * 40) });
  const writer = openPrefixIndexWriter(memory);
  const engineBlocks = createEngineBlocks({ index: writer, hasher: stubbedHasher });
  const sources: EngineBlocksSource[] = [];
  for (let slot = 0; slot < workload.nEngines; slot++) {
    sources.push(engineBlocks.openSource({ slot, rank: 0, model: 'm' }));
  }
  const byEngine = workload.stores.toReversed().sort((a, b) => a.engine - b.engine);
  const hashWords = new Uint32Array(4096);
  const views = Array.from({ length: 2049 }, (_, n) => hashWords.subarray(0, 2 * n));
  const parent: [number, number] = [0, 0];
  const event: { -readonly [K in keyof BlockStored]: BlockStored[K] } = {
    type: 'BlockStored',
    blockHashes: hashWords,
    parentBlockHash: null,
    tokenIds: hashWords,
    blockSizeTokens: 1,
    loraId: null,
    loraName: null,
    medium: 'GPU',
    extraKeys: null,
    groupIdx: 0,
    kvCacheSpecKind: 'full_attention',
  };
  const batch: KvEventBatch = { ts: 1, events: [event], dataParallelRank: 0, skipped: [] };
  const removals = Array.from({ length: REMOVALS_PER_BATCH }, (): BlockRemoved => ({
    type: 'BlockRemoved',
    blockHashes: new Uint32Array(2),
    medium: 'GPU',
    groupIdx: 0,
  }));
  const salt = (engine: number): number => (hashes === 'private' ? engine + 1 : 0);

  function prepareStore({ engine, parent: before, blocks }: Stretch): void {
    const of = salt(engine);
    for (let i = 0; i < blocks.length; i++) {
      hashWords[2 * i] = mix32(blocks[i]!, 100 + of);
      hashWords[2 * i + 1] = mix32(blocks[i]!, 200 + of);
    }
    parent[0] = mix32(before, 100 + of);
    parent[1] = mix32(before, 200 + of);
    event.parentBlockHash = before === 0 ? null : parent;
    event.blockHashes = views[blocks.length]!;
    event.tokenIds = blocks;
  }

  /** One event per block, the last block first, as engines evict. */
  function removeBlocks(stretches: readonly Stretch[], pass: Pass): void {
    let n = 0;
    let engine = -1;
    const flush = (): void => {
      if (n > 0 && pass === 'apply') {
        sources[engine]!.apply({ ...batch, events: n === removals.length ? removals : removals.slice(0, n) });
      }
      n = 0;
    };
    for (const { engine: its, blocks } of stretches) {
      if (its !== engine) flush();
      engine = its;
      const of = salt(engine);
      for (let i = blocks.length - 1; i >= 0; i--) {
        const words = removals[n]!.blockHashes;
        words[0] = mix32(blocks[i]!, 100 + of);
        words[1] = mix32(blocks[i]!, 200 + of);
        if (++n === removals.length) flush();
      }
    }
    flush();
  }

  function store(stretch: Stretch): void {
    prepareStore(stretch);
    sources[stretch.engine]!.apply(batch);
  }

  return {
    memory,
    store,
    stats: () => writer.stats(),
    tidy: (maxBlocks: number) => engineBlocks.tidy(maxBlocks),
    storeAll(pass: Pass): void {
      for (const stretch of workload.stores) {
        prepareStore(stretch);
        if (pass === 'apply') sources[stretch.engine]!.apply(batch);
      }
    },
    /** Engine by engine, newest first. */
    removeAll: (pass: Pass) => removeBlocks(byEngine, pass),
    /** The tail of a prompt goes and comes back. @returns operations done */
    churn(promptIndex: number): number {
      const { blocks, engines } = workload.prompts[promptIndex]!;
      const engine = engines[0]!;
      const n = Math.min(CHURN_BLOCKS, blocks.length >>> 3);
      const tail = { engine, parent: blocks[blocks.length - n - 1]!, blocks: blocks.subarray(blocks.length - n) };
      removeBlocks([tail], 'apply');
      store(tail);
      return 2 * n;
    },
    /** An endpoint goes: out of sight now, out of memory by and by. */
    closeSource: (engine: number) => sources[engine]!.close(),
  };
}

/** The same blocks as bigints. */
export function storeUsually(workload: Workload, index: UsualIndex, how: Pass | 'remove'): number {
  const pods = Array.from({ length: workload.nEngines }, (_, engine) => `10.0.0.${engine}:8000`);
  let sum = 0;
  for (const { engine, blocks } of workload.stores) {
    for (let i = 0; i < blocks.length; i++) {
      const key = usualKey(blocks[i]!);
      if (how === 'prepare') sum += Number(key & 1n);
      else if (how === 'apply') index.store(key, pods[engine]!);
      else index.remove(key, pods[engine]!);
    }
  }
  return sum;
}

export function usualKey(block: number): bigint {
  return (BigInt(mix32(block, 1)) << 32n) | BigInt(mix32(block, 2));
}
