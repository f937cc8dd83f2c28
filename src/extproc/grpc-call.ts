/**
 * One bidirectional gRPC call on a stream of node:http2: messages in and out as bytes, and a status at the end.
 *
 * Written by hand because it is most of what a request costs: grpc-js puts interceptors, promises and a second stream, one
 * of objects, around every HTTP/2 stream, which is twice the CPU and twice the garbage (`make bench-extproc`). Deliberately
 * not here: compression, which is not announced; metadata; deadlines of the client, which resets the stream itself when
 * they are over; what messages mean.
 */
import type { IncomingHttpHeaders, OutgoingHttpHeaders, ServerHttp2Stream } from 'node:http2';
import { status as grpcStatus } from '@grpc/grpc-js';
import { frameOf, FrameReader, type FrameProblem } from './grpc-frames.ts';

export type StatusName = keyof typeof grpcStatus;

export type GrpcCall = {
  /** @returns false when the peer takes no more for now: `drained` tells when it does */
  write(message: Buffer): boolean;
  /** Reads no further. What has been received already still comes. */
  pause(): void;
  resume(): void;
  /** Ends the call with status 0. */
  end(): void;
  /** Ends the call with another status. */
  fail(status: StatusName, details: string): void;
};

export type GrpcCallListener = {
  message(bytes: Buffer): void;
  /** The peer has nothing more to send. */
  halfClosed(): void;
  drained(): void;
  /** The stream is gone: over in order, reset, or ended here because it could not be read. Called once, the last call. */
  closed(): void;
};

const RESPONSE_HEADERS: OutgoingHttpHeaders = {
  ':status': 200,
  'content-type': 'application/grpc+proto',
};
const STATUS_OK: OutgoingHttpHeaders = { 'grpc-status': '0', 'grpc-message': 'OK' };
const UNSUPPORTED_MEDIA_TYPE = 415;

/** @param serve called at once, unless the request is not gRPC */
export function acceptGrpcCall(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  maxMessageBytes: number,
  serve: (call: GrpcCall) => GrpcCallListener,
): void {
  // A reset is no error of anybody's, and `close` tells it.
  stream.on('error', ignore);
  if (headers['content-type']?.startsWith('application/grpc') === true) {
    const call = new StreamCall(stream, maxMessageBytes);
    call.listen(serve(call));
  } else {
    stream.respond({ ':status': UNSUPPORTED_MEDIA_TYPE }, { endStream: true });
    stream.resume();
  }
}

/** A class, because a closure per method and request is what the garbage collector then has to do with. */
class StreamCall implements GrpcCall {
  readonly #stream: ServerHttp2Stream;
  readonly #frames: FrameReader;
  readonly #maxMessageBytes: number;
  #listener: GrpcCallListener | null = null;
  #hasResponded = false;
  /** Set once this side has nothing more to send. */
  #trailers: OutgoingHttpHeaders | null = null;

  constructor(stream: ServerHttp2Stream, maxMessageBytes: number) {
    this.#stream = stream;
    this.#maxMessageBytes = maxMessageBytes;
    this.#frames = new FrameReader(maxMessageBytes);
  }

  listen(listener: GrpcCallListener): void {
    const stream = this.#stream;
    this.#listener = listener;
    stream.on('data', (piece: Buffer) => this.#onData(piece));
    stream.on('end', () => this.#listener?.halfClosed());
    stream.on('drain', () => this.#listener?.drained());
    stream.on('wantTrailers', () => {
      if (!stream.destroyed && !stream.closed) stream.sendTrailers(this.#trailers ?? STATUS_OK);
    });
    stream.on('close', () => {
      // Node keeps what is left of the stream until the next full collection: it must not keep all of us with it.
      for (const event of EVENTS) stream.removeAllListeners(event);
      this.#close();
    });
  }

  write(message: Buffer): boolean {
    const stream = this.#stream;
    if (this.#isGone()) return true;
    if (!this.#hasResponded) {
      this.#hasResponded = true;
      stream.respond(RESPONSE_HEADERS, { waitForTrailers: true });
    }
    const [first, rest] = frameOf(message);
    if (rest === undefined) return stream.write(first);
    stream.cork();
    stream.write(first);
    const takesMore = stream.write(rest);
    stream.uncork();
    return takesMore;
  }

  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
  }

  end(): void {
    this.#finish(STATUS_OK);
  }

  fail(status: StatusName, details: string): void {
    this.#finish({ 'grpc-status': String(grpcStatus[status]), 'grpc-message': encodeURI(details) });
  }

  #onData(piece: Buffer): void {
    // Whatever comes behind our last word is let go.
    if (this.#listener === null || this.#trailers !== null) return;
    this.#frames.add(piece);
    for (let next = this.#frames.next(); next !== null; next = this.#frames.next()) {
      if (typeof next === 'string') return this.#refuse(next);
      this.#listener?.message(next);
    }
  }

  #refuse(problem: FrameProblem): void {
    if (problem === 'compressed')
      this.fail('UNIMPLEMENTED', 'compressed message: only uncompressed ones are understood');
    else this.fail('RESOURCE_EXHAUSTED', `message too large: limit ${this.#maxMessageBytes} bytes`);
    this.#close();
  }

  #isGone(): boolean {
    return this.#trailers !== null || this.#stream.destroyed || this.#stream.closed;
  }

  #finish(trailers: OutgoingHttpHeaders): void {
    if (this.#isGone()) return;
    this.#trailers = trailers;
    if (this.#hasResponded) this.#stream.end();
    else this.#stream.respond({ ...RESPONSE_HEADERS, ...trailers }, { endStream: true });
  }

  #close(): void {
    const listener = this.#listener;
    this.#listener = null;
    listener?.closed();
  }
}

const EVENTS = ['data', 'end', 'drain', 'wantTrailers', 'close'];
const ignore = (): void => undefined;
