/** What the parts of the tokens bench are built of, and the rows of the table they fill. */
import { LightSignal } from '../../src/light-signal.ts';
import { createEndpointPicker, type Picker } from '../../src/endpoint-picker.ts';
import { createEndpointStore } from '../../src/endpoints/endpoint-store.ts';
import type { Clock } from '../../src/clock.ts';
import type { PickRequest } from '../../src/extproc/picker.ts';
import { createExpectedLoad } from '../../src/load/expected-load.ts';
import { createInFlight } from '../../src/load/in-flight.ts';
import type { DecisionRecord } from '../../src/picking/decision-record.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { createPrefixIndexMemory, openPrefixIndexReader } from '../../src/prefix/prefix-index.ts';
import { createEvictionAges } from '../../src/prefix/eviction-ages.ts';
import { createRoutedPrefixes } from '../../src/prefix/routed-prefixes.ts';
import { createTokenizerLadder } from '../../src/tokenizer/tokenizer-ladder.ts';
import type { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { aSpec } from '../support/endpoints.ts';
import { PREFIX_CACHE_ONLY } from '../support/routing.ts';

/** `must` and `met` only where there is something to reach. */
export type Row = {
  readonly what: string;
  readonly measured: string;
  readonly must?: string;
  readonly met?: boolean;
};

export const BLOCK = 16;
export const N_ENGINES = 8;
export const BUDGET_MS = 50;
/** As the processor makes one for each request. */
export const never = (): LightSignal => new LightSignal();

/** Parts run in processes of their own: one row a line. */
export function tell(row: Row): void {
  process.stdout.write(`${JSON.stringify(row)}\n`);
}

/** @param sorted ascending */
export function percentile(sorted: readonly number[], part: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN;
}

export function endpointsOf(n: number) {
  const endpoints = createEndpointStore();
  endpoints.replace(
    Array.from({ length: n }, (_, i) => aSpec({ name: `pod-${i}`, address: `10.0.0.${i + 1}:8000`, models: ['m'] })),
  );
  return endpoints;
}

export function chatRequest(body: Buffer): PickRequest {
  return {
    method: 'POST',
    path: '/v1/chat/completions',
    header: () => undefined,
    body,
    bodyTruncated: false,
    subset: { kind: 'all' },
  };
}

/** Engines that say nothing of themselves. */
export function ownLoad(clock: Clock) {
  const inFlight = createInFlight(clock);
  return {
    inFlight,
    expectedLoad: createExpectedLoad({ inFlight, clock }, { intervalMs: 1000 }),
    isDown: () => false,
    signals: () => ({ kvUsage: null, answerMs: null, tokensPerSecond: 0 }),
    forecast: () => ({ outputTokens: null, answerMs: null }),
    random: () => 0.5,
  };
}

/** A picker over engines that hold nothing. */
export function anIdlePicker(
  clock: Clock,
  tokenizer: Tokenizer | null,
  record: (record: DecisionRecord) => void,
  budgetMs = BUDGET_MS,
): Picker {
  const hasher = createBlockHasher(createHashSeed());
  return createEndpointPicker(
    {
      clock,
      endpoints: endpointsOf(N_ENGINES),
      knowledge: () => ({ trust: 'exact', blockSizeTokens: BLOCK, coverage: 'whole' }),
      creditWeights: () => ({ fresh: 1, delivered: 1 }),
      index: openPrefixIndexReader(createPrefixIndexMemory({ maxBytes: 1 << 20 })),
      hasher,
      routed: createRoutedPrefixes(clock),
      evictionAges: createEvictionAges(clock, { capacityBlocks: () => null }),
      ...ownLoad(clock),
      tokenizer,
      ladder: createTokenizerLadder({ hasher, clock }, { memoMaxBytes: 1 << 20, budgetMs }),
      record,
      recordEnd: () => undefined,
    },
    { budgetMs, fallbackEndpoints: 2, ...PREFIX_CACHE_ONLY },
  );
}
