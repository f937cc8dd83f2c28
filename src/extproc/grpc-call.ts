/**
 * One bidirectional gRPC call on a stream of node:http2: messages in and out as bytes, and a status at the end.
 *
 * Written by hand because it is most of what a request costs: grpc-js puts interceptors, promises and a second stream, one
 * of objects, around every HTTP/2 stream, which is twice the CPU and twice the garbage (`make bench-extproc`). What a peer
 * gets that keeps to no protocol is gRPC's own (PROTOCOL-HTTP2.md, statuscodes.md). Deliberately not here: compression,
 * which is not announced; metadata; what messages mean.
 */
import { constants, type IncomingHttpHeaders, type OutgoingHttpHeaders, type ServerHttp2Stream } from 'node:http2';
import { status as grpcStatus } from '@grpc/grpc-js';
import type { Clock, Timer } from '../clock.ts';
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
  /** Nothing more can be read: the call is to be failed with this. No message and no half-close follows. */
  broken(breach: Breach): void;
  /** The stream is gone: over in order, or reset. Called once, the last call. */
  closed(): void;
};

/** Why a call cannot go on. */
export type Breach = {
  readonly status: 'INTERNAL' | 'UNIMPLEMENTED' | 'RESOURCE_EXHAUSTED' | 'DEADLINE_EXCEEDED';
  readonly details: string;
  /** The same as one word, from a closed set. */
  readonly reason: string;
};

export type GrpcCallOptions = {
  readonly maxMessageBytes: number;
  readonly clock: Clock;
};

const RESPONSE_HEADERS: OutgoingHttpHeaders = {
  ':status': 200,
  'content-type': 'application/grpc+proto',
};
const STATUS_OK: OutgoingHttpHeaders = { 'grpc-status': '0', 'grpc-message': 'OK' };
/** Compression is refused with it: what may come instead. */
const ACCEPTED: OutgoingHttpHeaders = { 'grpc-accept-encoding': 'identity' };
/** Messages are protobuf, whatever the parameters; `application/grpc-web` is another protocol. */
const CONTENT_TYPE = /^application\/grpc(?:\+proto)?\s*(?:;|$)/i;
const PLAIN_CONTENT_TYPE = 'application/grpc';

/** @param serve called at once, unless the request is no gRPC */
export function acceptGrpcCall(
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  options: GrpcCallOptions,
  serve: (call: GrpcCall) => GrpcCallListener,
): void {
  // A reset is no error of anybody's, and `close` tells it.
  stream.on('error', ignore);
  // Left unread, so that Node ends a stream whose request goes on.
  if (headers[':method'] !== 'POST') {
    stream.respond({ ':status': constants.HTTP_STATUS_METHOD_NOT_ALLOWED, allow: 'POST' }, { endStream: true });
  } else if (!isGrpc(headers['content-type'])) {
    stream.respond({ ':status': constants.HTTP_STATUS_UNSUPPORTED_MEDIA_TYPE }, { endStream: true });
  } else {
    const call = new StreamCall(stream, headers, options);
    call.listen(serve(call), options.clock);
  }
}

/** A class, because a closure per method and request is what the garbage collector then has to do with. */
class StreamCall implements GrpcCall {
  readonly #stream: ServerHttp2Stream;
  readonly #frames: FrameReader;
  readonly #maxMessageBytes: number;
  readonly #encoding: string | undefined;
  readonly #timeout: string | undefined;
  #listener: GrpcCallListener | null = null;
  #deadline: Timer | null = null;
  #hasResponded = false;
  #isBroken = false;
  /** Set once this side has nothing more to send. */
  #trailers: OutgoingHttpHeaders | null = null;

  constructor(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, { maxMessageBytes }: GrpcCallOptions) {
    this.#stream = stream;
    this.#maxMessageBytes = maxMessageBytes;
    this.#frames = new FrameReader(maxMessageBytes);
    this.#encoding = headers['grpc-encoding'] as string | undefined;
    this.#timeout = headers['grpc-timeout'] as string | undefined;
  }

