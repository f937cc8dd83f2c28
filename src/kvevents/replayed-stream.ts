/**
 * The part of an event source that does not depend on how its messages get here: the sequence rules of event-stream.ts
 * with a DEALER for replays, and what is told of both. A live feed (event-connection.ts, topic-connection.ts) drives it.
 */
import type { Clock } from '../clock.ts';
import {
  createEventStream,
  type ApplyOutcome,
  type EventStreamOptions,
  type ReplayResult,
  type StreamMark,
  type StreamState,
  type StreamStatus,
} from './event-stream.ts';
import { createReplayClient } from './replay-client.ts';
import type { ReplayPermit, ReplayPermits } from './replay-permits.ts';
import { readSeq } from './seq-frame.ts';
import { inSlices } from './slices.ts';
import type { Zmtp } from './zmtp.ts';

/** trying: the first attempt is not over. down: connected no longer, or not yet although it was tried. */
export type Reached = 'trying' | 'up' | 'down';

/** Whether blocks of a snapshot are all that its engine holds; failed: it was none. */
export type Installed = 'whole' | 'partial' | 'failed';

export type ReplayedStreamDeps = {
  readonly clock: Clock;
  readonly zmtp: Zmtp;
  readonly permits: ReplayPermits;
  /** @param origin live: sent just now; replay: sent before, perhaps long ago */
  apply(payload: Uint8Array, seq: bigint, origin: 'live' | 'replay'): ApplyOutcome;
  /** Whether `apply` would not refuse it. */
  isBatch(payload: Uint8Array): boolean;
  clear(): void;
  /** The state of the stream or of its connection is another one. */
  onStanding(): void;
  /** What `status` says may be something else. */
  onChange(): void;
  onGap(): void;
  onRestart(): void;
  onReplay(result: ReplayResult): void;
  /** A message of the wrong form. */
  onGarbage(reason: 'frames' | 'sequence' | 'replay_frames'): void;
  /** An endpoint could not be dialled, or what answers there is none; it is tried again. */
  onFailure(error: unknown): void;
};

export type ReplayedStream = {
  connected(): void;
  /** Connected no longer, or not although it was tried. */
  disconnected(): void;
  /** A message of the live feed: `[topic, seq, payload]`. */
  receive(frames: readonly Buffer[]): void;
  /** Something happened that may have cost a batch. */
  doubted(): void;
  /** The process behind the source is another one. */
  restarted(): void;
  /** To be called several times a second. */
  tick(): void;
  /** Nothing is applied after it. */
  close(): void;
  mark(): StreamMark | null;
  /**
   * Messages of the live feed wait, so that what is known stays what it is; not for long, and not too many.
   * @returns ends it
   */
  hold(): () => void;
  /**
   * Puts what another replica has applied up to a mark in the place of a partial view.
   * @param install fills in its blocks, bit by bit
   * @param done called once: whether it is being proved. False: it is of no use, or something came between
   */
  adopt(mark: StreamMark, install: () => Generator<void, Installed>, done: (isProving: boolean) => void): void;
  status(): StreamStatus;
  reached(): Reached;
};

/** A snapshot of a large engine takes some tenths of a second. */
const MAX_HOLD_MS = 2000;
const MAX_HELD_BYTES = 4 * 1024 * 1024;

export function createReplayedStream(
  deps: ReplayedStreamDeps,
  replayEndpoint: string | null,
  options: Partial<EventStreamOptions>,
): ReplayedStream {
  const now = (): number => deps.clock.nowMs();
  let replayId = 0;
  let permit: ReplayPermit | null = null;
  let origin: 'live' | 'replay' = 'live';
  let reached: Reached = 'trying';
  let toldState: StreamState = 'unknown';
  let toldReached: Reached = 'trying';
  let toldRevision = -1;
  let held: (readonly Buffer[])[] | null = null;
  let heldBytes = 0;
  let heldUntilMs = 0;
  let stopInstalling: (() => void) | null = null;

  const replays =
    replayEndpoint === null
      ? null
      : createReplayClient(deps, replayEndpoint, {
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

  const tell = (): void => {
    const revision = stream.revision();
    if (revision !== toldRevision) deps.onChange();
    toldRevision = revision;
    // At once and not with the next report: a request that comes now is decided with it.
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
    stopInstalling?.();
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

  const receive = (frames: readonly Buffer[]): void => {
    const seq = frames.length === 3 ? readSeq(frames[1]!) : null;
    if (seq !== null) stream.received(seq, frames[2]!, now());
    else {
      deps.onGarbage(frames.length === 3 ? 'sequence' : 'frames');
      stream.garbage(now());
    }
    tell();
  };

  const letGo = (): void => {
    const waiting = held ?? [];
    held = null;
    heldBytes = 0;
    waiting.forEach(receive);
  };

  return {
    connected() {
      letGo();
      reached = 'up';
      stream.connected(now());
      tell();
    },
    disconnected() {
      letGo();
      if (reached === 'up') {
        replays?.hangUp();
        stream.disconnected(now());
      }
      reached = 'down';
      tell();
    },
    receive(frames) {
      if (held === null) {
        receive(frames);
        return;
      }
      held.push(frames.map((frame) => Buffer.from(frame)));
      for (const { byteLength } of frames) heldBytes += byteLength;
      if (heldBytes > MAX_HELD_BYTES) letGo();
    },
    doubted() {
      letGo();
      stream.garbage(now());
      tell();
    },
    restarted() {
      letGo();
      stream.restarted(now());
      tell();
    },
    tick() {
      if (held !== null && now() > heldUntilMs) letGo();
      replays?.tick();
      if (held === null) stream.tick(now());
      tell();
    },
    close() {
      held = null;
      stopInstalling?.();
      replayId++;
      release();
      replays?.close();
    },
    mark: () => stream.mark(),
    hold() {
      const own: (readonly Buffer[])[] = [];
      held = own;
      heldUntilMs = now() + MAX_HOLD_MS;
      return () => {
        if (held === own) letGo();
      };
    },
    adopt(mark, install, done) {
      if (!stream.adopt(mark)) {
        done(false);
        return;
      }
      // Nobody may believe what is there before it is proved.
      tell();
      stopInstalling = inSlices(install(), (installed) => {
        stopInstalling = null;
        if (installed !== null) stream.adopted(installed);
        tell();
        done(installed !== null && installed !== 'failed');
      });
    },
    status: () => stream.status(),
    reached: () => reached,
  };
}
