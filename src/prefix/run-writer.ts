/**
 * The one writer of the index: turns "this owner holds these consecutive blocks" into runs and extents. Everything a
 * reader could trip over happens between two steps of the run's version word.
 */
import { createLineAllocator, MAX_SIZE_CLASS } from './line-allocator.ts';
import { type BlockPosition, type IndexOwner, type PrefixIndexHooks, type PrefixIndexWriter } from './index-types.ts';
import { createRunExtents, type OwnerExtents } from './run-extents.ts';
import {
  ATTACH,
  CHUNK_BLOCKS,
  CLOCK,
  countEqual,
  COUNTS,
  directoryEntry,
  DIRECTORY,
  EXTENT_WORDS,
  extentsWord,
  findHead,
  headHome,
  indexStats,
  HEADS_VERSION,
  keyWord,
  LENGTH,
  LINE_BYTES,
  LINE_WORDS,
  LINES_USED,
  MAX_OWNERS,
  MAX_RUN_BLOCKS,
  N_CHILDREN,
  N_EVICTED,
  N_HELD,
  OWN_CHUNKS,
  OWNERS,
  PARENT,
  STAMP,
  VERSION,
  type RunViews,
} from './run-layout.ts';

/** Beside its line in shared memory, a chunk costs the writer what leads back from a position to its run. */
const BACK_BYTES = 6;
/** The table of heads is not filled further than this. */
const MAX_HEADS_LOAD = 0.85;
/** Runs of the largest owner that compete for eviction; the one used longest ago goes. */
const EVICTION_SAMPLE = 8;
/** Blocks and runs that a walk visits at once: a fraction of a millisecond. */
const WALK_STEP = 512;
/** Blocks of retired owners taken out at once. */
const SWEEP_STEP = 256;
/** Retired owners that may wait to be swept before every new one has to do some of it. */
const MAX_DYING = 256;
/** A store that cannot find room in so many steps is given up. */
const MAX_EVICTIONS_PER_STORE = 256;

const NO_HOOKS: PrefixIndexHooks = { unheld: () => {}, dropping: () => {}, bytesPerChunk: 0, otherBytes: () => 0 };

