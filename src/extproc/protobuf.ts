/**
 * Protobuf's wire format, as much of it as message-reader.ts and answers.ts need, which know the fields. General decoders
 * make an object of every field of every message; of Envoy's messages a few bytes are wanted.
 */

/** Wire types in use; the others are only skipped. */
const VARINT = 0;
const FIXED64 = 1;
const LENGTH_DELIMITED = 2;
const START_GROUP = 3;
const END_GROUP = 4;
const FIXED32 = 5;

const MAX_VARINT_BYTES = 10;
/** As deep as other readers go. */
const MAX_GROUP_DEPTH = 100;

/** Tags as they stand before a field. */
export const varintTag = (field: number): number => (field << 3) | VARINT;
export const lengthTag = (field: number): number => (field << 3) | LENGTH_DELIMITED;

/** A cursor over one message; throws on bytes that are no protobuf. */
export class ProtobufReader {
  readonly bytes: Buffer;
  pos: number;
  end: number;

  constructor(bytes: Buffer, start = 0, end = bytes.length) {
    this.bytes = bytes;
    this.pos = start;
    this.end = end;
  }

  /** Tag of the next field, 0 at the end of the message. */
  next(): number {
    if (this.pos === this.end) return 0;
    const tag = this.varint();
    if (tag >>> 3 === 0) throw malformed('a field number of 0');
    return tag;
  }

  /** The low 32 bits; what is above them is of no use here. */
  varint(): number {
    let value = 0;
    for (let i = 0; i < MAX_VARINT_BYTES; i++) {
      if (this.pos >= this.end) throw malformed('a number that is cut off');
      const byte = this.bytes[this.pos++]!;
      if (i < 5) value |= (byte & 0x7f) << (7 * i);
      if (byte < 0x80) return value >>> 0;
    }
    throw malformed('a number of more than 10 bytes');
  }

  bool(): boolean {
    let value = 0;
    for (let i = 0; i < MAX_VARINT_BYTES; i++) {
      if (this.pos >= this.end) throw malformed('a number that is cut off');
      const byte = this.bytes[this.pos++]!;
      value |= byte & 0x7f;
      if (byte < 0x80) return value !== 0;
    }
    throw malformed('a number of more than 10 bytes');
  }

  /** Narrows the cursor to the length-delimited field that follows; give the result to `leave`. */
  enter(): number {
    const outer = this.end;
    const length = this.varint();
    if (length > outer - this.pos) throw malformed('a field longer than its message');
    this.end = this.pos + length;
    return outer;
  }

  /** Goes on behind the field entered. */
  leave(outer: number): void {
    this.pos = this.end;
    this.end = outer;
  }

  /** A view, not a copy. */
  view(): Buffer {
    const outer = this.enter();
    const bytes = this.bytes.subarray(this.pos, this.end);
    this.leave(outer);
    return bytes;
  }

  string(): string {
    const outer = this.enter();
    const text = this.bytes.toString('utf8', this.pos, this.end);
    this.leave(outer);
    return text;
  }

  /** Passes over the value of a field that is not wanted. */
  skip(tag: number, depth = 0): void {
    switch (tag & 7) {
      case VARINT:
        this.varint();
        return;
      case FIXED64:
        return this.#advance(8);
      case LENGTH_DELIMITED:
        return this.leave(this.enter());
      case START_GROUP:
        return this.#skipGroup(tag, depth + 1);
      case FIXED32:
        return this.#advance(4);
      default:
        throw malformed(`wire type ${tag & 7}`);
    }
  }

  #advance(nBytes: number): void {
    if (nBytes > this.end - this.pos) throw malformed('a field that is cut off');
    this.pos += nBytes;
  }

  #skipGroup(start: number, depth: number): void {
    if (depth > MAX_GROUP_DEPTH) throw malformed(`groups nested deeper than ${MAX_GROUP_DEPTH}`);
    for (let tag = this.next(); tag !== 0; tag = this.next()) {
      if ((tag & 7) !== END_GROUP) this.skip(tag, depth);
      else if (tag >>> 3 === start >>> 3) return;
      else throw malformed('the end of another group');
    }
    throw malformed('a group without an end');
  }
}

/**
 * Writes a message from its end to its beginning: what a field contains is written before its length, which by then is
 * known. So the last field comes first.
 */
export class ProtobufWriter {
  #bytes: Buffer;
  #pos: number;

  /** @param capacityBytes what the message is expected to need */
  constructor(capacityBytes: number) {
    this.#bytes = Buffer.allocUnsafe(capacityBytes);
    this.#pos = capacityBytes;
  }

  /** Where a nested message will end; give it to `close` when all of its fields are written. */
  mark(): number {
    return this.#bytes.length - this.#pos;
  }

  /** Makes a message of everything written since the mark. */
  close(field: number, mark: number): void {
    this.#number(this.mark() - mark);
    this.#number(lengthTag(field));
  }

  varint(field: number, value: number): void {
    this.#number(value);
    this.#number(varintTag(field));
  }

  bytes(field: number, content: Uint8Array): void {
    this.#reserve(content.length);
    this.#pos -= content.length;
    this.#bytes.set(content, this.#pos);
    this.#number(content.length);
    this.#number(lengthTag(field));
  }

  string(field: number, text: string): void {
    const nBytes = Buffer.byteLength(text);
    this.#reserve(nBytes);
    this.#pos -= nBytes;
    this.#bytes.write(text, this.#pos, nBytes, 'utf8');
    this.#number(nBytes);
    this.#number(lengthTag(field));
  }

  /** The message; nothing may be written after it. */
  finish(): Buffer {
    return this.#bytes.subarray(this.#pos);
  }

  /** @param value unsigned, up to 32 bits */
  #number(value: number): void {
    const nBytes = value < 0x80 ? 1 : Math.ceil((32 - Math.clz32(value)) / 7);
    this.#reserve(nBytes);
    this.#pos -= nBytes;
    let at = this.#pos;
    for (let left = value; ; left >>>= 7) {
      if (left < 0x80) {
        this.#bytes[at] = left;
        return;
      }
      this.#bytes[at++] = (left & 0x7f) | 0x80;
    }
  }

  #reserve(nBytes: number): void {
    if (nBytes <= this.#pos) return;
    const written = this.#bytes.subarray(this.#pos);
    const larger = Buffer.allocUnsafe(2 * this.#bytes.length + nBytes);
    larger.set(written, larger.length - written.length);
    this.#pos = larger.length - written.length;
    this.#bytes = larger;
  }
}

function malformed(got: string): Error {
  return new Error(`not a protobuf message: got ${got}`);
}
