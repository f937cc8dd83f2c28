import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import { API_LIMITS, createApiClient, type ApiAccess, type ApiLimits } from '../../src/kubernetes/api-client.ts';
import { readPod, type Pod } from '../../src/kubernetes/pods.ts';
import { createReflector, type Reflector, type ReflectorTiming, type Trouble } from '../../src/kubernetes/reflector.ts';
import { silentLog } from '../../src/log.ts';
import { endAfterEach } from '../support/endings.ts';
import { FakeApiServer, type FakeApiServerOptions } from '../support/fake-api-server.ts';
import { accessTo, aPod } from '../support/kubernetes.ts';

/** A hundred times faster than in the field, in the same proportions. */
const FAST: Partial<ReflectorTiming> = {
  backoffMs: 10,
  backoffMaxMs: 150,
  goodWatchMs: 60,
  missingMs: 60,
  settleMs: 5,
};
const SHORT: ApiLimits = { ...API_LIMITS, connectMs: 300, headMs: 300, idleMs: 300, credentialsMs: 50 };

const atEnd = endAfterEach();
async function aServer(options: FakeApiServerOptions = {}): Promise<FakeApiServer> {
  const server = await FakeApiServer.start({ bookmarkMs: 100, ...options });
  atEnd(() => server.stop());
  return server;
}

type Following = {
  readonly reflector: Reflector;
  /** Sizes of all snapshots. */
  readonly sizes: number[];
  readonly relists: string[];
  readonly failures: string[];
  readonly troubles: (Trouble | null)[];
  pods: readonly Pod[];
};

type FollowOptions = {
  readonly timing?: Partial<ReflectorTiming>;
  readonly limits?: ApiLimits;
  readonly labelSelector?: string;
  readonly token?: () => string;
  readonly credentials?: ApiAccess['credentials'];
};

function follow(server: FakeApiServer, options: FollowOptions = {}): Following {
  const { timing = FAST, limits = SHORT, labelSelector, token, credentials } = options;
  const access = { ...accessTo(server, token), ...(credentials === undefined ? {} : { credentials }) };
  const client = createApiClient({ access, clock: systemClock }, limits);
  const seen: Omit<Following, 'reflector'> = { sizes: [], relists: [], failures: [], troubles: [], pods: [] };
  const reflector = createReflector(
    {
      client,
      clock: systemClock,
      log: silentLog,
      onSnapshot(pods) {
        seen.pods = pods;
        seen.sizes.push(pods.length);
      },
      onTrouble: (trouble) => seen.troubles.push(trouble),
      onRelist: (reason) => seen.relists.push(reason),
      onFailure: (cause) => seen.failures.push(cause),
    },
    {
      resource: { group: '', version: 'v1', plural: 'pods', namespace: server.namespace },
      labelSelector,
      read: readPod,
      timing,
    },
  );
  reflector.start();
  atEnd(() => reflector.stop());
  return Object.assign(seen, { reflector });
}

/** What the server has, as the product keeps it. */
function truth(server: FakeApiServer): readonly Pod[] {
  return server.store.list('pods').map(readPod);
}

