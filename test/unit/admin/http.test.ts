import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { describe, expect, test } from '@jest/globals';
import { createAdminServer, type AdminDeps, type AdminServer } from '../../../src/admin/http.ts';
import { createReadiness } from '../../../src/admin/readiness.ts';
import { createRequestTrace, type TraceEntry } from '../../../src/load/request-trace.ts';
import { createLog, silentLog } from '../../../src/log.ts';
import { createMetrics } from '../../../src/metrics.ts';
import { endAfterEach } from '../../support/endings.ts';

const atEnd = endAfterEach();

function anAdmin(given: Partial<AdminDeps> = {}, listen = '127.0.0.1:0'): AdminServer {
  const server = createAdminServer(
    {
      metrics: createMetrics(),
      readiness: createReadiness([]),
      endpoints: () => [],
      excluded: () => [],
      explain: async () => ({ status: 200, body: {} }),
      decisions: () => [],
      requests: () => '',
      config: () => ({}),
      log: silentLog,
      ...given,
    },
    { listen },
  );
  atEnd(() => server.stop());
  return server;
}

/** Base URL of a started server. */
async function started(given: Partial<AdminDeps> = {}): Promise<string> {
  return `http://${(await anAdmin(given).start()).address}`;
}

const anEntry = (promptTokens: number): TraceEntry => ({
  unixMs: 1,
  model: 'm',
  strategy: 'prefix-cache',
  rung: 'exact',
  endpoint: '10.0.0.1:8000',
  outcome: 'completed',
  promptTokens,
  predictedCachedTokens: 0,
  observedCachedTokens: null,
  predictedOutputTokens: null,
  outputTokens: null,
  decidedMs: 0.4,
  firstByteMs: null,
  endMs: 100,
});

const post = (url: string, body: string): Promise<Response> => fetch(`${url}/api/v1/explain`, { method: 'POST', body });

