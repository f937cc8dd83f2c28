/**
 * Flow (a) in one function: body → what is asked → tokens → block hashes → match → choice → reservation.
 *
 * At most one wait lies in it, the tokenizer, and that has a budget. A late tokenizer, an unreadable prompt or an empty
 * index take the same path with less knowledge. Only "no endpoint", "shed", "unknown model" and "not a request" are errors.
 * No metrics and no log here: every decision is handed to `record`.
 */
import type { Clock } from './clock.ts';
import { endpointKey, type Endpoint, type EndpointId, type EndpointSlot } from './endpoints/endpoint.ts';
import type { EndpointStore } from './endpoints/endpoint-store.ts';
import type { Decision, EndpointPicker, PickError, PickRequest } from './extproc/picker.ts';
import type { Signal } from './light-signal.ts';
import type { CreditWeights } from './load/cache-trust.ts';
import type { ExpectedLoad } from './load/expected-load.ts';
import type { FleetLoad } from './load/fleet-load.ts';
import type { InFlight } from './load/in-flight.ts';
import { parseRequest, type InferenceRequest } from './openai/request.ts';
import { selectCandidates, type Selected } from './picking/candidates.ts';
import {
  DEFAULT_BLOCK_SIZE_TOKENS,
  type CandidateView,
  type DecisionRecord,
  type DecisionRung,
  type EndpointKnowledge,
  type EndRecord,
  type Evaluation,
} from './picking/decision-record.ts';
import { Budget } from './picking/budget.ts';
import { badRequest, CLIENT_GONE } from './picking/pick-errors.ts';
import {
  chainsOf,
  createPromptMatcher,
  credit,
  matched,
  prefixTraits,
  type MediaWeights,
  type PromptMatches,
} from './picking/prompt-matching.ts';
import { createRequestHolder } from './picking/request-holder.ts';
import { createSessions, type Session } from './picking/sessions.ts';
import { shed, type SheddingOptions } from './picking/shedding.ts';
import { traceIdOf } from './picking/trace-id.ts';
import { createStrategyChoice, type StrategyOptions } from './picking/strategy-choice.ts';
import type { BlockHasher } from './prefix/block-hash.ts';
import type { EvictionAges } from './prefix/eviction-ages.ts';
import { createPrefixForks } from './prefix/prefix-forks.ts';
import type { PrefixIndexReader } from './prefix/prefix-index.ts';
import type { RoutedPrefixes } from './prefix/routed-prefixes.ts';
import { schedule, type ScheduleInput } from './scheduling/scheduler.ts';
import { rank, type EngineSignals } from './scheduling/strategies.ts';
import { usesPrompt, type Strategy } from './scheduling/strategy-names.ts';
import type { PromptView, TokenizerLadder } from './tokenizer/tokenizer-ladder.ts';
import type { TokenChain, TokenizeFailure, Tokenizer, TokenizeRequest, TokenizeResult } from './tokenizer/tokenizer.ts';

export type PickerDeps = {
  readonly clock: Clock;
  readonly endpoints: EndpointStore;
  readonly knowledge: (endpoint: Endpoint) => EndpointKnowledge;
  /** What a promise of cached tokens is worth there. */
  readonly creditWeights: (endpoint: Endpoint) => CreditWeights;
  readonly index: PrefixIndexReader;
  readonly hasher: BlockHasher;
  readonly routed: RoutedPrefixes;
  readonly evictionAges: EvictionAges;
  readonly inFlight: Pick<InFlight, 'reserve'>;
  readonly expectedLoad: Pick<ExpectedLoad, 'of'>;
  /** Refuses connections: discovery may not know yet. */
  readonly isDown: (id: EndpointId) => boolean;
  readonly signals: (endpoint: Endpoint) => EngineSignals;
  readonly forecast: FleetLoad['forecast'];
  /** 0 ≤ n < 1 */
  readonly random: () => number;
  /** Null where none is configured. */
  readonly tokenizer: Tokenizer | null;
  readonly ladder: TokenizerLadder;
  readonly record: (record: DecisionRecord) => void;
  readonly recordEnd: (record: EndRecord) => void;
};

export type PickerOptions = {
  readonly budgetMs: number;
  readonly fallbackEndpoints: number;
  readonly mediaWeights: MediaWeights;
  readonly strategy: StrategyOptions;
  readonly shedding: SheddingOptions;
  /** See selectCandidates. */
  readonly testSelectionHeader: string;
};

