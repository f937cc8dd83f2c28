/**
 * The bytes of a ProcessingRequest → EnvoyMessage. No decision is taken here, and no byte of a body is copied.
 *
 * Written by hand because a general decoder is a good part of what a request costs: here fields nobody asks for are passed
 * over, and a header is looked at when somebody asks for it. The schema is in proto/, and
 * test/property/messages.test.ts holds this file against a general decoder of it.
 */
import type { Subset } from './picker.ts';
import { BODY_SEND_MODES, NO_HEADERS, type EnvoyMessage, type HeaderMap, type ProtocolConfig } from './messages.ts';
import { lengthTag, ProtobufReader, varintTag } from './protobuf.ts';
import { LB_NAMESPACE, SERVED, SUBSET, SUBSET_NAMESPACE, subsetOf } from './protocol.ts';

// ProcessingRequest: where what is in it is found.
const REQUEST_HEADERS = lengthTag(2);
const RESPONSE_HEADERS = lengthTag(3);
const REQUEST_BODY = lengthTag(4);
const RESPONSE_BODY = lengthTag(5);
const REQUEST_TRAILERS = lengthTag(6);
const RESPONSE_TRAILERS = lengthTag(7);
const METADATA_CONTEXT = lengthTag(8);
const OBSERVABILITY_MODE = varintTag(10);
const PROTOCOL_CONFIG = lengthTag(11);

const EMPTY = Buffer.alloc(0);

/** @throws Error when the bytes are no protobuf; the stream they came on ends with it */
export function readMessage(bytes: Buffer): EnvoyMessage {
  const reader = new ProtobufReader(bytes);
  let kind: EnvoyMessage['kind'] = 'unknown';
  let headers = NO_HEADERS;
  let body: Buffer = EMPTY;
  let endOfStream = false;
  let observabilityMode = false;
  let protocolConfig: ProtocolConfig | null = null;
  let subset: Subset | null = null;
  let served: string | null = null;
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    switch (tag) {
      case REQUEST_HEADERS:
      case RESPONSE_HEADERS: {
        kind = tag === REQUEST_HEADERS ? 'request_headers' : 'response_headers';
        const outer = reader.enter();
        ({ headers, endOfStream } = readHttpHeaders(reader));
        reader.leave(outer);
        break;
      }
      case REQUEST_BODY:
      case RESPONSE_BODY: {
        kind = tag === REQUEST_BODY ? 'request_body' : 'response_body';
        const outer = reader.enter();
        ({ body, endOfStream } = readHttpBody(reader));
        reader.leave(outer);
        break;
      }
      case REQUEST_TRAILERS:
      case RESPONSE_TRAILERS:
        kind = tag === REQUEST_TRAILERS ? 'request_trailers' : 'response_trailers';
        reader.skip(tag);
        break;
      case METADATA_CONTEXT: {
        const outer = reader.enter();
        ({ subset, served } = readMetadata(reader));
        reader.leave(outer);
        break;
      }
      case OBSERVABILITY_MODE:
        observabilityMode = reader.bool();
        break;
      case PROTOCOL_CONFIG: {
        const outer = reader.enter();
        protocolConfig = readProtocolConfig(reader);
        reader.leave(outer);
        break;
      }
      default:
        reader.skip(tag);
    }
  }
  // All kinds in one shape, whatever their type shows of it: code that takes any of them then meets a single one.
  const message = { kind, headers, body, endOfStream, observabilityMode, protocolConfig, subset, served };
  return message as EnvoyMessage;
}

/** HttpHeaders. */
function readHttpHeaders(reader: ProtobufReader): { headers: HeaderMap; endOfStream: boolean } {
  let headers = NO_HEADERS;
  let endOfStream = false;
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag === lengthTag(1)) {
      const outer = reader.enter();
      headers = new WireHeaders(reader);
      reader.leave(outer);
    } else if (tag === varintTag(3)) endOfStream = reader.bool();
    else reader.skip(tag);
  }
  return { headers, endOfStream };
}

