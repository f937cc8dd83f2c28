/**
 * gRPC over HTTP/2 to the letter and past it: a peer that writes frames itself says what no gRPC library would, at every
 * stage of a call. Whatever it does, its own stream ends with gRPC's own answer, is counted with its reason, gives back what
 * it booked once, and the streams beside it go on.
 */
import http2 from 'node:http2';
import { createConnection } from 'node:net';
import { describe, expect, test } from '@jest/globals';
import { systemClock, type Clock } from '../../src/clock.ts';
import type { PickRequest } from '../../src/extproc/picker.ts';
import { PROCESS_PATH } from '../../src/extproc/protocol.ts';
import { endAfterEach } from '../support/endings.ts';
import { announced, requestBody, requestHeaders, responseBody, responseHeaders } from '../support/extproc-messages.ts';
import { answersOf, frame, framed, openRaw, type RawCall } from '../support/raw-call.ts';
import { createExtProcServers, never, POD, until, type RunningServer } from '../support/extproc-server.ts';

const atEnd = endAfterEach();
const serve = createExtProcServers(atEnd);
function connect(address: string, options: http2.ClientSessionOptions = {}): http2.ClientHttp2Session {
  const session = http2.connect(`http://${address}`, options);
  session.on('error', () => undefined);
  atEnd(() => session.destroy());
  return session;
}

const withFlag = (bytes: Buffer, flag: number): Buffer => Buffer.concat([Buffer.of(flag), bytes.subarray(1)]);

const GET = framed(requestHeaders({ endOfStream: true }), announced('NONE'));
const HEADERS = framed(requestHeaders(), announced('BUFFERED'));
const BODY = framed(requestBody('{"model":"m"}'));
const UNDECIDED = framed(requestHeaders({ headers: { ':path': '/never' }, endOfStream: true }), announced('NONE'));
const isUndecided = ({ path }: PickRequest): boolean => path === '/never';
/** A request without a body whose answer comes back through us. */
const ECHOED = framed(
  requestHeaders({ endOfStream: true }),
  announced('NONE', { responseBody: 'FULL_DUPLEX_STREAMED' }),
);

const destinations = (call: RawCall): (string | null)[] => answersOf(call).map(({ metadata }) => metadata);
const isRouted = (call: RawCall): boolean => destinations(call).includes(POD);

/** A request of its own on the session is answered. */
async function stillServes(session: http2.ClientHttp2Session): Promise<void> {
  const call = openRaw(session);
  call.stream.end(GET);
  await until(() => call.isClosed, 'a stream beside it is over');
  expect(destinations(call)).toEqual([POD]);
  expect(call.trailers['grpc-status']).toBe('0');
}

describe('what is no call', () => {
  test.each([
    ['GET', { ':method': 'GET' }, 405],
    ['PUT', { ':method': 'PUT' }, 405],
    ['JSON', { 'content-type': 'application/json' }, 415],
    ['gRPC-Web', { 'content-type': 'application/grpc-web' }, 415],
    ['gRPC-Web of protobuf', { 'content-type': 'application/grpc-web+proto' }, 415],
    ['gRPC of JSON', { 'content-type': 'application/grpc+json' }, 415],
    ['no content type', { 'content-type': undefined }, 415],
  ])('%s gets its status of HTTP, and the stream its end', async (_name, headers, status) => {
    const { address, requests, server } = await serve();
    const session = connect(address);
    const call = openRaw(session, headers);
    if (!call.stream.writableEnded) call.stream.write(GET);
    await until(() => call.isClosed, 'the stream is over');
    expect(call.response[':status']).toBe(status);
    expect(call.stream.rstCode).toBe(http2.constants.NGHTTP2_NO_ERROR);
    expect(requests).toEqual([]);
    expect(server.openStreams()).toBe(0);
    await stillServes(session);
  });

  test('another method of the service is UNIMPLEMENTED', async () => {
    const { address } = await serve();
    const session = connect(address);
    const call = openRaw(session, { ':path': `${PROCESS_PATH}Twice` });
    call.stream.write(GET);
    await until(() => call.trailers['grpc-status'] !== undefined, 'a status');
    expect(call.trailers['grpc-status']).toBe('12');
    await stillServes(session);
  });
});

