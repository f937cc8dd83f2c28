/**
 * Turns what the parts hand out (decisions, ends, counters) into metrics, the decision log and the endpoint view of the
 * API. Only counts and names pass through here: no prompt, token id or answer.
 */
import type { DecisionLog } from './admin/decision-log.ts';
import type { DecisionRecord, EndpointKnowledge, EndRecord } from './picking/decision-record.ts';
import type { EndpointStore } from './endpoints/endpoint-store.ts';
import { endpointKey, type Endpoint, type EndpointId } from './endpoints/endpoint.ts';
import type { PickError } from './extproc/picker.ts';
import type { ExchangeResult } from './extproc/server.ts';
import type { StreamSummary } from './kvevents/endpoint-knowledge.ts';
import type { MissingPublishers } from './kvevents/missing-publishers.ts';
import type { KvEventCounters } from './kvevents/ingest.ts';
import type { CreditWeights } from './load/cache-trust.ts';
import type { EngineMetrics, ScrapeResult } from './load/engine-metrics.ts';
import type { InFlight } from './load/in-flight.ts';
import type { RequestTrace } from './load/request-trace.ts';
import type { CompletionSignal, Metrics, RequestOutcome } from './metrics.ts';
import { OTHER } from './metrics.ts';
import type { PrefixIndexReader } from './prefix/prefix-index.ts';
import type { TokenizerLadder } from './tokenizer/tokenizer-ladder.ts';
import type { OnTokenizerCall } from './tokenizer/sharing-tokenizer.ts';

export type ReporterDeps = {
  readonly metrics: Metrics;
  readonly decisions: DecisionLog;
  readonly trace: Pick<RequestTrace, 'add'>;
  readonly endpoints: EndpointStore;
  readonly inFlight: InFlight;
  readonly engineMetrics: Pick<EngineMetrics, 'of' | 'isDown'>;
  readonly index: PrefixIndexReader;
  readonly ladder: TokenizerLadder;
  readonly streamOf: (id: EndpointId) => StreamSummary | undefined;
  readonly missingPublishers: MissingPublishers;
  readonly knowledge: (endpoint: Endpoint) => EndpointKnowledge;
  readonly creditWeights: (endpoint: Endpoint) => CreditWeights;
  readonly unixMs: () => number;
};

export type Reporter = {
  decision(record: DecisionRecord): void;
  end(record: EndRecord): void;
  stream(result: ExchangeResult): void;
  kvEvents(delta: KvEventCounters): void;
  scrape(result: ScrapeResult, nIgnored: number): void;
  readonly tokenizerCall: OnTokenizerCall;
  /** How the ends of answers were learnt so far: which signals this data plane gives. */
  completions(): Readonly<Record<CompletionSignal, number>>;
  /** `GET /api/v1/endpoints`. */
  endpointViews(): readonly object[];
  writeGauges(): void;
};

/** AIBrix's. */
const ENGINE_LABEL = 'model.aibrix.ai/engine';

const CREDITED = ['announced', 'routed'] as const;

type CachedTokens = { predicted: number; observed: number | null };

