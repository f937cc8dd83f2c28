/** Real ZMQ clients of a KV event stream, as plain as they can be: what they receive is what was sent. */
import { setTimeout as delay } from 'node:timers/promises';
import { Dealer, Subscriber } from 'zeromq';

export type LiveStream = {
  /** Messages so far, frame by frame. */
  readonly messages: readonly (readonly Buffer[])[];
  /** Resolves when `n` messages are there; rejects after 5 s. */
  untilCount(n: number): Promise<void>;
  close(): void;
};

/** Resolves when the subscription is established: nothing published from then on is missed. */
export async function openLiveStream(endpoint: string): Promise<LiveStream> {
  const socket = new Subscriber({ receiveHighWaterMark: 0, linger: 0 });
  const messages: Buffer[][] = [];
  let isConnected = false;
  socket.events.on('handshake', () => {
    isConnected = true;
  });
  socket.subscribe('');
  socket.connect(endpoint);
  void (async () => {
    for await (const frames of socket) messages.push(frames);
  })();
  await until(() => isConnected, `a handshake with ${endpoint}`);
  // The subscription travels after the handshake.
  await delay(20);
  return {
    messages,
    untilCount: (n) => until(() => messages.length >= n, `${n} messages, got ${messages.length}`),
    close: () => socket.close(),
  };
}

/** Sends one request and gives all replies up to and including the end marker, or until none came for `waitMs`. */
export async function askReplay(endpoint: string, request: readonly Buffer[], waitMs = 2000): Promise<Buffer[][]> {
  const socket = new Dealer({ receiveHighWaterMark: 0, receiveTimeout: waitMs, linger: 0 });
  socket.connect(endpoint);
  const replies: Buffer[][] = [];
  try {
    await socket.send([...request]);
    for (;;) {
      const reply = await socket.receive();
      replies.push(reply);
      if (reply.at(-1)!.length === 0) return replies;
    }
  } catch (error) {
    if ((error as { code?: string }).code === 'EAGAIN') return replies;
    throw error;
  } finally {
    socket.close();
  }
}

/** `["", seq]` as vLLM expects it. */
export function replayRequest(fromSeq: bigint): Buffer[] {
  const seq = Buffer.alloc(8);
  seq.writeBigUInt64BE(fromSeq);
  return [Buffer.alloc(0), seq];
}

/** Polls in short steps; rejects after 5 s with what was waited for. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const endMs = performance.now() + 5000;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`Waited 5000 ms for ${what}`);
    await delay(2);
  }
}
