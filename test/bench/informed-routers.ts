/**
 * A mark for routers that do not talk: each knows at once, and exactly, what the others have sent and what became of it, all
 * but what they send at this very moment. No router can know more without exchange. Every router has endpoints of its own
 * for what it cannot see coming, as the product's routers find for themselves.
 */
import type { EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createInFlight, type LoadReservation } from '../../src/load/in-flight.ts';
import type { BlockHashes } from '../../src/prefix/block-hash.ts';
import { createPrefixForks, forkKey, type ForkKey } from '../../src/prefix/prefix-forks.ts';
import { createRoutedPrefixes, type Booking } from '../../src/prefix/routed-prefixes.ts';
import type { EngineRequest } from '../../src/replay/engine.ts';
import type { CreatePolicy, EngineProbe } from '../../src/replay/policies/policy.ts';
import { createAnnouncedBlocks } from '../../src/replay/policies/tracking.ts';
import { schedule } from '../../src/scheduling/scheduler.ts';

type Choice = {
  atMs: number;
  by: Router;
  request: EngineRequest;
  engine: EngineProbe;
  uncachedTokens: number;
  fork: ForkKey | null;
};
type Router = {
  adopt(choice: Choice): void;
  firstToken(request: EngineRequest, cachedTokens: number): void;
  end(request: EngineRequest): void;
};

/** For one replay. */
export function informedRouters(): CreatePolicy {
  const routers: Router[] = [];
  /** Of the latest moment: the others do not know them yet. */
  let untold: Choice[] = [];
  return ({ clock, blockTokens, cacheBlocks }) => {
    const inFlight = createInFlight(clock);
    const routed = createRoutedPrefixes(clock, { keptBlocksPerSlot: cacheBlocks });
    const announced = createAnnouncedBlocks();
    const forks = createPrefixForks(clock);
    const held = new Map<number, { load: LoadReservation; booking: Booking; uncachedTokens: number | undefined }>();
    const self: Router = {
      adopt({ request, engine, uncachedTokens, fork }) {
        forks.add(fork);
        const { promptTokens } = request;
        const load = inFlight.reserve(engine.id, uncachedTokens, { promptTokens });
        held.set(request.index, { load, booking: routed.book(engine.id, keysOf(request)), uncachedTokens: undefined });
      },
      firstToken(request, cachedTokens) {
        const reservation = held.get(request.index)!;
        reservation.load.firstByte();
        reservation.uncachedTokens = request.promptTokens - cachedTokens;
      },
      end(request) {
        const { load, booking, uncachedTokens } = held.get(request.index)!;
        held.delete(request.index);
        load.release(uncachedTokens);
        booking.end('grace');
      },
    };
    const place = routers.push(self) - 1;
    const tell = (): void => {
      if (untold.length === 0 || untold[0]!.atMs === clock.nowMs()) return;
      for (const choice of untold) for (const router of routers) if (router !== choice.by) router.adopt(choice);
      untold = [];
    };
    return {
      choose(request, engines) {
        tell();
        const keys = keysOf(request);
        const onTheWay = routed.longestMatch(keys);
        const { burstMs, promptTokens } = inFlight.typical();
        const perForeignEngineMs = burstMs / engines.length;
        const candidates = engines.map((engine) => {
          const nBlocks = Math.max(announced.matchedBlocks(request, engine), onTheWay.blocks(engine.id));
          const load = inFlight.load(engine.id);
          const promptMs = load.prefillSetupMs + (promptTokens || 1) * load.prefillMsPerToken;
          const unseenMs = engine.id % routers.length === place ? 0 : perForeignEngineMs;
          return {
            address: engine.address,
            trust: 'exact' as const,
            cachedTokens: Math.min(nBlocks * blockTokens, request.promptTokens - 1),
            evictedAgeMs: null,
            load: { ...load, unseenMs, unseenPrompts: unseenMs / promptMs },
          };
        });
        const nCached = Math.ceil(Math.max(...candidates.map(({ cachedTokens }) => cachedTokens)) / blockTokens);
        const fork = forkKey(keys, nCached);
        const sharers = engines.reduce((n, { id }) => n + onTheWay.bookings(id as EndpointSlot, nCached), 0);
        const { order } = schedule({
          candidates,
          promptTokens: request.promptTokens,
          tieKey: request.blocks[Math.min(nCached, request.blocks.length - 1)] ?? request.index,
          sharers: Math.max(sharers, forks.count(fork)),
        });
        const engine = engines[order[0]!]!;
        const uncachedTokens = request.promptTokens - candidates[order[0]!]!.cachedTokens;
        const choice = { atMs: clock.nowMs(), by: self, request, engine, uncachedTokens, fork };
        self.adopt(choice);
        untold.push(choice);
        return engine;
      },
      onFirstToken(request, _engine, cachedTokens) {
        tell();
        for (const router of routers) router.firstToken(request, cachedTokens);
      },
      onEnd(request) {
        tell();
        for (const router of routers) router.end(request);
      },
      onBlocks: announced.apply,
    };
  };
}

/** Two mixed words per block. */
function keysOf({ blocks }: EngineRequest): BlockHashes {
  const keys = new Uint32Array(2 * blocks.length);
  blocks.forEach((block, i) => keys.set([block, Math.imul(block + 1, 0x9e3779b1)], 2 * i));
  return keys as BlockHashes;
}
