import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from '@jest/globals';
import { createApp } from '../../src/app.ts';
import { runServe } from '../../src/cli/serve.ts';
import { systemClock, type Clock } from '../../src/clock.ts';
import { configToYaml } from '../../src/config.ts';
import type { EndpointSpec } from '../../src/endpoints/endpoint.ts';
import {
  createKubernetesEndpoints,
  type KubernetesEndpoints,
  type KubernetesEndpointsOptions,
} from '../../src/kubernetes/kubernetes-endpoints.ts';
import { silentLog } from '../../src/log.ts';
import { stageConfig } from '../e2e/stage.ts';
import { endAfterEach } from '../support/endings.ts';
import { createHealthClient } from '../support/extproc-client.ts';
import { FakeApiServer } from '../support/fake-api-server.ts';
import {
  accessTo,
  anAdapter,
  aPod,
  aPool,
  kubeconfigOf,
  MODEL_LABEL,
  DISCOVERY_OPTIONS,
} from '../support/kubernetes.ts';
import type { ObjectDraft } from '../support/fake-api-store.ts';

const atEnd = endAfterEach();
async function aServer(options: Parameters<typeof FakeApiServer.start>[0] = {}): Promise<FakeApiServer> {
  const server = await FakeApiServer.start(options);
  atEnd(() => server.stop());
  return server;
}

/** With a kubeconfig that leads to the server. */
async function aFolder(server: FakeApiServer): Promise<{ folder: string; kubeconfig: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'warmpath-kubernetes-'));
  atEnd(() => rm(folder, { recursive: true, force: true }));
  const kubeconfig = join(folder, 'config');
  await writeFile(kubeconfig, kubeconfigOf(server));
  return { folder, kubeconfig };
}

type Discovery = {
  readonly endpoints: KubernetesEndpoints;
  readonly started: Promise<void>;
  specs: readonly EndpointSpec[] | null;
  problem: string | null;
  nTold: number;
  /** `name:priority`, in alphabetical order; null = nothing was told. */
  objectives: string | null;
  readonly logged: string[];
};

function discover(
  server: FakeApiServer,
  options: Partial<KubernetesEndpointsOptions> = {},
  clock: Clock = systemClock,
): Discovery {
  const seen: Omit<Discovery, 'endpoints' | 'started'> = {
    specs: null,
    problem: null,
    nTold: 0,
    objectives: null,
    logged: [],
  };
  const endpoints = createKubernetesEndpoints(
    {
      log: { ...silentLog, info: (message) => void seen.logged.push(message) },
      clock,
      onObjectives(priorities) {
        seen.objectives = [...priorities]
          .map((entry) => entry.join(':'))
          .sort()
          .join(' ');
      },
      onEndpoints(specs) {
        seen.specs = specs;
        seen.nTold += 1;
      },
      onProblem: (problem) => (seen.problem = problem),
      onRelist: () => undefined,
      onFailure: () => undefined,
      access: accessTo(server),
    },
    {
      ...DISCOVERY_OPTIONS,
      timing: { backoffMs: 5, backoffMaxMs: 50, goodWatchMs: 30, missingMs: 40, settleMs: 2 },
      ...options,
    },
  );
  atEnd(() => endpoints.stop());
  const started = endpoints.start();
  started.catch(() => undefined);
  return Object.assign(seen, { endpoints, started });
}

