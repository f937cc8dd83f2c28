/** What the running product tells of its streams: metrics and `/api/v1/config`, after real requests over gRPC. */
import { once } from 'node:events';
import http2 from 'node:http2';
import v8 from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { status } from '@grpc/grpc-js';
import { createApp, type App, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import { stageConfig } from '../e2e/stage.ts';
import { createExtProcClient, type ExtProcClient } from '../support/extproc-client.ts';
import { answersOf, framed, openRaw } from '../support/raw-call.ts';
import { eventually } from '../support/running-app.ts';
import {
  announced,
  requestBody,
  requestHeaders,
  responseBody,
  responseHeaders,
  servedBy,
  type Answer,
} from '../support/extproc-messages.ts';

const POD = '127.0.0.1:1';
const CHAT = JSON.stringify({ model: 'demo', messages: [{ role: 'user', content: 'hello' }] });

let app: App;
let addresses: AppAddresses;
let client: ExtProcClient;

async function start(server: object = {}): Promise<void> {
  const config = stageConfig([], {
    server: { drainTimeoutMs: 0, ...server },
    tokenizer: { api: 'none' },
    discovery: { endpoints: [{ name: 'pod', address: POD, model: 'demo', kvEvents: 'none' }] },
  });
  app = createApp(config, { log: silentLog, clock: systemClock });
  addresses = await app.start();
  client = createExtProcClient(addresses.grpc);
}

beforeEach(() => start());
afterEach(async () => {
  client.close();
  await app.stop();
});

const get = async (path: string): Promise<Response> => fetch(`http://${addresses.admin}${path}`);

async function untilMetric(pattern: RegExp): Promise<void> {
  const deadline = performance.now() + 15_000;
  for (;;) {
    const text = await (await get('/metrics')).text();
    if (pattern.test(text)) return;
    if (performance.now() > deadline) throw new Error(`no ${pattern} in\n${text.match(/^warmpath_.*$/gm)?.join('\n')}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function countsOf(name: string): Promise<Record<string, number>> {
  const text = await (await get('/metrics')).text();
  const lines = [...text.matchAll(new RegExp(`^${name}\\{(.*)\\} (.*)$`, 'gm'))];
  return Object.fromEntries(lines.map(([, labels, value]) => [labels!, Number(value)]));
}

test('which completion signals this data plane gives', async () => {
  await client.request({ mode: 'BUFFERED', body: CHAT });
  await untilMetric(/^warmpath_extproc_completions_total\{signal="stream"\} 1$/m);
  const stream = client.open();
  stream.send(requestHeaders(), announced('BUFFERED', { responseBody: 'STREAMED' }));
  await stream.next();
  stream.send(requestBody(CHAT));
  await stream.next();
  stream.send(responseHeaders());
  stream.send(responseBody('{}'));
  stream.halfClose();
  await stream.status;
  await untilMetric(/^warmpath_extproc_completions_total\{signal="response"\} 1$/m);
  const config = (await (await get('/api/v1/config')).json()) as { completionSignals: object };
  expect(config.completionSignals).toEqual({ stream: 1, response: 1, observer: 0, estimate: 0 });
});

test('an endpoint that answered although another was chosen', async () => {
  const stream = client.open();
  stream.send(requestHeaders({ headers: { ':method': 'GET' }, endOfStream: true }), announced('NONE'));
  await stream.next();
  stream.send(responseHeaders({ endOfStream: true }), servedBy('127.0.0.1:2'));
  stream.halfClose();
  await stream.status;
  await untilMetric(/^warmpath_served_elsewhere_total 1$/m);
});

test('the trace a request belongs to stands beside its decision', async () => {
  const traced = (traceparent: string): Promise<unknown> =>
    client.request({ mode: 'BUFFERED', body: CHAT, headers: { TraceParent: traceparent } });
  await traced('00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01');
  await traced('00-4BF92F3577B34DA6A3CE929D0E0E4737-00F067AA0BA902B7-00');
  await traced('cc-4bf92f3577b34da6a3ce929d0e0e4738-00f067aa0ba902b7-01-of-later-versions');
  await traced('00-00000000000000000000000000000000-00f067aa0ba902b7-01');
  await traced('ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01');
  await traced('secret');
  await client.request({
    mode: 'BUFFERED',
    body: '{',
    headers: { traceparent: `00-${'a'.repeat(32)}-${'b'.repeat(16)}-00` },
  });
  await client.request({ mode: 'BUFFERED', body: CHAT });
  const decisions = (await (await get('/api/v1/decisions')).json()) as { outcome: string; traceId: string | null }[];
  expect(decisions.reverse().map(({ outcome, traceId }) => [outcome, traceId])).toEqual([
    ['routed', '4bf92f3577b34da6a3ce929d0e0e4736'],
    ['routed', '4bf92f3577b34da6a3ce929d0e0e4737'],
    ['routed', '4bf92f3577b34da6a3ce929d0e0e4738'],
    ['routed', null],
    ['routed', null],
    ['routed', null],
    ['bad_request', 'a'.repeat(32)],
    ['routed', null],
  ]);
});

test('bodies that are shown too late, and the cause of every refusal', async () => {
  await client.request({ mode: 'STREAMED', body: CHAT });
  await untilMetric(/^warmpath_extproc_bodies_not_shown_total 1$/m);
  await client.request({ mode: 'BUFFERED', body: '{' });
  await client.request({ mode: 'BUFFERED', body: CHAT, headers: { 'content-length': '999999999' } });
  await untilMetric(/^warmpath_request_reasons_total\{outcome="bad_request",reason="bad_request"\} 1$/m);
  await untilMetric(/^warmpath_request_reasons_total\{outcome="too_large",reason="body_too_large"\} 1$/m);
  const disorderly = client.open();
  disorderly.send(requestHeaders(), announced('BUFFERED'));
  disorderly.send(requestHeaders());
  expect((await disorderly.status).code).toBe(status.FAILED_PRECONDITION);
  await untilMetric(/^warmpath_request_reasons_total\{outcome="error",reason="illegal_message_order"\} 1$/m);
});

test('every request is counted once when it is over, with its model where it is known', async () => {
  await client.request({ mode: 'BUFFERED', body: CHAT });
  await client.request({ mode: 'BUFFERED', body: '{"model":"nobody","messages":[]}' });
  await client.request({ mode: 'BUFFERED', body: '{' });
  // A chat without a body, as Envoy shows it for `content-length: 0` and for an empty chunked one.
  const [empty] = await client.request({ mode: 'BUFFERED', body: null });
  expect(empty!.immediate).toMatchObject({ status: 'BadRequest', body: { error: { type: 'invalid_request_error' } } });
  const answers = await client.request({ mode: 'BUFFERED', body: '' });
  expect(answers[1]!.immediate!.status).toBe('BadRequest');
  await client.request({ mode: 'NONE', body: null, headers: { ':method': 'GET', ':path': '/v1/models' } });
  const gone = client.open();
  gone.send(requestHeaders(), announced('BUFFERED'));
  await gone.next();
  gone.reset();
  const waits = client.open();
  waits.send(requestHeaders(), announced('BUFFERED'));
  await waits.next();
  await untilMetric(/^warmpath_requests_total\{model="other",outcome="cancelled"\} 1$/m);
  // A request under way is none that has ended.
  expect(await countsOf('warmpath_requests_total')).toEqual({
    'model="demo",outcome="routed"': 1,
    'model="other",outcome="bad_request"': 4,
    'model="other",outcome="routed"': 1,
    'model="other",outcome="cancelled"': 1,
  });
  waits.reset();
});

test('a stream that stays open for its answer holds nothing of the request', async () => {
  v8.setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const heldBytes = (): number => {
    collect();
    return process.memoryUsage().arrayBuffers;
  };
  // The client of gRPC keeps the last message itself.
  const session = http2.connect(`http://${addresses.grpc}`);
  const open = async (mode: 'BUFFERED' | 'FULL_DUPLEX_STREAMED', content: string): Promise<void> => {
    const call = openRaw(session);
    const body = JSON.stringify({ model: 'demo', messages: [{ role: 'user', content }] });
    call.stream.write(framed(requestHeaders(), announced(mode)));
    if (mode === 'FULL_DUPLEX_STREAMED') call.stream.write(framed(requestBody(body.slice(0, 1000), 'more')));
    call.stream.write(framed(requestBody(mode === 'FULL_DUPLEX_STREAMED' ? body.slice(1000) : body)));
    const isAnswered = (answer: Answer): boolean =>
      mode === 'BUFFERED' ? answer.metadata !== null : answer.echo?.endOfStream === true;
    while (!answersOf(call).some(isAnswered)) await once(call.stream, 'data');
    call.received.length = 0;
  };
  const modes = ['BUFFERED', 'FULL_DUPLEX_STREAMED'] as const;
  for (const mode of modes) await open(mode, 'warm up');
  const before = heldBytes();
  const nEach = 32;
  const nBytes = 256 * 1024;
  for (let i = 0; i < nEach; i++) for (const mode of modes) await open(mode, `${i}${'x'.repeat(nBytes)}`);
  await untilMetric(new RegExp(`^warmpath_extproc_streams ${modes.length * (nEach + 1)}$`, 'm'));
  // What is still on its way through sockets goes by itself; what a stream holds stays as long as the stream.
  const sentBytes = modes.length * nEach * nBytes;
  await eventually(
    async () => heldBytes() - before,
    (bytes) => bytes < sentBytes / 4,
  );
  expect(await countsOf('warmpath_extproc_streams_total')).toEqual({});
  session.destroy();
});

test('limits and the estimate are what the configuration says', async () => {
  client.close();
  await app.stop();
  await start({ completion: 'estimate', assumedAnswerMs: 300, maxStreams: 1, maxHeaders: 10 });
  const inFlight = (n: number): RegExp => new RegExp(`^warmpath_endpoint_in_flight_requests\\{.*\\} ${n}$`, 'm');
  await client.request({ mode: 'BUFFERED', body: CHAT });
  // The stream is over, the answer may not be.
  await untilMetric(/^warmpath_extproc_streams 0$/m);
  await untilMetric(inFlight(1));
  await untilMetric(inFlight(0));
  const many = Object.fromEntries(Array.from({ length: 11 }, (_, i) => [`x-${i}`, 'y']));
  const [refused] = await client.request({ mode: 'BUFFERED', body: CHAT, headers: many });
  expect(refused!.immediate!.details).toBe('warmpath_headers_too_large');
  const first = client.open();
  first.send(requestHeaders(), announced('BUFFERED'));
  await first.next();
  const [turnedAway] = await client.request({ mode: 'NONE', body: null });
  expect(turnedAway!.immediate!.details).toBe('warmpath_too_many_streams');
  first.reset();
});
