/**
 * A cursor over one MessagePack value: only what KV events need, reading numbers straight into typed arrays.
 * Structural faults (the payload ends early, a reserved byte, more elements than bytes) throw; a value of another kind
 * than asked for is an answer (`false`, −1), so that one odd field does not cost its neighbours.
 * It never recurses, so nesting costs nothing, and never takes memory from a length it has not checked.
 */
import { WarmpathError } from '../errors.ts';

const EMPTY = new Uint8Array(0);
const UINT8 = 0xcc;
const UINT64 = 0xcf;
const INT8 = 0xd0;
const INT64 = 0xd3;

export class MsgpackReader {
  pos = 0;
  private bytes: Uint8Array = EMPTY;
  private view: DataView = new DataView(EMPTY.buffer);
  private end = 0;

  reset(bytes: Uint8Array): void {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.pos = 0;
    this.end = bytes.byteLength;
  }

  /** Takes no reference to the payload with it, so that a large one can be freed. */
  release(): void {
    this.reset(EMPTY);
  }

  remaining(): number {
    return this.end - this.pos;
  }

  /** First byte of the next value. */
  peek(): number {
    if (this.pos >= this.end) throw this.truncated(1);
    return this.bytes[this.pos]!;
  }

  /** @returns number of elements, −1 when the next value is no array (and nothing is read) */
  arrayHeader(): number {
    const tag = this.peek();
    if (tag >= 0x90 && tag <= 0x9f) {
      this.pos++;
      return tag & 0x0f;
    }
    if (tag !== 0xdc && tag !== 0xdd) return -1;
    const n = this.uint(tag === 0xdc ? 2 : 4);
    if (n > this.end - this.pos) throw this.tooMany('array', n);
    return n;
  }

  /** @returns number of key-value pairs, −1 when the next value is no map (and nothing is read) */
  mapHeader(): number {
    const tag = this.peek();
    if (tag >= 0x80 && tag <= 0x8f) {
      this.pos++;
      return tag & 0x0f;
    }
    if (tag !== 0xde && tag !== 0xdf) return -1;
    const n = this.uint(tag === 0xde ? 2 : 4);
    if (2 * n > this.end - this.pos) throw this.tooMany('map', n);
    return n;
  }

  /** @returns bytes of the string that now follows, −1 when the next value is no string (and nothing is read) */
  stringHeader(): number {
    const tag = this.peek();
    let n: number;
    if (tag >= 0xa0 && tag <= 0xbf) {
      n = tag & 0x1f;
      this.pos++;
    } else if (tag >= 0xd9 && tag <= 0xdb) n = this.uint(1 << (tag - 0xd9));
    else return -1;
    this.need(n);
    return n;
  }

  /** As `stringHeader`, for `bin`. */
  binHeader(): number {
    const tag = this.peek();
    if (tag < 0xc4 || tag > 0xc6) return -1;
    const n = this.uint(1 << (tag - 0xc4));
    this.need(n);
    return n;
  }

  /** True when the `n` bytes at `pos` are these; they must have been checked to be there. */
  bytesAre(expected: DataView, n: number): boolean {
    if (expected.byteLength !== n) return false;
    const { view, pos } = this;
    let i = 0;
    for (; i + 4 <= n; i += 4) if (view.getUint32(pos + i) !== expected.getUint32(i)) return false;
    for (; i < n; i++) if (view.getUint8(pos + i) !== expected.getUint8(i)) return false;
    return true;
  }

  /** Reads `n` bytes at `pos` as UTF-8. */
  utf8(n: number): string {
    this.pos += n;
    return Buffer.from(this.bytes.buffer, this.bytes.byteOffset + this.pos - n, n).toString('utf8');
  }

  /** A copy of the bytes between two positions. */
  copy(from: number, to: number): DataView {
    return new DataView(Uint8Array.from(this.bytes.subarray(from, to)).buffer);
  }

  hex(from: number, to: number): string {
    return Buffer.from(this.bytes.buffer, this.bytes.byteOffset + from, to - from).toString('hex');
  }

  /** @returns an integer of at most 53 bits, NaN when the next value is anything else (and nothing is read) */
  integer(): number {
    const tag = this.peek();
    if (tag < 0x80) {
      this.pos++;
      return tag;
    }
    if (tag >= 0xe0) {
      this.pos++;
      return tag - 0x100;
    }
    if (tag < UINT8 || tag > INT64) return NaN;
    const width = 1 << (tag & 3);
    this.need(1 + width);
    const at = this.pos + 1;
    const value = tag < INT8 ? this.unsignedAt(at, width) : this.signedAt(at, width);
    if (!Number.isSafeInteger(value)) return NaN;
    this.pos = at + width;
    return value;
  }