/** HttpBody. */
function readHttpBody(reader: ProtobufReader): { body: Buffer; endOfStream: boolean } {
  let body: Buffer = EMPTY;
  let endOfStream = false;
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag === lengthTag(1)) body = reader.view();
    else if (tag === varintTag(2)) endOfStream = reader.bool();
    else reader.skip(tag);
  }
  return { body, endOfStream };
}

/** HeaderValue: Envoy fills `raw_value`, older data planes `value`; keys are lower case in Envoy but need not be elsewhere. */
const KEY = lengthTag(1);
const VALUE = lengthTag(2);
const RAW_VALUE = lengthTag(3);

/** A HeaderMap as it came: walked through once when it comes, and again for a name asked for that may be in it. */
class WireHeaders implements HeaderMap {
  readonly count: number;
  readonly bytes: number;
  readonly #message: Buffer;
  readonly #start: number;
  readonly #end: number;
  /** A bit per length, and one per last byte, of the names that are there, modulo 32: most names asked for are not. */
  #lengths = 0;
  #lastBytes = 0;

  /** @param reader stands at the beginning of the map; afterwards at its end */
  constructor(reader: ProtobufReader) {
    this.#message = reader.bytes;
    this.#start = reader.pos;
    this.#end = reader.end;
    let count = 0;
    let nBytes = 0;
    for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
      if (tag !== lengthTag(1)) {
        reader.skip(tag);
        continue;
      }
      count += 1;
      const outer = reader.enter();
      for (let field = reader.next(); field !== 0; field = reader.next()) {
        if (field !== KEY && field !== VALUE && field !== RAW_VALUE) {
          reader.skip(field);
          continue;
        }
        const entry = reader.enter();
        const length = reader.end - reader.pos;
        nBytes += length;
        if (field === KEY && length > 0) {
          this.#lengths |= 1 << (length & 31);
          // Lower and upper case differ in a bit that is left out.
          this.#lastBytes |= 1 << (reader.bytes[reader.end - 1]! & 31);
        }
        reader.leave(entry);
      }
      reader.leave(outer);
    }
    this.count = count;
    this.bytes = nBytes;
  }

  get(name: string): string | undefined {
    if (!this.#mayHave(name)) return undefined;
    const reader = new ProtobufReader(this.#message, this.#start, this.#end);
    for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
      if (tag !== lengthTag(1)) {
        reader.skip(tag);
        continue;
      }
      const outer = reader.enter();
      if (hasKey(reader, name)) return valueOf(reader);
      reader.leave(outer);
    }
    return undefined;
  }

  #mayHave(name: string): boolean {
    if (name === '') return true;
    const last = name.charCodeAt(name.length - 1) & 31;
    return ((this.#lengths >>> (name.length & 31)) & (this.#lastBytes >>> last) & 1) === 1;
  }
}

/** Whether the HeaderValue at the cursor has this key; the cursor stays at its beginning then, and is anywhere else. */
function hasKey(reader: ProtobufReader, name: string): boolean {
  const start = reader.pos;
  let found = name === '';
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag !== KEY) {
      reader.skip(tag);
      continue;
    }
    const outer = reader.enter();
    found = isName(reader.bytes, reader.pos, reader.end, name);
    reader.leave(outer);
    // The key comes first: what follows it is passed over as a whole.
    if (!found) return false;
  }
  reader.pos = start;
  return found;
}

/** @param name in lower case, ASCII */
function isName(bytes: Buffer, start: number, end: number, name: string): boolean {
  if (end - start !== name.length) return false;
  for (let i = 0; i < name.length; i++) {
    const byte = bytes[start + i]!;
    const lower = byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte;
    if (lower !== name.charCodeAt(i)) return false;
  }
  return true;
}

function valueOf(reader: ProtobufReader): string {
  let value = '';
  let rawValue = '';
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag === VALUE) value = reader.string();
    else if (tag === RAW_VALUE) rawValue = reader.string();
    else reader.skip(tag);
  }
  return rawValue === '' ? value : rawValue;
}

