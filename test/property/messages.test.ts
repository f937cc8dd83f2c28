/**
 * The hand-written reader of Envoy's messages against a general decoder of the same schema: on valid messages, with fields
 * of later versions strewn in, both must see the same; on anything else the reader may only refuse.
 */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { readMessage } from '../../src/extproc/message-reader.ts';
import type { EnvoyMessage } from '../../src/extproc/messages.ts';
import { encodeRequest, readWithSchema, type SchemaHeader, type SchemaRequest } from '../support/extproc-messages.ts';

const POD = '10.0.0.1:8000';
const NAMES = [':path', 'content-length', 'X-Request-ID', 'x-request-id', 'näme', '', '\u0000', 'x'.repeat(200)];
const text = fc.oneof(
  fc.string({ maxLength: 12 }),
  fc.constantFrom('', POD, `${POD}, ,[fd00::1]:80`, 'ü', 'y'.repeat(300)),
);
const header = fc.record(
  {
    key: fc.constantFrom(...NAMES),
    value: text,
    raw_value: fc.oneof(
      text.map((value) => Buffer.from(value)),
      fc.uint8Array({ maxLength: 20 }).map(Buffer.from),
    ),
  },
  { requiredKeys: [] },
);
const headers = fc.record(
  { headers: fc.record({ headers: fc.array(header, { maxLength: 8 }) }), end_of_stream: fc.boolean() },
  { requiredKeys: [] },
);
const body = fc.record(
  { body: fc.uint8Array({ maxLength: 300 }).map(Buffer.from), end_of_stream: fc.boolean() },
  { requiredKeys: [] },
);
const leaf = fc.oneof(
  fc.record({ stringValue: text }),
  fc.record({ numberValue: fc.double() }),
  fc.record({ boolValue: fc.boolean() }),
  fc.record({ nullValue: fc.constant(0) }),
  fc.record({ structValue: fc.record({ fields: fc.dictionary(text, fc.record({ stringValue: text })) }) }),
  fc.constant({}),
);
const list = (member: fc.Arbitrary<object>): fc.Arbitrary<object> =>
  fc.record({ listValue: fc.record({ values: fc.array(member, { maxLength: 4 }) }, { requiredKeys: [] }) });
const value = fc.oneof(leaf, list(fc.oneof(leaf, list(leaf))));
const metadata = fc.record(
  {
    filter_metadata: fc.dictionary(
      fc.constantFrom('envoy.lb', 'envoy.lb.subset_hint', 'other', ''),
      fc.record(
        {
          fields: fc.dictionary(
            fc.constantFrom(
              'x-gateway-destination-endpoint-subset',
              'x-gateway-destination-endpoint-served',
              'x-gateway-destination-endpoint',
            ),
            value,
          ),
        },
        { requiredKeys: [] },
      ),
    ),
  },
  { requiredKeys: [] },
);
const member = fc.oneof(
  fc.record({ request_headers: headers }),
  fc.record({ response_headers: headers }),
  fc.record({ request_body: body }),
  fc.record({ response_body: body }),
  fc.record({ request_trailers: fc.constant({}) }),
  fc.record({ response_trailers: fc.constant({}) }),
  fc.constant({}),
);
const message = fc
  .tuple(
    member,
    fc.record(
      {
        metadata_context: metadata,
        observability_mode: fc.boolean(),
        protocol_config: fc.record(
          {
            request_body_mode: fc.integer({ min: 0, max: 9 }),
            response_body_mode: fc.integer({ min: 0, max: 9 }),
            send_body_without_waiting_for_header_response: fc.boolean(),
          },
          { requiredKeys: [] },
        ),
      },
      { requiredKeys: [] },
    ),
  )
  .map(([one, around]) => encodeRequest({ ...one, ...around }));

/** Fields this version does not know, of every wire type: among them 12 and 13, which a later Envoy may send. */
const varint = (n: number): number[] => (n < 0x80 ? [n] : [(n & 0x7f) | 0x80, ...varint(n >>> 7)]);
const number = fc.constantFrom(1, 9, 12, 13, 99, 100_000);
const unknown = fc.oneof(
  fc.tuple(number, fc.nat()).map(([field, n]) => [...varint(field << 3), ...varint(n)]),
  fc
    .tuple(number, fc.uint8Array({ minLength: 8, maxLength: 8 }))
    .map(([n, bytes]) => [...varint((n << 3) | 1), ...bytes]),
  fc
    .tuple(number, fc.uint8Array({ maxLength: 200 }))
    .map(([field, bytes]) => [...varint((field << 3) | 2), ...varint(bytes.length), ...bytes]),
  fc
    .tuple(number, fc.nat())
    .map(([n, inner]) => [...varint((n << 3) | 3), 8, ...varint(inner), ...varint((n << 3) | 4)]),
  fc
    .tuple(number, fc.uint8Array({ minLength: 4, maxLength: 4 }))
    .map(([n, bytes]) => [...varint((n << 3) | 5), ...bytes]),
);

/** The same, as the schema's decoder says it. */
function meaning(raw: SchemaRequest): object {
  const kind = raw.request ?? 'unknown';
  const metadataOf = raw.metadata_context?.filter_metadata ?? {};
  const hint = metadataOf['envoy.lb.subset_hint']?.fields?.['x-gateway-destination-endpoint-subset'];
  const served = metadataOf['envoy.lb']?.fields?.['x-gateway-destination-endpoint-served'];
  const strings =
    hint?.stringValue === undefined
      ? (hint?.listValue?.values ?? []).flatMap(({ stringValue }) => stringValue ?? [])
      : [hint.stringValue];
  const config = raw.protocol_config;
  return {
    kind,
    observabilityMode: raw.observability_mode === true,
    protocolConfig: config
      ? {
          requestBodyMode: config.request_body_mode ?? 'NONE',
          responseBodyMode: config.response_body_mode ?? 'NONE',
          sendBodyWithoutWaiting: config.send_body_without_waiting_for_header_response === true,
        }
      : null,
    served: served?.stringValue ?? null,
    subset:
      hint === undefined || hint.kind === 'nullValue'
        ? null
        : strings.flatMap((one) => one.split(',').map((part) => part.trim())).filter((part) => part !== ''),
    ...contentOf(raw),
  };
}