/** Texts are counted in bytes; tokens estimated from them may be this much too many. */
const TEXT_MARGIN = 1.1;

export type Picker = EndpointPicker & {
  /** The decision without reservation or record, for `explain`. */
  evaluate(request: PickRequest, signal: Signal): Promise<Evaluation | PickError>;
};

export function createEndpointPicker(deps: PickerDeps, options: PickerOptions): Picker {
  const { clock, endpoints, expectedLoad, isDown, ladder, record, tokenizer } = deps;
  const matcher = createPromptMatcher(deps);
  const holder = createRequestHolder({ ...deps, matcher });
  const strategyOf = createStrategyChoice(options.strategy);
  const sessions = createSessions();
  const urlsOf = createUrls();
  const forks = createPrefixForks(clock);

  async function evaluate(pick: PickRequest, signal: Signal): Promise<Evaluation | PickError> {
    const parsed = parseRequest(pick.method, pick.path, pick.header('content-type'), pick.body, {
      truncated: pick.bodyTruncated ? 'yes' : 'no',
    });
    if (parsed.kind === 'bad_request') return badRequest(parsed.message, parsed.param);
    const { request } = parsed;
    const chosen = strategyOf(pick);
    if (chosen.kind === 'error') return chosen;
    const how: How = { strategy: chosen.strategy, session: sessions.of(pick) };
    const selected = selectCandidates(endpoints, request, pick, options.testSelectionHeader);
    if (selected.kind === 'error') return selected;
    if (!tellsSize(request)) return choose(how, request, selected, null, NOTHING_ASKED);
    const prompt = ladder.view(request, selected.model, selected.adapter);
    if (request.prompt.kind === 'none') return choose(how, request, selected, prompt, NOTHING_ASKED);
    if (request.prompt.kind === 'tokens') return choose(how, request, selected, prompt, tokensGiven(request.prompt));
    if (!usesPrompt(how.strategy)) return choose(how, request, selected, prompt, NOTHING_ASKED);
    if (tokenizer === null) return choose(how, request, selected, prompt, NOBODY_TO_ASK);
    const { model } = selected;
    const inTime = ladder.answersInTime(model);
    const early = inTime && !isClaimed(prompt, selected) ? null : choose(how, request, selected, prompt, NOTHING_ASKED);
    const isSure = early !== null && early.doubtMs <= ladder.waitWorthMs(model);
    if (early !== null && (isSure || !inTime)) {
      // Nobody waits for this call: it ends by its own timeout.
      const call = tokenizer.tokenize(asKnown(request, model), urlsOf(selected.endpoints), null);
      return { ...early, tokenizeFailure: isSure ? null : 'late', exact: timed(model, call) };
    }
    const answer = await tokenize(tokenizer, request, selected, signal);
    // The fleet may have changed during the wait.
    const current = selectCandidates(endpoints, request, pick, options.testSelectionHeader);
    if (current.kind === 'error') return current;
    return choose(how, request, current, prompt, answer);
  }

  /** Whether the memo claims anything of the prompt; where it does not, there is nothing to choose by before the tokens. */
  function isClaimed(prompt: PromptView, { endpoints: candidates }: Selected): boolean {
    let asked = 0;
    for (const candidate of candidates) {
      const size = blockSizeOf(deps.knowledge(candidate));
      // Nearly always that of all of them.
      if (size === asked) continue;
      asked = size;
      if (ladder.claims(prompt, size).some((claim) => claim?.believed === true)) return true;
    }
    return false;
  }

  async function tokenize(
    from: Tokenizer,
    request: InferenceRequest,
    { model, endpoints: candidates }: Selected,
    signal: Signal,
  ): Promise<TokenizerAnswer> {
    const budget = new Budget(clock, options.budgetMs, signal);
    try {
      const startMs = clock.nowMs();
      const result = await from.tokenize(asKnown(request, model), urlsOf(candidates), budget);
      const later = result.kind === 'none' ? result.later : undefined;
      if (later === undefined) noteAnswer(model, result, startMs);
      else void later.then((late) => noteAnswer(model, late, startMs));
      return result.kind === 'tokens'
        ? { chains: result.chains, failure: null, exact: Promise.resolve(result) }
        : { chains: [], failure: result.reason, exact: result.later ?? null };
    } finally {
      budget.end();
    }
  }

  async function timed(model: string, call: Promise<TokenizeResult>): Promise<TokenizeResult> {
    const startMs = clock.nowMs();
    const result = await call;
    noteAnswer(model, result, startMs);
    return result;
  }

  function noteAnswer(model: string, result: TokenizeResult, startMs: number): void {
    // What fails at once, or is remembered, costs no wait and says nothing about how long answers take.
    const isAnswer = result.kind === 'tokens' ? result.remembered !== true : result.reason === 'timeout';
    if (isAnswer) ladder.noteAnswer(model, clock.nowMs() - startMs);
  }

  /** What is known of an endpoint for a prompt. @param routedTokens of its text, sent there */
  function viewOf(
    endpoint: Endpoint,
    trust: EndpointKnowledge['trust'],
    matches: PromptMatches,
    promptTokens: number,
    routedTokens: (slot: EndpointSlot) => number,
  ): WeighedView {
    const { blockSizeTokens, knownTokens } = matches;
    const match = matched(matches, endpoint.slot, trust);
    const { matchedBlocks, matchedTokens: ofBlocks } = match;
    // Where the known blocks end, the text that was sent there may go on; where they are missing, it was pushed out.
    const ofText = ofBlocks < knownTokens ? 0 : routedTokens(endpoint.slot);
    // A few tokens more than known are what the estimate is wrong by.
    const usable = Math.floor(Math.min(ofText, promptTokens - 1) / blockSizeTokens) * blockSizeTokens;
    const isText = usable > ofBlocks * TEXT_MARGIN;
    const matchedTokens = isText ? usable : ofBlocks;
    const weights = matchedTokens === 0 ? NO_CREDIT : deps.creditWeights(endpoint);
    const creditedTokens = isText ? weights.delivered * usable : credit(match, weights, options.mediaWeights);
    const load = expectedLoad.of(endpoint);
    const reachable = !isDown(endpoint.id);
    const uncachedTokens = promptTokens - creditedTokens;
    return {
      endpoint,
      trust,
      reachable,
      matchedBlocks,
      matchedTokens,
      creditedTokens,
      uncachedTokens,
      load,
      costMs: NaN,
    };
  }

  function noteUse(evaluation: Evaluation, { endpoint }: CandidateView): void {
    const blockSize = blockSizeOf(deps.knowledge(endpoint));
    for (const chain of chainsOf(evaluation, blockSize)) deps.evictionAges.used(endpoint.slot, chain);
  }

  /** From here on everything is one synchronous turn. */
  function choose(
    { strategy, session }: How,
    request: InferenceRequest,
    { endpoints: candidates, model, adapter }: Selected,
    prompt: PromptView | null,
    { chains: tokenChains, failure: tokenizeFailure, exact }: TokenizerAnswer,
  ): Evaluation {
    const knowledge = candidates.map((endpoint) => deps.knowledge(endpoint));
    const owner = { request, model, adapter };
    const blocks: PromptMatches[] = [];
    const matches = knowledge.map((known) => {
      const blockSize = blockSizeOf(known);
      let found = blocks.find((one) => one.blockSizeTokens === blockSize);
      if (!found) blocks.push((found = matcher.match(owner, tokenChains, prompt, blockSize)));
      return found;
    });
    const isExact = tokenChains.length > 0;
    const routedTokens = isExact || prompt === null ? () => 0 : ladder.routedTokens(prompt);
    const promptTokens = isExact
      ? tokenChains.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0)
      : (claimedTokens(blocks) ?? prompt?.promptTokens ?? 0);
    const views = candidates.map((endpoint, index) =>
      viewOf(endpoint, knowledge[index]!.trust, matches[index]!, promptTokens, routedTokens),
    );
    const rung = rungOf(strategy, tokenChains, blocks, views);
    const warmest = views.reduce((best, view, i) => (view.matchedTokens > views[best]!.matchedTokens ? i : best), 0);
    const { tieKey, fork, sharers } = prefixTraits(matches[warmest]!, views[warmest]!.matchedTokens, candidates);
    const input: ScheduleInput = {
      candidates: views.map(({ endpoint, trust, matchedTokens, creditedTokens, load }, index) => ({
        address: endpointKey(endpoint),
        trust,
        cachedTokens: creditedTokens,
        evictedAgeMs: deps.evictionAges.ageMs(
          endpoint.slot,
          Math.ceil((promptTokens - matchedTokens) / matches[index]!.blockSizeTokens),
        ),
        load,
      })),
      promptTokens,
      tieKey: tieKey ?? prompt?.tieKey ?? 0,
      sharers: Math.max(sharers, forks.count(fork)),
    };
    const result = schedule(input);
    const { costsMs } = result;
    const home = candidates.findIndex(({ id }) => id === session?.home);
    const { order: ranked, reason } = rank(strategy, {
      schedule: input,
      scheduled: result,
      signals: () => candidates.map(deps.signals),
      session: session === null ? null : { key: session.key, home: home < 0 ? null : home },
      random: deps.random,
    });
    const { order, nReachable } = reachableFirst(ranked, (index) => views[index]!.reachable);
    const holdsAllKnown = views.map(({ matchedTokens }, i) => matchedTokens >= matches[i]!.knownTokens);
    views.forEach((view, index) => (view.costMs = costsMs[index]!));
    return {
      kind: 'evaluation',
      request,
      model,
      adapter,
      rung,
      tokenizeFailure,
      promptTokens,
      blockSizeTokens: matches[order[0]!]?.blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS,
      candidates: views,
      order,
      named: addressesOf(candidates, order, nReachable, 1 + options.fallbackEndpoints),
      strategy: strategy.text,
      reason,
      doubtMs: rung === 'exact' ? 0 : rung === 'memo' ? doubtMs(input, order, holdsAllKnown) : Infinity,
      blocks,
      fork,
      prompt,
      exact,
    };
  }

  /** Last, as it is load that decides. */
  function unlessShed(pick: PickRequest, evaluation: Evaluation | PickError): Evaluation | PickError {
    if (evaluation.kind === 'error') return evaluation;
    const { candidates, order } = evaluation;
    // Nobody waits at an endpoint that refuses connections: it counts where all do, as for the choice.
    const isReachable = candidates[order[0]!]!.reachable;
    let leastWaitMs = Infinity;
    for (const { load, reachable } of candidates) {
      if (reachable === isReachable) leastWaitMs = Math.min(leastWaitMs, load.waitMs);
    }
    return shed(options.shedding, pick, leastWaitMs, evaluation.model) ?? evaluation;
  }

  return {
    evaluate: async (pick, signal) => unlessShed(pick, await evaluate(pick, signal)),
    async pick(pick, signal): Promise<Decision> {
      const startMs = clock.nowMs();
      const evaluation = unlessShed(pick, await evaluate(pick, signal));
      const durationMs = clock.nowMs() - startMs;
      const traceId = traceIdOf(pick.header('traceparent'));
      // Nobody waits for the answer: nothing was sent anywhere, so nothing is booked or counted as routed.
      if (signal.aborted) return CLIENT_GONE;
      if (evaluation.kind === 'error') {
        record({ kind: 'refused', error: evaluation, model: evaluation.model ?? null, traceId, durationMs });
        return evaluation;
      }
      const view = evaluation.candidates[evaluation.order[0]!]!;
      const held = holder.hold(evaluation, view, startMs);
      sessions.went(pick, view.endpoint.id);
      forks.add(evaluation.fork);
      noteUse(evaluation, view);
      void evaluation.exact?.then((result) => holder.reconcile(evaluation, view, held, result));
      record({
        kind: 'routed',
        evaluation,
        endpoint: view.endpoint,
        predictedCachedTokens: evaluation.rung === 'exact' ? view.matchedTokens : 0,
        traceId,
        durationMs,
      });
      return {
        kind: 'routed',
        endpoints: evaluation.named,
        dataParallelRank: view.endpoint.rank,
        reservation: held.reservation,
        model: evaluation.model,
      };
    },
  };
}