/** Metadata: of all namespaces, the two that are for us. */
function readMetadata(reader: ProtobufReader): { subset: Subset | null; served: string | null } {
  let subset: Subset | null = null;
  let served: string | null = null;
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag !== lengthTag(1)) {
      reader.skip(tag);
      continue;
    }
    const outer = reader.enter();
    const { key, valueAt } = readMapEntry(reader);
    if (key === SUBSET_NAMESPACE) subset = subsetIn(readStructField(reader, valueAt, SUBSET));
    else if (key === LB_NAMESPACE) served = readStructField(reader, valueAt, SERVED)?.text ?? null;
    reader.leave(outer);
  }
  return { subset, served };
}

/** Where a value stands in the message: it ends where its length says. */
type ValueAt = number;

/** An entry of a map; its value is read later, if at all. @returns `valueAt` null when it has none */
function readMapEntry(reader: ProtobufReader): { key: string; valueAt: ValueAt | null } {
  let key = '';
  let valueAt: ValueAt | null = null;
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag === lengthTag(1)) {
      key = reader.string();
      continue;
    }
    if (tag === lengthTag(2)) valueAt = reader.pos;
    reader.skip(tag);
  }
  return { key, valueAt };
}

/** What of a google.protobuf.Value can name endpoints. */
type StructValue = {
  /** Null where it is no string. */
  text: string | null;
  /** The strings of a list; null where it is none. */
  list: string[] | null;
  isNull: boolean;
};

/** One field of the google.protobuf.Struct at `at`; null where there is none of this name. */
function readStructField(reader: ProtobufReader, at: ValueAt | null, name: string): StructValue | null {
  if (at === null) return null;
  let found: StructValue | null = null;
  reader.pos = at;
  const outer = reader.enter();
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag !== lengthTag(1)) {
      reader.skip(tag);
      continue;
    }
    const entryEnd = reader.enter();
    const { key, valueAt } = readMapEntry(reader);
    if (key === name) {
      if (valueAt !== null) reader.pos = valueAt;
      const valueEnd = valueAt === null ? reader.end : reader.enter();
      found = readStructValue(reader, 'lists');
      reader.leave(valueEnd);
    }
    reader.leave(entryEnd);
  }
  reader.leave(outer);
  return found;
}

/** @param depth a list in a list names nothing, so it is not looked into */
function readStructValue(reader: ProtobufReader, depth: 'lists' | 'no_lists'): StructValue {
  const value: StructValue = { text: null, list: null, isNull: false };
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag === lengthTag(3)) {
      value.text = reader.string();
    } else if (tag === lengthTag(6) && depth === 'lists') {
      const outer = reader.enter();
      value.list = readStrings(reader);
      reader.leave(outer);
    } else {
      if (tag === varintTag(1)) value.isNull = true;
      reader.skip(tag);
    }
  }
  return value;
}

/** The strings of a google.protobuf.ListValue. */
function readStrings(reader: ProtobufReader): string[] {
  const strings: string[] = [];
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag !== lengthTag(1)) {
      reader.skip(tag);
      continue;
    }
    const outer = reader.enter();
    const { text } = readStructValue(reader, 'no_lists');
    if (text !== null) strings.push(text);
    reader.leave(outer);
  }
  return strings;
}

/** Members that are not strings name no endpoint: a hint made of them alone is a hint that nothing satisfies. */
function subsetIn(value: StructValue | null): Subset | null {
  if (value === null || value.isNull) return null;
  return subsetOf(value.text === null ? (value.list ?? []) : [value.text]);
}

/** ProtocolConfiguration. */
function readProtocolConfig(reader: ProtobufReader): ProtocolConfig {
  let requestBodyMode = 0;
  let responseBodyMode = 0;
  let sendBodyWithoutWaiting = false;
  for (let tag = reader.next(); tag !== 0; tag = reader.next()) {
    if (tag === varintTag(1)) requestBodyMode = reader.varint();
    else if (tag === varintTag(2)) responseBodyMode = reader.varint();
    else if (tag === varintTag(3)) sendBodyWithoutWaiting = reader.bool();
    else reader.skip(tag);
  }
  return {
    requestBodyMode: BODY_SEND_MODES[requestBodyMode] ?? requestBodyMode,
    responseBodyMode: BODY_SEND_MODES[responseBodyMode] ?? responseBodyMode,
    sendBodyWithoutWaiting,
  };
}
