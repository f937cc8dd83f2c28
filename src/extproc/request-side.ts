/**
 * Request direction of one HTTP request: what Envoy shows of it, when the picker may be asked, and which message carries
 * the answer. Deliberately not here: the picker, timers, limits on anything but the body, the end of the stream.
 *
 * The rule of Envoy behind every branch: outside FULL_DUPLEX_STREAMED each message gets exactly one answer of its kind, in
 * order; in it the headers are answered first, and only once the body is whole, because Envoy picks the host right then.
 */
import { continueResponse, echoResponse } from './answers.ts';
import type { BodyShare } from './body-budget.ts';
import type { PickRequest, Subset } from './picker.ts';
import {
  NO_HEADERS,
  type BodyMessage,
  type HeaderMap,
  type HeadersMessage,
  type MessageKind,
  type ProcessingResponse,
} from './messages.ts';
import { Pieces } from './pieces.ts';
import { ECHO_CHUNK_BYTES } from './protocol.ts';
import { createSteering, type Choice, type SteeringOptions } from './steering.ts';

/** Body mode of one stream. STREAMED splits: with `send_body_without_waiting…` the headers answer may wait for the body. */
export type RequestBodyMode =
  'NONE' | 'BUFFERED' | 'BUFFERED_PARTIAL' | 'STREAMED' | 'STREAMED_WITHOUT_WAITING' | 'FULL_DUPLEX_STREAMED';

export type RequestSideOptions = SteeringOptions & {
  readonly mode: RequestBodyMode;
  /** `announced` by Envoy, or `assumed` because an old Envoy says nothing: then odd messages are answered, not refused. */
  readonly modeSource: 'announced' | 'assumed';
  readonly bodyMaxBytes: number;
};

export type RequestSideOutput = {
  send(response: ProcessingResponse): void;
  /** The request is as complete as this mode will show it. Called at most once. */
  ready(request: PickRequest): void;
  tooLarge(): void;
  /** Headers that steer, and that Envoy does not let us take away. */
  stuck(headers: HeaderMap): void;
  /** A body begins to be held. Adding to its share may end this request. */
  holdBody(): BodyShare;
  illegal(what: string): void;
};

export type RequestSide = {
  headers(message: HeadersMessage): void;
  body(message: BodyMessage): void;
  trailers(): void;
  /** The candidate hint of the latest message that had one. */
  hint(subset: Subset): void;
  /** Sends everything that waited for the choice. */
  answer(choice: Choice): void;
  /** Drops collected bytes; nothing is sent any more. */
  dispose(): void;
  bodyBytes(): number;
};

/** `waiting` for more of the request, `ready` for the choice, `answered`. */
type State = 'waiting' | 'ready' | 'answered';

const EMPTY_BODY = new Uint8Array(0);

