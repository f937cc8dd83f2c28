/**
 * Every metric, once: name, labels, meaning, buckets. Parts call the typed fields; nothing else knows prom-client.
 *
 * Labels come from closed sets. A model name written by a client becomes a label only when the fleet serves that model;
 * everything else is counted as `other`, so that requests cannot create series.
 */
import * as prom from 'prom-client';
import type { Trust } from './endpoints/endpoint.ts';
import { BucketCell, CountCell, createCells, type Cells, type Labels } from './metric-cells.ts';

export type RequestOutcome =
  | 'routed'
  | 'passthrough'
  | 'shed'
  | 'no_endpoint'
  | 'bad_request'
  | 'unknown_model'
  | 'too_large'
  | 'cancelled'
  | 'error';
/** How the end of an answer was learnt. */
export type CompletionSignal = 'response' | 'stream' | 'observer' | 'estimate';
/** With how much knowledge a request was decided. */
export type DecisionRung = 'exact' | 'memo' | 'text' | 'load' | 'random';
export type TokenizerResult =
  'ok' | 'memo' | 'shared' | 'cached' | 'hedged' | 'late' | 'timeout' | 'error' | 'not_served' | 'rejected' | 'open';
export type KvEventType = 'BlockStored' | 'BlockRemoved' | 'AllBlocksCleared' | 'unknown';

export type Counter = { inc(value?: number): void };
export type LabelledCounter<L> = { inc(labels: L, value?: number): void };
export type Gauge = { set(value: number): void };
/** `reset` forgets every series: gauges about things that come and go are written anew before each scrape. */
export type LabelledGauge<L> = { set(labels: L, value: number): void; reset(): void };
export type Histogram = { observe(value: number): void };
export type LabelledHistogram<L> = { observe(labels: L, value: number): void };

type Model = { readonly model: string };
type EndpointLabel = { readonly endpoint: string };

export type Metrics = {
  readonly requestsTotal: LabelledCounter<Model & { readonly outcome: RequestOutcome }>;
  readonly decisionsTotal: LabelledCounter<Model & { readonly rung: DecisionRung }>;
  readonly decisionDurationSeconds: LabelledHistogram<{ readonly rung: DecisionRung }>;
  readonly requestFirstByteSeconds: LabelledHistogram<Model>;
  readonly requestDurationSeconds: LabelledHistogram<Model>;
  readonly requestOutputTokens: LabelledHistogram<Model>;
  readonly requestOutputTokensError: LabelledHistogram<Model>;
  readonly promptTokensTotal: LabelledCounter<Model>;
  readonly predictedCachedTokensTotal: LabelledCounter<Model>;
  readonly observedCachedTokensTotal: LabelledCounter<Model>;
  readonly tokenizerRequestsTotal: LabelledCounter<{ readonly api: string; readonly result: TokenizerResult }>;
  readonly tokenizerDurationSeconds: LabelledHistogram<{ readonly api: string }>;
  readonly tokenMemoBlocksTotal: LabelledCounter<Model & { readonly result: 'right' | 'wrong' }>;
  readonly tokenMemoAccuracy: LabelledGauge<Model>;
  readonly tokenMemoBytes: Gauge;
  readonly kvEventsTotal: LabelledCounter<{ readonly type: KvEventType }>;
  readonly kvEventBlocksTotal: LabelledCounter<{ readonly type: KvEventType }>;
  readonly kvEventGapsTotal: Counter;
  readonly kvEventRestartsTotal: Counter;
  readonly kvEventReplaysTotal: LabelledCounter<{ readonly result: string }>;
  readonly kvEventErrorsTotal: LabelledCounter<{ readonly reason: string }>;
  readonly kvEventLagSeconds: Histogram;
  readonly kvEventSilentEndpoints: Gauge;
  readonly endpoints: LabelledGauge<Model & { readonly trust: Trust }>;
  readonly endpointInFlightRequests: LabelledGauge<EndpointLabel>;
  readonly endpointInFlightTokens: LabelledGauge<EndpointLabel>;
  readonly endpointWaitingRequests: LabelledGauge<EndpointLabel>;
  readonly endpointRunningRequests: LabelledGauge<EndpointLabel>;
  readonly endpointKvUsage: LabelledGauge<EndpointLabel>;
  readonly endpointMetricsAgeSeconds: LabelledGauge<EndpointLabel>;
  readonly endpointCreditWeight: LabelledGauge<EndpointLabel & { readonly of: 'announced' | 'routed' }>;
  readonly engineScrapesTotal: LabelledCounter<{ readonly result: string }>;
  readonly engineValuesIgnoredTotal: Counter;
  readonly indexBlocks: Gauge;
  readonly indexBytes: Gauge;
  readonly indexEvictedBlocksTotal: Counter;
  readonly extprocStreams: Gauge;
  readonly extprocStreamsTotal: LabelledCounter<{ readonly result: string }>;
  readonly extprocCompletionsTotal: LabelledCounter<{ readonly signal: CompletionSignal }>;
  readonly extprocBodiesNotShownTotal: Counter;
  readonly requestReasonsTotal: LabelledCounter<{ readonly outcome: RequestOutcome; readonly reason: string }>;
  readonly servedElsewhereTotal: Counter;
  readonly discoveryRelistsTotal: LabelledCounter<{ readonly reason: string }>;
  readonly discoveryErrorsTotal: LabelledCounter<{ readonly cause: string }>;
  readonly discoveryAgeSeconds: Gauge;

  /** Models the fleet serves, by canonical name. A name that was known keeps its label: its counters must not restart. */
  setModels(names: readonly string[]): void;
  /** Runs before every scrape: the place to write gauges from what is true now. */
  beforeScrape(write: () => void): void;
  /** Prometheus text exposition. */
  text(): Promise<string>;
  readonly contentType: string;
};

