import { readFileSync } from 'node:fs';
import { createServer, request as nodeRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { createServer as createTcpServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { systemClock, type Clock } from '../../src/clock.ts';
import { createHttpClient, type ExchangeLimits, type HttpAnswer, type HttpClient } from '../../src/http/http-client.ts';
import { ResponseReader } from '../../src/http/response-reader.ts';
import { LightSignal } from '../../src/light-signal.ts';
import { endAfterEach } from '../support/endings.ts';
import { createFakeClock } from '../support/fake-clock.ts';
import { aFreePort } from '../support/free-port.ts';
import { eventually } from '../support/running-app.ts';

const atEnd = endAfterEach();

async function until(isSo: () => boolean): Promise<void> {
  await eventually(
    () => Promise.resolve(isSo()),
    (so) => so,
  );
}

async function listening(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  atEnd(() => new Promise((resolve) => server.close(resolve)));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

async function aServer(answer: Handler): Promise<{ origin: string; sockets: Socket[]; nOpen: () => number }> {
  const server = createServer({ keepAliveTimeout: 60_000 }, answer);
  const sockets: Socket[] = [];
  server.on('connection', (socket: Socket) => sockets.push(socket));
  const origin = await listening(server);
  atEnd(() => server.closeAllConnections());
  return { origin, sockets, nOpen: () => sockets.filter((socket) => !socket.destroyed).length };
}

/** A server of bytes: for every request without a body on a connection, what `answer` does. */
async function aRawServer(
  answer: (socket: Socket, nRequest: number) => void,
): Promise<{ origin: string; sockets: Socket[] }> {
  const sockets: Socket[] = [];
  const server = createTcpServer((socket) => {
    sockets.push(socket);
    atEnd(() => socket.destroy());
    let nRequests = 0;
    let seen = '';
    socket.on('error', () => undefined);
    socket.on('data', (piece) => {
      seen += piece.toString('latin1');
      for (let end = seen.indexOf('\r\n\r\n'); end >= 0; end = seen.indexOf('\r\n\r\n')) {
        seen = seen.slice(end + 4);
        answer(socket, nRequests++);
      }
    });
  });
  return { origin: await listening(server), sockets };
}

function aClient(clock: Clock = systemClock, ca: string | null = null): HttpClient {
  const client = createHttpClient(clock, () => ca);
  atEnd(() => client.close());
  return client;
}

const LIMITS: ExchangeLimits = { timeoutMs: 30_000, responseMaxBytes: 10_000_000, signal: null };
const HEADERS = { 'x-a': 'b' };

type Told = Exclude<HttpAnswer, { kind: 'answer' }> | { kind: 'answer'; status: number; body: string };

const told = (answer: HttpAnswer): Told =>
  answer.kind === 'answer' ? { kind: 'answer', status: answer.status, body: answer.body.toString('latin1') } : answer;

const get = (client: HttpClient, origin: string, limits: Partial<ExchangeLimits> = {}): Promise<Told> =>
  client.exchange(
    origin,
    { method: 'GET', path: '/x?y=1', headers: HEADERS, body: null },
    { ...LIMITS, ...limits },
    told,
  );

const post = (client: HttpClient, origin: string, body: Buffer, limits: Partial<ExchangeLimits> = {}): Promise<Told> =>
  client.exchange(origin, { method: 'POST', path: '/', headers: HEADERS, body }, { ...LIMITS, ...limits }, told);

const answered = (body: string, status = 200): Told => ({ kind: 'answer', status, body });
const response = (body: string): string => `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
const echo: Handler = (request, answer) => {
  const pieces: Buffer[] = [];
  request.on('data', (piece: Buffer) => pieces.push(piece));
  request.on('end', () => answer.end(Buffer.concat(pieces)));
};

/** Different for each, so that bytes of another one are seen. */
function bytes(n: number, seed: number): Buffer {
  const all = Buffer.allocUnsafe(n);
  for (let i = 0; i < n; i++) all[i] = (i * 31 + seed * 17 + (i >> 8)) & 0xff;
  return all;
}

describe('one exchange', () => {
  test('sends what it was given, and a length', async () => {
    const seen: unknown[] = [];
    const { origin } = await aServer((request, answer) => {
      seen.push([request.method, request.url, request.httpVersion, request.rawHeaders]);
      echo(request, answer);
    });
    const client = aClient();
    expect(await post(client, origin, Buffer.from('body'))).toEqual(answered('body'));
    expect(await get(client, origin)).toEqual(answered(''));
    const host = origin.slice('http://'.length);
    expect(seen).toEqual([
      ['POST', '/', '1.1', ['host', host, 'x-a', 'b', 'content-length', '4']],
      ['GET', '/x?y=1', '1.1', ['host', host, 'x-a', 'b']],
    ]);
  });

  test('takes bodies of any size, both ways', async () => {
    const { origin } = await aServer(echo);
    const client = aClient();
    for (const n of [0, 1, 4096, 32_000, 32_768, 40_000, 65_536, 300_000, 5_000_000]) {
      const body = bytes(n, n);
      const answer = await post(client, origin, body);
      expect(answer.kind === 'answer' && Buffer.from(answer.body, 'latin1').equals(body)).toBe(true);
    }
  });

  test('of many at once gets its own bytes, however slowly and in whatever pieces they travel', async () => {
    const { origin } = await aServer((request, answer) => {
      const pieces: Buffer[] = [];
      // Reading stops now and then, so that a socket of the client can not write all at once.
      request.on('data', (piece: Buffer) => {
        pieces.push(piece);
        request.pause();
        setTimeout(() => request.resume(), pieces.length % 3);
      });
      request.on('end', () => {
        const body = Buffer.concat(pieces);
        const cut = body.length === 0 ? 0 : body[0]! % body.length;
        answer.write(body.subarray(0, cut));
        setTimeout(() => answer.end(body.subarray(cut)), body.length % 5);
      });
    });
    const client = aClient();
    const right: boolean[] = [];
    const one = async (i: number): Promise<void> => {
      const body = bytes((i * 7919) % 70_000, i);
      const answer = await post(client, origin, body);
      right.push(answer.kind === 'answer' && Buffer.from(answer.body, 'latin1').equals(body));
    };
    for (let round = 0; round < 4; round++) {
      await Promise.all(Array.from({ length: 50 }, (_, i) => one(round * 50 + i)));
    }
    expect(right).toEqual(Array.from({ length: 200 }, () => true));
  });

  test('ends in time, wherever the peer stops', async () => {
    const client = aClient();
    const silent = await aRawServer(() => undefined);
    const inHead = await aRawServer((socket) => void socket.write('HTTP/1.1 200 OK\r\nConte'));
    const inBody = await aRawServer((socket) => void socket.write(response('all').slice(0, -1)));
    for (const { origin, sockets } of [silent, inHead, inBody]) {
      expect(await get(client, origin, { timeoutMs: 100 })).toEqual({ kind: 'timeout' });
      await until(() => sockets[0]!.destroyed);
    }
  });

  test('is given up by its signal, before and in the middle', async () => {
    const { origin, sockets } = await aRawServer(() => undefined);
    const client = aClient();
    const gone = new LightSignal();
    gone.abort();
    expect(await get(client, origin, { signal: gone })).toEqual({ kind: 'given_up' });
    expect(sockets).toHaveLength(0);
    const signal = new AbortController();
    const pending = get(client, origin, { signal: signal.signal });
    await until(() => sockets.length === 1);
    signal.abort();
    expect(await pending).toEqual({ kind: 'given_up' });
    await until(() => sockets[0]!.destroyed);
  });

  test('with an answer above the limit is given up', async () => {
    const { origin } = await aServer((_request, answer) => void answer.writeHead(500).end('x'.repeat(1001)));
    expect(await get(aClient(), origin, { responseMaxBytes: 1000 })).toEqual({
      kind: 'too_large',
      status: 500,
      nBytes: 1001,
    });
  });

  test('with nobody is refused, with a name nobody has, no URL or a wrong header failed', async () => {
    const client = aClient();
    expect((await get(client, `http://127.0.0.1:${await aFreePort()}`)).kind).toBe('refused');
    const { origin } = await aServer(echo);
    const failed = async (asked: Promise<Told>): Promise<string> => {
      const answer = await asked;
      return answer.kind === 'failed' ? answer.message : answer.kind;
    };
    expect(await failed(get(client, 'ftp://x'))).toContain('neither http nor https');
    expect(await failed(get(client, 'x'))).toContain('Invalid URL');
    expect(await failed(get(client, 'http://no-such-host.invalid'))).toMatch(/ENOTFOUND|EAI_AGAIN/);
    const asking = (path: string, headers: Record<string, string>): Promise<Told> =>
      client.exchange(origin, { method: 'GET', path, headers, body: null }, LIMITS, told);
    expect(await failed(asking('/', { 'x-a': 'b\r\nx-c: d' }))).toContain('Invalid character in header content');
    expect(await failed(asking('/', { 'x a': 'b' }))).toContain('must be a valid HTTP token');
    expect(await failed(asking('/ HTTP/1.1\r\nx: y', {}))).toContain('not the path of a URL');
  });

  test('rejects with what its reader throws; the connection is none the worse', async () => {
    const { origin, sockets } = await aServer(echo);
    const client = aClient();
    const request = { method: 'GET', path: '/', headers: HEADERS, body: null } as const;
    const thrown = client.exchange(origin, request, LIMITS, () => {
      throw new Error('not understood');
    });
    await expect(thrown).rejects.toThrow('not understood');
    expect(await get(client, origin)).toEqual(answered(''));
    expect(sockets).toHaveLength(1);
  });
});

