/**
 * One server that tokenizes: which of its endpoints answers, how many calls are out, whether it is asked at all. Shared
 * calls, the choice of a server and the patience of requests are `vllm-tokenizer`'s.
 */
import { Pool } from 'undici';
import { backoffMs, type Clock } from '../clock.ts';
import type { Log } from '../log.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { createCircuitBreaker, type BreakerCall } from './circuit-breaker.ts';
import { post, type HttpAnswer } from './http-post.ts';
import {
  isUnknownModel,
  parseChatRenderResponse,
  parseCompletionsRenderResponse,
  parseTokenizeResponse,
  type TokenResponse,
} from './token-response.ts';
import { tokenizeBodies } from './tokenize-body.ts';
import type { TokenChain, TokenizeFailure, TokenizeResult } from './tokenizer.ts';

export type CallApi = 'render' | 'tokenize';

export type TargetDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly random: () => number;
  /** One HTTP call has ended. */
  readonly onCall: (api: CallApi, result: 'ok' | 'timeout' | 'error', durationMs: number) => void;
};

export type TargetOptions = {
  readonly api: 'auto' | CallApi;
  readonly timeoutMs: number;
  readonly maxInFlight: number;
  readonly responseMaxBytes: number;
  readonly authorization: string | null;
};

export type TokenizerTarget = {
  readonly outstanding: number;
  /** The endpoint the next call would begin with. */
  readonly api: CallApi;
  /** Null when the target would take a call now. */
  refusal(): Extract<TokenizeFailure, 'rejected' | 'open' | 'unsupported'> | null;
  /** Never rejects; ends within `timeoutMs`. */
  call(request: InferenceRequest): Promise<TokenizeResult>;
  close(): Promise<void>;
};

/** Opens when at least half of the last twenty calls failed, and no fewer than five. */
const BREAKER = { window: 20, failures: 5, openBaseMs: 1000, openMaxMs: 30_000 } as const;
/** How long a missing endpoint is believed to be missing: servers are upgraded behind a stable name. */
const RENDER_COOL_DOWN_MS = 600_000;
const TOKENIZE_COOL_DOWN_MS = 60_000;
/** Below the 5 s after which uvicorn closes idle connections, so that a call never meets a closing one. */
const KEEP_ALIVE_MS = 4000;
/** Statuses that mean "this path is not served here": vLLM answers 403 where render is disabled, 404 where it is unknown. */
const NOT_SERVED = new Set([403, 404, 405, 501]);

type Attempt = TokenizeResult | { readonly kind: 'not_served'; readonly status: number };

