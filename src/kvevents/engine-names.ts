/**
 * What engines call the blocks of the index: a block's engine hash leads to its position. Engines that name a block alike
 * share one entry: the name its first announcer gave it. Where another engine has another name for it (another hash
 * algorithm or seed), that name goes into a strip of that engine's own, eight neighbouring blocks each.
 *
 * Names are the engines' 64-bit hashes, mixed by a bijection (so nothing is lost), because some engines count from 1.
 * 32 bits lie in the table, the place there and the rest beside the position: 80 bits are compared to find a block, 48
 * to see that a name is the known one.
 */
import { NO_POSITION, type BlockPosition, type IndexOwner } from '../prefix/prefix-index.ts';
import { createNameTable } from './name-table.ts';

export type EngineNames = {
  readonly nBytes: number;
  /**
   * The block an engine means, `NO_POSITION` if none has this name. Whether the engine holds it, the index knows.
   * @param isHeld asked only where a name is given twice
   */
  find(hi: number, lo: number, owner: IndexOwner, isHeld: (position: BlockPosition) => boolean): BlockPosition;
  /** Whether this is the name a block was first announced under. */
  isFirst(position: BlockPosition, hi: number, lo: number): boolean;
  /** Gives a block a name; the owner must not have the name in use. @returns false when there is no room */
  add(hi: number, lo: number, owner: IndexOwner, position: BlockPosition): boolean;
  /** Forgets the names that only this owner has for a block. */
  dropOwn(owner: IndexOwner, position: BlockPosition): void;
  /** Forgets all names of a block. */
  drop(position: BlockPosition): void;
  /** Reads where a name would be, so that cache misses of several overlap. */
  touch(hi: number, lo: number): number;
};

/** Memory for every 8 positions: 6 bytes per name, which of them are set, first strip. */
export const NAME_BYTES_PER_CHUNK = 8 * 6 + 1 + 4;

const CHUNK = 8;
/** Values with this bit lead to a name in a strip, others to a position. */
const IN_STRIP = 0x8000_0000;
// Words of a strip: next of its chunk, chunk, owner, names that are set, 8 upper words.
const STRIP_WORDS = 12;
const NEXT = 0;
const OF_CHUNK = 1;
const OWNER = 2;
const SET = 3;
const NAMES = 4;

/** @param nChunks chunks of the index, the highest position is below 8 · nChunks */
export function createEngineNames(nChunks: number, maxBytes: number): EngineNames {
  const firstHi = new Uint32Array(new SharedArrayBuffer(4 * CHUNK * nChunks));
  const firstLo = new Uint16Array(new SharedArrayBuffer(2 * CHUNK * nChunks));
  const isSet = new Uint8Array(new SharedArrayBuffer(nChunks));
  const firstStrip = new Uint32Array(new SharedArrayBuffer(4 * nChunks));
  const nStrips = Math.floor(maxBytes / (4 * STRIP_WORDS));
  const strips = new Uint32Array(new SharedArrayBuffer(4 * STRIP_WORDS * nStrips));
  /** Names an owner has in strips. */
  const nOwn: number[] = [];
  let nextStrip = 1;
  let freeStrip = 0;
  let nFree = 0;
  let hiOfMixed = 0;
  let loOfMixed = 0;

  const table = createNameTable(maxBytes, hiOf);

  function hiOf(value: number): number {
    if (value < IN_STRIP) return firstHi[value]!;
    const name = value - IN_STRIP;
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
    hiOfMixed = h >>> 0;
    loOfMixed = l >>> 0;
  }

  const isNamed = (position: number): boolean => ((isSet[position >>> 3]! >>> (position & 7)) & 1) === 1;

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

  function dropFromStrip(strip: number, position: number): void {
    const at = strip * STRIP_WORDS;
    const index = position & 7;
    table.remove(strips[at + NAMES + index]!, IN_STRIP + strip * CHUNK + index);
    nOwn[strips[at + OWNER]!]!--;
    strips[at + SET]! &= ~(1 << index);
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

  return {
    get nBytes() {
      return table.nBytes + (nextStrip - 1 - nFree) * 4 * STRIP_WORDS;
    },
    find(hi, lo, owner, isHeld) {
      mix(hi, lo);
      let found = NO_POSITION;
      for (let value = table.first(hiOfMixed, loOfMixed); value !== 0; value = table.next()) {
        if (hiOf(value) !== hiOfMixed) continue;
        if (value >= IN_STRIP) {
          const at = ((value - IN_STRIP) >>> 3) * STRIP_WORDS;
          if (strips[at + OWNER] !== owner) continue;
          return (strips[at + OF_CHUNK]! * CHUNK + (value & 7)) as BlockPosition;
        }
        const position = value as BlockPosition;
        if (found === NO_POSITION) {
          found = position;
          continue;
        }
        // One name for two blocks: other models, or versions that tell salts and images apart and others that do not.
        const isBetter = isHeld(position) && (!isHeld(found) || ownStrip(owner, found) !== 0);
        if (isBetter) found = position;
      }
      return found;
    },
    isFirst(position, hi, lo) {
      if (!isNamed(position)) return false;
      mix(hi, lo);
      return firstHi[position] === hiOfMixed && firstLo[position] === (loOfMixed & 0xffff);
    },
    add(hi, lo, owner, position) {
      mix(hi, lo);
      if (!isNamed(position)) {
        firstHi[position] = hiOfMixed;
        firstLo[position] = loOfMixed & 0xffff;
        if (!table.insert(hiOfMixed, loOfMixed, position)) return false;
        isSet[position >>> 3]! |= 1 << (position & 7);
        return true;
      }
      const strip = openStrip(owner, position);
      if (strip === 0) return false;
      const at = strip * STRIP_WORDS;
      const index = position & 7;
      strips[at + NAMES + index] = hiOfMixed;
      strips[at + SET]! |= 1 << index;
      nOwn[owner] = (nOwn[owner] ?? 0) + 1;
      if (table.insert(hiOfMixed, loOfMixed, IN_STRIP + strip * CHUNK + index)) return true;
      strips[at + SET]! &= ~(1 << index);
      nOwn[owner]!--;
      return false;
    },
    dropOwn(owner, position) {
      if ((nOwn[owner] ?? 0) === 0) return;
      for (let strip = ownStrip(owner, position); strip !== 0; strip = ownStrip(owner, position)) {
        dropFromStrip(strip, position);
      }
    },
    drop(position) {
      if (isNamed(position)) {
        table.remove(firstHi[position]!, position);
        isSet[position >>> 3]! &= ~(1 << (position & 7));
      }
      for (let strip = firstStrip[position >>> 3]!; strip !== 0;) {
        const next = strips[strip * STRIP_WORDS + NEXT]!;
        if (((strips[strip * STRIP_WORDS + SET]! >>> (position & 7)) & 1) === 1) dropFromStrip(strip, position);
        strip = next;
      }
    },
    touch(hi, lo) {
      mix(hi, lo);
      return table.touch(hiOfMixed);
    },
  };
}
