/**
 * One server that tokenizes: which of its endpoints answers, how many calls are out, whether it is asked at all. Shared
 * calls, the choice of a server and the patience of requests are `vllm-tokenizer`'s.
 */
import { backoffMs, type Clock } from '../clock.ts';
import type { HttpAnswer, HttpClient } from '../http/http-client.ts';
import type { Signal } from '../light-signal.ts';
import type { Log } from '../log.ts';
import { JsonScanner } from '../openai/json-scan.ts';
import type { InferenceRequest } from '../openai/request.ts';
import { createCallSlots, type Urgency } from './call-slots.ts';
import { asChat } from './chat-form.ts';
import { createCircuitBreaker, type BreakerCall } from './circuit-breaker.ts';
import { createLatencyWindow } from './latency-window.ts';
import { underName } from './model-name.ts';
import { plainRequest, type TokenizedApi } from './plain-request.ts';
import type { ServerAccess } from './server-access.ts';
import {
  isUnknownModel,
  lacksChat,
  parseChatRenderResponse,
  parseCompletionsRenderResponse,
  parseTokenizeResponse,
  type TokenResponse,
} from './token-response.ts';
import { holdsMedia, renderBody, tokenizeBodies } from './tokenize-body.ts';
import type { TokenChain, TokenizeFailure, TokenizeRequest, TokenizeResult } from './tokenizer.ts';

export type HttpApi = 'render' | 'tokenize';

export type TargetDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly random: () => number;
  readonly http: HttpClient;
  readonly access: Pick<ServerAccess, 'headers' | 'refused'>;
  /** One HTTP call has ended. */
  readonly onCall: (api: HttpApi, result: 'ok' | 'timeout' | 'error' | 'not_served', durationMs: number) => void;
};

export type TargetOptions = {
  readonly api: 'auto' | HttpApi;
  readonly timeoutMs: number;
  readonly maxInFlight: number;
  readonly maxQueued: number;
  readonly queueMs: number;
  readonly responseMaxBytes: number;
};

export type TokenizerTarget = {
  /** Calls under way and waiting. */
  readonly outstanding: number;
  /** The endpoint the next call would begin with. */
  readonly api: HttpApi;
  /** When an answer of this server is later than usual; null where nothing is known yet. */
  readonly p95Ms: number | null;
  /** Null when the target would take a call now. */
  refusal(request: InferenceRequest, urgency: Urgency): Refusal | null;
  /** Never rejects; ends within `queueMs` and `timeoutMs`, or when the signal aborts. An aborted call says nothing about the server. */
  call(request: TokenizeRequest, urgency: Urgency, signal: Signal | null): Promise<TokenizeResult>;
};

export type Refusal = Extract<TokenizeFailure, 'rejected' | 'open' | 'unsupported'>;

/** Opens when at least half of the last twenty calls failed, and no fewer than five. */
const BREAKER = { window: 20, failures: 5, openBaseMs: 1000, openMaxMs: 30_000 } as const;
/** How long a missing endpoint is believed to be missing: servers are upgraded behind a stable name. */
const RENDER_COOL_DOWN_MS = 600_000;
const TOKENIZE_COOL_DOWN_MS = 60_000;
/** Names of models the server did not know; a fleet has no more. */
const MAX_UNKNOWN_NAMES = 10_000;
/** Statuses that mean "this path is not served here": vLLM answers 403 where render is disabled, 404 where it is unknown. */
const NOT_SERVED = new Set([403, 404, 405, 501]);

/** Those of them that do not depend on the request. vLLM says 501 of an image it can not read, too. */
const SERVED_TO_NOBODY = new Set([403, 404, 405]);

type Attempt = NamedAttempt | NotServed;

type NotServed = { readonly kind: 'not_served'; readonly form: Form; readonly status: number };

type NamedAttempt = TokenizeResult | { readonly kind: 'unknown_model' };

type Call = {
  /** As it came. */
  readonly request: InferenceRequest;
  readonly breaker: BreakerCall;
  readonly deadlineMs: number;
  readonly signal: Signal | null;
};

