/**
 * Tokens of a prompt from vLLM's HTTP endpoints: exact. Chooses a server, asks a second one where the first is unusually
 * late or dead, and refuses instead of queueing for long.
 *
 * Deliberately not here: what to do without tokens. Every trouble is a `none` with its reason.
 */
import type { Clock } from '../clock.ts';
import { WarmpathError } from '../errors.ts';
import { createHttpClient } from '../http/http-client.ts';
import type { Log } from '../log.ts';
import { createLruMap } from '../lru-map.ts';
import type { Api, InferenceRequest } from '../openai/request.ts';
import type { Urgency } from './call-slots.ts';
import { createServerAccess, type ServerAccessOptions } from './server-access.ts';
import {
  createSharingTokenizer,
  type OnTokenizerCall,
  type StartableTokenizer,
  type TokenizerBackend,
} from './sharing-tokenizer.ts';
import { createTokenizerTarget, type HttpApi, type Refusal, type TokenizerTarget } from './tokenizer-target.ts';
import type { TokenizeResult } from './tokenizer.ts';

export type VllmTokenizerDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly onCall: OnTokenizerCall;
  /** 0 ≤ n < 1; `Math.random` unless a test wants to know. */
  readonly random?: () => number;
};

export type VllmTokenizerOptions = ServerAccessOptions & {
  /** Dedicated tokenizers; empty: the endpoints of the request's model are asked. */
  readonly urls: readonly string[];
  readonly api: 'auto' | HttpApi | 'none';
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

type KnownTarget = { readonly target: TokenizerTarget | null; usedMs: number };

/** What has tokens of its own at a server; token ids need none. */
const TOKENIZED: ReadonlySet<Api> = new Set(['chat', 'completions', 'responses', 'messages']);
/** Servers remembered, some 100 KB each with their idle connections; the one unused for longest goes first. */
const MAX_TARGETS = 4096;
/** By then an endpoint has left the fleet, and what was believed missing there would be asked for again. */
const UNUSED_MS = 600_000;
const LOOK_MS = 60_000;
/** Second calls per call, on average and at once: a saturated fleet must not be asked everything twice. */
const HEDGES_PER_CALL = 0.1;
const MAX_HEDGES_AT_ONCE = 10;
/** What timers and a busy event loop are late by themselves. */
const MIN_LATE_MS = 5;

export function createVllmTokenizer(deps: VllmTokenizerDeps, options: VllmTokenizerOptions): StartableTokenizer {
  const { clock, log, onCall } = deps;
  const random = deps.random ?? Math.random;
  const targets = createLruMap<string, KnownTarget>();
  const access = createServerAccess(deps, options);
  const http = createHttpClient(clock, () => access.ca);
  let hedgesLeft = MAX_HEDGES_AT_ONCE;
  let closed = false;
  /** When the unused ones were looked for. */
  let lookedAtMs = -Infinity;
  const { api } = options;
  const targetOptions = api === 'none' ? null : { ...options, api, queueMs: options.budgetMs };
  for (const url of options.urls) {
    if (!URL.canParse(url))
      throw new WarmpathError('config_invalid', `tokenizer URL must be http(s)://host:port, got "${url}"`);
  }

  /** Null for what is no URL. */
  function targetOf(url: string): TokenizerTarget | null {
    let known = targets.get(url);
    if (known === undefined) {
      const isUrl = targetOptions !== null && URL.canParse(url);
      const target = isUrl
        ? createTokenizerTarget({ log, clock, random, onCall, access, http }, targetOptions, url)
        : null;
      if (target === null) log.warn('tokenizer URL not understood', { url });
      known = { target, usedMs: 0 };
    }
    known.usedMs = clock.nowMs();
    targets.set(url, known);
    return known.target;
  }

  function forgetUnused(): void {
    const nowMs = clock.nowMs();
    if (nowMs < lookedAtMs + LOOK_MS && targets.size <= MAX_TARGETS) return;
    lookedAtMs = nowMs;
    const unusedSinceMs = nowMs - UNUSED_MS;
    for (let entry = targets.oldest(); entry !== null;) {
      const { key: url, newer } = entry;
      const { target, usedMs } = entry.value;
      if (usedMs > unusedSinceMs && targets.size <= MAX_TARGETS) return;
      if (target === null || target.outstanding === 0) targets.delete(url);
      entry = newer;
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
    const others = urls.filter((url) => targets.get(url)?.target !== not);
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
    hedgesLeft = Math.min(MAX_HEDGES_AT_ONCE, hedgesLeft + HEDGES_PER_CALL);
    const p95Ms = options.hedging && urgency === 'awaited' ? first.p95Ms : null;
    const result = await (p95Ms === null
      ? first.call(request, urgency, null)
      : callHedged(first, request, urls, Math.max(p95Ms, MIN_LATE_MS)));
    if (result.kind === 'tokens' || result.reason !== 'error') return result;
    return chooseAnother(first, request, urls, urgency)?.call(request, urgency, null) ?? result;
  }

  /** Whichever of two servers answers first, the second asked only where the first is late. */
  async function callHedged(
    first: TokenizerTarget,
    request: InferenceRequest,
    urls: readonly string[],
    lateAfterMs: number,
  ): Promise<TokenizeResult> {
    const decided = new AbortController();
    const firstResult = first.call(request, 'awaited', decided.signal);
    if ((await within(clock, firstResult, lateAfterMs)) || hedgesLeft < 1) return firstResult;
    const second = chooseAnother(first, request, urls, 'awaited');
    if (second === null) return firstResult;
    hedgesLeft -= 1;
    onCall(second.api, 'hedged', lateAfterMs);
    const result = await firstTokens([firstResult, second.call(request, 'awaited', decided.signal)]);
    decided.abort();
    return result;
  }

  const backend: TokenizerBackend = {
    api: api === 'tokenize' ? 'tokenize' : 'render',
    start: () => access.start(),
    begin(request, endpointUrls, urgency) {
      if (targetOptions === null) return 'disabled';
      if (!TOKENIZED.has(request.api)) return 'unsupported';
      const urls = options.urls.length > 0 ? options.urls : endpointUrls;
      const target = choose(request, urls, urgency);
      forgetUnused();
      if (typeof target === 'string') return target;
      const { api } = target;
      // Nobody else to ask, so nothing to wait for but the call itself.
      if (urls.length === 1) return { api, result: target.call(request, urgency, null) };
      return { api, result: callOrAnother(target, request, urls, urgency) };
    },
    close() {
      closed = true;
      http.close();
      return Promise.resolve();
    },
  };
  return createSharingTokenizer(deps, options, backend);
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