function byName(pods: readonly Pod[]): readonly Pod[] {
  return pods.toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

async function until(isTrue: () => boolean, withinMs = 5000): Promise<number> {
  const beganMs = performance.now();
  while (!isTrue()) {
    if (performance.now() - beganMs > withinMs) throw new Error(`not within ${withinMs} ms: ${isTrue.toString()}`);
    await delay(2);
  }
  return performance.now() - beganMs;
}

async function untilSame(following: Following, server: FakeApiServer, withinMs = 5000): Promise<number> {
  const isSame = (): boolean => JSON.stringify(byName(following.pods)) === JSON.stringify(truth(server));
  try {
    return await until(isSame, withinMs);
  } catch {
    expect(byName(following.pods)).toEqual(truth(server));
    throw new Error(`the same only after ${withinMs} ms`);
  }
}

function createPods(server: FakeApiServer, n: number): void {
  for (let i = 0; i < n; i++) {
    server.store.create('pods', aPod({ name: `p${i}`, ip: `10.${(i >> 16) & 255}.${(i >> 8) & 255}.${i & 255}` }));
  }
}

/** Adds, changes, replaces under the same name and deletes. */
function someChanges(server: FakeApiServer): void {
  server.store.create('pods', aPod({ name: 'new', ip: '10.9.9.9' }));
  server.store.update('pods', 'p0', () => ({ status: aPod({ ready: 'False', restarts: 1 }).status }));
  server.store.delete('pods', 'p1');
  server.store.delete('pods', 'p2');
  server.store.create('pods', aPod({ name: 'p2', ip: '10.8.8.8' }));
}

describe('a server in order', () => {
  test('everything at once, then every change within a second', async () => {
    const server = await aServer();
    createPods(server, 5);
    const following = follow(server, { timing: {}, limits: API_LIMITS });
    await untilSame(following, server);
    expect(following.sizes[0]).toBe(5);
    someChanges(server);
    await untilSame(following, server);
    server.store.terminate('pods', 'p3');
    await untilSame(following, server);
    expect(following.pods.find(({ name }) => name === 'p3')?.isTerminating).toBe(true);
    server.store.delete('pods', 'p3');
    await untilSame(following, server);
    expect(following.relists).toEqual(['start']);
    expect(server.requests).toHaveLength(1);
    expect(server.mistakes).toEqual([]);
  });

  test('a server without watch-list is read in pages, and followed from the version of the list', async () => {
    const server = await aServer();
    server.watchList = 'off';
    createPods(server, 450);
    const following = follow(server);
    await until(() => following.pods.length === 450);
    someChanges(server);
    await untilSame(following, server);
    expect(server.requests.map(({ verb, status }) => `${verb} ${status}`)).toEqual([
      'watch 422',
      'list 200',
      'list 200',
      'list 200',
      'watch 200',
    ]);
    expect(following.sizes[0]).toBe(450);
  });

  test.each([
    ['and is silent', 60_000],
    ['and sends bookmarks', 20],
  ])(
    'a server that takes the parameters of watch-list for a plain watch %s is read in pages',
    async (_, bookmarkMs) => {
      const server = await aServer({ bookmarkMs });
      server.watchList = 'ignored';
      createPods(server, 3);
      const following = follow(server, { timing: { ...FAST, firstObjectsMs: 200 } });
      await untilSame(following, server, 10_000);
      await until(() => server.requests.length === 3);
      expect(server.requests.slice(0, 3).map(({ verb }) => verb)).toEqual(['watch', 'list', 'watch']);
      expect(following.failures).toEqual(['timeout']);
    },
  );

  test('a pod whose labels leave the selection is gone, and comes back with them', async () => {
    const server = await aServer();
    createPods(server, 2);
    const following = follow(server, { labelSelector: 'model.aibrix.ai/name' });
    await until(() => following.pods.length === 2);
    const { labels } = server.store.update('pods', 'p0', ({ metadata }) => ({
      metadata: { ...metadata, labels: { app: 'other' } },
    })).metadata;
    expect(labels).toEqual({ app: 'other' });
    await until(() => following.pods.length === 1);
    server.store.update('pods', 'p0', ({ metadata }) => ({
      metadata: { ...metadata, labels: { 'model.aibrix.ai/name': 'demo-model' } },
    }));
    await until(() => following.pods.length === 2);
    expect(server.requests).toHaveLength(1);
  });

  test('an idle watch is kept, and its bookmarks move the version', async () => {
    const server = await aServer({ bookmarkMs: 40 });
    createPods(server, 1);
    const following = follow(server);
    await until(() => following.pods.length === 1);
    // Versions that concern other resources.
    for (let i = 0; i < 5; i++) server.store.create('modeladapters', { metadata: { name: `a${i}` } });
    await delay(50);
    for (let i = 0; i < 16; i++) await delay(50);
    expect(server.requests).toHaveLength(1);
    expect(following.reflector.ageMs()).toBeLessThan(200);
    server.compact();
    server.endWatches();
    await until(() => server.nWatches === 1 && server.requests.length === 2);
    expect(server.requests[1]!.query.get('resourceVersion')).toBe(String(server.store.version));
    expect(following.relists).toEqual(['start']);
  });

  test('the end of a watch loses nothing and reads nothing anew', async () => {
    const server = await aServer();
    createPods(server, 5);
    const following = follow(server);
    await untilSame(following, server);
    for (let i = 0; i < 10; i++) {
      server.endWatches();
      server.store.create('pods', aPod({ name: `n${i}`, ip: `10.7.0.${i}` }));
      await untilSame(following, server);
    }
    expect(following.relists).toEqual(['start']);
  });

  test('over TLS: the CA is checked, the token is sent', async () => {
    const fixture = (name: string): Buffer => readFileSync(new URL(`../fixtures/tls/${name}`, import.meta.url));
    const server = await aServer({ tls: { cert: fixture('server-a.crt'), key: fixture('server-a.key') } });
    createPods(server, 2);
    const tls: { servername: string; ca?: Buffer } = { servername: 'localhost' };
    const access = {
      server: new URL(server.url),
      namespace: 'rec',
      credentials: async () => ({
        headers: { authorization: `Bearer ${server.token}` },
        tls,
      }),
    };
    const client = createApiClient({ access, clock: systemClock }, SHORT);
    const get = () =>
      client.get('/api/v1/namespaces/rec/pods?limit=1', {
        signal: new AbortController().signal,
        onHeard: () => undefined,
      });
    expect(await get()).toMatchObject({ kind: 'failed', cause: 'tls' });
    tls.ca = fixture('server-a.crt');
    expect(await get()).toMatchObject({ kind: 'json', json: { kind: 'PodList' } });
  });
});

describe('after a fault nothing is missing, nothing is there twice, and it goes on', () => {
  type Fault = (server: FakeApiServer) => Promise<void> | void;
  test.each<[string, Fault, { readonly relists: readonly string[] }]>([
    ['connections reset', (server) => server.reset(), { relists: ['start'] }],
    ['connections closed in the middle of the stream', (server) => server.cut(), { relists: ['start'] }],
    [
      'a restart with forgotten versions, 410 in the stream',
      (server) => server.restart(),
      { relists: ['start', 'expired'] },
    ],
    [
      '410 on the running watch',
      (server) =>
        server.sendLine(
          '{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}}',
        ),
      { relists: ['start', 'expired'] },
    ],
    [
      '410 as the status of the answer',
      async (server) => {
        server.storm = { status: 410, body: '{"kind":"Status","code":410,"reason":"Gone","message":"gone"}' };
        server.reset();
        await until(() => server.requests.some(({ status }) => status === 410));
        server.storm = null;
      },
      { relists: ['start', 'expired'] },
    ],
    [
      'another error in the stream',
      (server) =>
        server.sendLine('{"type":"ERROR","object":{"kind":"Status","message":"etcd leader changed","code":500}}'),
      { relists: ['start'] },
    ],
    ['half a line that is no JSON', (server) => server.sendLine('{"type":"ADDED","obj'), { relists: ['start'] }],
    ['half-open connections', (server) => server.freeze(), { relists: ['start'] }],
    [
      'a storm of 503',
      async (server) => {
        server.storm = { status: 503, body: 'upstream connect error' };
        server.reset();
        await delay(50);
        await delay(50);
        server.storm = null;
      },
      { relists: ['start'] },
    ],
    [
      'a server that was away',
      async (server) => {
        await server.down();
        for (let i = 0; i < 4; i++) await delay(50);
        await server.up();
      },
      { relists: ['start'] },
    ],
    [
      'a token that was changed while the watch went on, and a cut after it',
      (server) => {
        server.token = 'rotated';
        server.reset();
      },
      { relists: ['start'] },
    ],
    [
      'a role that was taken away and given back',
      async (server) => {
        server.grants = [];
        server.reset();
        await until(() => server.requests.some(({ status }) => status === 403));
        server.grants = FakeApiServer.everything();
      },
      { relists: ['start'] },
    ],
    [
      'answers that hang',
      async (server) => {
        server.hangs = true;
        server.reset();
        for (let i = 0; i < 4; i++) await delay(50);
        server.hangs = false;
      },
      { relists: ['start'] },
    ],
  ])('%s', async (_, fault, { relists }) => {
    const server = await aServer();
    createPods(server, 5);
    const following = follow(server);
    await untilSame(following, server);
    const faulty = fault(server);
    someChanges(server);
    await faulty;
    await untilSame(following, server, 10_000);
    server.store.create('pods', aPod({ name: 'after', ip: '10.6.6.6' }));
    await untilSame(following, server);
    expect(following.relists).toEqual(relists);
    // Never emptied, never without what stayed.
    expect(Math.min(...following.sizes)).toBeGreaterThanOrEqual(4);
    expect(server.requests.length).toBeLessThan(60);
  });

  test('a continue token that expired: the list begins anew and what was known stays until then', async () => {
    const server = await aServer();
    server.watchList = 'off';
    createPods(server, 300);
    const following = follow(server);
    await until(() => following.pods.length === 300 && server.nWatches === 1);
    server.delayMs = 30;
    const nBefore = server.requests.length;
    server.sendLine('{"type":"ERROR","object":{"reason":"Expired","code":410}}');
    await until(() => server.requests.slice(nBefore).some(({ verb }) => verb === 'list'));
    server.expireTokens();
    server.store.delete('pods', 'p7');
    await until(() => server.requests.some(({ status }) => status === 410));
    server.delayMs = 0;
    await untilSame(following, server);
    expect(Math.min(...following.sizes)).toBeGreaterThanOrEqual(299);
  });

  test('etcd restored from a backup: the first event with an older version leads to a new reading', async () => {
    const server = await aServer();
    createPods(server, 5);
    const following = follow(server);
    await untilSame(following, server);
    const backup = server.store.version;
    someChanges(server);
    await untilSame(following, server);
    server.store.restore(backup);
    const nBefore = server.requests.length;
    server.reset();
    await until(() => server.requests.length === nBefore + 1);
    // Nothing tells so far: a version of the future gets an empty stream.
    server.sendLine(
      JSON.stringify({ type: 'BOOKMARK', object: { kind: 'Pod', metadata: { resourceVersion: String(backup) } } }),
    );
    await untilSame(following, server);
    expect(following.relists).toEqual(['start', 'backwards']);
  });

  test('everything is read anew from time to time, which ends what nothing tells', async () => {
    const server = await aServer({ bookmarkMs: 60_000 });
    createPods(server, 5);
    const following = follow(server, {
      timing: { ...FAST, relistMs: 200, watchMs: 50 },
      limits: { ...SHORT, idleMs: 5000 },
    });
    await untilSame(following, server);
    const backup = server.store.version;
    someChanges(server);
    await untilSame(following, server);
    server.store.restore(backup);
    server.reset();
    await untilSame(following, server, 10_000);
    expect(following.relists.slice(0, 2)).toEqual(['start', 'periodic']);
  });
});

describe('trouble', () => {
  test('missing permissions are named with verb and resource, before and after the first list', async () => {
    const server = await aServer({ grants: [] });
    createPods(server, 1);
    const following = follow(server);
    await until(() => following.troubles.length > 0);
    expect(following.troubles[0]).toEqual({
      cause: 'forbidden',
      text: expect.stringMatching(
        /^not allowed to watch pods in namespace rec: a Role must grant list and watch \(.*cannot watch/,
      ),
    });
    server.watchList = 'off';
    server.grants = [{ resource: 'pods', verbs: ['watch'] }];
    await until(() => following.troubles.at(-1)?.text.startsWith('not allowed to list pods in namespace rec') === true);
    server.grants = FakeApiServer.everything();
    await until(() => following.pods.length === 1 && following.troubles.at(-1) === null);
  });

  test('a wrong token is told, and forgotten with the right one', async () => {
    const server = await aServer();
    let token = 'wrong';
    const following = follow(server, { token: () => token });
    await until(() => following.troubles.length === 1);
    expect(following.troubles[0]).toMatchObject({
      cause: 'unauthorized',
      text: 'cannot watch pods in namespace rec: Unauthorized',
    });
    token = server.token;
    await until(() => following.troubles.at(-1) === null);
  });

  test('credentials that do not come are told, and stop does not wait for them', async () => {
    const server = await aServer();
    const following = follow(server, { credentials: () => new Promise(() => undefined) });
    await until(() => following.troubles.length === 1);
    expect(following.troubles[0]).toEqual({
      cause: 'credentials',
      text: 'cannot watch pods in namespace rec: no credentials within 50 ms',
    });
    await following.reflector.stop();
    const patient = follow(server, { limits: API_LIMITS, credentials: () => new Promise(() => undefined) });
    await patient.reflector.stop();
    expect(server.requests).toEqual([]);
  });

  test('a server that is away is trouble, one reset is not', async () => {
    const server = await aServer();
    createPods(server, 3);
    const following = follow(server);
    await untilSame(following, server);
    server.reset();
    await until(() => server.requests.length === 2 && server.nWatches === 1);
    expect(following.troubles).toEqual([]);
    await server.down();
    await until(() => following.troubles.at(-1)?.cause === 'unreachable');
    expect(following.troubles.at(-1)?.text).toMatch(/^cannot watch pods in namespace rec: connect ECONNREFUSED/);
    expect(following.pods).toHaveLength(3);
    await server.up();
    await until(() => following.troubles.at(-1) === null);
    expect(following.failures.filter((cause) => cause === 'reset').length).toBeGreaterThanOrEqual(1);
  });

  test('retry-after is kept', async () => {
    const server = await aServer();
    server.storm = { status: 429, headers: { 'retry-after': '1' } };
    const following = follow(server);
    await until(() => server.requests.length === 1);
    server.storm = null;
    await until(() => following.relists.length === 1, 10_000);
    expect(server.requests).toHaveLength(2);
    expect(server.requests[1]!.atMs - server.requests[0]!.atMs).toBeGreaterThan(990);
  });
});

describe('a big fleet', () => {
  test.each(['on', 'off'] as const)('10,000 pods and a burst of 2,000 changes, watch-list %s', async (watchList) => {
    const server = await aServer();
    server.watchList = watchList;
    createPods(server, 10_000);
    const following = follow(server, { timing: {}, limits: API_LIMITS });
    await until(() => following.pods.length === 10_000, 15_000);
    expect(following.sizes).toEqual([10_000]);
    expect(server.requests.length).toBeLessThanOrEqual(52);
    await until(() => server.nWatches === 1);
    for (let i = 0; i < 2000; i++) {
      const name = `p${i * 5}`;
      if (i % 2 === 0) server.store.delete('pods', name);
      else server.store.update('pods', name, () => ({ status: aPod({ ready: 'False', restarts: 1 }).status }));
    }
    await until(() => following.pods.filter(({ isReady }) => !isReady).length === 1000, 10_000);
    await untilSame(following, server);
    // Snapshots are whole fleets: few of them, and the last one complete.
    expect(following.sizes.length).toBeLessThan(20);
    expect(following.sizes.at(-1)).toBe(9000);
  });
});

describe('the load on the server is bounded', () => {
  test('watches are asked for between 290 and 580 s, each differently long, and bookmarks with them', async () => {
    const server = await aServer();
    const following = follow(server);
    for (let i = 1; i <= 12; i++) {
      await until(() => server.nWatches === 1 && server.requests.length === i);
      server.endWatches();
      await until(() => server.nWatches === 0);
    }
    await following.reflector.stop();
    const queries = server.requests.map(({ query }) => query);
    const seconds = queries.map((query) => Number(query.get('timeoutSeconds')));
    expect(Math.min(...seconds)).toBeGreaterThanOrEqual(290);
    expect(Math.max(...seconds)).toBeLessThanOrEqual(580);
    expect(new Set(seconds).size).toBeGreaterThan(6);
    expect(queries.every((query) => query.get('allowWatchBookmarks') === 'true')).toBe(true);
  });

  test.each<[string, (server: FakeApiServer) => void]>([
    ['errors', (server) => (server.storm = { status: 500, body: '{"kind":"Status","code":500}' })],
    ['watches that end as soon as they begin', (server) => (server.storm = { status: 200, body: '' })],
    [
      'watches that are always too old',
      (server) => {
        const { store } = server;
        setImmediate(function expire() {
          server.compact();
          if (server.nWatches > 0) server.sendLine('{"type":"ERROR","object":{"code":410,"reason":"Expired"}}');
          if (store.version < 1e9) setTimeout(expire, 2).unref();
        });
        atEnd(() => void (store.version = 1e9));
      },
    ],
  ])('%s', async (_, begin) => {
    const server = await aServer();
    createPods(server, 3);
    const following = follow(server, { timing: { backoffMs: 20, backoffMaxMs: 400, goodWatchMs: 100, settleMs: 5 } });
    await untilSame(following, server);
    begin(server);
    server.reset();
    const nBefore = server.requests.length;
    for (let i = 0; i < 20; i++) await delay(50);
    // 20, 40, 80, … 400 ms, each halved at least: about eight.
    expect(server.requests.length - nBefore).toBeGreaterThan(1);
    expect(server.requests.length - nBefore).toBeLessThan(16);
    expect(following.pods).toHaveLength(3);
  });
});

test('stop ends everything at once, also in the middle of an answer and of a pause', async () => {
  const server = await aServer();
  createPods(server, 3);
  const one = follow(server);
  await untilSame(one, server);
  await one.reflector.stop();
  await until(() => server.nWatches === 0);
  server.hangs = true;
  const two = follow(server);
  await until(() => server.requests.length === 2);
  await two.reflector.stop();
  await server.down();
  const three = follow(server);
  await until(() => three.failures.length > 2);
  const nSnapshots = three.sizes.length;
  await three.reflector.stop();
  await server.up();
  for (let i = 0; i < 4; i++) await delay(50);
  expect(server.requests).toHaveLength(2);
  expect(three.sizes).toHaveLength(nSnapshots);
});
