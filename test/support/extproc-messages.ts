/** Builders for what Envoy sends, and a reader for what it gets: every message crosses real protobuf bytes both ways. */
import type { BodySendMode, EnvoyMessage } from '../../src/extproc/messages.ts';
import { loadServices } from '../../src/extproc/services.ts';

export type WireRequest = Record<string, unknown>;

/** An answer by meaning. */
export type Answer = {
  readonly kind: string;
  /** Whether there is a header mutation, be it an empty one. */
  readonly changesHeaders: boolean;
  readonly set: Readonly<Record<string, string>>;
  readonly remove: readonly string[];
  /** `envoy.lb` / `x-gateway-destination-endpoint` of the dynamic metadata. */
  readonly metadata: string | null;
  readonly echo: { readonly body: Buffer; readonly endOfStream: boolean } | null;
  readonly immediate: {
    readonly status: string | number;
    readonly body: { error: { message: string; type: string; code: string | null; param: string | null } };
    readonly details: string;
  } | null;
  readonly modeOverride: Readonly<Record<string, string>> | null;
};

type RawMutation = { set_headers?: { header: { key: string; raw_value?: Buffer } }[]; remove_headers?: string[] };
type RawAnswer = {
  response?: string;
  dynamic_metadata?: { fields: Record<string, { structValue: { fields: Record<string, { stringValue: string }> } }> };
  mode_override?: Record<string, string>;
  immediate_response?: { status: { code: string }; headers: RawMutation; body: Buffer; details: string };
} & Record<string, { response?: { header_mutation?: RawMutation; body_mutation?: RawBodyMutation } } | undefined>;
type RawBodyMutation = { streamed_response?: { body?: Buffer; end_of_stream?: boolean } };

const process = loadServices().externalProcessor['Process']!;

export const encodeRequest = (message: WireRequest): Buffer => process.requestSerialize(message) as Buffer;

export type SchemaHeader = { key?: string; value?: string; raw_value?: Buffer };
type SchemaValue = { kind?: string; stringValue?: string; listValue?: { values?: SchemaValue[] } };
type SchemaHeaders = { headers?: { headers?: SchemaHeader[] }; end_of_stream?: boolean };
type SchemaBody = { body?: Buffer; end_of_stream?: boolean };
/** A ProcessingRequest as a general decoder of the schema in proto/ sees it. */
export type SchemaRequest = {
  request?: EnvoyMessage['kind'];
  request_headers?: SchemaHeaders;
  response_headers?: SchemaHeaders;
  request_body?: SchemaBody;
  response_body?: SchemaBody;
  metadata_context?: { filter_metadata?: Record<string, { fields?: Record<string, SchemaValue> }> };
  observability_mode?: boolean;
  protocol_config?: {
    request_body_mode?: string | number;
    response_body_mode?: string | number;
    send_body_without_waiting_for_header_response?: boolean;
  };
};

export const readWithSchema = (bytes: Buffer): SchemaRequest => process.requestDeserialize(bytes) as SchemaRequest;

export function decodeAnswer(bytes: Buffer): Answer {
  return answerOf(process.responseDeserialize(bytes) as object);
}

/** @param decoded what proto-loader made of a ProcessingResponse */
export function answerOf(decoded: object): Answer {
  const raw = decoded as unknown as RawAnswer;
  const kind = raw.response ?? 'none';
  const immediate = raw.immediate_response;
  const common = kind === 'none' || immediate ? undefined : raw[kind]?.response;
  const mutation = immediate?.headers ?? common?.header_mutation;
  const streamed = common?.body_mutation?.streamed_response;
  return {
    kind,
    changesHeaders: mutation !== undefined,
    set: Object.fromEntries(
      (mutation?.set_headers ?? []).map(({ header }) => [header.key, header.raw_value?.toString('utf8') ?? '']),
    ),
    remove: mutation?.remove_headers ?? [],
    metadata:
      raw.dynamic_metadata?.fields['envoy.lb']?.structValue.fields['x-gateway-destination-endpoint']?.stringValue ??
      null,
    echo: streamed ? { body: streamed.body ?? Buffer.alloc(0), endOfStream: streamed.end_of_stream === true } : null,
    immediate: immediate
      ? {
          status: immediate.status.code,
          body: JSON.parse(immediate.body.toString('utf8')),
          details: immediate.details,
        }
      : null,
    modeOverride: raw.mode_override ?? null,
  };
}

export const DEFAULT_HEADERS: Readonly<Record<string, string>> = {
  ':authority': 'llm.test',
  ':path': '/v1/chat/completions',
  ':method': 'POST',
  ':scheme': 'http',
  'content-type': 'application/json',
  'x-request-id': 't',
};

/** What the first message of a stream says about the filter's configuration. */
export function announced(mode: BodySendMode, more: { responseBody?: BodySendMode; withoutWaiting?: true } = {}) {
  return {
    protocol_config: {
      request_body_mode: mode,
      response_body_mode: more.responseBody ?? 'NONE',
      send_body_without_waiting_for_header_response: more.withoutWaiting === true,
    },
  };
}

export type HeadersSpec = { headers?: Readonly<Record<string, string>>; endOfStream?: boolean };

export function requestHeaders({ headers = {}, endOfStream = false }: HeadersSpec = {}): WireRequest {
  return { request_headers: headersMember({ ...DEFAULT_HEADERS, ...headers }, endOfStream), metadata_context: {} };
}

export function responseHeaders({ headers = {}, endOfStream = false }: HeadersSpec = {}): WireRequest {
  return {
    response_headers: headersMember({ ':status': '200', 'content-type': 'application/json', ...headers }, endOfStream),
    metadata_context: {},
  };
}

function headersMember(headers: Readonly<Record<string, string>>, endOfStream: boolean): object {
  return {
    headers: { headers: Object.entries(headers).map(([key, value]) => ({ key, raw_value: Buffer.from(value) })) },
    end_of_stream: endOfStream,
  };
}

export const requestBody = (body: string | Buffer, end: 'eos' | 'more' = 'eos'): WireRequest => ({
  request_body: { body: Buffer.from(body), end_of_stream: end === 'eos' },
  metadata_context: {},
});
export const responseBody = (body: string | Buffer, end: 'eos' | 'more' = 'eos'): WireRequest => ({
  response_body: { body: Buffer.from(body), end_of_stream: end === 'eos' },
  metadata_context: {},
});
export const requestTrailers = (): WireRequest => ({ request_trailers: {}, metadata_context: {} });
export const responseTrailers = (): WireRequest => ({ response_trailers: {}, metadata_context: {} });

/** Metadata with a candidate hint: a list, or one comma-separated string. */
export function hint(value: readonly unknown[] | string): WireRequest {
  const field =
    typeof value === 'string'
      ? { stringValue: value }
      : {
          listValue: {
            values: value.map((v) => (typeof v === 'string' ? { stringValue: v } : { numberValue: Number(v) })),
          },
        };
  return metadata('envoy.lb.subset_hint', 'x-gateway-destination-endpoint-subset', field);
}

export function servedBy(endpoint: string): WireRequest {
  return metadata('envoy.lb', 'x-gateway-destination-endpoint-served', { stringValue: endpoint });
}

function metadata(namespace: string, key: string, value: object): WireRequest {
  return { metadata_context: { filter_metadata: { [namespace]: { fields: { [key]: value } } } } };
}
