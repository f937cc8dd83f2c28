/**
 * From what engines announce to what the index holds: engine hashes become own keys, copies are counted, media told
 * apart. Pure: no log, no clock, no I/O; `apply` returns counts and its caller records them.
 *
 * Rules. A block is only placed behind a parent that this engine has announced, never at the root by default; until
 * then it is parked. Copies count per (source, rank, medium, hash), with a floor of zero. Only one KV group is mirrored,
 * and only if it is the engine's only one: where an engine also has sliding-window, Mamba or further groups, resident
 * full-attention blocks do not mean that a prompt can be resumed there, so such an engine is "not indexable" and
 * nothing of it is in the index. The block size is learnt; a change of it forgets the engine's old blocks.
 */
import { canonicalExtraKeys, type BlockExtraKeys, type BlockHasher, type RootHash } from '../prefix/block-hash.ts';
import {
  NO_POSITION,
  type BlockPosition,
  type IndexOwner,
  type MediumIndex,
  type PrefixIndexWriter,
} from '../prefix/prefix-index.ts';
import { MEDIA } from '../prefix/prefix-match.ts';
import type { BlockRemoved, BlockStored, KvEventBatch } from './kv-event.ts';
import { createParkedBlocks, type EngineHashKey, type ParkedBlocks } from './parked-blocks.ts';

export type EngineBlocksLimits = {
  /** Blocks of one source that wait for their parent. */
  readonly maxParkedBlocks: number;
  /** Adapters of one source whose roots are remembered. */
  readonly maxRoots: number;
};

export type ApplyResult = {
  /** Events applied, by type. */
  readonly nStored: number;
  readonly nRemoved: number;
  readonly nCleared: number;
  /** Blocks by what became of them; copies of a block count each. */
  readonly blocksStored: number;
  readonly blocksRemoved: number;
  readonly blocksParked: number;
  /** Parked blocks that found their parent. */
  readonly blocksPlaced: number;
  /** Parked blocks dropped because too many waited. */
  readonly blocksDropped: number;
  /** Blocks of groups, media or block sizes that cannot be indexed. */
  readonly blocksUnindexable: number;
  /** Blocks of events whose tokens or extra keys do not match their hashes one to one. */
  readonly blocksSparse: number;
  /** Removals of blocks this source is not known to hold. */
  readonly blocksUnknownRemoved: number;
  /** Blocks announced under a hash that had named another block: the old one is forgotten. */
  readonly blocksConflicting: number;
  /** Blocks for which the index had no room. */
  readonly blocksNotStored: number;
  /** Block sizes that replaced another one. */
  readonly blockSizeChanges: number;
};

export type EngineBlocksStats = {
  /** (block, medium) entries of this source in the index. */
  readonly nBlocks: number;
  readonly blockSizeTokens: number | null;
  /** Whether salts and images are visible in the events. */
  readonly reportsExtraKeys: 'yes' | 'no' | 'unknown';
  /** False: residency in this engine cannot be told from its events; the index holds nothing of it. */
  readonly indexable: boolean;
  /** True: blocks are missing that the engine may hold (dropped for room). */
  readonly partial: boolean;
  /** Blocks that wait for their parent. */
  readonly nOrphans: number;
};

