import * as prom from 'prom-client';
import { describe, expect, test } from '@jest/globals';
import { createMetrics, MAX_MODEL_LABELS, type Metrics } from '../../src/metrics.ts';

async function seriesOf(metrics: Metrics, name: string): Promise<readonly string[]> {
  const lines = (await metrics.text()).split('\n');
  return lines.filter((line) => line.startsWith(`warmpath_${name}{`) || line.startsWith(`warmpath_${name} `));
}

/** name → labels, as the contract has them. */
const CONTRACT: readonly (readonly [string, string, readonly string[]])[] = [
  ['requests_total', 'counter', ['model', 'outcome']],
  ['decisions_total', 'counter', ['model', 'rung']],
  ['decision_duration_seconds', 'histogram', ['rung']],
  ['prompt_tokens_total', 'counter', ['model']],
  ['predicted_cached_tokens_total', 'counter', ['model']],
  ['observed_cached_tokens_total', 'counter', ['model']],
  ['tokenizer_requests_total', 'counter', ['api', 'result']],
  ['tokenizer_duration_seconds', 'histogram', ['api']],
  ['kv_events_total', 'counter', ['type']],
  ['kv_event_blocks_total', 'counter', ['type']],
  ['kv_event_gaps_total', 'counter', []],
  ['kv_event_restarts_total', 'counter', []],
  ['kv_event_replays_total', 'counter', ['result']],
  ['kv_event_errors_total', 'counter', ['reason']],
  ['kv_event_lag_seconds', 'histogram', []],
  ['endpoints', 'gauge', ['model', 'trust']],
  ['endpoint_in_flight_requests', 'gauge', ['endpoint']],
  ['endpoint_in_flight_tokens', 'gauge', ['endpoint']],
  ['endpoint_waiting_requests', 'gauge', ['endpoint']],
  ['index_blocks', 'gauge', []],
  ['index_bytes', 'gauge', []],
  ['index_evicted_blocks_total', 'counter', []],
  ['extproc_streams', 'gauge', []],
  ['extproc_streams_total', 'counter', ['result']],
  ['discovery_relists_total', 'counter', ['reason']],
  ['discovery_age_seconds', 'gauge', []],
];

/** Writes every metric once. */
function touchAll(metrics: Metrics): void {
  metrics.setModels(['demo']);
  const model = 'demo';
  metrics.requestsTotal.inc({ model, outcome: 'routed' });
  metrics.decisionsTotal.inc({ model, rung: 'exact' });
  metrics.decisionDurationSeconds.observe({ rung: 'exact' }, 0.002);
  metrics.promptTokensTotal.inc({ model }, 10);
  metrics.predictedCachedTokensTotal.inc({ model }, 8);
  metrics.observedCachedTokensTotal.inc({ model }, 8);
  metrics.tokenizerRequestsTotal.inc({ api: 'render', result: 'ok' });
  metrics.tokenizerDurationSeconds.observe({ api: 'render' }, 0.01);
  metrics.kvEventsTotal.inc({ type: 'BlockStored' });
  metrics.kvEventBlocksTotal.inc({ type: 'BlockStored' }, 3);
  metrics.kvEventGapsTotal.inc();
  metrics.kvEventRestartsTotal.inc();
  metrics.kvEventReplaysTotal.inc({ result: 'ok' });
  metrics.kvEventErrorsTotal.inc({ reason: 'undecodable' });
  metrics.kvEventLagSeconds.observe(0.001);
  metrics.endpoints.set({ model, trust: 'exact' }, 4);
  for (const gauge of [
    metrics.endpointInFlightRequests,
    metrics.endpointInFlightTokens,
    metrics.endpointWaitingRequests,
  ]) {
    gauge.set({ endpoint: '10.0.0.1:8000' }, 2);
  }
  metrics.indexBlocks.set(1);
  metrics.indexBytes.set(2);
  metrics.indexEvictedBlocksTotal.inc(3);
  metrics.extprocStreams.set(4);
  metrics.extprocStreamsTotal.inc({ result: 'ended' });
  metrics.discoveryRelistsTotal.inc({ reason: 'start' });
  metrics.discoveryAgeSeconds.set(5);
}