describe('a connection', () => {
  test('is used again; as many as there are exchanges at once', async () => {
    const { origin, sockets } = await aServer(echo);
    const client = aClient();
    for (let i = 0; i < 20; i++) await post(client, origin, bytes(10, i));
    expect(sockets).toHaveLength(1);
    await Promise.all(Array.from({ length: 10 }, () => get(client, origin)));
    expect(sockets).toHaveLength(10);
    await Promise.all(Array.from({ length: 10 }, () => get(client, origin)));
    expect(sockets).toHaveLength(10);
  });

  test('is closed four seconds after its last use, and not before', async () => {
    const clock = createFakeClock();
    const { origin, nOpen } = await aServer(echo);
    const client = aClient(clock);
    await Promise.all(Array.from({ length: 3 }, () => get(client, origin)));
    clock.advance(3000);
    await get(client, origin);
    clock.advance(1000);
    await until(() => nOpen() === 1);
    clock.advance(2999);
    expect(await get(client, origin)).toEqual(answered(''));
    expect(nOpen()).toBe(1);
    clock.advance(4000);
    await until(() => nOpen() === 0);
    expect(clock.nTimers()).toBe(0);
    expect(await get(client, origin)).toEqual(answered(''));
  });

  test('that grew old while the process was busy is not used', async () => {
    const clock = createFakeClock();
    const { origin, sockets } = await aServer(echo);
    const late: Clock = { ...clock, after: (ms, callback) => clock.after(ms + 60_000, callback) };
    const client = aClient(late);
    await get(client, origin);
    clock.advance(5000);
    expect(await get(client, origin)).toEqual(answered(''));
    expect(sockets).toHaveLength(2);
  });

  test('that its peer closes when the next request comes costs a new one, not the exchange', async () => {
    for (const close of ['end', 'resetAndDestroy'] as const) {
      const { origin, sockets } = await aRawServer((socket, nRequest) => {
        if (nRequest === 0) socket.write(response('first'));
        else socket[close]();
      });
      const client = aClient();
      for (let i = 0; i < 5; i++) expect(await get(client, origin)).toEqual(answered('first'));
      expect(sockets).toHaveLength(5);
    }
  });

  test('that ends without an answer on a new one, or within an answer, is a failure and asked once', async () => {
    const none = await aRawServer((socket) => void socket.end());
    expect((await get(aClient(), none.origin)).kind).toBe('failed');
    expect(none.sockets).toHaveLength(1);
    const half = await aRawServer((socket, nRequest) => {
      if (nRequest === 0) socket.write(response('first'));
      else socket.end(response('second').slice(0, -1));
    });
    const client = aClient();
    expect(await get(client, half.origin)).toEqual(answered('first'));
    expect((await get(client, half.origin)).kind).toBe('failed');
    expect(half.sockets).toHaveLength(1);
  });

  test('on which something comes unasked is not used again', async () => {
    for (const unasked of [response('poison'), 'x']) {
      const together = await aRawServer((socket) => void socket.write(response('right') + unasked));
      const later = await aRawServer((socket) => {
        socket.write(response('right'));
        setTimeout(() => socket.write(unasked), 5);
      });
      for (const { origin, sockets } of [together, later]) {
        const client = aClient();
        for (let i = 0; i < 3; i++) {
          expect(await get(client, origin)).toEqual(answered('right'));
          await until(() => sockets.every(({ destroyed }) => destroyed));
        }
        expect(sockets).toHaveLength(3);
      }
    }
  });

  test('is closed where the answer says so, or comes before the request was read', async () => {
    const closing = await aServer((_request, answer) => void answer.setHeader('connection', 'close').end('x'));
    const client = aClient();
    for (let i = 0; i < 3; i++) expect(await get(client, closing.origin)).toEqual(answered('x'));
    expect(closing.sockets).toHaveLength(3);
    const early = await aRawServer((socket) => {
      socket.pause();
      socket.write(response('no').replace('200', '413'));
    });
    for (let i = 0; i < 2; i++)
      expect(await post(client, early.origin, bytes(30_000_000, 1))).toEqual(answered('no', 413));
    expect(early.sockets).toHaveLength(2);
  });

  test('of a closed client ends, and what is under way fails', async () => {
    const { origin, nOpen, sockets } = await aServer((request, answer) => {
      if (request.method === 'GET') answer.end('x');
    });
    const client = aClient();
    expect(await get(client, origin)).toEqual(answered('x'));
    const pending = [post(client, origin, bytes(1, 1)), post(client, origin, bytes(1, 1))];
    await until(() => sockets.length === 2);
    client.close();
    const closed = { kind: 'failed', message: 'closed by us' };
    expect(await Promise.all(pending)).toEqual([closed, closed]);
    expect(await get(client, origin)).toEqual(closed);
    await until(() => nOpen() === 0);
  });
});

