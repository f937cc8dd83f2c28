/**
 * The admin port: metrics, liveness and readiness, the API and a plain status page, on node:http. It only shows what it
 * is handed; it has no authentication, so it belongs behind a NetworkPolicy and shows neither prompts nor credentials.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { errorText, faultText, WarmpathError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Metrics } from '../metrics.ts';
import type { Readiness } from './readiness.ts';
import { statusPage } from './status-page.ts';

export type AdminDeps = {
  readonly metrics: Pick<Metrics, 'text' | 'contentType'>;
  readonly readiness: Pick<Readiness, 'snapshot'>;
  endpoints(): readonly object[];
  /** What discovery found and does not use, each with its reason: shown on top with `?all=1`. */
  excluded(): readonly { readonly name: string; readonly reason: string }[];
  explain(input: unknown): Promise<{ readonly status: number; readonly body: unknown }>;
  /** Newest first. */
  decisions(limit: number): readonly object[];
  /** Ended requests as JSON lines, oldest first. */
  requests(limit: number): string;
  /** Effective configuration without secrets. */
  config(): object;
  readonly log: Log;
};

export type AdminServer = {
  /** Resolves with the bound `ip:port`. Rejects with `address_in_use` or `io_failed`. */
  start(): Promise<{ readonly address: string }>;
  stop(): Promise<void>;
};

/** An explain request carries one prompt: what `server.bodyMaxBytes` allows by default, and room for its envelope. */
const EXPLAIN_MAX_BYTES = 17 * 1024 * 1024;
const JSON_LINES = 'application/x-ndjson; charset=utf-8';
const DEFAULT_NEWEST = 100;
const MAX_NEWEST = 10_000;
/** Probes and scrapers are quick and few; everything slower or more is a mistake or an attack. */
const HEADERS_TIMEOUT_MS = 5_000;
const REQUEST_TIMEOUT_MS = 15_000;
const KEEP_ALIVE_TIMEOUT_MS = 65_000;
const MAX_CONNECTIONS = 512;
/** How long `stop` waits for answers that are being written. */
const STOP_GRACE_MS = 1_000;

type Answer = { readonly status: number; readonly type: string; readonly body: string };
type Route = {
  readonly method: 'GET' | 'POST';
  answer(request: IncomingMessage, query: URLSearchParams): Promise<Answer> | Answer;
};

export function createAdminServer(deps: AdminDeps, options: { readonly listen: string }): AdminServer {
  const routes = createRoutes(deps);
  const server = createServer((request, response) => {
    handle(routes, request)
      .catch((error: unknown) => {
        deps.log.error('admin request failed', { path: pathOf(request), error: faultText(error) });
        return json(500, { error: 'internal error, see the log' });
      })
      .then((answer) => send(request, response, answer))
      .catch((error: unknown) => deps.log.debug('admin answer not sent', { error: errorText(error) }));
  });
  server.headersTimeout = HEADERS_TIMEOUT_MS;
  server.requestTimeout = REQUEST_TIMEOUT_MS;
  server.keepAliveTimeout = KEEP_ALIVE_TIMEOUT_MS;
  server.maxConnections = MAX_CONNECTIONS;
  let stopped: Promise<void> | null = null;
  return {
    async start() {
      const bound = await listen(server, options.listen);
      server.on('error', (error) => deps.log.error('admin server failed', { error: errorText(error) }));
      return bound;
    },
    stop: () => (stopped ??= close(server)),
  };
}

function createRoutes(deps: AdminDeps): ReadonlyMap<string, Route> {
  const get = (answer: (query: URLSearchParams) => Promise<Answer> | Answer): Route => ({
    method: 'GET',
    answer: (_request, query) => answer(query),
  });
  return new Map<string, Route>([
    ['/metrics', get(async () => ({ status: 200, type: deps.metrics.contentType, body: await deps.metrics.text() }))],
    ['/livez', get(() => json(200, { live: true, conditions: { process: 'ok' } }))],
    [
      '/readyz',
      get(() => {
        const snapshot = deps.readiness.snapshot();
        return json(snapshot.ready ? 200 : 503, snapshot);
      }),
    ],
    ['/api/v1/endpoints', get((query) => json(200, endpoints(deps, query)))],
    ['/api/v1/decisions', get((query) => newest(query, (limit) => json(200, deps.decisions(limit))))],
    [
      '/api/v1/requests',
      get((query) => newest(query, (limit) => ({ status: 200, type: JSON_LINES, body: deps.requests(limit) }))),
    ],
    ['/api/v1/config', get(() => json(200, deps.config()))],
    ['/api/v1/explain', { method: 'POST', answer: (request) => explain(deps, request) }],
    ['/', get(() => ({ status: 200, type: 'text/html; charset=utf-8', body: statusPage() }))],
  ]);
}

