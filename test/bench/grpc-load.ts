/**
 * Load for an ext_proc server, as an Envoy makes it and at a fraction of a client library's cost: HTTP/2 frames written by
 * hand on a few connections, header blocks without a table, messages encoded beforehand. Only for servers on loopback that
 * behave; anything unexpected on the wire is an error of the run.
 */
import { connect, type Socket } from 'node:net';

export type Exchange = {
  readonly mode: 'BUFFERED' | 'FULL_DUPLEX_STREAMED';
  /** gRPC frames: the headers message, then those of the body. */
  readonly headers: Buffer;
  readonly body: Buffer;
  /** Payload the server has to give back before the request is answered. */
  readonly echoBytes: number;
  /** Sent once the request is answered: messages of the response, each to be answered. */
  readonly response: { readonly frames: Buffer; readonly nMessages: number } | null;
};

export type LoadConnection = {
  /** Resolves at the end of the stream with the time of the last answer (`performance.now()`); rejects when it fails. */
  request(exchange: Exchange): Promise<number>;
  close(): void;
};

/** One gRPC frame around an encoded message. */
export function grpcFrame(message: Uint8Array): Buffer {
  const frame = Buffer.allocUnsafe(message.length + 5);
  frame.writeUInt8(0, 0);
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, 5);
  return frame;
}

const DATA = 0;
const HEADERS = 1;
const RST_STREAM = 3;
const SETTINGS = 4;
const PING = 6;
const GOAWAY = 7;
const WINDOW_UPDATE = 8;
const END_STREAM = 1;
const ACK = 1;
const END_HEADERS = 4;
const FRAME_BYTES = 16_384;
const MAX_WINDOW = 2 ** 31 - 1;
const INITIAL_WINDOW_SETTING = 4;

type Stream = {
  readonly id: number;
  readonly exchange: Exchange;
  window: number;
  nMessages: number;
  nEchoBytes: number;
  /** Of the message being received: bytes of its prefix seen, its length, and what is missing of it. */
  prefixBytes: number;
  messageBytes: number;
  leftBytes: number;
  answeredAtMs: number;
  nResponsesLeft: number;
  resolve(answeredAtMs: number): void;
  reject(error: Error): void;
};

