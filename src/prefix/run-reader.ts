/**
 * Lock-free look-ups. A run is copied out and believed only if its version stood still and even meanwhile; what cannot
 * be read undisturbed after some tries ends the match there, so a reader never waits for the writer and never promises
 * more than was announced.
 */
import type { PrefixIndexReader, SlotMask } from './index-types.ts';
import type { Medium, PrefixMatch } from './prefix-match.ts';
import {
  CLOCK,
  countEqual,
  COUNTS,
  EXTENTS,
  EXTENT_WORDS,
  headHome,
  HEADS_VERSION,
  indexStats,
  LENGTH,
  LINE_WORDS,
  MAX_OWNERS,
  MAX_RUN_BLOCKS,
  OWN_EXTENT,
  OWNERS,
  STAMP,
  VERSION,
  type RunViews,
} from './run-layout.ts';

const MAX_TRIES = 64;
const GPU = 0;
const HOST = 1;

export function createRunReader(views: RunViews): PrefixIndexReader {
  const { keys, words, versions, control, heads, nHeads } = views;
  const nLines = words.length / LINE_WORDS;
  /** Per owner: blocks matched from the start, and those of them whose fastest medium is the host, a disk. */
  const reach = new Int32Array(MAX_OWNERS);
  const onHost = new Int32Array(MAX_OWNERS);
  const onDisk = new Int32Array(MAX_OWNERS);
  const ownerWord = new Int32Array(MAX_OWNERS);
  const touched = new Uint16Array(MAX_OWNERS);
  let nTouched = 0;
  /** The run read last, and a copy of its extents. */
  let runRead = 0;
  let copied = new Uint32Array(64 * 2);
  /** Of a first run: the control word of every extent's owner, read with it. */
  let copiedOwner = new Int32Array(64);
  let nCopied = 0;
  let previous = new Uint32Array(64);
  const lastOf = new Uint32Array(MAX_OWNERS);
  // A store orders the loads before it; JavaScript has no other fence.
  const fence = new Int32Array(new SharedArrayBuffer(4));

  /** Copies a run's extents and counts its equal blocks; -1 when it was written to meanwhile. */
  function readRun(run: number, hashes: Uint32Array, depth: number, nBlocks: number): number {
    const record = run * LINE_WORDS;
    const version = Atomics.load(versions, record + VERSION);
    if ((version & 1) !== 0) return -1;
    const length = words[record + LENGTH]!;
    const n = words[record + COUNTS]! >>> 16;
    const lines = words[record + EXTENTS]!;
    if (length > MAX_RUN_BLOCKS || lines >= nLines) return -1;
    const equal = countEqual(keys, words, run, 0, hashes, depth, Math.min(nBlocks - depth, length));
    if (copied.length < 2 * n) {
      copied = new Uint32Array(4 * n);
      copiedOwner = new Int32Array(2 * n);
      previous = new Uint32Array(2 * n);
    }
    let at = lines === 0 ? record + OWN_EXTENT : lines * LINE_WORDS;
    if (at + n * EXTENT_WORDS > words.length) return -1;
    for (let i = 0; i < 2 * n; i += 2, at += EXTENT_WORDS) {
      copied[i] = words[at]!;
      copied[i + 1] = words[at + 1]!;
    }
    // While a run's extents stand still, none of its owners can have become another one under the same number.
    if (depth === 0) for (let i = 0; i < n; i++) copiedOwner[i] = control[OWNERS + (copied[2 * i]! >>> 2)]!;
    nCopied = n;
    Atomics.store(fence, 0, 0);
    return Atomics.load(versions, record + VERSION) === version ? equal : -1;
  }

  /** @returns whether some owner holds all of the run's first `equal` blocks and everything before them */
  function follow(depth: number, equal: number, slots: SlotMask | undefined): boolean {
    let isAnyLeft = false;
    let isMixed = false;
    for (let i = 0; i < 2 * nCopied; i += 2) {
      const owner = copied[i]! >>> 2;
      if ((copied[i]! & 3) !== GPU) isMixed = true;
      const local = reach[owner]! - depth;
      const start = copied[i + 1]! >>> 16;
      // Extents are sorted by start: what begins behind a gap cannot be reached by a later one either.
      if (local < start) continue;
      const stop = Math.min(copied[i + 1]! & 0xffff, equal);
      if (stop <= local) continue;
      if (local === 0 && depth === 0 && !enter(owner, copiedOwner[i >> 1]!, slots)) continue;
      reach[owner] = depth + stop;
      if (stop === equal) isAnyLeft = true;
    }
    if (isMixed) countSlower(depth);
    return isAnyLeft;
  }

  /** @returns whether the owner is wanted at all */
  function enter(owner: number, word: number, slots: SlotMask | undefined): boolean {
    const slot = (word & 0xffff) - 1;
    if (slot < 0 || (slots !== undefined && ((slots[slot >>> 5]! >>> (slot & 31)) & 1) === 0)) return false;
    ownerWord[owner] = word;
    touched[nTouched++] = owner;
    return true;
  }

  /** Blocks of this run whose fastest medium is not the GPU, for owners that reached into it. */
  function countSlower(depth: number): void {
    // Extents of one owner, chained backwards.
    for (let i = 0; i < nCopied; i++) {
      const owner = copied[2 * i]! >>> 2;
      previous[i] = lastOf[owner]!;
      lastOf[owner] = i + 1;
    }
    for (let i = nCopied - 1; i >= 0; i--) {
      const owner = copied[2 * i]! >>> 2;
      if (lastOf[owner] === 0) continue;
      lastOf[owner] = 0;
      const limit = reach[owner]! - depth;
      if (limit <= 0) continue;
      let gpu = 0;
      let host = 0;
      for (let a = i + 1; a > 0; a = previous[a - 1]!) {
        const medium = copied[2 * a - 2]! & 3;
        if (medium === GPU) gpu += overlap(a, a, limit);
        if (medium !== HOST) continue;
        host += overlap(a, a, limit);
        for (let b = i + 1; b > 0; b = previous[b - 1]!) {
          if ((copied[2 * b - 2]! & 3) === GPU) host -= overlap(a, b, limit);
        }
      }
      onHost[owner]! += host;
      onDisk[owner]! += limit - gpu - host;
    }
  }

  /** Blocks below `limit` that two copied extents (counted from 1) have in common. */
  function overlap(a: number, b: number, limit: number): number {
    const spanA = copied[2 * a - 1]!;
    const spanB = copied[2 * b - 1]!;
    const start = Math.max(spanA >>> 16, spanB >>> 16);
    return Math.max(0, Math.min(spanA & 0xffff, spanB & 0xffff, limit) - start);
  }

  /**
   * Reads the run that begins with the block at `depth`. Half a key finds it: its last block proves all before it, so the key
   * of the first, which lies elsewhere, is only read where they part.
   * @returns its equal blocks, 0 = there is none, -1 = written to meanwhile
   */
  function readNext(hashes: Uint32Array, depth: number, nBlocks: number): number {
    const headsVersion = Atomics.load(control, HEADS_VERSION);
    const hi = hashes[2 * depth]!;
    let at = headHome(hi, nHeads);
    for (let steps = 0; steps < nHeads; steps++) {
      runRead = heads[2 * at + 1]!;
      if (runRead === 0) break;
      const equal = heads[2 * at] === hi ? readRun(runRead, hashes, depth, nBlocks) : 0;
      if (equal !== 0) return equal;
      if (++at === nHeads) at = 0;
    }
    return (headsVersion & 1) === 0 && Atomics.load(control, HEADS_VERSION) === headsVersion ? 0 : -1;
  }

  function walk(hashes: Uint32Array, nBlocks: number, slots: SlotMask | undefined): void {
    let depth = 0;
    let tries = 0;
    while (depth < nBlocks) {
      const equal = readNext(hashes, depth, nBlocks);
      if (equal < 0 && ++tries <= MAX_TRIES) continue;
      if (equal <= 0) return;
      words[runRead * LINE_WORDS + STAMP] = control[CLOCK]!;
      if (!follow(depth, equal, slots)) return;
      depth += equal;
    }
  }

  return {
    longestMatch(hashes, slots) {
      const nBlocks = hashes.length / 2;
      nTouched = 0;
      walk(hashes, nBlocks, slots);
      let maxSlot = -1;
      for (let i = 0; i < nTouched; i++) maxSlot = Math.max(maxSlot, (ownerWord[touched[i]!]! & 0xffff) - 1);
      const match = new DenseMatch(nBlocks, maxSlot);
      for (let i = 0; i < nTouched; i++) {
        const owner = touched[i]!;
        const word = ownerWord[owner]!;
        // Another owner under the same number by now: nothing is known of it.
        if (control[OWNERS + owner] === word) {
          match.add((word & 0xffff) - 1, reach[owner]!, onHost[owner]!, onDisk[owner]!);
        }
        reach[owner] = 0;
        onHost[owner] = 0;
        onDisk[owner] = 0;
      }
      return match;
    },
    stats: () => indexStats(control),
  };
}

