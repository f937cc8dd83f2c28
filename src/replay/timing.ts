/**
 * How long a pass of a simulated engine takes, and what its scheduler and cache look like. Two models; docs/design.md
 * says what they leave out.
 */

export type TimingModel = {
  readonly name: TimingName;
  /** Tokens per cache block. */
  readonly blockTokens: number;
  /** Whether a prompt's last, partly filled block can be found again: traces name it, engines drop it. */
  readonly partialBlocks: 'cached' | 'dropped';
  /** How long a request holds its blocks: while its prompt is computed (what decoding holds is memory of its own), or to its end. */
  readonly holds: 'prefill' | 'sequence';
  readonly maxPrefillTokens: number;
  /** Whether a decoding request's token counts against `maxPrefillTokens`. */
  readonly decodeTokens: 'in budget' | 'beside budget';
  /** What the first token costs: a step of decoding like every other, or nothing beside the prompt's last tokens. */
  readonly firstToken: 'decoded' | 'with its prompt';
  readonly maxSequences: number;
  /** @param contextTokens tokens of the requests that are decoded */
  passMs(nPrefillTokens: number, nDecodes: number, contextTokens: number, capacityTokens: number): number;
};

export const TIMING_NAMES = ['simple', 'polynomial'] as const;
export type TimingName = (typeof TIMING_NAMES)[number];

/** Time between two tokens of an answer when the engine is not busy with prompts. */
const DECODE_STEP_MS = 25;
/** Prompt tokens per pass: small, so that prompts delay the tokens of running answers little. */
const SIMPLE_CHUNK_TOKENS = 256;

/**
 * One rate for prompts. A pass is bound by computing (prompt and decoded tokens ÷ rate) or, where it decodes, by reading
 * the weights (25 ms), whichever is longer: chunked prefill rides on decoding and the other way round.
 */
export function simpleTiming(prefillTokensPerSecond: number, blockTokens: number): TimingModel {
  const msPerToken = 1000 / prefillTokensPerSecond;
  return {
    name: 'simple',
    blockTokens,
    partialBlocks: 'cached',
    holds: 'prefill',
    maxPrefillTokens: SIMPLE_CHUNK_TOKENS,
    decodeTokens: 'beside budget',
    firstToken: 'decoded',
    maxSequences: 256,
    passMs: (nPrefillTokens, nDecodes) =>
      Math.max((nPrefillTokens + nDecodes) * msPerToken, nDecodes > 0 ? DECODE_STEP_MS : 0),
  };
}

export const POLYNOMIAL_BLOCK_TOKENS = 64;
export const POLYNOMIAL_CACHE_BLOCKS = 16_384;

/** A published fit to a large GPU; prompt time is a polynomial of the pass's uncached tokens, decode time of the KV in use. */
export const polynomialTiming: TimingModel = {
  name: 'polynomial',
  blockTokens: POLYNOMIAL_BLOCK_TOKENS,
  partialBlocks: 'dropped',
  holds: 'sequence',
  maxPrefillTokens: 8192,
  decodeTokens: 'in budget',
  firstToken: 'with its prompt',
  maxSequences: 256,
  passMs(nPrefillTokens, nDecodes, contextTokens, capacityTokens) {
    const t = nPrefillTokens;
    const prefillMs = t === 0 ? 0 : 4.209989e-7 * t * t + 1.518344e-2 * t + 16.50142;
    if (nDecodes === 0) return prefillMs;
    const p = Math.min(1, contextTokens / capacityTokens);
    return prefillMs + Math.max(1, -25.74 * p * p + 54.01 * p + 5.74);
  },
};

/** A prompt's blocks as an engine names them: blocks of a workload cut to the engine's size. */
export function engineBlocks(
  blocks: Int32Array,
  workloadBlockTokens: number,
  promptTokens: number,
  timing: TimingModel,
): Int32Array {
  const perBlock = workloadBlockTokens / timing.blockTokens;
  const count = timing.partialBlocks === 'cached' ? Math.ceil : Math.floor;
  const n = Math.min(blocks.length * perBlock, count(promptTokens / timing.blockTokens));
  if (perBlock === 1) return blocks.subarray(0, n);
  const cut = new Int32Array(n);
  for (let i = 0; i < n; i++) cut[i] = blocks[Math.floor(i / perBlock)]! * perBlock + (i % perBlock);
  return cut;
}