describe('what is no HTTP/2', () => {
  const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n';
  /** A frame by the book: 24 bits of length, type, flags, 31 bits of stream. */
  const h2Frame = (type: number, stream: number, payload: Buffer, flags = 0): Buffer => {
    const head = Buffer.alloc(9);
    head.writeUIntBE(payload.length, 0, 3);
    head.writeUInt8(type, 3);
    head.writeUInt8(flags, 4);
    head.writeUInt32BE(stream, 5);
    return Buffer.concat([head, payload]);
  };
  const SETTINGS = h2Frame(4, 0, Buffer.alloc(0));

  test.each<[string, Buffer]>([
    ['HTTP/1.1', Buffer.from('POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n')],
    ['the beginning of TLS', Buffer.from('16030100c8010000c40303', 'hex')],
    ['zeros', Buffer.alloc(4096)],
    ['a preface and noise', Buffer.concat([Buffer.from(PREFACE), Buffer.alloc(4096, 0xa5)])],
    [
      'a header block that is none',
      Buffer.concat([Buffer.from(PREFACE), SETTINGS, h2Frame(1, 1, Buffer.alloc(64, 0xff), 4)]),
    ],
    [
      'data on a stream nobody opened',
      Buffer.concat([Buffer.from(PREFACE), SETTINGS, h2Frame(0, 7, Buffer.alloc(10))]),
    ],
    ['a frame above the limit', Buffer.concat([Buffer.from(PREFACE), SETTINGS, h2Frame(0, 1, Buffer.alloc(1 << 20))])],
    ['a window of zero', Buffer.concat([Buffer.from(PREFACE), SETTINGS, h2Frame(8, 0, Buffer.alloc(4))])],
  ])('%s costs its own connection only', async (_name, bytes) => {
    const { address, server } = await serve();
    const neighbours = connect(address);
    await stillServes(neighbours);
    const socket = createConnection({ host: '127.0.0.1', port: Number(address.split(':')[1]) });
    atEnd(() => socket.destroy());
    let isOver = false;
    socket.on('error', () => undefined);
    socket.on('close', () => (isOver = true));
    socket.resume();
    socket.write(bytes);
    await until(() => isOver, 'the connection is closed');
    await stillServes(neighbours);
    expect(server.openStreams()).toBe(0);
  });
});

describe('what is one all the same', () => {
  test.each([
    ['protobuf said aloud', { 'content-type': 'application/grpc+proto' }],
    ['parameters', { 'content-type': 'application/grpc;charset=utf-8' }],
    ['capitals', { 'content-type': 'Application/gRPC' }],
    ['an encoding that is not used', { 'grpc-encoding': 'gzip', 'grpc-accept-encoding': 'gzip,br' }],
    ['metadata, binary and twice', { 'x-a-bin': ['AAEC', '!no base64!'], 'x-b': 'b', 'grpc-trace-bin': '' }],
    ['a deadline far away', { 'grpc-timeout': '99999999H' }],
  ])('%s', async (_name, headers) => {
    const { address } = await serve();
    const call = openRaw(connect(address), headers);
    call.stream.end(GET);
    await until(() => call.isClosed, 'the stream is over');
    expect(call.response).toMatchObject({ ':status': 200, 'content-type': 'application/grpc+proto' });
    expect(destinations(call)).toEqual([POD]);
    expect(call.trailers).toMatchObject({ 'grpc-status': '0' });
  });

  test('messages cut at every byte', async () => {
    const { address, requests } = await serve();
    const session = connect(address, { settings: { enablePush: false } });
    const whole = Buffer.concat([HEADERS, BODY]);
    const calls = Array.from({ length: whole.length - 1 }, () => openRaw(session));
    for (const [i, { stream }] of calls.entries()) stream.write(whole.subarray(0, i + 1));
    await until(() => answersOf(calls.at(-1)!).length > 0, 'the first parts have been read');
    for (const [i, { stream }] of calls.entries()) stream.end(whole.subarray(i + 1));
    await until(() => calls.every(({ isClosed }) => isClosed), 'all streams are over');
    for (const call of calls) expect(destinations(call)).toEqual([null, POD]);
    expect(requests).toHaveLength(whole.length - 1);
    expect(requests.every(({ body }) => Buffer.from(body!).equals(Buffer.from('{"model":"m"}')))).toBe(true);
  });

  test('a message a byte a frame', async () => {
    const { address } = await serve();
    const call = openRaw(connect(address));
    for (const byte of Buffer.concat([HEADERS, BODY])) {
      // Written together, they would be one frame.
      await new Promise((written) => call.stream.write(Buffer.of(byte), written));
    }
    call.stream.end();
    await until(() => call.isClosed, 'the stream is over');
    expect(destinations(call)).toEqual([null, POD]);
  });
});

