/** The server over real gRPC on loopback: what the exchange's own tests cannot show. */
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import http2 from 'node:http2';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect as tlsConnect, type SecureVersion } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from '@jest/globals';
import { credentials, Server, ServerCredentials } from '@grpc/grpc-js';
import { systemClock } from '../../src/clock.ts';
import type { Decision } from '../../src/extproc/picker.ts';
import { createExtProcServer, type ExtProcServerOptions } from '../../src/extproc/server.ts';
import { loadServices } from '../../src/extproc/services.ts';
import { createLog } from '../../src/log.ts';
import { createUsageReader } from '../../src/openai/usage.ts';
import { endAfterEach } from '../support/endings.ts';
import { createHeld, SERVER_OPTIONS } from '../support/exchange-harness.ts';
import { createExtProcClient, createHealthClient } from '../support/extproc-client.ts';
import { announced, requestBody, requestHeaders, responseBody, responseHeaders } from '../support/extproc-messages.ts';
import { createExtProcServers, never, POD, until } from '../support/extproc-server.ts';

const TLS = fileURLToPath(new URL('../fixtures/tls/', import.meta.url));

const OPTIONS: ExtProcServerOptions = { ...SERVER_OPTIONS, drainTimeoutMs: 2_000 };

const atEnd = endAfterEach();
const serve = createExtProcServers(atEnd);
function connect(
  address: string,
  ...creds: Parameters<typeof createExtProcClient>[1][]
): ReturnType<typeof createExtProcClient> {
  const client = createExtProcClient(address, creds[0]);
  atEnd(() => client.close());
  return client;
}

function probe(address: string): ReturnType<typeof createHealthClient> {
  const client = createHealthClient(address);
  atEnd(() => client.close());
  return client;
}

describe('requests', () => {
  test.each(['BUFFERED', 'BUFFERED_PARTIAL', 'FULL_DUPLEX_STREAMED', 'NONE'] as const)(
    'a request in %s is routed and its reservation ends with the stream',
    async (mode) => {
      const { address, held, results } = await serve();
      const answers = await connect(address).request({ mode, body: '{"model":"m"}' });
      expect(answers.map(({ metadata }) => metadata)).toContain(POD);
      await until(() => results.length === 1, 'the stream ended');
      expect(results[0]).toMatchObject({ outcome: 'routed', mode, endpoint: POD });
      expect(held.map(({ released }) => released)).toEqual([['completed']]);
    },
  );

  test.each(['BUFFERED', 'FULL_DUPLEX_STREAMED'] as const)('a body of 8 MiB crosses unchanged in %s', async (mode) => {
    const body = Buffer.alloc(8 * 1024 * 1024);
    for (let i = 0; i < body.length; i += 4) body.writeUInt32LE(i, i);
    let same = false;
    const { address } = await serve({ bodyMaxBytes: 10 * 1024 * 1024 }, (request) => {
      same = body.equals(Buffer.from(request.body!));
      return Promise.resolve({ kind: 'routed', endpoints: [POD], reservation: createHeld().reservation });
    });
    const answers = await connect(address).request({ mode, body });
    expect(same).toBe(true);
    if (mode === 'BUFFERED') return;
    const echoed = Buffer.concat(answers.flatMap(({ echo }) => (echo ? [echo.body] : [])));
    expect(echoed.equals(body)).toBe(true);
  });

  test('STREAMED works by headers alone and is warned of once', async () => {
    const { address, lines, results, requests } = await serve();
    const client = connect(address);
    for (let i = 0; i < 2; i += 1) {
      const answers = await client.request({ mode: 'STREAMED', body: '{}' });
      expect(answers.map(({ metadata }) => metadata)).toEqual([POD, null]);
    }
    await until(() => results.length === 2, 'both streams ended');
    expect(requests.map(({ body }) => body)).toEqual([null, null]);
    expect(lines.filter(({ level }) => level === 'warn')).toHaveLength(1);
  });

  test('no log line shows a header, a body or a query', async () => {
    const { address, lines, results } = await serve();
    const headers = { ':path': '/v1/completions?key=secret-query', authorization: 'Bearer secret-token' };
    await connect(address).request({ mode: 'BUFFERED', body: '{"prompt":"secret-prompt"}', headers });
    await connect(address).request({ mode: 'BUFFERED', body: Buffer.alloc(2 * 1024 * 1024, 'secret-'), headers });
    await until(() => results.length === 2, 'both streams ended');
    expect(lines.length).toBeGreaterThanOrEqual(3);
    expect(JSON.stringify(lines)).not.toContain('secret');
  });

  test('responses are answered, whatever they carry', async () => {
    const { address, results } = await serve();
    const stream = connect(address).open();
    stream.send(requestHeaders({ endOfStream: true }), announced('BUFFERED', { responseBody: 'STREAMED' }));
    await stream.next();
    stream.send(responseHeaders());
    stream.send(responseBody('x', 'more'));
    stream.send(responseBody(''));
    const kinds = [await stream.next(), await stream.next(), await stream.next()].map(({ kind }) => kind);
    expect(kinds).toEqual(['response_headers', 'response_body', 'response_body']);
    stream.reset();
    await until(() => results.length === 1, 'the stream ended');
    expect(results[0]).toMatchObject({ outcome: 'routed', completion: 'response' });
  });

  test('a slow consumer of its own 8 MiB gets all of it, and other streams go on meanwhile', async () => {
    const { address } = await serve({ bodyMaxBytes: 10 * 1024 * 1024 });
    const client = connect(address);
    const slow = client.open();
    const body = Buffer.alloc(8 * 1024 * 1024, 'b');
    slow.pause();
    slow.send(requestHeaders(), announced('FULL_DUPLEX_STREAMED'));
    slow.send(requestBody(body));
    const other = connect(address);
    expect(await other.request({ mode: 'BUFFERED', body: '{}' })).toHaveLength(2);
    expect(slow.answers.length).toBeLessThan(100);
    slow.resume();
    slow.halfClose();
    expect((await slow.status).code).toBe(0);
    expect(slow.answers.reduce((total, { echo }) => total + (echo?.body.length ?? 0), 0)).toBe(body.length);
  });
});