/** More models than this share the label `other`: a fleet serves few, a mistake in discovery could bring many. */
export const MAX_MODEL_LABELS = 200;
/** For labels whose values come from code (`reason`, `result`, `api`): a bound in case one of them is ever built from input. */
const MAX_WORD_LABELS = 50;
export const OTHER = 'other';

/** From 0.1 ms, a decision without a wait, to the longest budget. */
const DECISION_BUCKETS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 10,
];
const TOKENIZER_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.35, 0.5, 1, 2, 5];
/** From a warm first token to a long answer. */
const ANSWER_BUCKETS = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40, 80, 160, 320];
const TOKEN_BUCKETS = [1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384];
const LAG_BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** A registry of its own: two apps in one process do not meet. */
export function createMetrics(): Metrics {
  const registry = new prom.Registry();
  prom.collectDefaultMetrics({ register: registry });
  const writers: (() => void)[] = [];
  const models = new Set<string>();
  const series = createSeries(registry, {
    model: (name) => (models.has(name) ? name : OTHER),
    reason: createWordCap(MAX_WORD_LABELS),
    result: createWordCap(MAX_WORD_LABELS),
    api: createWordCap(MAX_WORD_LABELS),
    cause: createWordCap(MAX_WORD_LABELS),
  });
  const { counter, gauge, histogram } = series;
  const waiting = 'requests waiting in the engine, as it reports';

  return {
    requestsTotal: counter.labelled('requests_total', 'requests by how they ended here', ['model', 'outcome']),
    decisionsTotal: counter.labelled('decisions_total', 'decisions by the knowledge behind them', ['model', 'rung']),
    decisionDurationSeconds: histogram.labelled(
      'decision_duration_seconds',
      'end of body to answer',
      ['rung'],
      DECISION_BUCKETS,
    ),
    requestFirstByteSeconds: histogram.labelled(
      'request_first_byte_seconds',
      'choice to first byte of the answer, where it was seen',
      ['model'],
      ANSWER_BUCKETS,
    ),
    requestDurationSeconds: histogram.labelled(
      'request_duration_seconds',
      'choice to end of the answer, of completed requests',
      ['model'],
      ANSWER_BUCKETS,
    ),
    requestOutputTokens: histogram.labelled(
      'request_output_tokens',
      'tokens of the answer, as the engine reported them',
      ['model'],
      TOKEN_BUCKETS,
    ),
    requestOutputTokensError: histogram.labelled(
      'request_output_tokens_error',
      'by how much they were predicted wrongly',
      ['model'],
      TOKEN_BUCKETS,
    ),
    promptTokensTotal: counter.labelled('prompt_tokens_total', 'prompt tokens of routed requests', ['model']),
    predictedCachedTokensTotal: counter.labelled(
      'predicted_cached_tokens_total',
      'prompt tokens expected in the KV cache of the chosen endpoint',
      ['model'],
    ),
    observedCachedTokensTotal: counter.labelled(
      'observed_cached_tokens_total',
      'prompt tokens that the engine reported as cached',
      ['model'],
    ),
    tokenizerRequestsTotal: counter.labelled('tokenizer_requests_total', 'tokenizations by result', ['api', 'result']),
    tokenizerDurationSeconds: histogram.labelled(
      'tokenizer_duration_seconds',
      'one call of the tokenizer',
      ['api'],
      TOKENIZER_BUCKETS,
    ),
    tokenMemoBlocksTotal: counter.labelled(
      'token_memo_blocks_total',
      'blocks claimed from memory, as the exact tokens judged them later',
      ['model', 'result'],
    ),
    tokenMemoAccuracy: gauge.labelled('token_memo_accuracy', 'share of those blocks that were right, lately', [
      'model',
    ]),
    tokenMemoBytes: gauge.plain('token_memo_bytes', 'memory of the token memo'),
    kvEventsTotal: counter.labelled('kv_events_total', 'KV events received', ['type']),
    kvEventBlocksTotal: counter.labelled('kv_event_blocks_total', 'blocks named in KV events', ['type']),
    kvEventGapsTotal: counter.plain('kv_event_gaps_total', 'holes in the sequence of an event stream'),
    kvEventRestartsTotal: counter.plain('kv_event_restarts_total', 'publishers that began anew'),
    kvEventReplaysTotal: counter.labelled('kv_event_replays_total', 'replays asked for', ['result']),
    kvEventErrorsTotal: counter.labelled('kv_event_errors_total', 'KV events or batches not understood', ['reason']),
    kvEventSilentEndpoints: gauge.plain(
      'kv_event_silent_endpoints',
      'endpoints that get requests and whose publisher tells of none',
    ),
    kvEventLagSeconds: histogram.plain(
      'kv_event_lag_seconds',
      "publisher's timestamp to visible in the index",
      LAG_BUCKETS,
    ),
    endpoints: gauge.labelled('endpoints', 'endpoints by how far the index may be believed for them', [
      'model',
      'trust',
    ]),
    endpointInFlightRequests: gauge.labelled('endpoint_in_flight_requests', 'requests routed there and not ended', [
      'endpoint',
    ]),
    endpointInFlightTokens: gauge.labelled('endpoint_in_flight_tokens', 'uncached prompt tokens of those requests', [
      'endpoint',
    ]),
    endpointWaitingRequests: gauge.labelled('endpoint_waiting_requests', waiting, ['endpoint']),
    endpointRunningRequests: gauge.labelled(
      'endpoint_running_requests',
      'requests the engine works on, as it reports',
      ['endpoint'],
    ),
    endpointKvUsage: gauge.labelled(
      'endpoint_kv_usage',
      'part of the KV cache held by requests, as the engine reports',
      ['endpoint'],
    ),
    endpointMetricsAgeSeconds: gauge.labelled(
      'endpoint_metrics_age_seconds',
      'time since the metrics of the engine were last read',
      ['endpoint'],
    ),
    endpointCreditWeight: gauge.labelled(
      'endpoint_credit_weight',
      'what a token is worth that events have announced there, or that was routed there: 1 = as if it were certain',
      ['endpoint', 'of'],
    ),
    engineScrapesTotal: counter.labelled('engine_scrapes_total', "readings of engines' metrics", ['result']),
    engineValuesIgnoredTotal: counter.plain(
      'engine_values_ignored_total',
      "values in engines' metrics that were no number, negative or absurd",
    ),
    indexBlocks: gauge.plain('index_blocks', 'blocks in the index, counted per endpoint'),
    indexBytes: gauge.plain('index_bytes', 'memory of the index'),
    indexEvictedBlocksTotal: counter.plain('index_evicted_blocks_total', 'blocks dropped to keep the byte budget'),
    extprocStreams: gauge.plain('extproc_streams', 'open ext_proc streams'),
    extprocStreamsTotal: counter.labelled('extproc_streams_total', 'ended ext_proc streams', ['result']),
    extprocCompletionsTotal: counter.labelled(
      'extproc_completions_total',
      'routed requests by how the end of the answer was learnt',
      ['signal'],
    ),
    extprocBodiesNotShownTotal: counter.plain(
      'extproc_bodies_not_shown_total',
      'requests in body mode STREAMED, where the choice must be made before the body is shown',
    ),
    requestReasonsTotal: counter.labelled('request_reasons_total', 'requests that were not routed, by cause', [
      'outcome',
      'reason',
    ]),
    servedElsewhereTotal: counter.plain(
      'served_elsewhere_total',
      'requests that the data plane says another endpoint than the first choice answered',
    ),
    discoveryRelistsTotal: counter.labelled('discovery_relists_total', 'full readings of the fleet', ['reason']),
    discoveryErrorsTotal: counter.labelled('discovery_errors_total', 'failed requests to the API server', ['cause']),
    discoveryAgeSeconds: gauge.plain('discovery_age_seconds', 'time since the fleet was last known to be right'),

    setModels(names) {
      for (const name of names) if (models.size < MAX_MODEL_LABELS) models.add(name);
    },
    beforeScrape: (write) => void writers.push(write),
    async text() {
      for (const write of writers) write();
      series.flush();
      return registry.metrics();
    },
    contentType: registry.contentType,
  };
}