/** @param url `http(s)://host:port`, a path in it is put before vLLM's own; throws TypeError on anything else */
export function createTokenizerTarget(deps: TargetDeps, options: TargetOptions, url: string): TokenizerTarget {
  const { clock, log, random } = deps;
  const { origin, pathname } = new URL(url);
  const prefix = pathname.replace(/\/+$/, '');
  const pool = new Pool(origin, {
    connections: options.maxInFlight,
    pipelining: 1,
    keepAliveTimeout: KEEP_ALIVE_MS,
    connect: { timeout: options.timeoutMs },
  });
  const headers: Record<string, string> = { 'content-type': 'application/json', accept: 'application/json' };
  if (options.authorization !== null) headers['authorization'] = options.authorization;
  const breaker = createCircuitBreaker({ clock, random, onState: logState }, BREAKER);
  let outstanding = 0;
  /** Until when an endpoint is not asked because it was not there. */
  const absentUntilMs: Record<CallApi, number> = { render: -Infinity, tokenize: -Infinity };

  function logState(state: string, pauseMs: number): void {
    if (state === 'open') log.warn('tokenizer paused after failures', { url: origin, pauseMs: Math.round(pauseMs) });
    else if (state === 'closed') log.info('tokenizer answers again', { url: origin });
  }

  function isAbsent(api: CallApi): boolean {
    return clock.nowMs() < absentUntilMs[api];
  }

  function firstApi(): CallApi {
    if (options.api !== 'auto') return options.api;
    return isAbsent('render') ? 'tokenize' : 'render';
  }

  function noteAbsent(api: CallApi, status: number): void {
    if (isAbsent(api)) return;
    const coolDownMs = api === 'render' ? RENDER_COOL_DOWN_MS : TOKENIZE_COOL_DOWN_MS;
    absentUntilMs[api] = clock.nowMs() + backoffMs(0, coolDownMs, coolDownMs, random);
    if (api === 'render' && options.api === 'auto') {
      log.info('render endpoint not served, using /tokenize', { url: origin, status });
    } else {
      log.warn('tokenizer endpoint not served', { url: origin, api, status });
    }
  }

  async function send(
    call: BreakerCall,
    api: CallApi,
    path: string,
    body: Uint8Array,
    timeoutMs: number,
  ): Promise<HttpAnswer> {
    const startMs = clock.nowMs();
    outstanding++;
    const answer = await post({ dispatcher: pool, clock }, prefix + path, headers, body, {
      timeoutMs,
      responseMaxBytes: options.responseMaxBytes,
    });
    outstanding--;
    const isOk = answer.kind === 'answer' && answer.status === 200;
    deps.onCall(api, isOk ? 'ok' : answer.kind === 'timeout' ? 'timeout' : 'error', clock.nowMs() - startMs);
    // What a server refuses says nothing against the server; 429 and 5xx do.
    const isHealthy = answer.kind === 'answer' && answer.status < 500 && answer.status !== 429 && answer.status !== 401;
    if (!isHealthy) call.end('failure');
    return answer;
  }

  function understand(
    call: BreakerCall,
    api: CallApi,
    answer: HttpAnswer,
    parse: (body: Uint8Array) => TokenResponse,
  ): Attempt {
    if (answer.kind === 'timeout') return none('timeout');
    if (answer.kind === 'failed') return none('error');
    if (answer.status !== 200) {
      const isAbsentPath = NOT_SERVED.has(answer.status) && !isUnknownModel(answer.body);
      return isAbsentPath ? { kind: 'not_served', status: answer.status } : none('error');
    }
    const response = parse(answer.body);
    if (response.kind === 'chains') return { kind: 'tokens', chains: response.chains };
    if (response.kind === 'other_shape' && api === 'render') return { kind: 'not_served', status: 200 };
    call.end('failure');
    return none('error');
  }

  async function render(call: BreakerCall, request: InferenceRequest, timeoutMs: number): Promise<Attempt> {
    const path = request.api === 'chat' ? '/v1/chat/completions/render' : '/v1/completions/render';
    const answer = await send(call, 'render', path, request.body, timeoutMs);
    const nPrompts = request.prompt.kind === 'texts' ? request.prompt.ranges.length : 1;
    return understand(call, 'render', answer, (body) =>
      request.api === 'chat' ? parseChatRenderResponse(body) : parseCompletionsRenderResponse(body, nPrompts),
    );
  }

  async function tokenize(call: BreakerCall, request: InferenceRequest, timeoutMs: number): Promise<Attempt> {
    const bodies = tokenizeBodies(request);
    if (bodies === null) return none('unsupported');
    if (outstanding + bodies.length > options.maxInFlight) return none('rejected');
    const attempts = await Promise.all(
      bodies.map(async (body) =>
        understand(call, 'tokenize', await send(call, 'tokenize', '/tokenize', body, timeoutMs), parseTokenizeResponse),
      ),
    );
    const chains: TokenChain[] = [];
    for (const attempt of attempts) {
      if (attempt.kind !== 'tokens') return attempt;
      chains.push(...attempt.chains);
    }
    return { kind: 'tokens', chains };
  }

  async function attemptInOrder(call: BreakerCall, request: InferenceRequest): Promise<TokenizeResult> {
    const startMs = clock.nowMs();
    for (let api = firstApi(); ; api = 'tokenize') {
      const leftMs = options.timeoutMs - (clock.nowMs() - startMs);
      const attempt = await (api === 'render' ? render : tokenize)(call, request, Math.max(1, leftMs));
      if (attempt.kind !== 'not_served') return attempt;
      noteAbsent(api, attempt.status);
      if (api === 'tokenize' || options.api !== 'auto') return none('unsupported');
    }
  }

  return {
    get outstanding() {
      return outstanding;
    },
    get api() {
      return firstApi();
    },
    refusal() {
      if (isAbsent(firstApi())) return 'unsupported';
      if (!breaker.passable) return 'open';
      return outstanding >= options.maxInFlight ? 'rejected' : null;
    },
    async call(request) {
      const call = breaker.enter();
      if (call === null) return none('open');
      const result = await attemptInOrder(call, request);
      call.end(result.kind === 'tokens' ? 'success' : 'neutral');
      return result;
    },
    close: () => pool.destroy(),
  };
}

function none(reason: TokenizeFailure): TokenizeResult {
  return { kind: 'none', reason };
}
