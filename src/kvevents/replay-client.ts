/**
 * Asks a publisher's ROUTER for batches again, over a DEALER (a REQ could read one reply only). One replay at a time;
 * what its answers mean is decided in event-stream.ts.
 */
import { Dealer, type Context } from 'zeromq';
import { dealerOptions, pauseForOthers, readSeq, seqFrame } from './zmq-frames.ts';

export type ReplayHandlers = {
  onBatch(seq: bigint, payload: Uint8Array): void;
  /** The end marker came. */
  onEnd(): void;
  /** An answer that is neither. */
  onGarbage(): void;
  onFailure(error: unknown): void;
};

export type ReplayClient = {
  /** Replaces the replay that may be running. */
  request(fromSeq: bigint): void;
  cancel(): void;
  /** The publisher is gone: lets go of the connection too. */
  hangUp(): void;
  /** Resolves when the socket is closed. */
  close(): Promise<void>;
};

const EMPTY = Buffer.alloc(0);

export function createReplayClient(endpoint: string, context: Context, handlers: ReplayHandlers): ReplayClient {
  let socket: Dealer | null = null;
  /** An answer is still on its way: the socket cannot serve another request, its replies could not be told apart. */
  let isAwaiting = false;
  let readers: Promise<unknown> = Promise.resolve();

  const drop = (): void => {
    socket?.close();
    socket = null;
    isAwaiting = false;
  };

  const open = (): Dealer => {
    const opened = new Dealer(dealerOptions(endpoint, context));
    opened.connect(endpoint);
    readers = Promise.all([readers, read(opened)]);
    return opened;
  };

  const read = async (from: Dealer): Promise<void> => {
    let pause = pauseForOthers();
    try {
      for await (const frames of from) {
        if (from !== socket) return;
        receive(frames);
        if (pause.isDue()) {
          await pause.taken();
          pause = pauseForOthers();
        }
      }
    } catch (error) {
      if (from !== socket) return;
      drop();
      handlers.onFailure(error);
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
      try {
        socket ??= open();
        isAwaiting = true;
        const asked = socket;
        // The ROUTER drops any request but [identity, "", seq] without an answer.
        asked.send([EMPTY, seqFrame(fromSeq)]).catch((error: unknown) => {
          if (asked !== socket) return;
          drop();
          handlers.onFailure(error);
        });
      } catch (error) {
        drop();
        queueMicrotask(() => handlers.onFailure(error));
      }
    },
    cancel() {
      if (isAwaiting) drop();
    },
    hangUp: drop,
    async close() {
      drop();
      await readers;
    },
  };
}
