/**
 * Messages no Envoy would send, over real gRPC: random bytes, and valid protobuf with random fields in random order. The
 * server must live, every stream must come to an end or an answer, and nothing may be left over.
 */
import http2 from 'node:http2';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { systemClock } from '../../src/clock.ts';
import type { Decision } from '../../src/extproc/picker.ts';
import { createExtProcServer, type ExchangeResult, type ExtProcServer } from '../../src/extproc/server.ts';
import { createLog } from '../../src/log.ts';
import { createUsageReader } from '../../src/openai/usage.ts';
import { SERVER_OPTIONS } from '../support/exchange-harness.ts';
import { createExtProcClient, type ExtProcClient } from '../support/extproc-client.ts';
import { encodeRequest, type WireRequest } from '../support/extproc-messages.ts';

const POD = '10.0.0.1:8000';
const PROCESS = '/envoy.service.ext_proc.v3.ExternalProcessor/Process';
/** Beyond it an Envoy would have given up: an unanswered stream. */
const PATIENCE_MS = 5_000;

let server: ExtProcServer;
let address: string;
let client: ExtProcClient;
let session: http2.ClientHttp2Session;
let nHeld = 0;
const results: ExchangeResult[] = [];
const errors: string[] = [];

beforeAll(async () => {
  const pick = (): Promise<Decision> => {
    nHeld += 1;
    return Promise.resolve({
      kind: 'routed',
      endpoints: [POD],
      reservation: { firstByte: () => undefined, observe: () => undefined, release: () => void (nHeld -= 1) },
    });
  };
  server = createExtProcServer(
    {
      picker: { pick },
      log: createLog('warn', (line) => {
        if (line.includes('"level":"error"')) errors.push(line);
      }),
      clock: systemClock,
      createUsageReader,
      onStream: (result) => void results.push(result),
    },
    { ...SERVER_OPTIONS, bodyMaxBytes: 64 * 1024, limits: { ...SERVER_OPTIONS.limits, maxMessagesPerStream: 20 } },
  );
  address = (await server.start()).grpcAddress;
  client = createExtProcClient(address);
  session = http2.connect(`http://${address}`);
});

afterAll(async () => {
  client.close();
  session.destroy();
  await server.stop();
});

const headerBytes = fc.oneof(fc.uint8Array({ maxLength: 20 }), fc.constantFrom(Buffer.from('POST'), Buffer.from('7')));
const header = fc.record(
  {
    key: fc.constantFrom(':path', ':method', ':status', 'content-length', 'content-type', 'X-Request-ID', '', '\u0000'),
    value: fc.string({ maxLength: 8 }),
    raw_value: headerBytes.map((bytes) => Buffer.from(bytes)),
  },
  { requiredKeys: [] },
);
const headers = fc.record(
  { headers: fc.record({ headers: fc.array(header, { maxLength: 6 }) }), end_of_stream: fc.boolean() },
  { requiredKeys: [] },
);
const body = fc.record(
  { body: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)), end_of_stream: fc.boolean() },
  { requiredKeys: [] },
);
const value = fc.oneof(
  fc.record({ stringValue: fc.string({ maxLength: 12 }) }),
  fc.record({ numberValue: fc.double() }),
  fc.record({ nullValue: fc.constant(0) }),
  fc.record({
    listValue: fc.record({ values: fc.array(fc.record({ stringValue: fc.constant(POD) }), { maxLength: 3 }) }),
  }),
);
const metadata = fc.record({
  filter_metadata: fc.dictionary(
    fc.constantFrom('envoy.lb', 'envoy.lb.subset_hint', '__proto__'),
    fc.record({
      fields: fc.dictionary(
        fc.constantFrom(
          'x-gateway-destination-endpoint-subset',
          'x-gateway-destination-endpoint-served',
          'constructor',
        ),
        value,
      ),
    }),
  ),
});
const member = fc.oneof(
  fc.record({ request_headers: headers }),
  fc.record({ request_body: body }),
  fc.record({ request_trailers: fc.constant({}) }),
  fc.record({ response_headers: headers }),
  fc.record({ response_body: body }),
  fc.record({ response_trailers: fc.constant({}) }),
  fc.constant({}),
);
const envelope = fc.record(
  {
    metadata_context: metadata,
    observability_mode: fc.constant(true),
    protocol_config: fc.record(
      {
        request_body_mode: fc.integer({ min: 0, max: 7 }),
        response_body_mode: fc.integer({ min: 0, max: 7 }),
        send_body_without_waiting_for_header_response: fc.boolean(),
      },
      { requiredKeys: [] },
    ),
  },
  { requiredKeys: [] },
);
const messages = fc.array(
  fc.tuple(member, envelope).map(([one, around]) => ({ ...one, ...around }) as WireRequest),
  { maxLength: 25 },
);