  /** @returns an integer or float, null when the next value is no number (and nothing is read) */
  number(): number | null {
    const tag = this.peek();
    if (tag === 0xcb || tag === 0xca) {
      const width = tag === 0xcb ? 8 : 4;
      this.need(1 + width);
      const value = width === 8 ? this.view.getFloat64(this.pos + 1) : this.view.getFloat32(this.pos + 1);
      this.pos += 1 + width;
      return value;
    }
    const value = this.integer();
    if (!Number.isNaN(value)) return value;
    if (tag !== UINT64 && tag !== INT64) return null;
    // As near as a double comes.
    this.need(9);
    this.pos += 9;
    return tag === UINT64 ? this.unsignedAt(this.pos - 8, 8) : this.signedAt(this.pos - 8, 8);
  }

  /**
   * Low 64 bits of an integer (two's complement) or the last 8 bytes of a `bin`, as [hi, lo].
   * @returns false when the next value is neither
   */
  hash(words: Uint32Array, at: number): boolean {
    const tag = this.peek();
    const p = this.pos + 1;
    if (tag === UINT64 || tag === INT64) {
      this.need(9);
      words[at] = this.view.getUint32(p);
      words[at + 1] = this.view.getUint32(p + 4);
      this.pos = p + 8;
      return true;
    }
    if (tag >= 0xc4 && tag <= 0xc6) return this.binHash(words, at);
    const value = this.integer();
    if (Number.isNaN(value)) return false;
    words[at] = value < 0 ? 0xffffffff : 0;
    words[at + 1] = value;
    return true;
  }

  /** Whether the next value is an integer of 8 bytes. */
  isLong(): boolean {
    const tag = this.peek();
    return tag === UINT64 || tag === INT64;
  }

  /**
   * How many of the next values, at most `atMost`, have the same bytes as the one from `start` up to `pos`, but for 8 bytes
   * that lie at `hole` there. Reads nothing.
   */
  countAlike(start: number, hole: number, atMost: number): number {
    const length = this.pos - start;
    const before = hole - start;
    let n = 0;
    for (let at = this.pos; n < atMost && at + length <= this.end; at += length) {
      if (!this.areSame(start, at, before)) break;
      if (!this.areSame(hole + 8, at + before + 8, length - before - 8)) break;
      n++;
    }
    return n;
  }

  /** Passes over `n` values of `length` bytes and reads the 8 bytes at `hole` of each as [hi, lo]. */
  alikeHashes(words: Uint32Array, length: number, hole: number, n: number): void {
    const { view } = this;
    let p = this.pos + hole;
    for (let i = 0; i < 2 * n; i += 2, p += length) {
      words[i] = view.getUint32(p);
      words[i + 1] = view.getUint32(p + 4);
    }
    this.pos += n * length;
  }

  private areSame(a: number, b: number, n: number): boolean {
    const { view } = this;
    let i = 0;
    for (; i + 4 <= n; i += 4) if (view.getUint32(a + i) !== view.getUint32(b + i)) return false;
    for (; i < n; i++) if (view.getUint8(a + i) !== view.getUint8(b + i)) return false;
    return true;
  }

  private binHash(words: Uint32Array, at: number): boolean {
    const n = this.binHeader();
    this.pos += n;
    if (n === 0 || n > MAX_HASH_BYTES) return false;
    // Shorter than 8 bytes: the number they spell.
    for (let word = 0; word < 2; word++) {
      let value = 0;
      for (let i = 8 - 4 * word; i > 4 - 4 * word; i--) {
        value = (value << 8) | (i <= n ? this.bytes[this.pos - i]! : 0);
      }
      words[at + word] = value;
    }
    return true;
  }