const TOO_LARGE = Buffer.of(0, 0x7f, 0xff, 0xff, 0xff);
const breaches: readonly {
  name: string;
  bytes: Buffer;
  headers?: http2.OutgoingHttpHeaders;
  halfCloses?: true;
  status: string;
  reason: string;
  accept?: string;
}[] = [
  { name: 'compressed, encoding not named', bytes: withFlag(GET, 1), status: '13', reason: 'message_compressed' },
  {
    name: 'compressed, encoding identity',
    bytes: withFlag(GET, 1),
    headers: { 'grpc-encoding': 'identity' },
    status: '13',
    reason: 'message_compressed',
  },
  {
    name: 'compressed in an encoding nobody offered',
    bytes: withFlag(GET, 1),
    headers: { 'grpc-encoding': 'gzip' },
    status: '12',
    reason: 'message_compressed',
    accept: 'identity',
  },
  { name: 'a flag that does not exist', bytes: withFlag(GET, 2), status: '13', reason: 'message_compressed' },
  { name: 'no protobuf', bytes: frame(Buffer.from('ffffffffff', 'hex')), status: '13', reason: 'message_unreadable' },
  { name: 'over the limit', bytes: TOO_LARGE, status: '8', reason: 'message_too_large' },
  {
    name: 'half-closed in a message',
    bytes: GET.subarray(0, -1),
    halfCloses: true,
    status: '13',
    reason: 'message_cut_off',
  },
  {
    name: 'half-closed in a length',
    bytes: GET.subarray(0, 3),
    halfCloses: true,
    status: '13',
    reason: 'message_cut_off',
  },
  {
    name: 'half-closed before the message of a length',
    bytes: GET.subarray(0, 5),
    halfCloses: true,
    status: '13',
    reason: 'message_cut_off',
  },
  {
    name: 'a deadline nobody can read',
    bytes: GET,
    headers: { 'grpc-timeout': '5 minutes' },
    status: '13',
    reason: 'bad_timeout',
  },
];

