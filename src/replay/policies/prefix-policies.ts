/** Prefix-aware peers, as their documents define them. What each knows is what it keeps itself, except `dynamo`, which reads KV events. */
import type { EngineRequest } from '../engine.ts';
import { lowest, type CreatePolicy, type EngineProbe } from './policy.ts';
import { createAnnouncedBlocks, createInFlightSum, createRoutedIndex } from './tracking.ts';

const AIBRIX_GATE = 16;
const AIBRIX_SIGMAS = 2;

/** Gate on running requests, then the longest match within mean + 2σ, else least running. */
export const createAibrixPrefixCache: CreatePolicy = ({ random, cacheBlocks }) => {
  const running = createInFlightSum();
  const index = createRoutedIndex(cacheBlocks);
  return {
    choose(request, all) {
      const counts = all.map(running.of);
      const least = Math.min(...counts);
      const gated = Math.max(...counts) - least > AIBRIX_GATE;
      const engines = gated ? all.filter((engine) => running.of(engine) === least) : all;
      const mean = counts.reduce((a, b) => a + b, 0) / counts.length;
      const squares = counts.reduce((sum, count) => sum + (count - mean) ** 2, 0);
      const most = mean + AIBRIX_SIGMAS * Math.sqrt(counts.length > 1 ? squares / (counts.length - 1) : 0);
      const within = engines.filter((engine) => running.of(engine) <= most);
      const matched = within.map((engine) => index.matchedBlocks(request, engine));
      const longest = Math.max(0, ...matched);
      const candidates = longest > 0 ? within.filter((_, i) => matched[i] === longest) : engines;
      const chosen = lowest(candidates, running.of, random);
      running.add(request, chosen, 1);
      index.add(request, chosen);
      return chosen;
    },
    onEnd: running.remove,
    onGone: index.forget,
  };
};

/** Own decisions in blocks of 64 tokens, 31,250 per pod. */
const LLM_D_INDEX_TOKENS = 64 * 31_250;
const LLM_D_WEIGHTS = { prefix: 3, queue: 2, kvUsage: 2 };

/** Weighted sum of scaled scores: matched prefix, waiting requests, KV usage. */
export const createLlmDDefault: CreatePolicy = ({ random, blockTokens }) => {
  const index = createRoutedIndex(Math.floor(LLM_D_INDEX_TOKENS / blockTokens));
  return {
    choose(request, engines) {
      const prefix = scaled(engines.map((engine) => index.matchedBlocks(request, engine)));
      const queue = scaled(engines.map((engine) => -engine.nWaiting()));
      const kvUsage = scaled(engines.map((engine) => -engine.kvUsage()));
      const score = new Map<number, number>();
      engines.forEach(({ id }, i) =>
        score.set(
          id,
          LLM_D_WEIGHTS.prefix * prefix[i]! + LLM_D_WEIGHTS.queue * queue[i]! + LLM_D_WEIGHTS.kvUsage * kvUsage[i]!,
        ),
      );
      const chosen = lowest(engines, ({ id }) => -score.get(id)!, random);
      index.add(request, chosen);
      return chosen;
    },
    onGone: index.forget,
  };
};

/** To 0…1 between the least and the most; all equal = all 1. */
function scaled(values: readonly number[]): number[] {
  const least = Math.min(...values);
  const span = Math.max(...values) - least;
  return values.map((value) => (span === 0 ? 1 : (value - least) / span));
}

const STICKY_SCORE = 0.8;
const STICKY_MOST_WAIT_S = 18;
const STICKY_TOKENS_PER_SECOND = 15_928;

/** Pods that have at least 80 % of the prompt, unless their estimated wait is over 18 s; of what remains the fewest tokens in flight. */
export const createLlmDSticky: CreatePolicy = ({ random, blockTokens }) => {
  const index = createRoutedIndex(Math.floor(LLM_D_INDEX_TOKENS / blockTokens));
  const tokens = createInFlightSum();
  return {
    choose(request, engines) {
      const sticky = engines.filter(
        (engine) =>
          index.matchedBlocks(request, engine) >= STICKY_SCORE * request.blocks.length &&
          tokens.of(engine) <= STICKY_MOST_WAIT_S * STICKY_TOKENS_PER_SECOND,
      );
      const chosen = lowest(sticky.length > 0 ? sticky : engines, tokens.of, random);
      tokens.add(request, chosen, request.promptTokens);
      index.add(request, chosen);
      return chosen;
    },
    onEnd: tokens.remove,
    onGone: index.forget,
  };
};

/** Cost in blocks: prefill not yet done there and own uncached part, plus blocks in use by running requests. Credits from KV events. */
export const createDynamo: CreatePolicy = ({ random, blockTokens }) => {
  const announced = createAnnouncedBlocks();
  const prefillTokens = createInFlightSum();
  const active = new Map<number, Map<number, number>>();
  const activeOf = ({ id }: EngineProbe): Map<number, number> => {
    let blocks = active.get(id);
    if (!blocks) active.set(id, (blocks = new Map()));
    return blocks;
  };
  /** Blocks in use there if the request came; shared ones count once. */
  const decodeBlocks = (request: EngineRequest, engine: EngineProbe): number => {
    const blocks = activeOf(engine);
    return request.blocks.reduce((n, block) => n + (blocks.has(block) ? 0 : 1), blocks.size);
  };
  return {
    choose(request, engines) {
      const uncached = (engine: EngineProbe): number =>
        request.promptTokens - announced.matchedBlocks(request, engine) * blockTokens;
      const cost = (engine: EngineProbe): number =>
        Math.max(prefillTokens.of(engine) + uncached(engine), 0) / blockTokens + decodeBlocks(request, engine);
      const chosen = lowest(engines, cost, random);
      prefillTokens.add(request, chosen, Math.max(0, uncached(chosen)));
      const blocks = activeOf(chosen);
      for (const block of request.blocks) blocks.set(block, (blocks.get(block) ?? 0) + 1);
      return chosen;
    },
    onFirstToken: prefillTokens.remove,
    onEnd(request, engine) {
      prefillTokens.remove(request, engine);
      const blocks = activeOf(engine);
      for (const block of request.blocks) {
        const count = blocks.get(block) ?? 0;
        if (count > 1) blocks.set(block, count - 1);
        else blocks.delete(block);
      }
    },
    onBlocks: announced.apply,
    onGone: announced.forget,
  };
};

const SMG_GAP = 64;
const SMG_RATIO = 1.5;
const SMG_MATCH = 0.3;
/** Its tree is cut at 2^26 characters, about 4 per token. */
const SMG_INDEX_TOKENS = 2 ** 24;

/** Shortest queue when loads are far apart; else the longest match if it is 30 % of the prompt; else least load. */
export const createSmgCacheAware: CreatePolicy = ({ random, blockTokens }) => {
  const load = createInFlightSum();
  const index = createRoutedIndex(Math.floor(SMG_INDEX_TOKENS / blockTokens));
  return {
    choose(request, engines) {
      const loads = engines.map(load.of);
      const most = Math.max(...loads);
      const least = Math.min(...loads);
      const unbalanced = most - least > SMG_GAP && most > SMG_RATIO * least;
      const matched = engines.map((engine) => index.matchedBlocks(request, engine));
      const longest = Math.max(...matched);
      const warm = !unbalanced && longest > 0 && longest >= SMG_MATCH * request.blocks.length;
      const chosen = lowest(warm ? engines.filter((_, i) => matched[i] === longest) : engines, load.of, random);
      load.add(request, chosen, 1);
      index.add(request, chosen);
      return chosen;
    },
    onEnd: load.remove,
    onGone: index.forget,
  };
};
