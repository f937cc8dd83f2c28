/** The parts of load as one: what is in flight, what engines say of themselves, what they have shown while serving. */
import type { Clock } from '../clock.ts';
import type { Endpoint, EndpointSlot } from '../endpoints/endpoint.ts';
import type { Log } from '../log.ts';
import { createCacheTrust, type CacheEvidence, type CreditWeights } from './cache-trust.ts';
import { createEngineMetrics, type EngineMetrics, type EngineMetricsDeps } from './engine-metrics.ts';
import { createEngineModels, type EngineModelsDeps } from './engine-models.ts';
import { createEngineProfiles, type EngineProfiles } from './engine-profile.ts';
import { NO_SEEDS, type EngineSeed, type EngineSeeds } from './engine-seeds.ts';
import { createExpectedLoad, type ExpectedLoad } from './expected-load.ts';
import { createHttpGet } from '../http/http-get.ts';
import {
  ASSUMED_PREFILL_TOKENS_PER_SECOND,
  createInFlight,
  type AnswerForm,
  type InFlight,
  type Load,
} from './in-flight.ts';
import { createOutputPredictor } from './output-predictor.ts';

export type FleetLoad = {
  readonly inFlight: InFlight;
  readonly expected: Pick<ExpectedLoad, 'of' | 'allPerOwn'>;
  readonly metrics: Pick<EngineMetrics, 'of' | 'isDown'>;
  readonly profiles: EngineProfiles;
  /** What a promise of cached tokens is worth there. @param events null = none that are believed */
  creditWeights(slot: EndpointSlot, events: EventEvidence | null): CreditWeights;
  /** What strategies look at beside the load; what was last heard of too long ago is not known. */
  signals(endpoint: Endpoint): {
    readonly kvUsage: number | null;
    readonly answerMs: number | null;
    readonly tokensPerSecond: number;
  };
  /** What a request will take that goes to the endpoint now, as far as anything like it was seen. */
  forecast(endpoint: Pick<Endpoint, 'slot'>, request: ForecastRequest): Forecast;
  /** A request is over; what was cancelled, failed or only assumed to be over teaches nothing. */
  ended(request: EndedRequest): void;
  /** The endpoints that are asked, from `start` on. */
  reconcile(endpoints: readonly Endpoint[]): void;
  /** What is measured of engines before they have shown anything. */
  seed(seeds: EngineSeeds): void;
  /** Another process is behind the slot, or none. */
  forget(slot: EndpointSlot): void;
  start(): void;
  stop(): Promise<void>;
};

export type EventEvidence = Pick<CacheEvidence, 'provenUnixMs' | 'lagMs' | 'heldTokens'>;

export type ForecastRequest = {
  readonly model: string;
  readonly promptTokens: number;
  readonly uncachedTokens: number;
  /** Generated side by side. */
  readonly nAnswers: number;
  readonly load: Load;
};

/** Null = nothing to go by. */
export type Forecast = {
  readonly outputTokens: number | null;
  /** From the choice to the end of the answer, milliseconds. */
  readonly answerMs: number | null;
};

export type EndedRequest = {
  readonly model: string;
  readonly endpoint: Pick<Endpoint, 'slot'>;
  readonly outcome: 'completed' | 'cancelled' | 'failed' | 'assumed';
  readonly promptTokens: number;
  /** Of an exact prompt: tokens the endpoint was expected to have. Null = the prompt was not known. */
  readonly promisedTokens: number | null;
  /** Generated side by side. */
  readonly nAnswers: number;
  readonly usage: { readonly completionTokens: number; readonly cachedTokens: number | null } | null;
  readonly decidedMs: number;
  readonly firstByteMs: number | null;
  readonly endMs: number;
  readonly answer: AnswerForm;
};

export type FleetLoadDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly onScrape: EngineMetricsDeps['onScrape'];
  readonly onAdapters: EngineModelsDeps['onAdapters'];
  readonly onReplaced: EngineModelsDeps['onReplaced'];
};

export type FleetLoadOptions = {
  readonly metricsIntervalMs: number;
  readonly adapterIntervalMs: number;
  /** Off: nothing is kept of what engines show while serving. */
  readonly engineProfileCaching: boolean;
  /** Endpoints with one value of this label are expected to be equally fast; null = nothing says so. */
  readonly gpuTypeLabel: string | null;
};

/** An endpoint whose page is missing must not be the emptiest one for ever, */
const MOST_INTERVALS = 10;
/** nor the slowest one since nobody asks it. */
const MOST_ANSWER_AGE_MS = 300_000;

/** A page of vLLM 0.32 has 70 KB, and comes within milliseconds. */
const PAGE_LIMITS = { timeoutMs: 2_000, maxBytes: 4 * 1024 * 1024 };