async function until(isTrue: () => boolean | Promise<boolean>, withinMs = 5000): Promise<void> {
  const deadlineMs = performance.now() + withinMs;
  while (!(await isTrue())) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${withinMs} ms: ${isTrue.toString()}`);
    await delay(2);
  }
}

const addressesOf = ({ specs }: Discovery): string[] => (specs ?? []).map(({ address }) => address).sort();

describe('a clock that is set anew', () => {
  test.each([
    ['a day ahead', 86_400_000],
    ['a day back', -86_400_000],
  ])('%s ends no watch, starts none, and misses nothing', async (_what, jumpMs) => {
    let offsetMs = 0;
    const clock: Clock = { ...systemClock, unixMs: () => Date.now() + offsetMs };
    const server = await aServer();
    server.store.create('pods', aPod({ name: 'a', ip: '10.0.0.1' }));
    const seen = discover(server, {}, clock);
    await seen.started;
    const nBefore = server.requests.length;
    offsetMs = jumpMs;
    server.store.create('pods', aPod({ name: 'b', ip: '10.0.0.2' }));
    await until(() => addressesOf(seen).length === 2);
    server.store.delete('pods', 'a');
    await until(() => addressesOf(seen).join() === '10.0.0.2:8000');
    for (let i = 0; i < 4; i++) await delay(50);
    expect(server.requests.length).toBe(nBefore);
    expect(seen.endpoints.ageMs()).toBeLessThan(60_000);
  });
});

describe('pods', () => {
  test('the first list is told once, adapters included', async () => {
    const server = await aServer();
    for (let i = 0; i < 3; i++) server.store.create('pods', aPod({ name: `p${i}`, ip: `10.0.0.${i}` }));
    server.store.create('modeladapters', anAdapter('sql', ['p1']));
    const seen = discover(server);
    await seen.started;
    expect(seen.nTold).toBe(1);
    expect(seen.specs!.map(({ name, adapters }) => [name, adapters])).toEqual([
      ['p0', []],
      ['p1', ['sql']],
      ['p2', []],
    ]);
    expect(seen.endpoints.ageMs()).toBeLessThan(1000);
    expect(server.mistakes).toEqual([]);
  });

  test('exactly the permissions of the documentation are used: list and watch, in one namespace', async () => {
    const server = await aServer({
      grants: [
        { resource: 'pods', verbs: ['list', 'watch'] },
        { resource: 'modeladapters.model.aibrix.ai', verbs: ['list', 'watch'] },
        { resource: 'inferencepools.inference.networking.k8s.io', verbs: ['list', 'watch'] },
      ],
    });
    server.watchList = 'off';
    server.store.create('pods', aPod({ labels: { app: 'vllm' } }));
    server.store.create('inferencepools', aPool());
    await discover(server).started;
    await discover(server, { inferencePool: 'pool' }).started;
    expect(server.mistakes).toEqual([]);
    expect(new Set(server.requests.map(({ verb }) => verb))).toEqual(new Set(['list', 'watch']));
  });

  test('nothing that matches, and nothing that can be an endpoint, is said', async () => {
    const server = await aServer();
    const seen = discover(server);
    await seen.started;
    expect([seen.specs, seen.problem]).toEqual([[], `no pod matches the selector ${MODEL_LABEL} of namespace rec`]);
    server.store.create('pods', aPod({ name: 'p0', ip: null }));
    await until(() => seen.problem?.startsWith('none of 1 pods') === true);
    expect(seen.problem).toBe('none of 1 pods can be an endpoint, for example p0: has no IP address yet');
    expect(seen.endpoints.excluded()).toEqual([{ name: 'p0', reason: 'has no IP address yet' }]);
    server.store.update('pods', 'p0', () => ({ status: aPod({ name: 'p0' }).status }));
    await until(() => seen.problem === null);
    expect(seen.endpoints.excluded()).toEqual([]);
  });

  test('start waits for a server that is away, and stop ends the waiting', async () => {
    const server = await aServer();
    await server.down();
    const late = discover(server);
    await until(() => late.problem !== null);
    expect(late.specs).toBeNull();
    // Never told counts from the start: an alert on the age must not take it for fresh.
    const ageMs = late.endpoints.ageMs();
    await until(() => late.endpoints.ageMs() > ageMs);
    server.store.create('pods', aPod());
    await server.up();
    await late.started;
    expect(late.specs).toHaveLength(1);
    await until(() => late.problem === null);
    await server.down();
    const never = discover(server);
    await until(() => never.problem !== null);
    await never.endpoints.stop();
    await expect(never.started).rejects.toMatchObject({
      code: 'io_failed',
      message: 'stopped before the first list of pods came',
    });
    await server.up();
  });

  test('a server that goes away leaves the fleet in effect, and a problem', async () => {
    const server = await aServer();
    server.store.create('pods', aPod());
    const seen = discover(server);
    await seen.started;
    await server.down();
    await until(() => seen.problem?.startsWith('cannot watch pods in namespace rec: ') === true);
    expect(seen.problem).toContain('; what is known stays in effect');
    expect([seen.specs!.length, seen.nTold]).toEqual([1, 1]);
    await server.up();
    await until(() => seen.problem === null);
  });
});

describe('ModelAdapters', () => {
  test('the CRD may come later, and go', async () => {
    const server = await aServer();
    server.missing = ['modeladapters'];
    server.store.create('pods', aPod({ name: 'p0' }));
    const seen = discover(server);
    await seen.started;
    expect(seen.problem).toBeNull();
    server.store.create('modeladapters', anAdapter('sql', ['p0']));
    server.missing = [];
    await until(() => seen.specs?.[0]?.adapters.length === 1);
    server.store.update('modeladapters', 'sql', () => anAdapter('sql', []));
    await until(() => seen.specs?.[0]?.adapters.length === 0);
    server.store.update('modeladapters', 'sql', () => anAdapter('sql', ['p0']));
    await until(() => seen.specs?.[0]?.adapters.length === 1);
    // A moment of 404, as from a server that starts, is not believed …
    const nTold = seen.nTold;
    const nRequests = server.requests.length;
    server.missing = ['modeladapters'];
    server.endWatches();
    await until(() => server.requests.slice(nRequests).some(({ status }) => status === 404));
    server.missing = [];
    await until(() => server.nWatches === 2);
    expect(seen.specs?.[0]?.adapters).toEqual(['sql']);
    // … one that lasts is, and it may come back.
    server.missing = ['modeladapters'];
    server.endWatches();
    await until(() => seen.specs?.[0]?.adapters.length === 0);
    expect(seen.problem).toBeNull();
    server.missing = [];
    await until(() => seen.specs?.[0]?.adapters.length === 1);
    expect(seen.nTold - nTold).toBeLessThanOrEqual(4);
  });

  test('switched on, a missing CRD is a problem; switched off, nobody asks', async () => {
    const server = await aServer();
    server.missing = ['modeladapters'];
    server.store.create('pods', aPod());
    const on = discover(server, { modelAdapters: 'on' });
    await on.started;
    await until(() => on.problem !== null);
    expect(on.problem).toMatch(
      /^cannot watch modeladapters.model.aibrix.ai in namespace rec: the server could not find/,
    );
    await on.endpoints.stop();
    server.requests.length = 0;
    await discover(server, { modelAdapters: 'off' }).started;
    expect(server.requests.map(({ resource }) => resource)).toEqual(['pods']);
  });

  test('a server that is away at the start costs no adapters; one that cannot list them costs no pods', async () => {
    const server = await aServer();
    server.store.create('pods', aPod({ name: 'p0' }));
    server.store.create('modeladapters', anAdapter('sql', ['p0']));
    await server.down();
    const late = discover(server);
    await until(() => late.problem?.includes('modeladapters') === true);
    await server.up();
    await late.started;
    expect(late.specs!.map(({ adapters }) => adapters)).toEqual([['sql']]);
    await late.endpoints.stop();
    server.broken = ['modeladapters'];
    const without = discover(server);
    await without.started;
    expect(without.specs!.map(({ adapters }) => adapters)).toEqual([[]]);
    server.broken = [];
    await until(() => without.specs?.[0]?.adapters.length === 1);
  });

  test('one that never answers keeps pods waiting for a moment only; what comes later counts', async () => {
    const server = await aServer();
    server.store.create('pods', aPod({ name: 'p0' }));
    server.store.create('modeladapters', anAdapter('sql', ['p0']));
    server.stalled = ['modeladapters'];
    const seen = discover(server, { adaptersWaitMs: 50 });
    await seen.started;
    expect(seen.specs).toMatchObject([{ name: 'p0', adapters: [] }]);
    server.stalled = [];
    server.reset();
    await until(() => seen.specs?.[0]?.adapters.join() === 'sql');
  });

  test('without permission pods are served all the same, and what is missing is said', async () => {
    const server = await aServer({ grants: [{ resource: 'pods', verbs: ['list', 'watch'] }] });
    server.store.create('pods', aPod());
    const seen = discover(server);
    await seen.started;
    expect(seen.specs).toHaveLength(1);
    expect(seen.problem).toMatch(
      /^not allowed to watch modeladapters.model.aibrix.ai in namespace rec: a Role must grant/,
    );
    server.grants = FakeApiServer.everything();
    await until(() => seen.problem === null);
  });
});

describe('InferenceObjectives', () => {
  const anObjective = (name: string, priority?: number, pool = 'pool'): ObjectDraft => ({
    metadata: { name },
    spec: { ...(priority === undefined ? {} : { priority }), poolRef: { name: pool } },
  });

  test('are followed, of both groups; without a priority it is 0', async () => {
    const server = await aServer();
    server.store.create('pods', aPod());
    server.store.create('inferenceobjectives', anObjective('batch', -10));
    server.store.create('inferenceobjectives', anObjective('chat'));
    const seen = discover(server, { inferenceObjectives: 'auto' });
    await seen.started;
    await until(() => seen.objectives === 'batch:-10 chat:0');
    server.store.update('inferenceobjectives', 'batch', () => anObjective('batch', 5));
    await until(() => seen.objectives === 'batch:5 chat:0');
    server.store.delete('inferenceobjectives', 'chat');
    await until(() => seen.objectives === 'batch:5');
    const asked = new Set(server.requests.map(({ resource }) => resource));
    expect(asked).toContain('inferenceobjectives.inference.networking.x-k8s.io');
    expect(asked).toContain('inferenceobjectives.llm-d.ai');
    expect([seen.problem, server.mistakes]).toEqual([null, []]);
  });

  test('of another InferencePool than the one that is followed do not count', async () => {
    const server = await aServer();
    server.store.create('inferencepools', aPool({ matchLabels: { app: 'a' } }));
    server.store.create('inferenceobjectives', anObjective('mine', -1));
    server.store.create('inferenceobjectives', anObjective('theirs', -1, 'other'));
    const seen = discover(server, { inferenceObjectives: 'auto', inferencePool: 'pool' });
    await until(() => seen.objectives !== null);
    expect(seen.objectives).toBe('mine:-1');
  });

  test.each([
    ['without the CRD', { missing: ['inferenceobjectives'] }],
    [
      'without permission',
      { grants: FakeApiServer.everything().filter(({ resource }) => !resource.startsWith('inferenceob')) },
    ],
  ])('%s nothing changes, which is said once; the CRD may come later, and go', async (_case, trouble) => {
    const server = await aServer();
    Object.assign(server, trouble);
    server.store.create('pods', aPod());
    server.store.create('inferenceobjectives', anObjective('batch', -10));
    const seen = discover(server, { inferenceObjectives: 'auto' });
    await seen.started;
    const said = (): number => seen.logged.filter((message) => message.startsWith('no InferenceObjectives')).length;
    await until(() => said() === 1);
    expect([seen.specs?.length, seen.problem, seen.objectives]).toEqual([1, null, null]);
    Object.assign(server, { missing: [], grants: FakeApiServer.everything() });
    await until(() => seen.objectives === 'batch:-10');
    server.missing = ['inferenceobjectives'];
    server.endWatches();
    await until(() => seen.objectives === '');
    expect([seen.problem, said()]).toEqual([null, 1]);
  });

  test('switched on, a missing CRD is a problem; switched off, nobody asks', async () => {
    const server = await aServer();
    server.missing = ['inferenceobjectives'];
    server.store.create('pods', aPod());
    const on = discover(server, { inferenceObjectives: 'on' });
    await on.started;
    await until(() => on.problem !== null);
    expect(on.problem).toMatch(/^cannot watch inferenceobjectives.inference.networking.x-k8s.io in namespace rec/);
    await on.endpoints.stop();
    server.requests.length = 0;
    await discover(server, { inferenceObjectives: 'off' }).started;
    expect(server.requests.some(({ resource }) => resource.startsWith('inferenceobjectives'))).toBe(false);
  });
});

describe('an InferencePool', () => {
  async function aPoolWithPods(): Promise<FakeApiServer> {
    const server = await aServer();
    for (const [i, app] of ['a', 'a', 'b'].entries()) {
      server.store.create('pods', aPod({ name: `p${i}`, ip: `10.0.0.${i}`, labels: { app } }));
    }
    server.store.create('inferencepools', aPool({ name: 'other', matchLabels: { app: 'none' } }));
    server.store.create('inferencepools', aPool({ matchLabels: { app: 'a' } }));
    return server;
  }

  test('its selector and its ports are followed live', async () => {
    const server = await aPoolWithPods();
    const seen = discover(server, { inferencePool: 'pool' });
    await seen.started;
    expect(addressesOf(seen)).toEqual(['10.0.0.0:8000', '10.0.0.1:8000']);
    server.store.update('inferencepools', 'pool', () => aPool({ matchLabels: { app: 'a' }, ports: [8000, 8001] }));
    await until(() => addressesOf(seen).length === 4);
    expect(addressesOf(seen)).toEqual(['10.0.0.0:8000', '10.0.0.0:8001', '10.0.0.1:8000', '10.0.0.1:8001']);
    server.store.update('inferencepools', 'pool', () => aPool({ matchLabels: { app: 'b' } }));
    await until(() => addressesOf(seen).join() === '10.0.0.2:8000');
    server.store.create('pods', aPod({ name: 'p3', ip: '10.0.0.3', labels: { app: 'b' } }));
    await until(() => addressesOf(seen).length === 2);
    // The watch of the former selector has ended.
    await until(() => server.nWatches === 3);
  });

  test('several changes at once end with the last one, and the fleet is never empty in between', async () => {
    const server = await aPoolWithPods();
    const seen = discover(server, { inferencePool: 'pool' });
    await seen.started;
    const sizes: number[] = [];
    server.delayMs = 10;
    for (const app of ['b', 'c', 'a', 'b', 'a', 'b']) {
      server.store.update('inferencepools', 'pool', () => aPool({ matchLabels: { app } }));
      await delay(4);
      sizes.push(addressesOf(seen).length);
    }
    await until(() => addressesOf(seen).join() === '10.0.0.2:8000');
    expect(Math.min(...sizes)).toBeGreaterThan(0);
  });

  test('one that is missing, unusable or deleted is said; deleted, the pods stay followed', async () => {
    const server = await aServer();
    server.store.create('pods', aPod({ name: 'p0', ip: '10.0.0.0', labels: { app: 'vllm' } }));
    const seen = discover(server, { inferencePool: 'pool' });
    await until(() => seen.problem !== null);
    expect(seen.problem).toBe('InferencePool pool must exist in namespace rec, got none');
    server.store.create('inferencepools', { metadata: { name: 'pool' }, spec: {} });
    await until(() => seen.problem?.includes('cannot be followed') === true);
    server.store.update('inferencepools', 'pool', () => aPool());
    await seen.started;
    await until(() => seen.problem === null);
    server.store.delete('inferencepools', 'pool');
    await until(() => seen.problem?.includes('must exist') === true);
    server.store.create('pods', aPod({ name: 'p1', ip: '10.0.0.1', labels: { app: 'vllm' } }));
    await until(() => addressesOf(seen).length === 2);
  });

  test('what was wrong with a selector is forgotten with the selector', async () => {
    const server = await aPoolWithPods();
    const seen = discover(server, { inferencePool: 'pool' });
    await seen.started;
    const select = (app: string): unknown =>
      server.store.update('inferencepools', 'pool', () => aPool({ matchLabels: { app } }));
    select('no label');
    await until(() => seen.problem?.includes('unable to parse requirement') === true);
    select('a');
    await until(() => seen.problem === null);
    select('no label');
    await until(() => seen.problem?.includes('unable to parse requirement') === true);
    select('b');
    await until(() => seen.problem === null && addressesOf(seen).join() === '10.0.0.2:8000');
  });

  test('a server that does not know pools is said, and asked again', async () => {
    const server = await aPoolWithPods();
    server.missing = ['inferencepools'];
    const seen = discover(server, { inferencePool: 'pool' });
    await until(() => seen.problem !== null);
    expect(seen.problem).toMatch(/^cannot watch inferencepools.inference.networking.k8s.io in namespace rec/);
    server.missing = [];
    await seen.started;
    await until(() => seen.problem === null);
  });
});

describe('the product with discovery.mode kubernetes', () => {
  test('readiness names what is missing, then what is worse than it should be; the API shows who is left out and why', async () => {
    const server = await aServer({ grants: [] });
    const { kubeconfig } = await aFolder(server);
    const config = stageConfig([], { discovery: { mode: 'kubernetes', kubernetes: { kubeconfig } } });
    const lines: string[] = [];
    const log = {
      ...silentLog,
      warn: (message: string, fields?: object) => lines.push(`${message} ${JSON.stringify(fields)}`),
    };
    const app = createApp(config, { log, clock: systemClock });
    atEnd(() => app.stop());
    const started = app.start();
    await until(() => lines.some((line) => line.includes('not allowed to watch pods in namespace rec')), 10_000);
    server.store.create('pods', aPod({ name: 'p0', ip: '10.0.0.0' }));
    server.store.create('pods', aPod({ name: 'p1', ip: '10.0.0.1', labels: { 'model.aibrix.ai/port': 'http' } }));
    server.grants = FakeApiServer.everything();
    const { admin } = await started;
    const get = async (path: string) => (await fetch(`http://${admin}${path}`)).json() as Promise<object>;
    await until(async () => JSON.stringify(await get('/readyz')).includes('"endpoints":"ok"'), 10_000);
    expect(await get('/api/v1/endpoints?all=1')).toEqual([
      expect.objectContaining({ name: 'p0', address: '10.0.0.0:8000', model: 'demo-model', ready: true }),
      {
        name: 'p1',
        ready: false,
        reason: 'label model.aibrix.ai/port must be a port from 1 to 65535, got "http"',
      },
    ]);
    const become = (ready: 'True' | 'False') =>
      server.store.update('pods', 'p0', () => ({ status: aPod({ name: 'p0', ip: '10.0.0.0', ready }).status }));
    become('False');
    const nobody = '"endpoints":"ok, but none of 1 endpoints is ready: requests get 503"';
    await until(async () => JSON.stringify(await get('/readyz')).includes(nobody), 10_000);
    become('True');
    await until(async () => JSON.stringify(await get('/readyz')).includes('"endpoints":"ok"'), 10_000);
    await server.down();
    await until(async () => JSON.stringify(await get('/readyz')).includes('"endpoints":"ok, but cannot watch'), 10_000);
    expect(await get('/readyz')).toMatchObject({ ready: true });
    const metrics = await (await fetch(`http://${admin}/metrics`)).text();
    expect(metrics).toMatch(/warmpath_discovery_relists_total\{reason="start"\} 1/);
    expect(metrics).toMatch(/warmpath_discovery_errors_total\{cause="(?:unreachable|reset)"\} \d/);
    expect(metrics).toMatch(/warmpath_discovery_age_seconds \d/);
    await server.up();
  });

  test('the first list may be long in coming: health says alive and not ready, and stop does not wait', async () => {
    const server = await aServer();
    const { folder, kubeconfig } = await aFolder(server);
    server.hangs = true;
    const config = stageConfig([], { discovery: { mode: 'kubernetes', kubernetes: { kubeconfig } } });
    let health = '';
    const log = {
      ...silentLog,
      info(message: string, fields?: object): void {
        if (message === 'health listening') health = (fields as { health: string }).health;
      },
    };
    const app = createApp(config, { log, clock: systemClock });
    const started = app.start();
    const outcome = started.then(
      () => 'started',
      (error: Error) => error.message,
    );
    await until(() => server.requests.length > 0, 10_000);
    const probe = createHealthClient(health);
    expect([await probe.check('liveness'), await probe.check('readiness')]).toEqual(['SERVING', 'NOT_SERVING']);
    probe.close();
    await app.stop();
    expect(await outcome).toBe('stopped before the first list of pods came');

    const file = join(folder, 'warmpath.yaml');
    await writeFile(file, configToYaml(config));
    const [term, kill] = [new AbortController(), new AbortController()];
    const nBefore = server.requests.length;
    const ignore = (): void => undefined;
    const signals = { signal: term.signal, hurry: kill.signal };
    const io = { stdout: ignore, stderr: ignore, env: {}, surviveRejections: ignore, ...signals };
    const code = runServe(['--config', file], io);
    await until(() => server.requests.length > nBefore, 10_000);
    term.abort();
    expect(await code).toBe(0);
  });

  test('a file that goes over to a static list changes no fleet before a restart', async () => {
    const server = await aServer();
    server.store.create('pods', aPod({ name: 'p0', ip: '10.0.0.0' }));
    const { kubeconfig } = await aFolder(server);
    const app = createApp(stageConfig([], { discovery: { mode: 'kubernetes', kubernetes: { kubeconfig } } }), {
      log: silentLog,
      clock: systemClock,
    });
    atEnd(() => app.stop());
    const { admin } = await app.start();
    const list = [{ name: 'a', address: '10.9.9.9:80', model: 'm', kvEvents: 'none' }];
    const kubernetes = { kubeconfig };
    const next = app.reconfigure(stageConfig([], { discovery: { mode: 'static', endpoints: list, kubernetes } }));
    expect(next).toEqual({ live: [], atStart: ['discovery.mode', 'discovery.endpoints'] });
    const endpoints = await (await fetch(`http://${admin}/api/v1/endpoints`)).json();
    expect(endpoints).toEqual([expect.objectContaining({ address: '10.0.0.0:8000' })]);
  });

  test('a configuration that is written while the first list is awaited is not missed', async () => {
    const server = await aServer();
    const { folder, kubeconfig } = await aFolder(server);
    server.hangs = true;
    const config = stageConfig([], { discovery: { mode: 'kubernetes', kubernetes: { kubeconfig } } });
    const file = join(folder, 'warmpath.yaml');
    await writeFile(file, configToYaml(config));
    const [term, kill] = [new AbortController(), new AbortController()];
    const lines: string[] = [];
    const ignore = (): void => undefined;
    const io = { stdout: (line: string) => void lines.push(line), stderr: ignore, env: {}, surviveRejections: ignore };
    const code = runServe(['--config', file], { ...io, signal: term.signal, hurry: kill.signal });
    await until(() => server.requests.length > 0, 10_000);
    await writeFile(file, configToYaml({ ...config, server: { ...config.server, maxHeaders: 77 } }));
    server.hangs = false;
    server.reset();
    await until(() => lines.some((line) => line.includes('"needRestart":["server.maxHeaders"]')), 20_000);
    term.abort();
    expect(await code).toBe(0);
  });
});
