/**
 * Every answer as the bytes of a ProcessingResponse: the only file that knows how answers are nested. The schema is in
 * proto/; the tests decode everything written here with a general decoder of it.
 */
import { errorBody } from '../openai/error-body.ts';
import type { PickError } from './picker.ts';
import {
  BODY_SEND_MODES,
  type BodySendMode,
  type HeaderChange,
  type MessageKind,
  type ProcessingResponse,
} from './messages.ts';
import { lengthTag, ProtobufWriter } from './protobuf.ts';
import { DESTINATION, LB_NAMESPACE, REASON_HEADER, reasonWord } from './protocol.ts';

/** Members of the oneof in ProcessingResponse. */
const ANSWER_FIELDS: Readonly<Record<MessageKind, number>> = {
  request_headers: 1,
  response_headers: 2,
  request_body: 3,
  response_body: 4,
  request_trailers: 5,
  response_trailers: 6,
};

/** Headers- and BodyResponse with an empty CommonResponse, TrailersResponse without anything. */
function plainAnswer(kind: MessageKind): ProcessingResponse {
  const writer = new ProtobufWriter(8);
  const isTrailers = kind === 'request_trailers' || kind === 'response_trailers';
  if (!isTrailers) writer.close(1, writer.mark());
  writer.close(ANSWER_FIELDS[kind], 0);
  return writer.finish();
}

/** Most answers: never written again. */
const PLAIN_ANSWERS: Readonly<Record<MessageKind, ProcessingResponse>> = {
  request_headers: plainAnswer('request_headers'),
  response_headers: plainAnswer('response_headers'),
  request_body: plainAnswer('request_body'),
  response_body: plainAnswer('response_body'),
  request_trailers: plainAnswer('request_trailers'),
  response_trailers: plainAnswer('response_trailers'),
};

/** Room for the choice of an endpoint with two fallbacks. */
const ANSWER_BYTES = 320;
const ECHO_MARGIN_BYTES = 64;

/** "Go on, nothing changes" for the given kind of message; optionally with header changes and metadata. */
export function continueResponse(
  kind: MessageKind,
  change: HeaderChange | null = null,
  destination: string | null = null,
): ProcessingResponse {
  if (change === null && destination === null) return PLAIN_ANSWERS[kind];
  const writer = new ProtobufWriter(ANSWER_BYTES);
  if (destination !== null) writeDestinationMetadata(writer, destination);
  const answer = writer.mark();
  if (kind !== 'request_trailers' && kind !== 'response_trailers') {
    const common = writer.mark();
    if (change !== null) writeHeaderMutation(writer, 2, change);
    writer.close(1, common);
  }
  writer.close(ANSWER_FIELDS[kind], answer);
  return writer.finish();
}

/** Overwrites everywhere: `append` stays unset for Envoy, `append_action` says it for data planes that read that. */
function writeHeaderMutation(writer: ProtobufWriter, field: number, { set, remove }: HeaderChange): void {
  const mutation = writer.mark();
  for (let i = remove.length - 1; i >= 0; i--) writer.string(2, remove[i]!);
  for (let i = set.length - 1; i >= 0; i--) {
    const [name, value] = set[i]!;
    const option = writer.mark();
    writer.varint(3, OVERWRITE_IF_EXISTS_OR_ADD);
    const header = writer.mark();
    writer.string(3, value);
    writer.string(1, name);
    writer.close(1, header);
    writer.close(1, option);
  }
  writer.close(field, mutation);
}

const OVERWRITE_IF_EXISTS_OR_ADD = 2;

/** dynamic_metadata: a Struct of a Struct of a string. Picker protocol 004: header and metadata carry the same string. */
function writeDestinationMetadata(writer: ProtobufWriter, destination: string): void {
  const metadata = writer.mark();
  writer.string(3, destination);
  writeStructEntry(writer, DESTINATION, metadata);
  writer.close(5, metadata);
  writeStructEntry(writer, LB_NAMESPACE, metadata);
  writer.close(8, metadata);
}

/** Makes an entry of a Struct's map: the value is what was written since the mark. */
function writeStructEntry(writer: ProtobufWriter, key: string, mark: number): void {
  writer.close(2, mark);
  writer.string(1, key);
  writer.close(1, mark);
}

/** One piece of an echoed body, the only legal body answer in FULL_DUPLEX_STREAMED. */
export function echoResponse(
  kind: 'request_body' | 'response_body',
  body: Uint8Array,
  endOfStream: boolean,
  destination: string | null = null,
): ProcessingResponse {
  const writer = new ProtobufWriter(body.length + ECHO_MARGIN_BYTES);
  if (destination !== null) writeDestinationMetadata(writer, destination);
  const answer = writer.mark();
  if (endOfStream) writer.varint(2, 1);
  writer.bytes(1, body);
  // StreamedBodyResponse in BodyMutation in CommonResponse in BodyResponse.
  writer.close(3, answer);
  writer.close(3, answer);
  writer.close(1, answer);
  writer.close(ANSWER_FIELDS[kind], answer);
  return writer.finish();
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
  const writer = new ProtobufWriter(16);
  writer.varint(6, SEND);
  writer.varint(4, BODY_SEND_MODES.indexOf(responseBodyMode));
  writer.varint(3, BODY_SEND_MODES.indexOf(requestBodyMode));
  writer.close(9, 0);
  // Messages one after the other are one message with the fields of both.
  return Buffer.concat([response, writer.finish()]);
}

const SEND = 1;

/** Whether an answer is to the request headers. */
export function answersRequestHeaders(response: ProcessingResponse): boolean {
  return response[0] === lengthTag(ANSWER_FIELDS.request_headers);
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
  const body = errorBody(error);
  const writer = new ProtobufWriter(body.length + ANSWER_BYTES);
  writer.string(5, `warmpath_${reason}`);
  writer.bytes(3, body);
  writeHeaderMutation(writer, 2, { set, remove: [] });
  const status = writer.mark();
  writer.varint(1, error.status);
  writer.close(1, status);
  writer.close(7, 0);
  return writer.finish();
}
