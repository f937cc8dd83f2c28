/**
 * How long an engine takes for a prompt: a fixed part plus a part per uncached token. The line is the fleet's, least squares
 * over exponentially forgotten samples; every endpoint has a factor of its own, its time ÷ the line's. One number per
 * endpoint instead of a line: a hundred prompts are enough to know it within a percent or two. Until then endpoints of its
 * kind (equal GPUs) answer for it. No I/O, no clock.
 */

export type PrefillModel = {
  /** Milliseconds for any prompt, ≥ 0. */
  readonly setupMs: number;
  /** Milliseconds per uncached token, > 0. */
  readonly msPerToken: number;
};

export type PrefillModels = {
  of(slot: number): PrefillModel;
  /**
   * @param serviceMs from the moment the engine was free for the prompt, as far as is known, to its first token
   * @param company whether others send prompts there, too: a sample may then hold theirs, and only one that is faster
   *   than expected says what it seems to say
   */
  learn(slot: number, uncachedTokens: number, serviceMs: number, company?: Company): void;
  forget(slot: number): void;
};

export type Company = 'alone' | 'with others';

/** Weighted sums of samples (x = tokens, y = milliseconds). */
type Sums = { n: number; x: number; y: number; xx: number; xy: number };
/** Weighted sums of an endpoint's samples: with the line of the moment they say what was expected of it. */
type Times = { n: number; tokens: number; actualMs: number };

/** A sample's weight halves every 69 samples of its endpoint. */
const ENDPOINT_MEMORY = 0.99;
/** The same for the whole fleet: 693 samples. */
const FLEET_MEMORY = 0.999;
/** Kinds beyond are not told apart: a fleet has few, a wrong label could bring many. */
const MAX_KINDS = 64;
/** An endpoint is as fast as its kind, and a kind as the line says, until so many samples of its own weigh as much. */
const FLEET_WEIGHT = 10;
/** The assumption stands for so many samples, of such prompts. */
const ASSUMED_SAMPLES = 2;
const ASSUMED_TOKENS = [1000, 8000] as const;
/** A measured speed is taken to be that of such a prompt. */
const SEED_TOKENS = 4000;
/** Where others' prompts may be in a sample: the part by which it may exceed what was expected. */
const MOST_EXCESS = 0.03;

/**
 * @param kindOf names endpoints that are alike; null = not known of what kind it is
 * @param seedMsPerTokenOf what somebody has measured of an endpoint, or of its kind, before; null = nothing
 */
export function createPrefillModels(
  assumedMsPerToken: number,
  kindOf: (slot: number) => string | null = () => null,
  seedMsPerTokenOf: (slot: number) => number | null = () => null,
): PrefillModels {
  const fleet: Sums = { n: 0, x: 0, y: 0, xx: 0, xy: 0 };
  for (let i = 0; i < ASSUMED_SAMPLES; i++) {
    for (const tokens of ASSUMED_TOKENS) add(fleet, 1, tokens, tokens * assumedMsPerToken);
  }
  let line = fit(fleet);
  const bySlot = new Map<number, Times>();
  const byKind = new Map<string, Times>();

  function factorOf(slot: number): number {
    const kind = kindOf(slot);
    const seed = seedMsPerTokenOf(slot);
    const others = seed === null ? 1 : (seed * SEED_TOKENS) / (line.setupMs + SEED_TOKENS * line.msPerToken);
    return leaning(bySlot.get(slot), kind === null ? others : leaning(byKind.get(kind), others));
  }

  /** @param factor of those it leans on until it has shown enough itself */
  function leaning(own: Times | undefined, factor: number): number {
    if (!own) return factor;
    const expectedMs = own.n * line.setupMs + own.tokens * line.msPerToken;
    // These samples keep the factor above 0.
    const othersMs = (FLEET_WEIGHT * expectedMs) / own.n;
    return (own.actualMs + factor * othersMs) / (expectedMs + othersMs);
  }

  function learnOf<Key>(of: Map<Key, Times>, key: Key, memory: number, uncachedTokens: number, actualMs: number): void {
    let own = of.get(key);
    if (!own) of.set(key, (own = { n: 0, tokens: 0, actualMs: 0 }));
    own.n = own.n * memory + 1;
    own.tokens = own.tokens * memory + uncachedTokens;
    own.actualMs = own.actualMs * memory + actualMs;
  }

  return {
    of(slot) {
      const factor = factorOf(slot);
      return { setupMs: factor * line.setupMs, msPerToken: factor * line.msPerToken };
    },
    learn(slot, uncachedTokens, serviceMs, company = 'alone') {
      if (!(uncachedTokens > 0) || !(serviceMs >= 0) || !Number.isFinite(uncachedTokens + serviceMs)) return;
      const factor = factorOf(slot);
      const expectedMs = line.setupMs + uncachedTokens * line.msPerToken;
      const mostMs = company === 'alone' ? Infinity : factor * expectedMs * (1 + MOST_EXCESS);
      const actualMs = Math.min(serviceMs, mostMs);
      add(fleet, FLEET_MEMORY, uncachedTokens, actualMs);
      learnOf(bySlot, slot, ENDPOINT_MEMORY, uncachedTokens, actualMs);
      const kind = kindOf(slot);
      if (kind !== null && (byKind.has(kind) || byKind.size < MAX_KINDS)) {
        learnOf(byKind, kind, FLEET_MEMORY, uncachedTokens, actualMs);
      }
      line = fit(fleet);
    },
    forget: (slot) => void bySlot.delete(slot),
  };
}

function add(sums: Sums, memory: number, x: number, y: number): void {
  sums.n = sums.n * memory + 1;
  sums.x = sums.x * memory + x;
  sums.y = sums.y * memory + y;
  sums.xx = sums.xx * memory + x * x;
  sums.xy = sums.xy * memory + x * y;
}

/** The line through the samples; through the origin where the best one would start below it or fall. */
function fit({ n, x, y, xx, xy }: Sums): PrefillModel {
  const spread = n * xx - x * x;
  const msPerToken = spread > 1e-9 * n * xx ? (n * xy - x * y) / spread : 0;
  const setupMs = (y - msPerToken * x) / n;
  if (msPerToken > 0 && setupMs >= 0) return { setupMs, msPerToken };
  return { setupMs: 0, msPerToken: Math.max(y / x, 1e-6) };
}
