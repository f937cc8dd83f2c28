/**
 * Walks JSON text in UTF-8 bytes without building values: where is each field, and is this JSON at all? Accepts exactly what
 * `JSON.parse` accepts. Deliberately not here: what a field means, and whether the bytes are valid UTF-8 (one native call
 * of the caller's).
 *
 * Strings are most of a request's bytes, so they are skipped eight bytes at a time: one test of two words tells that none of
 * them is a quote, a backslash or a control character (`test/bench/tokens.bench.ts`: 220 KB in well under 0.3 ms).
 */

export type JsonKind = 'string' | 'number' | 'object' | 'array' | 'boolean' | 'null';

/** Bytes start … end−1 of the text scanned. */
export type ByteRange = { readonly start: number; readonly end: number };

export type JsonProblem = {
  /** Byte offset of what was got. */
  readonly position: number;
  readonly got: string;
  readonly expected: string;
  /** True when the text ended too early: more bytes could have made it JSON. */
  readonly cut: boolean;
};

const QUOTE = 0x22;
const COMMA = 0x2c;
const MINUS = 0x2d;
const ZERO = 0x30;
const COLON = 0x3a;
const OPEN_BRACKET = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
/** Of the four bytes of a word. */
const TOP_BITS = 0x80808080 | 0;
/** Stands for "no byte there" wherever a byte is expected. */
const END = -1;

const IN_ARRAY = 0;
const IN_OBJECT = 1;

/**
 * One pass over one text. Every method that consumes something answers false, with `problem` set, when it can not;
 * the scanner is not usable after that unless `pos` and `problem` are put back.
 */
export class JsonScanner {
  readonly bytes: Uint8Array;
  readonly end: number;
  /** The same bytes, for their text. */
  readonly #buffer: Buffer;
  /** Offset of the next byte to look at. */
  pos = 0;
  problem: JsonProblem | null = null;
  /** Containers inside each other, at most, in the values skipped so far. */
  deepest = 0;
  /** Values in the value skipped last, itself and those inside of it. */
  nValues = 0;
  /** The same memory in words, from the first aligned byte on. */
  readonly #words: Int32Array;
  readonly #wordsAt: number;
  /** Kinds of the open containers; grows with the depth, which only the size of the text bounds. */
  #containers = new Uint8Array(32);

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.end = bytes.length;
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#wordsAt = Math.min(bytes.length, -bytes.byteOffset & 3);
    const nWords = (bytes.length - this.#wordsAt) >> 2;
    const wordsOffset = nWords === 0 ? 0 : bytes.byteOffset + this.#wordsAt;
    this.#words = new Int32Array(bytes.buffer, wordsOffset, nWords);
  }

  /** Kind of the value that begins at the next byte that is not white space, null when none does. */
  peekKind(): JsonKind | null {
    const byte = this.#skipSpace();
    if (byte === QUOTE) return 'string';
    if (byte === OPEN_BRACE) return 'object';
    if (byte === OPEN_BRACKET) return 'array';
    if (byte === MINUS || (byte >= ZERO && byte <= 0x39)) return 'number';
    if (byte === 0x74 || byte === 0x66) return 'boolean';
    return byte === 0x6e ? 'null' : null;
  }

