/**
 * The ZMQ side of a simulated engine: a PUB socket for live batches and a ROUTER that replays buffered ones, with vLLM's
 * frames, limits and silences. One loop serves both, so a long replay delays live batches, as in vLLM.
 */
import { createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { Publisher, Router } from 'zeromq';
import { WarmpathError, errorText } from '../errors.ts';

/** 3: `["", seq, payload]` (vLLM up to 0.25). 4: `["", topic, seq, payload]` (0.26 and later). */
export type ReplayFrames = 3 | 4;

export type EventPublisherOptions = {
  readonly host: string;
  /** 0 picks a free port. */
  readonly port: number;
  readonly replayPort: number;
  readonly replayFrames: ReplayFrames;
  /** Batches kept for replay. */
  readonly bufferSteps: number;
  /** Messages a slow subscriber may lag behind before batches are dropped for it. */
  readonly highWaterMark: number;
};

export type EventPublisher = {
  /**
   * @param topic first frame of live batches
   * @returns the addresses to connect to
   */
  start(topic: string): Promise<{ readonly kvEventsEndpoint: string; readonly replayEndpoint: string }>;
  /** Numbers the payload and sends it soon; never waits. */
  publish(payload: Buffer): void;
  /** The next `n` batches are numbered and kept for replay, but not sent live. */
  dropLiveBatches(n: number): void;
  /** Sends frames that are no batch; takes no sequence number and is not kept. */
  sendRaw(frames: readonly Buffer[]): void;
  /** Replies to later replays that are lost on the way, by sequence number; −1 is the end marker. */
  loseInReplays(isLost: (seq: number) => boolean): void;
  /** Replay requests are read and not answered, until `answerReplays`. */
  ignoreReplays(): void;
  answerReplays(): void;
  /** Batches numbered so far, thus the sequence number of the next one. */
  nextSeq(): number;
  /** Resolves when both sockets are closed and their ports free. */
  stop(): Promise<void>;
};

type Outgoing = { readonly frames: readonly Buffer[] };

const EMPTY = Buffer.alloc(0);
/** Waiting at once; further ones are dropped, as a full ZMQ queue would. */
const MAX_REPLAY_REQUESTS = 1000;
/** The port may then still be taken for a moment; nothing else depends on it. */
const FREE_TIMEOUT_MS = 500;
const FREE_POLL_MS = 2;
const END_SEQ = Buffer.alloc(8, 0xff);

export function createEventPublisher(options: EventPublisherOptions): EventPublisher {
  let topic: Buffer = EMPTY;
  /** Batches by sequence number modulo `bufferSteps`. */
  const kept: Buffer[] = [];
  const outgoing: Outgoing[] = [];
  const replayRequests: { readonly client: Buffer; readonly fromSeq: bigint }[] = [];
  let nextSeq = 0;
  let nToDrop = 0;
  let isLostInReplay = (_seq: number): boolean => false;
  let replays: 'answered' | 'ignored' = 'answered';
  let sockets: { readonly publisher: Publisher; readonly router: Router } | null = null;
  let wake: (() => void) | null = null;
  let loops: Promise<unknown> = Promise.resolve();

  const notify = (): void => {
    wake?.();
    wake = null;
  };

  /** One replay, then one live batch, and so on: vLLM's publisher thread. */
  const sendLoop = async ({ publisher, router }: { publisher: Publisher; router: Router }): Promise<void> => {
    while (sockets !== null) {
      const request = replayRequests.shift();
      if (request !== undefined && replays === 'answered') await replay(router, request.client, request.fromSeq);
      const next = outgoing.shift();
      if (next !== undefined) await publisher.send([...next.frames]);
      if (sockets !== null && outgoing.length === 0 && replayRequests.length === 0) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  };

  const replay = async (router: Router, client: Buffer, fromSeq: bigint): Promise<void> => {
    const oldest = Math.max(0, nextSeq - options.bufferSteps);
    const from = fromSeq < BigInt(oldest) ? oldest : fromSeq > BigInt(nextSeq) ? nextSeq : Number(fromSeq);
    // What is published during the replay is not part of it: the end is fixed here.
    const to = nextSeq;
    for (let seq = from; seq < to && sockets !== null; seq++) {
      if (isLostInReplay(seq)) continue;
      const payload = kept[seq % options.bufferSteps]!;
      const frames = options.replayFrames === 3 ? [] : [topic];
      await router.send([client, EMPTY, ...frames, seqFrame(seq), payload]);
    }
    const frames = options.replayFrames === 3 ? [] : [EMPTY];
    if (sockets === null || isLostInReplay(-1)) return;
    await router.send([client, EMPTY, ...frames, END_SEQ, EMPTY]);
  };

  const receiveLoop = async (router: Router): Promise<void> => {
    for await (const frames of router) {
      const [client, delimiter, seq] = frames;
      // Anything but [identity, "", seq] is dropped without a word.
      if (frames.length !== 3 || client === undefined || delimiter === undefined || seq === undefined) continue;
      if (replayRequests.length >= MAX_REPLAY_REQUESTS) continue;
      // A sequence frame of another length is read as the big-endian number it is.
      replayRequests.push({ client, fromSeq: BigInt(`0x0${seq.toString('hex')}`) });
      notify();
    }
  };

  return {
    async start(topicText) {
      topic = Buffer.from(topicText);
      const publisher = new Publisher({ sendHighWaterMark: options.highWaterMark, linger: 0 });
      // The ROUTER keeps ZMQ's default high-water mark of 1000: a slow reader of a long replay loses messages.
      const router = new Router({ linger: 0 });
      try {
        await bind(publisher, options.host, options.port);
        await bind(router, options.host, options.replayPort);
      } catch (error) {
        publisher.close();
        router.close();
        throw error;
      }
      sockets = { publisher, router };
      loops = Promise.allSettled([sendLoop(sockets), receiveLoop(router)]);
      return { kvEventsEndpoint: publisher.lastEndpoint!, replayEndpoint: router.lastEndpoint! };
    },

    publish(payload) {
      const seq = nextSeq++;
      kept[seq % options.bufferSteps] = payload;
      if (nToDrop > 0) {
        nToDrop--;
        return;
      }
      outgoing.push({ frames: [topic, seqFrame(seq), payload] });
      notify();
    },

    dropLiveBatches(n) {
      nToDrop += n;
    },

    sendRaw(frames) {
      outgoing.push({ frames });
      notify();
    },

    loseInReplays(isLost) {
      isLostInReplay = isLost;
    },

    ignoreReplays() {
      replays = 'ignored';
    },

    answerReplays() {
      replays = 'answered';
    },

    nextSeq: () => nextSeq,

    async stop() {
      if (sockets === null) return;
      const { publisher, router } = sockets;
      sockets = null;
      outgoing.length = 0;
      notify();
      const endpoints = [publisher.lastEndpoint, router.lastEndpoint];
      publisher.close();
      router.close();
      await loops;
      for (const endpoint of endpoints) if (endpoint !== null) await whenFree(endpoint);
    },
  };
}

function seqFrame(seq: number): Buffer {
  const frame = Buffer.allocUnsafe(8);
  frame.writeBigUInt64BE(BigInt(seq));
  return frame;
}

async function bind(socket: Publisher | Router, host: string, port: number): Promise<void> {
  const address = `tcp://${host.includes(':') ? `[${host}]` : host}:${port === 0 ? '*' : port}`;
  try {
    await socket.bind(address);
  } catch (error) {
    // By shape, as native modules may throw errors of another realm.
    const code = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
    if (code === 'EADDRINUSE')
      throw new WarmpathError('address_in_use', `Address in use: ${address}`, { cause: error });
    throw new WarmpathError('io_failed', `Cannot bind ${address}: ${errorText(error)}`, { cause: error });
  }
}

/**
 * Resolves when the port may be listened on again: ZMQ gives it back in its own thread some time after `close` returned.
 * Asked for by listening: an `unbind` with clients connected can fail an assertion of libzmq 4.3.5 and end the process.
 */
async function whenFree(endpoint: string): Promise<void> {
  const { hostname, port } = new URL(endpoint.replace(/^tcp:/, 'http:'));
  const deadlineMs = performance.now() + FREE_TIMEOUT_MS;
  while (!(await isFree(hostname.replace(/^\[|\]$/g, ''), Number(port)))) {
    if (performance.now() > deadlineMs) return;
    await delay(FREE_POLL_MS);
  }
}

function isFree(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(true)));
  });
}
