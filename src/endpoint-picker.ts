/**
 * Flow (a) in one function: body → what is asked → tokens → block hashes → match → choice → reservation.
 *
 * At most one wait lies in it, the tokenizer, and that has a budget. A late tokenizer, an unreadable body or an empty
 * index take the same path with less knowledge. Only "no endpoint", "unknown model" and "not a request" are errors.
 * No metrics and no log here: every decision is handed to `record`.
 */
import type { Clock } from './clock.ts';
import type { Endpoint, EndpointSlot, Trust } from './endpoints/endpoint.ts';
import type { EndpointStore } from './endpoints/endpoint-store.ts';
import type { Decision, EndpointPicker, PickError, PickRequest, Reservation } from './extproc/endpoint-picker.ts';
import type { InFlight, Load } from './load/in-flight.ts';
import { parseRequest, type InferenceRequest } from './openai/request.ts';
import type { Usage } from './openai/usage.ts';
import { requestExtraKeys, type BlockHasher, type BlockHashes } from './prefix/block-hash.ts';
import type { PrefixIndexReader } from './prefix/prefix-index.ts';
import type { Medium, PrefixMatch } from './prefix/prefix-match.ts';
import type { RoutedMatch, RoutedPrefixes } from './prefix/routed-prefixes.ts';
import { schedule, type ScheduleResult } from './scheduling/scheduler.ts';
import type { TokenChain, TokenizeFailure, Tokenizer } from './tokenizer/tokenizer.ts';

/** With how much knowledge a request was decided. */
export type Rung = 'exact' | 'load';

/** What the event streams say about an endpoint, ranks merged. */
export type EndpointKnowledge = { readonly trust: Trust; readonly blockSizeTokens: number | null };

export type CandidateView = {
  readonly endpoint: Endpoint;
  readonly trust: Trust;
  /** Blocks announced by events, by medium. */
  readonly matchedBlocks: Readonly<Record<Medium, number>>;
  /** Tokens expected to be resident when the request starts: announced, or routed there before. */
  readonly matchedTokens: number;
  readonly uncachedTokens: number;
  readonly load: Load;
  readonly costMs: number;
};

export type Evaluation = {
  readonly kind: 'evaluation';
  readonly request: InferenceRequest | null;
  /** Canonical model; '' where the request names none. */
  readonly model: string;
  readonly adapter: string | null;
  readonly rung: Rung;
  readonly tokenizeFailure: TokenizeFailure | null;
  readonly promptTokens: number;
  readonly blockSizeTokens: number;
  readonly candidates: readonly CandidateView[];
  readonly order: readonly number[];
  readonly reason: ScheduleResult['reason'];
  /** The longest chain's hashes per block size; what a reservation books. */
  readonly chains: ReadonlyMap<number, readonly BlockHashes[]>;
};

/** One finished decision, for metrics and the decision log. */
export type DecisionRecord =
  | {
      readonly kind: 'routed';
      readonly evaluation: Evaluation;
      readonly endpoint: Endpoint;
      readonly predictedCachedTokens: number;
      readonly durationMs: number;
    }
  | { readonly kind: 'refused'; readonly error: PickError; readonly model: string | null; readonly durationMs: number };

/** The end of a routed request. */
export type EndRecord = {
  readonly endpoint: Endpoint;
  readonly model: string;
  readonly outcome: 'completed' | 'cancelled' | 'failed';
  readonly predictedCachedTokens: number;
  readonly usage: Usage | null;
};

export type PickerDeps = {
  readonly clock: Clock;
  readonly endpoints: EndpointStore;
  readonly knowledge: (endpoint: Endpoint) => EndpointKnowledge;
  readonly index: PrefixIndexReader;
  readonly hasher: BlockHasher;
  readonly routed: RoutedPrefixes;
  readonly inFlight: InFlight;
  readonly tokenizer: Tokenizer;
  readonly record: (record: DecisionRecord) => void;
  readonly recordEnd: (record: EndRecord) => void;
};

export type PickerOptions = {
  readonly budgetMs: number;
  readonly fallbackEndpoints: number;
};

