/**
 * One HTTP request as a state machine: messages of Envoy, the picker's decision, time and endings go in; answers and
 * exactly one result come out. No I/O, no log, no metrics; the clock is injected.
 *
 * The two directions are independent (request-side.ts, response-side.ts); here lies what joins them: which mode the
 * stream is in, the picker's deadline, the failure mode, the reservation, and the end.
 */
import type { Clock, Timer } from '../clock.ts';
import type { Usage } from '../openai/usage.ts';
import type { Decision, PickError, PickRequest, Reservation } from './endpoint-picker.ts';
import {
  immediateResponse,
  withTrailersWanted,
  type BodySendMode,
  type EnvoyMessage,
  type HeaderMap,
  type ProcessingResponse,
  type ProtocolConfig,
} from './messages.ts';
import { destinationValue } from './protocol.ts';
import { createRequestSide, type RequestBodyMode, type RequestSide } from './request-side.ts';
import { createResponseSide, type CreateUsageReader, type ResponseSide } from './response-side.ts';

export type FailureMode = 'open' | 'closed';

export type ExchangeOptions = {
  readonly bodyMaxBytes: number;
  /** On an internal fault: `open` passes on without a destination, `closed` answers 503. */
  readonly failureMode: FailureMode;
  /** For Envoys before 1.34, which do not announce theirs. */
  readonly defaultBodyMode: RequestBodyMode;
  /** Longest wait for the picker; must be below Envoy's `message_timeout`. */
  readonly deadlineMs: number;
  readonly destinationHeader: string;
  readonly targetPodHeader: 'set' | 'off';
  /** Whether to ask, by `mode_override`, for response trailers: keeps the side stream open until the request is over. */
  readonly responseTrailers: 'as_configured' | 'ask';
  readonly maxHeaders: number;
  readonly maxHeaderBytes: number;
  readonly maxMessages: number;
};

/** Words of `warmpath_requests_total{outcome}`, and `observed` for streams that are never answered. */
export type ExchangeOutcome =
  | 'routed'
  | 'passthrough'
  | 'shed'
  | 'no_endpoint'
  | 'bad_request'
  | 'unknown_model'
  | 'too_large'
  | 'cancelled'
  | 'error'
  | 'observed';

/** `half_close` covers resets too where grpc-js announces them as an end first; only the code of a reset would tell. */
export type ExchangeEnding = 'half_close' | 'reset' | 'refused' | 'shutdown' | 'failed';

export type ExchangeResult = {
  readonly outcome: ExchangeOutcome;
  /** Cause of a refusal, a passthrough or an error; '' otherwise. */
  readonly reason: string;
  readonly ending: ExchangeEnding;
  readonly mode: RequestBodyMode | 'observability' | 'unknown';
  /** First endpoint of the choice, null without one. */
  readonly endpoint: string | null;
  /** Endpoint that answered, where the data plane says so. */
  readonly served: string | null;
  readonly usage: Usage | null;
  /** How the end of the answer was learnt: seen in the response phase, or only by the end of the side stream. */
  readonly completion: 'response' | 'stream';
  readonly requestBodyBytes: number;
  /** Request complete → decision, null without a decision. */
  readonly decisionMs: number | null;
  /** Decision → end of the side stream, null without a decision. */
  readonly heldMs: number | null;
  /** `x-request-id`, only of observed streams: what joins them to the stream that was answered. */
  readonly requestId: string | null;
};

export type FailureCode =
  'INVALID_ARGUMENT' | 'FAILED_PRECONDITION' | 'RESOURCE_EXHAUSTED' | 'UNAVAILABLE' | 'INTERNAL';

export type ExchangeOutput = {
  send(response: ProcessingResponse): void;
  /** Ask the picker; exactly one of `decided` and `pickFailed` is to follow, at any time. */
  pick(request: PickRequest, signal: AbortSignal): void;
  /** End the stream with status 0. */
  end(): void;
  /** End the stream with another status. */
  fail(code: FailureCode, details: string): void;
  /** The one result; nothing is called after it. */
  finished(result: ExchangeResult): void;
};

export type Exchange = {
  message(message: EnvoyMessage): void;
  /** Envoy has nothing more to send. */
  halfClosed(): void;
  /** The stream is gone: reset, connection lost, or closed by either side. */
  cancelled(): void;
  decided(decision: Decision): void;
  /** The picker threw or rejected. */
  pickFailed(): void;
  /** A bug while handling a message: answered by the failure mode where an answer is still possible. */
  fault(): void;
  /** Shutdown begins: ends as soon as ending harms nobody. */
  drain(): void;
  /** Shutdown ends: answered streams end with status 0, others fail so that Envoy retries. */
  expire(): void;
};

