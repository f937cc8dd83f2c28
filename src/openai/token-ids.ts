/**
 * A JSON list of token ids → Uint32Array, without `JSON.parse` building an array of numbers first
 * (`test/bench/tokens.bench.ts`: 16k ids in about half the time of `JSON.parse`).
 */
import { kindText, type JsonScanner } from './json-scan.ts';

export type TokenIdsResult =
  | { readonly kind: 'ids'; readonly tokenIds: Uint32Array }
  /** JSON, as far as looked at, but not a list of ids. */
  | { readonly kind: 'not_ids'; readonly index: number; readonly position: number; readonly got: string }
  /** Not JSON, or cut: `scanner.problem` says where; ids complete before that place. */
  | { readonly kind: 'problem'; readonly tokenIds: Uint32Array };

const MAX_TOKEN_ID = 2 ** 32 - 1;
const COMMA = 0x2c;
const SPACE = 0x20;
const CLOSE_BRACKET = 0x5d;
/** How long ids are is told by the first of a list. */
const SAMPLED_BYTES = 256;
/** A digit and a separator. */
const LEAST_BYTES_PER_ID = 2;
const SPARE_PART = 0.1;
/** Room that is not used is given back only where it is more than that part: another array costs more than a little memory. */
const MOST_UNUSED = 0.3;
/** Of an id that is read as two words of four bytes. */
const PLAIN_DIGITS = 8;
/** `0` four times. */
const ZEROS = 0x30303030;
const POWERS_OF_TEN = Int32Array.of(1, 10, 100, 1000, 10_000);

type Ids = { tokenIds: Uint32Array; n: number };

/** Consumes one list of integers 0 … 2³²−1; after anything but `ids` the scanner stands somewhere inside of it. */
export function readTokenIds(scanner: JsonScanner): TokenIdsResult {
  const { bytes, pos, end } = scanner;
  const close = bytes.indexOf(CLOSE_BRACKET, pos);
  const ids: Ids = { tokenIds: new Uint32Array(roomFor(bytes, pos, close < 0 ? end : close)), n: 0 };
  const words = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let wrong: TokenIdsResult | null = null;
  const complete = scanner.array(() => {
    // Most elements are read here, the general path below takes one that is spelt otherwise, or the last.
    scanner.pos = readPlainIds(words, scanner.pos, end, ids);
    const position = scanner.pos;
    const id = readGeneralId(scanner);
    if (typeof id === 'number') return append(ids, id);
    if (id !== null) wrong = { kind: 'not_ids', index: ids.n, position, got: id.got };
    return false;
  });
  const isTight = ids.n >= (1 - MOST_UNUSED) * ids.tokenIds.length;
  const tokenIds = isTight ? ids.tokenIds.subarray(0, ids.n) : ids.tokenIds.slice(0, ids.n);
  if (complete) return { kind: 'ids', tokenIds };
  return wrong ?? { kind: 'problem', tokenIds };
}

/** So many ids, and a few more, lie between two places if those behind are as long as the first. */
function roomFor(bytes: Uint8Array, from: number, to: number): number {
  const sampledTo = Math.min(to, from + SAMPLED_BYTES);
  let nIds = 1;
  for (let at = from; at < sampledTo; at++) if (bytes[at] === COMMA) nIds++;
  const bytesPerId = Math.max(LEAST_BYTES_PER_ID, (sampledTo - from) / nIds);
  return Math.ceil(((to - from) / bytesPerId) * (1 + SPARE_PART)) + 1;
}

/**
 * Ids in their usual spelling, each followed by a comma and at most one space. Eight bytes are looked at together, and no branch
 * depends on the length of an id: it would be mispredicted for every other one.
 * @returns where the first element begins that is something else
 */
function readPlainIds(words: DataView, from: number, end: number, ids: Ids): number {
  let { tokenIds, n } = ids;
  const last = end - PLAIN_DIGITS - 2;
  let start = from;
  while (start <= last) {
    // Of digits the characters become the values.
    const first = words.getInt32(start, true) ^ ZEROS;
    const second = words.getInt32(start + 4, true) ^ ZEROS;
    const nFirst = leadingDigits(first);
    const nSecond = leadingDigits(second) & -(nFirst >>> 2);
    const at = start + nFirst + nSecond;
    const isPadded = (first & 0xff) === 0 && at - start > 1;
    if (words.getUint8(at) !== COMMA || nFirst === 0 || isPadded) break;
    if (n === tokenIds.length) tokenIds = grown(tokenIds);
    tokenIds[n++] = numberOf(first, nFirst) * POWERS_OF_TEN[nSecond]! + numberOf(second, nSecond);
    start = words.getUint8(at + 1) === SPACE ? at + 2 : at + 1;
  }
  ids.tokenIds = tokenIds;
  ids.n = n;
  return start;
}

/** How many of four bytes are below ten, from the lowest on. */
function leadingDigits(word: number): number {
  // The top bit of each byte that is not; what a carry makes of those above the lowest does not matter.
  const others = ((word + 0x76767676) | word) & 0x80808080;
  // All bits below the lowest of these, and all there are where there is none.
  return (32 - Math.clz32((others & -others) - 1)) >>> 3;
}

/** The number that the lowest `n` bytes spell, the lowest first. */
function numberOf(word: number, n: number): number {
  // To the upper end, so that zeros come before them; in two steps, as a shift by 32 is none.
  const digits = (word << (16 - 4 * n)) << (16 - 4 * n);
  const pairs = 10 * (digits & 0x000f000f) + ((digits >>> 8) & 0x000f000f);
  return 100 * (pairs & 0xff) + (pairs >>> 16);
}

/** An element in any spelling: the id, what it is instead, or null when the scanner found a problem. */
function readGeneralId(scanner: JsonScanner): number | { readonly got: string } | null {
  const kind = scanner.peekKind();
  const start = scanner.pos;
  if (!scanner.skipValue()) return null;
  if (scanner.pos === scanner.end) {
    // A number that touches the end of the text may have been cut.
    scanner.fail('"," or "]"');
    return null;
  }
  if (kind !== 'number') return { got: kindText(kind) };
  const text = scanner.scalarText(start, scanner.pos);
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0 && value <= MAX_TOKEN_ID) return value;
  return { got: text.length <= 32 ? text : `a number of ${text.length} characters` };
}

function append(ids: Ids, id: number): true {
  if (ids.n === ids.tokenIds.length) ids.tokenIds = grown(ids.tokenIds);
  ids.tokenIds[ids.n++] = id;
  return true;
}

function grown(ids: Uint32Array): Uint32Array {
  const larger = new Uint32Array(ids.length * 2 + 1);
  larger.set(ids);
  return larger;
}
