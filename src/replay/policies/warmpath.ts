/**
 * The product's own decision: the cost of src/scheduling, the load of src/load, the routed prefixes of src/prefix, on
 * virtual time. Only where the blocks come from differs from `serve`: ids of a workload instead of hashed tokens.
 */
import type { EndpointSlot } from '../../endpoints/endpoint.ts';
import { createExpectedLoad } from '../../load/expected-load.ts';
import { createInFlight, type LoadReservation } from '../../load/in-flight.ts';
import type { BlockHashes } from '../../prefix/block-hash.ts';
import { createRoutedPrefixes, type Booking } from '../../prefix/routed-prefixes.ts';
import { schedule } from '../../scheduling/scheduler.ts';
import type { EngineRequest } from '../engine.ts';
import { METRICS_INTERVAL_MS, type CreatePolicy, type EngineProbe } from './policy.ts';
import { createAnnouncedBlocks } from './tracking.ts';

export const createWarmpath: CreatePolicy = ({ clock, blockTokens, cacheBlocks, events }) => {
  const inFlight = createInFlight(clock);
  const expectedLoad = createExpectedLoad({ inFlight, clock }, { intervalMs: METRICS_INTERVAL_MS });
  const routed = createRoutedPrefixes(clock, { keptBlocksPerSlot: cacheBlocks });
  const announced = createAnnouncedBlocks();
  const held = new Map<number, { load: LoadReservation; booking: Booking; cachedTokens: number | null }>();
  const slotOf = ({ id }: EngineProbe): EndpointSlot => id as EndpointSlot;

  return {
    choose(request, engines) {
      const hashes = keysOf(request);
      const onTheWay = routed.longestMatch(hashes);
      const candidates = engines.map((engine) => {
        const nAnnounced = events === 'none' ? 0 : announced.matchedBlocks(request, engine);
        const nBlocks = Math.max(nAnnounced, onTheWay.blocks(slotOf(engine)));
        return {
          address: engine.address,
          trust: TRUST[events],
          cachedTokens: Math.min(nBlocks * blockTokens, request.promptTokens - 1),
          load: expectedLoad.of({ slot: slotOf(engine) }),
        };
      });
      const mostCached = Math.max(...candidates.map(({ cachedTokens }) => cachedTokens));
      const nCached = Math.min(Math.ceil(mostCached / blockTokens), request.blocks.length);
      const { order } = schedule({
        candidates,
        promptTokens: request.promptTokens,
        tieKey: hashes[2 * Math.min(nCached, request.blocks.length - 1) + 1] ?? request.index,
        sharers: engines.reduce((sum, engine) => sum + onTheWay.bookings(slotOf(engine), nCached), 0),
      });
      const chosen = engines[order[0]!]!;
      held.set(request.index, {
        load: inFlight.reserve(slotOf(chosen), request.promptTokens - candidates[order[0]!]!.cachedTokens, {
          promptTokens: request.promptTokens,
        }),
        booking: routed.book(slotOf(chosen), hashes),
        cachedTokens: null,
      });
      return chosen;
    },
    onFirstToken(request, _engine, cachedTokens) {
      const reservation = held.get(request.index);
      if (!reservation) return;
      reservation.load.firstByte();
      // In `serve` it comes with the usage, at the end.
      reservation.cachedTokens = cachedTokens;
    },
    onEnd(request, _engine, outcome) {
      const reservation = held.get(request.index);
      if (!reservation) return;
      held.delete(request.index);
      const { cachedTokens } = reservation;
      reservation.load.release(cachedTokens === null ? undefined : request.promptTokens - cachedTokens);
      reservation.booking.end(outcome === 'failed' ? 'drop' : events === 'whole' ? 'grace' : 'keep');
    },
    onBlocks: announced.apply,
    onMetrics(engine, reading) {
      expectedLoad.asked(slotOf(engine));
      expectedLoad.read(slotOf(engine), reading);
    },
    onGone(engine) {
      announced.forget(engine);
      routed.forget(slotOf(engine));
      inFlight.forget(slotOf(engine));
      expectedLoad.forget(slotOf(engine));
    },
  };
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