/** With how much knowledge a request is decided. */
function rungOf(
  strategy: Strategy,
  tokenChains: readonly TokenChain[],
  blocks: readonly PromptMatches[],
  views: readonly Pick<CandidateView, 'matchedTokens'>[],
): DecisionRung {
  if (!usesPrompt(strategy)) return strategy.parts[0]!.name === 'random' ? 'random' : 'load';
  if (tokenChains.length > 0) return 'exact';
  if (blocks.some(({ hashes }) => hashes.some((chain) => chain.length > 0))) return 'memo';
  return views.some(({ matchedTokens }) => matchedTokens > 0) ? 'text' : 'load';
}

/** Tokens of the whole prompt by the longest claim: the memo may know its blocks of one size and not of another. */
function claimedTokens(blocks: readonly PromptMatches[]): number | null {
  let most: number | null = null;
  for (const { promptTokens } of blocks) if (promptTokens !== null && promptTokens > (most ?? 0)) most = promptTokens;
  return most;
}

function blockSizeOf({ blockSizeTokens }: EndpointKnowledge): number {
  return blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS;
}

/**
 * Whether its bytes say how long its prompt is, read or not: a chat that was cut is a load all the same. Those of other
 * requests may be sound, and of a prompt in embeddings a token is thousands.
 */
