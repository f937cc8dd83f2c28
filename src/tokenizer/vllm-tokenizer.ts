/**
 * Tokens of a prompt from vLLM's HTTP endpoints: exact, and never waited for longer than the request allows. Chooses a
 * server, shares one call among identical requests, and refuses instead of queueing.
 *
 * Deliberately not here: what to do without tokens. Every trouble is a `none` with its reason.
 */
import type { Clock } from '../clock.ts';
import { WarmpathError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { asChat } from './chat-form.ts';
import { createSharedCalls } from './shared-calls.ts';
import { createTokenizerTarget, type CallApi, type TargetOptions, type TokenizerTarget } from './tokenizer-target.ts';
import type { TokenizeFailure, Tokenizer, TokenizeResult } from './tokenizer.ts';

/**
 * Every HTTP call ends as `ok`, `timeout` or `error`. Besides, a request counts as `shared` (answered by another's call),
 * `late` (gone before the answer), `rejected` (every server busy) or `open` (all paused).
 */
export type TokenizerCallResult = 'ok' | 'shared' | 'late' | 'timeout' | 'error' | 'rejected' | 'open';

export type VllmTokenizerDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly onCall: (api: CallApi, result: TokenizerCallResult, durationMs: number) => void;
  /** 0 ≤ n < 1; `Math.random` unless a test wants to know. */
  readonly random?: () => number;
};

export type VllmTokenizerOptions = {
  /** Dedicated tokenizers; empty: the endpoints of the request's model are asked. */
  readonly urls: readonly string[];
  readonly api: 'auto' | CallApi | 'none';
  /** When a call is given up, whether or not somebody still waits for it. */
  readonly timeoutMs: number;
  /** Calls at once per URL. */
  readonly maxInFlight: number;
  /** Answers above it are not read to their end; 8 MiB unless said. */
  readonly responseMaxBytes?: number;
  /** Value of the `authorization` header. */
  readonly authorization?: string;
};

/** What a request waits for: a call of its own or another's. */
type Call = { readonly result: Promise<TokenizeResult>; readonly api: CallApi };

const DEFAULT_RESPONSE_MAX_BYTES = 8 * 1024 * 1024;
/** Servers remembered; the one unused for longest goes first. */
const MAX_TARGETS = 4096;

export function createVllmTokenizer(deps: VllmTokenizerDeps, options: VllmTokenizerOptions): Tokenizer {
  const { clock, log, onCall } = deps;
  const random = deps.random ?? Math.random;
  const targets = new Map<string, TokenizerTarget | null>();
  const shared = createSharedCalls<Call>();
  let closed = false;

  const targetOptions: TargetOptions | null =
    options.api === 'none'
      ? null
      : {
          api: options.api,
          timeoutMs: options.timeoutMs,
          maxInFlight: options.maxInFlight,
          responseMaxBytes: options.responseMaxBytes ?? DEFAULT_RESPONSE_MAX_BYTES,
          authorization: options.authorization ?? null,
        };
  for (const url of options.urls) {
    if (!URL.canParse(url))
      throw new WarmpathError('config_invalid', `tokenizer URL must be http(s)://host:port, got "${url}"`);
  }

  /** Null for what is no URL. */
  function targetOf(url: string, settings: TargetOptions): TokenizerTarget | null {
    let target = targets.get(url);
    if (target === undefined) {
      target = URL.canParse(url) ? createTokenizerTarget({ log, clock, random, onCall }, settings, url) : null;
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
  function choose(urls: readonly string[], settings: TargetOptions): TokenizerTarget | TokenizeFailure {
    const refusals = new Set<TokenizeFailure>();
    const pick = (): TokenizerTarget | null => {
      const from = Math.floor(random() * urls.length);
      for (let i = 0; i < urls.length; i++) {
        const target = targetOf(urls[(from + i) % urls.length]!, settings);
        const refusal = target === null ? 'unsupported' : target.refusal();
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

  /** A server that fails at once, as a dead one does, is the least busy of all: another one gets the request then. */
  async function callOrAnother(
    first: TokenizerTarget,
    request: InferenceRequest,
    urls: readonly string[],
    settings: TargetOptions,
  ): Promise<TokenizeResult> {
    const result = await first.call(request);
    if (result.kind === 'tokens' || result.reason !== 'error' || closed) return result;
    const others = urls.filter((url) => targets.get(url) !== first);
    const second = others.length === 0 ? 'unsupported' : choose(others, settings);
    return typeof second === 'string' ? result : second.call(request);
  }

  function begin(request: InferenceRequest, urls: readonly string[], settings: TargetOptions): Call | TokenizeFailure {
    const chat = asChat(request);
    if (chat === null) return 'unsupported';
    const target = choose(urls, settings);
    forgetUnused();
    if (typeof target === 'string') return target;
    const call = { api: target.api, result: callOrAnother(target, chat, urls, settings) };
    shared.add(request, call);
    return call;
  }

  return {
    async tokenize(request, endpointUrls, signal) {
      if (targetOptions === null || closed) return none('disabled');
      const { prompt } = request;
      if (prompt.kind === 'none') return none('unsupported');
      if (prompt.kind === 'tokens') {
        return { kind: 'tokens', chains: prompt.tokenIds.map((tokenIds) => ({ tokenIds, features: prompt.features })) };
      }
      if (signal.aborted) return none('late');
      const startMs = clock.nowMs();
      const joined = shared.find(request);
      const call = joined ?? begin(request, options.urls.length > 0 ? options.urls : endpointUrls, targetOptions);
      if (typeof call === 'string') {
        if (call === 'rejected' || call === 'open')
          onCall(targetOptions.api === 'tokenize' ? 'tokenize' : 'render', call, 0);
        return none(call);
      }
      const result = await unlessAborted(call.result, signal);
      if (result === null) onCall(call.api, 'late', clock.nowMs() - startMs);
      else if (joined !== null) onCall(call.api, 'shared', clock.nowMs() - startMs);
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

function none(reason: TokenizeFailure): TokenizeResult {
  return { kind: 'none', reason };
}
