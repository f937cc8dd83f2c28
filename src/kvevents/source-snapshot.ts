/**
 * What a replica knows of one event source, as words that another replica can take over: for every block its engine's name,
 * its own key, the block before it and how many copies are where. Own keys depend on the hash seed, so both replicas must
 * share it. Everything is checked before anything of it is used; that the keys are the truth is up to who sent them.
 */
import { WarmpathError } from '../errors.ts';

/** Of one engine (publisher and data-parallel rank). */
export type EngineSnapshot = {
  readonly rank: number;
  readonly blockSizeTokens: number | null;
  readonly groupIdx: number | null;
  readonly reportsExtraKeys: 'yes' | 'no' | 'unknown';
  /** Blocks are missing that the engine may hold. */
  readonly partial: boolean;
  /** `RECORD_WORDS` per block, each after the block before it. */
  readonly records: Uint32Array;
};

/** An engine that can be written down. */
export type RecordedEngine = {
  readonly maxRecords: number;
  /**
   * Bit by bit; nothing may have changed between two steps.
   * @param records room for `maxRecords`
   * @returns what is known, in records at the beginning of that room; null where records do not say it all
   */
  record(records: Uint32Array): Generator<void, EngineSnapshot | null>;
};

export const SNAPSHOT_VERSION = 1;
/** 1.4 million blocks. */
export const MAX_SNAPSHOT_BYTES = 32 * 1024 * 1024;
export const RECORD_WORDS = 6;
// Words of a record. BEFORE: number of the record of the block before, from 1; 0 = start of a prompt. COPIES: 8 bits for
// each medium.
export const NAME = 0;
export const KEY = 2;
export const BEFORE = 4;
export const COPIES = 5;
/** Of one block in one medium. */
export const MAX_COPIES = 255;

const MAGIC = 0x57504b56;
const HEADER_WORDS = 4;
const ENGINE_WORDS = 6;
const MAX_ENGINES = 64;
/** A fraction of a millisecond. */
const WORDS_AT_ONCE = 65_536;
const MAX_BLOCK_SIZE_TOKENS = 65_536;
const SAID: readonly EngineSnapshot['reportsExtraKeys'][] = ['unknown', 'yes', 'no'];

/** Bit by bit. @returns null where it cannot be told, or not in so many words */
export function* encodeSnapshot(engines: readonly RecordedEngine[]): Generator<void, Uint32Array | null> {
  const nWords = engines.reduce((sum, { maxRecords }) => sum + ENGINE_WORDS + maxRecords * RECORD_WORDS, HEADER_WORDS);
  if (4 * nWords > MAX_SNAPSHOT_BYTES || engines.length > MAX_ENGINES) return null;
  const room = new Uint32Array(nWords);
  let at = HEADER_WORDS;
  for (const { maxRecords, record } of engines) {
    const first = at + ENGINE_WORDS;
    const engine = yield* record(room.subarray(first, first + maxRecords * RECORD_WORDS));
    if (engine === null) return null;
    room[at] = engine.rank;
    room[at + 1] = engine.blockSizeTokens ?? 0;
    room[at + 2] = engine.groupIdx === null ? 0 : engine.groupIdx + 1;
    room[at + 3] = SAID.indexOf(engine.reportsExtraKeys);
    room[at + 4] = engine.partial ? 1 : 0;
    room[at + 5] = engine.records.length / RECORD_WORDS;
    at = first + engine.records.length;
  }
  const words = room.subarray(0, at);
  words.set([MAGIC, SNAPSHOT_VERSION, engines.length, 0]);
  words[3] = yield* checksum(words);
  return words;
}

/** Bit by bit. @throws WarmpathError `peer_failed` for anything that is not whole and consistent */
export function* decodeSnapshot(words: Uint32Array): Generator<void, EngineSnapshot[]> {
  if (words.length < HEADER_WORDS || words[0] !== MAGIC) throw refused('it does not begin as one');
  if (words[1] !== SNAPSHOT_VERSION) throw refused(`version ${words[1]}, expected ${SNAPSHOT_VERSION}`);
  if (words[2]! > MAX_ENGINES) throw refused(`${words[2]} engines, limit ${MAX_ENGINES}`);
  if (words[3] !== (yield* checksum(words))) throw refused('its checksum is another one');
  const engines: EngineSnapshot[] = [];
  let at = HEADER_WORDS;
  for (let i = 0; i < words[2]!; i++) {
    const nRecords = words[at + 5];
    const end = at + ENGINE_WORDS + RECORD_WORDS * (nRecords ?? 0);
    if (nRecords === undefined || end > words.length) throw refused('it ends too early');
    const said = SAID[words[at + 3]!];
    const blockSizeTokens = words[at + 1]!;
    if (said === undefined || blockSizeTokens > MAX_BLOCK_SIZE_TOKENS || (blockSizeTokens === 0 && nRecords > 0)) {
      throw refused('its header makes no sense');
    }
    const records = words.subarray(at + ENGINE_WORDS, end);
    yield* checkRecords(records, nRecords);
    engines.push({
      rank: words[at]!,
      blockSizeTokens: blockSizeTokens === 0 ? null : blockSizeTokens,
      groupIdx: words[at + 2] === 0 ? null : words[at + 2]! - 1,
      reportsExtraKeys: said,
      partial: words[at + 4] !== 0,
      records,
    });
    at = end;
  }
  if (at !== words.length) throw refused('there is more behind its end');
  if (new Set(engines.map(({ rank }) => rank)).size !== engines.length) throw refused('a rank comes twice');
  return engines;
}

function* checkRecords(records: Uint32Array, nRecords: number): Generator<void, void> {
  for (let i = 0; i < nRecords; i++) {
    if (i % WORDS_AT_ONCE === WORDS_AT_ONCE - 1) yield;
    const copies = records[i * RECORD_WORDS + COPIES]!;
    if (records[i * RECORD_WORDS + BEFORE]! > i) throw refused('a block comes before the one it follows');
    if (copies === 0 || copies > 0xffffff) throw refused('copies of a block make no sense');
  }
}

function refused(why: string): WarmpathError {
  return new WarmpathError('peer_failed', `snapshot refused: ${why}`);
}

/** Tells what was damaged on its way from what was not; it keeps nobody from lying. */
function* checksum(words: Uint32Array): Generator<void, number> {
  let sum = 0x811c9dc5;
  for (let from = 0; from < words.length; from += WORDS_AT_ONCE) {
    if (from > 0) yield;
    const to = Math.min(words.length, from + WORDS_AT_ONCE);
    for (let i = from; i < to; i++) {
      if (i === 3) continue;
      sum = Math.imul(sum ^ words[i]!, 0x01000193);
      sum ^= sum >>> 15;
    }
  }
  return sum >>> 0;
}
