/**
 * A JSON list of token ids → Uint32Array, without `JSON.parse` building an array of numbers first
 * (`test/bench/tokens.bench.ts`: 16k ids in under 0.2 ms).
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
const CLOSE_BRACKET = 0x5d;

/** Consumes one list of integers 0 … 2³²−1; after anything but `ids` the scanner stands somewhere inside of it. */
export function readTokenIds(scanner: JsonScanner): TokenIdsResult {
  const { bytes, end } = scanner;
  let tokenIds = new Uint32Array(1024);
  let n = 0;
  let wrong: TokenIdsResult | null = null;
  const complete = scanner.array(() => {
    // The scanner stands before the first element, or before one this fast path left to the general one.
    let at = scanner.pos;
    for (;;) {
      const start = at;
      let value = 0;
      while (at < end) {
        const digit = bytes[at]! - 0x30;
        if (digit < 0 || digit > 9) break;
        value = value * 10 + digit;
        at++;
      }
      const byte = at < end ? bytes[at]! : -1;
      const nDigits = at - start;
      const isPlain = nDigits > 0 && nDigits <= 10 && value <= MAX_TOKEN_ID && !(nDigits > 1 && bytes[start] === 0x30);
      // A number that touches the end of the text may have been cut.
      if (!isPlain || (byte !== COMMA && byte !== CLOSE_BRACKET && !isSpace(byte))) {
        scanner.pos = start;
        const general = readGeneral(scanner);
        if (typeof general !== 'number') {
          if (general !== null) wrong = { kind: 'not_ids', index: n, position: start, got: general.got };
          return false;
        }
        value = general;
        at = scanner.pos;
      }
      if (n === tokenIds.length) tokenIds = grown(tokenIds);
      tokenIds[n++] = value;
      if (at < end && bytes[at] === COMMA) {
        at++;
        while (at < end && isSpace(bytes[at]!)) at++;
        continue;
      }
      scanner.pos = at;
      return true;
    }
  });
  if (complete) return { kind: 'ids', tokenIds: tokenIds.slice(0, n) };
  return wrong ?? { kind: 'problem', tokenIds: tokenIds.slice(0, n) };
}

/** An element in any spelling: the id, what it is instead, or null when the scanner found a problem. */
function readGeneral(scanner: JsonScanner): number | { readonly got: string } | null {
  const kind = scanner.peekKind();
  const start = scanner.pos;
  if (!scanner.skipValue()) return null;
  if (scanner.pos === scanner.end) {
    scanner.fail('"," or "]"');
    return null;
  }
  if (kind !== 'number') return { got: kindText(kind) };
  const text = Buffer.from(scanner.bytes.buffer, scanner.bytes.byteOffset + start, scanner.pos - start).toString(
    'latin1',
  );
  const value = Number(text);
  if (Number.isInteger(value) && value >= 0 && value <= MAX_TOKEN_ID) return value;
  return { got: text.length <= 32 ? text : `a number of ${text.length} characters` };
}

function grown(ids: Uint32Array): Uint32Array<ArrayBuffer> {
  const larger = new Uint32Array(ids.length * 2);
  larger.set(ids);
  return larger;
}

function isSpace(byte: number): boolean {
  return byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
}