function tellsSize({ api, prompt, fields }: InferenceRequest): boolean {
  return prompt.kind !== 'none' || (api !== 'other' && !fields.has('prompt_embeds'));
}

/** With the name of its model where it names an alias or an adapter. */
function asKnown(request: InferenceRequest, model: string): TokenizeRequest {
  return model === '' || model === request.model ? request : { ...request, canonicalModel: model };
}

/** By what a request is weighed. */
type How = { readonly strategy: Strategy; readonly session: Session | null };

/** A view whose cost comes last: it depends on all of them. */
type WeighedView = Omit<CandidateView, 'costMs'> & { costMs: number };

type TokenizerAnswer = {
  readonly chains: readonly TokenChain[];
  readonly failure: TokenizeFailure | null;
  readonly exact: Promise<TokenizeResult> | null;
};

const NO_CREDIT: CreditWeights = { fresh: 0, delivered: 0 };
const NOTHING_ASKED: TokenizerAnswer = { chains: [], failure: null, exact: null };
const NOBODY_TO_ASK: TokenizerAnswer = { chains: [], failure: 'disabled', exact: null };

function tokensGiven({ tokenIds, features }: InferenceRequest['prompt'] & { kind: 'tokens' }): TokenizerAnswer {
  return { chains: tokenIds.map((ids) => ({ tokenIds: ids, features })), failure: null, exact: null };
}

