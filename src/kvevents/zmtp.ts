/**
 * ZMTP 3 connections of a SUB and of a DEALER, over Node's own sockets: the thread that applies a batch reads it too, so a
 * message costs no other thread, no wake-up and no copy, and what is not read yet waits at the publisher. Connects once;
 * when to try again is the caller's. Nothing is queued for sending: what is sent are requests and heartbeats.
 */
import { connect, type Socket } from 'node:net';
import type { Clock } from '../clock.ts';
import { WarmpathError } from '../errors.ts';
import { COMMAND, createZmtpReader, GREETING_BYTES, LONG, MORE } from './zmtp-reader.ts';

export type ZmtpHandlers = {
  /** The handshake is over: a SUB has subscribed to everything. */
  onUp(): void;
  /** Frames are valid until the call returns. */
  onMessage(frames: readonly Buffer[]): void;
  /** The connection has ended or never came about; nothing is called after it. @param problem null: the peer is just gone */
  onDown(problem: WarmpathError | null): void;
};

export type ZmtpConnection = {
  /** Only while it is up. */
  send(frames: readonly Buffer[]): void;
  /** off: nothing more is read until on, and the peer has to wait. */
  reading(wanted: 'on' | 'off'): void;
  /** To be called several times a second: keeps the limits on silence. */
  tick(): void;
  /** Nothing is called after it. */
  close(): void;
};

export type ZmtpRole = 'SUB' | 'DEALER';

export type Zmtp = {
  /** @throws WarmpathError `kv_stream_failed` for an endpoint that cannot be dialled */
  connect(endpoint: string, role: ZmtpRole, handlers: ZmtpHandlers): ZmtpConnection;
  /** The same over a connection that a peer has made. */
  accept(socket: Socket, role: ZmtpRole, handlers: ZmtpHandlers): ZmtpConnection;
};

/** From the attempt to connect to the end of the handshake. */
const HANDSHAKE_MS = 5000;
/** Silence after which the peer is asked for a sign of life, and for how long it may then be silent. */
const PING_AFTER_MS = 2000;
const PONG_WITHIN_MS = 6000;
/** When this thread was busy for so long, what the peer has sent may not be read yet. */
const BUSY_MS = 1000;
const TCP_KEEPALIVE_MS = 10_000;
/** What one source gets of a turn: so much to read, so long to deal with it. If it has more, others come first. */
const READ_BYTES = 64 * 1024;
const MAX_TURN_MS = 4;
/** Somewhat above what the decoder accepts. */
const MAX_MESSAGE_BYTES = 72 * 1024 * 1024;
/** Whoever may connect may begin a message of that size and never end it. */
const MAX_KEPT_BYTES = 256 * 1024 * 1024;
/** Answers to heartbeats that the peer asks for and does not read. */
const MAX_UNSENT_BYTES = 64 * 1024;
/** With a time to live of 0: libzmq hangs up on who asked once, with another one, and had no reason to ask again within it. */
const PING = commandFrame('PING', Buffer.from([0, 0]));
const EMPTY = Buffer.alloc(0);
const SUBSCRIBE_ALL = messageFrames([Buffer.from([1])]);
const GREETING = greeting();

/** Of all connections together. */
type Memory = { keptBytes: number; readonly maxKeptBytes: number };

const PEERS: Readonly<Record<ZmtpRole, readonly string[]>> = {
  SUB: ['PUB', 'XPUB'],
  DEALER: ['ROUTER', 'REP', 'DEALER'],
};

/** @param maxKeptBytes of messages that have begun and not ended, over all connections; who goes beyond it is hung up on */
export function createZmtp(clock: Clock, maxKeptBytes = MAX_KEPT_BYTES): Zmtp {
  // For all connections: what is read into it is dealt with, or copied, before anything else is read.
  const readBuffer = Buffer.allocUnsafeSlow(READ_BYTES);
  const memory: Memory = { keptBytes: 0, maxKeptBytes };
  return {
    connect(endpoint, role, handlers) {
      const address = parseEndpoint(endpoint);
      let receive: (chunk: Buffer) => boolean = () => true;
      const socket = connect({
        ...address,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: TCP_KEEPALIVE_MS,
        onread: { buffer: readBuffer, callback: (nBytes) => receive(readBuffer.subarray(0, nBytes)) },
      });
      const { connection, read } = follow(clock, memory, socket, role, handlers);
      receive = read;
      socket.once('connect', () => socket.write(GREETING));
      return connection;
    },
    accept(socket, role, handlers) {
      const { connection, read } = follow(clock, memory, socket, role, handlers);
      socket.setKeepAlive(true, TCP_KEEPALIVE_MS);
      socket.on('data', (chunk) => {
        if (!read(chunk)) socket.pause();
      });
      socket.write(GREETING);
      return connection;
    },
  };
}

