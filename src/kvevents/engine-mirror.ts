/**
 * What one engine (one publisher and data-parallel rank) holds, kept equal to its announcements.
 *
 * Rules. A block is only placed behind a parent that this engine has announced, never at the root by default; until
 * then it is parked. Copies count per medium and block, with a floor of zero. Only one KV group is mirrored, and only
 * if it is the engine's only one: where an engine also has sliding-window, Mamba or further groups, resident
 * full-attention blocks do not mean that a prompt can be resumed there, so such an engine is "not indexable" and
 * nothing of it is in the index. The block size is learnt; a change of it forgets the engine's old blocks.
 *
 * SGLang reports salt and adapter beside its hashes, which do not always cover them: one hash may name the same tokens
 * under another adapter. There a block remembers its namespace, nothing is placed behind a parent of another one, and a
 * hash names the block it was announced for last.
 */
import { canonicalExtraKeys, type BlockExtraKeys, type BlockHasher, type RootHash } from '../prefix/block-hash.ts';
import {
  NO_POSITION,
  type BlockPosition,
  type IndexOwner,
  type MediumIndex,
  type PrefixIndexWriter,
} from '../prefix/prefix-index.ts';
import { createBlockCopies, MEDIA_INDEXES } from './block-copies.ts';
import { createCountedMap, type MemoryCount } from './counted-memory.ts';
import { NO_ROOM, type EngineNames, type NameUse } from './engine-names.ts';
import { eachChain, recordBlocks } from './engine-records.ts';
import type { BlockRemoved, BlockStored, KvEvent } from './kv-event.ts';
import {
  BEFORE,
  COPIES,
  KEY,
  NAME,
  RECORD_WORDS,
  type EngineSnapshot,
  type RecordedEngine,
} from './source-snapshot.ts';
import { createParkedBlocks, type EngineHashKey, type ParkedBlock } from './parked-blocks.ts';

export type EngineBlocksLimits = {
  /** Blocks of one engine that wait for their parent. */
  readonly maxParkedBlocks: number;
  /** Tokens of these blocks, and words of 4 bytes in their extra keys. */
  readonly maxParkedTokens: number;
  /** Adapters of one engine whose roots are remembered. */
  readonly maxRoots: number;
  /** Data-parallel ranks in the batches of one source. */
  readonly maxRanks: number;
};

export type ApplyResult = {
  /** Events applied, by type. */
  readonly nStored: number;
  readonly nRemoved: number;
  readonly nCleared: number;
  /** Events of ranks beyond the limit. */
  readonly nSkipped: number;
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
  /** Removals of blocks this engine is not known to hold. */
  readonly blocksUnknownRemoved: number;
  /** Blocks announced under a hash that had named another block: the old one is forgotten. */
  readonly blocksConflicting: number;
  /** Blocks for which there was no room. */
  readonly blocksNotStored: number;
  /** Block sizes that replaced another one. */
  readonly blockSizeChanges: number;
};

export type EngineBlocksStats = {
  /** (block, medium) entries in the index. */
  readonly nBlocks: number;
  readonly blockSizeTokens: number | null;
  /** Whether salts and images are visible in the events. */
  readonly reportsExtraKeys: 'yes' | 'no' | 'unknown';
  /** False: residency cannot be told from the events; the index holds nothing. */
  readonly indexable: boolean;
  /** True: blocks are missing that the engine may hold, dropped for lack of room. */
  readonly partial: boolean;
  /** Blocks that wait for their parent. */
  readonly nOrphans: number;
};

/** What all engines share. */
export type EngineShared = {
  readonly index: PrefixIndexWriter;
  readonly hasher: BlockHasher;
  readonly names: EngineNames;
  readonly byOwner: Map<IndexOwner, EngineMirror>;
  readonly limits: EngineBlocksLimits;
  /** What mirrors keep beside index and names. */
  readonly memory: MemoryCount;
  readonly scratch: EngineScratch;
};

/** Blocks of the chain that is being placed; worth nothing between two calls. */
export type EngineScratch = { keys: Uint32Array; positions: Uint32Array; wasHeld: Uint8Array };