describe('what is shown', () => {
  test('/api/v1/requests is a page of JSON lines, the newest', async () => {
    const trace = createRequestTrace(3);
    for (let n = 1; n <= 5; n++) trace.add(anEntry(n));
    const url = await started({ requests: trace.jsonLines });
    const lines = async (query: string): Promise<number[]> => {
      const answer = await fetch(`${url}/api/v1/requests${query}`);
      expect(answer.headers.get('content-type')).toBe('application/x-ndjson; charset=utf-8');
      const text = await answer.text();
      return text
        .split('\n')
        .slice(0, -1)
        .map((line) => (JSON.parse(line) as TraceEntry).promptTokens);
    };
    expect(await lines('')).toEqual([3, 4, 5]);
    expect(await lines('?limit=2')).toEqual([4, 5]);
    const wrong = await fetch(`${url}/api/v1/requests?limit=0`);
    expect([wrong.status, await wrong.json()]).toEqual([
      400,
      { error: 'limit must be an integer from 1 to 10000, got "0"' },
    ]);
  });

  test('/api/v1/endpoints?all=1 adds what discovery does not use, with its reason', async () => {
    const url = await started({
      endpoints: () => [{ name: 'pod-a' }],
      excluded: () => [{ name: 'pod-b', reason: 'has no IP address yet' }],
    });
    expect(await (await fetch(`${url}/api/v1/endpoints`)).json()).toEqual([{ name: 'pod-a' }]);
    expect(await (await fetch(`${url}/api/v1/endpoints?all=1`)).json()).toEqual([
      { name: 'pod-a' },
      { name: 'pod-b', ready: false, reason: 'has no IP address yet' },
    ]);
  });

  test('metrics in Prometheus form, with its content type', async () => {
    const metrics = createMetrics();
    metrics.kvEventGapsTotal.inc(3);
    const answer = await fetch(`${await started({ metrics })}/metrics`);
    expect(answer.status).toBe(200);
    expect(answer.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
    expect(await answer.text()).toContain('\nwarmpath_kv_event_gaps_total 3\n');
  });

  test('readiness as 503 with the reasons, then 200; liveness all the while', async () => {
    const readiness = createReadiness(['endpoints', 'grpc']);
    readiness.set('endpoints', 'ok');
    const url = await started({ readiness });
    const notReady = await fetch(`${url}/readyz`);
    expect(notReady.status).toBe(503);
    expect(await notReady.json()).toEqual({ ready: false, conditions: { endpoints: 'ok', grpc: 'starting' } });
    expect((await fetch(`${url}/livez`)).status).toBe(200);
    readiness.set('grpc', 'ok');
    const ready = await fetch(`${url}/readyz`);
    expect(ready.status).toBe(200);
    expect(await ready.json()).toEqual({ ready: true, conditions: { endpoints: 'ok', grpc: 'ok' } });
  });

  test('endpoints and configuration as they are handed over', async () => {
    const url = await started({ endpoints: () => [{ name: 'pod-a' }], config: () => ({ log: { level: 'info' } }) });
    expect(await (await fetch(`${url}/api/v1/endpoints`)).json()).toEqual([{ name: 'pod-a' }]);
    expect(await (await fetch(`${url}/api/v1/config`)).json()).toEqual({ log: { level: 'info' } });
  });

  test('as many decisions as asked for, a hundred unless said', async () => {
    const asked: number[] = [];
    const url = await started({
      decisions(limit) {
        asked.push(limit);
        return [{ limit }];
      },
    });
    expect(await (await fetch(`${url}/api/v1/decisions?limit=7`)).json()).toEqual([{ limit: 7 }]);
    await fetch(`${url}/api/v1/decisions`);
    expect(asked).toEqual([7, 100]);
  });

  test.each(['0', '-1', 'x', '1e3', '10001', ''])('limit=%s is refused', async (limit) => {
    const answer = await fetch(`${await started()}/api/v1/decisions?limit=${limit}`);
    expect(answer.status).toBe(400);
    expect(await answer.json()).toEqual({ error: `limit must be an integer from 1 to 10000, got "${limit}"` });
  });

  test('a page for people that loads nothing from elsewhere', async () => {
    const answer = await fetch(`${await started()}/`);
    expect(answer.headers.get('content-type')).toBe('text/html; charset=utf-8');
    const page = await answer.text();
    expect(page).toContain('<title>Warmpath</title>');
    expect(page).not.toMatch(/https?:\/\//);
  });

  test('HEAD has the headers of GET and no body', async () => {
    const answer = await fetch(`${await started()}/livez`, { method: 'HEAD' });
    expect(answer.status).toBe(200);
    expect(Number(answer.headers.get('content-length'))).toBeGreaterThan(10);
    expect(await answer.text()).toBe('');
  });
});

describe('explain', () => {
  test('hands the parsed body over and passes status and answer on', async () => {
    const inputs: unknown[] = [];
    const url = await started({
      async explain(input) {
        inputs.push(input);
        return { status: 404, body: { error: { code: 'model_not_found' } } };
      },
    });
    const answer = await post(url, '{"path":"/v1/completions","body":{"model":"m"}}');
    expect(inputs).toEqual([{ path: '/v1/completions', body: { model: 'm' } }]);
    expect(answer.status).toBe(404);
    expect(await answer.json()).toEqual({ error: { code: 'model_not_found' } });
  });

  test.each(['', '{', 'nope'])('the body %j is no JSON: 400', async (body) => {
    const answer = await post(await started(), body);
    expect(answer.status).toBe(400);
    expect(await answer.json()).toEqual({ error: expect.stringMatching(/^body must be JSON: /) });
  });

  test('a body that announces too much is refused before it is sent', async () => {
    const url = new URL(await started());
    const answer = await new Promise<{ status: number | undefined; connection: string | undefined }>(
      (resolve, reject) => {
        const request = httpRequest(
          {
            host: url.hostname,
            port: url.port,
            path: '/api/v1/explain',
            method: 'POST',
            headers: { 'content-length': 18 * 1024 * 1024 },
          },
          (response) => {
            resolve({ status: response.statusCode, connection: response.headers.connection });
            request.destroy();
          },
        );
        request.on('error', reject);
        request.flushHeaders();
      },
    );
    expect(answer).toEqual({ status: 413, connection: 'close' });
  });

  test('a body that grows too large on the way is refused, and the server goes on', async () => {
    const url = await started();
    const target = new URL(url);
    const status = await new Promise<number | undefined>((resolve) => {
      const request = httpRequest(
        { host: target.hostname, port: target.port, path: '/api/v1/explain', method: 'POST' },
        (response) => {
          resolve(response.statusCode);
          request.destroy();
        },
      );
      // The server may close while we still write: that is the point.
      request.on('error', () => resolve(undefined));
      const chunk = Buffer.alloc(1024 * 1024, 0x20);
      for (let i = 0; i < 18; i++) request.write(chunk);
    });
    expect(status).toBe(413);
    expect((await fetch(`${url}/livez`)).status).toBe(200);
  });
});

describe('what is not there', () => {
  test.each(['/nope', '/api/v1/endpoints/', '/api/v1', '//evil.example/livez', '/%6civez'])(
    '%s: 404 as JSON',
    async (path) => {
      const answer = await fetch(`${await started()}${path}`);
      expect(answer.status).toBe(404);
      expect(await answer.json()).toEqual({
        error: expect.stringMatching(/^no such path, expected one of \/metrics, /),
      });
    },
  );

  test.each([
    ['POST', '/metrics', 'GET'],
    ['DELETE', '/readyz', 'GET'],
    ['GET', '/api/v1/explain', 'POST'],
  ])('%s %s: 405 that names %s', async (method, path, allowed) => {
    const answer = await fetch(`${await started()}${path}`, { method });
    expect(answer.status).toBe(405);
    expect(answer.headers.get('allow')).toBe(allowed);
    expect(await answer.json()).toEqual({ error: `method must be ${allowed}, got ${method}`, allow: allowed });
  });

  test('bytes that are not HTTP end their connection and nothing else', async () => {
    const url = new URL(await started());
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = connect(Number(url.port), url.hostname, () => socket.write('\x16\x03\x01 not http\r\n\r\n'));
      let received = '';
      socket.on('data', (chunk) => (received += chunk.toString()));
      socket.on('close', () => resolve(received));
      socket.on('error', reject);
    });
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect((await fetch(new URL('/livez', url))).status).toBe(200);
  });
});

