/**
 * Which publishers are followed: told what should be, never what happened. A source that is no longer wanted goes in this
 * order: socket closed, blocks cleared, slot reported free (the promise of `reconcile`).
 */
import type { IngestSource, SourceStatus } from './source-status.ts';
import type { StatusPlace } from './status-board.ts';
import type { Subscriber } from './subscriber.ts';

export type Subscriptions = {
  /** Opens, keeps and closes; idempotent. Resolves when the blocks of every source that left are out of the index. */
  reconcile(sources: readonly PlacedSource[]): Promise<void>;
  /** To be called twenty times a second: of very many sources, each call looks after a part. */
  tick(): void;
  /** Tells of sources to which something happened since the last call of this. */
  report(told: (source: PlacedSource, status: SourceStatus) => void): void;
  /** The one whose status is written there. */
  at(place: StatusPlace): Subscriber | undefined;
  stop(): Promise<void>;
  /** Closes all sockets and touches nothing else: for a thread that must end after a fault. */
  abandon(): Promise<void>;
};

/** A source and where its status is to be written. */
export type PlacedSource = IngestSource & { readonly place: StatusPlace };

type Followed = { source: PlacedSource; readonly subscriber: Subscriber; toldRevision: number };

const MAX_TICKS_AT_ONCE = 250;
/** No source is looked after less often than at every fourth call, five times a second. */
const MAX_PARTS = 4;

export function createSubscriptions(open: (source: PlacedSource) => Subscriber): Subscriptions {
  const followed = new Map<string, Followed>();
  const closing = new Set<Promise<void>>();
  /** Wishes are carried out one after another: an address may leave one slot and come back in another. */
  let last: Promise<void> = Promise.resolve();
  let nTicks = 0;

  const close = ({ subscriber }: Followed): void => {
    const closed = subscriber.stop().finally(() => closing.delete(closed));
    closing.add(closed);
  };

  const carryOut = async (sources: readonly PlacedSource[]): Promise<void> => {
    const wanted = new Map(sources.map((source) => [keyOf(source), source]));
    for (const [key, present] of followed) {
      if (wanted.has(key)) continue;
      followed.delete(key);
      close(present);
    }
    // A new source may take the slot of one that leaves: not before that one's blocks are gone.
    await Promise.all(closing);
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
  };

  const enqueue = (work: () => Promise<void>): Promise<void> => {
    last = last.then(work, work);
    return last;
  };

  return {
    reconcile: (sources) => enqueue(() => carryOut(sources)),
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
    stop: () => enqueue(() => carryOut([])),
    async abandon() {
      const left = [...followed.values()];
      followed.clear();
      await Promise.allSettled([...closing, ...left.map(({ subscriber }) => subscriber.abandon())]);
    },
  };
}

/** Everything but the incarnation: a source that differs in any of it is another source. */
export function keyOf({ endpointId, slot, rank, model, kvEvents }: IngestSource): string {
  return JSON.stringify([endpointId, slot, rank, model, kvEvents.endpoint, kvEvents.replayEndpoint]);
}
