/**
 * Flow (c) behind the store: what a change of the fleet means for everything that is kept by slot. In one file because the
 * order is what counts: events no longer followed and blocks cleared, requests in flight over, slot freed. Deliberately
 * not here: where lists come from, and who else hears of a change (app.ts).
 */
import type { Change, EndpointStore } from './endpoints/endpoint-store.ts';
import { endpointKey, type Endpoint, type EndpointId, type EndpointSlot } from './endpoints/endpoint.ts';
import type { IngestSource } from './kvevents/ingest.ts';
import type { FleetLoad } from './load/fleet-load.ts';
import type { InFlight } from './load/in-flight.ts';
import type { Log } from './log.ts';

export type FleetChangesDeps = {
  readonly log: Log;
  readonly endpoints: Pick<EndpointStore, 'all' | 'ready' | 'freed'>;
  /** Makes these the sources that are followed. Resolves when the blocks of those that left are out of the index. */
  readonly follow: (sources: readonly IngestSource[]) => Promise<void>;
  readonly load: Pick<FleetLoad, 'reconcile' | 'forget'>;
  readonly inFlight: Pick<InFlight, 'load'>;
  /** What was sent to a slot is no longer there. */
  readonly forgetSent: (slot: EndpointSlot) => void;
};

export type FleetChanges = {
  apply(change: Change): void;
  /** An adapter of the endpoint has other weights: what is known of its cache is not true any more. */
  learnAnew(endpoint: Endpoint, adapter: string): void;
  /** A request has ended: slots that only waited for it are free. */
  freeSlots(): void;
  /** From here on sources are followed, those of the present fleet at once. */
  start(): Promise<void>;
  /** Sources are left as they are from here on. */
  stop(): void;
};

export function createFleetChanges({
  log,
  endpoints,
  follow,
  load,
  inFlight,
  forgetSent,
}: FleetChangesDeps): FleetChanges {
  /** Endpoints whose replay is not asked any more. */
  const liveOnly = new Set<EndpointId>();
  /** Slots whose endpoint is gone and whose blocks are out of the index; free for reuse once no request is in flight. */
  const emptied = new Set<EndpointSlot>();
  let isFollowing = false;

  async function followAll(): Promise<void> {
    if (!isFollowing) return;
    const all = endpoints.all();
    for (const id of liveOnly) if (!all.some((endpoint) => endpoint.id === id)) liveOnly.delete(id);
    await follow(all.flatMap((endpoint) => sourcesOf(endpoint, liveOnly.has(endpoint.id) ? 'live only' : 'replayed')));
  }

  const notFollowed = (error: unknown): void => log.error('kv event sources not reconciled', { error: String(error) });

  function freeSlots(): void {
    for (const slot of emptied) {
      if (inFlight.load(slot).requests > 0) continue;
      emptied.delete(slot);
      load.forget(slot);
      endpoints.freed(slot);
    }
  }

  return {
    apply({ added, removed, changed }) {
      const left = removed.map(({ slot }) => slot);
      const restarted = changed.filter(({ what }) => what === 'restarted').map(({ before }) => before.slot);
      for (const slot of [...left, ...restarted]) forgetSent(slot);
      for (const slot of restarted) load.forget(slot);
      load.reconcile(endpoints.ready());
      if (added.length + removed.length + changed.length > 0) {
        log.info('endpoints changed', {
          added: added.map(endpointKey),
          removed: removed.map(endpointKey),
          changed: changed.map(({ after }) => endpointKey(after)),
        });
      }
      followAll()
        .then(() => {
          for (const slot of left) emptied.add(slot);
          freeSlots();
        })
        .catch(notFollowed);
    },
    learnAnew(endpoint, adapter) {
      log.warn('an adapter has other weights: the endpoint is learnt anew, from live events only', {
        endpoint: endpointKey(endpoint),
        adapter,
      });
      // A replay would bring the blocks of the old weights back.
      liveOnly.add(endpoint.id);
      forgetSent(endpoint.slot);
      followAll().catch(notFollowed);
    },
    freeSlots,
    async start() {
      isFollowing = true;
      await followAll();
    },
    stop() {
      isFollowing = false;
    },
  };
}

function sourcesOf(endpoint: Endpoint, history: 'replayed' | 'live only'): IngestSource[] {
  return endpoint.kvEvents.map((kvEvents, index) => ({
    endpointId: endpoint.id,
    slot: endpoint.slot,
    rank: endpoint.rank ?? index,
    model: endpoint.models[0]!,
    kvEvents: history === 'live only' ? { ...kvEvents, replayEndpoint: null } : kvEvents,
    incarnation: endpoint.incarnation,
  }));
}
