/**
 * Follows a publisher that binds: a SUB of our own dials it, again and again. What its messages mean for the sequence is
 * in event-stream.ts, what a payload means is the caller's.
 */
import type { KvEventSource } from '../endpoints/endpoint.ts';
import type { EventStreamOptions, StreamStatus } from './event-stream.ts';
import type { Redials } from './redials.ts';
import { createReplayedStream, type Reached, type ReplayedStream, type ReplayedStreamDeps } from './replayed-stream.ts';
import type { ZmtpConnection } from './zmtp.ts';

export type EventConnectionDeps = ReplayedStreamDeps & { readonly redials: Redials };

export type EventConnection = {
  open(): void;
  /** Nothing is applied after it. */
  close(): void;
  /** To be called several times a second. @returns when next, where nothing can happen before; else 0 */
  tick(): number;
  /** The process behind the source is another one. */
  restarted(): void;
  /** As in ReplayedStream. */
  mark: ReplayedStream['mark'];
  hold: ReplayedStream['hold'];
  adopt: ReplayedStream['adopt'];
  status(): StreamStatus;
  reached(): Reached;
};

/** An address that cannot be dialled at all is tried again this often: the machine may be out of sockets. */
const REOPEN_MS = 2000;

export function createEventConnection(
  deps: EventConnectionDeps,
  source: KvEventSource,
  options: Partial<EventStreamOptions> = {},
): EventConnection {
  const now = (): number => deps.clock.nowMs();
  const stream = createReplayedStream(deps, source.replayEndpoint, options);
  let connection: ZmtpConnection | null = null;
  let isOpen = false;
  let isUp = false;
  let dialAtMs = Infinity;
  let nAttempts = 0;

  const dial = (): void => {
    dialAtMs = Infinity;
    try {
      connection = deps.zmtp.connect(source.endpoint, 'SUB', {
        onUp: up,
        onMessage: (frames) => stream.receive(frames),
        onDown(problem) {
          if (problem !== null) deps.onFailure(problem);
          down(now() + deps.redials.delayMs(nAttempts++));
        },
      });
    } catch (error) {
      deps.onFailure(error);
      down(now() + REOPEN_MS);
    }
  };

  const up = (): void => {
    deps.redials.up();
    isUp = true;
    nAttempts = 0;
    stream.connected();
  };

  /** The connection is lost, or an attempt has failed. */
  const down = (nextDialMs: number): void => {
    if (isUp) deps.redials.down();
    isUp = false;
    connection = null;
    dialAtMs = nextDialMs;
    stream.disconnected();
  };

  return {
    open() {
      isOpen = true;
      deps.redials.down();
      dial();
    },
    close() {
      if (isOpen && !isUp) deps.redials.up();
      isOpen = false;
      connection?.close();
      connection = null;
      stream.close();
    },
    tick() {
      if (!isOpen) return Infinity;
      connection?.tick();
      stream.tick();
      if (now() >= dialAtMs) dial();
      return connection === null ? dialAtMs : 0;
    },
    restarted() {
      stream.restarted();
      // A new process is there, or soon will be.
      nAttempts = 0;
      if (connection === null) dialAtMs = Math.min(dialAtMs, now() + deps.redials.delayMs(0));
    },
    mark: stream.mark,
    hold: stream.hold,
    adopt: stream.adopt,
    status: stream.status,
    reached: stream.reached,
  };
}