/** A timer later than this was held up with everything else in the process. */
const STALL_MS = 20;

export function createExchange(
  options: ExchangeOptions,
  clock: Clock,
  createUsageReader: CreateUsageReader,
  output: ExchangeOutput,
): Exchange {
  let phase: 'new' | 'open' | 'finished' = 'new';
  let mode: RequestBodyMode | 'observability' | 'unknown' = 'unknown';
  let request: RequestSide | null = null;
  let response: ResponseSide | null = null;
  let responseStyle: 'echo' | 'acknowledge' | 'observe' = 'acknowledge';
  let wantTrailers: ((answer: ProcessingResponse) => ProcessingResponse) | null = null;
  let nMessages = 0;

  let decision: 'none' | 'asked' | 'made' = 'none';
  let outcome: ExchangeOutcome = 'cancelled';
  let reason = '';
  let endpoint: string | null = null;
  let served: string | null = null;
  let reservation: Reservation | null = null;
  let usage: Usage | null = null;
  let abort: AbortController | null = null;
  let timer: Timer | null = null;
  let readyAtMs = 0;
  let decidedAtMs: number | null = null;
  let requestId: string | null = null;
  let draining = false;
  let halfClosed = false;
  /** Set by a fault before the picker was asked: then it is not asked any more. */
  let faulted: string | null = null;

  function message(incoming: EnvoyMessage): void {
    if (phase === 'finished') return;
    if (phase === 'new' && !begin(incoming)) return;
    nMessages += 1;
    if (nMessages > options.maxMessages) return tooManyMessages();
    if (incoming.subset !== null) request?.hint(incoming.subset);
    if (incoming.served !== null) served = incoming.served;
    switch (incoming.kind) {
      case 'request_headers':
        if (mode === 'observability') requestId = incoming.headers.get('x-request-id') ?? null;
        else if (withinLimits(incoming.headers)) request?.headers(incoming);
        break;
      case 'request_body':
        request?.body(incoming);
        break;
      case 'request_trailers':
        request?.trailers();
        break;
      case 'response_headers':
        responseSide().headers(incoming);
        break;
      case 'response_body':
        responseSide().body(incoming);
        break;
      case 'response_trailers':
        responseSide().trailers();
        break;
      case 'unknown':
        break;
    }
  }

  /** Chooses the mode by the first message; false when the stream was refused. */
  function begin(first: EnvoyMessage): boolean {
    phase = 'open';
    if (first.observabilityMode) {
      mode = 'observability';
      outcome = 'observed';
      responseStyle = 'observe';
      return true;
    }
    const announced = first.protocolConfig;
    const chosen = announced === null ? options.defaultBodyMode : requestBodyMode(announced);
    if (chosen === null) {
      fail('INVALID_ARGUMENT', `request body mode not supported: ${announced?.requestBodyMode}`, 'body_mode_refused');
      return false;
    }
    mode = chosen;
    if (announced?.responseBodyMode === 'FULL_DUPLEX_STREAMED') responseStyle = 'echo';
    if (options.responseTrailers === 'ask' && announced !== null) wantTrailers = trailersWish(chosen, announced);
    request = createRequestSide(
      {
        mode: chosen,
        modeSource: announced === null ? 'assumed' : 'announced',
        bodyMaxBytes: options.bodyMaxBytes,
        destinationHeader: options.destinationHeader,
        targetPodHeader: options.targetPodHeader,
      },
      { send: sendAnswer, ready, tooLarge, illegal },
    );
    return true;
  }

  function responseSide(): ResponseSide {
    response ??= createResponseSide(
      { style: responseStyle, createUsageReader },
      { send: output.send, firstByte, complete: responseComplete, illegal },
    );
    return response;
  }

  /** The first answer of a stream is to its headers, the only one that may carry an override. */
  function sendAnswer(answer: ProcessingResponse): void {
    if (wantTrailers !== null && 'request_headers' in answer) answer = wantTrailers(answer);
    wantTrailers = null;
    output.send(answer);
  }

  function withinLimits(headers: HeaderMap): boolean {
    if (headers.count <= options.maxHeaders && headers.bytes <= options.maxHeaderBytes) return true;
    refuse({
      kind: 'error',
      status: 400,
      type: 'invalid_request_error',
      code: null,
      param: null,
      message:
        `request headers too large: ${headers.count} headers with ${headers.bytes} bytes, ` +
        `limit ${options.maxHeaders} headers with ${options.maxHeaderBytes} bytes`,
      reason: 'headers_too_large',
      retryAfterSeconds: null,
    });
    return false;
  }

  function ready(pickRequest: PickRequest): void {
    readyAtMs = clock.nowMs();
    if (faulted !== null) return pass(faulted);
    decision = 'asked';
    abort = new AbortController();
    timer = clock.after(options.deadlineMs, overrun);
    output.pick(pickRequest, abort.signal);
  }

  function decided(made: Decision): void {
    if (decision !== 'asked' || phase === 'finished') {
      // The request went another way meanwhile: nobody will use what was booked.
      if (made.kind === 'routed') made.reservation.release(phase === 'finished' ? 'cancelled' : 'failed');
      return;
    }
    if (made.kind === 'error') {
      settle();
      return refuse(made);
    }
    const destination = destinationValue(made.endpoints);
    if (destination === null) {
      made.reservation.release('failed');
      return failPick('picker_failed');
    }
    settle();
    reservation = made.reservation;
    outcome = 'routed';
    endpoint = made.endpoints[0]!;
    request?.answer({ kind: 'routed', destination, first: endpoint });
    afterAnswer();
  }

  /** After a stall of the event loop the decision may lie ready behind this timer: it gets one more turn. */
  function overrun(): void {
    const lateMs = clock.nowMs() - readyAtMs - options.deadlineMs;
    if (lateMs < STALL_MS) failPick('picker_timeout');
    else timer = clock.after(0, () => failPick('picker_timeout'));
  }

  function settle(): void {
    decision = 'made';
    decidedAtMs = clock.nowMs();
    timer?.cancel();
    timer = null;
    abort = null;
  }

  function failPick(why: string): void {
    if (decision !== 'asked' || phase === 'finished') return;
    const asked = abort;
    settle();
    asked?.abort();
    if (options.failureMode === 'open') pass(why);
    else refuse(unavailable(why));
  }

  function fault(): void {
    if (phase === 'finished') return;
    if (decision === 'asked') return failPick('internal_fault');
    if (decision === 'made' || request === null) {
      return fail('INTERNAL', 'a message could not be handled', 'internal_fault');
    }
    if (options.failureMode === 'closed') return refuse(unavailable('internal_fault'));
    faulted = 'internal_fault';
  }

  function pass(why: string): void {
    decision = 'made';
    decidedAtMs ??= clock.nowMs();
    outcome = 'passthrough';
    reason = why;
    request?.answer({ kind: 'pass' });
    afterAnswer();
  }

  function afterAnswer(): void {
    if (halfClosed) endCleanly('half_close');
    else if (draining) drain();
  }

  function refuse(error: PickError): void {
    outcome = isInternal(error.reason) ? 'error' : REFUSALS[error.status];
    reason = error.reason;
    output.send(immediateResponse(error));
    endCleanly('refused');
  }

  function tooLarge(): void {
    refuse({
      kind: 'error',
      status: 413,
      type: 'invalid_request_error',
      code: null,
      param: null,
      message: `request body too large: limit ${options.bodyMaxBytes} bytes`,
      reason: 'body_too_large',
      retryAfterSeconds: null,
    });
  }

  function illegal(what: string): void {
    fail('FAILED_PRECONDITION', what, 'illegal_message_order');
  }

  /** Once decided, a clean end lets Envoy go on by itself; before, it would route past the picker. */
  function tooManyMessages(): void {
    if (decision === 'made') endCleanly('failed');
    else
      fail('RESOURCE_EXHAUSTED', `too many messages on one stream: limit ${options.maxMessages}`, 'too_many_messages');
  }

  function firstByte(): void {
    reservation?.firstByte();
  }

  function responseComplete(seen: Usage | null): void {
    usage = seen;
    release('completed');
    if (draining) drain();
  }

  function release(how: 'completed' | 'cancelled' | 'failed'): void {
    const held = reservation;
    if (held === null) return;
    reservation = null;
    if (usage !== null) held.observe(usage);
    held.release(how);
  }

  function onHalfClose(): void {
    if (phase === 'finished') return;
    halfClosed = true;
    // A half-close is no reset: what was asked for is still answered.
    if (decision !== 'asked') endCleanly('half_close');
  }

  function cancelled(): void {
    if (phase === 'finished') return;
    finish('reset');
  }

  function endCleanly(ending: ExchangeEnding): void {
    if (phase === 'finished') return;
    output.end();
    finish(ending);
  }

  function fail(code: FailureCode, details: string, why: string): void {
    if (phase === 'finished') return;
    if (outcome === 'cancelled') outcome = 'error';
    reason = why;
    output.fail(code, details);
    finish('failed');
  }

  function drain(): void {
    if (phase === 'finished') return;
    draining = true;
    // In FULL_DUPLEX_STREAMED a piece of the answer may be on its way to us, and only we can give it back.
    const echoing = responseStyle === 'echo' && response?.state !== 'over';
    if (mode === 'observability' || (decision === 'made' && !echoing)) endCleanly('shutdown');
  }

  function expire(): void {
    if (phase === 'finished') return;
    if (decision === 'made' || mode === 'observability') return endCleanly('shutdown');
    fail('UNAVAILABLE', 'shutting down', 'shutdown');
  }

  function finish(ending: ExchangeEnding): void {
    phase = 'finished';
    timer?.cancel();
    timer = null;
    const endedAtMs = clock.nowMs();
    const responseOver = response?.state === 'over';
    if (usage === null) usage = response?.usageSoFar() ?? null;
    // Where nothing of the answer is visible, the end of the stream is the end of the request.
    const cut = ending === 'failed' || (response !== null && !responseOver);
    const requestBodyBytes = request?.bodyBytes ?? 0;
    request?.dispose();
    const asked = abort;
    abort = null;
    const result: ExchangeResult = {
      outcome,
      reason,
      ending,
      mode,
      endpoint,
      served,
      usage,
      completion: responseOver ? 'response' : 'stream',
      requestBodyBytes,
      decisionMs: decidedAtMs === null ? null : decidedAtMs - readyAtMs,
      heldMs: decidedAtMs === null ? null : endedAtMs - decidedAtMs,
      requestId,
    };
    try {
      release(cut ? (ending === 'failed' ? 'failed' : 'cancelled') : 'completed');
      asked?.abort();
    } finally {
      // Whatever a reservation or a listener throws, the stream is accounted for.
      output.finished(result);
    }
  }

  return {
    message,
    halfClosed: onHalfClose,
    cancelled,
    decided,
    pickFailed: () => failPick('picker_failed'),
    fault,
    drain,
    expire,
  };
}

