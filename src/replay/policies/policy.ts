/** What a routing policy sees of the fleet and what it is told. Policies are synchronous and have no clock of their own. */
import type { Clock } from '../../clock.ts';
import type { BlockChanges } from '../block-cache.ts';
import type { EngineRequest } from '../engine.ts';

/** An engine as its own metrics would show it, without delay: kinder than any scrape. */
export type EngineProbe = {
  /** Position in the fleet; stays when engines come and go. */
  readonly id: number;
  readonly address: string;
  nRunning(): number;
  nWaiting(): number;
  /** Part of its KV cache in use by requests, 0…1. */
  kvUsage(): number;
  /** For the oracle alone: no router can know. */
  readonly secrets: {
    has(blockId: number): boolean;
    /** Prompt tokens computed since the start. */
    computedTokens(): number;
    /** Time that so many prompt tokens take beside what runs now. */
    prefillMs(nTokens: number): number;
  };
};

/** A router that reads engines' metrics does it that often. */
export const METRICS_INTERVAL_MS = 1000;

/** What the events themselves show of their way. */
export type EventBatch = {
  /** When the engine sent it. */
  readonly sentMs: number;
  /** Whether its number follows that of the last one. */
  readonly comes: 'next' | 'after a gap';
};

export type Policy = {
  /** @returns one of `engines`, which is never empty */
  choose(request: EngineRequest, engines: readonly EngineProbe[]): EngineProbe;
  onFirstToken?(request: EngineRequest, engine: EngineProbe, cachedTokens: number): void;
  /** The last token came, or the engine died under the request. */
  onEnd?(request: EngineRequest, engine: EngineProbe, outcome: 'completed' | 'failed'): void;
  /** KV events, late or with holes as the scenario says. */
  onBlocks?(engine: EngineProbe, changes: BlockChanges, batch: EventBatch): void;
  /** What `/metrics` says when it is read, every `METRICS_INTERVAL_MS`. */
  onMetrics?(engine: EngineProbe, reading: { readonly running: number; readonly waiting: number }): void;
  /** Another process, or none, is behind the engine's address now. */
  onGone?(engine: EngineProbe): void;
};

export type PolicyContext = {
  readonly clock: Clock;
  readonly random: () => number;
  /** Tokens per engine block. */
  readonly blockTokens: number;
  /** Blocks of an engine's cache, as its cache_config metric says. */
  readonly cacheBlocks: number;
  /** What can be known of the event streams: whole, with gaps in the sequence numbers, or none at all. */
  readonly events: 'whole' | 'gaps' | 'none';
};

export type CreatePolicy = (context: PolicyContext) => Policy;

/** The engines with the lowest value; ties at random, as peers break theirs. */
export function lowest(
  engines: readonly EngineProbe[],
  value: (engine: EngineProbe) => number,
  random: () => number,
): EngineProbe {
  let best: EngineProbe[] = [];
  let least = Infinity;
  for (const engine of engines) {
    const v = value(engine);
    if (v > least) continue;
    if (v < least) best = [];
    least = v;
    best.push(engine);
  }
  return best[Math.floor(random() * best.length)]!;
}