  listen(listener: GrpcCallListener, clock: Clock): void {
    const stream = this.#stream;
    this.#listener = listener;
    stream.on('data', (piece: Buffer) => this.#onData(piece));
    stream.on('end', () => this.#onEnd());
    stream.on('drain', () => this.#listener?.drained());
    stream.on('wantTrailers', () => {
      if (stream.destroyed || stream.closed) return;
      stream.sendTrailers(this.#trailers ?? STATUS_OK);
      this.#dismiss();
    });
    stream.on('close', () => {
      // Node keeps what is left of the stream until the next full collection: it must not keep all of us with it.
      for (const event of EVENTS) stream.removeAllListeners(event);
      this.#close();
    });
    if (this.#timeout !== undefined) this.#startDeadline(this.#timeout, clock);
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
    const stream = this.#stream;
    stream.pause();
    // Reset now, it would not come to its close by itself: nobody reads to its end.
    if (stream.listenerCount('aborted') === 0) stream.on('aborted', () => this.#close());
  }

  resume(): void {
    this.#stream.resume();
  }

  end(): void {
    this.#finish(STATUS_OK);
  }

  fail(status: StatusName, details: string): void {
    const trailers = { 'grpc-status': String(grpcStatus[status]), 'grpc-message': encodeURI(details.toWellFormed()) };
    this.#finish(status === 'UNIMPLEMENTED' ? { ...trailers, ...ACCEPTED } : trailers);
  }

  #onData(piece: Buffer): void {
    if (this.#isDeaf()) return;
    this.#frames.add(piece);
    for (let next = this.#frames.next(); next !== null; next = this.#frames.next()) {
      if (typeof next === 'string') return this.#break(this.#breachOf(next));
      this.#listener?.message(next);
      if (this.#isDeaf()) return;
    }
  }

  #onEnd(): void {
    if (this.#isDeaf()) return;
    if (this.#stream.aborted) this.#close();
    else if (this.#frames.isEmpty()) this.#listener?.halfClosed();
    else this.#break({ status: 'INTERNAL', details: 'the last message is cut off', reason: 'message_cut_off' });
  }

  /** Whatever comes behind our last word is let go. */
  #isDeaf(): boolean {
    return this.#listener === null || this.#isBroken || this.#trailers !== null;
  }

  #break(breach: Breach): void {
    this.#isBroken = true;
    this.#listener?.broken(breach);
  }

  #breachOf(problem: FrameProblem): Breach {
    switch (problem) {
      case 'too_large': {
        const details = `message too large: limit ${this.#maxMessageBytes} bytes`;
        return { status: 'RESOURCE_EXHAUSTED', details, reason: 'message_too_large' };
      }
      case 'compressed': {
        const encoding = this.#encoding ?? 'identity';
        const details = `compressed message: got grpc-encoding ${encoding}, expected uncompressed ones`;
        return {
          status: encoding === 'identity' ? 'INTERNAL' : 'UNIMPLEMENTED',
          details,
          reason: 'message_compressed',
        };
      }
    }
  }

  #startDeadline(timeout: string, clock: Clock): void {
    const delayMs = timeoutMs(timeout);
    if (delayMs === null) {
      const details = `grpc-timeout: got ${timeout.slice(0, 40)}, expected at most 8 digits and one of H, M, S, m, u, n`;
      this.#break({ status: 'INTERNAL', details, reason: 'bad_timeout' });
    } else if (delayMs <= MAX_TIMER_MS) {
      const over: Breach = { status: 'DEADLINE_EXCEEDED', details: 'deadline exceeded', reason: 'client_deadline' };
      this.#deadline = clock.after(delayMs, () => {
        if (!this.#isDeaf()) this.#break(over);
      });
    }
  }

  #isGone(): boolean {
    return this.#trailers !== null || this.#stream.destroyed || this.#stream.closed;
  }

  #finish(trailers: OutgoingHttpHeaders): void {
    if (this.#isGone()) return;
    this.#trailers = trailers;
    // A stream that is not being read has no end.
    this.#stream.resume();
    if (this.#hasResponded) {
      this.#stream.end();
    } else {
      this.#stream.respond({ ...RESPONSE_HEADERS, ...trailers }, { endStream: true });
      this.#dismiss();
    }
  }

  /** The answer is whole: a peer that goes on sending is asked not to (RFC 9113, 8.1). */
  #dismiss(): void {
    const stream = this.#stream;
    if (stream.readableEnded) return;
    // A turn later, or Node throws away the trailers it has just been given.
    setImmediate(() => {
      if (!stream.readableEnded && !stream.closed) stream.close(constants.NGHTTP2_NO_ERROR);
    });
  }

  #close(): void {
    const listener = this.#listener;
    this.#listener = null;
    this.#deadline?.cancel();
    if (listener === null) return;
    listener.closed();
    this.#stream.resume();
  }
}

function isGrpc(contentType: string | undefined): boolean {
  return contentType === PLAIN_CONTENT_TYPE || CONTENT_TYPE.test(contentType ?? '');
}

/** @returns milliseconds, null for what is no timeout of gRPC */
function timeoutMs(timeout: string): number | null {
  const parts = /^(\d{1,8})([HMSmun])$/.exec(timeout);
  return parts === null ? null : Number(parts[1]) * UNIT_MS[parts[2] as keyof typeof UNIT_MS];
}

const UNIT_MS = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 } as const;
/** What timers can wait, 24 days; a call beyond it has no deadline. */
const MAX_TIMER_MS = 2 ** 31 - 1;

const EVENTS = ['data', 'end', 'drain', 'wantTrailers', 'aborted', 'close'];
const ignore = (): void => undefined;
