/** Requests that were sent to real engines, sent to the simulated one: same events in the same batches, same hits. */
import { describe, expect, test } from '@jest/globals';
import type { PoolEvent } from '../../../src/simulator/block-pool.ts';
import { createEngine, type Engine } from '../../../src/simulator/engine.ts';
import { createServedModels } from '../../../src/simulator/served-models.ts';
import { createFakeClock } from '../../support/fake-clock.ts';
import { readCapture, type Capture, type CapturedStep } from '../../support/vllm-captures.ts';

type Usage = { prompt_tokens_details: { cached_tokens: number } | null };
type Choice = { token_ids?: number[] };

/** An event without engine-made names: blocks are numbered in the order in which they were first stored. */
type PlainEvent =
  | { stored: number[]; parent: number | null; tokenIds: number[]; extraKeys: unknown; lora: string | null }
  | { removed: number }
  | 'cleared';

describe('the simulated engine against real vLLM', () => {
  test.each([
    'vllm-0.22.1-lora-int-basic',
    'vllm-0.32.0-lora-int-basic',
    'vllm-0.22.1-lora-int-salt-lora',
    'vllm-0.32.0-lora-int-salt-lora',
    'vllm-0.32.0-lora-int-reset',
  ])('%s: the same batches and the same cached tokens, request by request', (name) => {
    const capture = readCapture(name);
    const theirs = createNumbering();
    const ours = createNumbering();
    const run = createRun(capture);
    let nCompared = 0;
    for (const step of capture.steps) {
      const { batches, cachedTokens } = run(step);
      expect({ step: step.name, batches: batches.map((events) => events.map(ours.ofPool)) }).toEqual({
        step: step.name,
        batches: step.events.map(({ decoded }) => (decoded as [number, unknown[]])[1].map(theirs.ofWire)),
      });
      nCompared += step.events.length;
      const usage = step.response['usage'] as Usage | undefined;
      if (usage !== undefined) {
        expect([step.name, cachedTokens]).toEqual([step.name, usage.prompt_tokens_details?.cached_tokens ?? 0]);
      }
    }
    expect(nCompared).toBeGreaterThan(2);
  });

  test('vllm-0.32.0-bytes-smallcache-eviction: once the cache is full, the same blocks leave in the same order', () => {
    const capture = readCapture('vllm-0.32.0-bytes-smallcache-eviction');
    const theirs = createNumbering();
    const ours = createNumbering();
    const run = createRun(capture);
    let nRemovals = 0;
    capture.steps.forEach((step, i) => {
      const real = step.events.map(({ decoded }) => (decoded as [number, unknown[]])[1].map(theirs.ofWire));
      const simulated = run(step).batches.map((events) => events.map(ours.ofPool));
      // The real engine had a past: only what was stored in this capture can be recognised when it leaves.
      if (i < 3) return;
      expect({ step: step.name, batches: simulated }).toEqual({ step: step.name, batches: real });
      nRemovals += real.flat().filter((event) => typeof event === 'object' && 'removed' in event).length;
    });
    expect(nRemovals).toBe(39);
  });
});

function createRun(capture: Capture): (step: CapturedStep) => { batches: PoolEvent[][]; cachedTokens: number } {
  const clock = createFakeClock();
  let batches: PoolEvent[][] = [];
  const engine = createEngine(
    { clock, publish: (events) => void batches.push([...events]) },
    {
      blockSizeTokens: capture.blockSizeTokens,
      nBlocks: capture.nBlocks,
      uncachedBlocks: capture.version.startsWith('0.22') ? 'in_order' : 'reused_first',
      prefillTokensPerSecond: 1000,
      decodeStepMs: 1,
      maxBatchedTokens: capture.maxBatchedTokens,
      maxSequences: 256,
      seed: 1,
    },
  );
  const models = createServedModels('tiny', ['alpha', 'b', 'c', 'beta']);
  let nRequests = 0;
  return (step) => {
    batches = [];
    let cachedTokens = 0;
    if (step.path === '/reset_prefix_cache') engine.resetPrefixCache();
    if (step.path === '/v1/completions' && step.status === 200) {
      nRequests += submit(engine, step, nRequests, models.resolve(step.body['model'] as string)!.lora, (tokens) => {
        cachedTokens = tokens;
      });
      clock.advance(60_000);
      expect(engine.stats()).toMatchObject({ running: 0, waiting: 0 });
    }
    return { batches, cachedTokens };
  };
}

function submit(
  engine: Engine,
  { body, response }: CapturedStep,
  firstId: number,
  lora: { id: number; name: string } | null,
  onCached: (cachedTokens: number) => void,
): number {
  const prompt = body['prompt'] as number[] | number[][];
  const prompts = typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as number[][]);
  const choices = response['choices'] as Choice[];
  const n = (body['n'] as number | undefined) ?? 1;
  const requests = prompts.flatMap((promptTokenIds, p) =>
    Array.from({ length: n }, (_, sample) => ({
      id: String(firstId + p * n + sample),
      promptTokenIds,
      features: [],
      lora,
      cacheSalt: (body['cache_salt'] as string | undefined) ?? null,
      cacheReads: 'prompt_logprobs' in body ? ('skipped' as const) : ('allowed' as const),
      maxTokens: body['max_tokens'] as number,
      finishReason: 'length' as const,
      generate: (index: number) => choices[p * n + sample]!.token_ids?.[index] ?? 1 + sample,
      onToken: ({ cachedTokens }: { cachedTokens: number }) => onCached(cachedTokens),
    })),
  );
  engine.submit(requests);
  return requests.length;
}

function createNumbering() {
  const numbers = new Map<string, number>();
  const keyOf = (hash: unknown): string => (Buffer.isBuffer(hash) ? hash.toString('hex') : String(hash));
  const numberOf = (hash: unknown): number => {
    if (!numbers.has(keyOf(hash))) numbers.set(keyOf(hash), numbers.size);
    return numbers.get(keyOf(hash))!;
  };
  /** A block stored before the capture began has no number. */
  const knownNumberOf = (hash: unknown): number => numbers.get(keyOf(hash)) ?? -1;
  return {
    ofWire(event: unknown): PlainEvent {
      const at = (name: string, index: number): unknown =>
        Array.isArray(event) ? (event as unknown[])[index] : (event as Record<string, unknown>)[name];
      const type = at('type', 0);
      if (type === 'AllBlocksCleared') return 'cleared';
      const hashes = at('block_hashes', 1) as unknown[];
      if (type === 'BlockRemoved') return { removed: knownNumberOf(hashes[0]) };
      const parent = at('parent_block_hash', 2);
      return {
        parent: parent === null ? null : numberOf(parent),
        stored: hashes.map(numberOf),
        tokenIds: at('token_ids', 3) as number[],
        lora: at('lora_name', 7) as string | null,
        extraKeys: at('extra_keys', 8),
      };
    },
    ofPool(event: PoolEvent): PlainEvent {
      if (event.type === 'AllBlocksCleared') return 'cleared';
      if (event.type === 'BlockRemoved') return { removed: knownNumberOf(event.block.digest) };
      return {
        parent: event.parent === null ? null : numberOf(event.parent.digest),
        stored: event.blocks.map((block) => numberOf(block.digest)),
        tokenIds: event.blocks.flatMap((block) => [...block.tokenIds]),
        lora: event.blocks[0]!.lora?.name ?? null,
        extraKeys: event.blocks.map((block) => block.extraKeys),
      };
    },
  };
}
