/** What SUB and DEALER sockets of an event source have in common: frames, socket options, and taking turns. */

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
} as const;

/** Doubles after every failed attempt; drawn per socket, since ZMQ itself adds no jitter. */
function reconnect(random: () => number): { reconnectInterval: number; reconnectMaxInterval: number } {
  return {
    reconnectInterval: Math.round(60 + 60 * random()),
    reconnectMaxInterval: Math.round(700 + 300 * random()),
  };
}

export function subscriberOptions(endpoint: string, random: () => number = Math.random): object {
  return { ...COMMON, ...reconnect(random), ipv6: endpoint.includes('[') };
}

export function dealerOptions(endpoint: string, random: () => number = Math.random): object {
  return { ...COMMON, ...reconnect(random), ipv6: endpoint.includes('['), sendTimeout: 1000 };
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
