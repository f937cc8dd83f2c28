/** Builders of decoded KV events, and a small bench of index, hasher and engine blocks around them. */
import type { EndpointId } from '../../src/endpoints/endpoint.ts';
import { createEngineBlocks, type EngineBlocksLimits } from '../../src/kvevents/engine-blocks.ts';
import type { BlockRemoved, BlockStored, KvEvent, KvEventBatch } from '../../src/kvevents/kv-event.ts';
import type { SourceStatus } from '../../src/kvevents/source-status.ts';
import { createBlockHasher, createHashSeed, type BlockExtraKeys } from '../../src/prefix/block-hash.ts';
import {
  createPrefixIndexMemory,
  openPrefixIndexReader,
  openPrefixIndexWriter,
  type PrefixIndexMemory,
} from '../../src/prefix/prefix-index.ts';
import type { PrefixMatch } from '../../src/prefix/prefix-match.ts';

export const BLOCK = 16;

/** Repeatable random words, so that a failure can be run again. */
export function seededWords(seed: number): (words: Uint32Array) => void {
  const next = createRandom(seed);
  return (words) => words.forEach((_, i) => (words[i] = next(2 ** 32)));
}

/** @returns a generator of integers 0 ≤ x < n */
export function createRandom(seed: number): (n: number) => number {
  let state = seed >>> 0;
  return (n) => {
    state = (state + 0x9e3779b9) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return Math.floor(((x ^ (x >>> 15)) >>> 0) * 2 ** -32 * n);
  };
}

/** Tokens of a block, all told apart by its number. */
export function blockTokens(id: number, size = BLOCK): number[] {
  return Array.from({ length: size }, (_, i) => (id * 7919 + i * 31) % 150_000);
}

export function promptOf(ids: readonly number[], size = BLOCK): Uint32Array {
  return Uint32Array.from(ids.flatMap((id) => blockTokens(id, size)));
}

/** Engine hashes [hi, lo] out of plain numbers. */
export function engineHashes(...ids: readonly number[]): Uint32Array {
  return Uint32Array.from(ids.flatMap((id) => [0xabcd0000 + Math.floor(id / 2 ** 32), id >>> 0]));
}

export function stored(
  hashes: readonly number[],
  parent: number | null,
  tokenIds: Uint32Array,
  more: Partial<BlockStored> = {},
): BlockStored {
  const words = parent === null ? null : engineHashes(parent);
  return {
    type: 'BlockStored',
    blockHashes: engineHashes(...hashes),
    parentBlockHash: words === null ? null : [words[0]!, words[1]!],
    tokenIds,
    blockSizeTokens: BLOCK,
    loraId: null,
    loraName: null,
    medium: 'GPU',
    extraKeys: null,
    groupIdx: 0,
    kvCacheSpecKind: 'full_attention',
    ...more,
  };
}

export function removed(hashes: readonly number[], more: Partial<BlockRemoved> = {}): BlockRemoved {
  return { type: 'BlockRemoved', blockHashes: engineHashes(...hashes), medium: 'GPU', groupIdx: 0, ...more };
}

export const cleared: KvEvent = { type: 'AllBlocksCleared' };

export function batchOf(events: readonly KvEvent[], dataParallelRank: number | null = 0): KvEventBatch {
  return { ts: 1, events, dataParallelRank, skipped: [] };
}

export type BenchOptions = {
  memory?: PrefixIndexMemory;
  maxBytes?: number;
  limits?: Partial<EngineBlocksLimits>;
  seed?: number;
};
export type Query = {
  model?: string;
  adapter?: string | null;
  size?: number;
  extraKeys?: BlockExtraKeys | null;
};

/** Everything between decoded events and a match, in one thread. */
export function createIndexBench(options: BenchOptions = {}) {
  const memory = options.memory ?? createPrefixIndexMemory({ maxBytes: options.maxBytes ?? 4 * 2 ** 20 });
  const writer = openPrefixIndexWriter(memory);
  const reader = openPrefixIndexReader(memory);
  const hasher = createBlockHasher(createHashSeed(seededWords(options.seed ?? 1)));
  const engineBlocks = createEngineBlocks({ index: writer, hasher, limits: options.limits });
  engineBlocks.tidy(0);
  const emptyBytes = writer.stats().nBytes;
  return {
    memory,
    engineBlocks,
    emptyBytes,
    writer,
    reader,
    hasher,
    source: (slot: number, rank = 0, model = 'm') => engineBlocks.openSource({ slot, rank, model }),
    match(tokenIds: Uint32Array, query: Query = {}): PrefixMatch {
      const size = query.size ?? BLOCK;
      const root = hasher.root(query.model ?? 'm', query.adapter ?? null, size);
      return reader.longestMatch(hasher.blocks(tokenIds, root, size, query.extraKeys));
    },
  };
}

/** A live source of which nothing is missing. */
export function aSourceStatus(changes: Partial<SourceStatus> = {}): SourceStatus {
  return {
    endpointId: 'pod' as EndpointId,
    rank: 0,
    state: 'live',
    trust: 'exact',
    connection: 'up',
    lastSeq: '7',
    gaps: 0,
    replays: 1,
    restarts: 0,
    errors: 0,
    nBlocks: 3,
    blockSizeTokens: 16,
    reportsExtraKeys: 'yes',
    lastEventUnixMs: 5,
    lagMs: 1,
    lastBatchUnixMs: 5,
    lastProvenUnixMs: 5,
    behind: 0,
    replay: 'works',
    partial: false,
    ...changes,
  };
}

/** Work that is done bit by bit, in one go. */
export function atOnce<T>(work: Generator<void, T>): T {
  for (;;) {
    const { done, value } = work.next();
    if (done === true) return value;
  }
}
