/** What SUB and DEALER sockets of an event source have in common: frames, socket options, and taking turns. */
import { Context } from 'zeromq';

/** @returns the big-endian sequence number, null for a frame that is none */
export function readSeq(frame: Buffer): bigint | null {
  return frame.byteLength === 8 ? frame.readBigUInt64BE() : null;
}

export function seqFrame(seq: bigint): Buffer {
  const frame = Buffer.alloc(8);
  frame.writeBigUInt64BE(seq);
  return frame;
}

/** Somewhat above what the decoder accepts; a peer that sends more is disconnected before it is taken into memory. */
const MAX_MESSAGE_BYTES = 72 * 1024 * 1024;

const COMMON = {
  // The default of 1000 loses bursts, and replays in the middle.
  receiveHighWaterMark: 0,
  linger: 0,
  maxMessageSize: MAX_MESSAGE_BYTES,
  // A half-open connection is silent for hours otherwise.
  tcpKeepalive: 1,
  tcpKeepaliveIdle: 10,
  tcpKeepaliveInterval: 5,
  tcpKeepaliveCount: 3,
  heartbeatInterval: 2000,
  heartbeatTimeout: 6000,
  connectTimeout: 5000,
  handshakeInterval: 5000,
} as const;

/** Each source takes a SUB, its monitor and a DEALER; ZMQ's default of 1023 is used up by 340 of them. */
const MAX_SOCKETS = 16_384;

/** Where the sockets of a thread live. */
export function createZmqContext(): Context {
  return new Context({ maxSockets: MAX_SOCKETS });
}

/** Connects once; when to try again is not left to ZMQ (see redials.ts). */
export function subscriberOptions(endpoint: string, context: Context): object {
  return { ...COMMON, context, reconnectInterval: -1, ipv6: endpoint.includes('[') };
}

/** Publishers dial it. */
export function listenerOptions(endpoint: string, context: Context): object {
  return { ...COMMON, context, ipv6: endpoint.includes('[') };
}

/** Only open while a publisher is connected, so its own attempts to connect are few. */
export function dealerOptions(endpoint: string, context: Context): object {
  return {
    ...COMMON,
    context,
    reconnectInterval: 100,
    reconnectMaxInterval: 1000,
    ipv6: endpoint.includes('['),
    sendTimeout: 1000,
  };
}

const MAX_MESSAGES_PER_TURN = 256;
const MAX_TURN_MS = 4;

/** A socket with much to read gives way to the others now and then. */
export function pauseForOthers(): { isDue(): boolean; taken(): Promise<void> } {
  const startedMs = performance.now();
  let nMessages = 0;
  return {
    isDue: () => ++nMessages >= MAX_MESSAGES_PER_TURN || performance.now() - startedMs > MAX_TURN_MS,
    taken: () => new Promise((resolve) => setImmediate(resolve)),
  };
}