test('usage seen by an observing filter reaches the reservation of the stream that was answered', async () => {
  const { address, held, results } = await serve();
  const client = connect(address);
  const answered = client.open();
  const id = { headers: { 'x-request-id': 'r-1' } };
  answered.send(requestHeaders({ ...id, endOfStream: true }), announced('NONE'));
  await answered.next();
  const observing = client.open();
  const observe = { observability_mode: true };
  observing.send(requestHeaders(id), observe);
  observing.send(responseHeaders(), observe);
  observing.send(responseBody('{"usage":{"prompt_tokens":9,"completion_tokens":1}}'), observe);
  await until(() => held[0]!.usages.length === 1, 'the usage arrived');
  expect(held[0]).toMatchObject({ usages: [{ promptTokens: 9 }], released: ['completed'] });
  answered.reset();
  observing.reset();
  await until(() => results.length === 2, 'both streams ended');
  expect(results.map(({ outcome }) => outcome).sort()).toEqual(['observed', 'routed']);
  expect(observing.answers).toEqual([]);
  expect(held[0]!.released).toEqual(['completed']);
});

test.each([
  ['breaks off is one of a client that is gone', [responseBody('data: {', 'more')], 'cancelled'],
  ['shows headers only says nothing of its end', [], 'completed'],
])('an answer that, to an observing filter, %s', async (_says, shown, fate) => {
  const { address, held, results } = await serve();
  const client = connect(address);
  const id = { headers: { 'x-request-id': 'r-1' } };
  const observe = { observability_mode: true };
  const [answered, observing] = [client.open(), client.open()];
  observing.send(requestHeaders(id), observe);
  answered.send(requestHeaders({ ...id, endOfStream: true }), announced('NONE'));
  await answered.next();
  observing.send(responseHeaders(), observe);
  for (const message of shown) observing.send(message, observe);
  answered.halfClose();
  await until(() => results.length === 1, 'the answered stream has ended');
  observing.halfClose();
  await until(() => results.length === 2, 'the observing one has ended');
  expect(held[0]).toMatchObject({ firstBytes: shown.length, released: [fate] });
});