/**
 * Endpoints that refuse connections go behind the others and are no fallbacks. Where all of them seem to, the sight is
 * wrong rather than the whole fleet dead: then nothing changes.
 */
function reachableFirst(
  order: readonly number[],
  isReachable: (index: number) => boolean,
): { readonly order: readonly number[]; readonly nReachable: number } {
  const reachable = order.filter(isReachable);
  if (reachable.length === 0 || reachable.length === order.length) return { order, nReachable: order.length };
  return {
    order: [...reachable, ...order.filter((index) => !isReachable(index))],
    nReachable: reachable.length,
  };
}

/**
 * Each once, the choice first. One header names the rank for all of them, so that the fallbacks of a rank are the endpoints
 * that have it as well.
 */
function addressesOf(
  candidates: readonly Endpoint[],
  order: readonly number[],
  nReachable: number,
  most: number,
): readonly string[] {
  const { rank } = candidates[order[0]!]!;
  const named: string[] = [];
  for (let i = 0; i < nReachable && named.length < most; i++) {
    const endpoint = candidates[order[i]!]!;
    if ((rank === null || endpoint.rank === rank) && !named.includes(endpoint.address)) named.push(endpoint.address);
  }
  return named;
}

/**
 * What unknown tokens could still save. They can only lengthen the match of an endpoint that holds all that is known, so
 * the best case is that every one of these but the choice itself holds the whole prompt.
 */
function doubtMs(input: ScheduleInput, order: readonly number[], holdsAllKnown: readonly boolean[]): number {
  const chosen = order[0]!;
  const isRival = (index: number): boolean => index !== chosen && holdsAllKnown[index]!;
  if (!holdsAllKnown.some((_, index) => isRival(index))) return 0;
  const candidates = input.candidates.map((candidate, index) =>
    isRival(index) ? { ...candidate, cachedTokens: Math.max(0, input.promptTokens - 1) } : candidate,
  );
  const { costsMs } = schedule({ ...input, candidates });
  return Math.max(0, costsMs[chosen]! - Math.min(...costsMs));
}

/** URLs of candidates, each once, kept as long as their list is: nearly always until the fleet changes. */
function createUrls(): (candidates: readonly Endpoint[]) => readonly string[] {
  const known = new WeakMap<readonly Endpoint[], readonly string[]>();
  return (candidates) => {
    let urls = known.get(candidates);
    if (!urls) known.set(candidates, (urls = [...new Set(candidates.map(({ address }) => `http://${address}`))]));
    return urls;
  };
}