export async function openLoadConnection(address: string): Promise<LoadConnection> {
  const colon = address.lastIndexOf(':');
  const socket: Socket = connect({ host: address.slice(0, colon), port: Number(address.slice(colon + 1)) });
  socket.setNoDelay(true);
  const headerBlock = requestHeaderBlock(address);
  const streams = new Map<number, Stream>();
  const waiting: { stream: Stream; bytes: Buffer }[] = [];
  let nextId = 1;
  let connectionWindow = 65_535;
  let streamWindow = 65_535;
  let nUnacknowledged = 0;
  let rest: Buffer = Buffer.alloc(0);
  let ready: () => void = () => undefined;
  const isReady = new Promise<void>((resolve) => (ready = resolve));

  function send(stream: Stream, bytes: Buffer): void {
    if (waiting.length > 0) return void waiting.push({ stream, bytes });
    const left = writeData(stream, bytes);
    if (left !== null) waiting.push({ stream, bytes: left });
  }

  /** As much as the windows allow; what is left waits. */
  function writeData(stream: Stream, bytes: Buffer): Buffer | null {
    let at = 0;
    while (at < bytes.length) {
      const n = Math.min(FRAME_BYTES, bytes.length - at, connectionWindow, stream.window);
      if (n <= 0) return bytes.subarray(at);
      socket.write(frameHeader(n, DATA, 0, stream.id));
      socket.write(bytes.subarray(at, at + n));
      connectionWindow -= n;
      stream.window -= n;
      at += n;
    }
    return null;
  }

  function flush(): void {
    for (let i = 0; i < waiting.length;) {
      const { stream, bytes } = waiting[i]!;
      const left = streams.has(stream.id) ? writeData(stream, bytes) : null;
      if (left === null) waiting.splice(i, 1);
      else waiting[i++] = { stream, bytes: left };
      if (connectionWindow <= 0) return;
    }
  }

  function onData(chunk: Buffer): void {
    const data = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk;
    let at = 0;
    socket.cork();
    while (at + 9 <= data.length) {
      const length = data.readUIntBE(at, 3);
      if (at + 9 + length > data.length) break;
      onFrame(data[at + 3]!, data[at + 4]!, data.readUInt32BE(at + 5), data.subarray(at + 9, at + 9 + length));
      at += 9 + length;
    }
    rest = data.subarray(at);
    socket.uncork();
  }

  function onFrame(type: number, flags: number, id: number, payload: Buffer): void {
    if (type === SETTINGS && (flags & ACK) === 0) {
      for (let at = 0; at + 6 <= payload.length; at += 6) {
        if (payload.readUInt16BE(at) === INITIAL_WINDOW_SETTING) streamWindow = payload.readUInt32BE(at + 2);
      }
      socket.write(frameHeader(0, SETTINGS, ACK, 0));
      return ready();
    }
    if (type === PING && (flags & ACK) === 0) {
      socket.write(Buffer.concat([frameHeader(8, PING, ACK, 0), payload]));
    } else if (type === WINDOW_UPDATE) {
      if (id === 0) connectionWindow += payload.readUInt32BE(0);
      else if (streams.has(id)) streams.get(id)!.window += payload.readUInt32BE(0);
      flush();
    } else if (type === GOAWAY) {
      fail(new Error(`GOAWAY with code ${payload.readUInt32BE(4)}`));
    } else if (type === DATA) {
      acknowledge(payload.length);
      const stream = streams.get(id);
      if (stream !== undefined) onAnswer(stream, payload);
    } else if (type === RST_STREAM) {
      end(id, new Error(`stream reset with code ${payload.readUInt32BE(0)}`));
    }
    if (type === HEADERS && (flags & END_STREAM) !== 0) end(id, null);
  }

  function acknowledge(nBytes: number): void {
    nUnacknowledged += nBytes;
    if (nUnacknowledged < 64 * 1024 * 1024) return;
    socket.write(windowUpdate(nUnacknowledged));
    nUnacknowledged = 0;
  }

  function onAnswer(stream: Stream, payload: Buffer): void {
    for (let at = 0; at < payload.length;) {
      if (stream.prefixBytes < 5) {
        if (stream.prefixBytes > 0) stream.messageBytes = stream.messageBytes * 256 + payload[at]!;
        stream.prefixBytes += 1;
        at += 1;
        if (stream.prefixBytes === 5) stream.leftBytes = stream.messageBytes;
      } else {
        const n = Math.min(stream.leftBytes, payload.length - at);
        stream.leftBytes -= n;
        at += n;
      }
      if (stream.prefixBytes === 5 && stream.leftBytes === 0) onMessage(stream);
    }
  }

  function onMessage(stream: Stream): void {
    const { exchange } = stream;
    stream.nMessages += 1;
    stream.nEchoBytes += stream.messageBytes;
    stream.prefixBytes = 0;
    stream.messageBytes = 0;
    if (exchange.mode === 'BUFFERED' && stream.nMessages === 1) return send(stream, exchange.body);
    if (stream.nMessages < 2 || stream.nEchoBytes < exchange.echoBytes) return;
    const { response } = exchange;
    if (stream.answeredAtMs === 0) {
      stream.answeredAtMs = performance.now();
      stream.nResponsesLeft = response?.nMessages ?? 0;
      if (response !== null) return send(stream, response.frames);
    } else {
      stream.nResponsesLeft -= 1;
    }
    if (stream.nResponsesLeft > 0) return;
    socket.write(frameHeader(0, DATA, END_STREAM, stream.id));
  }

  function end(id: number, error: Error | null): void {
    const stream = streams.get(id);
    if (stream === undefined) return;
    streams.delete(id);
    if (error !== null) stream.reject(error);
    else if (stream.answeredAtMs === 0) stream.reject(new Error('stream ended without an answer'));
    else stream.resolve(stream.answeredAtMs);
  }

  function fail(error: Error): void {
    for (const id of [...streams.keys()]) end(id, error);
  }

  socket.on('data', onData);
  socket.on('error', fail);
  socket.on('close', () => fail(new Error('connection closed')));
  socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
  const settings = Buffer.alloc(6);
  settings.writeUInt16BE(INITIAL_WINDOW_SETTING, 0);
  settings.writeUInt32BE(MAX_WINDOW, 2);
  socket.write(Buffer.concat([frameHeader(6, SETTINGS, 0, 0), settings, windowUpdate(MAX_WINDOW - 65_535)]));
  await isReady;

  return {
    request: (exchange) =>
      new Promise((resolve, reject) => {
        const stream: Stream = {
          id: nextId,
          exchange,
          window: streamWindow,
          nMessages: 0,
          nEchoBytes: 0,
          prefixBytes: 0,
          messageBytes: 0,
          leftBytes: 0,
          answeredAtMs: 0,
          nResponsesLeft: 0,
          resolve,
          reject,
        };
        nextId += 2;
        streams.set(stream.id, stream);
        socket.cork();
        socket.write(frameHeader(headerBlock.length, HEADERS, END_HEADERS, stream.id));
        socket.write(headerBlock);
        send(stream, exchange.headers);
        if (exchange.mode === 'FULL_DUPLEX_STREAMED') send(stream, exchange.body);
        socket.uncork();
      }),
    close: () => void socket.destroy(),
  };
}

function frameHeader(length: number, type: number, flags: number, id: number): Buffer {
  const header = Buffer.allocUnsafe(9);
  header.writeUIntBE(length, 0, 3);
  header[3] = type;
  header[4] = flags;
  header.writeUInt32BE(id, 5);
  return header;
}

function windowUpdate(nBytes: number): Buffer {
  const increment = Buffer.allocUnsafe(4);
  increment.writeUInt32BE(nBytes, 0);
  return Buffer.concat([frameHeader(4, WINDOW_UPDATE, 0, 0), increment]);
}

/** HPACK (RFC 7541) literals without indexing, so that one block serves every stream. */
function requestHeaderBlock(authority: string): Buffer {
  const text = (value: string): Buffer => Buffer.concat([Buffer.from([value.length]), Buffer.from(value)]);
  const literal = (name: string, value: string): Buffer => Buffer.concat([Buffer.from([0]), text(name), text(value)]);
  return Buffer.concat([
    // Indexed: `:method: POST`, `:scheme: http`.
    Buffer.from([0x83, 0x86]),
    literal(':path', '/envoy.service.ext_proc.v3.ExternalProcessor/Process'),
    literal(':authority', authority),
    literal('te', 'trailers'),
    literal('content-type', 'application/grpc'),
  ]);
}
