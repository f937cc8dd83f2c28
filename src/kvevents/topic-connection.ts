/**
 * Follows a publisher that connects to us, told from others by its topic. It counts as connected with its first message.
 * The end of the connection its messages came by is a doubt, which a replay clears up at once and the next batch in turn
 * otherwise (a publisher that begins anew does not go on with the same numbers).
 */
import type { EventConnection } from './event-connection.ts';
import type { EventStreamOptions } from './event-stream.ts';
import { createReplayedStream, type ReplayedStreamDeps } from './replayed-stream.ts';
import type { TopicListeners } from './topic-listeners.ts';
import type { KvEventSource } from '../endpoints/endpoint.ts';

export function createTopicConnection(
  deps: ReplayedStreamDeps,
  listeners: TopicListeners,
  source: KvEventSource,
  options: Partial<EventStreamOptions> = {},
): EventConnection {
  const stream = createReplayedStream(deps, source.replayEndpoint, options);
  let unfollow: (() => void) | null = null;
  return {
    open() {
      unfollow = listeners.follow(source.endpoint, {
        onMessage(frames) {
          if (stream.reached() !== 'up') stream.connected();
          stream.receive(frames);
        },
        onPeerLost() {
          if (stream.reached() === 'up') stream.doubted();
        },
      });
      // Nothing can be tried: who never connects is not waited for.
      stream.disconnected();
    },
    close() {
      unfollow?.();
      unfollow = null;
      stream.close();
    },
    tick() {
      if (unfollow !== null) stream.tick();
      return 0;
    },
    restarted: stream.restarted,
    mark: stream.mark,
    hold: stream.hold,
    adopt: stream.adopt,
    status: stream.status,
    reached: stream.reached,
  };
}