type LabelRules = Readonly<Record<string, ((value: string) => string) | undefined>>;

/** Constructors of series whose label values have passed the rules. */
function createSeries(registry: prom.Registry, rules: LabelRules) {
  const registers = [registry];
  const nameOf = (name: string): string => `warmpath_${name}`;
  const valueOf = (name: string, value: string): string => {
    const rule = rules[name];
    return rule === undefined ? value : rule(value);
  };
  const checked = (labels: Labels): Record<string, string> =>
    Object.fromEntries(Object.entries(labels).map(([name, value]) => [name, valueOf(name, value)]));
  /** Counts since the last scrape, written down before the next: a request then pays for a look-up and an addition only. */
  const pending: { readonly counter: prom.Counter<string>; readonly cells: Cells<CountCell> }[] = [];

  function createHistogram(name: string, help: string, labelNames: string[], bounds: number[]): Cells<BucketCell> {
    const cells = createCells(labelNames, valueOf, () => new BucketCell(bounds));
    if (labelNames.length === 0) cells.of({});
    registry.registerMetric(histogramOf(nameOf(name), help, cells));
    return cells;
  }

  return {
    flush(): void {
      for (const { counter, cells } of pending) {
        for (const [labels, cell] of cells.all()) {
          const sum = cell.take();
          if (sum > 0) counter.inc(labels, sum);
        }
      }
    },
    counter: {
      plain(name: string, help: string): Counter {
        const one = new prom.Counter<string>({ name: nameOf(name), help, registers });
        return { inc: (value = 1) => one.inc(value) };
      },
      labelled<L extends Readonly<Record<string, string>>>(
        name: string,
        help: string,
        labelNames: (keyof L & string)[],
      ): LabelledCounter<L> {
        const one = new prom.Counter<string>({ name: nameOf(name), help, labelNames, registers });
        const cells = createCells(labelNames, valueOf, () => new CountCell());
        pending.push({ counter: one, cells });
        return { inc: (labels, value = 1) => cells.of(labels).add(value) };
      },
    },
    gauge: {
      plain(name: string, help: string): Gauge {
        const one = new prom.Gauge<string>({ name: nameOf(name), help, registers });
        return { set: (value) => one.set(value) };
      },
      labelled<L extends Readonly<Record<string, string>>>(
        name: string,
        help: string,
        labelNames: (keyof L & string)[],
      ): LabelledGauge<L> {
        const one = new prom.Gauge<string>({ name: nameOf(name), help, labelNames, registers });
        return { set: (labels, value) => one.set(checked(labels), value), reset: () => one.reset() };
      },
    },
    histogram: {
      plain(name: string, help: string, buckets: number[]): Histogram {
        const cell = createHistogram(name, help, [], buckets).of({});
        return { observe: (value) => cell.observe(value) };
      },
      labelled<L extends Readonly<Record<string, string>>>(
        name: string,
        help: string,
        labelNames: (keyof L & string)[],
        buckets: number[],
      ): LabelledHistogram<L> {
        const cells = createHistogram(name, help, labelNames, buckets);
        return { observe: (labels, value) => cells.of(labels).observe(value) };
      },
    },
  };
}

