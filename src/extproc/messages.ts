/**
 * The only file with nested protobuf literals: ProcessingRequest → EnvoyMessage, and builders for every answer.
 * No decision is taken here, and no byte of a body is copied: bodies are views of the received message.
 *
 * Shapes are those of proto-loader with LOADER_OPTIONS: snake_case fields, but camelCase inside google.protobuf.Struct,
 * because that type comes from protobufjs itself.
 */
import { errorBody } from '../openai/error-body.ts';
import type { PickError, Subset } from './endpoint-picker.ts';
import {
  DESTINATION,
  LB_NAMESPACE,
  REASON_HEADER,
  reasonWord,
  SERVED,
  SUBSET,
  SUBSET_NAMESPACE,
  subsetOf,
} from './protocol.ts';

/** proto-loader options all shapes below rely on: absent means default, enums by name, bytes stay Buffers. */
export const LOADER_OPTIONS = {
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: false,
  oneofs: true,
  arrays: true,
} as const;

/** Body modes as Envoy names them. */
export type BodySendMode = 'NONE' | 'STREAMED' | 'BUFFERED' | 'BUFFERED_PARTIAL' | 'FULL_DUPLEX_STREAMED' | 'GRPC';

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
  readonly body: Uint8Array;
  readonly endOfStream: boolean;
};
export type TrailersMessage = Envelope & { readonly kind: 'request_trailers' | 'response_trailers' };
/** An empty oneof, or a member this version does not know. */
export type UnknownMessage = Envelope & { readonly kind: 'unknown' };
export type EnvoyMessage = HeadersMessage | BodyMessage | TrailersMessage | UnknownMessage;

/** An answer, ready to be encoded. */
export type ProcessingResponse = Readonly<Record<string, unknown>>;

/** What an answer does to the request's headers. */
export type HeaderChange = {
  readonly set: readonly (readonly [name: string, value: string])[];
  readonly remove: readonly string[];
};

type RawHeader = { key?: string; value?: string; raw_value?: Buffer };
type RawValue = { kind?: string; stringValue?: string; listValue?: { values?: RawValue[] } };
type RawStruct = { fields?: Record<string, RawValue> };
/** ProcessingRequest as proto-loader hands it over. */
export type RawProcessingRequest = {
  request?: string;
  request_headers?: RawHeaders | null;
  response_headers?: RawHeaders | null;
  request_body?: RawBody | null;
  response_body?: RawBody | null;
  metadata_context?: { filter_metadata?: Record<string, RawStruct> } | null;
  observability_mode?: boolean;
  protocol_config?: {
    request_body_mode?: BodySendMode | number;
    response_body_mode?: BodySendMode | number;
    send_body_without_waiting_for_header_response?: boolean;
  } | null;
};
type RawHeaders = { headers?: { headers?: RawHeader[] } | null; end_of_stream?: boolean };
type RawBody = { body?: Buffer; end_of_stream?: boolean };

const EMPTY = new Uint8Array(0);

export function readMessage(raw: RawProcessingRequest): EnvoyMessage {
  const metadata = raw.metadata_context?.filter_metadata;
  const config = raw.protocol_config;
  const envelope: Envelope = {
    observabilityMode: raw.observability_mode === true,
    protocolConfig: config
      ? {
          requestBodyMode: config.request_body_mode ?? 'NONE',
          responseBodyMode: config.response_body_mode ?? 'NONE',
          sendBodyWithoutWaiting: config.send_body_without_waiting_for_header_response === true,
        }
      : null,
    subset: metadata ? readSubset(metadata[SUBSET_NAMESPACE]?.fields?.[SUBSET]) : null,
    served: metadata ? (metadata[LB_NAMESPACE]?.fields?.[SERVED]?.stringValue ?? null) : null,
  };
  switch (raw.request) {
    case 'request_headers':
    case 'response_headers': {
      const message = raw[raw.request];
      return {
        ...envelope,
        kind: raw.request,
        headers: readHeaders(message?.headers?.headers ?? []),
        endOfStream: message?.end_of_stream === true,
      };
    }
    case 'request_body':
    case 'response_body': {
      const message = raw[raw.request];
      return {
        ...envelope,
        kind: raw.request,
        body: message?.body ?? EMPTY,
        endOfStream: message?.end_of_stream === true,
      };
    }
    case 'request_trailers':
    case 'response_trailers':
      return { ...envelope, kind: raw.request };
    default:
      return { ...envelope, kind: 'unknown' };
  }
}