/** Dense by slot: a decision asks for every candidate. A class, as every look-up makes one. */
class DenseMatch implements PrefixMatch {
  readonly nBlocks: number;
  readonly #blocks: number[];
  /** Rarely anything but the GPU: only where there is something. */
  #slower: Map<number, SlowerBlocks> | null = null;

  constructor(nBlocks: number, maxSlot: number) {
    this.nBlocks = nBlocks;
    this.#blocks = new Array<number>(maxSlot + 1).fill(0);
  }

  add(slot: number, n: number, host: number, disk: number): void {
    const known = this.#blocks[slot]!;
    if (known > n) return;
    if (host + disk > 0 || this.#slower !== null) {
      this.#slower ??= new Map();
      const [knownHost, knownDisk] = this.#slower.get(slot) ?? NONE_SLOWER;
      // The better of two owners behind one slot: more blocks, or as many on faster media.
      const gain = knownHost + knownDisk - (host + disk) || knownDisk - disk;
      if (known === n && gain <= 0) return;
      if (host + disk > 0) this.#slower.set(slot, [host, disk]);
      else this.#slower.delete(slot);
    }
    this.#blocks[slot] = n;
  }

  blocks(slot: number): number {
    return this.#blocks[slot] ?? 0;
  }

  blocksIn(slot: number, medium: Medium): number {
    const [host, disk] = this.#slower?.get(slot) ?? NONE_SLOWER;
    return medium === 'gpu' ? this.blocks(slot) - host - disk : medium === 'host' ? host : disk;
  }
}

type SlowerBlocks = readonly [host: number, disk: number];

const NONE_SLOWER: SlowerBlocks = [0, 0];
