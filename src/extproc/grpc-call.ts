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
  const frames = new FrameReader(maxMessageBytes);
  let hasResponded = false;
  /** Set once this side has nothing more to send. */
  let trailers: OutgoingHttpHeaders | null = null;
  let listener: GrpcCallListener | null = null;

  // A reset is no error of anybody's, and `close` tells it.
  stream.on('error', () => undefined);
  if (headers['content-type']?.startsWith('application/grpc') !== true) {
    stream.respond({ ':status': UNSUPPORTED_MEDIA_TYPE }, { endStream: true });
    stream.resume();
    return;
  }

  const isGone = (): boolean => trailers !== null || stream.destroyed || stream.closed;

  function finish(status: OutgoingHttpHeaders): void {
    if (isGone()) return;
    trailers = status;
    if (hasResponded) stream.end();
    else stream.respond({ ...RESPONSE_HEADERS, ...status }, { endStream: true });
  }

  function write(message: Buffer): boolean {
    if (isGone()) return true;
    if (!hasResponded) {
      hasResponded = true;
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

  function fail(status: StatusName, details: string): void {
    finish({ 'grpc-status': String(grpcStatus[status]), 'grpc-message': encodeURI(details) });
  }

  function close(): void {
    const told = listener;
    listener = null;
    told?.closed();
  }

  function refuse(problem: FrameProblem): void {
    if (problem === 'compressed') fail('UNIMPLEMENTED', 'compressed message: only uncompressed ones are understood');
    else fail('RESOURCE_EXHAUSTED', `message too large: limit ${maxMessageBytes} bytes`);
    close();
  }

  listener = serve({
    write,
    pause: () => void stream.pause(),
    resume: () => void stream.resume(),
    end: () => finish(STATUS_OK),
    fail,
  });
  stream.on('data', (piece: Buffer) => {
    // Whatever comes behind our last word is let go.
    if (listener === null || trailers !== null) return;
    frames.add(piece);
    for (let next = frames.next(); next !== null; next = frames.next()) {
      if (typeof next === 'string') return refuse(next);
      listener?.message(next);
    }
  });
  stream.on('end', () => listener?.halfClosed());
  stream.on('drain', () => listener?.drained());
  stream.on('wantTrailers', () => {
    if (!stream.destroyed && !stream.closed) stream.sendTrailers(trailers ?? STATUS_OK);
  });
  stream.on('close', close);
}
