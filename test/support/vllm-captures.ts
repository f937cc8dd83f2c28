/** What real vLLM engines sent for given requests, as recorded in test/fixtures/kv-events/captured. */
import { readFileSync } from 'node:fs';
import { unpack } from 'msgpackr';

export type CapturedBatch = { readonly seq: number; readonly payload: Buffer; readonly decoded: unknown };

export type CapturedStep = {
  readonly name: string;
  readonly path: string;
  readonly body: Record<string, unknown>;
  readonly status: number;
  readonly response: Record<string, unknown>;
  readonly events: readonly CapturedBatch[];
};

export type Capture = {
  readonly version: string;
  readonly blockSizeTokens: number;
  readonly nBlocks: number;
  readonly maxBatchedTokens: number;
  readonly steps: readonly CapturedStep[];
};

type File = {
  vllm_version: string;
  config: { block_size: number; num_gpu_blocks: number; max_num_batched_tokens: number | 'default' };
  steps: {
    name: string;
    request: { path: string; body: Record<string, unknown> | null };
    status: number;
    response: Record<string, unknown>;
    events: { frames_hex: string[]; seq: number }[];
  }[];
};

/** @param name file name without `.json` */
export function readCapture(name: string): Capture {
  const url = new URL(`../fixtures/kv-events/captured/${name}.json`, import.meta.url);
  const file = JSON.parse(readFileSync(url, 'utf8')) as File;
  const { config } = file;
  return {
    version: file.vllm_version,
    blockSizeTokens: config.block_size,
    nBlocks: config.num_gpu_blocks,
    maxBatchedTokens: config.max_num_batched_tokens === 'default' ? 8192 : config.max_num_batched_tokens,
    steps: file.steps.map(({ name: stepName, request, status, response, events }) => ({
      name: stepName,
      path: request.path,
      body: request.body ?? {},
      status,
      response,
      events: events.map(({ frames_hex, seq }) => {
        const payload = Buffer.from(frames_hex[2]!, 'hex');
        return { seq, payload, decoded: unpack(payload) as unknown };
      }),
    })),
  };
}
