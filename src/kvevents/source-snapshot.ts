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

export const SNAPSHOT_VERSION = 1;
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
const MAX_BLOCK_SIZE_TOKENS = 65_536;
const SAID: readonly EngineSnapshot['reportsExtraKeys'][] = ['unknown', 'yes', 'no'];

export function encodeSnapshot(engines: readonly EngineSnapshot[]): Uint32Array {
  const nWords = engines.reduce((sum, { records }) => sum + ENGINE_WORDS + records.length, HEADER_WORDS);
  const words = new Uint32Array(nWords);
  let at = HEADER_WORDS;
  for (const engine of engines) {
    words[at] = engine.rank;
    words[at + 1] = engine.blockSizeTokens ?? 0;
    words[at + 2] = engine.groupIdx === null ? 0 : engine.groupIdx + 1;
    words[at + 3] = SAID.indexOf(engine.reportsExtraKeys);
    words[at + 4] = engine.partial ? 1 : 0;
    words[at + 5] = engine.records.length / RECORD_WORDS;
    words.set(engine.records, at + ENGINE_WORDS);
    at += ENGINE_WORDS + engine.records.length;
  }
  words.set([MAGIC, SNAPSHOT_VERSION, engines.length, 0]);
  words[3] = checksum(words);
  return words;
}

/** @throws WarmpathError `peer_failed` for anything that is not whole and consistent */
export function decodeSnapshot(words: Uint32Array): EngineSnapshot[] {
  if (words.length < HEADER_WORDS || words[0] !== MAGIC) throw refused('it does not begin as one');
  if (words[1] !== SNAPSHOT_VERSION) throw refused(`version ${words[1]}, expected ${SNAPSHOT_VERSION}`);
  if (words[2]! > MAX_ENGINES) throw refused(`${words[2]} engines, limit ${MAX_ENGINES}`);
  if (words[3] !== checksum(words)) throw refused('its checksum is another one');
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
    checkRecords(records, nRecords);
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

function checkRecords(records: Uint32Array, nRecords: number): void {
  for (let i = 0; i < nRecords; i++) {
    const copies = records[i * RECORD_WORDS + COPIES]!;
    if (records[i * RECORD_WORDS + BEFORE]! > i) throw refused('a block comes before the one it follows');
    if (copies === 0 || copies > 0xffffff) throw refused('copies of a block make no sense');
  }
}

function refused(why: string): WarmpathError {
  return new WarmpathError('peer_failed', `snapshot refused: ${why}`);
}

/** Tells what was damaged on its way from what was not; it keeps nobody from lying. */
function checksum(words: Uint32Array): number {
  let sum = 0x811c9dc5;
  for (let i = 0; i < words.length; i++) {
    if (i === 3) continue;
    sum = Math.imul(sum ^ words[i]!, 0x01000193);
    sum ^= sum >>> 15;
  }
  return sum >>> 0;
}
