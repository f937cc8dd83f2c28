/**
 * One HTTP/1.1 response out of the bytes of a connection, cut anywhere (RFC 9112): status, the headers that matter, the
 * body. Strict: what leaves a doubt about where the response ends is refused, as the next one would begin there.
 *
 * Deliberately absent: content codings, which nobody asks for; what trailers say; upgrades.
 */

/** `more`: the response goes on; `too_large`: its body has more bytes than allowed; `broken`: `fault` says what was wrong. */
export type ReadState = 'more' | 'done' | 'too_large' | 'broken';

type Part = 'head' | 'length' | 'chunk_size' | 'chunk' | 'chunk_end' | 'trailers' | 'until_end' | 'over';

/** Of a head, and of all trailers together. */
const MAX_HEAD_BYTES = 16_384;
const MAX_CHUNK_SIZE_BYTES = 1024;
const FIRST_ROOM_BYTES = 65_536;
const NO_BYTES = Buffer.alloc(0);
const END_OF_HEAD = '\r\n\r\n';
const LF = 10;
/** Control characters, and a CR that ends no line. */
const NOT_IN_HEAD = /[^\t\r\n -~\x80-\xff]|\r(?!\n)/;

/** One for each connection: `begin`, then `push` until it says something else than `more`. */
export class ResponseReader {
  status = 0;
  /** That header as it came. */
  date: string | null = null;
  /** Bytes of the body, announced or seen. */
  nBytes = 0;
  /** The connection may be used for another request. */
  isReusable = false;
  fault = '';
  #part: Part = 'over';
  #maxBytes = 0;
  /** Bytes of a head, or of a line, that is not whole yet. */
  #held: Buffer = NO_BYTES;
  /** Bytes left of the body, or of the chunk. */
  #left = 0;
  #length: number | null = null;
  #isChunked = false;
  #nTrailerBytes = 0;
  /** The body: a view of the piece that has all of it, otherwise what came so far, and room for more. */
  #body: Buffer = NO_BYTES;

  /** @param maxBytes of a body */
  begin(maxBytes: number): void {
    this.#part = 'head';
    this.#maxBytes = maxBytes;
    this.#held = NO_BYTES;
    this.#body = NO_BYTES;
    this.#nTrailerBytes = 0;
    this.nBytes = 0;
    this.fault = '';
  }

  /** @param piece not kept, but for the body until it is taken */
  push(piece: Buffer): ReadState {
    let at = 0;
    if (this.#part === 'head') {
      let bytes = piece;
      if (this.#held.length > 0) bytes = Buffer.concat([this.#held, piece]);
      const end = this.#readHeads(bytes);
      if (typeof end === 'string') return end;
      at = end;
      piece = bytes;
    }
    while (at < piece.length && this.#part !== 'over') {
      const next = this.#readPart(piece, at);
      if (typeof next === 'string') return next;
      at = next;
    }
    if (this.#part !== 'over') return 'more';
    // What was not asked for.
    if (at < piece.length) this.isReusable = false;
    return 'done';
  }

  /** The peer has ended the connection. */
  end(): ReadState {
    if (this.#part !== 'until_end') return this.#broken('connection ended before the response did');
    this.#part = 'over';
    return 'done';
  }

  /** When it is done: may be a view of the last piece. The reader keeps none of it. */
  takeBody(): Buffer {
    const body = this.#body.subarray(0, this.nBytes);
    this.#body = NO_BYTES;
    return body;
  }

  #broken(fault: string): ReadState {
    this.#part = 'over';
    this.isReusable = false;
    this.fault = fault;
    return 'broken';
  }

  #tooLarge(nBytes: number): ReadState {
    this.#part = 'over';
    this.isReusable = false;
    this.nBytes = nBytes;
    return 'too_large';
  }

  /** @returns where the body begins, after the head and the interim responses before it */
  #readHeads(bytes: Buffer): number | ReadState {
    for (let at = 0; ;) {
      const end = bytes.indexOf(END_OF_HEAD, at, 'latin1');
      if ((end < 0 ? bytes.length : end) - at > MAX_HEAD_BYTES) {
        return this.#broken(`head of a response above ${MAX_HEAD_BYTES} bytes`);
      }
      if (end < 0) {
        this.#held = Buffer.from(bytes.subarray(at));
        return 'more';
      }
      const fault = this.#readHead(bytes.toString('latin1', at, end + 2));
      if (fault !== null) return this.#broken(fault);
      at = end + END_OF_HEAD.length;
      if (this.status === 101) return this.#broken('protocol switched unasked');
      if (this.status < 200) continue;
      this.#held = NO_BYTES;
      return this.#beginBody() ?? at;
    }
  }