test('a part that throws is a 500 without details, with the reason in the log', async () => {
  const lines: string[] = [];
  const url = await started({
    log: createLog('error', (line) => lines.push(line)),
    endpoints: () => {
      throw new Error('broken inside');
    },
  });
  const answer = await fetch(`${url}/api/v1/endpoints?x=1`);
  expect(answer.status).toBe(500);
  expect(await answer.json()).toEqual({ error: 'internal error, see the log' });
  expect(lines.map((line) => JSON.parse(line) as object)).toEqual([
    expect.objectContaining({ msg: 'admin request failed', path: '/api/v1/endpoints', error: 'broken inside' }),
  ]);
  expect((await fetch(`${url}/livez`)).status).toBe(200);
});

describe('start and stop', () => {
  test('a port in use is one clear error', async () => {
    const { address } = await anAdmin().start();
    await expect(anAdmin({}, address).start()).rejects.toMatchObject({
      name: 'WarmpathError',
      code: 'address_in_use',
      message: `server.adminListen must be a free address, ${address} is in use`,
    });
  });

  test('an address of another machine is a clear error', async () => {
    await expect(anAdmin({}, '192.0.2.1:0').start()).rejects.toMatchObject({
      code: 'io_failed',
      message: expect.stringMatching(/^cannot listen on server\.adminListen 192\.0\.2\.1:0: .*EADDRNOTAVAIL/),
    });
  });

  test('IPv6 is bound and told in brackets', async () => {
    const { address } = await anAdmin({}, '[::1]:0').start();
    expect(address).toMatch(/^\[::1\]:\d+$/);
    expect((await fetch(`http://${address}/livez`)).status).toBe(200);
  });

  test('stop frees the port, waits for nobody who is idle, and may be called again or before the start', async () => {
    const server = anAdmin();
    const { address } = await server.start();
    await fetch(`http://${address}/livez`);
    const idle = connect(Number(address.split(':')[1]), '127.0.0.1');
    await new Promise((resolve) => idle.once('connect', resolve));
    const startMs = performance.now();
    await Promise.all([server.stop(), server.stop()]);
    expect(performance.now() - startMs).toBeLessThan(3000);
    idle.destroy();
    await anAdmin({}, address).start();
    await anAdmin().stop();
  });
});
