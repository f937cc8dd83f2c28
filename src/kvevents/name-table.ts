/**
 * A multimap from 64-bit names to small numbers that grows a kilobyte at a time: no pause, no half-empty doubling.
 * Names are spread over sub-tables by their first bits (extendible hashing); a sub-table grows to sixteen units and then
 * splits. The table keeps the lower word of a name, which decides the bucket; the upper one, which decides the
 * sub-table, is kept by the user and asked for when a sub-table splits.
 *
 * Names must be well mixed. A bucket is one cache line: seven lower words, seven values, and what says whether a name may
 * lie in a bucket behind. All words are signed here: V8 keeps a larger number that is stored or handed over on the heap.
 * And no getters: they make an object slow.
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
  /** Where a name lies, for `touch`, `guess` and `peek`. */
  placeOf(hi: number, lo: number): number;
  /** The only value under a name, 0 = none, `UNCLEAR` when there are more. */
  peek(place: number, hi: number, lo: number): number;
  /** The only value under a lower word in a place, whatever its upper word; 0 = no such name, `UNCLEAR` = ask `peek`. */
  guess(place: number, lo: number): number;
  /** Reads n places: a loop as short as this one lets the processor wait for many cache misses at once. */
  touch(places: Int32Array, n: number): number;
};

export const TABLE_FULL = 0x8000_0000 | 0;
export const UNCLEAR = TABLE_FULL;
const BUCKET_ENTRIES = 7;
const BUCKET_WORDS = 16;
// Words of a bucket: lower words of its entries, without gaps; how many those are, and << 3 how many entries wanted to be
// here or before and lie behind; values; a bit for each name that passed (`passedBit`), and maybe for some that have gone.
const META = 7;
const ENTRIES_MASK = 7;
const ONE_PASSED = 8;
const VALUES = 8;
const PASSED_NAMES = 15;
const UNIT_BUCKETS = 4;
const UNIT_ENTRIES = UNIT_BUCKETS * BUCKET_ENTRIES;
const UNIT_WORDS = UNIT_BUCKETS * BUCKET_WORDS;
const UNIT_BYTES = 4 * UNIT_WORDS;
/** Sizes of a sub-table, in units. */
const SIZES = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
const MAX_UNITS = 16;
const MAX_LOAD = 0.9;
/** A sub-table that is emptier than this gives units back. */
const MIN_LOAD = 0.25;
const MAX_DEPTH = 20;

