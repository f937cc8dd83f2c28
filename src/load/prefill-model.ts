/**
 * How long an engine takes for a prompt: a fixed part plus a part per uncached token, learnt from prompts whose start and
 * first token were seen. Every endpoint has its own; until it has shown enough, the fleet's answers for it.
 * Least squares over exponentially forgotten samples; no I/O, no clock.
 */

export type PrefillModel = {
  /** Milliseconds for any prompt, ≥ 0. */
  readonly setupMs: number;
  /** Milliseconds per uncached token, > 0. */
  readonly msPerToken: number;
};

export type PrefillModels = {
  of(slot: number): PrefillModel;
  /** @param serviceMs from the moment the engine was free for the prompt to its first token */
  learn(slot: number, uncachedTokens: number, serviceMs: number): void;
  forget(slot: number): void;
};

/** Weighted sums of samples (x = tokens, y = milliseconds). */
type Sums = { n: number; x: number; y: number; xx: number; xy: number };

/** A sample's weight halves every 69 samples of its endpoint. */
const ENDPOINT_MEMORY = 0.99;
/** The same for the whole fleet: 693 samples. */
const FLEET_MEMORY = 0.999;
/** Samples of an endpoint that weigh as much as all the fleet's. */
const FLEET_WEIGHT = 10;
/** The assumption stands for so many samples, of such prompts. */
const ASSUMED_SAMPLES = 2;
const ASSUMED_TOKENS = [1000, 8000] as const;

export function createPrefillModels(assumedMsPerToken: number): PrefillModels {
  const fleet: Sums = { n: 0, x: 0, y: 0, xx: 0, xy: 0 };
  for (let i = 0; i < ASSUMED_SAMPLES; i++) {
    for (const tokens of ASSUMED_TOKENS) add(fleet, 1, tokens, tokens * assumedMsPerToken);
  }
  const bySlot = new Map<number, Sums>();
  const cached = new Map<number, PrefillModel>();
  let ofFleet: PrefillModel | null = null;

  return {
    of(slot) {
      const own = bySlot.get(slot);
      if (!own) return (ofFleet ??= fit(fleet));
      let model = cached.get(slot);
      if (!model) cached.set(slot, (model = fit(together(own, fleet))));
      return model;
    },
    learn(slot, uncachedTokens, serviceMs) {
      if (!(uncachedTokens > 0) || !(serviceMs >= 0) || !Number.isFinite(uncachedTokens + serviceMs)) return;
      let own = bySlot.get(slot);
      if (!own) bySlot.set(slot, (own = { n: 0, x: 0, y: 0, xx: 0, xy: 0 }));
      add(own, ENDPOINT_MEMORY, uncachedTokens, serviceMs);
      add(fleet, FLEET_MEMORY, uncachedTokens, serviceMs);
      cached.delete(slot);
      ofFleet = null;
    },
    forget(slot) {
      bySlot.delete(slot);
      cached.delete(slot);
    },
  };
}

function add(sums: Sums, memory: number, x: number, y: number): void {
  sums.n = sums.n * memory + 1;
  sums.x = sums.x * memory + x;
  sums.y = sums.y * memory + y;
  sums.xx = sums.xx * memory + x * x;
  sums.xy = sums.xy * memory + x * y;
}

function together(own: Sums, fleet: Sums): Sums {
  const weight = Math.min(1, FLEET_WEIGHT / fleet.n);
  return {
    n: own.n + weight * fleet.n,
    x: own.x + weight * fleet.x,
    y: own.y + weight * fleet.y,
    xx: own.xx + weight * fleet.xx,
    xy: own.xy + weight * fleet.xy,
  };
}

/** The line through the samples; through the origin where the best one would start below it or fall. */
function fit({ n, x, y, xx, xy }: Sums): PrefillModel {
  const spread = n * xx - x * x;
  const msPerToken = spread > 1e-9 * n * xx ? (n * xy - x * y) / spread : 0;
  const setupMs = (y - msPerToken * x) / n;
  if (msPerToken > 0 && setupMs >= 0) return { setupMs, msPerToken };
  return { setupMs: 0, msPerToken: Math.max(y / x, 1e-6) };
}
