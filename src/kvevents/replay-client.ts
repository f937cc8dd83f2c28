/**
 * Asks a publisher's ROUTER for batches again, over a DEALER (a REQ could read one reply only). One replay at a time;
 * what its answers mean is decided in event-stream.ts. Answers are taken off the wire as fast as they come and dealt with
 * in turns: a ROUTER whose peer reads slowly drops messages in the middle.
 */
import type { Clock, Timer } from '../clock.ts';
import { readSeq, seqFrame } from './seq-frame.ts';
import type { Zmtp, ZmtpConnection } from './zmtp.ts';

export type ReplayHandlers = {
  onBatch(seq: bigint, payload: Uint8Array): void;
  /** The end marker came. */
  onEnd(): void;
  /** An answer that is neither. */
  onGarbage(): void;
  /** The socket cannot be dialled, or what answers is no ROUTER. */
  onFailure(error: unknown): void;
};

export type ReplayClient = {
  /** Replaces the replay that may be running. */
  request(fromSeq: bigint): void;
  cancel(): void;
  /** The publisher is gone: lets go of the connection too. */
  hangUp(): void;
  /** To be called several times a second. */
  tick(): void;
  /** Nothing is called after it. */
  close(): void;
};

export type ReplayClientDeps = { readonly zmtp: Zmtp; readonly clock: Clock };

const EMPTY = Buffer.alloc(0);
/** A replay socket opens a moment after the publisher's. */
const REDIAL_MS = 100;
const MAX_TURN_MS = 4;
/** What may wait to be dealt with; then the ROUTER has to. */
const MAX_WAITING_BYTES = 16 * 1024 * 1024;

export function createReplayClient(deps: ReplayClientDeps, endpoint: string, handlers: ReplayHandlers): ReplayClient {
  const { zmtp, clock } = deps;
  let connection: ZmtpConnection | null = null;
  let isUp = false;
  let redial: Timer | null = null;
  /** The request that waits for the connection. */
  let unsent: bigint | null = null;
  /** An answer is still on its way: the connection cannot serve another request, its replies could not be told apart. */
  let isAwaiting = false;
  let waiting: (readonly Buffer[])[] = [];
  let nTaken = 0;
  let waitingBytes = 0;
  let turn: NodeJS.Immediate | null = null;

  const drop = (): void => {
    redial?.cancel();
    connection?.close();
    if (turn !== null) clearImmediate(turn);
    redial = connection = turn = unsent = null;
    isUp = isAwaiting = false;
    waiting = [];
    nTaken = waitingBytes = 0;
  };

  const fail = (error: unknown): void => {
    drop();
    handlers.onFailure(error);
  };

  const dial = (): void => {
    connection = zmtp.connect(endpoint, 'DEALER', {
      onUp() {
        isUp = true;
        send();
      },
      onMessage: keep,
      onDown(problem) {
        connection = null;
        isUp = false;
        if (problem !== null) fail(problem);
        // An answer that was on its way is lost; whoever waits for it does not wait for ever.
        else if (unsent !== null) redial = clock.after(REDIAL_MS, redialled);
      },
    });
  };

  const redialled = (): void => {
    redial = null;
    try {
      dial();
    } catch (error) {
      fail(error);
    }
  };

  const send = (): void => {
    if (!isUp || unsent === null) return;
    // The ROUTER drops any request but [identity, "", seq] without an answer.
    connection!.send([EMPTY, seqFrame(unsent)]);
    unsent = null;
  };

  const keep = (frames: readonly Buffer[]): void => {
    waiting.push(frames.map((frame) => Buffer.from(frame)));
    waitingBytes += bytesOf(frames);
    if (waitingBytes > MAX_WAITING_BYTES) connection?.reading('off');
    turn ??= setImmediate(takeTurn);
  };

  const takeTurn = (): void => {
    const taken = waiting;
    const untilMs = clock.nowMs() + MAX_TURN_MS;
    turn = null;
    while (nTaken < taken.length && clock.nowMs() < untilMs) {
      const frames = taken[nTaken++]!;
      waitingBytes -= bytesOf(frames);
      receive(frames);
      // Dropped meanwhile.
      if (waiting !== taken) return;
    }
    if (nTaken < taken.length) turn = setImmediate(takeTurn);
    else {
      waiting = [];
      nTaken = 0;
      connection?.reading('on');
    }
  };

  /** `["", seq, payload]` (vLLM before 0.26) or `["", topic, seq, payload]`: read from the back. */
  const receive = (frames: readonly Buffer[]): void => {
    const payload = frames.at(-1);
    const seq = frames.length === 3 || frames.length === 4 ? readSeq(frames.at(-2)!) : null;
    if (payload === undefined || (seq === null && payload.byteLength > 0)) handlers.onGarbage();
    else if (payload.byteLength > 0) handlers.onBatch(seq!, payload);
    else if (isAwaiting) {
      isAwaiting = false;
      handlers.onEnd();
    }
  };

  return {
    request(fromSeq) {
      if (isAwaiting) drop();
      isAwaiting = true;
      unsent = fromSeq;
      if (isUp) send();
      else if (connection === null && redial === null) {
        try {
          dial();
        } catch (error) {
          drop();
          queueMicrotask(() => handlers.onFailure(error));
        }
      }
    },
    cancel() {
      if (isAwaiting) drop();
    },
    hangUp: drop,
    tick: () => connection?.tick(),
    close: drop,
  };
}

function bytesOf(frames: readonly Buffer[]): number {
  return frames.reduce((sum, { byteLength }) => sum + byteLength, 0);
}
