/** How gRPC puts messages on an HTTP/2 stream: a flag, a length, the message. Pieces of any size in, whole messages out. */

const PREFIX_BYTES = 5;
/** Up to here copying a message behind its prefix costs less than a write of its own. */
const COPY_BYTES = 4096;
const NOTHING: Buffer = Buffer.alloc(0);

export type FrameProblem = 'compressed' | 'too_large';

/** Holds only what has come of an unfinished message; a message that came in one piece is a view of that piece. */
export class FrameReader {
  readonly #maxBytes: number;
  #pieces: Buffer[] = [];
  #nBytes = 0;
  /** Of the message whose prefix has been read, -1 between messages. */
  #messageBytes = -1;

  /** @param maxBytes of a message */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  add(piece: Buffer): void {
    this.#pieces.push(piece);
    this.#nBytes += piece.length;
  }

  /** The next message, null when it is not whole yet; a problem is for good. */
  next(): Buffer | FrameProblem | null {
    if (this.#messageBytes < 0) {
      if (this.#nBytes < PREFIX_BYTES) return null;
      const prefix = this.#take(PREFIX_BYTES);
      if (prefix[0] !== 0) return 'compressed';
      const length = prefix.readUInt32BE(1);
      if (length > this.#maxBytes) return 'too_large';
      this.#messageBytes = length;
    }
    if (this.#nBytes < this.#messageBytes) return null;
    const message = this.#take(this.#messageBytes);
    this.#messageBytes = -1;
    return message;
  }

  /** @param n at most what is there */
  #take(n: number): Buffer {
    let first = this.#pieces[0] ?? NOTHING;
    if (first.length < n) this.#pieces = [(first = Buffer.concat(this.#pieces, this.#nBytes))];
    this.#nBytes -= n;
    if (this.#nBytes === 0) this.#pieces = [];
    else this.#pieces[0] = first.subarray(n);
    return n === first.length ? first : first.subarray(0, n);
  }
}

/** Buffers to be written one after the other. */
export function frameOf(message: Buffer): readonly Buffer[] {
  const copied = message.length <= COPY_BYTES ? message.length : 0;
  const frame = Buffer.allocUnsafe(PREFIX_BYTES + copied);
  frame[0] = 0;
  frame.writeUInt32BE(message.length, 1);
  if (copied === 0) return [frame, message];
  frame.set(message, PREFIX_BYTES);
  return [frame];
}
