/**
 * One HTTP request as a state machine: messages of Envoy, the picker's decision, time and endings go in; answers and
 * exactly one result come out. No I/O, no log, no metrics; the clock is injected.
 *
 * The two directions are independent (request-side.ts, response-side.ts), the question to the picker is
 * picker-question.ts; here lies what joins them: the mode of the stream, the failure mode, the reservation, and the end.
 */
import type { Clock, Timer } from '../clock.ts';
import type { Signal } from '../light-signal.ts';
import type { Usage } from '../openai/usage.ts';
import { answersRequestHeaders, immediateResponse } from './answers.ts';
import type { BodyShare } from './body-budget.ts';
import type { Decision, PickError, PickRequest, Reservation } from './picker.ts';
import type { EnvoyMessage, HeadersMessage, ProcessingResponse } from './messages.ts';
import { createPickerQuestion, type Routed } from './picker-question.ts';
import {
  bodyTooLarge,
  headersTooLarge,
  refusalOutcome,
  tooManyBodies,
  unavailable,
  type FaultReason,
  type RefusalOutcome,
} from './refusals.ts';
import { createRequestSide, type RequestBodyMode, type RequestSide } from './request-side.ts';
import {
  createResponseSide,
  type CreateUsageReader,
  type ResponseEnd,
  type ResponseSide,
  type ResponseSideOptions,
} from './response-side.ts';
import { ENVOY_LIMITS } from './steering.ts';
import { streamMode, type StreamMode } from './stream-mode.ts';
import type { Observer } from './usage-join.ts';

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
  /** What the end of a stream says of an answer that was not shown: that it is over, or nothing. */
  readonly completion: 'stream' | 'estimate';
  readonly maxHeaders: number;
  readonly maxHeaderBytes: number;
  readonly maxMessages: number;
};

/** Words of `warmpath_requests_total{outcome}`, and `observed` for streams that are never answered. */
export type ExchangeOutcome = 'routed' | 'passthrough' | 'cancelled' | 'observed' | RefusalOutcome;

export type ExchangeEnding = 'half_close' | 'reset' | 'refused' | 'shutdown' | 'failed';

export type ExchangeResult = {
  readonly outcome: ExchangeOutcome;
  /** Cause of a refusal, a passthrough or an error; '' otherwise. */
  readonly reason: string;
  readonly ending: ExchangeEnding;
  readonly mode: RequestBodyMode | 'observability' | 'unknown';
  /** Canonical name of the model asked for, null where the picker did not say. */
  readonly model: string | null;
  /** First endpoint of the choice, null without one. */
  readonly endpoint: string | null;
  /** Endpoint that answered, where the data plane says so. */
  readonly served: string | null;
  readonly usage: Usage | null;
  /** How the end of the answer was learnt: seen in the response phase, by the end of the side stream, or not at all. */
  readonly completion: 'response' | 'stream' | 'estimate';
  readonly requestBodyBytes: number;
  /** Request complete → decision, null without a decision. */
  readonly decisionMs: number | null;
  /** Decision → end of the side stream, null without a decision. */
  readonly heldMs: number | null;
  /** `x-request-id`, only of observed streams: what joins them to the stream that was answered. */
  readonly requestId: string | null;
};

export type FailureCode =
  | 'INVALID_ARGUMENT'
  | 'FAILED_PRECONDITION'
  | 'RESOURCE_EXHAUSTED'
  | 'UNAVAILABLE'
  | 'INTERNAL'
  | 'UNIMPLEMENTED'
  | 'DEADLINE_EXCEEDED';

