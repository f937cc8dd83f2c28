/**
 * What engines call the blocks of the index: a block's engine hash leads to its position. Engines that name a block alike
 * share one entry: the name its first announcer gave it. Where another engine has another name for it (another hash
 * algorithm or seed), that name goes into a strip of that engine's own, eight neighbouring blocks each.
 *
 * Names are the engines' 64-bit hashes, mixed by a bijection (so nothing is lost), because some engines count from 1.
 * All 64 bits are compared to find a block, 48 to see that a block's first name is the one announced again.
 */
import { createLineMemory } from '../prefix/line-memory.ts';
import { NO_POSITION, type BlockPosition, type IndexOwner } from '../prefix/prefix-index.ts';
import { createNameTable, TABLE_FULL, UNCLEAR } from './name-table.ts';

export type EngineNames = {
  nBytes(): number;
  /** Chooses the name that the next calls are about. */
  choose(hi: number, lo: number): void;
  /**
   * Makes `chooseAt` ready for many names and reads where they lie, so that their cache misses overlap.
   * @param positions of the blocks about to get these names: those that have it already need no look
   */
  prepare(hashes: Uint32Array, n: number, positions: Uint32Array | null): void;
  /** Chooses the i-th name of the last `prepare`. */
  chooseAt(i: number): void;
  /**
   * The block an engine means by the chosen name, `NO_POSITION` if none. A single candidate is returned as it is, of
   * several one that is held: the caller checks what it gets.
   */
  find(owner: IndexOwner, isHeld: (position: BlockPosition) => boolean): BlockPosition;
  /** The same for the n names of the last `prepare`, in one go. @param positions receives n positions */
  findAll(owner: IndexOwner, n: number, isHeld: (position: BlockPosition) => boolean, positions: Uint32Array): void;
  /**
   * Makes the chosen name lead to a block, unless it does already or leads to another block, whoever calls it so.
   * @param use `new`: the owner has no name for the block yet
   * @returns 0 when it leads to the block now, the other block's position, `NO_ROOM` when there is no memory for it
   */
  give(owner: IndexOwner, position: BlockPosition, use: NameUse): number;
  /** The same although other blocks have this name too. */
  giveToo(owner: IndexOwner, position: BlockPosition, use: NameUse): number;
  /**
   * What an owner calls a block it holds.
   * @param out receives the name, [hi, lo]
   * @returns false when it has several names for it, or none
   */
  nameOf(owner: IndexOwner, position: BlockPosition, out: Uint32Array): boolean;
  /** Whether an owner calls any block by a name that only it uses. */
  hasOwn(owner: IndexOwner): boolean;
  /** Forgets the names that only this owner has for a block. */
  dropOwn(owner: IndexOwner, position: BlockPosition): void;
  /** Forgets all names of a block. */
  drop(position: BlockPosition): void;
};

export type NameUse = 'new' | 'further';

export const NO_ROOM = TABLE_FULL;
/** Memory for every 8 positions: 6 bytes per name, which of them are set, first strip. */
export const NAME_BYTES_PER_CHUNK = 8 * 6 + 1 + 4;

const CHUNK = 8;
/** Values with this bit, the negative ones, lead to a name in a strip; others are positions. */
const IN_STRIP = 0x8000_0000 | 0;
// Words of a strip: next of its chunk, chunk, owner, names that are set (<< 8: where the owner uses the block's first
// name too), 8 upper words, 8 lower half words.
const STRIP_WORDS = 16;
const NEXT = 0;
const OF_CHUNK = 1;
const OWNER = 2;
const SET = 3;
const NAMES = 4;
const HALVES = 24;