test('an Envoy that does not take its answers back is read no further than a bounded amount ahead', async () => {
  const setup = await serve();
  const stream = connect(setup.address).open();
  stream.send(requestHeaders({ endOfStream: true }), announced('NONE', { responseBody: 'FULL_DUPLEX_STREAMED' }));
  await stream.next();
  stream.pause();
  const chunk = Buffer.alloc(256 * 1024);
  const nChunks = 128;
  stream.send(responseHeaders());
  for (let i = 0; i < nChunks; i += 1) stream.send(responseBody(chunk, i === nChunks - 1 ? 'eos' : 'more'));
  let before = -1;
  await until(async () => {
    if (setup.nResponseBytes > 0 && setup.nResponseBytes === before) return true;
    before = setup.nResponseBytes;
    await new Promise((resolve) => setTimeout(resolve, 50));
    return false;
  }, 'the server reads no further');
  expect(setup.nResponseBytes).toBeLessThan((nChunks * chunk.length) / 4);
  stream.resume();
  stream.halfClose();
  expect((await stream.status).code).toBe(0);
  const nBack = stream.answers.reduce((total, { echo }) => total + (echo?.body.length ?? 0), 0);
  expect(nBack).toBe(nChunks * chunk.length);
});

describe('faults stay where they happen', () => {
  test.each([
    [
      'throws',
      () => {
        throw new Error('boom');
      },
    ],
    ['rejects', () => Promise.reject(new Error('boom'))],
    ['never settles', never],
  ] as const)('a picker that %s costs its own request a 503', async (_name, pick) => {
    const { address, results, lines } = await serve({ deadlineMs: 30 }, pick);
    const answers = await connect(address).request({ mode: 'BUFFERED', body: '{}' });
    expect(answers[1]!.immediate!.status).toBe('ServiceUnavailable');
    await until(() => results.length === 1, 'the stream ended');
    expect(results[0]!.outcome).toBe('error');
    expect(lines.filter(({ level }) => level === 'error').map(({ msg }) => msg)).toEqual(
      pick === never ? [] : ['picker failed'],
    );
  });

  test('a bug is told without what it was about', async () => {
    const { address, lines } = await serve({}, ({ body }) => {
      JSON.parse(Buffer.from(body!).toString());
      return never();
    });
    await connect(address).request({ mode: 'BUFFERED', body: 'secret-prompt' });
    await until(() => lines.some(({ msg }) => msg === 'picker failed'), 'the fault is logged');
    const { error } = lines.find(({ msg }) => msg === 'picker failed')!;
    expect(error).toMatch(/^SyntaxError at .*extproc\.test\.ts:\d+/);
    expect(JSON.stringify(lines)).not.toContain('secret');
  });

  test('a hook and a reservation that throw are logged, and the next request works', async () => {
    let nPicks = 0;
    const { address, lines, results } = await serve({}, () => {
      nPicks += 1;
      const { reservation } = createHeld();
      const broken = {
        ...reservation,
        release: () => {
          throw new Error('release failed');
        },
      };
      return Promise.resolve({ kind: 'routed', endpoints: [POD], reservation: nPicks === 1 ? broken : reservation });
    });
    const client = connect(address);
    expect(await client.request({ mode: 'BUFFERED', body: '{}' })).toHaveLength(2);
    expect(await client.request({ mode: 'BUFFERED', body: '{}' })).toHaveLength(2);
    await until(() => results.length === 2, 'both streams ended');
    expect(lines.filter(({ msg }) => msg === 'stream handler failed')).toMatchObject([{ error: 'release failed' }]);
  });

  test('a body over the cap gets its 413 in a message below the gRPC limit', async () => {
    const { address } = await serve({ bodyMaxBytes: 1024 });
    const answers = await connect(address).request({ mode: 'BUFFERED', body: Buffer.alloc(100_000) });
    expect(answers[1]!.immediate!.status).toBe('PayloadTooLarge');
  });

  test('more streams than the limit are turned away with a reason before any work', async () => {
    const { address, requests, server } = await serve({ limits: { ...OPTIONS.limits, maxStreams: 1 } }, never);
    const client = connect(address);
    const first = client.open();
    first.send(requestHeaders({ endOfStream: true }), announced('NONE'));
    await until(() => requests.length === 1, 'the first stream is being decided');
    expect(server.openStreams()).toBe(1);
    const answers = await client.request({ mode: 'NONE', body: null });
    expect(answers[0]).toMatchObject({ set: { 'x-warmpath-reason': 'too_many_streams' } });
    expect(requests).toHaveLength(1);
    first.reset();
    await until(() => server.openStreams() === 0, 'the first stream is gone');
  });
});

