/**
 * The product's own decision: the cost of src/scheduling, the load of src/load, the routed prefixes of src/prefix, on
 * virtual time. Only where the blocks come from differs from `serve`: ids of a workload instead of hashed tokens.
 */
import type { EndpointSlot } from '../../endpoints/endpoint.ts';
import { createCacheTrust, creditedTokens, type CacheEvidence, type CreditWeights } from '../../load/cache-trust.ts';
import { createExpectedLoad } from '../../load/expected-load.ts';
import { createInFlight, type LoadReservation } from '../../load/in-flight.ts';
import type { BlockHashes } from '../../prefix/block-hash.ts';
import { createEvictionAges } from '../../prefix/eviction-ages.ts';
import { createPrefixForks, forkKey } from '../../prefix/prefix-forks.ts';
import { createRoutedPrefixes, type Booking } from '../../prefix/routed-prefixes.ts';
import { schedule } from '../../scheduling/scheduler.ts';
import type { EngineRequest } from '../engine.ts';
import { METRICS_INTERVAL_MS, type CreatePolicy, type EngineProbe } from './policy.ts';
import { createAnnouncedBlocks } from './tracking.ts';

export const createWarmpath: CreatePolicy = ({ clock, blockTokens, cacheBlocks, events }) => {
  const trust = createCacheTrust(clock);
  const inFlight = createInFlight(clock);
  const expectedLoad = createExpectedLoad({ inFlight, clock }, { intervalMs: METRICS_INTERVAL_MS });
  const announced = createAnnouncedBlocks();
  const routed = createRoutedPrefixes(clock, { keptBlocksPerSlot: cacheBlocks });
  /** When the events of an engine were whole for the last time. */
  const proofs = new Map<number, EventProof>();
  const held = new Map<number, Held>();
  const forks = createPrefixForks(clock);
  const evictionAges = createEvictionAges(clock, {
    capacityBlocks: () => (expectedLoad.allPerOwn() > 1 ? null : cacheBlocks),
  });
  const slotOf = ({ id }: EngineProbe): EndpointSlot => id as EndpointSlot;

  function weightsOf(engine: EngineProbe): CreditWeights {
    const proof = proofs.get(engine.id);
    if (proof === undefined) return trust.of(slotOf(engine), null);
    const heldTokens = announced.nBlocks(engine.id) * blockTokens;
    const capacityTokens = cacheBlocks * blockTokens;
    return trust.of(slotOf(engine), { ...proof, heldTokens, capacityTokens, allPerOwn: expectedLoad.allPerOwn() });
  }

  return {
    choose(request, engines) {
      const hashes = keysOf(request);
      const onTheWay = routed.longestMatch(hashes);
      const candidates = engines.map((engine) => {
        const most = request.promptTokens - 1;
        const tokensOf = (nBlocks: number): number => Math.min(nBlocks * blockTokens, most);
        const routedTokens = tokensOf(onTheWay.blocks(slotOf(engine)));
        const announcedTokens = tokensOf(announced.matchedBlocks(request, engine));
        const cached = { routedTokens, announcedTokens, worth: 1 };
        return {
          promisedTokens: Math.max(routedTokens, announcedTokens),
          address: engine.address,
          trust: TRUST[events],
          cachedTokens: creditedTokens(cached, weightsOf(engine)),
          evictedAgeMs: evictionAges.ageMs(
            slotOf(engine),
            Math.ceil((request.promptTokens - Math.max(routedTokens, announcedTokens)) / blockTokens),
          ),
          load: expectedLoad.of({ slot: slotOf(engine) }),
        };
      });
      const mostCached = Math.max(...candidates.map(({ promisedTokens }) => promisedTokens));
      const nCached = Math.min(Math.ceil(mostCached / blockTokens), request.blocks.length);
      const fork = forkKey(hashes, nCached);
      const sharers = engines.reduce((sum, engine) => sum + onTheWay.bookings(slotOf(engine), nCached), 0);
      const { order } = schedule({
        candidates,
        promptTokens: request.promptTokens,
        tieKey: hashes[2 * Math.min(nCached, request.blocks.length - 1) + 1] ?? request.index,
        sharers: Math.max(sharers, forks.count(fork)),
      });
      forks.add(fork);
      const chosen = engines[order[0]!]!;
      evictionAges.used(slotOf(chosen), hashes);
      const { cachedTokens, promisedTokens } = candidates[order[0]!]!;
      held.set(request.index, {
        load: inFlight.reserve(slotOf(chosen), request.promptTokens - cachedTokens, {
          promptTokens: request.promptTokens,
          computedTokens: () =>
            events === 'none' ? 0 : announced.matchedBlocks(request, chosen) * blockTokens - cachedTokens,
        }),
        booking: routed.book(slotOf(chosen), hashes),
        promisedTokens,
        cachedTokens: null,
        firstTokenMs: 0,
      });
      return chosen;
    },
    onFirstToken(request, _engine, cachedTokens) {
      const reservation = held.get(request.index);
      if (!reservation) return;
      reservation.load.firstByte();
      // In `serve` it comes with the usage, at the end.
      reservation.cachedTokens = cachedTokens;
      reservation.firstTokenMs = clock.nowMs();
    },
    onEnd(request, engine, outcome) {
      const reservation = held.get(request.index);
      if (!reservation) return;
      held.delete(request.index);
      const { cachedTokens, promisedTokens, firstTokenMs } = reservation;
      if (cachedTokens !== null && outcome === 'completed') {
        const computedTokens = request.promptTokens - cachedTokens + request.outputTokens;
        trust.computed(slotOf(engine), computedTokens, firstTokenMs);
        trust.served(slotOf(engine), promisedTokens, cachedTokens);
      }
      reservation.load.release(cachedTokens === null ? undefined : request.promptTokens - cachedTokens);
      reservation.booking.end(outcome === 'failed' ? 'drop' : events === 'whole' ? 'grace' : 'keep');
    },
    onBlocks(engine, changes, { sentMs, comes }) {
      // As `serve` does where no replay brings back what is missing.
      if (comes === 'after a gap') announced.forget(engine);
      announced.apply(engine, changes);
      proofs.set(engine.id, { provenUnixMs: clock.unixMs(), lagMs: clock.nowMs() - sentMs });
    },
    onMetrics(engine, reading) {
      expectedLoad.asked(slotOf(engine));
      expectedLoad.read(slotOf(engine), reading);
    },
    onGone(engine) {
      announced.forget(engine);
      proofs.delete(engine.id);
      trust.forget(slotOf(engine));
      routed.forget(slotOf(engine));
      evictionAges.forget(slotOf(engine));
      inFlight.forget(slotOf(engine));
      expectedLoad.forget(slotOf(engine));
    },
  };
};

type EventProof = Pick<CacheEvidence, 'provenUnixMs' | 'lagMs'>;

type Held = {
  readonly load: LoadReservation;
  readonly booking: Booking;
  /** At the choice. */
  readonly promisedTokens: number;
  /** Null until the first token. */
  cachedTokens: number | null;
  firstTokenMs: number;
};

const TRUST = { whole: 'exact', gaps: 'degraded', none: 'fallback' } as const;

/** Two mixed words per block, as if tokens had been hashed: ids are dense, tables expect keys that are not. */
function keysOf({ blocks }: EngineRequest): BlockHashes {
  const keys = new Uint32Array(2 * blocks.length);
  for (let i = 0; i < blocks.length; i++) {
    let h = Math.imul(blocks[i]! + 1, 0x9e3779b1);
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    keys[2 * i] = blocks[i]!;
    keys[2 * i + 1] = (h ^ (h >>> 13)) >>> 0;
  }
  return keys as BlockHashes;
}
