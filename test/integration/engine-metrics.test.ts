import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTcpServer, type AddressInfo, type Server } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { describe, expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import { createHttpGet, type GetAnswer } from '../../src/http/http-get.ts';
import { createTcpProbe } from '../../src/load/tcp-probe.ts';
import { endAfterEach } from '../support/endings.ts';
import { aFreePort } from '../support/free-port.ts';
import { aVllmPage } from '../support/metrics-pages.ts';
import { eventually, startApp } from '../support/running-app.ts';

const atEnd = endAfterEach();
async function listening(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  atEnd(() => new Promise((resolve) => server.close(resolve)));
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function anEngine(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<string> {
  const server = createServer(answer);
  atEnd(() => server.closeAllConnections());
  return listening(server);
}

const nobody = async (): Promise<string> => `127.0.0.1:${await aFreePort()}`;

const page = aVllmPage({ running: 3, waiting: 7, kvUsage: 0.25 }, 70_000);
const serve = (_request: IncomingMessage, response: ServerResponse): void => void response.end(page);

describe('trying a connection', () => {
  const probe = createTcpProbe(systemClock, { timeoutMs: 1000 });

  test('is accepted by whoever listens, though nothing is answered, and by nobody else', async () => {
    const silent = createTcpServer((socket) => atEnd(() => socket.destroy()));
    expect(await probe(await listening(silent))).toBe('accepted');
    expect(await probe(await nobody())).toBe('not accepted');
  });

  test('takes its time and no more where packets vanish', async () => {
    // Listens and never accepts: once its queue is full the kernel drops what comes.
    const worker = new Worker(
      `const { parentPort } = require('node:worker_threads');
       const server = require('node:net').createServer();
       server.listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
         parentPort.postMessage(server.address().port);
         setTimeout(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0), 10);
       });`,
      { eval: true },
    );
    atEnd(() => worker.terminate());
    const [port] = (await once(worker, 'message')) as [number];
    await delay(50);
    const results = [await probe(`127.0.0.1:${port}`)];
    while (results.length < 100 && results.at(-1) === 'accepted') results.push(await probe(`127.0.0.1:${port}`));
    expect([results[0], results.at(-1)]).toEqual(['accepted', 'not accepted']);
  });
});

describe('reading one page', () => {
  async function read(address: string, limits = { timeoutMs: 60_000, maxBytes: 1_000_000 }): Promise<GetAnswer> {
    const http = createHttpGet(systemClock, limits);
    atEnd(() => http.close());
    return http.get(`http://${address}`, '/metrics');
  }

  test('comes whole', async () => {
    const answer = await read(await anEngine(serve));
    expect(answer.kind === 'page' && answer.body.toString()).toBe(page);
  });

  test('a port nobody listens on is refused', async () => {
    expect(await read(await nobody())).toEqual({ kind: 'refused' });
  });

  test('an answer that never comes, never ends or comes in drops takes its time and no more', async () => {
    const limits = { timeoutMs: 100, maxBytes: 1_000_000 };
    const hanging = await anEngine(() => undefined);
    const endless = await anEngine((_request, response) => void response.write(page));
    const silent = createTcpServer((socket) => atEnd(() => socket.destroy()));
    for (const address of [hanging, endless, await listening(silent)]) {
      expect(await read(address, limits)).toEqual({ kind: 'timeout' });
    }
  });

  test('more bytes than allowed are not read, announced or not', async () => {
    const limits = { timeoutMs: 60_000, maxBytes: 10_000 };
    expect(await read(await anEngine(serve), limits)).toEqual({ kind: 'too_large' });
    const announced = await anEngine((_request, response) => {
      response.setHeader('content-length', 1e9);
      response.write('x');
    });
    expect(await read(announced, limits)).toEqual({ kind: 'too_large' });
  });

  test('a redirect is not followed, another status is not a page, what is not HTTP is a failure', async () => {
    const engine = await anEngine(serve);
    const redirect = await anEngine((_request, response) =>
      response.writeHead(302, { location: `http://${engine}/` }).end(),
    );
    expect(await read(redirect)).toEqual({ kind: 'status', status: 302 });
    const missing = await anEngine((_request, response) => response.writeHead(404).end('no'));
    expect(await read(missing)).toEqual({ kind: 'status', status: 404 });
    const noise = await listening(
      createTcpServer(
        (socket) =>
          void socket
            .on('error', () => undefined)
            .resume()
            .end('SSH-2.0\r\n'),
      ),
    );
    expect((await read(noise)).kind).toBe('failed');
  });
});

describe('the product beside good and bad engines', () => {
  async function anApp(addresses: readonly string[]): Promise<string> {
    const list = addresses.map((address, n) => `{name: e${n}, address: "${address}", model: m, kvEvents: none}`);
    const { app, admin } = await startApp(['load.metricsIntervalMs=50', `discovery.endpoints=[${list.join(', ')}]`]);
    atEnd(() => app.stop());
    return admin;
  }

  type EndpointView = { name: string; reachable: boolean; load: Record<string, number | null> };

  test('shows the load of those that tell, neutral values for the others, and who is not there', async () => {
    const healthy = await anEngine(serve);
    const garbage = await anEngine((_request, response) => void response.end('<html>'));
    const hanging = await anEngine(() => undefined);
    const admin = await anApp([healthy, garbage, hanging, await nobody()]);
    const views = await eventually(
      async () => (await (await fetch(`${admin}/api/v1/endpoints`)).json()) as EndpointView[],
      ([first, , , last]) => first?.load['waiting'] === 7 && last?.reachable === false,
    );
    expect(views.map(({ load: { waiting, running, kvUsage } }) => [waiting, running, kvUsage])).toEqual([
      [7, 3, 0.25],
      [null, null, null],
      [null, null, null],
      [null, null, null],
    ]);
    expect(views[0]!.load['ageMs']).toBeGreaterThanOrEqual(0);
    expect(views.map(({ reachable }) => reachable)).toEqual([true, true, true, false]);
    const metrics = await eventually(
      async () => (await fetch(`${admin}/metrics`)).text(),
      (text) => text.includes('warmpath_engine_scrapes_total{result="garbage"}'),
    );
    expect(metrics).toContain(`warmpath_endpoint_waiting_requests{endpoint="${healthy}"} 7`);
    expect(metrics).toContain(`warmpath_endpoint_kv_usage{endpoint="${healthy}"} 0.25`);
    expect(metrics).toContain(`warmpath_endpoint_credit_weight{endpoint="${healthy}",of="routed"} 1`);
    expect(metrics).not.toContain(`warmpath_endpoint_waiting_requests{endpoint="${garbage}"}`);
    expect(metrics).toMatch(/warmpath_engine_scrapes_total\{result="garbage"\} \d+/);
    expect(metrics).toMatch(/warmpath_engine_scrapes_total\{result="refused"\} \d+/);
  });
});
