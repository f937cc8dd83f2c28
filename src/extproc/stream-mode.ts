/** What the first message of a stream says about how Envoy's filter is configured. */
import { withTrailersWanted } from './answers.ts';
import type { BodySendMode, EnvoyMessage, ProcessingResponse, ProtocolConfig } from './messages.ts';
import type { RequestBodyMode } from './request-side.ts';

export type StreamMode =
  /** A filter in observability mode: nothing is ever answered. */
  | { readonly kind: 'observe' }
  | {
      readonly kind: 'answer';
      readonly requestBodyMode: RequestBodyMode;
      /** Old Envoys announce nothing; then the mode is the configured one. */
      readonly source: 'announced' | 'assumed';
      readonly responseStyle: 'echo' | 'acknowledge';
      /** Whether a body follows response headers here; unknown counts as no, since nothing may be made of its absence. */
      readonly responseBody: 'shown' | 'not_shown';
      /** Adds the wish for response trailers to the answer to the headers; null where Envoy would not take it. */
      readonly askForTrailers: ((answer: ProcessingResponse) => ProcessingResponse) | null;
    }
  /** GRPC bodies, and modes this version does not know. */
  | { readonly kind: 'refuse'; readonly details: string };

export function streamMode(first: EnvoyMessage, assumed: RequestBodyMode): StreamMode {
  if (first.observabilityMode) return { kind: 'observe' };
  const announced = first.protocolConfig;
  if (announced === null) {
    return {
      kind: 'answer',
      requestBodyMode: assumed,
      source: 'assumed',
      responseStyle: 'acknowledge',
      responseBody: 'not_shown',
      askForTrailers: null,
    };
  }
  const requestBodyMode = requestBodyModeOf(announced);
  if (requestBodyMode === null) {
    return { kind: 'refuse', details: `request body mode not supported: ${announced.requestBodyMode}` };
  }
  return {
    kind: 'answer',
    requestBodyMode,
    source: 'announced',
    responseStyle: announced.responseBodyMode === 'FULL_DUPLEX_STREAMED' ? 'echo' : 'acknowledge',
    responseBody: announced.responseBodyMode === 'NONE' ? 'not_shown' : 'shown',
    askForTrailers: askForTrailers(requestBodyMode, announced.responseBodyMode),
  };
}

function requestBodyModeOf(announced: ProtocolConfig): RequestBodyMode | null {
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

/** Envoy takes no override where a body is FULL_DUPLEX_STREAMED or sent without waiting. */
function askForTrailers(
  requestMode: RequestBodyMode,
  responseMode: BodySendMode | number,
): ((answer: ProcessingResponse) => ProcessingResponse) | null {
  if (requestMode === 'FULL_DUPLEX_STREAMED' || requestMode === 'STREAMED_WITHOUT_WAITING') return null;
  if (typeof responseMode === 'number' || responseMode === 'FULL_DUPLEX_STREAMED') return null;
  // Whoever lets us choose does not want a token to wait for the last one: AI gateways announce BUFFERED for both
  // directions where a request's body is wanted. Usage is read from the pieces all the same.
  const collected = responseMode === 'BUFFERED' || responseMode === 'BUFFERED_PARTIAL';
  return (answer) => withTrailersWanted(answer, requestMode, collected ? 'STREAMED' : responseMode);
}