const REFUSALS: Readonly<Record<PickError['status'], ExchangeOutcome>> = {
  400: 'bad_request',
  404: 'unknown_model',
  413: 'too_large',
  429: 'shed',
  503: 'no_endpoint',
};

function isInternal(reason: string): boolean {
  return reason === 'picker_failed' || reason === 'internal_fault' || reason === 'picker_timeout';
}

function unavailable(reason: string): PickError {
  return {
    kind: 'error',
    status: 503,
    type: 'service_unavailable_error',
    code: null,
    param: null,
    message: 'no endpoint could be chosen in time, try again',
    reason,
    retryAfterSeconds: 1,
  };
}

/** Null for GRPC and for modes this version does not know. */
function requestBodyMode(announced: ProtocolConfig): RequestBodyMode | null {
  switch (announced.requestBodyMode) {
    case 'NONE':
    case 'BUFFERED':
    case 'BUFFERED_PARTIAL':
    case 'FULL_DUPLEX_STREAMED':
      return announced.requestBodyMode;
    case 'STREAMED':
      return announced.sendBodyWithoutWaiting ? 'STREAMED_WITHOUT_WAITING' : 'STREAMED';
    default:
      return null;
  }
}

/** Envoy takes no override where the body is FULL_DUPLEX_STREAMED or sent without waiting. */
function trailersWish(
  chosen: RequestBodyMode,
  announced: ProtocolConfig,
): ((answer: ProcessingResponse) => ProcessingResponse) | null {
  if (chosen === 'FULL_DUPLEX_STREAMED' || chosen === 'STREAMED_WITHOUT_WAITING') return null;
  const { responseBodyMode } = announced;
  if (typeof responseBodyMode === 'number' || responseBodyMode === 'FULL_DUPLEX_STREAMED') return null;
  const requestMode: BodySendMode = chosen;
  return (answer) => withTrailersWanted(answer, requestMode, responseBodyMode);
}
