/**
 * Tokens of a prompt from vLLM's HTTP endpoints: exact, and never waited for longer than the request allows. Chooses a
 * server, shares one call among identical requests, remembers answers, asks a second server where the first is unusually
 * late, and refuses instead of queueing for long.
 *
 * Deliberately not here: what to do without tokens. Every trouble is a `none` with its reason.
 */
import type { Clock } from '../clock.ts';
import { WarmpathError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { createAnswerCache } from './answer-cache.ts';
import type { Urgency } from './call-slots.ts';
import { asChat } from './chat-form.ts';
import { createServerAccess, type ServerAccessOptions } from './server-access.ts';
import { createSharedCalls } from './shared-calls.ts';
import { createTokenizerTarget, type CallApi, type Refusal, type TokenizerTarget } from './tokenizer-target.ts';
import type { TokenizeFailure, Tokenizer, TokenizeResult } from './tokenizer.ts';

/**
 * Every HTTP call ends as `ok`, `timeout`, `error` or `not_served` (that endpoint is missing there). Besides, a request
 * counts as `shared` (answered by another's call), `cached` (by an earlier one), `late` (gone before the answer),
 * `rejected` (every server busy) or `open` (all paused), and a second call for the same request as `hedged`.
 */
export type TokenizerCallResult =
  'ok' | 'shared' | 'cached' | 'hedged' | 'late' | 'timeout' | 'error' | 'not_served' | 'rejected' | 'open';

export type VllmTokenizerDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly onCall: (api: CallApi, result: TokenizerCallResult, durationMs: number) => void;
  /** 0 ≤ n < 1; `Math.random` unless a test wants to know. */
  readonly random?: () => number;
};

export type VllmTokenizerOptions = ServerAccessOptions & {
  /** Dedicated tokenizers; empty: the endpoints of the request's model are asked. */
  readonly urls: readonly string[];
  readonly api: 'auto' | CallApi | 'none';
  /** The longest a request waits, thus also the longest its call waits for its turn. */
  readonly budgetMs: number;
  /** When a call is given up, whether or not somebody still waits for it. */
  readonly timeoutMs: number;
  /** Calls at once per URL, and calls that wait for their turn. */
  readonly maxInFlight: number;
  readonly maxQueued: number;
  /** Ask a second server where the first is later than in 95 of 100 cases. */
  readonly hedging: boolean;
  /** Answers above it are not read to their end. */
  readonly responseMaxBytes: number;
  /** Memory for answers of the last minutes; 0 = none are kept. */
  readonly cacheMaxBytes: number;
};

export type VllmTokenizer = Tokenizer & {
  /** Reads the files named in the options; rejects with what is wrong about them. */
  start(): Promise<void>;
};

/** What a request waits for: a call of its own or another's. */
type Call = { readonly result: Promise<TokenizeResult>; readonly api: CallApi };

/** Servers remembered; the one unused for longest goes first. */
const MAX_TARGETS = 4096;
/** Second calls per call, on average and at once: a saturated fleet must not be asked everything twice. */
const HEDGES_PER_CALL = 0.1;
const MAX_HEDGES_AT_ONCE = 10;
/** What timers and a busy event loop are late by themselves. */
const MIN_LATE_MS = 5;