describe('over TLS', () => {
  const file = (name: string): string => readFileSync(new URL(`../fixtures/tls/${name}`, import.meta.url), 'utf8');

  async function aTlsServer(): Promise<{ origin: string; resumed: boolean[] }> {
    const server = createTlsServer({ key: file('server-a.key'), cert: file('server-a.crt') }, echo);
    const resumed: boolean[] = [];
    server.on('secureConnection', (socket) => resumed.push(socket.isSessionReused()));
    const plain = await listening(server);
    atEnd(() => server.closeAllConnections());
    return { origin: plain.replace('http://127.0.0.1', 'https://localhost'), resumed };
  }

  test('a known CA is believed, sessions are resumed, bodies are whole', async () => {
    const clock = createFakeClock();
    const { origin, resumed } = await aTlsServer();
    const client = aClient(clock, file('server-a.crt'));
    for (const n of [1, 20_000, 300_000]) {
      for (let i = 0; i < 2; i++) {
        const body = bytes(n, n + i);
        const answer = await post(client, origin, body);
        if (answer.kind !== 'answer') throw new Error(JSON.stringify(answer));
        expect(Buffer.from(answer.body, 'latin1').equals(body)).toBe(true);
      }
      clock.advance(5000);
    }
    expect(resumed).toEqual([false, true, true]);
  });

  test('an unknown CA is a failure, and so is a file that holds none', async () => {
    const { origin } = await aTlsServer();
    for (const [ca, words] of [
      [null, /self-signed/],
      [file('server-b.crt'), /self-signed|unable to verify/],
      ['not a certificate', /./],
    ] as const) {
      const answer = await get(aClient(systemClock, ca), origin);
      expect(answer.kind === 'failed' ? answer.message : answer.kind).toMatch(words);
      expect(answer.kind).toBe('failed');
    }
  });
});