/** What may be missing on a server. Older SGLang tokenizes texts, not chats; older vLLM renders chats and completions only. */
type Form = HttpApi | 'render_responses' | 'render_messages' | 'tokenize_chat';

/** A render endpoint lies behind the path of the API it renders, and takes the same body. */
const RENDERED: Readonly<Record<TokenizedApi, { readonly path: string; readonly form: Form }>> = {
  chat: { path: '/v1/chat/completions/render', form: 'render' },
  completions: { path: '/v1/completions/render', form: 'render' },
  responses: { path: '/v1/responses/render', form: 'render_responses' },
  messages: { path: '/v1/messages/render', form: 'render_messages' },
};

/** @param url `http(s)://host:port`, a path in it is put before vLLM's own; throws TypeError on anything else */
export function createTokenizerTarget(deps: TargetDeps, options: TargetOptions, url: string): TokenizerTarget {
  const { clock, log, random, http } = deps;
  const { origin, pathname } = new URL(url);
  const prefix = pathname.replace(/\/+$/, '');
  const slots = createCallSlots(clock, options);
  const latencies = createLatencyWindow();
  const breaker = createCircuitBreaker({ clock, random, onState: logState }, BREAKER);
  let nSending = 0;
  /** Until when something is not asked for because it was not there. */
  const absentUntilMs: Record<Form, number> = {
    render: -Infinity,
    render_responses: -Infinity,
    render_messages: -Infinity,
    tokenize: -Infinity,
    tokenize_chat: -Infinity,
  };
  /** Until when a request of an adapter or alias is asked for under the name of its model at once. */
  const unknownUntilMs = new Map<string, number>();
  /** Said once, not at every try. */
  const toldAbsent = new Set<Form>();

  function logState(state: string, pauseMs: number): void {
    if (state === 'open') log.warn('tokenizer paused after failures', { url: origin, pauseMs: Math.round(pauseMs) });
    else if (state === 'closed') log.info('tokenizer answers again', { url: origin });
  }

  function isAbsent(form: Form): boolean {
    return clock.nowMs() < absentUntilMs[form];
  }

  function firstApi(): HttpApi {
    if (options.api !== 'auto') return options.api;
    return isAbsent('render') ? 'tokenize' : 'render';
  }

  function noteAbsent(form: Form, status: number): void {
    const coolDownMs = form === 'tokenize' ? TOKENIZE_COOL_DOWN_MS : RENDER_COOL_DOWN_MS;
    absentUntilMs[form] = clock.nowMs() + backoffMs(0, coolDownMs, coolDownMs, random);
    if (toldAbsent.has(form)) return;
    toldAbsent.add(form);
    if (form === 'render' && options.api === 'auto') {
      log.info('render endpoint not served, using /tokenize', { url: origin, status });
    } else if (form === 'render_responses' || form === 'render_messages') {
      log.info('render endpoint not served, asking for the chat it becomes', { url: origin, api: form, status });
    } else {
      log.warn('tokenizer endpoint not served', { url: origin, api: form, status });
    }
  }

  /** @param read what the answer means, called with whatever became of it */
  function send(
    call: Call,
    api: HttpApi,
    path: string,
    body: Uint8Array,
    read: (answer: HttpAnswer) => Attempt,
    isAbsentAt: (answer: HttpAnswer) => boolean = isNotServed,
  ): Promise<Attempt> {
    const startMs = clock.nowMs();
    nSending++;
    const request = { method: 'POST', path: prefix + path, headers: deps.access.headers(), body } as const;
    const limits = {
      timeoutMs: Math.max(1, call.deadlineMs - startMs),
      responseMaxBytes: options.responseMaxBytes,
      signal: call.signal,
    };
    return http.exchange(origin, request, limits, (answer) => {
      nSending--;
      if (answer.kind !== 'given_up') note(call, api, answer, clock.nowMs() - startMs, isAbsentAt);
      return read(answer);
    });
  }

  /** What an answer, or none, says about the server. */
  function note(
    call: Call,
    api: HttpApi,
    answer: HttpAnswer,
    durationMs: number,
    isAbsentAt: (answer: HttpAnswer) => boolean,
  ): void {
    const isOk = answer.kind === 'answer' && answer.status === 200;
    if (isOk) latencies.note(durationMs);
    if (answer.kind === 'answer' && answer.status === 401) deps.access.refused();
    const failure = answer.kind === 'timeout' ? 'timeout' : isAbsentAt(answer) ? 'not_served' : 'error';
    deps.onCall(api, isOk ? 'ok' : failure, durationMs);
    if (failure !== 'not_served' && isFailure(call.request, answer)) call.breaker.end('failure');
  }

  function understand(
    { breaker: call }: Call,
    form: Form,
    answer: HttpAnswer,
    parse: (body: Uint8Array) => TokenResponse,
  ): Attempt {
    if (answer.kind === 'timeout') return none('timeout');
    if (answer.kind !== 'answer') return none('error');
    if (isNotServed(answer)) return { kind: 'not_served', form, status: answer.status };
    if (answer.status === 404) return { kind: 'unknown_model' };
    if (isRefusal(answer)) return none('unsupported');
    if (answer.status !== 200) return none('error');
    const response = parse(answer.body);
    if (response.kind === 'chains') return { kind: 'tokens', chains: response.chains };
    if (response.kind === 'unplaced') return none('unsupported');
    if (response.kind === 'other_shape' && form !== 'tokenize') return { kind: 'not_served', form, status: 200 };
    call.end('failure');
    return none('error');
  }

  function render(call: Call, request: InferenceRequest, api: TokenizedApi): Promise<Attempt> {
    const { path, form } = RENDERED[api];
    const nPrompts = request.prompt.kind === 'texts' ? request.prompt.ranges.length : 1;
    const parse = (body: Uint8Array): TokenResponse =>
      api === 'completions' ? parseCompletionsRenderResponse(body, nPrompts) : parseChatRenderResponse(body);
    return send(call, 'render', path, renderBody(request), (answer) => understand(call, form, answer, parse));
  }

  async function tokenize(call: Call, request: InferenceRequest): Promise<Attempt> {
    const bodies = tokenizeBodies(request);
    if (bodies === null) return none('unsupported');
    // One slot is this call's already; more prompts than there is room for are not sent one by one.
    if (nSending + bodies.length > options.maxInFlight) return none('rejected');
    const isChat = request.api === 'chat';
    const isAbsentAt = isChat ? isNotServedChat : isNotServed;
    const read = (answer: HttpAnswer): Attempt => {
      if (isChat && answer.kind === 'answer' && isNotServedChat(answer) && !isNotServed(answer)) {
        return { kind: 'not_served', form: 'tokenize_chat', status: answer.status };
      }
      return understand(call, 'tokenize', answer, parseTokenizeResponse);
    };
    const attempts = await Promise.all(
      bodies.map((body) => send(call, 'tokenize', '/tokenize', body, read, isAbsentAt)),
    );
    const chains: TokenChain[] = [];
    for (const attempt of attempts) {
      if (attempt.kind !== 'tokens') return attempt;
      chains.push(...attempt.chains);
    }
    return { kind: 'tokens', chains };
  }

  async function attemptByName(call: Call, request: TokenizeRequest, canonicalModel: string): Promise<NamedAttempt> {
    const { model } = request;
    const isKnownUnknown = clock.nowMs() < (unknownUntilMs.get(model) ?? -Infinity);
    const attempt: NamedAttempt = isKnownUnknown ? { kind: 'unknown_model' } : await attemptInOrder(call, request);
    if (attempt.kind !== 'unknown_model') return attempt;
    if (unknownUntilMs.size >= MAX_UNKNOWN_NAMES) unknownUntilMs.clear();
    if (!isKnownUnknown) unknownUntilMs.set(model, clock.nowMs() + RENDER_COOL_DOWN_MS);
    return attemptInOrder(call, underName(request, canonicalModel));
  }

  async function attemptInOrder(call: Call, request: InferenceRequest): Promise<NamedAttempt> {
    const { api } = request;
    if (api !== 'chat' && api !== 'completions') {
      if (api !== 'responses' && api !== 'messages') return none('unsupported');
      if (firstApi() === 'render' && !isAbsent(RENDERED[api].form)) {
        const attempt = await render(call, request, api);
        if (attempt.kind !== 'not_served') return attempt;
        if (!(await isMissing(call, request, api, attempt))) return none('unsupported');
        noteAbsent(attempt.form, attempt.status);
      }
      const chat = asChat(request);
      return chat === null ? none('unsupported') : attemptInOrder(call, chat);
    }
    for (let next = firstApi(); ; next = 'tokenize') {
      const attempt = await (next === 'render' ? render(call, request, api) : tokenize(call, request));
      if (attempt.kind !== 'not_served') return attempt;
      if (!(await isMissing(call, request, api, attempt))) return none('unsupported');
      noteAbsent(attempt.form, attempt.status);
      if (next === 'tokenize' || options.api !== 'auto') return none('unsupported');
    }
  }

  /** Whether what this request was refused is refused to all: one client's mistake must not cost everybody the tokens. */
  async function isMissing(
    call: Call,
    { model }: InferenceRequest,
    api: TokenizedApi,
    { form, status }: NotServed,
  ): Promise<boolean> {
    if (form !== 'tokenize_chat' && SERVED_TO_NOBODY.has(status)) return true;
    const plain = plainRequest(api, model);
    if (plain === null) return false;
    const isTokenize = form === 'tokenize' || form === 'tokenize_chat';
    const attempt = await (isTokenize ? tokenize(call, plain) : render(call, plain, api));
    return attempt.kind === 'not_served';
  }

  return {
    get outstanding() {
      return slots.nTaken;
    },
    get api() {
      return firstApi();
    },
    get p95Ms() {
      return latencies.p95Ms();
    },
    refusal(request, urgency) {
      const api = firstApi();
      if (isAbsent(api) || (api === 'tokenize' && request.api !== 'completions' && isAbsent('tokenize_chat'))) {
        return 'unsupported';
      }
      if (!breaker.passable) return 'open';
      return slots.canEnter(urgency) ? null : 'rejected';
    },
    async call(request, urgency, signal) {
      const admitted = slots.enter(urgency);
      if (admitted !== true && !(await admitted)) return none('rejected');
      const entered = breaker.enter();
      if (entered === null) {
        slots.leave();
        return none('open');
      }
      const call = { request, breaker: entered, deadlineMs: clock.nowMs() + options.timeoutMs, signal };
      try {
        const { canonicalModel } = request;
        const attempt = await (canonicalModel === undefined
          ? attemptInOrder(call, request)
          : attemptByName(call, request, canonicalModel));
        const result = attempt.kind === 'unknown_model' ? none('error') : attempt;
        entered.end(result.kind === 'tokens' ? 'success' : 'neutral');
        return result;
      } finally {
        // However it ended, a probe is over.
        entered.end('neutral');
        slots.leave();
      }
    },
  };
}

/** What a server refuses says nothing against it; 429 and 5xx do, and so does silence. */
function isFailure(request: InferenceRequest, answer: HttpAnswer): boolean {
  if (answer.kind !== 'answer' && answer.kind !== 'timeout') return true;
  if (answer.kind === 'answer' && answer.status < 500) return answer.status === 429 || answer.status === 401;
  // Images are fetched from wherever the client says, and vLLM waits for them, or answers 500 where nobody has them.
  return !holdsMedia(request);
}

/** Something is wrong about the request: another server would say so too. Whoever says it without JSON is no tokenizer. */
function isRefusal(answer: HttpAnswer & { readonly kind: 'answer' }): boolean {
  const { status, body } = answer;
  return (status === 400 || status === 413 || status === 422) && new JsonScanner(body).peekKind() === 'object';
}

function isNotServed(answer: HttpAnswer): boolean {
  return answer.kind === 'answer' && NOT_SERVED.has(answer.status) && !isUnknownModel(answer.body);
}

function isNotServedChat(answer: HttpAnswer): boolean {
  return isNotServed(answer) || (answer.kind === 'answer' && lacksChat(answer.status, answer.body));
}

function none(reason: TokenizeFailure): TokenizeResult {
  return { kind: 'none', reason };
}