describe('bodies of many requests at once', () => {
  const SIZE = 100_000;
  const largeOnes = async (mode: 'FULL_DUPLEX_STREAMED' | 'BUFFERED', end: 'more' | 'eos') => {
    const options = { bodyMaxBytes: SIZE, bodiesMaxBytes: 3.5 * SIZE, deadlineMs: 60_000 };
    const running = await serve(options, ({ path }, _signal, route) => (path === '/small' ? route() : never()));
    const client = connect(running.address);
    const held: ReturnType<typeof client.open>[] = [];
    for (let i = 0; i < 4; i++) {
      const stream = client.open();
      stream.send(requestHeaders(), announced(mode));
      stream.send(requestBody(Buffer.alloc(SIZE - i, 'x'), end));
      held.push(stream);
    }
    return { ...running, client, held };
  };

  test.each([
    ['that are sent slowly', 'FULL_DUPLEX_STREAMED', 'more'],
    ['that wait for a choice', 'FULL_DUPLEX_STREAMED', 'eos'],
    ['that wait for a choice', 'BUFFERED', 'eos'],
  ] as const)('%s, in %s: beyond the limit the largest is told to try again, the others stay', async (_, mode, end) => {
    const { client, held, results, server } = await largeOnes(mode, end);
    expect(await held[0]!.status).toMatchObject({ code: 0 });
    expect(held[0]!.answers.at(-1)).toMatchObject({
      immediate: { status: 'ServiceUnavailable' },
      set: { 'x-warmpath-reason': 'too_many_body_bytes', 'retry-after': '1' },
    });
    const small = client.open();
    small.send(requestHeaders({ headers: { ':path': '/small' } }), announced('BUFFERED'));
    small.send(requestBody('{}'));
    await small.next();
    expect((await small.next()).metadata).toBe(POD);
    expect(results).toMatchObject([{ outcome: 'error', reason: 'too_many_body_bytes' }]);
    expect(server.openStreams()).toBe(4);
    for (const stream of [small, ...held.slice(1)]) stream.reset();
    await until(() => server.openStreams() === 0, 'all are gone');
    // All of it has been given back.
    const again = await Promise.all(
      Array.from({ length: 3 }, () =>
        client.request({ mode, body: Buffer.alloc(SIZE, 'y'), headers: { ':path': '/small' } }),
      ),
    );
    expect(again.map((answers) => answers.some(({ metadata }) => metadata === POD))).toEqual([true, true, true]);
  });
});

describe('resets', () => {
  /** Opens, asks, and resets n streams on one connection, while one stream of that connection stays open. */
  async function storm(client: ReturnType<typeof createExtProcClient>, n: number): Promise<void> {
    const parallel = 50;
    for (let i = 0; i < n; i += parallel) {
      const batch = Array.from({ length: parallel }, () => client.open());
      for (const stream of batch) stream.send(requestHeaders({ endOfStream: true }), announced('NONE'));
      await Promise.all(batch.map((stream) => stream.next()));
      for (const stream of batch) stream.reset();
    }
  }

  test('3,000 reset streams on one connection harm neither it nor a stream held open on it', async () => {
    const { address, results, held, server } = await serve();
    const client = connect(address);
    const survivor = client.open();
    survivor.send(requestHeaders(), announced('BUFFERED'));
    await survivor.next();
    await storm(client, 3_000);
    survivor.send(requestBody('{}'));
    expect((await survivor.next()).metadata).toBe(POD);
    survivor.halfClose();
    expect((await survivor.status).code).toBe(0);
    await until(() => server.openStreams() === 0, 'all streams are gone');
    expect(results).toHaveLength(3_001);
    expect(held.every(({ released }) => released.length === 1)).toBe(true);
    expect(new Set(results.map(({ outcome }) => outcome))).toEqual(new Set(['routed']));
  });

  test('3,000 streams that are half-closed leave nothing behind either', async () => {
    const { address, results, held, server } = await serve();
    const client = connect(address);
    for (let round = 0; round < 30; round += 1) {
      const requests = Array.from({ length: 100 }, () => client.request({ mode: 'BUFFERED', body: '{}' }));
      for (const answers of await Promise.all(requests)) expect(answers).toHaveLength(2);
    }
    await until(() => results.length === 3_000 && server.openStreams() === 0, 'all streams ended');
    expect(held.every(({ released }) => released.length === 1)).toBe(true);
    expect(new Set(results.map(({ ending }) => ending))).toEqual(new Set(['half_close']));
  });

  test('a storm of resets kills a connection of a grpc-js server without the remedy', async () => {
    const { externalProcessor } = loadServices();
    const server = new Server();
    server.addService(externalProcessor, {
      Process: (call: { on(event: 'data', listener: () => void): void; write(message: object): void }) =>
        call.on('data', () => call.write({ request_headers: {} })),
    });
    const port = await new Promise<number>((resolve, reject) => {
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      );
    });
    atEnd(() => server.forceShutdown());
    const client = connect(`127.0.0.1:${port}`);
    const victim = client.open();
    victim.send(requestHeaders(), announced('BUFFERED'));
    await victim.next();
    await storm(client, 3_000).catch(() => undefined);
    expect((await victim.status).code).not.toBe(0);
  });

  test('connections offer receive windows that take a 1 MB body without waiting', async () => {
    const { address } = await serve();
    const session = http2.connect(`http://${address}`);
    atEnd(() => session.destroy());
    await until(() => (session.state.remoteWindowSize ?? 0) >= 16 * 1024 * 1024, 'the connection window is raised');
    expect(session.remoteSettings.initialWindowSize).toBe(1024 * 1024);
    expect(session.remoteSettings.maxConcurrentStreams).toBe(4_096);
  });
});

