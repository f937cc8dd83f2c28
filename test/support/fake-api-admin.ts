/**
 * The other face of the fake API server: what kubectl needs to change its objects. Discovery, get, list, create, patch and
 * delete over the same store, without the strictness that fake-api-server.ts has for Warmpath's own requests.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { kindOf, type FakeApiStore, type KubeObject, type ObjectDraft } from './fake-api-store.ts';

type Resource = { readonly plural: string; readonly group: string; readonly version: string; readonly short: string };

const RESOURCES: readonly Resource[] = [
  { plural: 'pods', group: '', version: 'v1', short: 'po' },
  { plural: 'inferencepools', group: 'inference.networking.k8s.io', version: 'v1', short: 'infpool' },
  { plural: 'modeladapters', group: 'model.aibrix.ai', version: 'v1alpha1', short: 'ma' },
];
const VERBS = ['get', 'list', 'create', 'patch', 'delete'];
const PATH = /^\/(?:api|apis\/([\w.-]+))\/(\w+)\/namespaces\/([\w.-]+)\/([a-z]+)(?:\/([\w.-]+)(?:\/(status))?)?$/;

export type FakeApiAdmin = { readonly url: string; stop(): Promise<void> };

export async function startFakeApiAdmin(store: FakeApiStore): Promise<FakeApiAdmin> {
  const server = createServer((request, response) => {
    handle(store, request).then(
      ([code, body]) => answer(response, code, body),
      (error: unknown) => answer(response, 500, failure(500, String(error))),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function answer(response: ServerResponse, code: number, body: object): void {
  response.writeHead(code, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}

type Answer = readonly [code: number, body: object];

async function handle(store: FakeApiStore, request: IncomingMessage): Promise<Answer> {
  const { pathname } = new URL(request.url ?? '', 'http://fake');
  const found = PATH.exec(pathname);
  if (found === null) return discovery(pathname);
  const [, group = '', , , plural = '', name] = found;
  if (!RESOURCES.some((one) => one.plural === plural && one.group === group)) return notFound(plural);
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  const text = Buffer.concat(chunks).toString('utf8');
  const body = text === '' ? {} : (JSON.parse(text) as object);
  if (name === undefined) {
    if (request.method === 'POST') return [201, store.create(plural, body as ObjectDraft)];
    const { apiVersion, kind } = kindOf(plural);
    const metadata = { resourceVersion: String(store.version) };
    return [200, { apiVersion, kind: `${kind}List`, metadata, items: store.list(plural) }];
  }
  const object = store.get(plural, name);
  if (object === null) return notFound(`${plural} "${name}"`);
  if (request.method === 'PATCH') {
    return [200, store.update(plural, name, (before) => merged(before, body) as KubeObject)];
  }
  if (request.method !== 'DELETE') return [200, object];
  // A pod stays, terminating, until its kubelet has stopped it; everything else goes at once.
  const isForced = (body as { gracePeriodSeconds?: number }).gracePeriodSeconds === 0;
  if (plural === 'pods' && !isForced) return [200, store.terminate(plural, name)];
  store.delete(plural, name);
  return [200, object];
}

/** JSON merge patch (RFC 7386); kubectl's patches of labels and annotations mean the same in its strategic form. */
function merged(target: unknown, patch: unknown): unknown {
  if (typeof patch !== 'object' || patch === null || Array.isArray(patch)) return patch;
  const before = typeof target === 'object' && target !== null && !Array.isArray(target) ? target : {};
  const after = { ...before } as Record<string, unknown>;
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete after[key];
    else after[key] = merged(after[key], value);
  }
  return after;
}

function discovery(path: string): Answer {
  if (path === '/api') return [200, { kind: 'APIVersions', versions: ['v1'] }];
  if (path === '/apis') {
    const groups = RESOURCES.filter(({ group }) => group !== '').map(({ group, version }) => {
      const one = { groupVersion: `${group}/${version}`, version };
      return { name: group, versions: [one], preferredVersion: one };
    });
    return [200, { kind: 'APIGroupList', apiVersion: 'v1', groups }];
  }
  const groupVersion = path.replace(/^\/apis?\//, '');
  const resources = RESOURCES.filter(
    ({ group, version }) => (group === '' ? version : `${group}/${version}`) === groupVersion,
  ).flatMap(({ plural, short }) => {
    const { kind } = kindOf(plural);
    const one = { name: plural, singularName: kind.toLowerCase(), namespaced: true, kind, verbs: VERBS };
    return [
      { ...one, shortNames: [short] },
      { ...one, name: `${plural}/status`, verbs: ['get', 'patch'] },
    ];
  });
  return resources.length === 0
    ? notFound(path)
    : [200, { kind: 'APIResourceList', apiVersion: 'v1', groupVersion, resources }];
}

function notFound(what: string): Answer {
  return [404, failure(404, `${what} not found`)];
}

function failure(code: number, message: string): object {
  const reason = code === 404 ? 'NotFound' : 'InternalError';
  return { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Failure', message, reason, code };
}