/** Block size assumed for endpoints that have not announced a block yet: vLLM's default. */
export const DEFAULT_BLOCK_SIZE_TOKENS = 16;
/** Bytes per token where no tokenizer answered: what English text and code come to with today's vocabularies. */
const BYTES_PER_TOKEN = 4;

export type Picker = EndpointPicker & {
  /** The decision without reservation or record, for `explain`. */
  evaluate(request: PickRequest, signal: AbortSignal): Promise<Evaluation | PickError>;
};

export function createEndpointPicker(deps: PickerDeps, options: PickerOptions): Picker {
  const { clock, endpoints, inFlight, routed, record } = deps;

  async function evaluate(pick: PickRequest, signal: AbortSignal): Promise<Evaluation | PickError> {
    const parsed = parseRequest(pick.method, pick.path, pick.header('content-type'), pick.body, {
      truncated: pick.bodyTruncated ? 'yes' : 'no',
    });
    if (parsed.kind === 'bad_request') return badRequest(parsed.message, parsed.param);
    const { request } = parsed;
    const selected = selectCandidates(request, pick);
    if (selected.kind === 'error') return selected;
    if (request.prompt.kind === 'none') return choose(request, selected, [], null);
    const { chains, failure } = await tokenize(request, selected.endpoints, signal);
    // The fleet may have changed during the wait.
    const current = selectCandidates(request, pick);
    if (current.kind === 'error') return current;
    return choose(request, current, chains, failure);
  }

  type Selected = {
    readonly kind: 'selected';
    readonly endpoints: readonly Endpoint[];
    readonly model: string;
    readonly adapter: string | null;
  };

  function selectCandidates(request: InferenceRequest, pick: PickRequest): Selected | PickError {
    const known = request.model === '' ? null : endpoints.candidates(request.model);
    const anyModel = request.model === '' || (known === null && request.api === 'other');
    if (!anyModel && known === null && endpoints.all().length > 0) return unknownModel(request.model);
    const ready = anyModel ? endpoints.ready() : (known?.endpoints.filter((endpoint) => endpoint.ready) ?? []);
    if (ready.length === 0) return noEndpoint('no_ready_endpoint', 'No endpoint is ready to serve this request.');
    const { subset } = pick;
    const allowed = subset.kind === 'all' ? ready : ready.filter(({ address }) => subset.addresses.includes(address));
    if (allowed.length === 0) {
      return noEndpoint('subset_without_endpoint', 'None of the endpoints the data plane allows is ready.');
    }
    return {
      kind: 'selected',
      endpoints: allowed,
      model: known?.model ?? '',
      adapter: known?.adapter ?? null,
    };
  }

  async function tokenize(
    request: InferenceRequest,
    candidates: readonly Endpoint[],
    signal: AbortSignal,
  ): Promise<{ chains: readonly TokenChain[]; failure: TokenizeFailure | null }> {
    if (request.prompt.kind === 'tokens') {
      return { chains: request.prompt.tokenIds.map((tokenIds) => ({ tokenIds, features: [] })), failure: null };
    }
    const budget = new AbortController();
    const timer = clock.after(options.budgetMs, () => budget.abort());
    const onGone = (): void => budget.abort();
    signal.addEventListener('abort', onGone, { once: true });
    try {
      const urls = candidates.map(({ address }) => `http://${address}`);
      const result = await deps.tokenizer.tokenize(request, urls, budget.signal);
      return result.kind === 'tokens'
        ? { chains: result.chains, failure: null }
        : { chains: [], failure: result.reason };
    } finally {
      timer.cancel();
      signal.removeEventListener('abort', onGone);
    }
  }

  /** From here on everything is one synchronous turn. */
  function choose(
    request: InferenceRequest,
    { endpoints: candidates, model, adapter }: Selected,
    tokenChains: readonly TokenChain[],
    tokenizeFailure: TokenizeFailure | null,
  ): Evaluation {
    const rung: Rung = tokenChains.length > 0 ? 'exact' : 'load';
    const promptTokens =
      rung === 'exact'
        ? tokenChains.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0)
        : Math.ceil(request.body.length / BYTES_PER_TOKEN);
    const knowledge = candidates.map((endpoint) => deps.knowledge(endpoint));
    const sizes = new Map<number, ChainMatches>();
    const matches = candidates.map((_, index) => {
      const blockSize = knowledge[index]!.blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS;
      let found = sizes.get(blockSize);
      if (!found) sizes.set(blockSize, (found = matchChains(request, model, adapter, tokenChains, blockSize)));
      return found;
    });
    const views = candidates.map((endpoint, index): Omit<CandidateView, 'costMs'> => {
      const { trust } = knowledge[index]!;
      const { matchedBlocks, matchedTokens } = credit(matches[index]!, endpoint.slot, trust);
      const load = inFlight.load(endpoint.slot);
      return { endpoint, trust, matchedBlocks, matchedTokens, uncachedTokens: promptTokens - matchedTokens, load };
    });
    const warmest = views.reduce((best, view, i) => (view.matchedTokens > views[best]!.matchedTokens ? i : best), 0);
    const { tieKey, sharers } = prefixTraits(matches[warmest]!, views[warmest]!.matchedTokens, candidates);
    const { order, costsMs, reason } = schedule({
      candidates: views.map(({ endpoint, trust, matchedTokens, load }) => ({
        address: endpoint.address,
        trust,
        cachedTokens: matchedTokens,
        load,
      })),
      promptTokens,
      tieKey,
      sharers,
    });
    const chains = new Map<number, readonly BlockHashes[]>();
    for (const [blockSize, { hashes }] of sizes) chains.set(blockSize, hashes);
    return {
      kind: 'evaluation',
      request,
      model,
      adapter,
      rung,
      tokenizeFailure,
      promptTokens,
      blockSizeTokens: matches[order[0]!]?.blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS,
      candidates: views.map((view, index) => ({ ...view, costMs: costsMs[index]! })),
      order,
      reason,
      chains,
    };
  }

  type ChainMatches = {
    readonly blockSizeTokens: number;
    readonly hashes: readonly BlockHashes[];
    /** Largest number of blocks an engine serves from its cache, per chain: the last token is always computed. */
    readonly usableBlocks: readonly number[];
    readonly announced: readonly PrefixMatch[];
    readonly routed: readonly RoutedMatch[];
  };

  function matchChains(
    request: InferenceRequest,
    model: string,
    adapter: string | null,
    tokenChains: readonly TokenChain[],
    blockSizeTokens: number,
  ): ChainMatches {
    const root = deps.hasher.root(model, adapter, blockSizeTokens);
    const hashes = tokenChains.map(({ tokenIds, features }) => {
      const nBlocks = Math.floor(tokenIds.length / blockSizeTokens);
      const extraKeys = requestExtraKeys(request.cacheSalt, features, blockSizeTokens, nBlocks);
      return deps.hasher.blocks(tokenIds, root, blockSizeTokens, extraKeys);
    });
    return {
      blockSizeTokens,
      hashes,
      usableBlocks: tokenChains.map(({ tokenIds }) => Math.floor(Math.max(0, tokenIds.length - 1) / blockSizeTokens)),
      announced: hashes.map((chain) => deps.index.longestMatch(chain)),
      routed: hashes.map((chain) => routed.longestMatch(chain)),
    };
  }

  /** What the scheduler wants to know of the prefix, taken from the longest of the chains. */
  function prefixTraits(
    { hashes, routed: onTheWay, blockSizeTokens }: ChainMatches,
    mostCachedTokens: number,
    among: readonly Endpoint[],
  ): { tieKey: number; sharers: number } {
    const longest = hashes.reduce((best, chain, i) => (chain.length > hashes[best]!.length ? i : best), 0);
    const chain = hashes[longest];
    if (!chain || chain.length === 0) return { tieKey: 0, sharers: 0 };
    const nCached = Math.min(Math.floor(mostCachedTokens / blockSizeTokens), chain.length / 2);
    const nextBlock = Math.min(nCached, chain.length / 2 - 1);
    return {
      tieKey: chain[2 * nextBlock + 1]!,
      sharers: among.reduce((sum, { slot }) => sum + onTheWay[longest]!.bookings(slot, nCached), 0),
    };
  }

  /** Several prompts in one request are several chains: the longest match decides. */
  function credit(
    matches: ChainMatches,
    slot: EndpointSlot,
    trust: Trust,
  ): Pick<CandidateView, 'matchedBlocks' | 'matchedTokens'> {
    let best = 0;
    let matchedBlocks: Record<Medium, number> = { gpu: 0, host: 0, disk: 0 };
    for (let i = 0; i < matches.hashes.length; i++) {
      const announced = trust === 'fallback' ? null : matches.announced[i]!;
      const nAnnounced = announced?.blocks(slot) ?? 0;
      const nBlocks = Math.min(Math.max(nAnnounced, matches.routed[i]!.blocks(slot)), matches.usableBlocks[i]!);
      if (nBlocks <= best) continue;
      best = nBlocks;
      matchedBlocks = {
        gpu: announced?.blocksIn(slot, 'gpu') ?? 0,
        host: announced?.blocksIn(slot, 'host') ?? 0,
        disk: announced?.blocksIn(slot, 'disk') ?? 0,
      };
    }
    return { matchedBlocks, matchedTokens: best * matches.blockSizeTokens };
  }

  function reserve(evaluation: Evaluation, view: CandidateView): Reservation {
    const { endpoint } = view;
    const { blockSizeTokens } = deps.knowledge(endpoint);
    const answer = evaluation.request?.stream === true ? 'streamed' : 'whole';
    const load = inFlight.reserve(endpoint.slot, view.uncachedTokens, answer);
    const chains = evaluation.chains.get(blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS) ?? [];
    const booked = chains.map((chain) => routed.book(endpoint.slot, chain));
    let usage: Usage | null = null;
    return {
      firstByte: () => load.firstByte(),
      observe: (seen) => {
        usage = seen;
      },
      release(outcome) {
        if (!load.release(computedTokens(usage))) return;
        const { trust } = deps.knowledge(endpoint);
        // Without events the engine's cache is known only from what was sent there and served.
        const keep = outcome !== 'completed' ? 'drop' : trust === 'fallback' ? 'keep' : 'grace';
        for (const booking of booked) booking.end(keep);
        deps.recordEnd({
          endpoint,
          model: evaluation.model,
          outcome,
          predictedCachedTokens: view.matchedTokens,
          usage,
        });
      },
    };
  }

  return {
    evaluate,
    async pick(pick, signal): Promise<Decision> {
      const startMs = clock.nowMs();
      const evaluation = await evaluate(pick, signal);
      const durationMs = clock.nowMs() - startMs;
      if (evaluation.kind === 'error') {
        record({ kind: 'refused', error: evaluation, model: null, durationMs });
        return evaluation;
      }
      const view = evaluation.candidates[evaluation.order[0]!]!;
      const reservation = reserve(evaluation, view);
      record({
        kind: 'routed',
        evaluation,
        endpoint: view.endpoint,
        predictedCachedTokens: evaluation.rung === 'exact' ? view.matchedTokens : 0,
        durationMs,
      });
      const named = evaluation.order.slice(0, 1 + options.fallbackEndpoints);
      return {
        kind: 'routed',
        endpoints: named.map((index) => evaluation.candidates[index]!.endpoint.address),
        reservation,
      };
    },
  };
}

/** What the engine really computed of the prompt, where it says so. */
function computedTokens(usage: Usage | null): number | undefined {
  return usage === null || usage.cachedTokens === null ? undefined : usage.promptTokens - usage.cachedTokens;
}

function badRequest(message: string, param: string | null): PickError {
  return {
    kind: 'error',
    status: 400,
    type: 'invalid_request_error',
    code: null,
    param,
    message,
    reason: 'bad_request',
    retryAfterSeconds: null,
  };
}

function unknownModel(model: string): PickError {
  return {
    kind: 'error',
    status: 404,
    type: 'invalid_request_error',
    code: 'model_not_found',
    param: 'model',
    message: `The model ${JSON.stringify(model.slice(0, 200))} does not exist.`,
    reason: 'unknown_model',
    retryAfterSeconds: null,
  };
}

function noEndpoint(reason: string, message: string): PickError {
  return {
    kind: 'error',
    status: 503,
    type: 'service_unavailable',
    code: 'no_endpoint',
    param: null,
    message,
    reason,
    retryAfterSeconds: 1,
  };
}
