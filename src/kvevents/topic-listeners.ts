/**
 * For publishers that connect instead of binding: SUBs that they dial, one per data-parallel rank (an engine adds its rank
 * to the port), whose messages are handed out by topic, `kv@ip:port@model`. A topic proves nothing, and one that names no
 * endpoint that is followed gives nothing: it is counted and forgotten.
 */
import { Subscriber, type Context } from 'zeromq';
import type { Clock } from '../clock.ts';
import { listenerOptions, pauseForOthers } from './zmq-frames.ts';

export type TopicFollower = {
  /** @param frames of one message, of any number and kind but the topic */
  onMessage(frames: readonly Buffer[]): void;
  /** Some publisher's connection ended: nobody can tell whose. */
  onPeerLost(): void;
};

export type TopicListeners = {
  /** @param publisher `kv@ip:port` or `kv@ip:port#rank` @returns how to end it */
  follow(publisher: string, follower: TopicFollower): () => void;
  /** To be called several times a second. */
  tick(): void;
  /** Resolves when all sockets are closed. */
  close(): Promise<void>;
};

export type TopicListenersDeps = {
  readonly clock: Clock;
  readonly context: Context;
  onUnknownTopic(): void;
  /** A port could not be bound, or its socket failed; it is tried again. */
  onFailure(error: unknown, endpoint: string): void;
};

type Listener = {
  socket: Subscriber | null;
  reader: Promise<void>;
  bindAtMs: number;
  readonly byAddress: Map<string, TopicFollower>;
  /** Of endpoints with only one address on their host; null: several. */
  readonly byHost: Map<string, TopicFollower | null>;
};

const REBIND_MS = 2000;
const MAX_TOPIC_BYTES = 1024;

/** @param listen `host:port` for rank 0 */
export function createTopicListeners(deps: TopicListenersDeps, listen: string): TopicListeners {
  const listeners = new Map<number, Listener>();
  const colon = listen.lastIndexOf(':');
  const host = listen.slice(0, colon);
  const port = Number(listen.slice(colon + 1));

  const bind = async (listener: Listener, rank: number): Promise<void> => {
    listener.bindAtMs = Infinity;
    const endpoint = `tcp://${host}:${port + rank}`;
    const opened = new Subscriber(listenerOptions(endpoint, deps.context));
    listener.socket = opened;
    try {
      for (const event of ['disconnect', 'close'] as const) {
        opened.events.on(event, () => {
          if (opened === listener.socket) lost(listener);
        });
      }
      opened.subscribe('');
      await opened.bind(endpoint);
      await read(listener, opened);
    } catch (error) {
      if (opened !== listener.socket) return;
      listener.socket = null;
      opened.close();
      listener.bindAtMs = deps.clock.nowMs() + REBIND_MS;
      lost(listener);
      deps.onFailure(error, endpoint);
    }
  };

  const lost = (listener: Listener): void => {
    for (const follower of listener.byAddress.values()) follower.onPeerLost();
  };

  const read = async (listener: Listener, from: Subscriber): Promise<void> => {
    let pause = pauseForOthers();
    for await (const frames of from) {
      if (from !== listener.socket) return;
      const follower = followerOf(listener, frames[0]!);
      if (follower) follower.onMessage(frames);
      else deps.onUnknownTopic();
      if (pause.isDue()) {
        await pause.taken();
        pause = pauseForOthers();
      }
    }
  };

  const open = (rank: number): Listener => {
    const listener: Listener = {
      socket: null,
      reader: Promise.resolve(),
      bindAtMs: Infinity,
      byAddress: new Map(),
      byHost: new Map(),
    };
    listeners.set(rank, listener);
    listener.reader = bind(listener, rank);
    return listener;
  };

  return {
    follow(publisher, follower) {
      const { address, rank } = parsePublisher(publisher);
      const listener = listeners.get(rank) ?? open(rank);
      listener.byAddress.set(address, follower);
      countHosts(listener);
      return () => {
        if (listener.byAddress.get(address) === follower) listener.byAddress.delete(address);
        countHosts(listener);
      };
    },
    tick() {
      for (const [rank, listener] of listeners) {
        if (deps.clock.nowMs() >= listener.bindAtMs) listener.reader = bind(listener, rank);
      }
    },
    async close() {
      const closing = [...listeners.values()];
      listeners.clear();
      for (const listener of closing) {
        const { socket } = listener;
        listener.socket = null;
        listener.bindAtMs = Infinity;
        socket?.close();
      }
      await Promise.all(closing.map(({ reader }) => reader));
    },
  };
}

/** Whether a source's address means that it connects to us. */
export function isTopic(endpoint: string): boolean {
  return endpoint.startsWith('kv@');
}

function parsePublisher(publisher: string): { address: string; rank: number } {
  const [address = '', rank = '0'] = publisher.slice('kv@'.length).split('#');
  return { address, rank: Number(rank) };
}

function followerOf({ byAddress, byHost }: Listener, topic: Buffer): TopicFollower | null | undefined {
  if (topic.byteLength > MAX_TOPIC_BYTES) return null;
  // Model names may hold further @.
  const [kv, address] = topic.toString('utf8').split('@', 2);
  if (kv !== 'kv' || !address) return null;
  return byAddress.get(address) ?? byHost.get(address);
}

/** Older topics name the pod's address without a port. */
function countHosts({ byAddress, byHost }: Listener): void {
  byHost.clear();
  for (const [address, follower] of byAddress) {
    const host = address.slice(0, address.lastIndexOf(':'));
    byHost.set(host, byHost.has(host) ? null : follower);
  }
}
