/**
 * The sockets of one event source: a SUB for what it publishes and a DEALER for its replays, driving the sequence rules of
 * event-stream.ts. What a payload means, and what is done with it, is the caller's.
 */
import { Subscriber } from 'zeromq';
import type { Clock } from '../clock.ts';
import type { KvEventSource } from '../endpoints/endpoint.ts';
import {
  createEventStream,
  type ApplyOutcome,
  type EventStreamOptions,
  type ReplayResult,
  type StreamStatus,
} from './event-stream.ts';
import { createReplayClient } from './replay-client.ts';
import type { ReplayPermit, ReplayPermits } from './replay-permits.ts';
import { pauseForOthers, readSeq, subscriberOptions } from './zmq-frames.ts';

export type EventConnectionDeps = {
  readonly clock: Clock;
  readonly permits: ReplayPermits;
  /** @param origin live: sent just now; replay: sent before, perhaps long ago */
  apply(payload: Uint8Array, seq: bigint, origin: 'live' | 'replay'): ApplyOutcome;
  clear(): void;
  onGap(): void;
  onRestart(): void;
  onReplay(result: ReplayResult): void;
  /** A message of the wrong form. */
  onGarbage(reason: 'frames' | 'sequence' | 'replay_frames'): void;
  /** A socket could not be used; it is tried again. */
  onFailure(error: unknown): void;
};

export type EventConnection = {
  open(): void;
  /** Resolves when both sockets are closed; nothing is applied after the call. */
  close(): Promise<void>;
  /** To be called several times a second. */
  tick(): void;
  /** The process behind the source is another one. */
  restarted(): void;
  status(): StreamStatus;
};

/** A socket that could not even be made (a malformed address, too many files) is tried again this often. */
const REOPEN_MS = 2000;

export function createEventConnection(
  deps: EventConnectionDeps,
  source: KvEventSource,
  options: Partial<EventStreamOptions> = {},
): EventConnection {
  const now = (): number => deps.clock.nowMs();
  let socket: Subscriber | null = null;
  let isOpen = false;
  let reopenAtMs = Infinity;
  let reader: Promise<void> = Promise.resolve();
  let replayId = 0;
  let permit: ReplayPermit | null = null;
  let origin: 'live' | 'replay' = 'live';

  const replays =
    source.replayEndpoint === null
      ? null
      : createReplayClient(source.replayEndpoint, {
          onBatch(seq, payload) {
            origin = 'replay';
            stream.replayReceived(seq, payload, now());
            origin = 'live';
          },
          onEnd() {
            release();
            stream.replayEnded(now());
          },
          onGarbage: () => deps.onGarbage('replay_frames'),
          onFailure(error) {
            deps.onFailure(error);
            release();
            stream.replayFailed(now());
          },
        });

  const release = (): void => {
    permit?.release();
    permit = null;
  };

  const endReplay = (): void => {
    replayId++;
    release();
    replays!.cancel();
  };

  const stream = createEventStream(
    {
      apply: (payload, seq) => deps.apply(payload, seq, origin),
      clear: deps.clear,
      onGap: deps.onGap,
      onRestart: deps.onRestart,
      onReplay: deps.onReplay,
      requestReplay(fromSeq, purpose) {
        endReplay();
        const id = replayId;
        const start = (): void => {
          stream.replayStarted(now());
          replays!.request(fromSeq);
        };
        // Asked for inside a call of the stream, which must be over before the answer to it can come.
        queueMicrotask(() => {
          if (id !== replayId) return;
          // A probe is answered with a batch or two.
          if (purpose === 'probe') start();
          else permit = deps.permits.ask(start);
        });
      },
      cancelReplay: () => endReplay(),
    },
    { ...options, canReplay: replays !== null },
  );

  const open = (): void => {
    reopenAtMs = Infinity;
    try {
      const opened = new Subscriber(subscriberOptions(source.endpoint));
      socket = opened;
      opened.events.on('handshake', () => {
        if (opened === socket) stream.connected(now());
      });
      opened.events.on('disconnect', () => {
        if (opened === socket) stream.disconnected(now());
      });
      // Before the connection exists, so that nothing sent on it is missed; topics are hints and never filtered by.
      opened.subscribe('');
      opened.connect(source.endpoint);
      reader = read(opened);
    } catch (error) {
      failed(error);
    }
  };

  const failed = (error: unknown): void => {
    socket?.close();
    socket = null;
    deps.onFailure(error);
    stream.disconnected(now());
    if (isOpen) reopenAtMs = now() + REOPEN_MS;
  };

  const read = async (from: Subscriber): Promise<void> => {
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
      if (from === socket) failed(error);
    }
  };

  /** `[topic, seq, payload]`. */
  const receive = (frames: readonly Buffer[]): void => {
    const seq = frames.length === 3 ? readSeq(frames[1]!) : null;
    if (seq !== null) {
      stream.received(seq, frames[2]!, now());
      return;
    }
    deps.onGarbage(frames.length === 3 ? 'sequence' : 'frames');
    stream.garbage(now());
  };

  return {
    open() {
      isOpen = true;
      open();
    },
    async close() {
      isOpen = false;
      const closing = socket;
      socket = null;
      closing?.close();
      replayId++;
      release();
      await Promise.all([reader, replays?.close()]);
    },
    tick() {
      if (!isOpen) return;
      stream.tick(now());
      if (now() >= reopenAtMs) open();
    },
    restarted: () => stream.restarted(now()),
    status: () => stream.status(),
  };
}
