/**
 * What every tokenizer does before and after a call: token prompts need none, equal requests share one, answers are
 * remembered, and a request goes when its patience is over while the call goes on.
 *
 * Deliberately not here: where tokens come from.
 */
import type { Clock } from '../clock.ts';
import type { Signal } from '../light-signal.ts';
import type { Log } from '../log.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { createAnswerCache, requestKey } from './answer-cache.ts';
import type { Urgency } from './call-slots.ts';
import type { TokenizeFailure, Tokenizer, TokenizeResult } from './tokenizer.ts';

export type CallApi = 'render' | 'tokenize' | 'local';

/**
 * Every call ends as `ok`, `timeout`, `error` or `not_served` (that endpoint is missing there). Besides, a request counts
 * as `shared` (answered by another's call), `cached` (by an earlier one), `late` (gone before the answer), `rejected`
 * (every server busy) or `open` (all paused), and a second call for the same request as `hedged`.
 */
export type TokenizerCallResult =
  'ok' | 'shared' | 'cached' | 'hedged' | 'late' | 'timeout' | 'error' | 'not_served' | 'rejected' | 'open';

export type OnTokenizerCall = (api: CallApi, result: TokenizerCallResult, durationMs: number) => void;

/** A tokenizer with something to prepare. */
export type StartableTokenizer = Tokenizer & {
  /** Reads files and gets ready; rejects with what is wrong about them. */
  start(): Promise<void>;
};

/** What a request waits for: a call of its own or another's. `result` never rejects. */
export type TokenizerCall = { readonly result: Promise<TokenizeResult>; readonly api: CallApi };

export type TokenizerBackend = {
  /** Of what counts before a call is chosen. */
  readonly api: CallApi;
  start(): Promise<void>;
  begin(request: InferenceRequest, endpointUrls: readonly string[], urgency: Urgency): TokenizerCall | TokenizeFailure;
  close(): Promise<void>;
};

export function createSharingTokenizer(
  { log, clock, onCall }: { readonly log: Log; readonly clock: Clock; readonly onCall: OnTokenizerCall },
  { cacheMaxBytes }: { readonly cacheMaxBytes: number },
  backend: TokenizerBackend,
): StartableTokenizer {
  /** Under way, by the requests they answer. */
  const calls = new Map<string, TokenizerCall>();
  const answers = createAnswerCache(clock, cacheMaxBytes);
  let closed = false;

  function begin(
    request: InferenceRequest,
    key: string,
    urls: readonly string[],
    urgency: Urgency,
  ): TokenizerCall | TokenizeFailure {
    let begun: TokenizerCall | TokenizeFailure;
    try {
      begun = backend.begin(request, urls, urgency);
    } catch (error) {
      return failed(error);
    }
    if (typeof begun === 'string') return begun;
    const result = begun.result.then(
      (ended) => {
        calls.delete(key);
        if (ended.kind === 'tokens') answers.put(key, ended);
        return ended;
      },
      (error: unknown) => {
        calls.delete(key);
        return none(failed(error));
      },
    );
    const call = { api: begun.api, result };
    calls.set(key, call);
    return call;
  }

  /** A mistake of ours costs the request its tokens, and nobody else anything. Messages may quote the prompt. */
  function failed(error: unknown): TokenizeFailure {
    log.error('tokenizer call threw', { error: error instanceof Error ? error.name : typeof error });
    onCall(backend.api, 'error', 0);
    return 'error';
  }

  return {
    start: () => backend.start(),
    async tokenize(request, endpointUrls, signal) {
      const { prompt } = request;
      if (closed) return none('disabled');
      if (prompt.kind === 'none') return none('unsupported');
      if (prompt.kind === 'tokens') {
        return { kind: 'tokens', chains: prompt.tokenIds.map((tokenIds) => ({ tokenIds, features: prompt.features })) };
      }
      if (signal?.aborted === true) return none('late');
      const key = requestKey(request);
      const known = answers.get(key);
      if (known !== null) {
        onCall(backend.api, 'cached', 0);
        return { ...known, remembered: true };
      }
      const startMs = clock.nowMs();
      const joined = calls.get(key);
      const call = joined ?? begin(request, key, endpointUrls, signal === null ? 'background' : 'awaited');
      if (typeof call === 'string') {
        if (isRefusal(call)) onCall(backend.api, call, 0);
        return none(call);
      }
      const result = signal === null ? await call.result : await unlessAborted(call.result, signal);
      if (result === null) onCall(call.api, 'late', clock.nowMs() - startMs);
      else if (joined !== undefined) onCall(call.api, 'shared', clock.nowMs() - startMs);
      else if (result.kind === 'none' && isRefusal(result.reason)) onCall(call.api, result.reason, 0);
      return result ?? { kind: 'none', reason: 'late', later: call.result };
    },
    async close() {
      closed = true;
      await backend.close();
    },
  };
}

function isRefusal(reason: TokenizeFailure): reason is 'rejected' | 'open' {
  return reason === 'rejected' || reason === 'open';
}

/** The result, or null as soon as the signal aborts; the work behind it goes on. */
function unlessAborted<T>(work: Promise<T>, signal: Signal): Promise<T | null> {
  return new Promise((resolve) => {
    const onAbort = (): void => resolve(null);
    signal.addEventListener('abort', onAbort);
    void work.then((result) => {
      signal.removeEventListener('abort', onAbort);
      resolve(result);
    });
  });
}

function none(reason: TokenizeFailure): TokenizeResult {
  return { kind: 'none', reason };
}