export type EngineMirror = {
  apply(events: readonly KvEvent[], counts: Counts): void;
  /** The index drops a block of this engine to make room. */
  evicted(position: BlockPosition): void;
  close(): void;
  stats(): EngineBlocksStats;
  /** All that is known of the engine; null where records do not say it all. */
  recorded(): RecordedEngine;
  /** Takes a snapshot over, bit by bit; nothing may be applied before it is over. */
  restore(snapshot: EngineSnapshot): Generator<void, void>;
};

/** Consecutive blocks of one event. */
type Chain = {
  readonly event: BlockStored;
  readonly nBlocks: number;
  readonly medium: MediumIndex;
  readonly namespace: string;
  readonly extraKeys: BlockExtraKeys | null;
};

/** A block and where it was put; it may be dropped again to make room for another one. */
type PlacedBlock = {
  readonly hash: EngineHashKey;
  readonly position: BlockPosition;
  readonly hi: number;
  readonly lo: number;
};

export type Counts = { -readonly [K in keyof ApplyResult]: ApplyResult[K] };

const GPU = 0;
const MAX_BLOCK_SIZE_TOKENS = 65_536;
/** Groups whose resident blocks tell how far a prompt can be resumed; versions before kinds were reported say null. */
const RESUMABLE_KINDS: readonly (string | null)[] = [
  null,
  'full_attention',
  'sink_full_attention',
  'mla',
  'mla_attention',
];
/** Longer names of adapters are hashed again with every event of theirs: what an engine calls them must not fill memory. */
const MAX_KEPT_NAME = 256;
/** Longer adapters and salts are known by their keys, as blocks are. */
const MAX_PLAIN_NAME = 64;
/** A namespace is a text of its own for every event. */
const NAMESPACE_BYTES = 128;
const REMOVALS_AT_ONCE = 512;
const HELD_ELSEWHERE = 2;

