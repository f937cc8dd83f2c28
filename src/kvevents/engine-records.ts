/**
 * One engine's blocks as the records of a snapshot (source-snapshot.ts), and records as chains of blocks to be stored, both
 * bit by bit.
 */
import type { BlockPosition, IndexOwner, PrefixIndexWriter } from '../prefix/prefix-index.ts';
import { MEDIA_INDEXES, type BlockCopies } from './block-copies.ts';
import type { EngineNames } from './engine-names.ts';
import { BEFORE, COPIES, KEY, MAX_COPIES, NAME, RECORD_WORDS } from './source-snapshot.ts';

export type RecordedBlocks = {
  readonly index: PrefixIndexWriter;
  readonly names: EngineNames;
  readonly copies: BlockCopies;
  readonly owner: IndexOwner;
};

/** A fraction of a millisecond, also where every chain is one block. */
const CHAIN_BLOCKS = 512;
const BLOCKS_PER_CHAIN_START = 3;

/**
 * @param records receives a record for every block that can be told
 * @returns how many, and whether these are all
 */
export function* recordBlocks(
  { index, names, copies, owner }: RecordedBlocks,
  records: Uint32Array,
): Generator<void, { readonly nRecords: number; readonly isWhole: boolean }> {
  const words = new Uint32Array(2);
  let nRecords = 0;
  const isWhole = yield* index.walk(owner, (position, before, media) => {
    const packed = packedCopies(copies, position, media);
    if (packed === null || !names.nameOf(owner, position, words)) return false;
    const at = nRecords++ * RECORD_WORDS;
    records[at + NAME] = words[0]!;
    records[at + NAME + 1] = words[1]!;
    index.keyAt(position, words);
    records[at + KEY] = words[0]!;
    records[at + KEY + 1] = words[1]!;
    records[at + BEFORE] = before;
    records[at + COPIES] = packed;
    return true;
  });
  return { nRecords, isWhole };
}

/** Hands out, in order, the records of blocks that follow each other and are in the same media. */
export function* eachChain(
  records: Uint32Array,
  handOut: (first: number, end: number, media: number) => void,
): Generator<void, void> {
  const nRecords = records.length / RECORD_WORDS;
  let nSinceYield = 0;
  for (let first = 0, end = 1; first < nRecords; first = end++) {
    const media = mediaOf(records[first * RECORD_WORDS + COPIES]!);
    while (
      end < nRecords &&
      end - first < CHAIN_BLOCKS &&
      records[end * RECORD_WORDS + BEFORE] === end &&
      mediaOf(records[end * RECORD_WORDS + COPIES]!) === media
    ) {
      end++;
    }
    handOut(first, end, media);
    nSinceYield += end - first + BLOCKS_PER_CHAIN_START;
    if (nSinceYield < CHAIN_BLOCKS) continue;
    nSinceYield = 0;
    yield;
  }
}

/** Copies in each medium, 8 bits each; null: too many to be said. */
function packedCopies(copies: BlockCopies, position: BlockPosition, media: number): number | null {
  let packed = 0;
  for (const medium of MEDIA_INDEXES) {
    if ((media & (1 << medium)) === 0) continue;
    const n = 1 + copies.of(position, medium);
    if (n > MAX_COPIES) return null;
    packed |= n << (8 * medium);
  }
  return packed;
}

/** Bit set of the media in which a record counts copies. */
function mediaOf(copies: number): number {
  return (copies & 0xff ? 1 : 0) | (copies & 0xff00 ? 2 : 0) | (copies & 0xff0000 ? 4 : 0);
}
