/**
 * For publishers that connect instead of binding: ports that they dial, one per data-parallel rank (an engine adds its rank
 * to the port), whose messages are handed out by topic, `kv@ip:port@model`. A topic proves nothing, and one that names no
 * endpoint that is followed gives nothing: it is counted and forgotten.
 */
import { createServer, type Server, type Socket } from 'node:net';
import type { Clock } from '../clock.ts';
import type { Zmtp, ZmtpConnection } from './zmtp.ts';

export type TopicFollower = {
  /** @param frames of one message, of any number and kind but the topic; valid until the call returns */
  onMessage(frames: readonly Buffer[]): void;
  /** A connection that messages of it came by has ended. */
  onPeerLost(): void;
};

export type TopicListeners = {
  /** @param publisher `kv@ip:port` or `kv@ip:port#rank` @returns how to end it */
  follow(publisher: string, follower: TopicFollower): () => void;
  /** To be called several times a second. */
  tick(): void;
};

export type TopicListenersDeps = {
  readonly clock: Clock;
  readonly zmtp: Zmtp;
  onUnknownTopic(): void;
  /** A port could not be opened, or failed; it is tried again. Or what connected is no publisher. */
  onFailure(error: unknown, endpoint: string): void;
};

type Listener = {
  server: Server | null;
  openAtMs: number;
  /** Connections, each with those whose messages came by it. */
  readonly peers: Map<ZmtpConnection, Set<TopicFollower>>;
  readonly byAddress: Map<string, TopicFollower>;
  /** Of endpoints with only one address on their host; null: several. */
  readonly byHost: Map<string, TopicFollower | null>;
};

const REOPEN_MS = 2000;
const MAX_TOPIC_BYTES = 1024;
/** Of one port. Publishers, not requests: one per engine. */
const MAX_PEERS = 4096;

/** @param listen `host:port` for rank 0 */
export function createTopicListeners(deps: TopicListenersDeps, listen: string): TopicListeners {
  const listeners = new Map<number, Listener>();
  const colon = listen.lastIndexOf(':');
  const host = listen.slice(0, colon);
  const port = Number(listen.slice(colon + 1));

  const open = (listener: Listener, rank: number): void => {
    listener.openAtMs = Infinity;
    const server = createServer({ noDelay: true });
    server.maxConnections = MAX_PEERS;
    server.on('connection', (socket) => accept(listener, socket, rank));
    server.on('error', (error) => {
      if (server !== listener.server) return;
      listener.server = null;
      server.close();
      listener.openAtMs = deps.clock.nowMs() + REOPEN_MS;
      deps.onFailure(error, endpointOf(rank));
    });
    server.listen(port + rank, host.replace(/^\[|\]$/g, ''));
    listener.server = server;
  };

  const endpointOf = (rank: number): string => `tcp://${host}:${port + rank}`;

  const accept = (listener: Listener, socket: Socket, rank: number): void => {
    const followers = new Set<TopicFollower>();
    const connection = deps.zmtp.accept(socket, 'SUB', {
      onUp: () => undefined,
      onMessage(frames) {
        const follower = followerOf(listener, frames[0]!);
        if (!follower) {
          deps.onUnknownTopic();
          return;
        }
        followers.add(follower);
        follower.onMessage(frames);
      },
      onDown(problem) {
        listener.peers.delete(connection);
        if (problem !== null) deps.onFailure(problem, endpointOf(rank));
        for (const follower of followers) follower.onPeerLost();
      },
    });
    listener.peers.set(connection, followers);
  };

  return {
    follow(publisher, follower) {
      const { address, rank } = parsePublisher(publisher);
      let listener = listeners.get(rank);
      if (listener === undefined) {
        listener = { server: null, openAtMs: Infinity, peers: new Map(), byAddress: new Map(), byHost: new Map() };
        listeners.set(rank, listener);
        open(listener, rank);
      }
      const followed = listener;
      followed.byAddress.set(address, follower);
      countHosts(followed);
      return () => {
        if (followed.byAddress.get(address) === follower) followed.byAddress.delete(address);
        for (const followers of followed.peers.values()) followers.delete(follower);
        countHosts(followed);
      };
    },
    tick() {
      for (const [rank, listener] of listeners) {
        for (const connection of listener.peers.keys()) connection.tick();
        if (deps.clock.nowMs() >= listener.openAtMs) open(listener, rank);
      }
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