export function createRequestSide(options: RequestSideOptions, output: RequestSideOutput): RequestSide {
  const { mode } = options;
  const steering = createSteering(options);
  const collects = mode === 'FULL_DUPLEX_STREAMED' || mode === 'STREAMED_WITHOUT_WAITING';
  const buffers = mode === 'BUFFERED' || mode === 'BUFFERED_PARTIAL';
  let state: State = 'waiting';
  /** Kind of message that will carry the choice. */
  let carrier: MessageKind = 'request_headers';
  /** Null before they came and after the answer: a stream may live for minutes and must not pin its first message. */
  let headers: HeaderMap | null = null;
  let headersCame = false;
  let subset: Subset = { kind: 'all' };
  /** What has been collected so far, null where a body comes in one message. */
  let pieces: Pieces | null = null;
  let whole: Uint8Array | null = null;
  let share: BodyShare | null = null;
  let nBodyBytes = 0;
  let nBodyMessages = 0;
  /** Body messages whose one-to-one answer waits for the choice. */
  let nUnansweredBodies = 0;
  let ended: 'no' | 'with_body' | 'with_trailers' = 'no';
  let trailersWait = false;

  function becomeReady(carriedBy: MessageKind, bodyTruncated: boolean): void {
    state = 'ready';
    carrier = carriedBy;
    whole ??= pieces?.take(nBodyBytes) ?? null;
    pieces = null;
    const seen = headers ?? NO_HEADERS;
    output.ready({
      method: seen.get(':method') ?? '',
      path: seen.get(':path') ?? '',
      header: (name) => seen.get(name),
      body: whole,
      bodyTruncated,
      subset,
    });
  }

  function onHeaders(message: HeadersMessage): void {
    if (headersCame || nBodyMessages > 0 || ended !== 'no') {
      return output.illegal('request headers after the request began');
    }
    headers = message.headers;
    headersCame = true;
    if (steering.isStuck(headers)) return output.stuck(headers);
    if (message.endOfStream) {
      ended = 'with_body';
      // An empty body is one that was shown, whatever the mode.
      whole = EMPTY_BODY;
      return becomeReady('request_headers', false);
    }
    if (mode === 'NONE' || mode === 'STREAMED') return becomeReady('request_headers', false);
    // A cut body is what BUFFERED_PARTIAL is for; elsewhere a declared size over the cap is refused before it is sent.
    if (mode !== 'BUFFERED_PARTIAL' && Number(headers.get('content-length') ?? 0) > options.bodyMaxBytes) {
      return output.tooLarge();
    }
    if (buffers) {
      // Should this process die before the body's answer, a fail-open Envoy goes on with these headers.
      output.send(continueResponse('request_headers', steering.removal(headers)));
    }
  }

  function onBody(message: BodyMessage): void {
    nBodyMessages += 1;
    if (collects) return collect(message);
    if (ended !== 'no' || (buffers && nBodyMessages > 1) || mode === 'NONE') {
      if (options.modeSource === 'announced') return output.illegal(`a request body message too many for ${mode}`);
      return answerOrQueueBody();
    }
    if (buffers) {
      ended = message.endOfStream ? 'with_body' : 'no';
      keepBuffered(message);
      return;
    }
    if (message.endOfStream) ended = 'with_body';
    nBodyBytes += message.body.length;
    if (state === 'waiting') return becomeReady('request_body', false);
    answerOrQueueBody();
  }

  /** The one body message of BUFFERED is complete whatever its end_of_stream says; in BUFFERED_PARTIAL it may be cut. */
  function keepBuffered(message: BodyMessage): void {
    let body = message.body;
    let truncated = mode === 'BUFFERED_PARTIAL' && !message.endOfStream;
    if (body.length > options.bodyMaxBytes) {
      if (!truncated) return output.tooLarge();
      body = body.subarray(0, options.bodyMaxBytes);
      truncated = true;
    }
    nBodyBytes = body.length;
    whole = body;
    if (!hold(body.length)) return;
    becomeReady('request_body', truncated);
  }

  function collect(message: BodyMessage): void {
    if (ended !== 'no') {
      // Envoy 1.35 to 1.37 may repeat the end of a large body here: everything after the first end is an echo of itself.
      if (mode !== 'FULL_DUPLEX_STREAMED') answerOrQueueBody();
      return;
    }
    nUnansweredBodies += 1;
    nBodyBytes += message.body.length;
    if (nBodyBytes > options.bodyMaxBytes) return output.tooLarge();
    (pieces ??= new Pieces()).add(message.body);
    if (!hold(message.body.length) || !message.endOfStream) return;
    ended = 'with_body';
    becomeReady(headersCame ? 'request_headers' : 'request_body', false);
  }

  /** @returns false when there is no room for it, and the request has been refused */
  function hold(nBytes: number): boolean {
    if (nBytes > 0) (share ??= output.holdBody()).add(nBytes);
    return state === 'waiting';
  }

  function onTrailers(): void {
    if (ended === 'with_trailers') return output.illegal('request trailers twice');
    ended = 'with_trailers';
    trailersWait = true;
    if (state === 'answered') return answerTrailers(null);
    if (state === 'ready') return;
    const headersWait = collects && headersCame;
    const bodyWaits = collects && nBodyBytes > 0;
    becomeReady(headersWait ? 'request_headers' : bodyWaits ? 'request_body' : 'request_trailers', false);
  }

  function answerOrQueueBody(): void {
    if (state === 'answered') output.send(continueResponse('request_body'));
    else nUnansweredBodies += 1;
  }

  function answerTrailers(destination: string | null): void {
    trailersWait = false;
    output.send(continueResponse('request_trailers', null, destination));
  }

  function answer(choice: Choice): void {
    if (state !== 'ready') return;
    state = 'answered';
    const destination = choice.kind === 'routed' ? choice.destination : null;
    const change = steering.change(headers, choice);
    headers = null;
    if (carrier === 'request_headers') output.send(continueResponse('request_headers', change, destination));
    if (mode === 'FULL_DUPLEX_STREAMED') {
      echo(carrier === 'request_body' ? destination : null);
    } else {
      if (carrier === 'request_body') {
        output.send(continueResponse('request_body', change, destination));
        if (collects) nUnansweredBodies -= 1;
      }
      for (; nUnansweredBodies > 0; nUnansweredBodies -= 1) output.send(continueResponse('request_body'));
    }
    whole = null;
    share?.end();
    if (trailersWait) answerTrailers(carrier === 'request_trailers' ? destination : null);
  }

  /** Gives back the body Envoy drained into us, in pieces; exactly one end of stream, none when trailers follow. */
  function echo(destination: string | null): void {
    if (nBodyMessages === 0) return;
    const body = whole ?? EMPTY_BODY;
    const last = ended === 'with_body';
    if (body.length === 0 && !last) return;
    let metadata = destination;
    for (let start = 0; start === 0 || start < body.length; start += ECHO_CHUNK_BYTES) {
      const end = Math.min(body.length, start + ECHO_CHUNK_BYTES);
      output.send(echoResponse('request_body', body.subarray(start, end), last && end === body.length, metadata));
      metadata = null;
    }
  }

  return {
    headers: onHeaders,
    body: onBody,
    trailers: onTrailers,
    hint(latest) {
      subset = latest;
    },
    answer,
    dispose() {
      pieces = null;
      whole = null;
      headers = null;
      share?.end();
      state = 'answered';
    },
    bodyBytes: () => nBodyBytes,
  };
}