export function createVllmTokenizer(deps: VllmTokenizerDeps, options: VllmTokenizerOptions): VllmTokenizer {
  const { clock, log, onCall } = deps;
  const random = deps.random ?? Math.random;
  const targets = new Map<string, TokenizerTarget | null>();
  const shared = createSharedCalls<Call>();
  const answers = createAnswerCache(clock, options.cacheMaxBytes);
  const access = createServerAccess(deps, options);
  const nobodyEnds = new AbortController().signal;
  let hedgesLeft = MAX_HEDGES_AT_ONCE;
  let closed = false;
  const { api } = options;
  const targetOptions = api === 'none' ? null : { ...options, api, queueMs: options.budgetMs };
  for (const url of options.urls) {
    if (!URL.canParse(url))
      throw new WarmpathError('config_invalid', `tokenizer URL must be http(s)://host:port, got "${url}"`);
  }

  /** Null for what is no URL. */
  function targetOf(url: string): TokenizerTarget | null {
    let target = targets.get(url);
    if (target === undefined) {
      const isUrl = targetOptions !== null && URL.canParse(url);
      target = isUrl ? createTokenizerTarget({ log, clock, random, onCall, access }, targetOptions, url) : null;
      if (target === null) log.warn('tokenizer URL not understood', { url });
    }
    // The order of the map is the order of use.
    targets.delete(url);
    targets.set(url, target);
    return target;
  }

  function forgetUnused(): void {
    for (const [url, target] of targets) {
      if (targets.size <= MAX_TARGETS) return;
      if (target !== null && target.outstanding > 0) continue;
      targets.delete(url);
      void target?.close();
    }
  }

  /** Power of two choices: the less busy of two picked at random, each the first that takes calls from a random place on. */
  function choose(request: InferenceRequest, urls: readonly string[], urgency: Urgency): TokenizerTarget | Refusal {
    const refusals = new Set<Refusal>();
    const pick = (): TokenizerTarget | null => {
      const from = Math.floor(random() * urls.length);
      for (let i = 0; i < urls.length; i++) {
        const target = targetOf(urls[(from + i) % urls.length]!);
        const refusal = target === null ? 'unsupported' : target.refusal(request, urgency);
        if (target !== null && refusal === null) return target;
        if (refusal !== null) refusals.add(refusal);
      }
      return null;
    };
    const first = pick();
    if (first === null) return (['rejected', 'open'] as const).find((reason) => refusals.has(reason)) ?? 'unsupported';
    const second = urls.length > 1 ? pick() : null;
    return second !== null && second.outstanding < first.outstanding ? second : first;
  }

  function chooseAnother(
    not: TokenizerTarget,
    request: InferenceRequest,
    urls: readonly string[],
    urgency: Urgency,
  ): TokenizerTarget | null {
    const others = urls.filter((url) => targets.get(url) !== not);
    const other = others.length === 0 || closed ? 'unsupported' : choose(request, others, urgency);
    return typeof other === 'string' ? null : other;
  }

  /** A server that fails at once, as a dead one does, is the least busy of all: another one gets the request then. */
  async function callOrAnother(
    first: TokenizerTarget,
    request: InferenceRequest,
    urls: readonly string[],
    urgency: Urgency,
  ): Promise<TokenizeResult> {
    const result = await callHedged(first, request, urls, urgency);
    if (result.kind === 'tokens' || result.reason !== 'error') return result;
    return chooseAnother(first, request, urls, urgency)?.call(request, urgency, nobodyEnds) ?? result;
  }

  /** Whichever of two servers answers first, the second asked only where the first is late and somebody waits. */
  async function callHedged(
    first: TokenizerTarget,
    request: InferenceRequest,
    urls: readonly string[],
    urgency: Urgency,
  ): Promise<TokenizeResult> {
    hedgesLeft = Math.min(MAX_HEDGES_AT_ONCE, hedgesLeft + HEDGES_PER_CALL);
    const p95Ms = options.hedging && urgency === 'awaited' && urls.length > 1 ? first.p95Ms : null;
    if (p95Ms === null) return first.call(request, urgency, nobodyEnds);
    const lateAfterMs = Math.max(p95Ms, MIN_LATE_MS);
    const decided = new AbortController();
    const firstResult = first.call(request, urgency, decided.signal);
    if ((await within(clock, firstResult, lateAfterMs)) || hedgesLeft < 1) return firstResult;
    const second = chooseAnother(first, request, urls, urgency);
    if (second === null) return firstResult;
    hedgesLeft -= 1;
    onCall(second.api, 'hedged', lateAfterMs);
    const result = await firstTokens([firstResult, second.call(request, urgency, decided.signal)]);
    decided.abort();
    return result;
  }

  function begin(
    request: InferenceRequest,
    key: string,
    urls: readonly string[],
    urgency: Urgency,
  ): Call | TokenizeFailure {
    const chat = asChat(request);
    if (chat === null) return 'unsupported';
    const target = choose(chat, urls, urgency);
    forgetUnused();
    if (typeof target === 'string') return target;
    const result = callOrAnother(target, chat, urls, urgency);
    const call = { api: target.api, result };
    shared.add(request, call);
    void result.then((ended) => {
      if (ended.kind === 'tokens' && key !== '') answers.put(key, ended);
    });
    return call;
  }

  return {
    start: () => access.start(),
    async tokenize(request, endpointUrls, signal) {
      if (targetOptions === null || closed) return none('disabled');
      const { prompt } = request;
      if (prompt.kind === 'none') return none('unsupported');
      if (prompt.kind === 'tokens') {
        return { kind: 'tokens', chains: prompt.tokenIds.map((tokenIds) => ({ tokenIds, features: prompt.features })) };
      }
      if (signal?.aborted === true) return none('late');
      const key = options.cacheMaxBytes === 0 ? '' : answers.keyOf(request);
      const known = key === '' ? null : answers.get(key);
      const apiOfRefusal = targetOptions.api === 'tokenize' ? 'tokenize' : 'render';
      if (known !== null) {
        onCall(apiOfRefusal, 'cached', 0);
        return known;
      }
      const startMs = clock.nowMs();
      const joined = shared.find(request);
      const urls = options.urls.length > 0 ? options.urls : endpointUrls;
      const call = joined ?? begin(request, key, urls, signal === null ? 'background' : 'awaited');
      if (typeof call === 'string') {
        if (call === 'rejected' || call === 'open') onCall(apiOfRefusal, call, 0);
        return none(call);
      }
      const result = signal === null ? await call.result : await unlessAborted(call.result, signal);
      if (result === null) onCall(call.api, 'late', clock.nowMs() - startMs);
      else if (joined !== null) onCall(call.api, 'shared', clock.nowMs() - startMs);
      else if (result.kind === 'none' && (result.reason === 'rejected' || result.reason === 'open')) {
        onCall(call.api, result.reason, 0);
      }
      return result ?? { kind: 'none', reason: 'late', later: call.result };
    },
    async close() {
      closed = true;
      const open = [...targets.values()];
      targets.clear();
      await Promise.all(open.map((target) => target?.close()));
    },
  };
}

/** The result, or null as soon as the signal aborts; the work behind it goes on. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T | null> {
  return new Promise((resolve) => {
    const onAbort = (): void => resolve(null);
    signal.addEventListener('abort', onAbort, { once: true });
    void work.then((result) => {
      signal.removeEventListener('abort', onAbort);
      resolve(result);
    });
  });
}

/** Whether the work ends within the time. */
function within(clock: Clock, work: Promise<unknown>, ms: number): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = clock.after(ms, () => resolve(false));
    void work.then(() => {
      timer.cancel();
      resolve(true);
    });
  });
}

/** The first tokens, or the last failure. */
function firstTokens(results: readonly Promise<TokenizeResult>[]): Promise<TokenizeResult> {
  return new Promise((resolve) => {
    let nOpen = results.length;
    for (const one of results) {
      void one.then((result) => {
        nOpen -= 1;
        if (result.kind === 'tokens' || nOpen === 0) resolve(result);
      });
    }
  });
}

function none(reason: TokenizeFailure): TokenizeResult {
  return { kind: 'none', reason };
}
