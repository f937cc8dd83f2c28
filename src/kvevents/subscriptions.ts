/**
 * Which publishers are followed: told what should be, never what happened. A source that is no longer wanted goes in this
 * order: connection closed, blocks cleared, slot reported free (when `reconcile` has returned).
 */
import type { IngestSource, SourceStatus } from './source-status.ts';
import type { StatusPlace } from './status-board.ts';
import type { Subscriber } from './subscriber.ts';

export type Subscriptions = {
  /** Opens, keeps and closes; idempotent. Then the blocks of every source that left are out of the index. */
  reconcile(sources: readonly PlacedSource[]): void;
  /** To be called twenty times a second: of very many sources, each call looks after a part. */
  tick(): void;
  /** Tells of sources to which something happened since the last call of this. */
  report(told: (source: PlacedSource, status: SourceStatus) => void): void;
  /** The one whose status is written there. */
  at(place: StatusPlace): Subscriber | undefined;
};

/** A source and where its status is to be written. */
export type PlacedSource = IngestSource & { readonly place: StatusPlace };

type Followed = { source: PlacedSource; readonly subscriber: Subscriber; toldRevision: number };

const MAX_TICKS_AT_ONCE = 250;
/** No source is looked after less often than at every fourth call, five times a second. */
const MAX_PARTS = 4;

export function createSubscriptions(open: (source: PlacedSource) => Subscriber): Subscriptions {
  const followed = new Map<string, Followed>();
  let nTicks = 0;

  return {
    reconcile(sources) {
      const wanted = new Map(sources.map((source) => [keyOf(source), source]));
      // First: a new source may take the slot of one that leaves.
      for (const [key, { subscriber }] of followed) {
        if (wanted.has(key)) continue;
        followed.delete(key);
        subscriber.stop();
      }
      for (const [key, source] of wanted) {
        const present = followed.get(key);
        if (present === undefined) {
          const subscriber = open(source);
          followed.set(key, { source, subscriber, toldRevision: -1 });
          subscriber.start();
        } else if (present.source.incarnation !== source.incarnation) {
          present.source = source;
          present.subscriber.restarted();
        }
      }
    },
    tick() {
      const nParts = Math.min(MAX_PARTS, Math.ceil(followed.size / MAX_TICKS_AT_ONCE));
      let i = nTicks++;
      for (const { subscriber } of followed.values()) if (i++ % nParts === 0) subscriber.tick();
    },
    report(told) {
      for (const one of followed.values()) {
        const revision = one.subscriber.revision();
        if (revision === one.toldRevision) continue;
        one.toldRevision = revision;
        told(one.source, one.subscriber.status());
      }
    },
    at(place) {
      for (const one of followed.values()) if (one.source.place === place) return one.subscriber;
      return undefined;
    },
  };
}

/** Everything but the incarnation: a source that differs in any of it is another source. */
export function keyOf({ endpointId, slot, rank, model, kvEvents }: IngestSource): string {
  return JSON.stringify([endpointId, slot, rank, model, kvEvents.endpoint, kvEvents.replayEndpoint]);
}