export function createReporter(deps: ReporterDeps): Reporter {
  const { metrics, endpoints, inFlight, engineMetrics } = deps;
  const cachedTokens = new Map<EndpointId, CachedTokens>();
  const nCompletions: Record<CompletionSignal, number> = { response: 0, stream: 0, observer: 0, estimate: 0 };
  let nEvicted = 0;

  function cachedTokensOf(id: EndpointId): CachedTokens {
    let counts = cachedTokens.get(id);
    if (!counts) cachedTokens.set(id, (counts = { predicted: 0, observed: null }));
    return counts;
  }

  /** Nothing here may grow with endpoints that came and went. */
  function forgetRemoved(): void {
    const present = new Set(endpoints.all().map(({ id }) => id));
    for (const id of cachedTokens.keys()) if (!present.has(id)) cachedTokens.delete(id);
  }

  function countTokens(model: string, { id }: Endpoint, promptTokens: number, predictedCachedTokens: number): void {
    metrics.promptTokensTotal.inc({ model }, promptTokens);
    metrics.predictedCachedTokensTotal.inc({ model }, predictedCachedTokens);
    cachedTokensOf(id).predicted += predictedCachedTokens;
  }

  /** A series only where an engine has said something: none is better than a zero that looks idle. */
  function writeEngineGauges(of: Endpoint): void {
    const engine = engineMetrics.of(of.id);
    const endpoint = endpointKey(of);
    if (engine === null) return;
    metrics.endpointMetricsAgeSeconds.set({ endpoint }, engine.ageMs / 1000);
    if (engine.waiting !== null) metrics.endpointWaitingRequests.set({ endpoint }, engine.waiting);
    if (engine.running !== null) metrics.endpointRunningRequests.set({ endpoint }, engine.running);
    if (engine.kvUsage !== null) metrics.endpointKvUsage.set({ endpoint }, engine.kvUsage);
  }

  /** What a token is worth there, by how it is known. */
  function creditOf(endpoint: Endpoint): Readonly<Record<(typeof CREDITED)[number], number>> {
    const { fresh, delivered } = deps.creditWeights(endpoint);
    const rounded = (weight: number): number => Math.round(weight * 1000) / 1000;
    return { announced: rounded(fresh * delivered), routed: rounded(delivered) };
  }

  const ageMs = (unixMs: number | null): number | null =>
    unixMs === null ? null : Math.max(0, deps.unixMs() - unixMs);

  function trace(record: EndRecord): void {
    const { model, outcome, usage, receivedMs, decidedMs, firstByteMs, endMs, predictedOutputTokens } = record;
    const sinceReceived = (ms: number): number => Math.round((ms - receivedMs) * 1000) / 1000;
    if (firstByteMs !== null) metrics.requestFirstByteSeconds.observe({ model }, (firstByteMs - decidedMs) / 1000);
    if (outcome === 'completed') metrics.requestDurationSeconds.observe({ model }, (endMs - decidedMs) / 1000);
    if (usage !== null) {
      metrics.requestOutputTokens.observe({ model }, usage.completionTokens);
      if (predictedOutputTokens !== null) {
        metrics.requestOutputTokensError.observe({ model }, Math.abs(usage.completionTokens - predictedOutputTokens));
      }
    }
    deps.trace.add({
      unixMs: Math.round(deps.unixMs() - (endMs - receivedMs)),
      model,
      strategy: record.strategy,
      rung: record.rung,
      endpoint: endpointKey(record.endpoint),
      outcome,
      promptTokens: record.promptTokens,
      predictedCachedTokens: record.predictedCachedTokens,
      observedCachedTokens: usage?.cachedTokens ?? null,
      predictedOutputTokens: predictedOutputTokens === null ? null : Math.round(predictedOutputTokens),
      outputTokens: usage?.completionTokens ?? null,
      decidedMs: sinceReceived(decidedMs),
      firstByteMs: firstByteMs === null ? null : sinceReceived(firstByteMs),
      endMs: sinceReceived(endMs),
    });
  }

  return {
    decision(record) {
      if (record.kind === 'counted') {
        countTokens(record.model, record.endpoint, record.promptTokens, record.predictedCachedTokens);
        return;
      }
      if (record.kind === 'judged') {
        const { model, claimedBlocks, wrongBlocks } = record;
        metrics.tokenMemoBlocksTotal.inc({ model, result: 'right' }, claimedBlocks - wrongBlocks);
        if (wrongBlocks > 0) metrics.tokenMemoBlocksTotal.inc({ model, result: 'wrong' }, wrongBlocks);
        return;
      }
      const { traceId, durationMs } = record;
      if (record.kind === 'refused') {
        const { error } = record;
        deps.decisions.add({
          unixMs: deps.unixMs(),
          outcome: outcomeOf(error),
          reason: error.reason,
          traceId,
          durationMs,
        });
        return;
      }
      const { evaluation, endpoint, predictedCachedTokens } = record;
      const { model, rung, promptTokens } = evaluation;
      metrics.decisionsTotal.inc({ model, rung });
      metrics.decisionDurationSeconds.observe({ rung }, durationMs / 1000);
      if (rung === 'exact') {
        countTokens(model, endpoint, promptTokens, predictedCachedTokens);
        deps.missingPublishers.routed(endpoint.id, promptTokens - predictedCachedTokens);
      }
      if (rung === 'memo' && evaluation.tokenizeFailure === null) {
        metrics.tokenizerRequestsTotal.inc({ api: 'none', result: 'memo' });
      }
      deps.decisions.add({
        unixMs: deps.unixMs(),
        outcome: 'routed',
        model,
        rung,
        tokenizer: evaluation.tokenizeFailure ?? 'ok',
        promptTokens,
        predictedCachedTokens,
        endpoint: endpointKey(endpoint),
        strategy: evaluation.strategy,
        reason: evaluation.reason,
        nCandidates: evaluation.candidates.length,
        traceId,
        durationMs,
      });
    },
    end(record) {
      trace(record);
      const { endpoint, model, usage } = record;
      const cached = usage?.cachedTokens ?? null;
      if (cached === null) return;
      metrics.observedCachedTokensTotal.inc({ model }, cached);
      const counts = cachedTokensOf(endpoint.id);
      counts.observed = (counts.observed ?? 0) + cached;
    },
    stream(result) {
      metrics.extprocStreamsTotal.inc({ result: result.ending });
      const signal = completionSignal(result);
      if (signal !== null) {
        nCompletions[signal] += 1;
        metrics.extprocCompletionsTotal.inc({ signal });
      }
      if (result.mode === 'STREAMED') metrics.extprocBodiesNotShownTotal.inc();
      if (result.served !== null && result.endpoint !== null && result.served !== result.endpoint) {
        metrics.servedElsewhereTotal.inc();
      }
      const { outcome, reason } = result;
      if (outcome === 'observed') return;
      metrics.requestsTotal.inc({ model: result.model ?? OTHER, outcome });
      if (reason !== '') metrics.requestReasonsTotal.inc({ outcome, reason });
    },
    kvEvents(delta) {
      for (const [type, value] of Object.entries(delta.events)) {
        if (value > 0) metrics.kvEventsTotal.inc({ type: type as keyof typeof delta.events }, value);
      }
      for (const [type, value] of Object.entries(delta.blocks)) {
        if (value > 0) metrics.kvEventBlocksTotal.inc({ type: type as keyof typeof delta.blocks }, value);
      }
      if (delta.gaps > 0) metrics.kvEventGapsTotal.inc(delta.gaps);
      if (delta.restarts > 0) metrics.kvEventRestartsTotal.inc(delta.restarts);
      for (const [result, value] of Object.entries(delta.replays)) metrics.kvEventReplaysTotal.inc({ result }, value);
      for (const [reason, value] of Object.entries(delta.errors)) metrics.kvEventErrorsTotal.inc({ reason }, value);
      for (const lagMs of delta.lagMs) metrics.kvEventLagSeconds.observe(lagMs / 1000);
    },
    scrape(result, nIgnored) {
      metrics.engineScrapesTotal.inc({ result });
      if (nIgnored > 0) metrics.engineValuesIgnoredTotal.inc(nIgnored);
    },
    tokenizerCall(api, result, durationMs) {
      metrics.tokenizerRequestsTotal.inc({ api, result });
      metrics.tokenizerDurationSeconds.observe({ api }, durationMs / 1000);
    },
    completions: () => ({ ...nCompletions }),
    endpointViews() {
      forgetRemoved();
      return endpoints.all().map((endpoint) => {
        const stream = deps.streamOf(endpoint.id);
        const { trust, blockSizeTokens } = deps.knowledge(endpoint);
        const load = inFlight.load(endpoint.slot);
        const engine = engineMetrics.of(endpoint.id);
        return {
          name: endpoint.name,
          address: endpoint.address,
          rank: endpoint.rank,
          model: endpoint.models[0],
          models: endpoint.models,
          adapters: endpoint.adapters,
          ready: endpoint.ready,
          reachable: !engineMetrics.isDown(endpoint.id),
          trust,
          credit: creditOf(endpoint),
          blockSizeTokens,
          kvEvents: stream
            ? {
                state: stream.state,
                lastSeq: stream.lastSeq,
                gaps: stream.gaps,
                replays: stream.replays,
                restarts: stream.restarts,
                blocks: stream.blocks,
                ageMs: ageMs(stream.lastEventUnixMs),
                coverage: stream.coverage,
                lagMs: stream.lagMs,
                behind: stream.behind,
                provenAgeMs: ageMs(stream.lastProvenUnixMs),
                replay: stream.replay,
                silent: deps.missingPublishers.isMissing(endpoint.id),
              }
            : null,
          load: {
            inFlightRequests: load.requests,
            inFlightTokens: load.tokens,
            waiting: engine?.waiting ?? null,
            running: engine?.running ?? null,
            kvUsage: engine?.kvUsage ?? null,
            ageMs: engine === null ? null : Math.round(engine.ageMs),
          },
          // What its own metrics say, before what somebody wrote on the pod.
          engine: {
            kind: engine?.engine ?? endpoint.labels[ENGINE_LABEL] ?? null,
            kvBlocks: engine?.nBlocks ?? null,
          },
          cachedTokens: cachedTokens.get(endpoint.id) ?? { predicted: 0, observed: null },
        };
      });
    },
    writeGauges() {
      forgetRemoved();
      metrics.endpoints.reset();
      metrics.endpointInFlightRequests.reset();
      metrics.endpointInFlightTokens.reset();
      metrics.endpointWaitingRequests.reset();
      metrics.endpointRunningRequests.reset();
      metrics.endpointKvUsage.reset();
      metrics.endpointMetricsAgeSeconds.reset();
      metrics.endpointCreditWeight.reset();
      const byTrust = new Map<string, { model: string; trust: EndpointKnowledge['trust']; value: number }>();
      for (const endpoint of endpoints.all()) {
        const model = endpoint.models[0]!;
        const { trust } = deps.knowledge(endpoint);
        const key = `${trust} ${model}`;
        byTrust.set(key, { model, trust, value: (byTrust.get(key)?.value ?? 0) + 1 });
        const load = inFlight.load(endpoint.slot);
        const label = endpointKey(endpoint);
        metrics.endpointInFlightRequests.set({ endpoint: label }, load.requests);
        metrics.endpointInFlightTokens.set({ endpoint: label }, load.tokens);
        for (const of of CREDITED) {
          metrics.endpointCreditWeight.set({ endpoint: label, of }, creditOf(endpoint)[of]);
        }
        writeEngineGauges(endpoint);
      }
      for (const { model, trust, value } of byTrust.values()) metrics.endpoints.set({ model, trust }, value);
      const { accuracy, memoBytes } = deps.ladder.stats();
      for (const [model, of] of accuracy) metrics.tokenMemoAccuracy.set({ model }, of.accuracy);
      metrics.tokenMemoBytes.set(memoBytes);
      metrics.kvEventSilentEndpoints.set(deps.missingPublishers.nMissing());
      const { nBlocks, nBytes, evictedBlocks } = deps.index.stats();
      metrics.indexBlocks.set(nBlocks);
      metrics.indexBytes.set(nBytes);
      if (evictedBlocks > nEvicted) metrics.indexEvictedBlocksTotal.inc(evictedBlocks - nEvicted);
      nEvicted = evictedBlocks;
    },
  };
}

/** Null where there was no answer whose end could be learnt. */
function completionSignal({ outcome, completion }: ExchangeResult): CompletionSignal | null {
  if (outcome === 'routed') return completion;
  return outcome === 'observed' && completion === 'response' ? 'observer' : null;
}

function outcomeOf({ status }: PickError): RequestOutcome {
  switch (status) {
    case 400:
      return 'bad_request';
    case 404:
      return 'unknown_model';
    case 413:
      return 'too_large';
    case 429:
      return 'shed';
    case 503:
      return 'no_endpoint';
  }
}
