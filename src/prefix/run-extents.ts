/**
 * Who holds which stretch of a run: sorted lists of extents, and per owner the list of its extents, so that an owner is
 * cleared in time proportional to what it holds. Extents of one holder never overlap nor touch. Not safe by itself:
 * the writer bumps the run's version around every change.
 */
import type { LineAllocator } from './line-allocator.ts';
import { COUNTS, EXTENTS, EXTENT_WORDS, extentsWord, LINE_WORDS, OWN_EXTENT, type RunViews } from './run-layout.ts';

/** The extents of one owner, as the runs they lie in. */
export type OwnerExtents = { runs: Uint32Array; n: number; nHeld: number };

const FIRST_RUNS = 16;
/**
 * Extents of one holder in one run; engines remove from the end, and need one or two. Every one costs whoever changes another
 * one of the run a few nanoseconds.
 */
const MAX_OF_HOLDER = 1024;
const MAX_EXTENTS = 0xffff;

export type RunExtents = {
  /** An owner without extents. */
  openOwner(): OwnerExtents;
  /** The owner must hold nothing any more. */
  closeOwner(owner: OwnerExtents): void;
  /** Memory of all owners' lists. */
  nBytes(): number;
  /**
   * @param wasHeld from `firstFlag` on: set to 1 for every block of the stretch that the holder held already
   * @returns blocks that are newly held, -1 when there is no memory for another extent
   */
  hold(run: number, holder: number, start: number, end: number, wasHeld: Uint8Array, firstFlag: number): number;
  /**
   * @returns blocks that were held and are not any more; more than asked for where what lies behind, to the end of its
   *   extent, had to be forgotten for lack of memory
   */
  release(run: number, holder: number, start: number, end: number): number;
  /** Offsets of [start, end) that nobody holds. */
  eachUnheld(run: number, start: number, end: number, found: (offset: number) => void): void;
  count(run: number): number;
  /** End of the last extent. */
  maxEnd(run: number): number;
  /** Bit set of the media in which an owner holds a block. */
  mediaAt(run: number, owner: number, offset: number): number;
  /** The same for the first n blocks of a run. @param out receives n bit sets */
  mediaOf(run: number, owner: number, n: number, out: Uint8Array): void;
  /** Gives the list's memory back; the run holds no extents any more. */
  free(run: number): void;
};