describe('health', () => {
  test('follows readiness on both ports, liveness does not', async () => {
    const { address, healthAddress, server } = await serve({ healthListen: '127.0.0.1:0' });
    for (const client of [probe(address), probe(healthAddress!)]) {
      expect(await client.check('')).toBe('NOT_SERVING');
      expect(await client.check('liveness')).toBe('SERVING');
    }
    server.setServing('SERVING');
    const client = probe(healthAddress!);
    expect(await client.list()).toEqual({
      '': { status: 'SERVING' },
      liveness: { status: 'SERVING' },
      readiness: { status: 'SERVING' },
      'envoy.service.ext_proc.v3.ExternalProcessor': { status: 'SERVING' },
    });
    expect(await client.check('readiness')).toBe('SERVING');
    expect(await client.check('other')).toBe('5');
  });

  test('a watch hears every change once, an unknown name stays open as SERVICE_UNKNOWN', async () => {
    const { address, server } = await serve();
    const client = probe(address);
    const known = client.watch('readiness');
    const unknown = client.watch('other');
    await until(() => known.statuses.length === 1 && unknown.statuses.length === 1, 'first statuses');
    server.setServing('SERVING');
    server.setServing('SERVING');
    server.setServing('NOT_SERVING');
    await until(() => known.statuses.length === 3, 'changes');
    expect(known.statuses).toEqual(['NOT_SERVING', 'SERVING', 'NOT_SERVING']);
    expect(unknown.statuses).toEqual(['SERVICE_UNKNOWN']);
  });
});

