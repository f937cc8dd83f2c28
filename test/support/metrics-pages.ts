/**
 * Pages of engines' /metrics for tests and benches. The vLLM page has the names, types and labels that vLLM 0.22.1 gave
 * (test/fixtures/kv-events/captured/vllm-0.22.1-lora-int-metrics.json); buckets are filled in to the size wanted.
 */
import { readFileSync } from 'node:fs';

export type EngineState = {
  readonly running: number | string;
  readonly waiting: number | string;
  readonly kvUsage: number | string;
};

const IDLE: EngineState = { running: 0, waiting: 0, kvUsage: 0 };

/** @param minBytes filled up with buckets of the histograms, as newer versions have more of them */
export function aVllmPage(state: Partial<EngineState> = {}, minBytes = 0, ranks: readonly string[] = ['0']): string {
  const { running, waiting, kvUsage } = { ...IDLE, ...state };
  const values: Readonly<Record<string, number | string>> = {
    'vllm:num_requests_running': running,
    'vllm:num_requests_waiting': waiting,
    'vllm:kv_cache_usage_perc': kvUsage,
  };
  const types = Object.entries(vllmTypes());
  const nHistograms = types.filter(([, type]) => type === 'histogram').length;
  const nBuckets = Math.max(12, Math.ceil(minBytes / nHistograms / ranks.length / 105));
  const lines: string[] = [];
  for (const [name, type] of types) {
    lines.push(`# HELP ${name} What ${name} says.`, `# TYPE ${name} ${type}`);
    for (const rank of ranks) {
      const labels = `engine="${rank}",model_name="meta-llama/Llama-3.1-8B-Instruct"`;
      if (name === 'vllm:cache_config_info') {
        lines.push(
          `${name}{block_size="16",cache_dtype="auto",engine="${rank}",num_gpu_blocks="2048",prefix_caching_hash_algo="sha256",sliding_window="None"} 1.0`,
        );
      } else if (name === 'vllm:num_requests_waiting_by_reason') {
        lines.push(`${name}{${labels},reason="capacity"} 900.0`, `${name}{${labels},reason="deferred"} 99.0`);
      } else if (type === 'histogram') {
        for (let i = 0; i < nBuckets; i++) lines.push(`${name}_bucket{${labels},le="${2 ** i / 1000}"} ${i * 3}.0`);
        lines.push(`${name}_count{${labels}} ${nBuckets * 3}.0`, `${name}_sum{${labels}} ${nBuckets / 10}`);
      } else {
        lines.push(`${name}{${labels}} ${values[name] ?? '1.0'}`);
      }
    }
  }
  return `${lines.join('\n')}\n`;
}

export function anSglangPage({ running, waiting, kvUsage }: EngineState): string {
  const labels = (rank: number) => `engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="${rank}"`;
  const both = (name: string, value: number | string): string =>
    `# TYPE sglang:${name} gauge\nsglang:${name}{${labels(0)}} ${value}\nsglang:${name}{${labels(1)}} ${value}\n`;
  return (
    both('num_running_reqs', running) +
    both('token_usage', kvUsage) +
    both('num_queue_reqs', waiting) +
    `# TYPE sglang:cache_config_info gauge\nsglang:cache_config_info{model_name="m",num_pages="4000",page_size="64"} 1.0\n`
  );
}

export function aTrtllmPage({ running, waiting, kvUsage }: EngineState): string {
  const labels = '{model_name="m",engine_type="trtllm"}';
  return [
    `trtllm_num_requests_running${labels} ${running}`,
    `trtllm_num_requests_waiting${labels} ${waiting}`,
    `trtllm_kv_cache_utilization${labels} ${kvUsage}`,
    `trtllm_kv_cache_tokens_per_block${labels} 32`,
    `trtllm_kv_cache_max_blocks${labels} 900`,
    '',
  ].join('\n');
}

export function aTritonPage({ running, waiting, kvUsage }: EngineState): string {
  const request = (type: string, value: number | string): string =>
    `nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="${type}",version="1"} ${value}`;
  const blocks = (type: string, value: number | string): string =>
    `nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="${type}",model="tensorrt_llm",version="1"} ${value}`;
  return [
    '# TYPE nv_trt_llm_request_metrics gauge',
    request('context', 55),
    request('scheduled', running),
    request('max', 512),
    request('waiting', waiting),
    '# TYPE nv_trt_llm_kv_cache_block_metrics gauge',
    blocks('fraction', kvUsage),
    blocks('tokens_per', 64),
    blocks('max', 6239),
    '',
  ].join('\n');
}

function vllmTypes(): Readonly<Record<string, string>> {
  const url = new URL('../fixtures/kv-events/captured/vllm-0.22.1-lora-int-metrics.json', import.meta.url);
  return (JSON.parse(readFileSync(url, 'utf8')) as { types: Record<string, string> }).types;
}