describe('the exposition', () => {
  test.each(CONTRACT)('warmpath_%s is a %s with the labels of the contract', async (name, type, labels) => {
    const metrics = createMetrics();
    touchAll(metrics);
    const text = await metrics.text();
    expect(text).toContain(`# TYPE warmpath_${name} ${type}\n`);
    const series = await seriesOf(metrics, type === 'histogram' ? `${name}_count` : name);
    expect(series).toHaveLength(1);
    const names = [...series[0]!.matchAll(/(\w+)="/g)].map(([, label]) => label);
    expect(names).toEqual(labels);
  });

  test('names every counter `_total`, nothing else so, and has the usual metrics of the process', async () => {
    const text = await createMetrics().text();
    const ours = [...text.matchAll(/^# TYPE warmpath_(\w+) (\w+)/gm)].map(([, name, type]) => ({ name: name!, type }));
    expect(ours.length).toBeGreaterThanOrEqual(CONTRACT.length);
    expect(ours.filter(({ name, type }) => name.endsWith('_total') !== (type === 'counter'))).toEqual([]);
    expect(text).toContain('process_cpu_seconds_total');
    expect(text).toContain('nodejs_eventloop_lag_seconds');
  });

  test('two registries in one process do not meet', async () => {
    const [one, other] = [createMetrics(), createMetrics()];
    one.kvEventGapsTotal.inc(2);
    expect(await seriesOf(one, 'kv_event_gaps_total')).toEqual(['warmpath_kv_event_gaps_total 2']);
    expect(await seriesOf(other, 'kv_event_gaps_total')).toEqual(['warmpath_kv_event_gaps_total 0']);
  });

  test('gauges written before a scrape show what is true then, and forget what is gone', async () => {
    const metrics = createMetrics();
    let endpoints = ['10.0.0.1:80', '10.0.0.2:80'];
    metrics.beforeScrape(() => {
      metrics.endpointInFlightRequests.reset();
      for (const endpoint of endpoints) metrics.endpointInFlightRequests.set({ endpoint }, 1);
    });
    expect(await seriesOf(metrics, 'endpoint_in_flight_requests')).toHaveLength(2);
    endpoints = ['10.0.0.2:80'];
    expect(await seriesOf(metrics, 'endpoint_in_flight_requests')).toEqual([
      'warmpath_endpoint_in_flight_requests{endpoint="10.0.0.2:80"} 1',
    ]);
  });
});

describe('labels', () => {
  test('a thousand models made up by clients are one series', async () => {
    const metrics = createMetrics();
    metrics.setModels(['demo']);
    for (let i = 0; i < 1000; i++) metrics.requestsTotal.inc({ model: `made-up-${i}`, outcome: 'unknown_model' });
    metrics.requestsTotal.inc({ model: 'demo', outcome: 'routed' });
    expect(await seriesOf(metrics, 'requests_total')).toEqual([
      'warmpath_requests_total{model="other",outcome="unknown_model"} 1000',
      'warmpath_requests_total{model="demo",outcome="routed"} 1',
    ]);
  });

  test('a model that left keeps its counters, and too many models share one label', async () => {
    const metrics = createMetrics();
    metrics.setModels(['old']);
    metrics.setModels(Array.from({ length: MAX_MODEL_LABELS + 5 }, (_, i) => `m${i}`));
    metrics.promptTokensTotal.inc({ model: 'old' });
    metrics.promptTokensTotal.inc({ model: `m${MAX_MODEL_LABELS + 4}` }, 7);
    expect(await seriesOf(metrics, 'prompt_tokens_total')).toEqual([
      'warmpath_prompt_tokens_total{model="old"} 1',
      'warmpath_prompt_tokens_total{model="other"} 7',
    ]);
  });

  test('reasons are bounded although no caller should build them from input', async () => {
    const metrics = createMetrics();
    for (let i = 0; i < 500; i++) metrics.kvEventErrorsTotal.inc({ reason: `reason ${i}` });
    const series = await seriesOf(metrics, 'kv_event_errors_total');
    expect(series.length).toBeLessThan(60);
    expect(series.some((line) => line.includes('reason="other"'))).toBe(true);
  });

  test('a name with quotes and line ends stays one line', async () => {
    const metrics = createMetrics();
    metrics.setModels(['a"b\nc\\']);
    metrics.promptTokensTotal.inc({ model: 'a"b\nc\\' });
    expect(await seriesOf(metrics, 'prompt_tokens_total')).toEqual([
      'warmpath_prompt_tokens_total{model="a\\"b\\nc\\\\"} 1',
    ]);
  });
});

describe('a histogram', () => {
  test('says of the same observations what prom-client would say', async () => {
    const metrics = createMetrics();
    const registry = new prom.Registry();
    const values = [0, 0.0001, 0.00011, 0.003, 0.0025, 0.74, 1, 1.0001, 9, 10, 11, 1e6];
    const buckets = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 10];
    const theirs = new prom.Histogram({
      name: 'warmpath_decision_duration_seconds',
      help: 'end of body to answer',
      labelNames: ['rung'],
      buckets,
      registers: [registry],
    });
    for (const rung of ['exact', 'load'] as const) {
      for (const value of values) {
        metrics.decisionDurationSeconds.observe({ rung }, value);
        theirs.observe({ rung }, value);
      }
    }
    expect(await metrics.text()).toContain((await registry.metrics()).trim());
  });
});