/** Envoy fills `raw_value`, older data planes `value`; keys are lower case in Envoy but need not be elsewhere. */
function readHeaders(list: readonly RawHeader[]): HeaderMap {
  return {
    get(name) {
      for (const header of list) {
        const key = header.key;
        if (key === undefined || key.length !== name.length) continue;
        if (key !== name && key.toLowerCase() !== name) continue;
        return header.raw_value !== undefined && header.raw_value.length > 0
          ? header.raw_value.toString('utf8')
          : (header.value ?? '');
      }
      return undefined;
    },
    get count() {
      return list.length;
    },
    get bytes() {
      let total = 0;
      for (const { key, value, raw_value } of list) {
        total += (key?.length ?? 0) + Math.max(value?.length ?? 0, raw_value?.length ?? 0);
      }
      return total;
    },
  };
}

/** Members that are not strings name no endpoint: a hint made of them alone is a hint that nothing satisfies. */
function readSubset(value: RawValue | undefined): Subset | null {
  if (value === undefined || value.kind === 'nullValue') return null;
  const strings: string[] = [];
  if (typeof value.stringValue === 'string') strings.push(value.stringValue);
  for (const member of value.listValue?.values ?? []) {
    if (typeof member.stringValue === 'string') strings.push(member.stringValue);
  }
  return subsetOf(strings);
}

const NO_CHANGE: ProcessingResponse = {};

/** "Go on, nothing changes" for the given kind of message; optionally with header changes and metadata. */
export function continueResponse(
  kind: MessageKind,
  change: HeaderChange | null = null,
  destination: string | null = null,
): ProcessingResponse {
  const isTrailers = kind === 'request_trailers' || kind === 'response_trailers';
  const member = isTrailers ? NO_CHANGE : { response: change === null ? NO_CHANGE : commonResponse(change) };
  if (destination === null) return { [kind]: member };
  return { [kind]: member, dynamic_metadata: destinationMetadata(destination) };
}

function commonResponse(change: HeaderChange): ProcessingResponse {
  return { header_mutation: headerMutation(change) };
}

/** Overwrites everywhere: `append` stays unset for Envoy, `append_action` says it for data planes that read that. */
function headerMutation(change: HeaderChange): ProcessingResponse {
  return {
    set_headers: change.set.map(([key, value]) => ({
      header: { key, raw_value: Buffer.from(value, 'utf8') },
      append_action: 'OVERWRITE_IF_EXISTS_OR_ADD',
    })),
    remove_headers: change.remove,
  };
}

// Picker protocol 004: header and metadata carry the same string.
function destinationMetadata(destination: string): ProcessingResponse {
  return {
    fields: {
      [LB_NAMESPACE]: { structValue: { fields: { [DESTINATION]: { stringValue: destination } } } },
    },
  };
}

/** One piece of an echoed body, the only legal body answer in FULL_DUPLEX_STREAMED. */
export function echoResponse(
  kind: 'request_body' | 'response_body',
  body: Uint8Array,
  endOfStream: boolean,
  destination: string | null = null,
): ProcessingResponse {
  const member = {
    response: { body_mutation: { streamed_response: { body, end_of_stream: endOfStream } } },
  };
  if (destination === null) return { [kind]: member };
  return { [kind]: member, dynamic_metadata: destinationMetadata(destination) };
}

/**
 * Adds a wish to be told of response trailers: Envoy then keeps the side stream open until the HTTP request is over.
 * Body modes in an override are always explicit, so the announced ones are repeated.
 */
export function withTrailersWanted(
  response: ProcessingResponse,
  requestBodyMode: BodySendMode,
  responseBodyMode: BodySendMode,
): ProcessingResponse {
  return {
    ...response,
    mode_override: {
      request_body_mode: requestBodyMode,
      response_body_mode: responseBodyMode,
      response_trailer_mode: 'SEND',
    },
  };
}

/** A refusal as the client sees it; nothing may be sent on the stream after it. */
export function immediateResponse(error: PickError): ProcessingResponse {
  const reason = reasonWord(error.reason);
  const set: [string, string][] = [
    ['content-type', 'application/json'],
    [REASON_HEADER, reason],
  ];
  if (error.retryAfterSeconds !== null) {
    set.push(['retry-after', String(Math.max(0, Math.ceil(error.retryAfterSeconds)))]);
  }
  return {
    immediate_response: {
      status: { code: error.status },
      headers: headerMutation({ set, remove: [] }),
      body: errorBody(error),
      details: `warmpath_${reason}`,
    },
  };
}
