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
  /** To be called twenty times a second: of very many sources, each call looks after a part, and of none that sleeps. */
  tick(nowMs: number): void;
  /** Tells of sources that had something to tell since the last call of this. */
  report(told: (source: PlacedSource, status: SourceStatus) => void): void;
  /** The one whose status is written there. */
  at(place: StatusPlace): Subscriber | undefined;
};

/** A source and where its status is to be written. */
export type PlacedSource = IngestSource & { readonly place: StatusPlace };

type Followed = { source: PlacedSource; readonly subscriber: Subscriber };

const MAX_TICKS_AT_ONCE = 250;
/** No source is looked after less often than at every fourth call, five times a second. */
const MAX_PARTS = 4;

/** @param open given what to call whenever there is something to tell of it */
export function createSubscriptions(open: (source: PlacedSource, onChange: () => void) => Subscriber): Subscriptions {
  const followed = new Map<string, Followed>();
  /** The same in a row, and until when each has nothing to do: walking over a thousand that sleep must cost nothing. */
  let row: readonly Followed[] = [];
  let sleepsUntilMs = new Float64Array(0);
  const changed = new Set<Followed>();
  let nTicks = 0;

  return {
    reconcile(sources) {
      const wanted = new Map(sources.map((source) => [keyOf(source), source]));
      // First: a new source may take the slot of one that leaves.
      for (const [key, { subscriber }] of followed) {
        if (wanted.has(key)) continue;
        changed.delete(followed.get(key)!);
        followed.delete(key);
        subscriber.stop();
      }
      for (const [key, source] of wanted) {
        const present = followed.get(key);
        if (present === undefined) {
          const opened: Followed = { source, subscriber: open(source, () => changed.add(opened)) };
          followed.set(key, opened);
          changed.add(opened);
          opened.subscriber.start();
        } else if (present.source.incarnation !== source.incarnation) {
          present.source = source;
          present.subscriber.restarted();
        }
      }
      row = [...followed.values()];
      sleepsUntilMs = new Float64Array(row.length);
    },
    tick(nowMs) {
      const nParts = Math.min(MAX_PARTS, Math.ceil(row.length / MAX_TICKS_AT_ONCE));
      for (let i = nTicks++ % nParts; i < row.length; i += nParts) {
        if (nowMs >= sleepsUntilMs[i]!) sleepsUntilMs[i] = row[i]!.subscriber.tick();
      }
    },
    report(told) {
      for (const { source, subscriber } of changed) told(source, subscriber.status());
      changed.clear();
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
