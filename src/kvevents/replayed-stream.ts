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
import type { Zmtp } from './zmtp.ts';

/** trying: the first attempt is not over. down: connected no longer, or not yet although it was tried. */
export type Reached = 'trying' | 'up' | 'down';

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
  /** See EventStream. */
  adopt(mark: StreamMark, install: () => 'whole' | 'partial' | 'failed'): boolean;
  status(): StreamStatus;
  reached(): Reached;
};

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

  return {
    connected() {
      reached = 'up';
      stream.connected(now());
      tell();
    },
    disconnected() {
      if (reached === 'up') {
        replays?.hangUp();
        stream.disconnected(now());
      }
      reached = 'down';
      tell();
    },
    receive(frames) {
      const seq = frames.length === 3 ? readSeq(frames[1]!) : null;
      if (seq !== null) stream.received(seq, frames[2]!, now());
      else {
        deps.onGarbage(frames.length === 3 ? 'sequence' : 'frames');
        stream.garbage(now());
      }
      tell();
    },
    doubted() {
      stream.garbage(now());
      tell();
    },
    restarted() {
      stream.restarted(now());
      tell();
    },
    tick() {
      replays?.tick();
      stream.tick(now());
      tell();
    },
    close() {
      replayId++;
      release();
      replays?.close();
    },
    mark: () => stream.mark(),
    adopt(mark, install) {
      const isTaken = stream.adopt(mark, () => {
        // Nobody may believe what is there before it is proved.
        tell();
        return install();
      });
      tell();
      return isTaken;
    },
    status: () => stream.status(),
    reached: () => reached,
  };
}
