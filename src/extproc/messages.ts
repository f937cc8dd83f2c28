/**
 * What Envoy says and is told, by meaning: the types between the bytes of the wire (message-reader.ts, answers.ts) and the
 * state machine (exchange.ts).
 */
import type { Subset } from './picker.ts';

/** Body modes as Envoy names them. */
export type BodySendMode = 'NONE' | 'STREAMED' | 'BUFFERED' | 'BUFFERED_PARTIAL' | 'FULL_DUPLEX_STREAMED' | 'GRPC';

/** Names by their number on the wire. */
export const BODY_SEND_MODES: readonly BodySendMode[] = [
  'NONE',
  'STREAMED',
  'BUFFERED',
  'BUFFERED_PARTIAL',
  'FULL_DUPLEX_STREAMED',
  'GRPC',
];

export type ProtocolConfig = {
  /** A name Envoy may add later arrives as its number. */
  readonly requestBodyMode: BodySendMode | number;
  readonly responseBodyMode: BodySendMode | number;
  readonly sendBodyWithoutWaiting: boolean;
};

/** Headers of one message, read lazily: most are never looked at. */
export type HeaderMap = {
  /** First value by lower-case name. */
  get(name: string): string | undefined;
  readonly count: number;
  /** Names and values together. */
  readonly bytes: number;
};

export const NO_HEADERS: HeaderMap = { get: () => undefined, count: 0, bytes: 0 };

export type MessageKind =
  'request_headers' | 'request_body' | 'request_trailers' | 'response_headers' | 'response_body' | 'response_trailers';

type Envelope = {
  readonly observabilityMode: boolean;
  /** Only in the first message of a stream. */
  readonly protocolConfig: ProtocolConfig | null;
  /** Null when this message carries no hint. */
  readonly subset: Subset | null;
  /** Endpoint that answered, as the data plane reports it in the response phase. */
  readonly served: string | null;
};
export type HeadersMessage = Envelope & {
  readonly kind: 'request_headers' | 'response_headers';
  readonly headers: HeaderMap;
  readonly endOfStream: boolean;
};
export type BodyMessage = Envelope & {
  readonly kind: 'request_body' | 'response_body';
  readonly body: Buffer;
  readonly endOfStream: boolean;
};
export type TrailersMessage = Envelope & { readonly kind: 'request_trailers' | 'response_trailers' };
/** An empty oneof, or a member this version does not know. */
export type UnknownMessage = Envelope & { readonly kind: 'unknown' };
export type EnvoyMessage = HeadersMessage | BodyMessage | TrailersMessage | UnknownMessage;

/** An answer: the bytes of a ProcessingResponse. */
export type ProcessingResponse = Buffer;

/** What an answer does to the request's headers. */
export type HeaderChange = {
  readonly set: readonly (readonly [name: string, value: string])[];
  readonly remove: readonly string[];
};