  /**
   * An object, field by field. `visit` is called with the decoded key and the scanner before the value; it consumes exactly
   * one value and answers whether it could.
   */
  object(visit: (key: string) => boolean): boolean {
    if (this.#skipSpace() !== OPEN_BRACE) return this.fail('"{"');
    this.pos++;
    if (this.#skipSpace() === CLOSE_BRACE) return this.#advance();
    for (;;) {
      this.#skipSpace();
      const start = this.pos;
      if (!this.#skipKey()) return false;
      const key = this.#keyText(start);
      this.#skipSpace();
      if (!visit(key)) return false;
      const byte = this.#skipSpace();
      if (byte === CLOSE_BRACE) return this.#advance();
      if (byte !== COMMA) return this.fail('"," or "}"');
      this.pos++;
    }
  }

  /** An array, element by element; `visit` as for `object`. */
  array(visit: (index: number) => boolean): boolean {
    if (this.#skipSpace() !== OPEN_BRACKET) return this.fail('"["');
    this.pos++;
    if (this.#skipSpace() === CLOSE_BRACKET) return this.#advance();
    for (let index = 0; ; index++) {
      this.#skipSpace();
      if (!visit(index)) return false;
      const byte = this.#skipSpace();
      if (byte === CLOSE_BRACKET) return this.#advance();
      if (byte !== COMMA) return this.fail('"," or "]"');
      this.pos++;
    }
  }

  /** One value of any kind, validated to its end. Depth costs memory, never stack. */
  skipValue(): boolean {
    let depth = 0;
    let nValues = 0;
    for (;;) {
      const byte = this.#skipSpace();
      if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
        this.pos++;
        const closing = byte === OPEN_BRACE ? CLOSE_BRACE : CLOSE_BRACKET;
        if (this.#skipSpace() !== closing) {
          this.#open(depth++, byte === OPEN_BRACE ? IN_OBJECT : IN_ARRAY);
          if (byte === OPEN_BRACE && !this.#skipKey()) return false;
          continue;
        }
        this.pos++;
      } else if (!this.#skipScalar(byte)) {
        return false;
      }
      // A value is complete: close what it closes, then go on to the next element.
      for (;;) {
        nValues++;
        if (depth === 0) {
          this.nValues = nValues;
          return true;
        }
        const inObject = this.#containers[depth - 1] === IN_OBJECT;
        const next = this.#skipSpace();
        if (next === COMMA) {
          this.pos++;
          if (inObject) {
            this.#skipSpace();
            if (!this.#skipKey()) return false;
          }
          break;
        }
        if (next !== (inObject ? CLOSE_BRACE : CLOSE_BRACKET)) return this.fail(inObject ? '"," or "}"' : '"," or "]"');
        this.pos++;
        depth--;
      }
    }
  }

  /** The number or word in bytes start … end−1. */
  scalarText(start: number, end: number): string {
    return this.#buffer.toString('latin1', start, end);
  }

  /** Nothing but white space up to the end of the text. */
  atEnd(): boolean {
    return this.#skipSpace() === END || this.fail('the end of the text');
  }

  /** A string, from its opening quote on. */
  skipString(): boolean {
    const { bytes, end } = this;
    const words = this.#words;
    const wordsAt = this.#wordsAt;
    const nWords = words.length;
    let at = this.pos;
    if (at >= end || bytes[at] !== QUOTE) return this.fail('a string');
    at++;
    while (at < end) {
      if (((at - wordsAt) & 3) === 0) {
        let word = (at - wordsAt) >> 2;
        for (; word < nWords - 1; word += 2) {
          // With bit 1 turned, a quote is 0x20 and control characters are still below it; with 0x5c turned off, a backslash
          // is 0. Of bytes without a top bit, only what is smaller than what is taken away gets one; the others are asked
          // again with it. What the first such byte borrows from those behind it changes no answer.
          const y0 = words[word]! ^ 0x02020202;
          const y1 = words[word + 1]! ^ 0x02020202;
          const z0 = y0 ^ 0x5e5e5e5e;
          const z1 = y1 ^ 0x5e5e5e5e;
          const below0 = (y0 - 0x21212121) | 0;
          const below1 = (y1 - 0x21212121) | 0;
          const zero0 = (z0 - 0x01010101) | 0;
          const zero1 = (z1 - 0x01010101) | 0;
          if (((below0 | below1 | zero0 | zero1) & TOP_BITS) === 0) continue;
          if ((((below0 & ~y0) | (below1 & ~y1) | (zero0 & ~z0) | (zero1 & ~z1)) & TOP_BITS) !== 0) break;
        }
        at = wordsAt + (word << 2);
        if (at >= end) break;
      }
      const byte = bytes[at]!;
      if (byte === QUOTE) {
        this.pos = at + 1;
        return true;
      }
      if (byte === BACKSLASH) {
        const length = this.#escapeLength(at);
        if (length === 0) return false;
        at += length;
      } else if (byte < 0x20) {
        this.pos = at;
        return this.fail('no control character inside a string');
      } else {
        at++;
      }
    }
    this.pos = end;
    return this.fail('the end of a string');
  }

  /** A number, from its first byte on. */
  skipNumber(): boolean {
    let at = this.pos;
    if (this.#byte(at) === MINUS) at++;
    if (this.#byte(at) === ZERO) at++;
    else if ((at = this.#skipDigits(at)) < 0) return false;
    if (this.#byte(at) === 0x2e && (at = this.#skipDigits(at + 1)) < 0) return false;
    if ((this.#byte(at) | 0x20) === 0x65) {
      const sign = this.#byte(at + 1);
      if ((at = this.#skipDigits(sign === 0x2b || sign === MINUS ? at + 2 : at + 1)) < 0) return false;
    }
    this.pos = at;
    return true;
  }

  #skipScalar(byte: number): boolean {
    if (byte === QUOTE) return this.skipString();
    if (byte === MINUS || (byte >= ZERO && byte <= 0x39)) return this.skipNumber();
    if (byte === 0x74) return this.#skipWord('true');
    if (byte === 0x66) return this.#skipWord('false');
    if (byte === 0x6e) return this.#skipWord('null');
    return this.fail('a value');
  }

  /** A key and its colon. */
  #skipKey(): boolean {
    if (!this.skipString()) return false;
    if (this.#skipSpace() !== COLON) return this.fail('":"');
    this.pos++;
    return true;
  }

  /** @param start offset of the key's opening quote; its colon has just been consumed. */
  #keyText(start: number): string {
    let end = this.pos - 1;
    while (this.bytes[end - 1] !== QUOTE) end--;
    const text = this.#buffer.toString('utf8', start, end);
    return text.includes('\\') ? (JSON.parse(text) as string) : text.slice(1, -1);
  }

  #skipSpace(): number {
    const { bytes, end } = this;
    let at = this.pos;
    while (at < end) {
      const byte = bytes[at]!;
      if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) {
        this.pos = at;
        return byte;
      }
      at++;
    }
    this.pos = at;
    return END;
  }

  /** @returns the offset after the digits, −1 when there is none */
  #skipDigits(from: number): number {
    let at = from;
    for (let byte = this.#byte(at); byte >= ZERO && byte <= 0x39; byte = this.#byte(at)) at++;
    if (at > from) return at;
    this.pos = from;
    this.fail('a digit');
    return END;
  }

  #skipWord(word: string): boolean {
    for (let i = 0; i < word.length; i++) {
      if (this.#byte(this.pos) !== word.charCodeAt(i)) return this.fail(`"${word}"`);
      this.pos++;
    }
    return true;
  }

  /** @returns bytes of the escape that begins at `at`, 0 when it is none */
  #escapeLength(at: number): number {
    const byte = this.#byte(at + 1);
    // " / \ b f n r t
    if (byte === 0x22 || byte === 0x2f || byte === 0x5c || byte === 0x6e || byte === 0x74) return 2;
    if (byte === 0x62 || byte === 0x66 || byte === 0x72) return 2;
    const isUnicode = byte === 0x75;
    let wrong = isUnicode ? at + 2 : at + 1;
    if (isUnicode) {
      while (wrong < at + 6 && isHexDigit(this.#byte(wrong))) wrong++;
      if (wrong === at + 6) return 6;
    }
    this.pos = wrong;
    this.fail(isUnicode ? 'a hexadecimal digit' : 'one of "\\/bfnrtu after a backslash');
    return 0;
  }

  #byte(at: number): number {
    return at < this.end ? this.bytes[at]! : END;
  }

  #advance(): true {
    this.pos++;
    return true;
  }

  #open(depth: number, kind: number): void {
    if (depth === this.#containers.length) {
      const grown = new Uint8Array(depth * 2);
      grown.set(this.#containers);
      this.#containers = grown;
    }
    this.#containers[depth] = kind;
    if (depth >= this.deepest) this.deepest = depth + 1;
  }

  /** Notes that the next byte is not what was expected. */
  fail(expected: string): false {
    const byte = this.#byte(this.pos);
    this.problem = { position: this.pos, got: describeByte(byte), expected, cut: byte === END };
    return false;
  }
}

/** The text of the JSON string in `range`, quotes included. */
export function textOfString(bytes: Uint8Array, { start, end }: ByteRange): string {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString('utf8');
  return text.includes('\\') ? (JSON.parse(text) as string) : text.slice(1, -1);
}

/** A kind as a word of an error message. */
export function kindText(kind: JsonKind | null): string {
  if (kind === null) return 'nothing';
  if (kind === 'null') return 'null';
  return kind === 'object' || kind === 'array' ? `an ${kind}` : `a ${kind}`;
}

function isHexDigit(byte: number): boolean {
  const lower = byte | 0x20;
  return (byte >= ZERO && byte <= 0x39) || (lower >= 0x61 && lower <= 0x66);
}

function describeByte(byte: number): string {
  if (byte === END) return 'the end of the text';
  return byte > 0x20 && byte < 0x7f ? `"${String.fromCharCode(byte)}"` : `byte 0x${byte.toString(16).padStart(2, '0')}`;
}
