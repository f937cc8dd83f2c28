/**
 * Reads the future: every engine's cache as it is, its true progress, and how long its queue will take. Chooses the
 * lowest time to first token for this request. A mark for looking one request ahead, neither a competitor nor a bound.
 */
import type { EngineRequest } from '../engine.ts';
import { lowest, type CreatePolicy, type EngineProbe } from './policy.ts';

type Pending = { blocks: Map<number, number>; submittedTokens: number; uncached: Map<number, number> };

export const createOracle: CreatePolicy = ({ random, blockTokens }) => {
  const pending = new Map<number, Pending>();
  const pendingOf = ({ id }: EngineProbe): Pending => {
    let of = pending.get(id);
    if (!of) pending.set(id, (of = { blocks: new Map(), submittedTokens: 0, uncached: new Map() }));
    return of;
  };
  const uncachedTokens = ({ blocks, promptTokens }: EngineRequest, engine: EngineProbe): number => {
    const queued = pendingOf(engine).blocks;
    let n = 0;
    while (n < blocks.length && (engine.secrets.has(blocks[n]!) || queued.has(blocks[n]!))) n += 1;
    return Math.max(1, promptTokens - n * blockTokens);
  };
  const settle = (request: EngineRequest, engine: EngineProbe, computedTokens: number): void => {
    const of = pendingOf(engine);
    const predicted = of.uncached.get(request.index);
    if (predicted === undefined) return;
    of.uncached.delete(request.index);
    of.submittedTokens += computedTokens - predicted;
    for (const block of request.blocks) {
      const count = of.blocks.get(block) ?? 0;
      if (count > 1) of.blocks.set(block, count - 1);
      else of.blocks.delete(block);
    }
  };
  return {
    choose(request, engines) {
      const firstTokenMs = (engine: EngineProbe): number => {
        const backlog = Math.max(0, pendingOf(engine).submittedTokens - engine.secrets.computedTokens());
        return engine.secrets.prefillMs(backlog + uncachedTokens(request, engine));
      };
      const chosen = lowest(engines, firstTokenMs, random);
      const of = pendingOf(chosen);
      const uncached = uncachedTokens(request, chosen);
      of.uncached.set(request.index, uncached);
      of.submittedTokens += uncached;
      for (const block of request.blocks) of.blocks.set(block, (of.blocks.get(block) ?? 0) + 1);
      return chosen;
    },
    onFirstToken: (request, engine, cachedTokens) => settle(request, engine, request.promptTokens - cachedTokens),
    onEnd: (request, engine) => settle(request, engine, 0),
    onGone: ({ id }) => void pending.delete(id),
  };
};