/** Entries a sub-table of so many units takes before it grows. */
const CAPACITIES = Uint16Array.from({ length: MAX_UNITS + 1 }, (_, n) => Math.floor(n * UNIT_ENTRIES * MAX_LOAD));

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
  /** First words of the buckets of one sub-table. */
  const bucketWords = new Int32Array(MAX_UNITS * UNIT_BUCKETS);
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

  function homeOf(sub: number, lo: number): number {
    return ((lo & 0xffff) * (subUnits[sub]! * UNIT_BUCKETS)) >>> 16;
  }

  /** First word of a bucket of a sub-table. */
  function bucketAt(sub: number, bucket: number): number {
    return (units[sub * MAX_UNITS + (bucket >>> 2)]! * UNIT_BUCKETS + (bucket & 3)) * BUCKET_WORDS;
  }

  /** Adds an entry to a sub-table that has room for it. */
  function place(sub: number, lo: number, value: number): void {
    const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
    let bucket = homeOf(sub, lo);
    let at = bucketAt(sub, bucket);
    while ((words[at + META]! & ENTRIES_MASK) === BUCKET_ENTRIES) {
      words[at + META]! += ONE_PASSED;
      words[at + PASSED_NAMES]! |= passedBit(lo);
      if (++bucket === nBuckets) bucket = 0;
      at = bucketAt(sub, bucket);
    }
    const k = at + (words[at + META]! & ENTRIES_MASK);
    words[k] = lo;
    words[k + VALUES] = value;
    words[at + META]!++;
  }

  /** Takes the entry at word k out of the bucket at `at`. */
  function takeOut(at: number, k: number): void {
    const last = at + (--words[at + META]! & ENTRIES_MASK);
    words[k] = words[last]!;
    words[k + VALUES] = words[last + VALUES]!;
    // So that `guess` does not stumble over it when the name comes back.
    words[last] = 0;
    words[last + VALUES] = 0;
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
      words[at + META] = 0;
      words[at + PASSED_NAMES] = 0;
    }
    subCount[sub] = 0;
    return n;
  }

  /** Puts n entries into an empty sub-table. */
  function fill(sub: number, { lo, value }: Spill, n: number): void {
    const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
    for (let bucket = 0; bucket < nBuckets; bucket++) bucketWords[bucket] = bucketAt(sub, bucket);
    for (let i = 0; i < n; i++) {
      const its = lo[i]!;
      let bucket = ((its & 0xffff) * nBuckets) >>> 16;
      let at = bucketWords[bucket]!;
      let meta = words[at + META]!;
      while ((meta & ENTRIES_MASK) === BUCKET_ENTRIES) {
        words[at + META] = meta + ONE_PASSED;
        words[at + PASSED_NAMES]! |= passedBit(its);
        if (++bucket === nBuckets) bucket = 0;
        at = bucketWords[bucket]!;
        meta = words[at + META]!;
      }
      const k = at + (meta & ENTRIES_MASK);
      words[k] = its;
      words[k + VALUES] = value[i]!;
      words[at + META] = meta + 1;
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
      if (!mayLieBehind(at, lo)) return 0;
      cursor.entry = 0;
      cursor.nBucketsLeft--;
      if (++cursor.bucket === nBuckets) cursor.bucket = 0;
    }
    return 0;
  }

  const mayLieBehind = (at: number, lo: number): boolean => (words[at + PASSED_NAMES]! & passedBit(lo)) !== 0;

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
      while (subCount[sub]! >= CAPACITIES[subUnits[sub]!]!) {
        if (!grow(sub, hi)) return TABLE_FULL;
        sub = subOf(hi);
      }
      place(sub, lo, value);
      subCount[sub]!++;
      return 0;
    },
    remove(hi, lo, value) {
      const sub = subOf(hi);
      const nBuckets = subUnits[sub]! * UNIT_BUCKETS;
      const home = homeOf(sub, lo);
      let bucket = home;
      let at = bucketAt(sub, bucket);
      let k = entryOf(words, at, value);
      for (let steps = 1; k < 0; steps++) {
        if (steps === nBuckets) return;
        if (++bucket === nBuckets) bucket = 0;
        at = bucketAt(sub, bucket);
        k = entryOf(words, at, value);
      }
      takeOut(at, k);
      for (let b = home; b !== bucket; b = b + 1 === nBuckets ? 0 : b + 1) {
        const passed = bucketAt(sub, b);
        words[passed + META]! -= ONE_PASSED;
        if (words[passed + META]! < ONE_PASSED) words[passed + PASSED_NAMES] = 0;
      }
      if (--subCount[sub]! < subUnits[sub]! * UNIT_ENTRIES * MIN_LOAD && subUnits[sub]! > 1) shrink(sub);
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
      const only = onlyIn(words, place, lo);
      if (!mayLieBehind(place, lo) && (only === 0 || (only !== UNCLEAR && hiOf(only) === hi))) return only;
      const found = first(hi, lo);
      return found !== 0 && scan() !== 0 ? UNCLEAR : found;
    },
    guess(place, lo) {
      const only = onlyIn(words, place, lo);
      return mayLieBehind(place, lo) ? UNCLEAR : only;
    },
    placeOf(hi, lo) {
      const sub = subOf(hi);
      return bucketAt(sub, homeOf(sub, lo));
    },
    touch(places, n) {
      let read = 0;
      for (let i = 0; i < n; i++) read ^= words[places[i]!]!;
      // What did not fit into a full bucket, or will not, is in the next one: the next line, except behind a unit's last.
      for (let i = 0; i < n; i++) {
        const at = places[i]!;
        const isFull = ((words[at + META]! & ENTRIES_MASK) + 1) >>> 3;
        const isLast = (((at / BUCKET_WORDS) & (UNIT_BUCKETS - 1)) + 1) >>> 2;
        read ^= words[at + BUCKET_WORDS * (isFull & ~isLast)]!;
      }
      return read;
    },
  };
}

/** Stands for a name in the word of those that passed; other bits than those that choose the bucket. */
function passedBit(lo: number): number {
  return 1 << (lo >>> 16);
}

/**
 * The only value under a lower word in a bucket, 0 = none, `UNCLEAR` = several. Which of seven places it is cannot be
 * predicted, so there is no branch: `miss` is -1 where words differ, else 0.
 */
function onlyIn(words: Int32Array, at: number, lo: number): number {
  let x = words[at]! ^ lo;
  let miss = (x | -x) >> 31;
  let nFound = BUCKET_ENTRIES + miss;
  x = words[at + 1]! ^ lo;
  miss = (x | -x) >> 31;
  nFound += miss;
  let index = 1 & ~miss;
  x = words[at + 2]! ^ lo;
  miss = (x | -x) >> 31;
  nFound += miss;
  index |= 2 & ~miss;
  x = words[at + 3]! ^ lo;
  miss = (x | -x) >> 31;
  nFound += miss;
  index |= 3 & ~miss;
  x = words[at + 4]! ^ lo;
  miss = (x | -x) >> 31;
  nFound += miss;
  index |= 4 & ~miss;
  x = words[at + 5]! ^ lo;
  miss = (x | -x) >> 31;
  nFound += miss;
  index |= 5 & ~miss;
  x = words[at + 6]! ^ lo;
  miss = (x | -x) >> 31;
  nFound += miss;
  index |= 6 & ~miss;
  if (nFound > 1) return UNCLEAR;
  // A free place has the value 0, whatever its lower word.
  return nFound === 0 ? 0 : words[at + VALUES + index]!;
}

/** Word of the entry with this value in a bucket, -1 = none; without a branch as well. */
function entryOf(words: Int32Array, at: number, value: number): number {
  let found = 0;
  for (let k = at; k < at + BUCKET_ENTRIES; k++) {
    const x = words[k + VALUES]! ^ value;
    found |= (k - at + 1) & ~((x | -x) >> 31);
  }
  return found === 0 ? -1 : at + found - 1;
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
