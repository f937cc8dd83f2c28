/**
 * A multimap from 64-bit names to small numbers that grows a kilobyte at a time: no pause, no half-empty doubling.
 * Names are spread over sub-tables by their first bits (extendible hashing); a sub-table grows to sixteen units and then
 * splits. The table keeps the lower word of a name, which decides the bucket; the upper one, which decides the
 * sub-table, is kept by the user and asked for when a sub-table splits.
 *
 * Names must be well mixed. A bucket is one cache line: seven lower words, seven values. All words are signed here:
 * V8 keeps a larger number that is stored or handed over on the heap. And no getters: they make an object slow.
 */
import { createLineMemory } from '../prefix/line-memory.ts';

export type NameTable = {
  nBytes(): number;
  /**
   * Adds a value under a name, or tells that there is one already.
   * @param value not 0
   * @returns 0 when added, the value found under the name when not, `TABLE_FULL` when there is no room
   */
  insert(hi: number, lo: number, value: number, mode: 'unless present' | 'always'): number;
  /** Takes one entry out; it must be there. @param lo its lower 16 bits are enough */
  remove(hi: number, lo: number, value: number): void;
  /** The whole lower word of the name a value is stored under, of which the lower 16 bits are known; null = not there. */
  lowerWordOf(hi: number, lo: number, value: number): number | null;
  /** First value under a name, 0 = none. */
  first(hi: number, lo: number): number;
  /** The next value under the name of the last `first`; nothing may be changed in between. */
  next(): number;
  /** [0] changes when entries move: places found before are worth nothing then. */
  readonly epoch: Int32Array;
  /** Where a name lies, for `touch` and `peek`. */
  placeOf(hi: number, lo: number): number;
  /** The only value under a name, 0 = none, `UNCLEAR` when there are more. */
  peek(place: number, hi: number, lo: number): number;
  /** Reads n places: a loop as short as this one lets the processor wait for many cache misses at once. */
  touch(places: Int32Array, n: number): number;
};

export const TABLE_FULL = 0x8000_0000 | 0;
export const UNCLEAR = TABLE_FULL;
const BUCKET_ENTRIES = 7;
const BUCKET_WORDS = 16;
// Words of a bucket: lower words, then how many entries wanted to be here or before and lie behind, then values.
const PASSED = 7;
const VALUES = 8;
const UNIT_BUCKETS = 4;
const UNIT_ENTRIES = UNIT_BUCKETS * BUCKET_ENTRIES;
const UNIT_WORDS = UNIT_BUCKETS * BUCKET_WORDS;
const UNIT_BYTES = 4 * UNIT_WORDS;
/** Sizes of a sub-table, in units. */
const SIZES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
const MAX_UNITS = 16;
const MAX_LOAD = 0.9;
/** A sub-table that is emptier than this gives units back. */
const MIN_LOAD = 0.35;
const MAX_DEPTH = 20;

