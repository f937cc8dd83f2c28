/** One connection that is kept: one exchange at a time on it, the next one when the answer is whole. */
import type { Socket } from 'node:net';
import { ResponseReader } from './response-reader.ts';

/** Who waits for the answer. Gets exactly one of these, unless it destroys the connection first. */
export type ConnectionUser = {
  /** The response is the connection's: to be read now, not kept. */
  onAnswer(response: ResponseReader): void;
  onTooLarge(response: ResponseReader): void;
  /** @param isUnanswered the peer has closed the connection without a byte of an answer, or it never came to be */
  onFailure(error: Error, isUnanswered: boolean): void;
};

/** What keeps connections. */
export type ConnectionKeeper = {
  /** The answer is whole, and the connection good for another one. */
  onFree(connection: HttpConnection): void;
  onGone(connection: HttpConnection): void;
};

/** Memory that every connection of a client uses for a moment: reading and writing are done before another one has its turn. */
export type SharedBuffers = {
  readonly received: Buffer;
  /** Replaced where a socket could not write all of it at once. */
  sent: Buffer;
};

/** Larger requests are not copied. */
const MAX_COPIED_BYTES = 32_768;
/** As much as a socket reads at once. */
const RECEIVED_BYTES = 65_536;

export function createSharedBuffers(): SharedBuffers {
  return { received: Buffer.allocUnsafeSlow(RECEIVED_BYTES), sent: Buffer.allocUnsafeSlow(MAX_COPIED_BYTES) };
}

export class HttpConnection {
  /** It has brought an answer before: the peer may have closed it meanwhile. */
  isUsed = false;
  idleSinceMs = 0;
  readonly #socket: Socket;
  readonly #keeper: ConnectionKeeper;
  readonly #buffers: SharedBuffers | null;
  readonly #response = new ResponseReader();
  #user: ConnectionUser | null = null;
  #isUnanswered = true;

  /**
   * @param open a socket that hands what it reads to the function, which keeps nothing of it
   * @param buffers null where what is written is read later, as to be encrypted
   */
  constructor(
    open: (onRead: (piece: Buffer) => void) => Socket,
    keeper: ConnectionKeeper,
    buffers: SharedBuffers | null,
  ) {
    this.#keeper = keeper;
    this.#buffers = buffers;
    this.#socket = open((piece) => this.#read(piece));
    this.#socket.on('end', () => this.#end());
    this.#socket.on('error', (error) => this.#fail(error));
    this.#socket.on('close', () => {
      this.#fail(new Error('connection closed'));
      keeper.onGone(this);
    });
  }

  /** @param head lines, with the empty one at their end */
  send(head: string, body: Uint8Array | null, maxBytes: number, user: ConnectionUser): void {
    this.#user = user;
    this.#isUnanswered = true;
    this.#response.begin(maxBytes);
    const nBytes = head.length + (body?.length ?? 0);
    if (nBytes > MAX_COPIED_BYTES) {
      this.#socket.cork();
      this.#socket.write(head, 'latin1');
      if (body !== null) this.#socket.write(body);
      return this.#socket.uncork();
    }
    // One write of one buffer is the cheapest, and no buffer of its own cheaper still.
    const shared = this.#socket.connecting ? null : this.#buffers;
    const bytes = shared === null ? Buffer.allocUnsafe(nBytes) : shared.sent;
    bytes.write(head, 'latin1');
    if (body !== null) bytes.set(body, head.length);
    this.#socket.write(bytes.subarray(0, nBytes));
    if (shared !== null && this.#socket.writableLength > 0) shared.sent = Buffer.allocUnsafeSlow(MAX_COPIED_BYTES);
  }

  /** Nobody is told. */
  destroy(): void {
    this.#user = null;
    this.#socket.destroy();
  }

  /** Who waits is told, and that it was no fault of the peer. */
  abort(error: Error): void {
    this.#isUnanswered = false;
    this.#fail(error);
  }

  #read(piece: Buffer): void {
    const user = this.#user;
    // Nothing was asked.
    if (user === null) return this.destroy();
    this.#isUnanswered = false;
    const state = this.#response.push(piece);
    if (state === 'done') this.#finish(user);
    else if (state === 'too_large') {
      this.destroy();
      user.onTooLarge(this.#response);
    } else if (state === 'broken') this.#fail(new Error(this.#response.fault));
  }

  #finish(user: ConnectionUser): void {
    this.#user = null;
    this.isUsed = true;
    // A peer that answers before it has read everything may never read the rest.
    const isFree = this.#response.isReusable && this.#socket.writableLength === 0;
    if (isFree) this.#keeper.onFree(this);
    else this.#socket.destroy();
    user.onAnswer(this.#response);
  }

  #end(): void {
    const user = this.#user;
    if (user !== null && this.#response.end() === 'done') this.#finish(user);
    else this.#fail(new Error('connection ended before the response did'));
  }

  #fail(error: Error): void {
    const user = this.#user;
    this.destroy();
    user?.onFailure(error, this.#isUnanswered);
  }
}