export type ExchangeOutput = {
  send(response: ProcessingResponse): void;
  /** Ask the picker; exactly one of `decided` and `pickFailed` is to follow, at any time. */
  pick(request: PickRequest, signal: Signal): void;
  /** A body begins to be held; `drop` may be called for as long as it is. */
  holdBody(drop: () => void): BodyShare;
  /** A stream that only observes the request with this `x-request-id`. */
  observe(requestId: string): Observer;
  /** The stream is over and the answer it routed may not be: the reservation is to be given back later. */
  unseen(reservation: Reservation): void;
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
  /** What comes can no longer be read: the stream fails with this. @param why counted */
  broken(code: FailureCode, details: string, why: string): void;
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

/** Envoy waits a second for our end of a stream it half-closed; then it resets it. */
const HALF_CLOSE_GRACE_MS = 500;

export function createExchange(
  options: ExchangeOptions,
  clock: Clock,
  createUsageReader: CreateUsageReader,
  output: ExchangeOutput,
): Exchange {
  /** `answered`: the request was routed or passed on, and Envoy no longer needs us for it. */
  let phase: 'new' | 'open' | 'answered' | 'finished' = 'new';
  let mode: ExchangeResult['mode'] = 'unknown';
  let request: RequestSide | null = null;
  let response: ResponseSide | null = null;
  let responseStyle: ResponseSideOptions['style'] = 'acknowledge';
  let responseBody: ResponseSideOptions['body'] = 'shown';
  let askForTrailers: ((answer: ProcessingResponse) => ProcessingResponse) | null = null;
  let nMessages = 0;

  let outcome: ExchangeOutcome = 'cancelled';
  let reason = '';
  let model: string | null = null;
  let endpoint: string | null = null;
  let served: string | null = null;
  let reservation: Reservation | null = null;
  /** The choice and its fallbacks. */
  let named: readonly string[] = [];
  let observer: Observer | null = null;
  let usage: Usage | null = null;
  let answeredAtMs: number | null = null;
  let requestId: string | null = null;
  let draining = false;
  /** Set by a half-close while the picker is asked: what ends the wait for it. */
  let halfClosed: Timer | null = null;
  /** Set by a fault before the picker was asked: then it is not asked any more. */
  let faulted: FaultReason | null = null;

  const question = createPickerQuestion(options.deadlineMs, clock, {
    pick: output.pick,
    routed,
    refused: refuse,
    failed,
  });

  function message(incoming: EnvoyMessage): void {
    if (phase === 'finished') return;
    nMessages += 1;
    if (nMessages > options.maxMessages) return tooManyMessages();
    if (phase === 'new') {
      // Not the first message of a request yet: it says nothing of how the filter is configured.
      if (incoming.kind === 'unknown' && incoming.protocolConfig === null && !incoming.observabilityMode) return;
      if (!begin(incoming)) return;
    }
    if (incoming.subset !== null) request?.hint(incoming.subset);
    if (incoming.served !== null) served = incoming.served;
    switch (incoming.kind) {
      case 'request_headers':
        return requestHeaders(incoming);
      case 'request_body':
        return request?.body(incoming);
      case 'request_trailers':
        return request?.trailers();
      case 'response_headers':
        return responseSide().headers(incoming);
      case 'response_body':
        return responseSide().body(incoming);
      case 'response_trailers':
        return responseSide().trailers();
      case 'unknown':
        return;
    }
  }

  /** Takes up the mode of the first message; false when it was refused. */
  function begin(first: EnvoyMessage): boolean {
    phase = 'open';
    const chosen = streamMode(first, options.defaultBodyMode);
    switch (chosen.kind) {
      case 'refuse':
        fail('INVALID_ARGUMENT', chosen.details, 'body_mode_refused');
        return false;
      case 'observe':
        mode = 'observability';
        outcome = 'observed';
        responseStyle = 'observe';
        // Such a filter announces nothing: it may show headers only.
        responseBody = 'not_shown';
        return true;
      case 'answer':
        answerIn(chosen);
        return true;
    }
  }

  function answerIn(chosen: StreamMode & { kind: 'answer' }): void {
    mode = chosen.requestBodyMode;
    ({ responseStyle, responseBody } = chosen);
    if (options.responseTrailers === 'ask') askForTrailers = chosen.askForTrailers;
    request = createRequestSide(
      {
        mode: chosen.requestBodyMode,
        modeSource: chosen.source,
        bodyMaxBytes: options.bodyMaxBytes,
        destinationHeader: options.destinationHeader,
        targetPodHeader: options.targetPodHeader,
      },
      {
        send: sendAnswer,
        ready,
        tooLarge: () => refuse(bodyTooLarge(options.bodyMaxBytes)),
        holdBody: () => output.holdBody(() => refuse(tooManyBodies())),
        stuck: (headers) => refuse(headersTooLarge(headers, ENVOY_LIMITS)),
        illegal,
      },
    );
  }

  function requestHeaders(incoming: HeadersMessage): void {
    const { headers } = incoming;
    if (mode === 'observability') {
      requestId = headers.get('x-request-id') ?? null;
      if (requestId !== null) observer ??= output.observe(requestId);
    } else if (headers.count > options.maxHeaders || headers.bytes > options.maxHeaderBytes) {
      refuse(headersTooLarge(headers, options));
    } else {
      request?.headers(incoming);
    }
  }

  function responseSide(): ResponseSide {
    response ??= createResponseSide(
      { style: responseStyle, body: responseBody, createUsageReader },
      { send: output.send, firstByte, complete: responseComplete, illegal },
    );
    return response;
  }

  /** The first answer of a stream is to its headers, the only one that may carry an override. */
  function sendAnswer(answer: ProcessingResponse): void {
    const asking = askForTrailers;
    askForTrailers = null;
    output.send(asking !== null && answersRequestHeaders(answer) ? asking(answer) : answer);
  }

  function ready(pickRequest: PickRequest): void {
    if (faulted === null) question.ask(pickRequest);
    else pass(faulted);
  }

  function routed(destination: string, first: string, decision: Routed): void {
    reservation = decision.reservation;
    // Envoy has nothing more to send before its answer only when the client is gone. Others may wait for it all the same.
    outcome = halfClosed === null ? 'routed' : 'cancelled';
    model = decision.model ?? null;
    endpoint = first;
    named = decision.endpoints;
    request?.answer({ kind: 'routed', destination, first, dataParallelRank: decision.dataParallelRank ?? null });
    answered();
  }

  function pass(why: FaultReason): void {
    outcome = 'passthrough';
    reason = why;
    request?.answer({ kind: 'pass' });
    answered();
  }

  function answered(): void {
    phase = 'answered';
    answeredAtMs = clock.nowMs();
    if (halfClosed !== null) endCleanly('half_close');
    else if (draining) drain();
  }

  function failed(why: FaultReason): void {
    if (options.failureMode === 'open') pass(why);
    else refuse(unavailable(why));
  }

  /** Answers already given stay given: a fault afterwards costs nobody anything but what it was about. */
  function fault(): void {
    if (phase === 'answered' || phase === 'finished' || mode === 'observability') return;
    if (question.state() === 'asked') return question.fail('internal_fault');
    if (request === null) return fail('INTERNAL', 'the first message could not be handled', 'internal_fault');
    if (options.failureMode === 'closed') return refuse(unavailable('internal_fault'));
    faulted = 'internal_fault';
  }

  function refuse(error: PickError): void {
    if (phase === 'finished') return;
    outcome = refusalOutcome(error);
    reason = error.reason;
    model = error.model ?? null;
    output.send(immediateResponse(error));
    endCleanly('refused');
  }

  function illegal(what: string): void {
    fail('FAILED_PRECONDITION', what, 'illegal_message_order');
  }

  /** Once answered, a clean end lets Envoy go on by itself; before, it would route past the picker. */
  function tooManyMessages(): void {
    if (phase === 'answered') endCleanly('failed');
    else
      fail('RESOURCE_EXHAUSTED', `too many messages on one stream: limit ${options.maxMessages}`, 'too_many_messages');
  }

  function firstByte(): void {
    observer?.firstByte();
    if (!byFallback()) reservation?.firstByte();
  }

  /** Envoy says so: the choice did not take the request, has nothing of it and shows nothing by it. */
  function byFallback(): boolean {
    return served !== null && served !== endpoint && named.includes(served);
  }

  function responseComplete(seen: Usage | null, end: ResponseEnd): void {
    usage = seen;
    observer?.complete(seen, end);
    release(byFallback() ? 'failed' : end);
    if (draining) drain();
  }

  function release(how: 'completed' | 'cancelled' | 'failed'): void {
    const held = reservation;
    if (held === null) return;
    reservation = null;
    if (usage !== null && !byFallback()) held.observe(usage);
    held.release(how);
  }

  function handOver(): void {
    const held = reservation!;
    reservation = null;
    output.unseen(held);
  }

  function onHalfClose(): void {
    if (phase === 'finished') return;
    if (question.state() !== 'asked') return endCleanly('half_close');
    // A half-close is no reset: what was asked for is still answered, if soon.
    halfClosed = clock.after(HALF_CLOSE_GRACE_MS, () => endCleanly('half_close'));
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
    draining = true;
    // In FULL_DUPLEX_STREAMED a piece of the answer may be on its way to us, and only we can give it back.
    const echoing = responseStyle === 'echo' && response?.state() !== 'over';
    if (mode === 'observability' || (phase === 'answered' && !echoing)) endCleanly('shutdown');
  }

  function expire(): void {
    if (phase === 'answered' || mode === 'observability') endCleanly('shutdown');
    else fail('UNAVAILABLE', 'shutting down', 'shutdown');
  }

  function finish(ending: ExchangeEnding): void {
    phase = 'finished';
    halfClosed?.cancel();
    const endedAtMs = clock.nowMs();
    const seen = response?.state() ?? 'none';
    if (usage === null) usage = response?.usageSoFar() ?? null;
    // Ended by us, it goes on without us.
    const brokeOff = seen === 'open' && (ending === 'half_close' || ending === 'reset');
    if (brokeOff && outcome === 'routed') outcome = 'cancelled';
    // Where its end is not shown, the end of the stream is the end of the request.
    const failed = ending === 'failed' || response?.end() === 'failed' || byFallback();
    const how = outcome === 'cancelled' ? 'cancelled' : failed ? 'failed' : 'completed';
    const unseen = reservation !== null && how === 'completed' && seen !== 'open' && options.completion === 'estimate';
    const result: ExchangeResult = {
      outcome,
      reason,
      ending,
      mode,
      model,
      endpoint,
      served,
      usage,
      completion: seen === 'over' ? 'response' : unseen ? 'estimate' : 'stream',
      requestBodyBytes: request?.bodyBytes() ?? 0,
      decisionMs: question.decisionMs(),
      heldMs: answeredAtMs === null ? null : endedAtMs - answeredAtMs,
      requestId,
    };
    request?.dispose();
    try {
      if (unseen) handOver();
      else release(how);
      observer?.gone(brokeOff ? 'cut' : undefined);
      question.cancel();
    } finally {
      // Whatever a reservation or a listener throws, the stream is accounted for.
      output.finished(result);
    }
  }

  return {
    message,
    halfClosed: onHalfClose,
    cancelled() {
      if (phase !== 'finished') finish('reset');
    },
    broken: fail,
    decided: question.decided,
    pickFailed: () => question.fail('picker_failed'),
    fault,
    drain() {
      if (phase !== 'finished') drain();
    },
    expire() {
      if (phase !== 'finished') expire();
    },
  };
}
