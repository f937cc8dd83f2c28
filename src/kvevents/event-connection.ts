/**
 * The sockets of one event source: a SUB for what it publishes and a DEALER for its replays, driving the sequence rules of
 * event-stream.ts. What a payload means, and what is done with it, is the caller's.
 */
import { Subscriber, type Context } from 'zeromq';
import type { Clock } from '../clock.ts';
import type { KvEventSource } from '../endpoints/endpoint.ts';
import {
  createEventStream,
  type ApplyOutcome,
  type EventStreamOptions,
  type ReplayResult,
  type StreamState,
  type StreamStatus,
} from './event-stream.ts';
import { createReplayClient } from './replay-client.ts';
import type { Redials } from './redials.ts';
import type { ReplayPermit, ReplayPermits } from './replay-permits.ts';
import { pauseForOthers, readSeq, subscriberOptions } from './zmq-frames.ts';

export type EventConnectionDeps = {
  readonly clock: Clock;
  readonly context: Context;
  readonly permits: ReplayPermits;
  readonly redials: Redials;
  /** @param origin live: sent just now; replay: sent before, perhaps long ago */
  apply(payload: Uint8Array, seq: bigint, origin: 'live' | 'replay'): ApplyOutcome;
  /** Whether `apply` would not refuse it. */
  isBatch(payload: Uint8Array): boolean;
  clear(): void;
  /** The state of the stream or of its connection is another one. */
  onStanding(): void;
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
  /** trying: the first attempt is not over. down: connected no longer, or not yet although it was tried. */
  reached(): 'trying' | 'up' | 'down';
  /** Another number whenever `status` may have changed. */
  revision(): number;
};

/** A socket that could not even be made (a malformed address, too many files) is tried again this often. */
const REOPEN_MS = 2000;
/** Longest time from an attempt to connect to its success or failure; ZMQ's own limits are 5 s each. */
const ATTEMPT_MS = 12_000;

export function createEventConnection(
  deps: EventConnectionDeps,
  source: KvEventSource,
  options: Partial<EventStreamOptions> = {},
): EventConnection {
  const now = (): number => deps.clock.nowMs();
  let socket: Subscriber | null = null;
  let isOpen = false;
  let isUp = false;
  let reopenAtMs = Infinity;
  let dialAtMs = Infinity;
  let nAttempts = 0;
  let reader: Promise<void> = Promise.resolve();
  let replayId = 0;
  let permit: ReplayPermit | null = null;
  let origin: 'live' | 'replay' = 'live';
  let reached: 'trying' | 'up' | 'down' = 'trying';
  let toldState: StreamState = 'unknown';
  let toldReached: 'trying' | 'up' | 'down' = 'trying';

  const replays =
    source.replayEndpoint === null
      ? null
      : createReplayClient(source.replayEndpoint, deps.context, {
          onBatch(seq, payload) {
            origin = 'replay';
            stream.replayReceived(seq, payload, now());
            origin = 'live';
            tell();
          },
          onEnd() {
            release();
            stream.replayEnded(now());
            tell();
          },
          onGarbage: () => deps.onGarbage('replay_frames'),
          onFailure(error) {
            deps.onFailure(error);
            release();
            stream.replayFailed(now());
            tell();
          },
        });

  /** At once and not with the next report: a request that comes now is decided with it. */
  const tell = (): void => {
    const state = stream.state();
    if (state === toldState && reached === toldReached) return;
    toldState = state;
    toldReached = reached;
    deps.onStanding();
  };

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
      isBatch: deps.isBatch,
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
      const opened = new Subscriber(subscriberOptions(source.endpoint, deps.context));
      socket = opened;
      opened.events.on('handshake', () => {
        if (opened === socket) up();
      });
      for (const event of ['disconnect', 'close'] as const) {
        opened.events.on(event, () => {
          if (opened === socket) down();
        });
      }
      // Before the connection exists, so that nothing sent on it is missed; topics are hints and never filtered by.
      opened.subscribe('');
      opened.connect(source.endpoint);
      dialAtMs = now() + ATTEMPT_MS;
      reader = read(opened);
    } catch (error) {
      failed(error);
    }
  };

  const up = (): void => {
    if (!isUp) deps.redials.up();
    isUp = true;
    nAttempts = 0;
    dialAtMs = Infinity;
    reached = 'up';
    stream.connected(now());
    tell();
  };

  /** The connection is lost, or an attempt has failed. */
  const down = (): void => {
    if (isUp) {
      deps.redials.down();
      replays?.hangUp();
      stream.disconnected(now());
    }
    isUp = false;
    reached = 'down';
    dialAtMs = now() + deps.redials.delayMs(nAttempts++);
    tell();
  };

  const dial = (): void => {
    const dialling = socket;
    if (dialling === null) return;
    dialAtMs = now() + ATTEMPT_MS;
    try {
      forgetEndpoint(dialling, source.endpoint);
      dialling.connect(source.endpoint);
    } catch (error) {
      failed(error);
    }
  };

  const failed = (error: unknown): void => {
    socket?.close();
    socket = null;
    if (isUp) down();
    reached = 'down';
    dialAtMs = Infinity;
    deps.onFailure(error);
    tell();
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
      tell();
      return;
    }
    deps.onGarbage(frames.length === 3 ? 'sequence' : 'frames');
    stream.garbage(now());
    tell();
  };

  return {
    open() {
      isOpen = true;
      deps.redials.down();
      open();
    },
    async close() {
      if (isOpen && !isUp) deps.redials.up();
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
      const nowMs = now();
      stream.tick(nowMs);
      if (nowMs >= reopenAtMs) open();
      if (nowMs >= dialAtMs) dial();
      tell();
    },
    restarted() {
      stream.restarted(now());
      tell();
      // A new process is there, or soon will be.
      nAttempts = 0;
      if (!isUp && dialAtMs !== Infinity) dialAtMs = Math.min(dialAtMs, now() + deps.redials.delayMs(0));
    },
    status: () => stream.status(),
    reached: () => reached,
    revision: () => stream.revision(),
  };
}

/** A connection that was lost has been forgotten already, one that never came about has not. */
function forgetEndpoint(socket: Subscriber, endpoint: string): void {
  try {
    socket.disconnect(endpoint);
  } catch (error) {
    if ((error as { code?: string }).code !== 'ENOENT') throw error;
  }
}