/** @param hiOf upper word of the name a value is stored under */
export function createNameTable(maxBytes: number, hiOf: (value: number) => number): NameTable {
  const nUnits = Math.max(MAX_UNITS, Math.floor(maxBytes / UNIT_BYTES));
  const words = new Int32Array(createLineMemory(4 * UNIT_WORDS * nUnits), 0, UNIT_WORDS * nUnits);
  let directory = Uint32Array.of(0);
  let depth = 0;
  let subDepth = new Uint8Array(16);
  let subUnits = new Uint8Array(16);
  let subCount = new Uint16Array(16);
  /** 16 unit numbers per sub-table. */
  let units = new Uint32Array(16 * MAX_UNITS);
  let nSubs = 0;
  const epoch = new Int32Array(1);
  let nextUnit = 0;
  const freeUnits: number[] = [];
  const spill = createSpill();
  const upperSpill = createSpill();
  const nInBucket = new Uint8Array(MAX_UNITS * UNIT_BUCKETS);
  const cursor = { sub: 0, bucket: 0, entry: 0, hi: 0, lo: 0, nBucketsLeft: 0 };
  addSub(0, 1);

  function addSub(itsDepth: number, itsUnits: number): number {
    if (nSubs === subDepth.length) {
      const n = 2 * nSubs;
      subDepth = copyInto(new Uint8Array(n), subDepth);
      subUnits = copyInto(new Uint8Array(n), subUnits);
      subCount = copyInto(new Uint16Array(n), subCount);
      units = copyInto(new Uint32Array(n * MAX_UNITS), units);
    }
    const sub = nSubs++;
    subDepth[sub] = itsDepth;
    addUnits(sub, itsUnits);
    return sub;
  }

  function addUnits(sub: number, n: number): void {
    for (let i = 0; i < n; i++) {
      units[sub * MAX_UNITS + subUnits[sub]!] = freeUnits.pop() ?? nextUnit++;
      subUnits[sub]!++;
    }
  }

  function shrinkTo(sub: number, n: number): void {
    while (subUnits[sub]! > n) freeUnits.push(units[sub * MAX_UNITS + --subUnits[sub]!]!);
  }

  const hasUnits = (n: number): boolean => freeUnits.length + nUnits - nextUnit >= n;
  const subOf = (hi: number): number => directory[depth === 0 ? 0 : hi >>> (32 - depth)]!;
  const capacityOf = (sub: number): number => Math.floor(subUnits[sub]! * UNIT_ENTRIES * MAX_LOAD);

  function homeOf(sub: number, lo: number): number {
    return ((lo & 0xffff) * (subUnits[sub]! * UNIT_BUCKETS)) >>> 16;
  }

  /** First word of a bucket of a sub-table. */
  function bucketAt(sub: number, bucket: number): number {
    return (units[sub * MAX_UNITS + (bucket >>> 2)]! * UNIT_BUCKETS + (bucket & 3)) * BUCKET_WORDS;
  }

  function place(sub: number, lo: number, value: number): void {
    const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
    let bucket = homeOf(sub, lo);
    for (;;) {
      const at = bucketAt(sub, bucket);
      for (let k = at; k < at + BUCKET_ENTRIES; k++) {
        if (words[k + VALUES] !== 0) continue;
        words[k + VALUES] = value;
        words[k] = lo;
        subCount[sub]!++;
        return;
      }
      words[at + PASSED]!++;
      if (++bucket === nBuckets) bucket = 0;
    }
  }

  /** Takes all entries of a sub-table out into `spill`. */
  function empty(sub: number): number {
    const { lo, value } = spill;
    let n = 0;
    epoch[0]!++;
    for (let bucket = 0; bucket < subUnits[sub]! * UNIT_BUCKETS; bucket++) {
      const at = bucketAt(sub, bucket);
      for (let k = at; k < at + BUCKET_ENTRIES; k++) {
        // No branch: which places are taken cannot be predicted.
        const its = words[k + VALUES]!;
        lo[n] = words[k]!;
        value[n] = its;
        n += its === 0 ? 0 : 1;
        words[k + VALUES] = 0;
      }
      words[at + PASSED] = 0;
    }
    subCount[sub] = 0;
    return n;
  }

  /** Puts n entries into an empty sub-table, without looking for free places as `place` does. */
  function fill(sub: number, { lo, value }: Spill, n: number): void {
    const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
    nInBucket.fill(0);
    for (let i = 0; i < n; i++) {
      let bucket = homeOf(sub, lo[i]!);
      while (nInBucket[bucket] === BUCKET_ENTRIES) {
        words[bucketAt(sub, bucket) + PASSED]!++;
        if (++bucket === nBuckets) bucket = 0;
      }
      const k = bucketAt(sub, bucket) + nInBucket[bucket]!++;
      words[k] = lo[i]!;
      words[k + VALUES] = value[i]!;
    }
    subCount[sub] = n;
  }

  /** Some units more, or two sub-tables instead of one. @param someHi upper word of any name that belongs there */
  function grow(sub: number, someHi: number): boolean {
    if (subUnits[sub]! < MAX_UNITS) {
      const more = sizeFor(subUnits[sub]! + 1) - subUnits[sub]!;
      if (!hasUnits(more)) return false;
      const n = empty(sub);
      addUnits(sub, more);
      fill(sub, spill, n);
      return true;
    }
    const itsDepth = subDepth[sub]!;
    if (itsDepth >= MAX_DEPTH || !hasUnits(MAX_UNITS)) return false;
    if (itsDepth === depth) {
      const larger = new Uint32Array(2 * directory.length);
      for (let i = 0; i < larger.length; i++) larger[i] = directory[i >>> 1]!;
      directory = larger;
      depth++;
    }
    const n = empty(sub);
    const bit = 31 - itsDepth;
    const nUpper = splitSpill(n, bit);
    const half = 2 ** (depth - itsDepth - 1);
    const entry = someHi >>> (32 - depth);
    const first = entry - (entry % (2 * half));
    const nLowerUnits = unitsFor(n - nUpper);
    shrinkTo(sub, nLowerUnits);
    addUnits(sub, nLowerUnits - subUnits[sub]!);
    subDepth[sub] = itsDepth + 1;
    const upper = addSub(itsDepth + 1, unitsFor(nUpper));
    directory.fill(upper, first + half, first + 2 * half);
    fill(sub, spill, n - nUpper);
    fill(upper, upperSpill, nUpper);
    return true;
  }

  /** Moves what has the bit in its upper word from `spill` to `upperSpill`. @returns how many that are */
  function splitSpill(n: number, bit: number): number {
    const { lo, value } = spill;
    let nLower = 0;
    let nUpper = 0;
    for (let i = 0; i < n; i++) {
      const isUpper = (hiOf(value[i]!) >>> bit) & 1;
      upperSpill.lo[nUpper] = lo[i]!;
      upperSpill.value[nUpper] = value[i]!;
      lo[nLower] = lo[i]!;
      value[nLower] = value[i]!;
      nUpper += isUpper;
      nLower += 1 - isUpper;
    }
    return nUpper;
  }

  /** The sub-table is emptied and filled again: few entries, rarely. */
  function shrink(sub: number): void {
    const n = empty(sub);
    shrinkTo(sub, unitsFor(n));
    fill(sub, spill, n);
  }

  function scan(): number {
    const { sub, lo } = cursor;
    const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
    // Once around at most, however many calls it takes.
    while (cursor.nBucketsLeft > 0) {
      const at = bucketAt(sub, cursor.bucket);
      for (let k = at + cursor.entry; k < at + BUCKET_ENTRIES; k++) {
        if (words[k] !== lo) continue;
        const value = words[k + VALUES]!;
        if (value === 0 || hiOf(value) !== cursor.hi) continue;
        cursor.entry = k + 1 - at;
        return value;
      }
      if (words[at + PASSED] === 0) return 0;
      cursor.entry = 0;
      cursor.nBucketsLeft--;
      if (++cursor.bucket === nBuckets) cursor.bucket = 0;
    }
    return 0;
  }

  function first(hi: number, lo: number): number {
    cursor.sub = subOf(hi);
    cursor.bucket = homeOf(cursor.sub, lo);
    cursor.entry = 0;
    cursor.hi = hi;
    cursor.lo = lo;
    cursor.nBucketsLeft = subUnits[cursor.sub]! * UNIT_BUCKETS;
    return scan();
  }

  return {
    epoch,
    nBytes() {
      return (nextUnit - freeUnits.length) * UNIT_BYTES + nSubs * (4 + 4 * MAX_UNITS) + directory.byteLength;
    },
    insert(hi, lo, value, mode) {
      if (mode === 'unless present') {
        const known = first(hi, lo);
        if (known !== 0) return known;
      }
      let sub = subOf(hi);
      while (subCount[sub]! >= capacityOf(sub)) {
        if (!grow(sub, hi)) return TABLE_FULL;
        sub = subOf(hi);
      }
      place(sub, lo, value);
      return 0;
    },
    remove(hi, lo, value) {
      const sub = subOf(hi);
      const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
      const home = homeOf(sub, lo);
      for (let steps = 0, bucket = home; steps < nBuckets; steps++) {
        const at = bucketAt(sub, bucket);
        for (let k = at + VALUES; k < at + VALUES + BUCKET_ENTRIES; k++) {
          if (words[k] !== value) continue;
          words[k] = 0;
          subCount[sub]!--;
          for (let b = home; b !== bucket; b = b + 1 === nBuckets ? 0 : b + 1) words[bucketAt(sub, b) + PASSED]!--;
          if (subUnits[sub]! > 1 && subCount[sub]! < subUnits[sub]! * UNIT_ENTRIES * MIN_LOAD) shrink(sub);
          return;
        }
        if (++bucket === nBuckets) bucket = 0;
      }
    },
    lowerWordOf(hi, lo, value) {
      const sub = subOf(hi);
      const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
      for (let steps = 0, bucket = homeOf(sub, lo); steps < nBuckets; steps++) {
        const at = bucketAt(sub, bucket);
        for (let k = at; k < at + BUCKET_ENTRIES; k++) if (words[k + VALUES] === value) return words[k]!;
        if (++bucket === nBuckets) bucket = 0;
      }
      return null;
    },
    first,
    next: scan,
    peek(place, hi, lo) {
      let found = 0;
      let at = place;
      let sub = -1;
      let bucket = 0;
      for (let n = 1; ; n++) {
        for (let k = at; k < at + BUCKET_ENTRIES; k++) {
          if (words[k] !== lo) continue;
          const value = words[k + VALUES]!;
          if (value === 0 || hiOf(value) !== hi) continue;
          if (found !== 0) return UNCLEAR;
          found = value;
        }
        if (words[at + PASSED] === 0) return found;
        if (sub < 0) {
          sub = subOf(hi);
          bucket = homeOf(sub, lo);
        }
        const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
        if (n === nBuckets) return found;
        if (++bucket === nBuckets) bucket = 0;
        at = bucketAt(sub, bucket);
      }
    },
    placeOf(hi, lo) {
      const sub = subOf(hi);
      return bucketAt(sub, homeOf(sub, lo));
    },
    touch(places, n) {
      let read = 0;
      for (let i = 0; i < n; i++) read ^= words[places[i]!]!;
      return read;
    },
  };
}

type Spill = { readonly lo: Int32Array; readonly value: Int32Array };

/** Room for the entries of the largest sub-table, and one that is overwritten. */
function createSpill(): Spill {
  const n = MAX_UNITS * UNIT_ENTRIES + 1;
  return { lo: new Int32Array(n), value: new Int32Array(n) };
}

/** The size that has so many units at least. */
function sizeFor(nUnits: number): number {
  return SIZES.find((size) => size >= nUnits) ?? MAX_UNITS;
}

/** Units that hold so many entries and a few more. */
function unitsFor(nEntries: number): number {
  return sizeFor((nEntries * 1.05 + 1) / (UNIT_ENTRIES * MAX_LOAD));
}

function copyInto<T extends Uint8Array | Uint16Array | Uint32Array>(larger: T, old: T): T {
  larger.set(old);
  return larger;
}
