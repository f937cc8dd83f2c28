/**
 * An API server over real HTTP(S): lists in pages, watches with bookmarks, versions that expire, tokens, roles, and every
 * fault a real one or the network has. As strict as the recorded one (test/fixtures/kubernetes/transcripts.json,
 * held against it in test/unit/kubernetes/fake-api-server.test.ts): parameters nobody should send are refused and noted.
 */
import { createServer as createHttpServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { FakeApiStore, kindOf, labelTest, type KubeObject, type StoreChange } from './fake-api-store.ts';

export type Grant = { readonly resource: string; readonly verbs: readonly string[] };

export type SeenRequest = {
  readonly verb: string;
  readonly resource: string;
  readonly query: URLSearchParams;
  readonly atMs: number;
  readonly status: number;
};

export type FakeApiServerOptions = {
  readonly namespace?: string;
  /** Default `secret`. */
  readonly token?: string;
  readonly tls?: { readonly cert: string | Buffer; readonly key: string | Buffer };
  /** Resources (`pods`, `modeladapters.model.aibrix.ai`) and their verbs; default: list and watch of everything it has. */
  readonly grants?: readonly Grant[];
  readonly firstVersion?: number;
  /** A real one takes about a minute. */
  readonly bookmarkMs?: number;
  /** How long a second of `timeoutSeconds` takes. */
  readonly secondMs?: number;
};

const USER = 'system:serviceaccount:rec:warmpath';
/** Resources with their groups and versions; those of a CRD only where it is installed. */
const RESOURCES: Readonly<Record<string, readonly string[]>> = {
  pods: ['/api/v1'],
  inferencepools: ['/apis/inference.networking.k8s.io/v1'],
  modeladapters: ['/apis/model.aibrix.ai/v1alpha1'],
  inferenceobjectives: ['/apis/inference.networking.x-k8s.io/v1alpha2', '/apis/llm-d.ai/v1alpha2'],
};
const LIST_PARAMETERS = [
  'limit',
  'continue',
  'labelSelector',
  'fieldSelector',
  'resourceVersion',
  'resourceVersionMatch',
];
const WATCH_PARAMETERS = [
  'watch',
  'allowWatchBookmarks',
  'sendInitialEvents',
  'timeoutSeconds',
  ...LIST_PARAMETERS.slice(2),
];

type Query = {
  readonly plural: string;
  readonly group: string;
  readonly verb: string;
  readonly name: string | null;
  readonly scope: 'namespace' | 'cluster';
  readonly query: URLSearchParams;
};

type Watcher = {
  readonly response: ServerResponse;
  readonly plural: string;
  readonly matches: (object: KubeObject) => boolean;
  /** Versions up to here are known to the client. */
  version: number;
};

export class FakeApiServer {
  readonly store: FakeApiStore;
  readonly requests: SeenRequest[] = [];
  /** Things a well-behaved client does not do. */
  readonly mistakes: string[] = [];
  /** `ignored`: old servers that take the parameters for a plain watch. */
  watchList: 'on' | 'off' | 'ignored' = 'on';
  /** CRDs that are not installed. */
  missing: readonly string[] = [];
  /** Resources whose conversion webhook is down: every request for them ends with 500. */
  broken: readonly string[] = [];
  token: string;
  grants: readonly Grant[];
  /** Answers every request with this status until set to null. */
  storm: { readonly status: number; readonly headers?: Record<string, string>; readonly body?: string } | null = null;
  delayMs = 0;
  /** Requests are taken and never answered. */
  hangs = false;
  /** So are those for these resources. */
  stalled: readonly string[] = [];
  readonly namespace: string;
  private readonly options: FakeApiServerOptions;
  private server: Server;
  private port = 0;
  private readonly sockets = new Set<Socket>();
  /** Connections whose other side hears nothing any more. */
  private readonly frozen = new WeakSet<Socket>();
  private readonly watchers = new Set<Watcher>();
  /** Watches from older versions are told 410. */
  private oldestVersion: number;
  private oldestToken = 0;

  private constructor(options: FakeApiServerOptions) {
    this.options = options;
    this.namespace = options.namespace ?? 'rec';
    this.token = options.token ?? 'secret';
    this.grants = options.grants ?? FakeApiServer.everything();
    this.store = new FakeApiStore(this.namespace, options.firstVersion ?? 100);
    this.oldestVersion = 0;
    this.store.onChange((change) => {
      for (const watcher of [...this.watchers]) this.tell(watcher, change);
    });
    this.server = this.createServer();
  }

  static async start(options: FakeApiServerOptions = {}): Promise<FakeApiServer> {
    const fake = new FakeApiServer(options);
    await fake.up();
    return fake;
  }

  static everything(): readonly Grant[] {
    return [
      'pods',
      'inferencepools.inference.networking.k8s.io',
      'modeladapters.model.aibrix.ai',
      'inferenceobjectives.inference.networking.x-k8s.io',
      'inferenceobjectives.llm-d.ai',
    ].map((resource) => ({ resource, verbs: ['list', 'watch'] }));
  }

  get url(): string {
    return `${this.options.tls === undefined ? 'http' : 'https'}://127.0.0.1:${this.port}`;
  }

  get nWatches(): number {
    return this.watchers.size;
  }

  /** Listens, on the same port as before. */
  async up(): Promise<void> {
    this.server = this.createServer();
    await new Promise<void>((resolve, reject) => {
      this.server.once('error', reject);
      this.server.listen(this.port, '127.0.0.1', resolve);
    });
    this.port = (this.server.address() as AddressInfo).port;
  }

  /** kill -9: connections are reset, new ones refused. */
  async down(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    this.reset();
    await closed;
  }

  /** A new process: versions before it are unknown to its watch cache. */
  async restart(): Promise<void> {
    await this.down();
    this.compact();
    await this.up();
  }

  /** The window of the watch cache moves on: 410 for watches from older versions. */
  compact(): void {
    this.oldestVersion = this.store.version;
  }

  /** 410 for continue tokens given so far. */
  expireTokens(): void {
    this.oldestToken = this.store.version + 1;
  }

  reset(): void {
    for (const socket of this.sockets) socket.resetAndDestroy();
  }

  /** FIN in the middle of every stream. */
  cut(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  /** As at the end of `timeoutSeconds`. */
  endWatches(): void {
    for (const { response } of [...this.watchers]) response.end();
  }

  /** The present connections go half-open: nothing passes in either direction, no FIN, no reset. */
  freeze(): void {
    for (const socket of this.sockets) {
      this.frozen.add(socket);
      socket.pause();
    }
  }

  /** Sends this line on every watch. */
  sendLine(line: string): void {
    for (const watcher of this.watchers) this.write(watcher.response, `${line}\n`);
  }

  async stop(): Promise<void> {
    await this.down();
  }

  private createServer(): Server {
    const listener = (request: IncomingMessage, response: ServerResponse): void => {
      const { delayMs } = this;
      if (delayMs > 0) setTimeout(() => this.handle(request, response), delayMs);
      else this.handle(request, response);
    };
    const { tls } = this.options;
    const server = tls === undefined ? createHttpServer(listener) : createHttpsServer(tls, listener);
    server.on('connection', (socket: Socket) => {
      this.sockets.add(socket);
      socket.on('close', () => this.sockets.delete(socket));
      socket.on('error', () => socket.destroy());
    });
    return server;
  }

  private handle(request: IncomingMessage, response: ServerResponse): void {
    response.on('error', () => response.destroy());
    const query = this.parse(request);
    const hangs = this.hangs || this.stalled.includes(query?.plural ?? '');
    const note = (status: number): void => {
      const { verb, plural, group } = query ?? { verb: 'none', plural: request.url ?? '', group: '' };
      const resource = group === '' ? plural : `${plural}.${group}`;
      const parameters = query?.query ?? new URLSearchParams();
      this.requests.push({ verb, resource, query: parameters, atMs: performance.now(), status });
    };
    const answer = (status: number, body: object | string, headers: Record<string, string> = {}): void => {
      note(status);
      if (hangs || this.isFrozen(response)) return;
      response.writeHead(status, { 'content-type': 'application/json', ...headers });
      response.end(typeof body === 'string' ? body : JSON.stringify(body));
    };
    if (this.storm !== null) return answer(this.storm.status, this.storm.body ?? '', this.storm.headers);
    if (query === null) return answer(404, '404 page not found\n', { 'content-type': 'text/plain; charset=utf-8' });
    const refusal = this.refusal(request, query) ?? this.invalid(query);
    if (refusal !== null) return answer(refusal.code, refusal);
    if (query.verb === 'list') {
      const page = this.page(query);
      return answer('code' in page ? (page.code as number) : 200, page);
    }
    note(200);
    if (!hangs) this.watch(query, response);
  }

  private parse(request: IncomingMessage): Query | null {
    const url = new URL(request.url ?? '', 'http://fake');
    const path = /^(\/api\/v1|\/apis\/([\w.-]+)\/\w+)(?:\/namespaces\/([\w.-]+))?\/([a-z]+)(?:\/([\w.-]+))?$/.exec(
      url.pathname,
    );
    if (path === null) return null;
    const [, base, group = '', namespace, plural = '', name = null] = path;
    if (RESOURCES[plural]?.includes(base ?? '') === false) return null;
    const isWatch = ['1', 'true'].includes(url.searchParams.get('watch') ?? '');
    const verb = request.method !== 'GET' ? 'write' : name !== null ? 'get' : isWatch ? 'watch' : 'list';
    return {
      plural,
      group,
      verb,
      name,
      scope: namespace === this.namespace ? 'namespace' : 'cluster',
      query: url.searchParams,
    };
  }

  /** Who may not, and what is not there; in the words of the recorded server. */
  private refusal(request: IncomingMessage, { plural, group, verb, name, scope }: Query): Status | null {
    const { authorization } = request.headers;
    if (authorization !== undefined && authorization !== `Bearer ${this.token}`) {
      return status(401, 'Unauthorized', 'Unauthorized');
    }
    const user = authorization === undefined ? 'system:anonymous' : USER;
    const resource = group === '' ? plural : `${plural}.${group}`;
    const isGranted = this.grants.some((grant) => grant.resource === resource && grant.verbs.includes(verb));
    if (user !== USER || !isGranted || scope === 'cluster') {
      const what = name === null ? resource : `${resource} "${name}"`;
      const where = scope === 'cluster' ? 'at the cluster scope' : `in the namespace "${this.namespace}"`;
      const message = `${what} is forbidden: User "${user}" cannot ${verb} resource "${plural}" in API group "${group}" ${where}`;
      if (user === USER) this.mistakes.push(`${verb} ${resource} ${where}`);
      return { ...status(403, 'Forbidden', message), details: { ...(name === null ? {} : { name }), kind: plural } };
    }
    if (RESOURCES[plural] === undefined || this.missing.includes(plural)) {
      return status(404, 'NotFound', 'the server could not find the requested resource');
    }
    return this.broken.includes(plural) ? status(500, 'InternalError', 'conversion webhook failed') : null;
  }

  private invalid({ verb, query }: Query): Status | null {
    const known = verb === 'watch' ? WATCH_PARAMETERS : LIST_PARAMETERS;
    for (const key of query.keys()) if (!known.includes(key)) this.mistakes.push(`parameter ${key} of a ${verb}`);
    if (labelTest(query.get('labelSelector') || 'a') === null) {
      return status(400, 'BadRequest', `unable to parse requirement: ${query.get('labelSelector')}`);
    }
    const version = query.get('resourceVersion') ?? '';
    if (!/^\d*$/.test(version)) {
      const message = `resourceVersion: Invalid value: "${version}": strconv.ParseUint: parsing "${version}": invalid syntax`;
      return { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Failure', message, code: 500 };
    }
    if (verb !== 'watch' || query.get('sendInitialEvents') !== 'true' || this.watchList === 'ignored') return null;
    const why =
      this.watchList === 'off'
        ? 'sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled'
        : query.get('resourceVersionMatch') !== 'NotOlderThan'
          ? 'resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan'
          : null;
    return why === null ? null : status(422, 'Invalid', `ListOptions.meta.k8s.io "" is invalid: ${why}`);
  }

  private page({ plural, query }: Query): object {
    const token = query.get('continue');
    const { rv, start } = token === null ? { rv: this.store.version, start: '' } : decodeToken(token);
    const isExact = query.get('resourceVersionMatch') === 'Exact';
    if (token !== null && rv < this.oldestToken) {
      return status(410, 'Expired', 'The provided continue parameter is too old to display a consistent list result.');
    }
    const version = isExact ? Number(query.get('resourceVersion')) : rv;
    const all = this.store.listAt(plural, version).filter(this.matcher(query));
    const rest = start === '' ? all : all.filter(({ metadata }) => metadata.name > start);
    const limit = Number(query.get('limit') ?? 0);
    const items = limit > 0 ? rest.slice(0, limit) : rest;
    const nLeft = rest.length - items.length;
    const { apiVersion, kind } = kindOf(plural);
    const more = { continue: encodeToken(version, items.at(-1)?.metadata.name ?? ''), remainingItemCount: nLeft };
    return {
      kind: `${kind}List`,
      apiVersion,
      metadata: { resourceVersion: String(version), ...(nLeft > 0 ? more : {}) },
      items,
    };
  }

  private watch({ plural, query }: Query, response: ServerResponse): void {
    const version = query.get('resourceVersion') ?? '';
    const isFresh = version === '' || version === '0';
    response.writeHead(200, { 'content-type': 'application/json' });
    response.flushHeaders();
    if (!isFresh && Number(version) < this.oldestVersion) {
      const message = `too old resource version: ${version} (${this.oldestVersion})`;
      response.end(`${JSON.stringify({ type: 'ERROR', object: status(410, 'Expired', message) })}\n`);
      return;
    }
    const watcher: Watcher = {
      response,
      plural,
      matches: this.matcher(query),
      version: isFresh ? this.store.version : Number(version),
    };
    if (isFresh) {
      for (const object of this.store.list(plural).filter(watcher.matches)) this.send(response, 'ADDED', object);
      const wantsEnd = query.get('allowWatchBookmarks') === 'true' && this.watchList !== 'ignored';
      if (wantsEnd) this.sendBookmark(watcher, { 'k8s.io/initial-events-end': 'true' });
    } else {
      for (const change of this.store.changes) this.tell(watcher, change);
    }
    this.watchers.add(watcher);
    const timers: NodeJS.Timeout[] = [];
    const seconds = Number(query.get('timeoutSeconds') ?? 0);
    if (seconds > 0) timers.push(setTimeout(() => response.end(), seconds * (this.options.secondMs ?? 1000)));
    if (query.get('allowWatchBookmarks') === 'true') {
      timers.push(setInterval(() => this.sendBookmark(watcher), this.options.bookmarkMs ?? 60_000));
    }
    response.on('close', () => {
      for (const timer of timers) clearInterval(timer);
      this.watchers.delete(watcher);
    });
  }

  /** An object that leaves or enters the selection is deleted or added for whoever watches it. */
  private tell(watcher: Watcher, { version, type, plural, before, object }: StoreChange): void {
    if (plural !== watcher.plural || version <= watcher.version) return;
    watcher.version = version;
    const was = before !== null && watcher.matches(before);
    const is = type !== 'DELETED' && watcher.matches(object);
    if (is) this.send(watcher.response, was ? 'MODIFIED' : 'ADDED', object);
    else if (was) {
      const { resourceVersion } = object.metadata;
      this.send(watcher.response, 'DELETED', { ...before, metadata: { ...before.metadata, resourceVersion } });
    }
  }

  private sendBookmark(watcher: Watcher, annotations?: Readonly<Record<string, string>>): void {
    if (watcher.version < this.store.version) watcher.version = this.store.version;
    const metadata = {
      resourceVersion: String(watcher.version),
      ...(annotations === undefined ? {} : { annotations }),
    };
    this.send(watcher.response, 'BOOKMARK', { ...kindOf(watcher.plural), metadata, spec: {}, status: {} });
  }

  private send(response: ServerResponse, type: string, object: object): void {
    this.write(response, `${JSON.stringify({ type, object })}\n`);
  }

  private write(response: ServerResponse, text: string): void {
    if (!this.isFrozen(response)) response.write(text);
  }

  private isFrozen({ socket }: ServerResponse): boolean {
    return socket !== null && this.frozen.has(socket);
  }

  private matcher(query: URLSearchParams): (object: KubeObject) => boolean {
    const labels = labelTest(query.get('labelSelector') ?? '') ?? (() => true);
    const hasLabels = (query.get('labelSelector') ?? '') !== '';
    const name = /^metadata\.name=(.+)$/.exec(query.get('fieldSelector') ?? '')?.[1];
    return ({ metadata }) =>
      (!hasLabels || labels(metadata.labels ?? {})) && (name === undefined || metadata.name === name);
  }
}

type Status = { readonly code: number; readonly [key: string]: unknown };

function status(code: number, reason: string, message: string): Status {
  return { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Failure', message, reason, code };
}

function encodeToken(rv: number, name: string): string {
  return Buffer.from(JSON.stringify({ v: 'meta.k8s.io/v1', rv, start: `/${name}\u0000` })).toString('base64url');
}

function decodeToken(token: string): { rv: number; start: string } {
  const { rv, start } = JSON.parse(Buffer.from(token, 'base64url').toString()) as { rv: number; start: string };
  return { rv, start: start.slice(1, -1) };
}