describe('start and stop', () => {
  test('a port in use is one clear error, and nothing is left listening', async () => {
    const first = await serve();
    const second = createExtProcServer(
      {
        picker: { pick: never },
        log: createLog('error', () => undefined),
        clock: systemClock,
        createUsageReader,
        onStream: () => undefined,
      },
      { ...OPTIONS, healthListen: first.address },
    );
    await expect(second.start()).rejects.toMatchObject({
      code: 'address_in_use',
      message: `server.healthListen: ${first.address} is already in use`,
    });
    await second.stop();
  });

  test('a server that was never started stops', async () => {
    const server = createExtProcServer(
      {
        picker: { pick: never },
        log: createLog('error', () => undefined),
        clock: systemClock,
        createUsageReader,
        onStream: () => undefined,
      },
      OPTIONS,
    );
    await server.stop();
    await server.stop();
  });

  test('drains: not serving first, then answered streams end with status 0, undecided ones are decided, the rest is retried', async () => {
    let decide: (decision: Decision) => void = () => undefined;
    const { fate, reservation } = createHeld();
    const { address, healthAddress, server, requests, results } = await serve(
      { healthListen: '127.0.0.1:0', drainDelayMs: 150, drainTimeoutMs: 400 },
      (request) =>
        request.path === '/slow'
          ? new Promise((resolve) => (decide = resolve))
          : Promise.resolve({ kind: 'routed', endpoints: [POD], reservation }),
    );
    server.setServing('SERVING');
    const watcher = probe(healthAddress!).watch('readiness');
    const client = connect(address);
    const answered = client.open();
    answered.send(requestHeaders({ endOfStream: true }), announced('NONE'));
    await answered.next();
    const slow = client.open();
    slow.send(requestHeaders({ headers: { ':path': '/slow' }, endOfStream: true }), announced('NONE'));
    const stuck = client.open();
    stuck.send(requestHeaders(), announced('BUFFERED'));
    await stuck.next();
    await until(() => requests.length === 2, 'two requests were asked about');

    const stopped = server.stop();
    expect(server.stop()).toBe(stopped);
    server.setServing('SERVING');
    await until(() => watcher.statuses.at(-1) === 'NOT_SERVING', 'health says so');
    const late = await client.request({ mode: 'NONE', body: null });
    expect(late[0]!.metadata).toBe(POD);

    expect(await answered.status).toMatchObject({ code: 0 });
    expect(fate.released.length).toBeGreaterThan(0);
    decide({ kind: 'routed', endpoints: [POD], reservation: createHeld().reservation });
    expect((await slow.next()).metadata).toBe(POD);
    expect(await slow.status).toMatchObject({ code: 0 });
    expect(await stuck.status).toMatchObject({ code: 14 });
    expect(await watcher.ended).toBeDefined();
    await stopped;
    expect(results.map(({ ending }) => ending).sort()).toEqual(['failed', 'half_close', 'shutdown', 'shutdown']);
    const refused = connect(address).open();
    expect((await refused.status).code).toBe(14);
  });

  test('a watching client and an idle connection hold nothing up', async () => {
    const { address, server } = await serve({ drainTimeoutMs: 10_000 });
    const watcher = probe(address).watch('');
    await connect(address).request({ mode: 'NONE', body: null });
    await until(() => watcher.statuses.length === 1, 'the watch is open');
    const startedAt = Date.now();
    const idle = http2.connect(`http://${address}`);
    idle.on('error', () => undefined);
    atEnd(() => idle.destroy());
    await server.stop();
    expect(Date.now() - startedAt).toBeLessThan(8_000);
  });
});

