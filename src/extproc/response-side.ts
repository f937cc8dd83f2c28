/**
 * Response direction of one HTTP request: everything shown is answered at once, so that no answer of an engine ever waits
 * here. Reads usage on the way; alters nothing. Deliberately not here: what a response means for reservations.
 */
import type { Usage, UsageReader } from '../openai/usage.ts';
import { continueResponse, echoResponse } from './answers.ts';
import type { BodyMessage, HeadersMessage, ProcessingResponse } from './messages.ts';
import { ECHO_CHUNK_BYTES } from './protocol.ts';

export type CreateUsageReader = (contentType: string | undefined) => UsageReader;

export type ResponseSideOptions = {
  /** `echo` in FULL_DUPLEX_STREAMED, `acknowledge` in every mode with one answer per message, `observe`: no answers at all. */
  readonly style: 'echo' | 'acknowledge' | 'observe';
  /** Whether a body is to follow headers that do not end the response. */
  readonly body: 'shown' | 'not_shown';
  readonly createUsageReader: CreateUsageReader;
};

/** `failed`: another status than 2xx. Nothing was computed, and how fast that came says nothing of the engine. */
export type ResponseEnd = 'completed' | 'failed';

export type ResponseSideOutput = {
  send(response: ProcessingResponse): void;
  /** The first byte of a body, or the end of a response without one; of a refusal none. */
  firstByte(): void;
  /** The response is over; usage where its body was visible and told. Called at most once. */
  complete(usage: Usage | null, end: ResponseEnd): void;
  illegal(what: string): void;
};

export type ResponseSide = {
  headers(message: HeadersMessage): void;
  body(message: BodyMessage): void;
  trailers(): void;
  /** What the part seen so far says, for a response that was cut. */
  usageSoFar(): Usage | null;
  state(): ResponseState;
  /** What its status says; nothing of whether it came to its end. */
  end(): ResponseEnd;
};

/** `unseen`: it began and its end will not be shown. `open`: its end is still to come. */
export type ResponseState = 'none' | 'unseen' | 'open' | 'over';

export function createResponseSide(options: ResponseSideOptions, output: ResponseSideOutput): ResponseSide {
  let state: ResponseState = 'none';
  let headersSeen = false;
  let byteSeen = false;
  let end: ResponseEnd = 'completed';
  let reader: UsageReader | null = null;

  const send = (response: ProcessingResponse): void => {
    if (options.style !== 'observe') output.send(response);
  };

  function onHeaders(message: HeadersMessage): void {
    if (headersSeen || state !== 'none') return output.illegal('response headers after the response began');
    headersSeen = true;
    state = options.body === 'shown' ? 'open' : 'unseen';
    send(continueResponse('response_headers'));
    const status = message.headers.get(':status');
    if (status !== undefined && !status.startsWith('2')) end = 'failed';
    if (message.endOfStream) return over();
    const encoding = message.headers.get('content-encoding');
    // A refusal or a compressed answer tells nothing that could be read here.
    if (status === '200' && (encoding === undefined || encoding === 'identity')) {
      reader = options.createUsageReader(message.headers.get('content-type'));
    }
  }

  function onBody(message: BodyMessage): void {
    if (state === 'over') {
      // As for requests: Envoy may repeat the end of a large body in this mode.
      return options.style === 'echo' ? undefined : output.illegal('a response body message after its end');
    }
    state = 'open';
    if (options.style === 'echo') echo(message);
    else send(continueResponse('response_body'));
    if (message.body.length > 0) {
      sawByte();
      reader?.push(message.body);
    }
    if (message.endOfStream) over();
  }

  function echo({ body, endOfStream }: BodyMessage): void {
    for (let start = 0; start === 0 || start < body.length; start += ECHO_CHUNK_BYTES) {
      const end = Math.min(body.length, start + ECHO_CHUNK_BYTES);
      send(echoResponse('response_body', body.subarray(start, end), endOfStream && end === body.length));
    }
  }

  function onTrailers(): void {
    if (state === 'over') return output.illegal('response trailers after the end of the response');
    send(continueResponse('response_trailers'));
    over();
  }

  function sawByte(): void {
    if (byteSeen || end === 'failed') return;
    byteSeen = true;
    output.firstByte();
  }

  function over(): void {
    state = 'over';
    sawByte();
    output.complete(usageSoFar(), end);
    reader = null;
  }

  function usageSoFar(): Usage | null {
    return reader?.result() ?? null;
  }

  return {
    headers: onHeaders,
    body: onBody,
    trailers: onTrailers,
    usageSoFar,
    state: () => state,
    end: () => end,
  };
}