function contentOf(raw: SchemaRequest): object {
  switch (raw.request) {
    case 'request_headers':
    case 'response_headers': {
      const one = raw[raw.request];
      const entries = one?.headers?.headers ?? [];
      return {
        endOfStream: one?.end_of_stream === true,
        headers: NAMES.map((name) => valueOf(entries, name.toLowerCase())),
        count: entries.length,
        bytes: entries.reduce((sum, entry) => sum + bytesOf(entry), 0),
      };
    }
    case 'request_body':
    case 'response_body': {
      const one = raw[raw.request];
      return { endOfStream: one?.end_of_stream === true, body: Buffer.from(one?.body ?? '').toString('hex') };
    }
    default:
      return {};
  }
}

function valueOf(entries: readonly SchemaHeader[], name: string): string | undefined {
  // Names in other letters than ASCII are asked for by nobody.
  const entry = entries.find(({ key = '' }) => key.toLowerCase() === name && /^[ -~\0]*$/.test(key));
  if (entry === undefined) return undefined;
  return entry.raw_value?.length ? entry.raw_value.toString('utf8') : (entry.value ?? '');
}

const bytesOf = ({ key = '', value = '', raw_value = Buffer.alloc(0) }: SchemaHeader): number =>
  Buffer.byteLength(key) + Buffer.byteLength(value) + raw_value.length;

function seen(got: EnvoyMessage): object {
  const { kind, observabilityMode, protocolConfig, served, subset } = got;
  const envelope = {
    kind,
    observabilityMode,
    protocolConfig,
    served,
    subset: subset?.kind === 'only' ? subset.addresses : null,
  };
  if (got.kind === 'request_headers' || got.kind === 'response_headers') {
    const { headers: map, endOfStream } = got;
    const asciiNames = NAMES.map((name) => (/^[ -~\0]*$/.test(name) ? map.get(name.toLowerCase()) : undefined));
    return { ...envelope, endOfStream, headers: asciiNames, count: map.count, bytes: map.bytes };
  }
  if (got.kind === 'request_body' || got.kind === 'response_body') {
    return { ...envelope, endOfStream: got.endOfStream, body: Buffer.from(got.body).toString('hex') };
  }
  return envelope;
}

describe('a message of Envoy', () => {
  test('is read as a general decoder reads it', () => {
    fc.assert(
      fc.property(message, (bytes) => expect(seen(readMessage(bytes))).toEqual(meaning(readWithSchema(bytes)))),
      { numRuns: 1_500 },
    );
  });

  test('means the same with fields of a later version around it', () => {
    fc.assert(
      fc.property(
        fc.array(unknown, { maxLength: 3 }),
        message,
        fc.array(unknown, { maxLength: 3 }),
        (before, bytes, after) => {
          const around = Buffer.concat([Buffer.from(before.flat()), bytes, Buffer.from(after.flat())]);
          expect(seen(readMessage(around))).toEqual(seen(readMessage(bytes)));
        },
      ),
      { numRuns: 500 },
    );
  });

  test('that is cut or changed anywhere is read or refused, and nothing is read beyond its end', () => {
    const damaged = fc.oneof(
      fc.tuple(message, fc.nat()).map(([bytes, n]) => bytes.subarray(0, n % (bytes.length + 1))),
      fc.tuple(message, fc.nat(), fc.nat(255)).map(([bytes, n, byte]) => {
        const changed = Buffer.from(bytes);
        if (changed.length > 0) changed[n % changed.length] = byte;
        return changed;
      }),
      fc.uint8Array({ maxLength: 100 }).map(Buffer.from),
    );
    fc.assert(
      fc.property(damaged, fc.uint8Array({ maxLength: 20 }), (bytes, beyond) => {
        // The same bytes in a buffer that goes on: what lies behind them must not matter.
        const longer = Buffer.concat([bytes, beyond]).subarray(0, bytes.length);
        expect(outcome(longer)).toEqual(outcome(Buffer.from(bytes)));
      }),
      { numRuns: 1_500 },
    );
  });
});

function outcome(bytes: Buffer): object | string {
  let got: EnvoyMessage;
  try {
    got = readMessage(bytes);
  } catch (error) {
    expect(String(error)).toMatch(/^Error: not a protobuf message: got /);
    return 'refused';
  }
  return seen(got);
}

test.each([
  ['a field number of 0', [0x00, 0x00]],
  ['a number that is cut off', [0x50, 0x80]],
  ['a number of more than 10 bytes', [0x50, ...Array<number>(10).fill(0x80), 0]],
  ['a field longer than its message', [0x22, 0x05, 0x0a]],
  ['a field that is cut off', [0x65, 0, 0, 0]],
  ['wire type 7', [0x67]],
  ['wire type 4', [0x64]],
  ['the end of another group', [0x63, 0x6c]],
  ['a group without an end', [0x63, 0x08, 0x01]],
  ['groups nested deeper than 100', Array<number>(200).fill(0x63)],
])('%s is no message', (got, bytes) => {
  expect(() => readMessage(Buffer.from(bytes))).toThrow(`not a protobuf message: got ${got}`);
});