describe('what cannot be read', () => {
  test.each(breaches)('$name', async ({ bytes, headers = {}, halfCloses, status, reason, accept }) => {
    const { address, results, requests, server } = await serve();
    const session = connect(address);
    const neighbour = openRaw(session);
    neighbour.stream.write(HEADERS);
    const call = openRaw(session, headers);
    if (halfCloses) call.stream.end(bytes);
    else call.stream.write(bytes);
    await until(() => call.isClosed, 'the stream is over');
    // The response is the trailers, and the peer is asked to send no more.
    expect(call.response).toBe(call.trailers);
    expect(call.trailers).toMatchObject({ ':status': 200, 'content-type': 'application/grpc+proto' });
    expect(call.trailers['grpc-status']).toBe(status);
    expect(call.trailers['grpc-accept-encoding']).toBe(accept);
    expect(call.stream.rstCode).toBe(http2.constants.NGHTTP2_NO_ERROR);
    expect(results).toMatchObject([{ outcome: 'error', reason, ending: 'failed' }]);
    expect(requests).toEqual([]);
    neighbour.stream.write(BODY);
    await until(() => isRouted(neighbour), 'the neighbour is served');
    expect(server.openStreams()).toBe(1);
  });

  test('after an answer the status comes in trailers', async () => {
    const { address, results } = await serve();
    const call = openRaw(connect(address));
    call.stream.write(Buffer.concat([HEADERS, withFlag(BODY, 1)]));
    await until(() => call.isClosed, 'the stream is over');
    expect(destinations(call)).toEqual([null]);
    expect(call.trailers).toMatchObject({ 'grpc-status': '13' });
    expect(call.trailers).not.toBe(call.response);
    expect(results).toHaveLength(1);
  });

  test('what a status says is percent-encoded', async () => {
    const { address } = await serve();
    const call = openRaw(connect(address), { 'grpc-encoding': '50% "ä"' });
    call.stream.write(withFlag(GET, 1));
    await until(() => call.isClosed, 'the stream is over');
    const message = String(call.trailers['grpc-message']);
    expect(message).toMatch(/^[\x20-\x24\x26-\x7e]*(%[0-9A-F]{2}[\x20-\x24\x26-\x7e]*)+$/);
    expect(decodeURIComponent(message)).toMatch(/^compressed message: got grpc-encoding 50% "/);
  });

  test('whoever goes on sending after the last word takes no window from the streams beside it', async () => {
    const { address } = await serve({ bodyMaxBytes: 1024 });
    const session = connect(address);
    const refusal = framed(requestHeaders({ headers: { 'content-length': '9999' } }), announced('BUFFERED'));
    // 32 MiB in all, twice the window of the connection.
    for (let i = 0; i < 32; i++) {
      const call = openRaw(session);
      call.stream.write(refusal);
      for (let piece = 0; piece < 16; piece++) call.stream.write(Buffer.alloc(64 * 1024));
      await until(() => call.isClosed, 'the stream is over');
      expect(answersOf(call)[0]!.immediate!.status).toBe('PayloadTooLarge');
    }
    await stillServes(session);
  });
});

describe('a deadline of the client', () => {
  /** A clock whose timers of two minutes go off when told to. */
  function steered(): { clock: Clock; twoMinutesLater(): void; nWaiting(): number } {
    const waiting = new Set<() => void>();
    return {
      clock: {
        ...systemClock,
        after(delayMs, callback) {
          if (delayMs !== 120_000) return systemClock.after(delayMs, callback);
          waiting.add(callback);
          return { cancel: () => waiting.delete(callback) };
        },
      },
      twoMinutesLater: () => waiting.forEach((callback) => callback()),
      nWaiting: () => waiting.size,
    };
  }

  test('ends a call that is not decided, and the question with it', async () => {
    const aborted: boolean[] = [];
    const { clock, twoMinutesLater } = steered();
    const { address, results, requests } = await serve(
      { deadlineMs: 60_000 },
      (_request, signal) => {
        signal.addEventListener('abort', () => aborted.push(true));
        return never();
      },
      clock,
    );
    const call = openRaw(connect(address), { 'grpc-timeout': '2M' });
    call.stream.write(GET);
    await until(() => requests.length === 1, 'the picker is asked');
    twoMinutesLater();
    await until(() => call.isClosed, 'the stream is over');
    expect(call.trailers).toMatchObject({ 'grpc-status': '4', 'grpc-message': 'deadline%20exceeded' });
    expect(results).toMatchObject([{ outcome: 'error', reason: 'client_deadline' }]);
    expect(aborted).toEqual([true]);
  });

  test('ends one that was answered, and gives back what it booked', async () => {
    const { clock, twoMinutesLater } = steered();
    const { address, results, held } = await serve({}, undefined, clock);
    const call = openRaw(connect(address), { 'grpc-timeout': '120000m' });
    call.stream.write(GET);
    await until(() => isRouted(call), 'it is routed');
    twoMinutesLater();
    await until(() => call.isClosed, 'the stream is over');
    expect(call.trailers).toMatchObject({ 'grpc-status': '4' });
    expect(results).toHaveLength(1);
    expect(held.map(({ released }) => released)).toEqual([['failed']]);
  });

  test('leaves no timer behind when the call is over before', async () => {
    const { clock, nWaiting } = steered();
    const { address } = await serve({}, undefined, clock);
    const call = openRaw(connect(address), { 'grpc-timeout': '120S' });
    call.stream.write(HEADERS);
    await until(() => answersOf(call).length === 1, 'the headers are answered');
    expect(nWaiting()).toBe(1);
    call.stream.end(BODY);
    await until(() => call.isClosed && nWaiting() === 0, 'the timer is gone');
    expect(call.trailers['grpc-status']).toBe('0');
  });
});

test('a half-close before the first message ends in order', async () => {
  const { address, results, requests } = await serve();
  const call = openRaw(connect(address));
  call.stream.end();
  await until(() => call.isClosed, 'the stream is over');
  expect(call.trailers).toMatchObject({ ':status': 200, 'grpc-status': '0' });
  expect(results).toMatchObject([{ outcome: 'cancelled', ending: 'half_close' }]);
  expect(requests).toEqual([]);
});

/** How far a call has come when its end comes. */
const stages: readonly {
  stage: string;
  begin(call: RawCall, running: RunningServer): Promise<void>;
}[] = [
  { stage: 'before the first message', begin: () => Promise.resolve() },
  {
    stage: 'in a message',
    begin: async ({ stream }) => void stream.write(GET.subarray(0, 20)),
  },
  {
    stage: 'after the headers',
    async begin(call) {
      call.stream.write(HEADERS);
      await until(() => answersOf(call).length === 1, 'the headers are answered');
    },
  },
  {
    stage: 'in the body',
    async begin(call) {
      call.stream.write(framed(requestHeaders(), announced('FULL_DUPLEX_STREAMED')));
      call.stream.write(framed(requestBody('{"mod', 'more')));
    },
  },
  {
    stage: 'while it is decided',
    async begin(call, { requests }) {
      call.stream.write(UNDECIDED);
      await until(() => requests.some(isUndecided), 'the picker is asked');
    },
  },
  {
    stage: 'after the answer',
    async begin(call) {
      call.stream.write(GET);
      await until(() => isRouted(call), 'it is routed');
    },
  },
  {
    stage: 'while it takes nothing back',
    async begin(call, running) {
      call.stream.write(ECHOED);
      await until(() => isRouted(call), 'it is routed');
      call.stream.pause();
      call.stream.write(framed(responseHeaders()));
      for (let i = 0; i < 128; i++) call.stream.write(framed(responseBody(Buffer.alloc(60_000), 'more')));
      let before = -1;
      await until(async () => {
        if (running.nResponseBytes > 0 && running.nResponseBytes === before) return true;
        before = running.nResponseBytes;
        await new Promise((resolve) => setTimeout(resolve, 50));
        return false;
      }, 'the server reads no further');
      expect(running.nResponseBytes).toBeLessThan(64 * 60_000);
    },
  },
];

const endings: readonly { ending: string; end(call: RawCall, session: http2.ClientHttp2Session): void }[] = [
  // Codes of Envoy up to 1.36, Envoy since 1.37, and gRPC clients.
  { ending: 'a reset with NO_ERROR', end: ({ stream }) => stream.close(http2.constants.NGHTTP2_NO_ERROR) },
  { ending: 'a reset with INTERNAL_ERROR', end: ({ stream }) => stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR) },
  { ending: 'a reset with CANCEL', end: ({ stream }) => stream.close(http2.constants.NGHTTP2_CANCEL) },
  { ending: 'the end of its connection', end: (_call, session) => session.destroy() },
  { ending: 'a cut cable', end: (_call, session) => session.socket.destroy() },
];

