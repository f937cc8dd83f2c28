/** MessagePack as msgspec writes it: smallest integer form, float64, bin for bytes. Just the types KV events need. */

const INITIAL_BYTES = 4096;

export class MsgpackWriter {
  #buffer = Buffer.allocUnsafe(INITIAL_BYTES);
  #length = 0;

  nil(): this {
    return this.#byte(0xc0);
  }

  float64(value: number): this {
    const at = this.#grow(9);
    this.#buffer[at] = 0xcb;
    this.#buffer.writeDoubleBE(value, at + 1);
    return this;
  }

  /** @param value a safe integer */
  int(value: number): this {
    if (value < 0) return this.#negative(value);
    if (value < 0x80) this.#byte(value);
    else if (value <= 0xff) this.#head(0xcc, value, 1);
    else if (value <= 0xffff) this.#head(0xcd, value, 2);
    else if (value <= 0xffff_ffff) this.#head(0xce, value, 4);
    else return this.uint64(BigInt(value));
    return this;
  }

  /** @param value 0 ≤ value < 2⁶⁴; small values take the small forms */
  uint64(value: bigint): this {
    if (value <= 0xffff_ffffn) return this.int(Number(value));
    const at = this.#grow(9);
    this.#buffer[at] = 0xcf;
    this.#buffer.writeBigUInt64BE(value, at + 1);
    return this;
  }

  string(value: string): this {
    const n = Buffer.byteLength(value, 'utf8');
    if (n < 32) this.#byte(0xa0 | n);
    else if (n <= 0xff) this.#head(0xd9, n, 1);
    else if (n <= 0xffff) this.#head(0xda, n, 2);
    else this.#head(0xdb, n, 4);
    const at = this.#grow(n);
    this.#buffer.write(value, at, 'utf8');
    return this;
  }

  bytes(value: Uint8Array): this {
    if (value.length <= 0xff) this.#head(0xc4, value.length, 1);
    else if (value.length <= 0xffff) this.#head(0xc5, value.length, 2);
    else this.#head(0xc6, value.length, 4);
    const at = this.#grow(value.length);
    this.#buffer.set(value, at);
    return this;
  }

  array(n: number): this {
    if (n < 16) this.#byte(0x90 | n);
    else if (n <= 0xffff) this.#head(0xdc, n, 2);
    else this.#head(0xdd, n, 4);
    return this;
  }

  /** @param n entries, below 16 */
  map(n: number): this {
    return this.#byte(0x80 | n);
  }

  /** A copy of what was written. */
  toBuffer(): Buffer {
    return Buffer.from(this.#buffer.subarray(0, this.#length));
  }

  #byte(value: number): this {
    const at = this.#grow(1);
    this.#buffer[at] = value;
    return this;
  }

  #negative(value: number): this {
    if (value >= -32) this.#byte(value & 0xff);
    else if (value >= -0x80) this.#head(0xd0, value & 0xff, 1);
    else if (value >= -0x8000) this.#head(0xd1, value & 0xffff, 2);
    else if (value >= -0x8000_0000) this.#head(0xd2, value >>> 0, 4);
    else {
      const at = this.#grow(9);
      this.#buffer[at] = 0xd3;
      this.#buffer.writeBigInt64BE(BigInt(value), at + 1);
    }
    return this;
  }

  #head(tag: number, value: number, nBytes: 1 | 2 | 4): void {
    const at = this.#grow(1 + nBytes);
    this.#buffer[at] = tag;
    this.#buffer.writeUIntBE(value, at + 1, nBytes);
  }

  /** Room for `n` more bytes. Replaces the buffer, thus must be called before `#buffer` is read. */
  #grow(n: number): number {
    const at = this.#length;
    this.#length += n;
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#length, this.#buffer.length * 2));
      larger.set(this.#buffer.subarray(0, at));
      this.#buffer = larger;
    }
    return at;
  }
}