  /** @param head lines, each with its CR LF */
  #readHead(head: string): string | null {
    const statusLine = /^HTTP\/1\.([01]) ([1-9]\d\d)[ \r]/.exec(head);
    if (statusLine === null) return 'not a response of HTTP/1.1';
    if (NOT_IN_HEAD.test(head)) return 'header not understood';
    this.status = Number(statusLine[2]);
    this.isReusable = statusLine[1] === '1';
    this.date = null;
    this.#length = null;
    this.#isChunked = false;
    for (let start = head.indexOf('\n') + 1; start < head.length;) {
      const end = head.indexOf('\n', start);
      const colon = head.indexOf(':', start);
      if (head[end - 1] !== '\r' || colon <= start || colon > end || isBlank(head[start]) || isBlank(head[colon - 1])) {
        return 'header not understood';
      }
      const fault = this.#readHeader(head, start, colon, end - 1);
      if (fault !== null) return fault;
      start = end + 1;
    }
    return this.#isChunked && this.#length !== null ? 'both a length and chunks announced' : null;
  }

  #readHeader(head: string, start: number, colon: number, end: number): string | null {
    // Most headers are none of these, which their length tells.
    switch (colon - start) {
      case 'date'.length:
        if (isNamed('date', head, start, colon)) this.date = head.slice(colon + 1, end).trim();
        return null;
      case 'connection'.length:
        if (
          isNamed('connection', head, start, colon) &&
          /(?:^|,)[ \t]*close[ \t]*(?:,|$)/i.test(head.slice(colon + 1, end))
        ) {
          this.isReusable = false;
        }
        return null;
      case 'content-length'.length: {
        if (!isNamed('content-length', head, start, colon)) return null;
        const value = /^[ \t]*(\d{1,15})[ \t]*$/.exec(head.slice(colon + 1, end));
        if (value === null || this.#length !== null) return 'length not understood';
        this.#length = Number(value[1]);
        return null;
      }
      case 'transfer-encoding'.length: {
        if (!isNamed('transfer-encoding', head, start, colon)) return null;
        const isKnown = /^[ \t]*chunked[ \t]*$/i.test(head.slice(colon + 1, end));
        if (!isKnown || this.#isChunked) return 'transfer encoding not understood';
        this.#isChunked = true;
        return null;
      }
      default:
        return null;
    }
  }

  #beginBody(): ReadState | null {
    if (this.status === 204 || this.status === 304 || this.#length === 0) {
      this.#part = 'over';
    } else if (this.#isChunked) {
      this.#part = 'chunk_size';
    } else if (this.#length === null) {
      this.#part = 'until_end';
      this.isReusable = false;
    } else {
      if (this.#length > this.#maxBytes) return this.#tooLarge(this.#length);
      this.#part = 'length';
      this.#left = this.#length;
    }
    return null;
  }

  /** @returns where the next part begins */
  #readPart(piece: Buffer, at: number): number | ReadState {
    switch (this.#part) {
      case 'length':
      case 'chunk': {
        const end = Math.min(piece.length, at + this.#left);
        this.#left -= end - at;
        if (this.#part === 'length' && this.#left === 0) this.#part = 'over';
        else if (this.#left === 0) this.#part = 'chunk_end';
        this.#collect(piece, at, end);
        return end;
      }
      case 'until_end':
        if (this.nBytes + piece.length - at > this.#maxBytes) return this.#tooLarge(this.nBytes + piece.length - at);
        this.#collect(piece, at, piece.length);
        return piece.length;
      default:
        return this.#readLine(piece, at);
    }
  }

  #collect(piece: Buffer, at: number, end: number): void {
    const nBefore = this.nBytes;
    this.nBytes += end - at;
    if (nBefore === 0 && this.#part === 'over') {
      this.#body = piece.subarray(at, end);
      return;
    }
    if (this.nBytes > this.#body.length) {
      // What is announced is not believed beyond a little: room grows with what came.
      const room = Math.max(this.nBytes, 2 * this.#body.length, FIRST_ROOM_BYTES);
      const grown = Buffer.allocUnsafe(Math.min(room, this.#length ?? Infinity));
      this.#body.copy(grown, 0, 0, nBefore);
      this.#body = grown;
    }
    piece.copy(this.#body, nBefore, at, end);
  }

  /** A line between chunks, or of the trailers. */
  #readLine(piece: Buffer, at: number): number | ReadState {
    const lf = piece.indexOf(LF, at);
    const end = lf < 0 ? piece.length : lf + 1;
    const isTrailer = this.#part === 'trailers';
    if (isTrailer) this.#nTrailerBytes += end - at;
    const nLine = this.#held.length + end - at;
    if (isTrailer ? this.#nTrailerBytes > MAX_HEAD_BYTES : nLine > MAX_CHUNK_SIZE_BYTES) {
      return this.#broken('line of a chunked body too long');
    }
    const bytes =
      this.#held.length === 0 ? piece.subarray(at, end) : Buffer.concat([this.#held, piece.subarray(at, end)]);
    this.#held = lf < 0 ? Buffer.from(bytes) : NO_BYTES;
    if (lf < 0) return end;
    const line = bytes.toString('latin1');
    if (!line.endsWith('\r\n')) return this.#broken('line of a chunked body without CR LF');
    return this.#takeLine(line.slice(0, -2)) ?? end;
  }

  #takeLine(line: string): ReadState | null {
    if (this.#part === 'trailers') {
      if (line === '') this.#part = 'over';
      return null;
    }
    if (this.#part === 'chunk_end') {
      if (line !== '') return this.#broken('chunk longer than announced');
      this.#part = 'chunk_size';
      return null;
    }
    const size = /^([\da-f]{1,12})[ \t]*(?:;.*)?$/i.exec(line);
    if (size === null) return this.#broken('size of a chunk not understood');
    this.#left = parseInt(size[1]!, 16);
    if (this.nBytes + this.#left > this.#maxBytes) return this.#tooLarge(this.nBytes + this.#left);
    this.#part = this.#left === 0 ? 'trailers' : 'chunk';
    return null;
  }
}

function isBlank(character: string | undefined): boolean {
  return character === ' ' || character === '\t';
}

function isNamed(name: string, head: string, start: number, colon: number): boolean {
  return head.startsWith(name, start) || head.slice(start, colon).toLowerCase() === name;
}