describe.each(stages)('$stage', ({ stage, begin }) => {
  test.each(endings)('$ending leaves nothing behind', async ({ end }) => {
    let nAborted = 0;
    const running = await serve({ deadlineMs: 60_000 }, (request, signal, route) => {
      signal.addEventListener('abort', () => (nAborted += 1));
      return isUndecided(request) ? never() : route();
    });
    const { address, server, results, held } = running;
    const neighbours = connect(address);
    const session = connect(address);
    const call = openRaw(session);
    await begin(call, running);
    await until(() => server.openStreams() === 1, 'the server has the stream');
    end(call, session);
    await until(() => server.openStreams() === 0, 'the server let go of the stream');
    expect(results).toHaveLength(1);
    expect(nAborted).toBe(stage === 'while it is decided' ? 1 : 0);
    for (const { released } of held) expect(released).toHaveLength(1);
    await stillServes(neighbours);
  });
});

describe('one connection', () => {
  test('a stream that takes nothing holds up no stream beside it', async () => {
    const running = await serve();
    const session = connect(running.address);
    const stuck = openRaw(session);
    await stages.at(-1)!.begin(stuck, running);
    await stillServes(session);
    const back = (): number => answersOf(stuck).reduce((total, { echo }) => total + (echo?.body.length ?? 0), 0);
    stuck.stream.resume();
    await until(() => back() === 128 * 60_000, 'everything came back');
  });

  test('1,000 streams at once are all served', async () => {
    const { address, held, server } = await serve();
    const session = connect(address, { peerMaxConcurrentStreams: 4_096 });
    const calls = Array.from({ length: 1_000 }, () => openRaw(session));
    for (const { stream } of calls) stream.write(HEADERS);
    await until(() => server.openStreams() === calls.length, 'all are open');
    for (const { stream } of calls) stream.end(BODY);
    await until(() => calls.every(({ isClosed }) => isClosed), 'all are over');
    expect(new Set(calls.map(isRouted))).toEqual(new Set([true]));
    expect(held.every(({ released }) => released.length === 1)).toBe(true);
  });

  test('windows that close and open again in the middle of a call only delay its answers', async () => {
    const { address, requests } = await serve();
    const session = connect(address);
    const call = openRaw(session);
    call.stream.write(HEADERS);
    await until(() => answersOf(call).length === 1, 'the headers are answered');
    const set = (initialWindowSize: number): Promise<void> =>
      new Promise((resolve) => session.settings({ initialWindowSize }, () => resolve()));
    await set(0);
    call.stream.write(BODY);
    const other = openRaw(session);
    other.stream.write(GET);
    await until(() => requests.length === 2, 'both are decided');
    expect(answersOf(other)).toEqual([]);
    await set(65_535);
    await until(() => isRouted(call) && isRouted(other), 'the answers came');
  });

  test('a GOAWAY of the peer leaves its open streams alone', async () => {
    const { address, server } = await serve();
    const session = connect(address);
    const call = openRaw(session);
    call.stream.write(HEADERS);
    await until(() => answersOf(call).length === 1, 'the headers are answered');
    session.goaway(http2.constants.NGHTTP2_NO_ERROR);
    call.stream.end(BODY);
    await until(() => call.isClosed, 'the stream is over');
    expect(isRouted(call)).toBe(true);
    expect(call.trailers['grpc-status']).toBe('0');
    expect(server.openStreams()).toBe(0);
  });

  test('is pinged 500 times at once and serves on', async () => {
    const { address } = await serve();
    const session = connect(address, { maxOutstandingPings: 1_000 });
    let nBack = 0;
    for (let i = 0; i < 500; i++) session.ping(() => void (nBack += 1));
    await stillServes(session);
    await until(() => nBack === 500, 'all pings are answered');
  });

  // Node ends a connection whose answers of this kind pile up; whether they do is a matter of how it is read.
  test.each<[string, (session: http2.ClientHttp2Session, i: number) => void]>([
    ['pings', (session) => session.ping(() => undefined)],
    ['settings', (session, i) => session.settings({ initialWindowSize: 70_000 + i })],
  ])('that is flooded with %s harms no other, and gives back what its streams booked', async (_what, send) => {
    const { address, server, held } = await serve();
    const other = connect(address);
    const session = connect(address, { maxOutstandingPings: 100_000 });
    session.setMaxListeners(0);
    const call = openRaw(session);
    call.stream.write(GET);
    await until(() => isRouted(call), 'it is routed');
    for (let i = 0; i < 5_000 && !session.destroyed; i++) {
      try {
        send(session, i);
      } catch {
        break;
      }
    }
    await stillServes(other);
    session.destroy();
    await until(() => server.openStreams() === 0, 'the stream is gone');
    expect(held.every(({ released }) => released.length === 1)).toBe(true);
  });

  test('a call with more metadata than anybody needs is reset alone', async () => {
    const { address, requests } = await serve();
    const session = connect(address);
    const call = openRaw(session, Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`x-${i}`, 'v'])));
    await until(() => call.isClosed, 'the stream is over');
    expect(call.stream.rstCode).toBe(http2.constants.NGHTTP2_ENHANCE_YOUR_CALM);
    expect(requests).toEqual([]);
    await stillServes(session);
  });
});