export function createEngineMirror(
  { index, hasher, names, byOwner, limits, memory, scratch }: EngineShared,
  { slot, rank, model }: { slot: number; rank: number; model: string },
  onEvicted: () => void,
): EngineMirror {
  let owner = index.openOwner(slot);
  const parked = createParkedBlocks(limits.maxParkedBlocks, limits.maxParkedTokens, memory);
  const roots = new Map<string, RootHash>();
  /** Blocks whose adapter or salt their hashes may not cover; all others have the namespace ''. */
  const namespaces = createCountedMap<BlockPosition, string>(memory, NAMESPACE_BYTES);
  /** One hash was seen to name blocks of two namespaces. */
  let isAmbiguous = false;
  const copies = createBlockCopies(memory);
  const oneKey = new Uint32Array(2);
  const onePosition = new Uint32Array(1);
  const oneFlag = new Uint8Array(1);
  const removal = {
    medium: GPU as MediumIndex,
    hashes: new Uint32Array(2 * REMOVALS_AT_ONCE),
    positions: new Uint32Array(REMOVALS_AT_ONCE),
    n: 0,
  };
  /** Blocks that `dropAll` has forgotten so far. */
  let nDropped = 0;
  let groupIdx: number | null = null;
  let indexable = true;
  let hasSlowMedia = false;
  let partial = false;
  let blockSizeTokens: number | null = null;
  let reportsExtraKeys: EngineBlocksStats['reportsExtraKeys'] = 'unknown';

  const isHeld = (position: BlockPosition): boolean => index.mediaAt(owner, position) !== 0;

  /** The block this engine holds under a hash. */
  function held(hi: number, lo: number): BlockPosition {
    names.choose(hi, lo);
    return heldChosen();
  }

  const heldAt = (hashes: Uint32Array, i: number): BlockPosition => held(hashes[2 * i]!, hashes[2 * i + 1]!);

  /** The block this engine holds under the chosen name. */
  function heldChosen(): BlockPosition {
    const position = names.find(owner, isHeld);
    return position !== NO_POSITION && isHeld(position) ? position : NO_POSITION;
  }

  // ---- stores

  function store(event: BlockStored, counts: Counts): void {
    const nBlocks = event.blockHashes.length / 2;
    if (!isMirrored(event.groupIdx, event.kvCacheSpecKind)) {
      counts.blocksUnindexable += nBlocks;
      return;
    }
    if (nBlocks === 0 && event.tokenIds.length === 0) return;
    const medium = mediumIndexOf(event);
    if (medium !== GPU) hasSlowMedia = true;
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
      // Where groups are not named: only sliding-window and state-space groups leave blocks out.
      if (event.groupIdx === null && size >= 1 && event.tokenIds.length > nBlocks * size) becomeUnindexable();
      return;
    }
    if (size !== blockSizeTokens && !learnBlockSize(size, medium, counts)) {
      counts.blocksUnindexable += nBlocks;
      return;
    }
    if (medium === GPU) noteExtraKeys(event);
    const namespace = namespaceOf(event);
    const extraKeys = canonicalExtraKeys(event.extraKeys, event.loraName);
    const chain: Chain = { event, nBlocks, medium, namespace, extraKeys };
    const parentHash = parentHashOf(event, medium);
    if (parentHash === null) {
      const root = rootOf(event.loraName, event.loraId, size);
      const salted = { ...chain, extraKeys: withSalt(extraKeys, event.cacheSalt, nBlocks) };
      placeChain(salted, root[0], root[1], NO_POSITION, counts);
      return;
    }
    const parent = held(parentHash[0], parentHash[1]);
    if (parent === NO_POSITION) {
      park(chain, parentHash, counts);
      return;
    }
    const joined = joinNamespace(namespace, parent);
    if (joined === null) {
      counts.blocksConflicting += nBlocks;
      partial = true;
      return;
    }
    index.keyAt(parent, oneKey);
    placeChain(joined === namespace ? chain : { ...chain, namespace: joined }, oneKey[0]!, oneKey[1]!, parent, counts);
  }

  /** @returns null when the hash means other blocks now than those a block with this parent was computed from */
  function joinNamespace(namespace: string, parent: BlockPosition): string | null {
    const ofParent = namespaceAt(parent);
    if (namespace === ofParent || isAmbiguous) return namespace === ofParent ? namespace : null;
    // A salt may be told once for a chain, since hashes cover it; whose adapter is meant is told with every event.
    const [adapter, salt] = partsOf(namespace);
    return salt === null && adapter === partsOf(ofParent)[0] ? ofParent : null;
  }

  /** @returns the parent's engine hash, null at the start of a prompt */
  function parentHashOf({ parentBlockHash }: BlockStored, medium: MediumIndex): BlockStored['parentBlockHash'] {
    if (parentBlockHash === null) return null;
    const [hi, lo] = parentBlockHash;
    // llm-d's simulator writes 0 for none; its storage tier writes 0 for unknown, and some engines count from 0.
    return hi === 0 && lo === 0 && medium === GPU && held(0, 0) === NO_POSITION ? null : parentBlockHash;
  }

  /** What hashes of an engine that reports no extra keys may not cover. */
  function namespaceOf({ extraKeys, cacheSalt, loraName }: BlockStored): string {
    if (extraKeys !== undefined || (!cacheSalt && !loraName)) return '';
    return JSON.stringify([loraName ? short(loraName) : null, cacheSalt ? short(cacheSalt) : null]);
  }

  function short(text: string): string {
    return text.length <= MAX_PLAIN_NAME ? text : `\0${hasher.root(text, null, 0).join()}`;
  }

  function namespaceAt(position: BlockPosition): string {
    return namespaces.size() === 0 ? '' : (namespaces.get(position) ?? '');
  }

  function setNamespace(position: BlockPosition, namespace: string): void {
    if (namespace !== '') namespaces.set(position, namespace);
    else if (namespaces.size() > 0) namespaces.delete(position);
  }

  /** @returns false when blocks of this event's group cannot be mirrored */
  function isMirrored(group: number | null, kind: string | null): boolean {
    if (!indexable) return false;
    groupIdx ??= group ?? 0;
    if (groupIdx === (group ?? 0) && RESUMABLE_KINDS.includes(kind)) return true;
    // A second group: whatever is resident in the first no longer tells how far the engine can resume.
    becomeUnindexable();
    return false;
  }

  function becomeUnindexable(): void {
    indexable = false;
    forgetBlocks();
  }

  /** @returns false when blocks of this size cannot stand beside the engine's GPU blocks */
  function learnBlockSize(size: number, medium: MediumIndex, counts: Counts): boolean {
    if (blockSizeTokens !== null) {
      if (medium !== GPU) return false;
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
    const adapter = loraName || (loraId === null ? null : `\0lora_id ${slot} ${rank} ${loraId}`);
    const cacheKey = adapter === null ? '' : `=${adapter}`;
    let root = roots.get(cacheKey);
    if (root === undefined) {
      if (roots.size >= limits.maxRoots) roots.clear();
      root = hasher.root(model, adapter, size);
      if (cacheKey.length <= MAX_KEPT_NAME) roots.set(cacheKey, root);
    }
    return root;
  }

  function placeChain(chain: Chain, hi: number, lo: number, parent: BlockPosition, counts: Counts): void {
    const { event, nBlocks, medium, namespace, extraKeys } = chain;
    reserve(nBlocks);
    const { keys, positions, wasHeld } = scratch;
    hasher.continueBlocks(hi, lo, event.tokenIds, nBlocks, event.blockSizeTokens, extraKeys, keys);
    const { blockHashes } = event;
    const isNamespaced = namespace !== '' || namespaces.size() > 0;
    const before = isNamespaced ? Array.from({ length: nBlocks }, (_, i) => heldAt(blockHashes, i)) : null;
    if (before?.some((other) => other !== NO_POSITION && namespaceAt(other) !== namespace)) isAmbiguous = true;
    const nStored = index.store(owner, medium, parent, keys, nBlocks, positions, wasHeld);
    if (hasSlowMedia) markHeldElsewhere(nStored, medium);
    names.prepare(blockHashes, nStored, positions);
    const nDroppedBefore = nDropped;
    for (let i = 0; i < nStored; i++) {
      const position = positions[i]! as BlockPosition;
      // Forgotten because a block before it in this chain has its name now.
      if (nDropped !== nDroppedBefore && !isHeld(position)) {
        counts.blocksNotStored++;
        partial = true;
        continue;
      }
      names.chooseAt(i);
      if (wasHeld[i] === 1) copies.add(position, medium, 1);
      if (!name(position, wasHeld[i] === 0 ? 'new' : 'further', i + 1, nStored, counts)) {
        dropAll(position);
        counts.blocksNotStored++;
        partial = true;
      } else counts.blocksStored++;
    }
    if (nStored < nBlocks) {
      counts.blocksNotStored += nBlocks - nStored;
      partial = true;
    }
    if (before !== null) {
      const isPlaced = new Set(positions.subarray(0, nStored));
      for (let i = 0; i < nStored; i++) {
        if (isHeld(positions[i]! as BlockPosition)) setNamespace(positions[i]! as BlockPosition, namespace);
        const other = before[i]!;
        if (other === NO_POSITION || isPlaced.has(other) || !isHeld(other)) continue;
        counts.blocksConflicting++;
        dropAll(other);
      }
    }
    if (parked.size() === 0) return;
    const placed = Array.from({ length: nStored }, (_, i) => ({
      hash: engineKey(blockHashes[2 * i]!, blockHashes[2 * i + 1]!),
      position: positions[i]! as BlockPosition,
      hi: keys[2 * i]!,
      lo: keys[2 * i + 1]!,
    }));
    for (const block of placed) settle(block, counts);
  }

  /** Blocks that are new in this medium but held, and so named, in another one. */
  function markHeldElsewhere(nStored: number, medium: MediumIndex): void {
    const { positions, wasHeld } = scratch;
    for (let i = 0; i < nStored; i++) {
      const media = wasHeld[i] === 1 ? 0 : index.mediaAt(owner, positions[i]! as BlockPosition);
      if ((media & ~(1 << medium)) !== 0) wasHeld[i] = HELD_ELSEWHERE;
    }
  }

  /**
   * Makes the chosen name lead to a block.
   * @param from @param to blocks in `scratch` that have their places but not yet their names
   * @returns false when there is no room for the name
   */
  function name(position: BlockPosition, use: NameUse, from: number, to: number, counts: Counts): boolean {
    const given = names.give(owner, position, use);
    if (given === 0 || given === NO_ROOM) return given === 0;
    // The name is known. Other engines may mean something else by it; for one engine it is one block.
    const isOurs = (at: BlockPosition): boolean => {
      for (let i = from; i < to; i++) if (scratch.positions[i] === at && scratch.wasHeld[i] === 0) return false;
      return isHeld(at);
    };
    const other = names.find(owner, isOurs);
    if (other === position && use === 'further') return true;
    if (other !== NO_POSITION && other !== position && isOurs(other)) {
      // The engine's word for the first block is not to be trusted any more.
      counts.blocksConflicting++;
      dropAll(other);
    }
    return names.giveToo(owner, position, use) === 0;
  }

  /** Further copies of a block that this engine holds somewhere. @returns false when there is no room */
  function holdCopies(position: BlockPosition, medium: MediumIndex, n: number): boolean {
    const isNew = (index.mediaAt(owner, position) & (1 << medium)) === 0;
    if (isNew && !index.hold(owner, medium, position)) return false;
    if (n > 1 || !isNew) copies.add(position, medium, isNew ? n - 1 : n);
    return true;
  }

  /** Placeholder events: no tokens, only "this hash is in this medium". */
  function locate(hashes: Uint32Array, nBlocks: number, medium: MediumIndex, counts: Counts): void {
    for (let i = 0; i < nBlocks; i++) {
      const position = held(hashes[2 * i]!, hashes[2 * i + 1]!);
      if (position === NO_POSITION) {
        const dropped = parked.park(engineKey(hashes[2 * i]!, hashes[2 * i + 1]!), null, medium);
        counts.blocksParked++;
        counts.blocksDropped += dropped;
        if (dropped > 0) partial = true;
      } else if (holdCopies(position, medium, 1)) counts.blocksStored++;
      else {
        counts.blocksNotStored++;
        partial = true;
      }
    }
  }

  // ---- blocks that wait

  function park(chain: Chain, parentHash: readonly [number, number], counts: Counts): void {
    const { event, nBlocks, medium, namespace, extraKeys } = chain;
    const size = event.blockSizeTokens;
    let parent = engineKey(parentHash[0], parentHash[1]);
    for (let i = 0; i < nBlocks; i++) {
      const hi = event.blockHashes[2 * i]!;
      const lo = event.blockHashes[2 * i + 1]!;
      const position = held(hi, lo);
      const joined = position === NO_POSITION ? null : joinNamespace(namespace, position);
      if (joined !== null) {
        // Another copy of a block whose place is known, although its parent has gone: what follows has a place too.
        index.keyAt(position, oneKey);
        const [keyHi, keyLo] = [oneKey[0]!, oneKey[1]!];
        if (holdCopies(position, medium, 1)) counts.blocksStored++;
        else {
          counts.blocksNotStored++;
          partial = true;
        }
        if (!index.holds(owner, position, keyHi, keyLo)) {
          counts.blocksNotStored += nBlocks - i - 1;
          return;
        }
        const rest = {
          ...event,
          blockHashes: event.blockHashes.subarray(2 * i + 2),
          tokenIds: event.tokenIds.subarray((i + 1) * size),
        };
        const restKeys = extraKeys === null ? null : extraKeys.slice(i + 1);
        const restOfChain = { event: rest, nBlocks: nBlocks - i - 1, medium, namespace: joined, extraKeys: restKeys };
        placeChain(restOfChain, keyHi, keyLo, position, counts);
        return;
      }
      const hash = engineKey(hi, lo);
      const tokenIds = event.tokenIds.slice(i * size, (i + 1) * size);
      const dropped = parked.park(hash, { parent, tokenIds, extraKeys: extraKeys?.[i] ?? null, namespace }, medium);
      counts.blocksParked++;
      counts.blocksDropped += dropped;
      if (dropped > 0) partial = true;
      parent = hash;
    }
  }

  /** A block got its place: copies located before its tokens were known join it, blocks parked behind it follow. */
  function settle(start: PlacedBlock, counts: Counts): void {
    const open = [start];
    // Placed only for the sake of what hangs on them, until everything hangs.
    const scaffold: PlacedBlock[] = [];
    for (let block = open.pop(); block !== undefined; block = open.pop()) {
      // Whatever was placed since may have taken its room.
      if (!isThere(block)) continue;
      const early = parked.take(block.hash);
      if (early !== undefined) enterCopies(block.position, early);
      for (const childHash of parked.childrenOf(block.hash)) {
        const child = parked.take(childHash)!;
        const placed = placeBehind(block, child, counts);
        if (placed === null) {
          partial = true;
          continue;
        }
        scaffold.push(placed);
        enterCopies(placed.position, child);
        if (child.copies.some((n) => n > 0)) counts.blocksPlaced++;
        open.push(placed);
      }
    }
    for (const block of scaffold) if (isThere(block)) removeCopy(block.position, GPU);
  }

  function isThere({ position, hi, lo }: PlacedBlock): boolean {
    return index.holds(owner, position, hi, lo);
  }

  /** Places a parked block behind its parent, with one GPU copy. @returns null when that cannot be */
  function placeBehind(parent: PlacedBlock, block: ParkedBlock, counts: Counts): PlacedBlock | null {
    if (!isThere(parent)) {
      counts.blocksNotStored++;
      return null;
    }
    const { tokenIds, extraKeys } = block.content!;
    const namespace = joinNamespace(block.content!.namespace, parent.position);
    if (namespace === null) {
      counts.blocksConflicting++;
      return null;
    }
    const key = new Uint32Array(2);
    const ofBlock = extraKeys === null ? null : [extraKeys];
    hasher.continueBlocks(parent.hi, parent.lo, tokenIds, 1, tokenIds.length, ofBlock, key);
    if (index.store(owner, GPU, parent.position, key, 1, onePosition, oneFlag) === 0) {
      counts.blocksNotStored++;
      return null;
    }
    const position = onePosition[0]! as BlockPosition;
    if (oneFlag[0] === 1) copies.add(position, GPU, 1);
    setNamespace(position, namespace);
    names.choose(...wordsOf(block.hash));
    const isNew = oneFlag[0] === 0 && index.mediaAt(owner, position) === 1 << GPU;
    if (name(position, isNew ? 'new' : 'further', 0, 0, counts)) {
      return { hash: block.hash, position, hi: key[0]!, lo: key[1]! };
    }
    dropAll(position);
    counts.blocksNotStored++;
    return null;
  }

  function enterCopies(position: BlockPosition, block: ParkedBlock): void {
    for (const m of MEDIA_INDEXES) {
      if (block.copies[m]! > 0 && !holdCopies(position, m, block.copies[m]!)) partial = true;
    }
  }

  // ---- removals

  function remove(event: BlockRemoved, counts: Counts): void {
    const nBlocks = event.blockHashes.length / 2;
    // A removal that names no group may mean any.
    if (!indexable || (groupIdx !== null && event.groupIdx !== null && groupIdx !== event.groupIdx)) {
      counts.blocksUnindexable += nBlocks;
      return;
    }
    const medium = mediumIndexOf(event);
    if (medium !== removal.medium) flushRemovals(counts);
    removal.medium = medium;
    for (let i = 0; i < event.blockHashes.length;) {
      if (removal.n === REMOVALS_AT_ONCE) flushRemovals(counts);
      removal.hashes[2 * removal.n] = event.blockHashes[i++]!;
      removal.hashes[2 * removal.n++ + 1] = event.blockHashes[i++]!;
    }
  }

  /** Engines remove block by block; neighbours are taken out of the index in one go. */
  function flushRemovals(counts: Counts): void {
    const { medium, hashes, positions, n } = removal;
    if (n === 0) return;
    removal.n = 0;
    names.prepare(hashes, n, null);
    names.findAll(owner, n, isHeld, positions);
    let nFound = 0;
    const hasCopies = !copies.isEmpty();
    const hasParked = parked.size() > 0;
    for (let i = 0; i < n; i++) {
      const position = positions[i]! as BlockPosition;
      if (position === NO_POSITION) removeParked(hashes[2 * i]!, hashes[2 * i + 1]!, medium, counts);
      else if (hasCopies && copies.take(position, medium)) counts.blocksRemoved++;
      else if (hasParked && (index.mediaAt(owner, position) & (1 << medium)) === 0) {
        removeParked(hashes[2 * i]!, hashes[2 * i + 1]!, medium, counts);
      } else positions[nFound++] = position;
    }
    const nGone = index.remove(owner, medium, positions, nFound);
    counts.blocksRemoved += nGone;
    counts.blocksUnknownRemoved += nFound - nGone;
    if (!names.hasOwn(owner) && namespaces.size() === 0) return;
    for (let i = 0; i < nFound; i++) {
      const position = positions[i]! as BlockPosition;
      if (!isHeld(position)) forgetNames(position);
    }
  }

  function removeParked(hi: number, lo: number, medium: MediumIndex, counts: Counts): void {
    if (parked.size() > 0 && parked.removeCopy(engineKey(hi, lo), medium)) counts.blocksRemoved++;
    else counts.blocksUnknownRemoved++;
  }

  function removeCopy(position: BlockPosition, medium: MediumIndex): void {
    if (copies.take(position, medium)) return;
    onePosition[0] = position;
    index.remove(owner, medium, onePosition, 1);
    if (!isHeld(position)) forgetNames(position);
  }

  function forgetNames(position: BlockPosition): void {
    names.dropOwn(owner, position);
    namespaces.delete(position);
  }

  /** Forgets a block in all media, whatever its copies. */
  function dropAll(position: BlockPosition): void {
    nDropped++;
    onePosition[0] = position;
    copies.forget(position);
    for (const m of MEDIA_INDEXES) index.remove(owner, m, onePosition, 1);
    forgetNames(position);
  }

  function forgetBlocks(): void {
    removal.n = 0;
    copies.clear();
    namespaces.clear();
    isAmbiguous = false;
    parked.clear();
    partial = false;
    if (index.heldBy(owner) === 0) return;
    // Out of sight at once; what it held is taken out bit by bit.
    retire();
    owner = index.openOwner(slot);
    byOwner.set(owner, mirror);
  }

  function retire(): void {
    byOwner.delete(owner);
    index.retireOwner(owner);
  }

  function reserve(nBlocks: number): void {
    if (scratch.positions.length >= nBlocks) return;
    const n = 2 ** Math.ceil(Math.log2(nBlocks));
    scratch.keys = new Uint32Array(2 * n);
    scratch.positions = new Uint32Array(n);
    scratch.wasHeld = new Uint8Array(n);
  }

  // ---- snapshots

  function* record(records: Uint32Array): Generator<void, EngineSnapshot | null> {
    // What a namespace or a hash with two meanings stands for is not in a record.
    if (!indexable || namespaces.size() > 0 || isAmbiguous) return null;
    const { nRecords, isWhole } = yield* recordBlocks({ index, names, copies, owner }, records);
    return {
      rank,
      blockSizeTokens,
      groupIdx,
      reportsExtraKeys,
      partial: partial || !isWhole || parked.size() > 0,
      records: records.subarray(0, nRecords * RECORD_WORDS),
    };
  }

  function* restore(from: EngineSnapshot): Generator<void, void> {
    ({ blockSizeTokens, groupIdx, reportsExtraKeys, partial } = from);
    const { records } = from;
    const placed = new Uint32Array(records.length / RECORD_WORDS);
    yield* eachChain(records, (first, end, media) => restoreChain(records, first, end, media, placed));
  }

  function restoreChain(records: Uint32Array, first: number, end: number, media: number, placed: Uint32Array): void {
    const before = records[first * RECORD_WORDS + BEFORE]!;
    const parent = (before === 0 ? NO_POSITION : placed[before - 1]!) as BlockPosition;
    if (before !== 0 && !isRecorded(parent, records, before - 1)) {
      partial = true;
      return;
    }
    reserve(end - first);
    const { keys, positions, wasHeld } = scratch;
    const hashes = new Uint32Array(2 * (end - first));
    for (let i = first; i < end; i++) {
      const at = i * RECORD_WORDS;
      hashes.set(records.subarray(at + NAME, at + NAME + 2), 2 * (i - first));
      keys.set(records.subarray(at + KEY, at + KEY + 2), 2 * (i - first));
    }
    let n = end - first;
    let isNamed = false;
    const counts = noCounts();
    for (const m of MEDIA_INDEXES) {
      if ((media & (1 << m)) === 0) continue;
      if (m !== GPU) hasSlowMedia = true;
      const nStored = index.store(owner, m, parent, keys, n, positions, wasHeld);
      if (nStored < n) partial = true;
      n = nStored;
      if (!isNamed) names.prepare(hashes, n, positions);
      for (let i = 0; i < n; i++) {
        const position = positions[i]! as BlockPosition;
        // Twice the same key: whatever else it says is worth nothing.
        if (wasHeld[i] === 1) throw new RangeError('a block is in a snapshot twice');
        const more = ((records[(first + i) * RECORD_WORDS + COPIES]! >>> (8 * m)) & 0xff) - 1;
        if (more > 0) copies.add(position, m, more);
        placed[first + i] = position;
        if (isNamed) continue;
        names.chooseAt(i);
        if (!name(position, 'new', i + 1, n, counts)) {
          dropAll(position);
          partial = true;
        }
      }
      isNamed = true;
    }
  }

  /** Whether a block still is where it was put: it may have been dropped since, and its place given to another one. */
  function isRecorded(position: BlockPosition, records: Uint32Array, i: number): boolean {
    const at = i * RECORD_WORDS + KEY;
    return position !== NO_POSITION && index.holds(owner, position, records[at]!, records[at + 1]!);
  }

  const mirror: EngineMirror = {
    recorded: () => ({ maxRecords: index.heldBy(owner), record }),
    restore,
    apply(events, counts) {
      for (const event of events) {
        if (event.type === 'BlockRemoved') {
          counts.nRemoved += event.nEvents ?? 1;
          remove(event, counts);
          continue;
        }
        flushRemovals(counts);
        if (event.type === 'BlockStored') {
          counts.nStored++;
          store(event, counts);
        } else {
          counts.nCleared++;
          forgetBlocks();
        }
      }
      flushRemovals(counts);
    },
    evicted(position) {
      onEvicted();
      partial = true;
      namespaces.delete(position);
      copies.forget(position);
    },
    close() {
      parked.clear();
      copies.clear();
      namespaces.clear();
      retire();
    },
    stats: () => ({
      nBlocks: index.heldBy(owner),
      blockSizeTokens,
      reportsExtraKeys,
      indexable,
      partial,
      nOrphans: parked.size(),
    }),
  };
  byOwner.set(owner, mirror);
  return mirror;
}

