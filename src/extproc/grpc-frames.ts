/** How gRPC puts messages on an HTTP/2 stream: a flag, a length, the message. Pieces of any size in, whole messages out. */
import { Pieces } from './pieces.ts';

const PREFIX_BYTES = 5;
/** Up to here copying a message behind its prefix costs less than a write of its own. */
const COPY_BYTES = 4096;

export type FrameProblem = 'compressed' | 'too_large';

/** Holds only what has come of an unfinished message; a message that came in one piece is a view of that piece. */
export class FrameReader {
  readonly #maxBytes: number;
  readonly #pieces = new Pieces();
  /** Of the message whose prefix has been read, -1 between messages. */
  #messageBytes = -1;

  /** @param maxBytes of a message */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  add(piece: Buffer): void {
    this.#pieces.add(piece);
  }

  /** Whether what has come are whole messages, all taken. */
  isEmpty(): boolean {
    return this.#pieces.nBytes === 0 && this.#messageBytes < 0;
  }

  /** The next message, null when it is not whole yet; a problem is for good. */
  next(): Buffer | FrameProblem | null {
    if (this.#messageBytes < 0) {
      if (this.#pieces.nBytes < PREFIX_BYTES) return null;
      const prefix = this.#pieces.take(PREFIX_BYTES);
      if (prefix[0] !== 0) return 'compressed';
      const length = prefix.readUInt32BE(1);
      if (length > this.#maxBytes) return 'too_large';
      this.#messageBytes = length;
    }
    if (this.#pieces.nBytes < this.#messageBytes) return null;
    const message = this.#pieces.take(this.#messageBytes);
    this.#messageBytes = -1;
    return message;
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