export type EngineBlocksSource = {
  apply(batch: KvEventBatch): ApplyResult;
  /** Forgets everything, including what was learnt about the engine's version. */
  clear(): void;
  /** Clears and gives the source's place in the index back; no call may follow. */
  close(): void;
  stats(): EngineBlocksStats;
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

type Counts = { -readonly [K in keyof ApplyResult]: ApplyResult[K] };

/** What an engine's hash stands for. */
type NamedBlock = {
  readonly hi: number;
  readonly lo: number;
  readonly position: BlockPosition;
  /** Per medium, in the order of `MEDIA`. */
  readonly copies: number[];
};

const DEFAULT_LIMITS: EngineBlocksLimits = { maxParkedBlocks: 4096, maxRoots: 1024 };
/** Taken out by the way of every batch. */
const TIDY_BLOCKS = 512;
const MEDIUM_INDEXES: readonly MediumIndex[] = [0, 1, 2];
const MAX_BLOCK_SIZE_TOKENS = 65_536;
/** Groups whose resident blocks tell how far a prompt can be resumed; versions before kinds were reported say null. */
const RESUMABLE_KINDS: readonly (string | null)[] = [
  null,
  'full_attention',
  'sink_full_attention',
  'mla',
  'mla_attention',
];

export function createEngineBlocks(deps: {
  index: PrefixIndexWriter;
  hasher: BlockHasher;
  limits?: Partial<EngineBlocksLimits>;
}): EngineBlocks {
  const limits = { ...DEFAULT_LIMITS, ...deps.limits };
  return {
    tidy: (maxBlocks) => deps.index.sweep(maxBlocks),
    openSource({ slot, rank, model }) {
      const ranks = new Map<number, EngineRank>();
      return {
        apply(batch) {
          const counts = noCounts();
          const id = batch.dataParallelRank ?? rank;
          let engine = ranks.get(id);
          if (engine === undefined) {
            engine = createEngineRank(deps.index, deps.hasher, limits, slot, id, model);
            ranks.set(id, engine);
          }
          for (const event of batch.events) {
            switch (event.type) {
              case 'BlockStored':
                counts.nStored++;
                engine.store(event, counts);
                break;
              case 'BlockRemoved':
                counts.nRemoved++;
                engine.remove(event, counts);
                break;
              case 'AllBlocksCleared':
                counts.nCleared++;
                engine.forgetBlocks();
                break;
            }
          }
          deps.index.sweep(TIDY_BLOCKS);
          return counts;
        },
        clear() {
          for (const engine of ranks.values()) engine.close();
          ranks.clear();
        },
        close() {
          for (const engine of ranks.values()) engine.close();
          ranks.clear();
        },
        stats: () => sumStats([...ranks.values()].map((engine) => engine.stats())),
      };
    },
  };
}

type EngineRank = {
  store(event: BlockStored, counts: Counts): void;
  remove(event: BlockRemoved, counts: Counts): void;
  forgetBlocks(): void;
  close(): void;
  stats(): EngineBlocksStats;
};

function createEngineRank(
  index: PrefixIndexWriter,
  hasher: BlockHasher,
  limits: EngineBlocksLimits,
  slot: number,
  rank: number,
  model: string,
): EngineRank {
  let owner: IndexOwner = index.openOwner(slot);
  const names = new Map<EngineHashKey, NamedBlock>();
  const parked: ParkedBlocks = createParkedBlocks(limits.maxParkedBlocks);
  const roots = new Map<string, RootHash>();
  /** Names beyond the first that hold the same block in the same medium: salts or images the version hides. */
  const aliases = new Map<number, number>();
  const keys = { words: new Uint32Array(64) };
  const place = new Uint32Array(1);
  const wasHeld = new Uint8Array(1);
  let groupIdx: number | null = null;
  let indexable = true;
  let partial = false;
  let blockSizeTokens: number | null = null;
  let reportsExtraKeys: EngineBlocksStats['reportsExtraKeys'] = 'unknown';

  function store(event: BlockStored, counts: Counts): void {
    const nBlocks = event.blockHashes.length / 2;
    if (!isMirrored(event.groupIdx, event.kvCacheSpecKind)) {
      counts.blocksUnindexable += nBlocks;
      return;
    }
    if (nBlocks === 0) return;
    const medium = mediumIndexOf(event.medium);
    if (event.tokenIds.length === 0) {
      locate(event.blockHashes, nBlocks, medium, counts);
      return;
    }
    const size = event.blockSizeTokens;
    const isDense =
      size >= 1 &&
      size <= MAX_BLOCK_SIZE_TOKENS &&
      event.tokenIds.length === nBlocks * size &&
      (event.extraKeys?.length ?? nBlocks) === nBlocks;
    if (!isDense) {
      counts.blocksSparse += nBlocks;
      return;
    }
    if (size !== blockSizeTokens && !learnBlockSize(size, medium, counts)) {
      counts.blocksUnindexable += nBlocks;
      return;
    }
    if (medium === 0) noteExtraKeys(event);
    const extraKeys = canonicalExtraKeys(event.extraKeys, event.loraName);
    if (event.parentBlockHash === null) {
      const root = rootOf(event.loraName, event.loraId, size);
      placeChain(event, nBlocks, medium, root[0], root[1], NO_POSITION, extraKeys, counts);
      return;
    }
    const parent = names.get(engineKey(event.parentBlockHash[0], event.parentBlockHash[1]));
    if (parent === undefined) park(event, nBlocks, medium, extraKeys, counts);
    else placeChain(event, nBlocks, medium, parent.hi, parent.lo, parent.position, extraKeys, counts);
  }

  /** @returns false when blocks of this event's group cannot be mirrored */
  function isMirrored(group: number | null, kind: string | null): boolean {
    if (!indexable) return false;
    groupIdx ??= group ?? 0;
    if (groupIdx === (group ?? 0) && RESUMABLE_KINDS.includes(kind)) return true;
    // A second group: whatever is resident in the first no longer tells how far the engine can resume.
    indexable = false;
    forgetBlocks();
    return false;
  }

  /** @returns false when blocks of this size cannot stand beside the engine's GPU blocks */
  function learnBlockSize(size: number, medium: MediumIndex, counts: Counts): boolean {
    if (blockSizeTokens !== null) {
      if (medium !== 0) return false;
      counts.blockSizeChanges++;
      forgetBlocks();
    }
    blockSizeTokens = size;
    roots.clear();
    return true;
  }

  /** One event without extra keys is enough to doubt all: salted blocks would look like plain ones. */
  function noteExtraKeys(event: BlockStored): void {
    if (event.extraKeys === undefined) reportsExtraKeys = 'no';
    else if (reportsExtraKeys === 'unknown') reportsExtraKeys = 'yes';
  }

  function rootOf(loraName: string | null, loraId: number | null, size: number): RootHash {
    // Ids are local to an engine: such blocks get a root that no request can ask for.
    const adapter = loraName ?? (loraId === null ? null : `\0lora_id ${slot} ${rank} ${loraId}`);
    const cacheKey = adapter ?? '';
    let root = roots.get(cacheKey);
    if (root === undefined) {
      if (roots.size >= limits.maxRoots) roots.clear();
      root = hasher.root(model, adapter, size);
      roots.set(cacheKey, root);
    }
    return root;
  }

  function placeChain(
    event: BlockStored,
    nBlocks: number,
    medium: MediumIndex,
    hi: number,
    lo: number,
    parent: BlockPosition,
    extraKeys: BlockExtraKeys | null,
    counts: Counts,
  ): void {
    const words = wordsFor(keys, nBlocks);
    hasher.continueBlocks(hi, lo, event.tokenIds, nBlocks, event.blockSizeTokens, extraKeys, words);
    let before = parent;
    for (let i = 0; i < nBlocks; i++) {
      const hash = engineKey(event.blockHashes[2 * i]!, event.blockHashes[2 * i + 1]!);
      const named = hold(hash, words[2 * i]!, words[2 * i + 1]!, before, medium, 1, counts);
      if (named === null) {
        counts.blocksNotStored += nBlocks - i;
        partial = true;
        return;
      }
      counts.blocksStored++;
      before = named.position;
      if (parked.size > 0) settle(hash, named, counts);
    }
  }

  /** Adds copies of a block; null when the index has no room for it. */
  function hold(
    hash: EngineHashKey,
    hi: number,
    lo: number,
    parent: BlockPosition,
    medium: MediumIndex,
    nCopies: number,
    counts: Counts,
  ): NamedBlock | null {
    let named = names.get(hash);
    if (named !== undefined && (named.hi !== hi || named.lo !== lo)) {
      counts.blocksConflicting++;
      for (const m of MEDIUM_INDEXES) release(hash, named, m, named.copies[m]!);
      named = undefined;
    }
    if (named === undefined || named.copies[medium] === 0) {
      const position = enter(hi, lo, parent, medium);
      if (position === NO_POSITION) return null;
      if (named === undefined) {
        named = { hi, lo, position, copies: MEDIA.map(() => 0) };
        names.set(hash, named);
      }
    }
    named.copies[medium]! += nCopies;
    return named;
  }

  /** Further copies of a block that this engine holds. @returns false when there is no room for them */
  function holdAgain(named: NamedBlock, medium: MediumIndex, nCopies: number): boolean {
    if (named.copies[medium] === 0 && !index.hold(owner, medium, named.position)) return false;
    named.copies[medium]! += nCopies;
    return true;
  }

  function enter(hi: number, lo: number, parent: BlockPosition, medium: MediumIndex): BlockPosition {
    if (index.store(owner, medium, parent, Uint32Array.of(hi, lo), 1, place, wasHeld) === 0) return NO_POSITION;
    const alias = place[0]! * MEDIA.length + medium;
    if (wasHeld[0] === 1) aliases.set(alias, (aliases.get(alias) ?? 0) + 1);
    return place[0]! as BlockPosition;
  }

  /** Takes copies away; the last one of a medium leaves the index, the last one of all forgets the name. */
  function release(hash: EngineHashKey, named: NamedBlock, medium: MediumIndex, nCopies: number): void {
    if (named.copies[medium] === 0 || nCopies === 0) return;
    named.copies[medium]! -= nCopies;
    if (named.copies[medium]! > 0) return;
    const alias = named.position * MEDIA.length + medium;
    const nAliases = aliases.get(alias) ?? 0;
    if (nAliases > 1) aliases.set(alias, nAliases - 1);
    else if (nAliases === 1) aliases.delete(alias);
    else index.remove(owner, medium, Uint32Array.of(named.position), 1);
    if (!named.copies.some((n) => n > 0)) names.delete(hash);
  }

  /** A block was named: copies located before its tokens were known join it, and blocks parked behind it are placed. */
  function settle(hash: EngineHashKey, named: NamedBlock, counts: Counts): void {
    const ghosts: [EngineHashKey, NamedBlock][] = [];
    const open: [EngineHashKey, NamedBlock][] = [[hash, named]];
    for (let next = open.pop(); next !== undefined; next = open.pop()) {
      const [parentHash, parent] = next;
      const early = parked.take(parentHash);
      if (early !== undefined) addCopies(parent, early.copies);
      for (const childHash of parked.childrenOf(parentHash)) {
        const child = parked.take(childHash)!;
        const content = child.content!;
        const word = new Uint32Array(2);
        const extraKeys = content.extraKeys === null ? null : [content.extraKeys];
        hasher.continueBlocks(parent.hi, parent.lo, content.tokenIds, 1, content.tokenIds.length, extraKeys, word);
        const placed = hold(childHash, word[0]!, word[1]!, parent.position, 0, 1, counts);
        if (placed === null) {
          counts.blocksNotStored++;
          partial = true;
          continue;
        }
        // Held once on the GPU until its true copies are entered and its children are placed.
        ghosts.push([childHash, placed]);
        addCopies(placed, child.copies);
        if (child.copies.some((n) => n > 0)) counts.blocksPlaced++;
        open.push([childHash, placed]);
      }
    }
    for (const [childHash, placed] of ghosts) release(childHash, placed, 0, 1);
  }

  function addCopies(named: NamedBlock, copies: readonly number[]): void {
    for (const m of MEDIUM_INDEXES) {
      if (copies[m]! > 0 && !holdAgain(named, m, copies[m]!)) partial = true;
    }
  }

  function park(
    event: BlockStored,
    nBlocks: number,
    medium: MediumIndex,
    extraKeys: BlockExtraKeys | null,
    counts: Counts,
  ): void {
    const size = event.blockSizeTokens;
    let parent = engineKey(event.parentBlockHash![0], event.parentBlockHash![1]);
    for (let i = 0; i < nBlocks; i++) {
      const hash = engineKey(event.blockHashes[2 * i]!, event.blockHashes[2 * i + 1]!);
      const named = names.get(hash);
      if (named !== undefined) {
        // Another copy of a block whose place is known, although its parent has gone: what follows has a place too.
        holdAgain(named, medium, 1);
        counts.blocksStored++;
        const rest = {
          ...event,
          blockHashes: event.blockHashes.subarray(2 * i + 2),
          tokenIds: event.tokenIds.subarray((i + 1) * size),
        };
        const restKeys = extraKeys === null ? null : extraKeys.slice(i + 1);
        placeChain(rest, nBlocks - i - 1, medium, named.hi, named.lo, named.position, restKeys, counts);
        return;
      }
      const tokenIds = event.tokenIds.slice(i * size, (i + 1) * size);
      const dropped = parked.park(hash, { parent, tokenIds, extraKeys: extraKeys?.[i] ?? null }, medium);
      counts.blocksParked++;
      counts.blocksDropped += dropped;
      if (dropped > 0) partial = true;
      parent = hash;
    }
  }

  /** Placeholder events: no tokens, only "this hash is in this medium". */
  function locate(hashes: Uint32Array, nBlocks: number, medium: MediumIndex, counts: Counts): void {
    for (let i = 0; i < nBlocks; i++) {
      const hash = engineKey(hashes[2 * i]!, hashes[2 * i + 1]!);
      const named = names.get(hash);
      if (named === undefined) {
        const dropped = parked.park(hash, null, medium);
        counts.blocksParked++;
        counts.blocksDropped += dropped;
        if (dropped > 0) partial = true;
      } else if (!holdAgain(named, medium, 1)) {
        counts.blocksNotStored++;
        partial = true;
      } else counts.blocksStored++;
    }
  }

  function remove(event: BlockRemoved, counts: Counts): void {
    const nBlocks = event.blockHashes.length / 2;
    if (!indexable || (groupIdx !== null && groupIdx !== (event.groupIdx ?? 0))) {
      counts.blocksUnindexable += nBlocks;
      return;
    }
    const medium = mediumIndexOf(event.medium);
    for (let i = 0; i < nBlocks; i++) {
      const hash = engineKey(event.blockHashes[2 * i]!, event.blockHashes[2 * i + 1]!);
      const named = names.get(hash);
      if (named !== undefined && named.copies[medium]! > 0) {
        release(hash, named, medium, 1);
        counts.blocksRemoved++;
      } else if (parked.removeCopy(hash, medium)) counts.blocksRemoved++;
      else counts.blocksUnknownRemoved++;
    }
  }

  function forgetBlocks(): void {
    names.clear();
    aliases.clear();
    parked.clear();
    partial = false;
    if (index.heldBy(owner) === 0) return;
    // Out of sight at once; what it held is taken out bit by bit.
    index.retireOwner(owner);
    owner = index.openOwner(slot);
  }

  return {
    store,
    remove,
    forgetBlocks,
    close() {
      names.clear();
      parked.clear();
      index.retireOwner(owner);
    },
    stats: () => ({
      nBlocks: index.heldBy(owner),
      blockSizeTokens,
      reportsExtraKeys,
      indexable,
      partial,
      nOrphans: parked.size,
    }),
  };
}

function noCounts(): Counts {
  return {
    nStored: 0,
    nRemoved: 0,
    nCleared: 0,
    blocksStored: 0,
    blocksRemoved: 0,
    blocksParked: 0,
    blocksPlaced: 0,
    blocksDropped: 0,
    blocksUnindexable: 0,
    blocksSparse: 0,
    blocksUnknownRemoved: 0,
    blocksConflicting: 0,
    blocksNotStored: 0,
    blockSizeChanges: 0,
  };
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

/** The speed class of a medium's name; what is neither the GPU nor host memory counts as the slowest. */
function mediumIndexOf(medium: string | null): MediumIndex {
  const name = medium === null ? 'GPU' : medium.toUpperCase();
  return name.startsWith('GPU') ? 0 : name.startsWith('CPU') || name === 'HOST' ? 1 : 2;
}

function engineKey(hi: number, lo: number): EngineHashKey {
  return `${hi.toString(36)}:${lo.toString(36)}` as EngineHashKey;
}

function wordsFor(keys: { words: Uint32Array }, nBlocks: number): Uint32Array {
  if (keys.words.length < 2 * nBlocks) keys.words = new Uint32Array(2 ** Math.ceil(Math.log2(2 * nBlocks)));
  return keys.words;
}