export function createEngineScratch(): EngineScratch {
  return { keys: new Uint32Array(64), positions: new Uint32Array(32), wasHeld: new Uint8Array(32) };
}

export function noCounts(): Counts {
  return {
    nStored: 0,
    nRemoved: 0,
    nCleared: 0,
    nSkipped: 0,
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

/** The speed class of a medium's name; what is neither the GPU nor host memory counts as the slowest. */
function mediumIndexOf({ medium, locality }: BlockStored | BlockRemoved): MediumIndex {
  // Whatever it lies on there: it must come over the network.
  if (locality === 'REMOTE') return 2;
  if (!medium || medium === 'GPU') return GPU;
  const name = medium.toUpperCase();
  return name.startsWith('GPU') ? GPU : name.startsWith('CPU') || name === 'HOST' ? 1 : 2;
}

function partsOf(namespace: string): readonly [adapter: string | null, salt: string | null] {
  return namespace === '' ? [null, null] : (JSON.parse(namespace) as [string | null, string | null]);
}

/** A salt that is told beside the extra keys, put where vLLM has it: last among those of the prompt's first block. */
function withSalt(
  extraKeys: BlockExtraKeys | null,
  cacheSalt: string | null | undefined,
  nBlocks: number,
): BlockExtraKeys | null {
  if (!cacheSalt || extraKeys?.[0]?.includes(cacheSalt)) return extraKeys;
  const [first = null, ...rest] = extraKeys ?? new Array<null>(nBlocks).fill(null);
  return [[...(first ?? []), cacheSalt], ...rest];
}

function engineKey(hi: number, lo: number): EngineHashKey {
  return `${hi}:${lo}` as EngineHashKey;
}

function wordsOf(key: EngineHashKey): [hi: number, lo: number] {
  const [hi, lo] = key.split(':');
  return [Number(hi), Number(lo)];
}