/** @returns `read`, which says whether to go on reading now */
function follow(
  clock: Clock,
  memory: Memory,
  socket: Socket,
  role: ZmtpRole,
  handlers: ZmtpHandlers,
): { connection: ZmtpConnection; read: (chunk: Buffer) => boolean } {
  const startedMs = clock.nowMs();
  let isOver = false;
  let isUp = false;
  let isHalted = false;
  let isHeard = false;
  let isAsked = false;
  let heardMs = startedMs;
  let tickedMs = startedMs;
  let turnEndsMs = 0;
  let keptBytes = 0;

  const noteKept = (nBytes: number): void => {
    memory.keptBytes += nBytes - keptBytes;
    keptBytes = nBytes;
  };

  const close = (): void => {
    isOver = true;
    noteKept(0);
    socket.destroy();
  };

  const end = (problem: WarmpathError | null): void => {
    if (isOver) return;
    close();
    handlers.onDown(problem);
  };

  const reader = createZmtpReader(
    {
      onGreeting: () => void socket.write(readyFrame(role)),
      onReady(socketType) {
        if (!PEERS[role].includes(socketType)) {
          throw new WarmpathError('peer_failed', `a ${socketType} socket, expected ${PEERS[role].join(' or ')}`);
        }
        if (role === 'SUB') socket.write(SUBSCRIBE_ALL);
        isUp = true;
        if (!isOver) handlers.onUp();
      },
      onMessage(frames) {
        if (!isOver) handlers.onMessage(frames);
      },
      isTurnOver: () => isHalted || clock.nowMs() > turnEndsMs,
      onPing(context) {
        if (socket.writableLength > MAX_UNSENT_BYTES) {
          throw new WarmpathError('peer_failed', 'it asks for signs of life and does not read them');
        }
        socket.write(commandFrame('PONG', context));
      },
    },
    MAX_MESSAGE_BYTES,
  );

  /** @returns whether messages wait that were read already */
  const push = (chunk: Buffer): boolean => {
    turnEndsMs = clock.nowMs() + MAX_TURN_MS;
    try {
      if (isOver) return false;
      const waits = reader.push(chunk);
      if (isOver) return false;
      noteKept(reader.keptBytes());
      if (memory.keptBytes <= memory.maxKeptBytes) return waits;
      end(new WarmpathError('peer_failed', `unfinished messages take more than ${memory.maxKeptBytes} bytes`));
      return false;
    } catch (error) {
      if (!(error instanceof WarmpathError)) throw error;
      end(error);
      return false;
    }
  };

  const read = (chunk: Buffer): boolean => {
    isHeard = true;
    const waits = push(chunk);
    if (!waits && !isHalted && chunk.byteLength < READ_BYTES) return true;
    setImmediate(goOn);
    return false;
  };

  const goOn = (): void => {
    if (isOver || isHalted) return;
    if (push(EMPTY)) setImmediate(goOn);
    else if (!isHalted) socket.resume();
  };

  socket.on('error', () => end(null));
  socket.on('end', () => end(null));
  socket.on('close', () => end(null));

  const connection: ZmtpConnection = {
    send(frames) {
      if (isUp && !isOver) socket.write(messageFrames(frames));
    },
    reading(wanted) {
      if (isHalted === (wanted === 'off')) return;
      isHalted = wanted === 'off';
      if (isHalted) socket.pause();
      else setImmediate(goOn);
    },
    tick() {
      if (isOver) return;
      const nowMs = clock.nowMs();
      if (isHeard || isHalted || nowMs - tickedMs > BUSY_MS) {
        heardMs = nowMs;
        isHeard = isAsked = false;
      }
      tickedMs = nowMs;
      const silentMs = nowMs - heardMs;
      if (isUp ? silentMs > PING_AFTER_MS + PONG_WITHIN_MS : nowMs - startedMs > HANDSHAKE_MS) end(null);
      else if (isUp && silentMs > PING_AFTER_MS && !isAsked) {
        isAsked = true;
        socket.write(PING);
      }
    },
    close,
  };
  return { connection, read };
}

/** `tcp://host:port`, IPv6 in brackets, or `ipc://path`. */
function parseEndpoint(endpoint: string): { host: string; port: number } | { path: string } {
  const tcp = /^tcp:\/\/(?:\[([^\]]+)\]|([^:[\]]+)):(\d+)$/.exec(endpoint);
  const port = Number(tcp?.[3]);
  if (tcp !== null && port > 0 && port < 65_536) return { host: (tcp[1] ?? tcp[2])!, port };
  const path = /^ipc:\/\/(.+)$/.exec(endpoint)?.[1];
  if (path !== undefined) return { path };
  throw new WarmpathError('kv_stream_failed', `not an endpoint: ${JSON.stringify(endpoint)}, expected tcp://HOST:PORT`);
}

/** Version 3.0: then subscriptions are messages, which every ZMTP 3 publisher understands. */
function greeting(): Buffer {
  const bytes = Buffer.alloc(GREETING_BYTES);
  bytes[0] = 0xff;
  bytes[9] = 0x7f;
  bytes[10] = 3;
  bytes.write('NULL', 12, 'latin1');
  return bytes;
}

function readyFrame(role: ZmtpRole): Buffer {
  const properties = [property('Socket-Type', role), ...(role === 'DEALER' ? [property('Identity', '')] : [])];
  return commandFrame('READY', Buffer.concat(properties));
}

function property(name: string, value: string): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(value.length);
  return Buffer.concat([Buffer.from([name.length]), Buffer.from(name), length, Buffer.from(value)]);
}

function commandFrame(name: string, body: Buffer): Buffer {
  return frame(COMMAND, Buffer.concat([Buffer.from([name.length]), Buffer.from(name), body]));
}

function messageFrames(frames: readonly Buffer[]): Buffer {
  return Buffer.concat(frames.map((body, i) => frame(i < frames.length - 1 ? MORE : 0, body)));
}

function frame(flags: number, body: Buffer): Buffer {
  if (body.byteLength < 256) return Buffer.concat([Buffer.from([flags, body.byteLength]), body]);
  const header = Buffer.alloc(9);
  header[0] = flags | LONG;
  header.writeUInt32BE(body.byteLength, 5);
  return Buffer.concat([header, body]);
}