async function handle(routes: ReadonlyMap<string, Route>, request: IncomingMessage): Promise<Answer> {
  // Compared as it came: no path here needs decoding or normalising.
  const [path = '', ...query] = (request.url ?? '').split('?');
  const route = routes.get(path);
  if (route === undefined)
    return json(404, { error: `no such path, expected one of ${[...routes.keys()].join(', ')}` });
  const method = request.method === 'HEAD' ? 'GET' : request.method;
  if (method !== route.method) {
    return json(405, { error: `method must be ${route.method}, got ${request.method ?? 'none'}`, allow: route.method });
  }
  return route.answer(request, new URLSearchParams(query.join('?')));
}

function endpoints(deps: AdminDeps, query: URLSearchParams): readonly object[] {
  if (query.get('all') !== '1') return deps.endpoints();
  return [...deps.endpoints(), ...deps.excluded().map(({ name, reason }) => ({ name, ready: false, reason }))];
}

function newest(query: URLSearchParams, answer: (limit: number) => Answer): Answer {
  const text = query.get('limit') ?? String(DEFAULT_NEWEST);
  const limit = /^\d{1,9}$/.test(text) ? Number(text) : 0;
  if (limit < 1 || limit > MAX_NEWEST) {
    return json(400, { error: `limit must be an integer from 1 to ${MAX_NEWEST}, got ${JSON.stringify(text)}` });
  }
  return answer(limit);
}

async function explain(deps: AdminDeps, request: IncomingMessage): Promise<Answer> {
  const body = await readBody(request, EXPLAIN_MAX_BYTES);
  if (body === null) return json(413, { error: `body must be at most ${EXPLAIN_MAX_BYTES} bytes` });
  let input: unknown;
  try {
    input = JSON.parse(body.toString('utf8'));
  } catch (error) {
    // The parser's message quotes the input: fine for whoever sent it, and it goes nowhere else.
    return json(400, { error: `body must be JSON: ${errorText(error)}` });
  }
  const { status, body: answer } = await deps.explain(input);
  return json(status, answer);
}

/** Null as soon as more than `maxBytes` are announced or have come. */
async function readBody(request: IncomingMessage, maxBytes: number): Promise<Buffer | null> {
  if (Number(request.headers['content-length'] ?? 0) > maxBytes) return null;
  const chunks: Buffer[] = [];
  let nBytes = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    nBytes += chunk.length;
    if (nBytes > maxBytes) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function json(status: number, body: unknown): Answer {
  return { status, type: 'application/json; charset=utf-8', body: `${JSON.stringify(body)}\n` };
}

function send(request: IncomingMessage, response: ServerResponse, answer: Answer): void {
  const headers: Record<string, string | number> = {
    'content-type': answer.type,
    'content-length': Buffer.byteLength(answer.body),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    'content-security-policy':
      "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'",
  };
  if (answer.status === 405) headers.allow = (JSON.parse(answer.body) as { allow: string }).allow;
  // What is left of a body nobody reads must not be taken for the next request.
  if (!request.complete) headers.connection = 'close';
  response.writeHead(answer.status, headers);
  response.end(request.method === 'HEAD' ? undefined : answer.body);
}

function pathOf(request: IncomingMessage): string {
  return (request.url ?? '').split('?', 1)[0] ?? '';
}

function listen(server: Server, address: string): Promise<{ address: string }> {
  const colon = address.lastIndexOf(':');
  const host = address.slice(0, colon).replace(/^\[(.*)\]$/, '$1');
  const port = Number(address.slice(colon + 1));
  return new Promise((resolve, reject) => {
    const onError = (error: NodeJS.ErrnoException): void => {
      const inUse = error.code === 'EADDRINUSE';
      const message = inUse
        ? `server.adminListen must be a free address, ${address} is in use`
        : `cannot listen on server.adminListen ${address}: ${error.message}`;
      reject(new WarmpathError(inUse ? 'address_in_use' : 'io_failed', message, { cause: error }));
    };
    server.once('error', onError);
    server.listen({ host, port }, () => {
      server.off('error', onError);
      const bound = server.address() as AddressInfo;
      resolve({
        address: bound.family === 'IPv6' ? `[${bound.address}]:${bound.port}` : `${bound.address}:${bound.port}`,
      });
    });
  });
}

function close(server: Server): Promise<void> {
  if (!server.listening) return Promise.resolve();
  return new Promise((resolve) => {
    const cut = setTimeout(() => server.closeAllConnections(), STOP_GRACE_MS);
    server.close(() => {
      clearTimeout(cut);
      resolve();
    });
    server.closeIdleConnections();
  });
}