export function createRunExtents(
  views: RunViews,
  lines: LineAllocator,
  owners: readonly (OwnerExtents | undefined)[],
): RunExtents {
  const { words } = views;
  let nBytes = 0;

  const count = (run: number): number => words[run * LINE_WORDS + COUNTS]! >>> 16;

  function setCount(run: number, n: number): void {
    const at = run * LINE_WORDS + COUNTS;
    words[at] = (n << 16) | (words[at]! & 0xffff);
  }

  function countOf(run: number, holder: number): number {
    const first = extentsWord(words, run);
    const stop = first + count(run) * EXTENT_WORDS;
    let n = 0;
    for (let at = first; at < stop; at += EXTENT_WORDS) if (words[at] === holder) n++;
    return n;
  }

  /** Room for one extent more. */
  function reserve(run: number, holder: number): boolean {
    const n = count(run);
    if (n >= MAX_EXTENTS || (n >= MAX_OF_HOLDER && countOf(run, holder) >= MAX_OF_HOLDER)) return false;
    const record = run * LINE_WORDS;
    const isOwn = words[record + EXTENTS] === 0;
    const sizeClass = (words[record + COUNTS]! >>> 8) & 0xff;
    const capacity = isOwn ? 1 : Math.floor((LINE_WORDS * 2 ** sizeClass) / EXTENT_WORDS);
    if (n < capacity) return true;
    const larger = isOwn ? 0 : sizeClass + 1;
    const line = lines.take(larger);
    if (line === 0) return false;
    const from = extentsWord(words, run);
    words.copyWithin(line * LINE_WORDS, from, from + n * EXTENT_WORDS);
    if (!isOwn) lines.give(words[record + EXTENTS]!, sizeClass);
    words[record + EXTENTS] = line;
    words[record + COUNTS] = (words[record + COUNTS]! & 0xffff00ff) | (larger << 8);
    return true;
  }

  /** The room must be reserved. */
  function insert(run: number, holder: number, start: number, end: number): void {
    const first = extentsWord(words, run);
    const n = count(run);
    let at = first + n * EXTENT_WORDS;
    for (; at > first && words[at - EXTENT_WORDS + 1]! >>> 16 > start; at -= EXTENT_WORDS);
    words.copyWithin(at + EXTENT_WORDS, at, first + n * EXTENT_WORDS);
    words[at] = holder;
    words[at + 1] = (start << 16) | end;
    const owner = owners[holder >>> 2]!;
    if (owner.n === owner.runs.length) {
      const larger = new Uint32Array(2 * owner.n);
      larger.set(owner.runs);
      nBytes += larger.byteLength - owner.runs.byteLength;
      owner.runs = larger;
    }
    words[at + 2] = owner.n;
    owner.runs[owner.n++] = run;
    setCount(run, n + 1);
  }

  function removeAt(run: number, at: number): void {
    const id = words[at]! >>> 2;
    const owner = owners[id]!;
    const place = words[at + 2]!;
    const last = --owner.n;
    if (place !== last) {
      // The owner's last extent takes the place; it has to know.
      const moved = owner.runs[last]!;
      owner.runs[place] = moved;
      let other = extentsWord(words, moved);
      while (words[other + 2] !== last || words[other]! >>> 2 !== id) other += EXTENT_WORDS;
      words[other + 2] = place;
    }
    const n = count(run);
    words.copyWithin(at, at + EXTENT_WORDS, extentsWord(words, run) + n * EXTENT_WORDS);
    setCount(run, n - 1);
  }

  return {
    openOwner() {
      nBytes += 4 * FIRST_RUNS;
      return { runs: new Uint32Array(FIRST_RUNS), n: 0, nHeld: 0 };
    },
    closeOwner(owner) {
      nBytes -= owner.runs.byteLength;
    },
    nBytes: () => nBytes,
    count,
    hold(run, holder, start, end, wasHeld, firstFlag) {
      let nNew = end - start;
      let from = start;
      let to = end;
      let hasGrown = false;
      let hasMerged = false;
      const first = extentsWord(words, run);
      for (let at = first + (count(run) - 1) * EXTENT_WORDS; at >= first; at -= EXTENT_WORDS) {
        if (words[at] !== holder) continue;
        const itsStart = words[at + 1]! >>> 16;
        const itsEnd = words[at + 1]! & 0xffff;
        if (itsStart > end || itsEnd < start) continue;
        const both = Math.min(itsEnd, end);
        for (let k = Math.max(itsStart, start); k < both; k++) {
          wasHeld[firstFlag + k - start] = 1;
          nNew--;
        }
        if (itsStart <= start) {
          // The usual case, growth at the end: the extent keeps its place in the order.
          to = Math.max(to, itsEnd);
          words[at + 1] = (itsStart << 16) | to;
          hasGrown = true;
        } else {
          from = Math.min(from, itsStart);
          to = Math.max(to, itsEnd);
          removeAt(run, at);
          hasMerged = true;
        }
      }
      if (!hasGrown) {
        if (!hasMerged && !reserve(run, holder)) return -1;
        insert(run, holder, from, to);
      }
      owners[holder >>> 2]!.nHeld += nNew;
      return nNew;
    },
    release(run, holder, start, end) {
      let nGone = 0;
      const first = extentsWord(words, run);
      for (let at = first + (count(run) - 1) * EXTENT_WORDS; at >= first; at -= EXTENT_WORDS) {
        if (words[at] !== holder) continue;
        const itsStart = words[at + 1]! >>> 16;
        const itsEnd = words[at + 1]! & 0xffff;
        if (itsStart >= end || itsEnd <= start) continue;
        if (itsStart >= start) {
          nGone += Math.min(itsEnd, end) - itsStart;
          removeAt(run, at);
          if (itsEnd > end) insert(run, holder, end, itsEnd);
        } else if (itsEnd <= end) {
          nGone += itsEnd - start;
          words[at + 1] = (itsStart << 16) | start;
        } else if (reserve(run, holder)) {
          nGone += end - start;
          words[extentsWord(words, run) + at - first + 1] = (itsStart << 16) | start;
          insert(run, holder, end, itsEnd);
        } else {
          // No memory to remember what lies behind the hole: forgotten, so that nothing is promised wrongly.
          nGone += itsEnd - start;
          words[at + 1] = (itsStart << 16) | start;
        }
        // A list that moved or was re-sorted holds nothing more of this stretch that was not seen.
        if (itsStart < start && itsEnd > end) break;
      }
      owners[holder >>> 2]!.nHeld -= nGone;
      return nGone;
    },
    eachUnheld(run, start, end, found) {
      let cursor = start;
      const first = extentsWord(words, run);
      const stop = first + count(run) * EXTENT_WORDS;
      for (let at = first; at < stop && cursor < end; at += EXTENT_WORDS) {
        const itsStart = words[at + 1]! >>> 16;
        for (const gapEnd = Math.min(itsStart, end); cursor < gapEnd; cursor++) found(cursor);
        cursor = Math.max(cursor, words[at + 1]! & 0xffff);
      }
      for (; cursor < end; cursor++) found(cursor);
    },
    maxEnd(run) {
      let max = 0;
      const first = extentsWord(words, run);
      const stop = first + count(run) * EXTENT_WORDS;
      for (let at = first; at < stop; at += EXTENT_WORDS) max = Math.max(max, words[at + 1]! & 0xffff);
      return max;
    },
    mediaAt(run, owner, offset) {
      let media = 0;
      const first = extentsWord(words, run);
      const stop = first + count(run) * EXTENT_WORDS;
      for (let at = first; at < stop; at += EXTENT_WORDS) {
        // Sorted by their starts.
        if (words[at + 1]! >>> 16 > offset) break;
        const holder = words[at]!;
        if (holder >>> 2 === owner && offset < (words[at + 1]! & 0xffff)) media |= 1 << (holder & 3);
      }
      return media;
    },
    mediaOf(run, owner, n, out) {
      out.fill(0, 0, n);
      const first = extentsWord(words, run);
      const stop = first + count(run) * EXTENT_WORDS;
      for (let at = first; at < stop; at += EXTENT_WORDS) {
        const holder = words[at]!;
        if (holder >>> 2 !== owner) continue;
        const end = Math.min(words[at + 1]! & 0xffff, n);
        for (let offset = words[at + 1]! >>> 16; offset < end; offset++) out[offset]! |= 1 << (holder & 3);
      }
    },
    free(run) {
      const record = run * LINE_WORDS;
      if (words[record + EXTENTS] !== 0) lines.give(words[record + EXTENTS]!, (words[record + COUNTS]! >>> 8) & 0xff);
      words[record + EXTENTS] = 0;
      words[record + OWN_EXTENT] = 0;
      words[record + COUNTS] = words[record + COUNTS]! & 0xff;
    },
  };
}
