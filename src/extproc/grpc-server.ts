/**
 * A grpc-js server with the HTTP/2 settings an Envoy needs, and binding with one clear error. The only file that reaches
 * past grpc-js' public interface: it has no option for stream resets and receive windows. What is reached for is asserted
 * here and proven in test/integration/extproc.test.ts, so an update that moves it fails loudly.
 */
import { strict as assert } from 'node:assert';
import type { Http2Server, IncomingHttpHeaders, ServerHttp2Session, ServerHttp2Stream, Settings } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { logVerbosity, Server, setLogVerbosity, type ServerCredentials } from '@grpc/grpc-js';
import { errorText, WarmpathError } from '../errors.ts';
import { acceptGrpcCall, type GrpcCall, type GrpcCallListener, type GrpcCallOptions } from './grpc-call.ts';

export type GrpcServerOptions = {
  /** Must be above the largest body Envoy may send, or a large request ends in status 8 instead of a 413. */
  readonly maxReceiveBytes: number;
  /**
   * Announced to Envoy. Its own limit must be lower: Node counts a stream until it has forgotten it, and here resets those
   * that begin in the same moment (ENHANCE_YOUR_CALM).
   */
  readonly maxStreamsPerConnection: number;
};

/**
 * Envoy resets every side stream, and Node closes a connection after about 1,000 quick resets, with all streams on it.
 * These budgets (streams, and streams per second) are out of reach; the peer is our own data plane.
 */
const STREAM_RESET_BURST = 1_000_000;
const STREAM_RESET_RATE = 1_000_000;

/** A body of this size needs no window update on its stream; HTTP/2's default would be 64 KiB. */
const STREAM_WINDOW_BYTES = 1024 * 1024;
/** All streams of a connection together. */
const CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024;

const KEEPALIVE_TIME_MS = 30_000;
const KEEPALIVE_TIMEOUT_MS = 10_000;

/** Calls of one method that grpc-js never sees. */
export type OwnCalls = GrpcCallOptions & {
  readonly path: string;
  serve(call: GrpcCall): GrpcCallListener;
};

type Internals = {
  commonServerOptions?: { settings?: Settings; streamResetBurst?: number; streamResetRate?: number };
  http2Servers?: Map<Http2Server, unknown>;
};

export function createGrpcServer(options: GrpcServerOptions): Server {
  const server = new Server({
    'grpc.max_receive_message_length': options.maxReceiveBytes,
    'grpc.max_send_message_length': -1,
    'grpc.max_concurrent_streams': options.maxStreamsPerConnection,
    // A data plane that vanished without a word must not hold its reservations for ever.
    'grpc.keepalive_time_ms': KEEPALIVE_TIME_MS,
    'grpc.keepalive_timeout_ms': KEEPALIVE_TIMEOUT_MS,
    'grpc.enable_channelz': 0,
  });
  const { commonServerOptions } = server as unknown as Internals;
  assert(commonServerOptions !== undefined, 'grpc-js no longer keeps its HTTP/2 options where they can be extended');
  commonServerOptions.streamResetBurst = STREAM_RESET_BURST;
  commonServerOptions.streamResetRate = STREAM_RESET_RATE;
  commonServerOptions.settings = { ...commonServerOptions.settings, initialWindowSize: STREAM_WINDOW_BYTES };
  return server;
}

/**
 * @param listen `host:port`, port 0 for any free one
 * @param key configuration key, named in the error
 * @param calls those that grpc-js never sees; `onSession` is called with every new connection, before its first stream
 * @returns the address bound
 */
export async function bind(
  server: Server,
  listen: string,
  credentials: ServerCredentials,
  key: string,
  { calls, onSession }: { readonly calls?: OwnCalls; onSession?(session: ServerHttp2Session): void } = {},
): Promise<string> {
  // grpc-js writes its own view of a failed bind to the console; the error below says it better and once.
  setLogVerbosity(logVerbosity.NONE);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(listen, credentials, (error, bound) => {
      if (error === null) resolve(bound);
      else reject(bindError(error, listen, key));
    });
  });
  const { http2Servers } = server as unknown as Internals;
  assert(http2Servers !== undefined, 'grpc-js no longer keeps its HTTP/2 servers where their sessions can be seen');
  for (const http2Server of http2Servers.keys()) {
    // Envoy's gRPC health checks name no protocol in their TLS handshake, and Node takes that for HTTP/1.1. Nothing but
    // HTTP/2 is spoken here.
    http2Server.prependListener('secureConnection', (socket: TLSSocket) => {
      if (socket.alpnProtocol === false) socket.alpnProtocol = 'h2';
    });
    http2Server.on('session', (session: ServerHttp2Session) => {
      if (session.destroyed) return;
      session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
      if (calls !== undefined) takeCalls(session, http2Server, calls);
      onSession?.(session);
    });
  }
  return `${listen.slice(0, listen.lastIndexOf(':'))}:${port}`;
}

/** Streams for the path are served here, all others by whom the server had before. */
function takeCalls(session: ServerHttp2Session, http2Server: Http2Server, calls: OwnCalls): void {
  // What Node's own listener does, and nothing else: it hands every stream on to the server.
  session.removeAllListeners('stream');
  session.on('stream', (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, ...more: unknown[]) => {
    if (headers[':path'] === calls.path) acceptGrpcCall(stream, headers, calls, calls.serve);
    else http2Server.emit('stream', stream, headers, ...more);
  });
}

function bindError(error: Error, listen: string, key: string): WarmpathError {
  const text = errorText(error);
  if (text.includes('EADDRINUSE')) {
    return new WarmpathError('address_in_use', `${key}: ${listen} is already in use`, { cause: error });
  }
  return new WarmpathError('io_failed', `${key}: cannot listen on ${listen}: ${text}`, { cause: error });
}
