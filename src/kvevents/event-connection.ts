/**
 * Follows a publisher that binds: a SUB of our own dials it, again and again. What its messages mean for the sequence is
 * in event-stream.ts, what a payload means is the caller's.
 */
import { Subscriber } from 'zeromq';
import type { KvEventSource } from '../endpoints/endpoint.ts';
import type { EventStreamOptions, StreamStatus } from './event-stream.ts';
import type { Redials } from './redials.ts';
import { createReplayedStream, type Reached, type ReplayedStream, type ReplayedStreamDeps } from './replayed-stream.ts';
import { pauseForOthers, subscriberOptions } from './zmq-frames.ts';

export type EventConnectionDeps = ReplayedStreamDeps & { readonly redials: Redials };

export type EventConnection = {
  open(): void;
  /** Resolves when the sockets are closed; nothing is applied after the call. */
  close(): Promise<void>;
  /** To be called several times a second. */
  tick(): void;
  /** The process behind the source is another one. */
  restarted(): void;
  /** As in ReplayedStream. */
  mark: ReplayedStream['mark'];
  adopt: ReplayedStream['adopt'];
  status(): StreamStatus;
  reached(): Reached;
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
  const stream = createReplayedStream(deps, source.replayEndpoint, options);
  let socket: Subscriber | null = null;
  let isOpen = false;
  let isUp = false;
  let reopenAtMs = Infinity;
  let dialAtMs = Infinity;
  let nAttempts = 0;
  let reader: Promise<void> = Promise.resolve();

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
    stream.connected();
  };

  /** The connection is lost, or an attempt has failed. */
  const down = (): void => {
    if (isUp) deps.redials.down();
    isUp = false;
    dialAtMs = now() + deps.redials.delayMs(nAttempts++);
    stream.disconnected();
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
    else stream.disconnected();
    dialAtMs = Infinity;
    deps.onFailure(error);
    if (isOpen) reopenAtMs = now() + REOPEN_MS;
  };

  const read = async (from: Subscriber): Promise<void> => {
    let pause = pauseForOthers();
    try {
      for await (const frames of from) {
        if (from !== socket) return;
        stream.receive(frames);
        if (pause.isDue()) {
          await pause.taken();
          pause = pauseForOthers();
        }
      }
    } catch (error) {
      if (from === socket) failed(error);
    }
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
      await Promise.all([reader, stream.close()]);
    },
    tick() {
      if (!isOpen) return;
      stream.tick();
      const nowMs = now();
      if (nowMs >= reopenAtMs) open();
      if (nowMs >= dialAtMs) dial();
    },
    restarted() {
      stream.restarted();
      // A new process is there, or soon will be.
      nAttempts = 0;
      if (!isUp && dialAtMs !== Infinity) dialAtMs = Math.min(dialAtMs, now() + deps.redials.delayMs(0));
    },
    mark: stream.mark,
    adopt: stream.adopt,
    status: stream.status,
    reached: stream.reached,
    revision: stream.revision,
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