/** @param nChunks chunks of the index, the highest position is below 8 · nChunks */
export function createEngineNames(nChunks: number, maxBytes: number): EngineNames {
  const firstHi = new Int32Array(new SharedArrayBuffer(4 * CHUNK * nChunks));
  const firstLo = new Uint16Array(new SharedArrayBuffer(2 * CHUNK * nChunks));
  const isSet = new Uint8Array(new SharedArrayBuffer(nChunks));
  const firstStrip = new Uint32Array(new SharedArrayBuffer(4 * nChunks));
  const nStrips = Math.floor(maxBytes / (4 * STRIP_WORDS));
  const stripMemory = createLineMemory(4 * STRIP_WORDS * nStrips);
  const strips = new Int32Array(stripMemory, 0, STRIP_WORDS * nStrips);
  const halves = new Uint16Array(stripMemory, 0, 2 * STRIP_WORDS * nStrips);
  /** Names an owner has in strips. */
  const nOwn: number[] = [];
  let nextStrip = 1;
  let freeStrip = 0;
  let nFree = 0;
  let hiOfMixed = 0;
  let loOfMixed = 0;
  let prepared = new Int32Array(128);
  /** Where the prepared names lie, as long as the table has this epoch. */
  let places = new Int32Array(64);
  let placesEpoch = 0;
  let place = 0;
  let guesses = new Int32Array(64);
  let lastRead = 0;

  const table = createNameTable(maxBytes, hiOf);

  function hiOf(value: number): number {
    if (value > 0) return firstHi[value]!;
    const name = value ^ IN_STRIP;
    return strips[(name >>> 3) * STRIP_WORDS + NAMES + (name & 7)]!;
  }

  /** A bijection of 64 bits: three Feistel rounds. */
  function mix(hi: number, lo: number): void {
    let h = hi;
    let l = lo;
    let x = Math.imul(l ^ (l >>> 16), 0x21f0aaad);
    h ^= x ^ (x >>> 15);
    x = Math.imul(h ^ (h >>> 16), 0x735a2d97);
    l ^= x ^ (x >>> 15);
    x = Math.imul(l ^ (l >>> 16), 0x2c1b3c6d);
    h ^= x ^ (x >>> 15);
    hiOfMixed = h | 0;
    loOfMixed = l | 0;
  }

  /** `mix` backwards. */
  function unmix(mixedHi: number, mixedLo: number, out: Uint32Array): void {
    let h = mixedHi;
    let l = mixedLo;
    let x = Math.imul(l ^ (l >>> 16), 0x2c1b3c6d);
    h ^= x ^ (x >>> 15);
    x = Math.imul(h ^ (h >>> 16), 0x735a2d97);
    l ^= x ^ (x >>> 15);
    x = Math.imul(l ^ (l >>> 16), 0x21f0aaad);
    h ^= x ^ (x >>> 15);
    out[0] = h;
    out[1] = l;
  }

  const isNamed = (position: number): boolean => ((isSet[position >>> 3]! >>> (position & 7)) & 1) === 1;

  /** Whether the chosen name is the first one of a block. */
  function isFirst(position: number): boolean {
    return isNamed(position) && firstHi[position] === hiOfMixed && firstLo[position] === (loOfMixed & 0xffff);
  }

  /** The strip in which an owner has a name of its own for a block, 0 = none. */
  function ownStrip(owner: number, position: number): number {
    let strip = firstStrip[position >>> 3]!;
    for (; strip !== 0; strip = strips[strip * STRIP_WORDS + NEXT]!) {
      const at = strip * STRIP_WORDS;
      if (strips[at + OWNER] === owner && ((strips[at + SET]! >>> (position & 7)) & 1) === 1) return strip;
    }
    return 0;
  }

  /** A strip of the owner in which this block has no name yet; 0 when there is no memory. */
  function openStrip(owner: number, position: number): number {
    const chunk = position >>> 3;
    let strip = firstStrip[chunk]!;
    for (; strip !== 0; strip = strips[strip * STRIP_WORDS + NEXT]!) {
      const at = strip * STRIP_WORDS;
      if (strips[at + OWNER] === owner && ((strips[at + SET]! >>> (position & 7)) & 1) === 0) return strip;
    }
    strip = freeStrip;
    if (strip !== 0) {
      freeStrip = strips[strip * STRIP_WORDS + NEXT]!;
      nFree--;
    } else if (nextStrip < nStrips) strip = nextStrip++;
    else return 0;
    const at = strip * STRIP_WORDS;
    strips[at + NEXT] = firstStrip[chunk]!;
    strips[at + OF_CHUNK] = chunk;
    strips[at + OWNER] = owner;
    strips[at + SET] = 0;
    firstStrip[chunk] = strip;
    return strip;
  }

  /** Gives the block the chosen name in a strip of the owner. */
  function addToStrip(owner: number, position: number, use: NameUse): number {
    const isFirstUsed = use === 'further' && ownStrip(owner, position) === 0;
    const strip = openStrip(owner, position);
    if (strip === 0) return NO_ROOM;
    const at = strip * STRIP_WORDS;
    const index = position & 7;
    strips[at + NAMES + index] = hiOfMixed;
    halves[2 * at + HALVES + index] = loOfMixed & 0xffff;
    if (table.insert(hiOfMixed, loOfMixed, IN_STRIP | (strip * CHUNK + index), 'always') !== 0) return NO_ROOM;
    strips[at + SET]! |= (isFirstUsed ? 0x101 : 1) << index;
    nOwn[owner] = (nOwn[owner] ?? 0) + 1;
    return 0;
  }

  /** Whether an owner that holds a block may call it by its first name. */
  function usesFirst(owner: number, position: number): boolean {
    if (!hasOwn(owner)) return true;
    const strip = ownStrip(owner, position);
    return strip === 0 || ((strips[strip * STRIP_WORDS + SET]! >>> (8 + (position & 7))) & 1) === 1;
  }

  function markFirstUsed(owner: number, position: number): void {
    const strip = ownStrip(owner, position);
    if (strip !== 0) strips[strip * STRIP_WORDS + SET]! |= 0x100 << (position & 7);
  }

  const hasOwn = (owner: number): boolean => (nOwn[owner] ?? 0) > 0;

  function positionOf(value: number): number {
    if (value > 0) return value;
    return strips[((value ^ IN_STRIP) >>> 3) * STRIP_WORDS + OF_CHUNK]! * CHUNK + (value & 7);
  }

  function dropFromStrip(strip: number, position: number): void {
    const at = strip * STRIP_WORDS;
    const index = position & 7;
    const lo = halves[2 * at + HALVES + index]!;
    table.remove(strips[at + NAMES + index]!, lo, IN_STRIP | (strip * CHUNK + index));
    nOwn[strips[at + OWNER]!]!--;
    strips[at + SET]! &= ~(0x101 << index);
    if (strips[at + SET] !== 0) return;
    const chunk = strips[at + OF_CHUNK]!;
    if (firstStrip[chunk] === strip) firstStrip[chunk] = strips[at + NEXT]!;
    else {
      let before = firstStrip[chunk]!;
      while (strips[before * STRIP_WORDS + NEXT] !== strip) before = strips[before * STRIP_WORDS + NEXT]!;
      strips[before * STRIP_WORDS + NEXT] = strips[at + NEXT]!;
    }
    strips[at + NEXT] = freeStrip;
    freeStrip = strip;
    nFree++;
  }

  function chooseAt(i: number): void {
    hiOfMixed = prepared[2 * i]!;
    loOfMixed = prepared[2 * i + 1]!;
    place = places[i]!;
    if (place === 0 || placesEpoch !== table.epoch[0]) place = table.placeOf(hiOfMixed, loOfMixed);
  }

  /** The block an owner means by a name that only this value is stored under. */
  function meant(owner: number, value: number): BlockPosition {
    if (value >= 0) return (!hasOwn(owner) || usesFirst(owner, value) ? value : NO_POSITION) as BlockPosition;
    const strip = (value ^ IN_STRIP) >>> 3;
    return (strips[strip * STRIP_WORDS + OWNER] === owner ? positionOf(value) : NO_POSITION) as BlockPosition;
  }

  /** The same where several blocks have the chosen name: other models, or engines that count. */
  function findAmong(owner: number, isHeld: (position: BlockPosition) => boolean): BlockPosition {
    let found = NO_POSITION;
    for (let value = table.first(hiOfMixed, loOfMixed); value !== 0; value = table.next()) {
      const position = meant(owner, value);
      if (value < 0 && position !== NO_POSITION) return position;
      if (position === NO_POSITION) continue;
      if (found === NO_POSITION || (isHeld(position) && !isHeld(found))) found = position;
    }
    return found;
  }

  return {
    nBytes() {
      return (lastRead & 0) + table.nBytes() + (nextStrip - 1 - nFree) * 4 * STRIP_WORDS;
    },
    choose(hi, lo) {
      mix(hi | 0, lo | 0);
      place = table.placeOf(hiOfMixed, loOfMixed);
    },
    prepare(hashes, n, positions) {
      if (places.length < n) {
        places = new Int32Array(2 ** Math.ceil(Math.log2(n)));
        guesses = new Int32Array(places.length);
        prepared = new Int32Array(2 * places.length);
      }
      placesEpoch = table.epoch[0]!;
      for (let i = 0; i < n; i++) {
        mix(hashes[2 * i]! | 0, hashes[2 * i + 1]! | 0);
        prepared[2 * i] = hiOfMixed;
        prepared[2 * i + 1] = loOfMixed;
        const isKnown = positions !== null && isFirst(positions[i]!);
        places[i] = isKnown ? 0 : table.placeOf(hiOfMixed, loOfMixed);
      }
      // Kept, so that the reads are not optimised away.
      lastRead = table.touch(places, n);
    },
    chooseAt,
    find(owner, isHeld) {
      const only = table.peek(place, hiOfMixed, loOfMixed);
      return only === UNCLEAR ? findAmong(owner, isHeld) : meant(owner, only);
    },
    findAll(owner, n, isHeld, positions) {
      // Three loops without a branch that depends on the memory they wait for: the waits overlap.
      for (let i = 0; i < n; i++) guesses[i] = table.guess(places[i]!, prepared[2 * i + 1]!);
      for (let i = 0; i < n; i++) {
        const guess = guesses[i]!;
        if (guess !== 0 && guess !== UNCLEAR && hiOf(guess) !== prepared[2 * i]) guesses[i] = UNCLEAR;
      }
      for (let i = 0; i < n; i++) {
        if (guesses[i] === UNCLEAR) {
          chooseAt(i);
          positions[i] = this.find(owner, isHeld);
        } else positions[i] = meant(owner, guesses[i]!);
      }
    },
    give(owner, position, use) {
      if (isNamed(position)) {
        if (isFirst(position)) {
          if (hasOwn(owner)) markFirstUsed(owner, position);
          return 0;
        }
        for (let value = table.first(hiOfMixed, loOfMixed); value !== 0; value = table.next()) {
          if (value > 0) return value;
          const at = ((value ^ IN_STRIP) >>> 3) * STRIP_WORDS;
          if (strips[at + OWNER] !== owner) continue;
          const other = strips[at + OF_CHUNK]! * CHUNK + (value & 7);
          return other === position ? 0 : other;
        }
        return addToStrip(owner, position, use);
      }
      firstHi[position] = hiOfMixed;
      firstLo[position] = loOfMixed & 0xffff;
      const mode = table.peek(place, hiOfMixed, loOfMixed) === 0 ? 'always' : 'unless present';
      const known = table.insert(hiOfMixed, loOfMixed, position, mode);
      if (known === 0) isSet[position >>> 3]! |= 1 << (position & 7);
      return known === 0 || known === NO_ROOM ? known : positionOf(known);
    },
    giveToo(owner, position, use) {
      if (isNamed(position)) return addToStrip(owner, position, use);
      firstHi[position] = hiOfMixed;
      firstLo[position] = loOfMixed & 0xffff;
      const full = table.insert(hiOfMixed, loOfMixed, position, 'always');
      if (full === 0) isSet[position >>> 3]! |= 1 << (position & 7);
      return full;
    },
    nameOf(owner, position, out) {
      let nNames = 0;
      let hi = 0;
      let lo: number | null = null;
      if (isNamed(position) && usesFirst(owner, position)) {
        nNames++;
        hi = firstHi[position]!;
        lo = table.lowerWordOf(hi, firstLo[position]!, position);
      }
      let strip = hasOwn(owner) ? firstStrip[position >>> 3]! : 0;
      for (; strip !== 0; strip = strips[strip * STRIP_WORDS + NEXT]!) {
        const at = strip * STRIP_WORDS;
        if (strips[at + OWNER] !== owner || ((strips[at + SET]! >>> (position & 7)) & 1) === 0) continue;
        nNames++;
        hi = strips[at + NAMES + (position & 7)]!;
        lo = table.lowerWordOf(
          hi,
          halves[2 * at + HALVES + (position & 7)]!,
          IN_STRIP | (strip * CHUNK + (position & 7)),
        );
      }
      if (nNames !== 1 || lo === null) return false;
      unmix(hi, lo, out);
      return true;
    },
    hasOwn,
    dropOwn(owner, position) {
      if (!hasOwn(owner)) return;
      for (let strip = ownStrip(owner, position); strip !== 0; strip = ownStrip(owner, position)) {
        dropFromStrip(strip, position);
      }
    },
    drop(position) {
      if (isNamed(position)) {
        table.remove(firstHi[position]!, firstLo[position]!, position);
        isSet[position >>> 3]! &= ~(1 << (position & 7));
      }
      for (let strip = firstStrip[position >>> 3]!; strip !== 0;) {
        const next = strips[strip * STRIP_WORDS + NEXT]!;
        if (((strips[strip * STRIP_WORDS + SET]! >>> (position & 7)) & 1) === 1) dropFromStrip(strip, position);
        strip = next;
      }
    },
  };
}
