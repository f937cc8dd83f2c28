/** The part of vLLM v1's /metrics that routers read, in Prometheus text form. */
import type { EngineOptions, EngineStats } from './engine.ts';
import type { HistogramSnapshot } from './histogram.ts';

/** @param served.model base model; label `model_name` of every series but the configuration */
export function metricsPage(
  stats: EngineStats,
  options: EngineOptions,
  served: { readonly model: string; readonly nAdapters: number; readonly unixSeconds: number },
): string {
  const lines: string[] = [];
  const labels = (more: Readonly<Record<string, string>> = {}): string =>
    Object.entries({ engine: '0', model_name: served.model, ...more })
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, value]) => `${name}="${escaped(value)}"`)
      .join(',');
  const metric = (kind: 'gauge' | 'counter', name: string, series: readonly (readonly [string, number])[]): void => {
    lines.push(`# TYPE vllm:${name} ${kind}`);
    for (const [of, value] of series) lines.push(`vllm:${name}{${of}} ${value}`);
  };
  const histogram = (name: string, { bounds, cumulative, sum, count }: HistogramSnapshot): void => {
    lines.push(`# TYPE vllm:${name} histogram`);
    bounds.forEach((bound, i) => {
      lines.push(`vllm:${name}_bucket{${labels({ le: String(bound) })}} ${cumulative[i]}`);
    });
    lines.push(`vllm:${name}_bucket{${labels({ le: '+Inf' })}} ${count}`);
    lines.push(`vllm:${name}_count{${labels()}} ${count}`, `vllm:${name}_sum{${labels()}} ${sum}`);
  };

  metric('gauge', 'num_requests_running', [[labels(), stats.running]]);
  metric('gauge', 'num_requests_waiting', [[labels(), stats.waiting]]);
  metric('gauge', 'num_requests_waiting_by_reason', [
    [labels({ reason: 'capacity' }), stats.waiting],
    [labels({ reason: 'deferred' }), 0],
  ]);
  metric('gauge', 'kv_cache_usage_perc', [[labels(), stats.kvCacheUsage]]);
  metric('counter', 'prefix_cache_queries_total', [[labels(), stats.prefixCacheQueryTokens]]);
  metric('counter', 'prefix_cache_hits_total', [[labels(), stats.prefixCacheHitTokens]]);
  metric('counter', 'num_preemptions_total', [[labels(), stats.preemptions]]);
  metric('counter', 'prompt_tokens_total', [[labels(), stats.promptTokens]]);
  metric('counter', 'prompt_tokens_by_source_total', [
    [labels({ source: 'local_compute' }), stats.promptTokens - stats.cachedTokens],
    [labels({ source: 'local_cache_hit' }), stats.cachedTokens],
    [labels({ source: 'external_kv_transfer' }), 0],
  ]);
  metric('counter', 'prompt_tokens_cached_total', [[labels(), stats.cachedTokens]]);
  metric('counter', 'generation_tokens_total', [[labels(), stats.generationTokens]]);
  metric('counter', 'request_success_total', [
    [labels({ finished_reason: 'stop' }), stats.finishedByReason.stop],
    [labels({ finished_reason: 'length' }), stats.finishedByReason.length],
    [labels({ finished_reason: 'abort' }), stats.abortedRequests],
  ]);
  histogram('time_to_first_token_seconds', stats.timeToFirstTokenSeconds);
  histogram('e2e_request_latency_seconds', stats.requestLatencySeconds);
  if (served.nAdapters > 0) {
    const running = stats.runningAdapters.join(',');
    const waiting = stats.waitingAdapters.join(',');
    // The value is the time of the state; neither engine nor model_name is a label.
    const lora = `max_lora="${served.nAdapters}",running_lora_adapters="${escaped(running)}",waiting_lora_adapters="${escaped(waiting)}"`;
    metric('gauge', 'lora_requests_info', [[lora, served.unixSeconds]]);
  }
  // No model_name on this one; num_gpu_blocks counts the null block.
  const config = `block_size="${options.blockSizeTokens}",enable_prefix_caching="True",engine="0",num_gpu_blocks="${options.nBlocks}",prefix_caching_hash_algo="sha256",sliding_window="None"`;
  metric('gauge', 'cache_config_info', [[config, 1]]);
  return `${lines.join('\n')}\n`;
}

function escaped(value: string): string {
  return value.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
}
