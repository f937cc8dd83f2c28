/** The part of vLLM v1's /metrics that routers read, in Prometheus text form. */
import type { EngineOptions, EngineStats } from './engine.ts';
import type { HistogramSnapshot } from './histogram.ts';

/**
 * @param ranks one per data-parallel rank, in their order; label `engine` of every series
 * @param served.model base model; label `model_name` of every series but the configuration
 */
export function metricsPage(
  ranks: readonly EngineStats[],
  options: EngineOptions,
  served: { readonly model: string; readonly nAdapters: number; readonly unixSeconds: number },
): string {
  const lines: string[] = [];
  const labelsOf = (rank: number, more: Readonly<Record<string, string>> = {}): string =>
    Object.entries({ engine: String(rank), model_name: served.model, ...more })
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, value]) => `${name}="${escaped(value)}"`)
      .join(',');
  const plain = (kind: 'gauge' | 'counter', name: string, series: readonly (readonly [string, number])[]): void => {
    lines.push(`# TYPE vllm:${name} ${kind}`);
    for (const [of, value] of series) lines.push(`vllm:${name}{${of}} ${value}`);
  };
  const metric = (kind: 'gauge' | 'counter', name: string, valueOf: (stats: EngineStats) => number): void => {
    plain(
      kind,
      name,
      ranks.map((stats, rank) => [labelsOf(rank), valueOf(stats)]),
    );
  };
  const split = (
    kind: 'gauge' | 'counter',
    name: string,
    label: string,
    valuesOf: (stats: EngineStats) => Readonly<Record<string, number>>,
  ): void => {
    const series = ranks.flatMap((stats, rank) =>
      Object.entries(valuesOf(stats)).map(([of, value]) => [labelsOf(rank, { [label]: of }), value] as const),
    );
    plain(kind, name, series);
  };
  const histogram = (name: string, valueOf: (stats: EngineStats) => HistogramSnapshot): void => {
    lines.push(`# TYPE vllm:${name} histogram`);
    ranks.forEach((stats, rank) => {
      const { bounds, cumulative, sum, count } = valueOf(stats);
      bounds.forEach((bound, i) => {
        lines.push(`vllm:${name}_bucket{${labelsOf(rank, { le: String(bound) })}} ${cumulative[i]}`);
      });
      lines.push(`vllm:${name}_bucket{${labelsOf(rank, { le: '+Inf' })}} ${count}`);
      lines.push(`vllm:${name}_count{${labelsOf(rank)}} ${count}`, `vllm:${name}_sum{${labelsOf(rank)}} ${sum}`);
    });
  };

  metric('gauge', 'num_requests_running', ({ running }) => running);
  metric('gauge', 'num_requests_waiting', ({ waiting }) => waiting);
  split('gauge', 'num_requests_waiting_by_reason', 'reason', ({ waiting }) => ({ capacity: waiting, deferred: 0 }));
  metric('gauge', 'kv_cache_usage_perc', ({ kvCacheUsage }) => kvCacheUsage);
  metric('counter', 'prefix_cache_queries_total', ({ prefixCacheQueryTokens }) => prefixCacheQueryTokens);
  metric('counter', 'prefix_cache_hits_total', ({ prefixCacheHitTokens }) => prefixCacheHitTokens);
  metric('counter', 'num_preemptions_total', ({ preemptions }) => preemptions);
  metric('counter', 'prompt_tokens_total', ({ promptTokens }) => promptTokens);
  split('counter', 'prompt_tokens_by_source_total', 'source', ({ promptTokens, cachedTokens }) => ({
    local_compute: promptTokens - cachedTokens,
    local_cache_hit: cachedTokens,
    external_kv_transfer: 0,
  }));
  metric('counter', 'prompt_tokens_cached_total', ({ cachedTokens }) => cachedTokens);
  metric('counter', 'generation_tokens_total', ({ generationTokens }) => generationTokens);
  split('counter', 'request_success_total', 'finished_reason', ({ finishedByReason, abortedRequests }) => ({
    stop: finishedByReason.stop,
    length: finishedByReason.length,
    abort: abortedRequests,
  }));
  histogram('time_to_first_token_seconds', ({ timeToFirstTokenSeconds }) => timeToFirstTokenSeconds);
  histogram('e2e_request_latency_seconds', ({ requestLatencySeconds }) => requestLatencySeconds);
  if (served.nAdapters > 0) {
    const names = (of: (stats: EngineStats) => readonly string[]): string => [...new Set(ranks.flatMap(of))].join(',');
    const running = names(({ runningAdapters }) => runningAdapters);
    const waiting = names(({ waitingAdapters }) => waitingAdapters);
    // The value is the time of the state; neither engine nor model_name is a label.
    const lora = `max_lora="${served.nAdapters}",running_lora_adapters="${escaped(running)}",waiting_lora_adapters="${escaped(waiting)}"`;
    plain('gauge', 'lora_requests_info', [[lora, served.unixSeconds]]);
  }
  // No model_name on this one; num_gpu_blocks counts the null block.
  const config = (rank: number): string =>
    `block_size="${options.blockSizeTokens}",enable_prefix_caching="True",engine="${rank}",num_gpu_blocks="${options.nBlocks}",prefix_caching_hash_algo="sha256",sliding_window="None"`;
  plain(
    'gauge',
    'cache_config_info',
    ranks.map((_, rank) => [config(rank), 1]),
  );
  return `${lines.join('\n')}\n`;
}

function escaped(value: string): string {
  return value.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
}