describe('beside the HTTP client of Node', () => {
  /** What Node makes of the same bytes. */
  function byNode(origin: string): Promise<Told | null> {
    return new Promise((resolve) => {
      const request = nodeRequest(origin, { agent: false }, (answer) => {
        const pieces: Buffer[] = [];
        answer.on('data', (piece: Buffer) => pieces.push(piece));
        answer.on('end', () => resolve(answered(Buffer.concat(pieces).toString('latin1'), answer.statusCode)));
        answer.on('error', () => resolve(null));
      });
      request.on('error', () => resolve(null));
      request.setTimeout(20_000, () => request.destroy(new Error('no end')));
      request.end();
    });
  }

  const header = fc.constantFrom(
    'Content-Length: 3',
    'content-length: 5',
    'Content-Length: 03',
    'Content-Length: +3',
    'Content-Length: 3, 3',
    'Content-Length:',
    'Transfer-Encoding: chunked',
    'transfer-encoding:CHUNKED',
    'Transfer-Encoding: identity',
    'Transfer-Encoding: chunked, chunked',
    'Connection: close',
    'Connection: keep-alive',
    'X: y',
    'X : y',
    ' folded',
    'X',
    'X: \x00',
    'Date: today',
  );
  const body = fc.constantFrom(
    '',
    'abc',
    'abcde',
    '3\r\nabc\r\n0\r\n\r\n',
    '3\r\nabc\r\n0\r\n',
    '3 \r\nabcd\r\n0\r\n\r\n',
    '0\r\nA: b\r\n\r\n',
    '-1\r\n',
    '3;x\r\nabc\r\n0\r\nX: y\r\n\r\n',
    '03\r\nabc\r\n0\n\r\n',
  );
  const status = fc.constantFrom('HTTP/1.1 200 OK', 'HTTP/1.1 204 No', 'HTTP/1.0 200 OK', 'HTTP/1.1 304 x', 'HTTP/1.1 200', 'HTTP/1.1  200 OK', 'http/1.1 200 OK', 'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK', 'HTTP/1.1 20 x'); // prettier-ignore

  /** So many bytes are the response; what comes behind it Node takes for a mistake. */
  function lengthOf(bytes: Buffer): number {
    const reader = new ResponseReader();
    reader.begin(1000);
    for (let n = 0; n < bytes.length; n++) if (reader.push(bytes.subarray(n, n + 1)) !== 'more') return n + 1;
    return bytes.length;
  }

  test('never reads another response out of the same bytes', async () => {
    let sent = Buffer.alloc(0);
    const { origin } = await aRawServer((socket) => void socket.end(sent));
    let nRead = 0;
    await fc.assert(
      fc.asyncProperty(
        status,
        fc.array(header, { maxLength: 3 }),
        body,
        fc.constantFrom('\r\n', '\r\n', '\n'),
        async (first, headers, rest, eol) => {
          sent = Buffer.from([first, ...headers, '', rest].join(eol), 'latin1');
          const client = createHttpClient(systemClock);
          const ours = await get(client, origin);
          client.close();
          if (ours.kind !== 'answer') return;
          nRead += 1;
          sent = sent.subarray(0, lengthOf(sent));
          expect(ours).toEqual(await byNode(origin));
        },
      ),
      { numRuns: 600 },
    );
    expect(nRead).toBeGreaterThan(60);
  });
});