/** As prom-client's registry asks a metric: its own histogram hashes the labels of every observation. */
function histogramOf(name: string, help: string, cells: Cells<BucketCell>): prom.Metric<string> {
  type Sample = {
    readonly metricName: string;
    readonly labels: Record<string, string | number>;
    readonly value: number;
  };
  const get = () => {
    const values: Sample[] = [];
    for (const [labels, cell] of cells.all()) {
      let count = 0;
      for (const [bound, upTo] of cell.cumulative()) {
        const le = bound === Infinity ? '+Inf' : bound;
        values.push({ metricName: `${name}_bucket`, labels: { le, ...labels }, value: upTo });
        count = upTo;
      }
      values.push({ metricName: `${name}_sum`, labels, value: cell.sum });
      values.push({ metricName: `${name}_count`, labels, value: count });
    }
    return Promise.resolve({ name, help, type: 'histogram', aggregator: 'sum', values });
  };
  return { name, get } as unknown as prom.Metric<string>;
}

/** Lets the first `max` distinct values through, later ones become `other`. */
function createWordCap(max: number): (value: string) => string {
  const seen = new Set<string>();
  return (value) => {
    if (seen.has(value)) return value;
    if (seen.size >= max) return OTHER;
    seen.add(value);
    return value;
  };
}