export function createRunWriter(views: RunViews, maxBytes: number): PrefixIndexWriter {
  const { keys, words, versions, heads, nHeads, control } = views;
  const lines = createLineAllocator(words);
  const chunks = createLineAllocator(keys);
  /** Per chunk: its run, and which chunk of the run it is. */
  const backRun = new Uint32Array(chunks.nLines);
  const backIndex = new Uint16Array(chunks.nLines);
  const owners: (OwnerExtents | undefined)[] = [];
  const extents = createRunExtents(views, lines, owners);
  const dying: number[] = [];
  const freeOwners: number[] = [];
  const fixedBytes = heads.byteLength + control.byteLength;
  let freeRuns = 0;
  let nRuns = 0;
  let nFreeRuns = 0;
  const oneFlag = new Uint8Array(1);
  /** Media of an owner in the blocks of one run. */
  const media = new Uint8Array(MAX_RUN_BLOCKS);
  let random = 1;
  let hooks = NO_HOOKS;

  heads.fill(0);
  control.fill(0, 0, OWNERS);
  for (let owner = 0; owner < MAX_OWNERS; owner++) {
    const word = control[OWNERS + owner]!;
    if (word !== 0) Atomics.store(control, OWNERS + owner, word & ~0xffff);
  }

  const bytesUsed = (): number => {
    return (
      fixedBytes +
      (lines.nUsed() - nFreeRuns) * LINE_BYTES +
      chunks.nUsed() * (LINE_BYTES + BACK_BYTES + hooks.bytesPerChunk) +
      extents.nBytes() +
      hooks.otherBytes()
    );
  };
  const begin = (run: number): void => {
    Atomics.add(versions, run * LINE_WORDS + VERSION, 1);
  };
  const end = begin;
  const runAt = (position: number): number => backRun[position >>> 3]!;
  const offsetAt = (position: number): number => backIndex[position >>> 3]! * CHUNK_BLOCKS + (position & 7);

  function positionAt(run: number, offset: number): BlockPosition {
    const chunk = words[directoryEntry(words, run, offset >>> 3)]!;
    return (chunk * CHUNK_BLOCKS + (offset & 7)) as BlockPosition;
  }

  function publishSize(): void {
    control[LINES_USED] = Math.ceil(bytesUsed() / LINE_BYTES);
  }

  // ---- runs

  /** A new, empty run that continues `parent` after `attach` blocks; 0 when there is no room. */
  function createRun(parent: number, attach: number): number {
    if (nRuns >= nHeads * MAX_HEADS_LOAD) return 0;
    let run = freeRuns;
    if (run !== 0) {
      freeRuns = words[run * LINE_WORDS + PARENT]!;
      nFreeRuns--;
    } else {
      run = lines.take(0);
      if (run === 0) return 0;
      // Even, and not what a reader of this line may have seen before.
      Atomics.store(versions, run * LINE_WORDS + VERSION, 0);
    }
    nRuns++;
    const record = run * LINE_WORDS;
    begin(run);
    words.fill(0, record + 1, record + LINE_WORDS);
    words[record + PARENT] = parent;
    words[record + ATTACH] = attach << 16;
    words[record + STAMP] = control[CLOCK]!;
    if (parent !== 0) {
      const above = parent * LINE_WORDS;
      words[above + N_CHILDREN]!++;
      const its = words[above + ATTACH]!;
      if ((its & 0xffff) < attach) words[above + ATTACH] = (its & 0xffff0000) | attach;
    }
    end(run);
    return run;
  }

  /** Directory entries a run has room for. */
  function directoryCapacity(run: number): number {
    const record = run * LINE_WORDS;
    return words[record + DIRECTORY] === 0 ? OWN_CHUNKS : LINE_WORDS * 2 ** (words[record + COUNTS]! & 0xff);
  }

  function growDirectory(run: number, nChunks: number): boolean {
    const record = run * LINE_WORDS;
    const old = words[record + DIRECTORY]!;
    const oldClass = words[record + COUNTS]! & 0xff;
    let sizeClass = old === 0 ? 0 : oldClass + 1;
    while (LINE_WORDS * 2 ** sizeClass < nChunks) sizeClass++;
    const line = sizeClass > MAX_SIZE_CLASS ? 0 : lines.take(sizeClass);
    if (line === 0) return false;
    const from = directoryEntry(words, run, 0);
    words.copyWithin(line * LINE_WORDS, from, from + directoryCapacity(run));
    if (old !== 0) lines.give(old, oldClass);
    words[record + DIRECTORY] = line;
    words[record + COUNTS] = (words[record + COUNTS]! & 0xffffff00) | sizeClass;
    return true;
  }

  /** Appends up to n keys; the run's version is odd. @returns how many there was room for */
  function append(run: number, hashes: Uint32Array, first: number, n: number): number {
    const length = words[run * LINE_WORDS + LENGTH]!;
    const nFit = Math.min(n, MAX_RUN_BLOCKS - length);
    const nChunks = Math.ceil((length + nFit) / CHUNK_BLOCKS);
    let room = length;
    if (nChunks <= directoryCapacity(run) || growDirectory(run, nChunks)) {
      room = Math.ceil(length / CHUNK_BLOCKS) * CHUNK_BLOCKS;
      for (let i = room / CHUNK_BLOCKS; i < nChunks; i++) {
        const chunk = chunks.take(0);
        if (chunk === 0) break;
        words[directoryEntry(words, run, i)] = chunk;
        backRun[chunk] = run;
        backIndex[chunk] = i;
        room += CHUNK_BLOCKS;
      }
    } else room = Math.ceil(length / CHUNK_BLOCKS) * CHUNK_BLOCKS;
    const nDone = Math.min(nFit, room - length);
    for (let i = 0; i < nDone;) {
      const offset = length + i;
      const inChunk = Math.min(nDone - i, CHUNK_BLOCKS - (offset & 7));
      let key = keyWord(words, run, offset);
      for (let from = 2 * (first + i), to = from + 2 * inChunk; from < to;) keys[key++] = hashes[from++]!;
      i += inChunk;
    }
    words[run * LINE_WORDS + LENGTH] = length + nDone;
    return nDone;
  }

  /** Shortens a run to what is held or hangs on, and frees it when that is nothing. The version is even. */
  function trim(start: number): void {
    let run = start;
    while (run !== 0) {
      const record = run * LINE_WORDS;
      const hasChildren = words[record + N_CHILDREN] !== 0;
      if (!hasChildren) words[record + ATTACH] = words[record + ATTACH]! & 0xffff0000;
      const length = words[record + LENGTH]!;
      const needed = Math.max(extents.maxEnd(run), words[record + ATTACH]! & 0xffff);
      if (needed > 0) {
        if (needed < length) {
          begin(run);
          words[record + LENGTH] = needed;
          freeChunks(run, Math.ceil(needed / CHUNK_BLOCKS), Math.ceil(length / CHUNK_BLOCKS));
          end(run);
        }
        return;
      }
      const parent = words[record + PARENT]!;
      freeRun(run, length);
      if (parent === 0) return;
      words[parent * LINE_WORDS + N_CHILDREN]!--;
      run = parent;
    }
  }

  function freeChunks(run: number, from: number, to: number): void {
    for (let i = from; i < to; i++) chunks.give(words[directoryEntry(words, run, i)]!, 0);
  }

  function freeRun(run: number, length: number): void {
    const record = run * LINE_WORDS;
    if (length > 0) removeHead(run);
    begin(run);
    freeChunks(run, 0, Math.ceil(length / CHUNK_BLOCKS));
    if (words[record + DIRECTORY] !== 0) lines.give(words[record + DIRECTORY]!, words[record + COUNTS]! & 0xff);
    extents.free(run);
    words[record + LENGTH] = 0;
    words[record + PARENT] = freeRuns;
    end(run);
    freeRuns = run;
    nFreeRuns++;
    nRuns--;
  }

  // ---- heads

  function addHead(run: number): void {
    const hi = keys[keyWord(words, run, 0)]!;
    let at = headHome(hi, nHeads);
    while (heads[2 * at + 1] !== 0) if (++at === nHeads) at = 0;
    heads[2 * at] = hi;
    Atomics.store(heads, 2 * at + 1, run);
  }

  /** Takes a head out and moves later ones up, so that no look-up stops short. */
  function removeHead(run: number): void {
    let hole = headHome(keys[keyWord(words, run, 0)]!, nHeads);
    while (heads[2 * hole + 1] !== run) if (++hole === nHeads) hole = 0;
    Atomics.add(control, HEADS_VERSION, 1);
    for (let at = hole; ;) {
      if (++at === nHeads) at = 0;
      if (heads[2 * at + 1] === 0) break;
      const home = headHome(heads[2 * at]!, nHeads);
      // Still reachable from its home when the hole is not between the two.
      if (hole <= at ? home > hole && home <= at : home > hole || home <= at) continue;
      heads[2 * hole] = heads[2 * at]!;
      heads[2 * hole + 1] = heads[2 * at + 1]!;
      hole = at;
    }
    heads[2 * hole] = 0;
    heads[2 * hole + 1] = 0;
    Atomics.add(control, HEADS_VERSION, 1);
  }

  // ---- holding

  /** @returns false when there was no memory to note it */
  function hold(run: number, holder: number, start: number, stop: number, wasHeld: Uint8Array, flag: number): boolean {
    begin(run);
    const nNew = extents.hold(run, holder, start, stop, wasHeld, flag);
    end(run);
    if (nNew < 0) return false;
    control[N_HELD]! += nNew;
    words[run * LINE_WORDS + STAMP] = control[CLOCK]!;
    return true;
  }

  function release(run: number, holder: number, start: number, stop: number, counted: 'counted' | 'uncounted'): number {
    begin(run);
    const nGone = extents.release(run, holder, start, stop);
    end(run);
    if (nGone === 0) return 0;
    if (counted === 'counted') control[N_HELD]! -= nGone;
    const isRestForgotten = nGone > stop - start;
    if (isRestForgotten) forgetFrom(run, holder >>> 2, start + nGone, stop);
    const goneTo = isRestForgotten ? words[run * LINE_WORDS + LENGTH]! : stop;
    extents.eachUnheld(run, start, goneTo, (offset) => hooks.unheld(positionAt(run, offset)));
    trim(run);
    return Math.min(nGone, stop - start);
  }

  /** There was no memory to tell what an owner holds behind a hole: all of it goes, in all media. @param lost up to where one has gone */
  function forgetFrom(run: number, owner: number, lost: number, start: number): void {
    const length = words[run * LINE_WORDS + LENGTH]!;
    extents.mediaOf(run, owner, length, media);
    for (let offset = start; offset < length; offset++) {
      if (offset < lost || media[offset] !== 0) hooks.dropping(owner as IndexOwner, positionAt(run, offset));
    }
    begin(run);
    for (let medium = 0; medium < 3; medium++) {
      control[N_HELD]! -= extents.release(run, (owner << 2) | medium, start, length);
    }
    end(run);
  }

  // ---- room

  function makeRoom(nBlocks: number): boolean {
    // A directory, extents, a record or two.
    const nChunks = Math.ceil(nBlocks / CHUNK_BLOCKS) + 1;
    const nLines = Math.ceil(nBlocks / 32) + 8;
    const nBytes = nLines * LINE_BYTES + nChunks * (LINE_BYTES + BACK_BYTES + hooks.bytesPerChunk);
    for (let tries = 0; tries < MAX_EVICTIONS_PER_STORE; tries++) {
      const isFree = bytesUsed() + nBytes <= maxBytes && nRuns + 2 < nHeads * MAX_HEADS_LOAD;
      if (isFree && chunks.nUsed() + nChunks < chunks.nLines && lines.nUsed() + nLines < lines.nLines) return true;
      if (dying.length > 0) sweep(SWEEP_STEP);
      else if (!evictOne()) return false;
    }
    return false;
  }

  /** The part of a run that the largest owner used longest ago, of a few that are looked at. */
  function evictOne(): boolean {
    let largest = -1;
    let most = 0;
    for (let owner = 0; owner < owners.length; owner++) {
      const nHeld = owners[owner]?.nHeld ?? 0;
      if (nHeld > most) {
        most = nHeld;
        largest = owner;
      }
    }
    if (largest < 0) return false;
    const { runs, n } = owners[largest]!;
    let victim = 0;
    let oldest = -1;
    const now = control[CLOCK]!;
    for (let i = 0; i < EVICTION_SAMPLE; i++) {
      random = (Math.imul(random, 0x915f77f5) + 0x9e3779b9) >>> 0;
      const run = runs[Math.floor(random * n * 2 ** -32)]!;
      const age = (now - words[run * LINE_WORDS + STAMP]!) >>> 0;
      if (age > oldest) {
        oldest = age;
        victim = run;
      }
    }
    const length = words[victim * LINE_WORDS + LENGTH]!;
    extents.mediaOf(victim, largest, length, media);
    for (let offset = 0; offset < length; offset++) {
      if (media[offset] !== 0) hooks.dropping(largest as IndexOwner, positionAt(victim, offset));
    }
    let nGone = 0;
    for (let medium = 0; medium < 3; medium++) {
      // An earlier one may have freed the run: releasing what is not there changes nothing.
      nGone += release(victim, (largest << 2) | medium, 0, length, 'counted');
    }
    control[N_EVICTED]! += nGone;
    return true;
  }

  /** @returns whether retired owners still hold something */
  function sweep(maxBlocks: number): boolean {
    let left = maxBlocks;
    while (dying.length > 0 && left > 0) {
      const id = dying[0]!;
      const owner = owners[id]!;
      if (owner.n === 0) {
        dying.shift();
        extents.closeOwner(owner);
        owners[id] = undefined;
        freeOwners.push(id);
        continue;
      }
      const run = owner.runs[owner.n - 1]!;
      let at = extentsWord(words, run);
      while (words[at]! >>> 2 !== id || words[at + 2] !== owner.n - 1) at += EXTENT_WORDS;
      const stop = words[at + 1]! & 0xffff;
      const start = Math.max(words[at + 1]! >>> 16, stop - left);
      left -= stop - start;
      for (let offset = start; offset < stop; offset++) hooks.dropping(id as IndexOwner, positionAt(run, offset));
      release(run, words[at]!, start, stop, 'uncounted');
    }
    publishSize();
    return dying.length > 0;
  }

  // ---- walks

  /** Place among an owner's extents of the one that begins a run, -1 where it does not hold the run's first block. */
  function firstPlace(run: number, owner: number): number {
    const first = extentsWord(words, run);
    const stop = first + extents.count(run) * EXTENT_WORDS;
    for (let at = first; at < stop && words[at + 1]! >>> 16 === 0; at += EXTENT_WORDS) {
      if (words[at]! >>> 2 === owner) return words[at + 2]!;
    }
    return -1;
  }

  function* walk(
    owner: IndexOwner,
    visit: (position: BlockPosition, before: number, media: number) => boolean,
  ): Generator<void, boolean> {
    const { runs, n } = owners[owner]!;
    // By the place that a run begins with.
    const isSeen = new Uint8Array(n);
    const firstNumber = new Uint32Array(n);
    const nTaken = new Uint16Array(n);
    const held = new Uint8Array(MAX_RUN_BLOCKS);
    const open: number[] = [];
    let isAll = true;
    let number = 0;
    let work = 0;
    for (let i = 0; i < n; i++) {
      if (firstPlace(runs[i]!, owner) < 0) isAll = false;
      // What a run hangs on comes before it.
      for (let run = runs[i]!; run !== 0; run = words[run * LINE_WORDS + PARENT]!) {
        const place = firstPlace(run, owner);
        if (place < 0 || isSeen[place] === 1) break;
        isSeen[place] = 1;
        open.push(run);
      }
      for (let run = open.pop(); run !== undefined; run = open.pop()) {
        const record = run * LINE_WORDS;
        const parent = words[record + PARENT]!;
        const attach = words[record + ATTACH]! >>> 16;
        const place = firstPlace(run, owner);
        let before = 0;
        if (parent !== 0) {
          const above = firstPlace(parent, owner);
          if (above < 0 || nTaken[above]! < attach) {
            isAll = false;
            continue;
          }
          before = firstNumber[above]! + attach - 1;
        }
        const length = words[record + LENGTH]!;
        extents.mediaOf(run, owner, length, held);
        firstNumber[place] = number + 1;
        let offset = 0;
        while (offset < length && held[offset] !== 0 && visit(positionAt(run, offset), before, held[offset]!)) {
          before = ++number;
          nTaken[place] = ++offset;
          if (++work % WALK_STEP === 0) yield;
        }
        for (; offset < length && isAll; offset++) isAll = held[offset] === 0;
        if (++work % WALK_STEP === 0) yield;
      }
    }
    return isAll;
  }

  publishSize();
  return {
    maxBytes,
    nChunks: chunks.nLines,
    observe(observer) {
      hooks = observer;
    },
    openOwner(slot) {
      // Of engines that are cleared again and again.
      if (dying.length > MAX_DYING) sweep(SWEEP_STEP);
      while (owners.length >= MAX_OWNERS && freeOwners.length === 0 && dying.length > 0) sweep(SWEEP_STEP);
      const id = freeOwners.length > 256 || owners.length >= MAX_OWNERS ? freeOwners.shift() : owners.length;
      if (id === undefined) throw new RangeError(`more than ${MAX_OWNERS} owners in the prefix index`);
      owners[id] = extents.openOwner();
      // The generation lets a reader notice that an owner became another one under its hands.
      const generation = (control[OWNERS + id]! >>> 16) + 1;
      Atomics.store(control, OWNERS + id, (generation << 16) | (slot + 1));
      return id as IndexOwner;
    },
    retireOwner(owner) {
      Atomics.store(control, OWNERS + owner, control[OWNERS + owner]! & ~0xffff);
      control[N_HELD]! -= owners[owner]!.nHeld;
      owners[owner]!.nHeld = 0;
      dying.push(owner);
    },
    sweep,
    store(owner, medium, parent, hashes, nBlocks, positions, wasHeld) {
      control[CLOCK]!++;
      wasHeld.fill(0, 0, nBlocks);
      const nEvicted = control[N_EVICTED]!;
      if (!makeRoom(nBlocks)) return 0;
      let run = 0;
      let at = 0;
      if (parent !== 0) {
        run = runAt(parent);
        at = offsetAt(parent) + 1;
        // Making room may have taken the parent. Looked at only then: a prefix may have very many holders.
        const isInDoubt = control[N_EVICTED] !== nEvicted;
        if (isInDoubt && (run === 0 || extents.mediaAt(run, owner, at - 1) === 0)) return 0;
      }
      const holder = (owner << 2) | medium;
      let i = 0;
      while (i < nBlocks) {
        let n = 0;
        const length = run === 0 ? 0 : words[run * LINE_WORDS + LENGTH]!;
        if (at < length) n = countEqual(keys, words, run, at, hashes, i, Math.min(nBlocks - i, length - at));
        if (n === 0) {
          const child = findHead(views, hashes[2 * i]!, hashes[2 * i + 1]!);
          if (child !== 0) {
            run = child;
            at = 0;
            continue;
          }
          const isEnd = run !== 0 && at === length && at < MAX_RUN_BLOCKS;
          n = isEnd ? appendTo(run, holder, hashes, i, nBlocks - i, wasHeld) : 0;
          if (n === 0) {
            run = createRun(run, at);
            at = 0;
            n = run === 0 ? 0 : appendTo(run, holder, hashes, i, nBlocks - i, wasHeld);
            if (n === 0) break;
          }
        } else if (!hold(run, holder, at, at + n, wasHeld, i)) break;
        writePositions(run, at, n, positions, i);
        i += n;
        at += n;
      }
      publishSize();
      return i;
    },
    hold(owner, medium, position) {
      if (!makeRoom(1)) return false;
      const offset = offsetAt(position);
      // Making room may have taken the block itself.
      if (extents.mediaAt(runAt(position), owner, offset) === 0) return false;
      return hold(runAt(position), (owner << 2) | medium, offset, offset + 1, oneFlag, 0);
    },
    remove(owner, medium, positions, nPositions) {
      const holder = (owner << 2) | medium;
      let nGone = 0;
      for (let i = 0; i < nPositions;) {
        // Neighbours of one run in one go: engines remove the tail first, block by block.
        const run = runAt(positions[i]!);
        let start = offsetAt(positions[i]!);
        let stop = start + 1;
        for (i++; i < nPositions && runAt(positions[i]!) === run; i++) {
          const offset = offsetAt(positions[i]!);
          if (offset === start - 1) start = offset;
          else if (offset === stop) stop++;
          else break;
        }
        nGone += release(run, holder, start, stop, 'counted');
      }
      publishSize();
      return nGone;
    },
    keyAt(position, out) {
      const key = 2 * position;
      out[0] = keys[key]!;
      out[1] = keys[key + 1]!;
    },
    holds(owner, position, hi, lo) {
      const run = runAt(position);
      const offset = offsetAt(position);
      // A chunk that was freed still leads to the run it was of.
      if (run === 0 || offset >= words[run * LINE_WORDS + LENGTH]! || positionAt(run, offset) !== position)
        return false;
      const isSame = keys[2 * position] === hi && keys[2 * position + 1] === lo;
      return isSame && extents.mediaAt(run, owner, offset) !== 0;
    },
    mediaAt: (owner, position) => extents.mediaAt(runAt(position), owner, offsetAt(position)),
    walk,
    heldBy: (owner) => owners[owner]!.nHeld,
    stats: () => indexStats(control),
  };

  /** Where the n blocks from an offset on are. */
  function writePositions(run: number, offset: number, n: number, out: Uint32Array, outAt: number): void {
    let entry = directoryEntry(words, run, offset >>> 3);
    for (let k = 0, inChunk = offset & 7; k < n; inChunk = 0) {
      const first = words[entry++]! * CHUNK_BLOCKS + inChunk;
      const nHere = Math.min(n - k, CHUNK_BLOCKS - inChunk);
      for (let i = 0; i < nHere; i++) out[outAt + k++] = first + i;
    }
  }

  /** Appends and holds. @returns how many blocks; with 0 the run is as it was, or gone if it was new */
  function appendTo(
    run: number,
    holder: number,
    hashes: Uint32Array,
    first: number,
    n: number,
    wasHeld: Uint8Array,
  ): number {
    const length = words[run * LINE_WORDS + LENGTH]!;
    begin(run);
    const nDone = append(run, hashes, first, n);
    end(run);
    if (length === 0 && nDone > 0) addHead(run);
    if (nDone > 0 && hold(run, holder, length, length + nDone, wasHeld, first)) return nDone;
    trim(run);
    return 0;
  }
}
