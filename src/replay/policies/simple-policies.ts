/** Policies that know load only: random, round-robin, least-request; and consistent hashing with bounded loads. */
import { rendezvousWeight } from '../../scheduling/scheduler.ts';
import { lowest, type CreatePolicy, type EngineProbe } from './policy.ts';
import { createInFlightSum } from './tracking.ts';

export const createRandomPolicy: CreatePolicy = ({ random }) => ({
  choose: (_request, engines) => engines[Math.floor(random() * engines.length)]!,
});

export const createRoundRobin: CreatePolicy = () => {
  let next = 0;
  return { choose: (_request, engines) => engines[next++ % engines.length]! };
};

/** Own requests in flight; ties at random. */
export const createLeastRequest: CreatePolicy = ({ random }) => {
  const inFlight = createInFlightSum();
  return {
    choose(request, engines) {
      const chosen = lowest(engines, inFlight.of, random);
      inFlight.add(request, chosen, 1);
      return chosen;
    },
    onEnd: inFlight.remove,
  };
};

const VIRTUAL_NODES = 256;
const MOST_LOAD = 1.25;

/** Consistent hashing of the first 100 characters (they lie in the first block) with loads bounded to 1.25 × mean. */
export const createBoundedHash: CreatePolicy = () => {
  const inFlight = createInFlightSum();
  const rings = new Map<string, { hash: number; engine: EngineProbe }[]>();
  const ringOf = (engines: readonly EngineProbe[]): { hash: number; engine: EngineProbe }[] => {
    const key = engines.map(({ id }) => id).join();
    let ring = rings.get(key);
    if (!ring) {
      ring = engines.flatMap((engine) =>
        Array.from({ length: VIRTUAL_NODES }, (_, i) => ({ hash: rendezvousWeight(i, engine.address), engine })),
      );
      ring.sort((a, b) => a.hash - b.hash);
      rings.set(key, ring);
    }
    return ring;
  };
  return {
    choose(request, engines) {
      const ring = ringOf(engines);
      const key = rendezvousWeight((request.blocks[0] ?? request.index) + 1, 'prefix');
      const total = engines.reduce((sum, engine) => sum + inFlight.of(engine), 0) + 1;
      const most = Math.ceil((MOST_LOAD * total) / engines.length);
      let start = ring.findIndex(({ hash }) => hash >= key);
      if (start < 0) start = 0;
      let chosen = ring[start]!.engine;
      for (let i = 0; i < ring.length; i++) {
        chosen = ring[(start + i) % ring.length]!.engine;
        if (inFlight.of(chosen) + 1 <= most) break;
      }
      inFlight.add(request, chosen, 1);
      return chosen;
    },
    onEnd: inFlight.remove,
  };
};