describe('tls', () => {
  const ca = readFileSync(`${TLS}server-a.crt`);

  test('mutual TLS: a client of the right CA is served, one without a certificate is not', async () => {
    const { address } = await serve({
      tls: { certFile: `${TLS}server-a.crt`, keyFile: `${TLS}server-a.key`, clientCaFile: `${TLS}ca.crt` },
    });
    const trusted = credentials.createSsl(ca, readFileSync(`${TLS}client.key`), readFileSync(`${TLS}client.crt`));
    expect(await connect(address, trusted).request({ mode: 'BUFFERED', body: '{}' })).toHaveLength(2);
    const stranger = connect(address, credentials.createSsl(ca)).open();
    expect((await stranger.status).code).toBe(14);
  });

  test('a client that knows no TLS above 1.1 gets no connection', async () => {
    const { address } = await serve({
      tls: { certFile: `${TLS}server-a.crt`, keyFile: `${TLS}server-a.key`, clientCaFile: null },
    });
    const versionOf = async (minVersion: SecureVersion, maxVersion: SecureVersion): Promise<string | null> => {
      const socket = tlsConnect({
        host: '127.0.0.1',
        port: Number(address.split(':')[1]),
        rejectUnauthorized: false,
        minVersion,
        maxVersion,
        // Or OpenSSL would refuse it on the client's side.
        ciphers: 'DEFAULT@SECLEVEL=0',
      });
      atEnd(() => socket.destroy());
      return new Promise((resolve) => {
        socket.on('secureConnect', () => resolve(socket.getProtocol()));
        socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'no code'));
      });
    };
    expect(await versionOf('TLSv1', 'TLSv1.1')).toBe('ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION');
    expect(await versionOf('TLSv1.2', 'TLSv1.2')).toBe('TLSv1.2');
  });

  test('self-signed: encrypted for clients that do not verify, and a new certificate at every start', async () => {
    const unverified = (): ReturnType<typeof credentials.createSsl> =>
      credentials.createSsl(null, null, null, { rejectUnauthorized: false });
    const serials = new Set<string>();
    for (let start = 0; start < 2; start++) {
      const { address } = await serve({ tls: 'self_signed' });
      expect(await connect(address, unverified()).request({ mode: 'BUFFERED', body: '{}' })).toHaveLength(2);
      const plain = connect(address).open();
      expect((await plain.status).code).toBe(14);
      // As Envoy connects where no ALPN is configured.
      const socket = tlsConnect({ host: '127.0.0.1', port: Number(address.split(':')[1]), rejectUnauthorized: false });
      atEnd(() => socket.destroy());
      await once(socket, 'secureConnect');
      const { serialNumber, valid_to: validTo } = socket.getPeerCertificate();
      serials.add(serialNumber);
      expect(Date.parse(validTo)).toBeGreaterThan(Date.now() + 365 * 86_400_000);
    }
    expect(serials.size).toBe(2);
  });

  describe('with a list of client names', () => {
    const CLIENT = 'URI:spiffe://cluster.local/ns/gateway/sa/envoy';
    const mutual = (allowedClients: readonly string[]): Partial<ExtProcServerOptions> => ({
      tls: {
        certFile: `${TLS}server-a.crt`,
        keyFile: `${TLS}server-a.key`,
        clientCaFile: `${TLS}ca.crt`,
        allowedClients,
      },
    });
    const trusted = (): ReturnType<typeof credentials.createSsl> =>
      credentials.createSsl(
        readFileSync(`${TLS}server-a.crt`),
        readFileSync(`${TLS}client.key`),
        readFileSync(`${TLS}client.crt`),
      );

    test('a client on it is served', async () => {
      const { address, results } = await serve(mutual(['DNS:other.test', CLIENT]));
      const client = connect(address, trusted());
      expect((await client.request({ mode: 'NONE', body: null })).map(({ metadata }) => metadata)).toEqual([POD]);
      await until(() => results.length === 1, 'the stream ended');
    });

    test('another client of the same CA gets PERMISSION_DENIED for every stream, each counted, none seen by the picker', async () => {
      const { address, requests, results, lines } = await serve(mutual([`${CLIENT}-2`]));
      const client = connect(address, trusted());
      for (let i = 0; i < 3; i++) {
        const stream = client.open();
        stream.send(requestHeaders({ endOfStream: true }), announced('NONE'));
        expect(await stream.status).toEqual({ code: 7, details: 'client identity not allowed' });
      }
      expect(requests).toEqual([]);
      expect(results.map(({ reason, outcome }) => [outcome, reason])).toEqual(
        Array(3).fill(['error', 'client_not_allowed']),
      );
      expect(lines.filter(({ msg }) => msg === 'client not allowed')).toHaveLength(1);
    });
  });

  test('a missing certificate is one clear error at start', async () => {
    await expect(
      serve({ tls: { certFile: '/nowhere/tls.crt', keyFile: `${TLS}server-a.key`, clientCaFile: null } }),
    ).rejects.toMatchObject({
      code: 'io_failed',
      message: expect.stringMatching(/^server\.tls\.certFile: cannot read \/nowhere/),
    });
  });

  test('a changed certificate is taken up, an unusable one keeps the old and says so once', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'warmpath-tls-'));
    atEnd(() => rmSync(dir, { recursive: true }));
    // As Kubernetes changes files: all at once, by another link.
    const show = (name: string, files: { 'tls.crt'?: Buffer; 'tls.key'?: Buffer }): void => {
      mkdirSync(join(dir, name));
      for (const [file, bytes] of Object.entries(files)) writeFileSync(join(dir, name, file), bytes);
      symlinkSync(join(dir, name), join(dir, 'next'));
      renameSync(join(dir, 'next'), join(dir, 'current'));
    };
    const bytesOf = (name: string): Buffer => readFileSync(`${TLS}${name}`);
    const [certificate, key] = [bytesOf('server-a.crt'), bytesOf('server-a.key')];
    show('first', { 'tls.crt': certificate, 'tls.key': key });
    const { address, lines } = await serve({
      tls: {
        certFile: join(dir, 'current/tls.crt'),
        keyFile: join(dir, 'current/tls.key'),
        clientCaFile: null,
        reloadEveryMs: 10,
      },
    });
    const works = async (name: string): Promise<boolean> => {
      const client = createExtProcClient(address, credentials.createSsl(bytesOf(`${name}.crt`)));
      const answers = await client.request({ mode: 'NONE', body: null });
      client.close();
      return answers.length === 1;
    };
    expect(await works('server-a')).toBe(true);
    const complaints = (): string[] =>
      lines.filter(({ msg }) => msg === 'tls certificate not reloaded, the old one stays').map(({ error }) => error!);
    for (const [name, files, words] of [
      ['garbage', { 'tls.crt': Buffer.from('no certificate'), 'tls.key': key }, /do not fit together/],
      ['of-another-key', { 'tls.crt': bytesOf('server-b.crt'), 'tls.key': key }, /do not fit together.*mismatch/],
      ['nothing', {}, /server\.tls\.certFile: cannot read/],
    ] as const) {
      show(name, files);
      await until(() => complaints().some((text) => words.test(text)), `the complaint of ${name}`);
      expect(await works('server-a')).toBe(true);
    }
    expect(new Set(complaints()).size).toBe(complaints().length);
    show('second', { 'tls.crt': bytesOf('server-b.crt'), 'tls.key': bytesOf('server-b.key') });
    await until(() => lines.some(({ msg }) => msg === 'tls certificate reloaded'), 'the reload');
    expect(await works('server-b')).toBe(true);
  });

  describe('the CA of clients', () => {
    const bytesOf = (name: string): Buffer => readFileSync(`${TLS}${name}`);
    const [old, own] = [bytesOf('ca.crt'), bytesOf('server-b.crt')];
    /** With what a file holds that Node would take as it is. */
    const unusable: readonly (readonly [name: string, bytes: Buffer, words: RegExp])[] = [
      ['nothing', Buffer.alloc(0), /got none, expected PEM certificates$/],
      ['a key', bytesOf('server-a.key'), /got none, expected PEM certificates$/],
      ['a certificate cut off', old.subarray(0, 200), /got 1 of which one is cut off$/],
      ['a second one cut off', Buffer.concat([old, own.subarray(0, 200)]), /got 2 of which one is cut off$/],
      ['noise in PEM', Buffer.from(old.toString().replace(/\nM[^]{60}/, '\nMIIA')), /no certificates of a CA in/],
    ];
    const tls = (clientCaFile: string): Partial<ExtProcServerOptions> => ({
      tls: { certFile: `${TLS}server-a.crt`, keyFile: `${TLS}server-a.key`, clientCaFile, reloadEveryMs: 10 },
    });
    const aFile = (bytes: Buffer): string => {
      const dir = mkdtempSync(join(tmpdir(), 'warmpath-ca-'));
      atEnd(() => rmSync(dir, { recursive: true }));
      writeFileSync(join(dir, 'ca.crt'), bytes);
      return join(dir, 'ca.crt');
    };
    const replace = (path: string, bytes: Buffer): void => {
      writeFileSync(`${path}.next`, bytes);
      renameSync(`${path}.next`, path);
    };

    test.each(unusable)('%s is a mistake at start', async (_name, bytes, words) => {
      await expect(serve(tls(aFile(bytes)))).rejects.toMatchObject({
        code: 'io_failed',
        message: expect.stringMatching(words),
      });
    });

    test('a new one is taken up, an unusable one keeps the old and says so', async () => {
      const path = aFile(old);
      const { address, lines } = await serve(tls(path));
      const isServed = async (name: string): Promise<boolean> => {
        const client = createExtProcClient(
          address,
          credentials.createSsl(ca, bytesOf(`${name}.key`), bytesOf(`${name}.crt`)),
        );
        const stream = client.open();
        stream.send(requestHeaders({ endOfStream: true }), announced('NONE'));
        const served = await stream.next().then(
          () => true,
          () => false,
        );
        client.close();
        return served;
      };
      for (const [name, bytes, words] of unusable) {
        replace(path, bytes);
        await until(() => lines.some(({ error }) => words.test(error ?? '')), `the complaint of ${name}`);
        expect([await isServed('client'), await isServed('server-b')]).toEqual([true, false]);
      }
      replace(path, Buffer.concat([Buffer.from('# two of them\n'), own, old]));
      await until(() => lines.some(({ msg }) => msg === 'tls certificate reloaded'), 'the reload of both');
      expect([await isServed('client'), await isServed('server-b')]).toEqual([true, true]);
      replace(path, own);
      await until(() => lines.filter(({ msg }) => msg === 'tls certificate reloaded').length === 2, 'the last reload');
      expect([await isServed('client'), await isServed('server-b')]).toEqual([false, true]);
    });
  });
});