export function createFleetLoad(
  { log, clock, onScrape, onAdapters, onReplaced }: FleetLoadDeps,
  { metricsIntervalMs: intervalMs, adapterIntervalMs, engineProfileCaching, gpuTypeLabel }: FleetLoadOptions,
): FleetLoad {
  const kinds = new Map<number, string>();
  let seeds = NO_SEEDS;
  const seedBySlot = new Map<number, EngineSeed>();
  const learning = engineProfileCaching ? 'on' : 'off';
  const inFlight = createInFlight(clock, ASSUMED_PREFILL_TOKENS_PER_SECOND, {
    kindOf: (slot) => kinds.get(slot) ?? null,
    seedMsPerTokenOf(slot) {
      const rate = seedBySlot.get(slot)?.prefillTokensPerSecond ?? null;
      return rate === null ? null : 1000 / rate;
    },
    learning,
  });
  const expected = createExpectedLoad({ inFlight, clock }, { intervalMs });
  const profiles = createEngineProfiles(clock, learning, (slot) => seedBySlot.get(slot) ?? null);
  const cacheTrust = createCacheTrust(clock);
  const outputs = createOutputPredictor(clock);
  const http = createHttpGet(clock, PAGE_LIMITS);
  const metrics = createEngineMetrics(
    {
      log,
      clock,
      get: http.get,
      onAsk: ({ slot }) => expected.asked(slot),
      onReading({ slot }, reading) {
        expected.read(slot, reading);
        profiles.read(slot, reading);
      },
      onScrape,
    },
    { intervalMs },
  );
  const models = createEngineModels(
    { log, clock, get: http.get, onAdapters, onReplaced },
    { intervalMs: adapterIntervalMs },
  );
  let wanted: readonly Endpoint[] = [];
  let running = false;

  function follow(): void {
    metrics.reconcile(wanted);
    models.reconcile(wanted);
  }

  function placeSeeds(): void {
    seedBySlot.clear();
    if (seeds.nProfiles === 0) return;
    for (const endpoint of wanted) seedBySlot.set(endpoint.slot, seeds.of(endpoint));
  }

  return {
    inFlight,
    expected,
    metrics,
    profiles,
    creditWeights(slot, events) {
      if (events === null) return cacheTrust.of(slot, null);
      const { capacityTokens } = profiles.of(slot);
      return cacheTrust.of(slot, { ...events, capacityTokens, allPerOwn: expected.allPerOwn() });
    },
    signals({ id, slot }) {
      const { answerMs, tokensPerSecond } = profiles.of(slot);
      const engine = metrics.of(id);
      const kvUsage = engine === null || engine.ageMs > MOST_INTERVALS * intervalMs ? null : engine.kvUsage;
      const isOfLate = clock.nowMs() - (profiles.answerSeenMs(slot) ?? -Infinity) <= MOST_ANSWER_AGE_MS;
      return { kvUsage, answerMs: isOfLate ? answerMs : null, tokensPerSecond };
    },
    forecast({ slot }, { model, promptTokens, uncachedTokens, nAnswers, load }) {
      const tokensOfOne = outputs.predict(model, promptTokens);
      const outputTokens = tokensOfOne === null ? null : tokensOfOne * nAnswers;
      const { answerMs, decodeMsPerToken } = profiles.of(slot);
      if (tokensOfOne === null || decodeMsPerToken === null) return { outputTokens, answerMs };
      const prefillMs = load.waitMs + load.prefillSetupMs + uncachedTokens * load.prefillMsPerToken;
      return { outputTokens, answerMs: prefillMs + tokensOfOne * decodeMsPerToken };
    },
    ended(request) {
      const { endpoint, model, outcome, promptTokens, promisedTokens, usage } = request;
      const { decidedMs, firstByteMs, endMs, answer, nAnswers } = request;
      const isSeenGrowing = firstByteMs !== null && answer === 'streamed' && nAnswers === 1;
      if (firstByteMs !== null || outcome === 'completed') {
        const foundTokens = usage?.cachedTokens ?? promisedTokens ?? 0;
        const computedTokens = promptTokens - foundTokens + (usage?.completionTokens ?? 0);
        cacheTrust.computed(endpoint.slot, computedTokens, firstByteMs ?? endMs);
      }
      if (outcome !== 'completed') return;
      if (promisedTokens !== null && typeof usage?.cachedTokens === 'number') {
        cacheTrust.served(endpoint.slot, promisedTokens, usage.cachedTokens);
      }
      if (usage !== null) outputs.observe(model, promptTokens, usage.completionTokens / nAnswers);
      profiles.served(endpoint.slot, {
        answerMs: endMs - decidedMs,
        decodeMs: isSeenGrowing ? endMs - firstByteMs : null,
        promptTokens,
        completionTokens: usage?.completionTokens ?? null,
      });
    },
    reconcile(endpoints) {
      wanted = endpoints;
      kinds.clear();
      for (const { slot, labels } of endpoints) {
        const kind = gpuTypeLabel === null ? undefined : labels[gpuTypeLabel];
        if (kind !== undefined) kinds.set(slot, kind);
      }
      placeSeeds();
      if (running) follow();
    },
    seed(next) {
      seeds = next;
      placeSeeds();
    },
    forget(slot) {
      inFlight.forget(slot);
      expected.forget(slot);
      profiles.forget(slot);
      cacheTrust.forget(slot);
    },
    start() {
      running = true;
      follow();
    },
    async stop() {
      running = false;
      metrics.stop();
      models.stop();
      http.close();
    },
  };
}
