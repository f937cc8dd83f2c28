/**
 * What is replayed: requests with an arrival time, lengths and the blocks of their prompts. Reads Mooncake traces; the
 * seeded ones are in synthetic-workloads.ts. Block ids are dense and chained: equal ids mean equal prompts up to there,
 * so an id that a trace uses under two different prefixes becomes two ids here.
 */
import { WarmpathError } from '../errors.ts';

export type ReplayRequest = {
  /** Position in the workload. */
  readonly index: number;
  readonly arrivalMs: number;
  /** At least 1. */
  readonly promptTokens: number;
  /** At least 1. */
  readonly outputTokens: number;
  /** Blocks of `Workload.blockTokens` tokens; the last one may be partly filled. */
  readonly blocks: Int32Array;
};

export type Workload = {
  readonly name: string;
  readonly blockTokens: number;
  /** Every block id is below. */
  readonly nBlockIds: number;
  /** By arrival, then in the order of the trace. */
  readonly requests: readonly ReplayRequest[];
};

/** Tokens per block of a Mooncake trace. */
export const TRACE_BLOCK_TOKENS = 512;
const MAX_TOKENS = 100_000_000;

export type WorkloadBuilder = {
  /** @param hashes names of the blocks; what is equal must have the same name under the same prefix */
  add(arrivalMs: number, promptTokens: number, outputTokens: number, hashes: readonly number[]): void;
  build(): Workload;
};

export function createWorkloadBuilder(name: string, blockTokens: number = TRACE_BLOCK_TOKENS): WorkloadBuilder {
  const requests: ReplayRequest[] = [];
  const names = new Map<number, number>();
  /** Parent's id and own name → id; a parent has id ≥ 1, the start of a prompt is 0. */
  const ids = new Map<number, number>();
  return {
    add(arrivalMs, promptTokens, outputTokens, hashes) {
      const blocks = new Int32Array(hashes.length);
      let parent = 0;
      for (let i = 0; i < hashes.length; i++) {
        const hash = hashes[i]!;
        let named = names.get(hash);
        if (named === undefined) names.set(hash, (named = names.size));
        const key = parent * 2 ** 26 + named;
        let id = ids.get(key);
        if (id === undefined) ids.set(key, (id = ids.size));
        blocks[i] = id;
        parent = id + 1;
      }
      requests.push({
        index: requests.length,
        arrivalMs,
        promptTokens,
        outputTokens: Math.max(1, outputTokens),
        blocks,
      });
    },
    build() {
      const sorted = [...requests].sort((a, b) => a.arrivalMs - b.arrivalMs || a.index - b.index);
      return { name, blockTokens, nBlockIds: ids.size, requests: sorted.map((r, index) => ({ ...r, index })) };
    },
  };
}

/**
 * @param file named in errors, and (without its directory) as the workload
 * @throws WarmpathError usage_invalid with file, line and expectation
 */
export async function readMooncakeTrace(file: string, lines: AsyncIterable<string>): Promise<Workload> {
  const builder = createWorkloadBuilder(file.replace(/^.*[/\\]/, ''));
  let lineNumber = 0;
  let nRequests = 0;
  for await (const line of lines) {
    lineNumber += 1;
    if (line.trim() === '') continue;
    const parsed = parseTraceLine(line);
    if (typeof parsed === 'string') throw new WarmpathError('usage_invalid', `${file}:${lineNumber}: ${parsed}`);
    builder.add(parsed.timestamp, parsed.inputLength, parsed.outputLength, parsed.hashIds);
    nRequests += 1;
  }
  if (nRequests === 0)
    throw new WarmpathError('usage_invalid', `${file}: no requests, expected one JSON object per line`);
  return builder.build();
}

type TraceLine = { timestamp: number; inputLength: number; outputLength: number; hashIds: readonly number[] };

/** @returns the line, or what is wrong with it */
export function parseTraceLine(line: string): TraceLine | string {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return `not JSON: ${shown(line)}, expected {"timestamp", "input_length", "output_length", "hash_ids"}`;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return `got ${shown(line)}, expected an object with timestamp, input_length, output_length, hash_ids`;
  }
  const fields = value as Record<string, unknown>;
  const { timestamp, input_length: inputLength, output_length: outputLength, hash_ids: hashIds } = fields;
  if (typeof timestamp !== 'number' || !Number.isFinite(timestamp) || timestamp < 0) {
    return `timestamp must be milliseconds ≥ 0, got ${shown(timestamp)}`;
  }
  if (!isCount(inputLength, 1))
    return `input_length must be an integer from 1 to ${MAX_TOKENS}, got ${shown(inputLength)}`;
  if (!isCount(outputLength, 0)) {
    return `output_length must be an integer from 0 to ${MAX_TOKENS}, got ${shown(outputLength)}`;
  }
  if (!Array.isArray(hashIds)) return `hash_ids must be a list of integers, got ${shown(hashIds)}`;
  const bad: unknown = hashIds.find((id) => !Number.isSafeInteger(id));
  if (bad !== undefined) return `hash_ids must hold integers, got ${shown(bad)}`;
  const most = Math.ceil(inputLength / TRACE_BLOCK_TOKENS);
  if (hashIds.length > most) {
    return `hash_ids has ${hashIds.length} blocks, expected at most ${most}: ${inputLength} tokens in blocks of ${TRACE_BLOCK_TOKENS}`;
  }
  return { timestamp, inputLength, outputLength, hashIds: hashIds as number[] };
}

function isCount(value: unknown, least: number): value is number {
  return Number.isInteger(value) && (value as number) >= least && (value as number) <= MAX_TOKENS;
}

function shown(value: unknown): string {
  const text = value === undefined ? 'nothing' : typeof value === 'string' ? value : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