  /**
   * Reads `n` integers from 0 to 2^32 − 1.
   * @returns false at the first value of another kind
   */
  uint32s(words: Uint32Array, at: number, n: number): boolean {
    const { bytes, view } = this;
    // Up to here a value of any width can be loaded as four bytes after its tag without looking at the end.
    const wideEnd = this.end - 5;
    let p = this.pos;
    let i = 0;
    for (; i < n && p <= wideEnd; i++) {
      const tag = bytes[p]!;
      if (tag < 0x80) {
        words[at + i] = tag;
        p++;
      } else if (tag >= UINT8 && tag < UINT64) {
        // uint8, uint16 and uint32 by arithmetic: token ids of mixed widths cost a mispredicted branch each otherwise.
        const width = 1 << (tag & 3);
        words[at + i] = view.getUint32(p + 1) >>> (32 - 8 * width);
        p += 1 + width;
      } else break;
    }
    this.pos = p;
    for (; i < n; i++) {
      const value = this.integer();
      if (!(value >= 0 && value <= 0xffffffff)) return false;
      words[at + i] = value;
    }
    return true;
  }

  /** @returns how many of the next `atMost` values are nil; those are read */
  nils(atMost: number): number {
    let n = 0;
    while (n < atMost && this.pos < this.end && this.bytes[this.pos] === 0xc0) {
      this.pos++;
      n++;
    }
    return n;
  }

  /** Passes over one whole value. */
  skip(): void {
    let pending = 1;
    while (pending > 0) {
      pending += this.skipOne() - 1;
      // Every value still owed takes a byte at least.
      if (pending > this.end - this.pos) throw this.tooMany('nested values', pending);
    }
  }

  /** @returns number of values nested directly in the one passed over */
  private skipOne(): number {
    const tag = this.peek();
    const fixed = SKIP_BYTES[tag]!;
    if (fixed > 0) {
      this.need(fixed);
      this.pos += fixed;
      return 0;
    }
    const nArray = this.arrayHeader();
    if (nArray >= 0) return nArray;
    const nMap = this.mapHeader();
    if (nMap >= 0) return 2 * nMap;
    let n = this.stringHeader();
    if (n < 0) n = this.binHeader();
    if (n < 0) n = this.extHeader();
    if (n < 0) throw this.refused(`KV payload holds the reserved byte 0x${tag.toString(16)} at ${this.pos}`);
    this.pos += n;
    return 0;
  }

  private extHeader(): number {
    const tag = this.peek();
    if (tag < 0xc7 || tag > 0xc9) return -1;
    const n = this.uint(1 << (tag - 0xc7)) + 1;
    this.need(n);
    return n;
  }

  /** The big-endian number of `width` bytes after the tag; moves past both. */
  private uint(width: number): number {
    this.need(1 + width);
    const value = this.unsignedAt(this.pos + 1, width);
    this.pos += 1 + width;
    return value;
  }

  private unsignedAt(at: number, width: number): number {
    if (width === 1) return this.view.getUint8(at);
    if (width === 2) return this.view.getUint16(at);
    if (width === 4) return this.view.getUint32(at);
    return this.view.getUint32(at) * 0x1_0000_0000 + this.view.getUint32(at + 4);
  }

  private signedAt(at: number, width: number): number {
    if (width === 1) return this.view.getInt8(at);
    if (width === 2) return this.view.getInt16(at);
    if (width === 4) return this.view.getInt32(at);
    return this.view.getInt32(at) * 0x1_0000_0000 + this.view.getUint32(at + 4);
  }

  private need(n: number): void {
    if (n > this.end - this.pos) throw this.truncated(n);
  }

  private truncated(n: number): WarmpathError {
    return this.refused(`KV payload ends early: ${n} bytes needed at ${this.pos}, ${this.end - this.pos} left`);
  }

  private tooMany(what: string, n: number): WarmpathError {
    return this.refused(`KV payload ends early: ${what} of ${n} at ${this.pos}, ${this.end - this.pos} bytes left`);
  }

  private refused(message: string): WarmpathError {
    return new WarmpathError('kv_payload_invalid', message);
  }
}

/** The longest digest in use has 32 bytes. */
const MAX_HASH_BYTES = 64;

/** Bytes of values whose first byte tells their whole length, 0 for all others. */
const SKIP_BYTES = Uint8Array.from({ length: 256 }, (_, tag) => {
  if (tag < 0x80 || tag >= 0xe0 || tag === 0xc0 || tag === 0xc2 || tag === 0xc3) return 1;
  if (tag === 0xca) return 5;
  if (tag === 0xcb) return 9;
  if (tag >= UINT8 && tag <= INT64) return 1 + (1 << (tag & 3));
  // fixext: tag, type, 1 to 16 bytes
  if (tag >= 0xd4 && tag <= 0xd8) return 2 + (1 << (tag - 0xd4));
  return 0;
});