test('valid protobuf with random fields in random order: every stream ends, none is left over', async () => {
  await fc.assert(
    fc.asyncProperty(messages, fc.constantFrom('half_close', 'reset'), async (sent, ending) => {
      const stream = client.open();
      for (const message of sent) stream.send(message);
      if (ending === 'half_close') stream.halfClose();
      else setImmediate(() => stream.reset());
      const { code } = await within(stream.status, 'the stream has ended');
      // OK, CANCELLED by ourselves, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, FAILED_PRECONDITION; never UNKNOWN or INTERNAL.
      expect([0, 1, 3, 8, 9]).toContain(code);
    }),
    { numRuns: 600 },
  );
  await settled();
});

test('a request that is complete is answered, whatever was said around it', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(envelope, { maxLength: 3 }), async (around) => {
      const stream = client.open();
      const request = { request_headers: { headers: { headers: [] }, end_of_stream: true } };
      stream.send(request, { metadata_context: around[0]?.metadata_context ?? {} });
      const answer = await within(stream.next(), 'the headers are answered');
      expect(answer.kind).toBe('request_headers');
      for (const one of around) stream.send(one);
      stream.halfClose();
      await within(stream.status, 'the stream has ended');
    }),
    { numRuns: 100 },
  );
  await settled();
});

test('random bytes, framed and unframed, cut anywhere: each stream gets its status, and the connection goes on', async () => {
  const valid = encodeRequest({
    request_headers: { headers: { headers: [{ key: ':path', raw_value: Buffer.from('/') }] } },
  });
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 200 }).map((raw) => Buffer.from(raw)),
    fc.uint8Array({ maxLength: 200 }).map((raw) => framed(Buffer.from(raw))),
    fc.tuple(fc.nat(valid.length - 1), fc.nat(255)).map(([at, byte]) => {
      const changed = Buffer.from(valid);
      changed[at] = byte;
      return framed(changed);
    }),
    fc.nat(valid.length).map((n) => framed(valid).subarray(0, n)),
  );
  await fc.assert(
    fc.asyncProperty(bytes, async (raw) => {
      expect(await within(rawStatus(raw), 'there is a status')).toMatch(/^\d+$/);
    }),
    { numRuns: 600 },
  );
  await settled();
});

/** No stream, no reservation and no fault is left, and the next ordinary request works. */
async function settled(): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  while ((server.openStreams() > 0 || nHeld > 0) && performance.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  expect({ streams: server.openStreams(), held: nHeld, errors }).toEqual({ streams: 0, held: 0, errors: [] });
  const answers = await client.request({ mode: 'BUFFERED', body: '{"model":"m"}' });
  expect(answers.at(-1)!.metadata).toBe(POD);
}

function within<T>(promise: Promise<T>, what: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`gave up waiting until ${what}`)), PATIENCE_MS);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

function framed(message: Buffer): Buffer {
  const prefix = Buffer.alloc(5);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

/** The grpc-status a stream of these bytes ends with, after a half-close. */
function rawStatus(bytes: Buffer): Promise<string> {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ':method': 'POST',
      ':path': PROCESS,
      'content-type': 'application/grpc',
      te: 'trailers',
    });
    const report = (block: http2.IncomingHttpHeaders): void => {
      if (block['grpc-status'] !== undefined) resolve(String(block['grpc-status']));
    };
    stream.on('response', report);
    stream.on('trailers', report);
    stream.on('error', reject);
    stream.resume();
    stream.end(bytes);
  });
}
