/**
 * Bytes that come in pieces and are wanted in one. Small pieces are copied together: a view costs a hundred bytes by itself
 * and holds the buffer it was read into, so a body sent byte by byte would take hundreds of times its size.
 */

/** From here on a piece is kept as it came. */
const LARGE_BYTES = 1024;
/** What small pieces are copied into. */
const ROOM_BYTES = 4096;
const NOTHING: Buffer = Buffer.alloc(0);

export class Pieces {
  #pieces: Buffer[] = [];
  #room = NOTHING;
  #nRoomUsed = 0;
  /** Whether the last piece is the end of what has been copied, and can grow. */
  #lastGrows = false;
  #nBytes = 0;

  get nBytes(): number {
    return this.#nBytes;
  }

  /** What is held, in order. */
  kept(): readonly Buffer[] {
    return this.#pieces;
  }

  add(piece: Buffer): void {
    this.#nBytes += piece.length;
    const last = this.#pieces.at(-1);
    if (last === undefined || piece.length >= LARGE_BYTES) {
      this.#pieces.push(piece);
      this.#lastGrows = false;
    } else {
      this.#copy(piece, last);
    }
  }

  /** Takes away the first `n` bytes, at most `nBytes`; a view where they came in one piece. */
  take(n: number): Buffer {
    let first = this.#pieces[0] ?? NOTHING;
    if (first.length < n) {
      this.#pieces = [(first = Buffer.concat(this.#pieces, this.#nBytes))];
      this.#lastGrows = false;
    }
    this.#nBytes -= n;
    if (n < first.length) this.#pieces[0] = first.subarray(n);
    else this.#pieces.shift();
    if (this.#pieces.length === 0) this.#lastGrows = false;
    return n === first.length ? first : first.subarray(0, n);
  }

  #copy(piece: Buffer, last: Buffer): void {
    if (this.#nRoomUsed + piece.length > this.#room.length) {
      this.#room = Buffer.allocUnsafe(ROOM_BYTES);
      this.#nRoomUsed = 0;
      this.#lastGrows = false;
    }
    const start = this.#nRoomUsed - (this.#lastGrows ? last.length : 0);
    this.#room.set(piece, this.#nRoomUsed);
    this.#nRoomUsed += piece.length;
    if (this.#lastGrows) this.#pieces.pop();
    this.#pieces.push(this.#room.subarray(start, this.#nRoomUsed));
    this.#lastGrows = true;
  }
}
