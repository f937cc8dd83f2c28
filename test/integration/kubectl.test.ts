/** Discovery while kubectl changes the cluster: what an operator types is what the fleet becomes. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { stringify } from 'yaml';
import { systemClock } from '../../src/clock.ts';
import type { EndpointSpec } from '../../src/endpoints/endpoint.ts';
import { createKubernetesEndpoints, type KubernetesEndpoints } from '../../src/kubernetes/kubernetes-endpoints.ts';
import { silentLog } from '../../src/log.ts';
import { startFakeApiAdmin, type FakeApiAdmin } from '../support/fake-api-admin.ts';
import { FakeApiServer } from '../support/fake-api-server.ts';
import type { ObjectDraft } from '../support/fake-api-store.ts';
import { findKubeTool } from '../support/kube-tools.ts';
import { accessTo, anAdapter, aPod, aPool, MODEL_LABEL, DISCOVERY_OPTIONS } from '../support/kubernetes.ts';

const run = promisify(execFile);

/** Milliseconds from every change of the cluster to the fleet that shows it. */
const lagsMs: number[] = [];
let folder: string;
let kubectlPath: string;
let server: FakeApiServer;
let admin: FakeApiAdmin;
let changedMs = 0;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'warmpath-kubectl-'));
  kubectlPath = await findKubeTool('kubectl');
  server = await FakeApiServer.start();
  admin = await startFakeApiAdmin(server.store);
  server.store.onChange(() => (changedMs = performance.now()));
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'test',
    contexts: [{ name: 'test', context: { cluster: 'fake', user: 'admin', namespace: server.namespace } }],
    clusters: [{ name: 'fake', cluster: { server: admin.url } }],
    users: [{ name: 'admin', user: {} }],
  };
  await writeFile(join(folder, 'kubeconfig'), stringify(config));
}, 300_000);
afterAll(async () => {
  await admin.stop();
  await server.stop();
  await rm(folder, { recursive: true });
});

/** Nothing of this user's kubectl is read or written. */
async function kubectl(...args: readonly string[]): Promise<string> {
  const env = { PATH: process.env['PATH'], HOME: folder, KUBECONFIG: join(folder, 'kubeconfig') };
  return (await run(kubectlPath, [...args], { env, timeout: 60_000 })).stdout;
}

async function create(kind: string, apiVersion: string, draft: ObjectDraft): Promise<void> {
  const file = join(folder, `${draft.metadata.name}.json`);
  await writeFile(file, JSON.stringify({ apiVersion, kind, ...draft }));
  await kubectl('create', '--validate=false', '-f', file);
}

type Following = { readonly endpoints: KubernetesEndpoints; specs: readonly EndpointSpec[]; toldMs: number };

async function follow(inferencePool: string | null): Promise<Following> {
  const seen = { specs: [] as readonly EndpointSpec[], toldMs: 0 };
  const endpoints = createKubernetesEndpoints(
    {
      log: silentLog,
      clock: systemClock,
      onEndpoints(specs) {
        seen.specs = specs;
        seen.toldMs = performance.now();
      },
      onProblem: () => undefined,
      onObjectives: () => undefined,
      onRelist: () => undefined,
      onFailure: () => undefined,
      access: accessTo(server),
    },
    {
      ...DISCOVERY_OPTIONS,
      inferencePool,
    },
  );
  await endpoints.start();
  return Object.assign(seen, { endpoints });
}

/** The fleet in one line: name, address, adapters; those that are not ready in brackets. */
function shown({ specs }: Following): string {
  return specs
    .map(({ name, address, adapters, ready }) => {
      const text = [name, address, ...adapters].join(' ');
      return ready ? text : `(${text})`;
    })
    .sort()
    .join(', ');
}

async function becomes(following: Following, expected: string): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (shown(following) !== expected) {
    if (performance.now() > deadline) expect(shown(following)).toBe(expected);
    await delay(5);
  }
  lagsMs.push(following.toldMs - changedMs);
}

describe('kubectl', () => {
  test('creates, labels, drains and deletes pods', async () => {
    const following = await follow(null);
    try {
      await create('Pod', 'v1', aPod({ name: 'a', ip: '10.0.0.1' }));
      await becomes(following, 'a 10.0.0.1:8000');
      await create('Pod', 'v1', aPod({ name: 'b', ip: '10.0.0.2', ready: 'False' }));
      await becomes(following, '(b 10.0.0.2:8000), a 10.0.0.1:8000');
      const ready = JSON.stringify({ status: { conditions: [{ type: 'Ready', status: 'True' }] } });
      await kubectl('patch', 'pod', 'b', '--subresource=status', '--type=merge', '-p', ready);
      await becomes(following, 'a 10.0.0.1:8000, b 10.0.0.2:8000');
      await kubectl('label', 'pod', 'a', 'model.aibrix.ai/port=9000');
      await becomes(following, 'a 10.0.0.1:9000, b 10.0.0.2:8000');
      await kubectl('label', 'pod', 'a', `${MODEL_LABEL}-`);
      await becomes(following, 'b 10.0.0.2:8000');
      await create('ModelAdapter', 'model.aibrix.ai/v1alpha1', anAdapter('sql', ['b']));
      await becomes(following, 'b 10.0.0.2:8000 sql');
      await kubectl('delete', 'modeladapter', 'sql', '--wait=false');
      await becomes(following, 'b 10.0.0.2:8000');
      await kubectl('delete', 'pod', 'b', '--wait=false');
      await becomes(following, '(b 10.0.0.2:8000)');
      await kubectl('delete', 'pod', 'b', '--wait=false', '--force', '--grace-period=0');
      await becomes(following, '');
      expect(server.mistakes).toEqual([]);
    } finally {
      await following.endpoints.stop();
    }
  });

  test('moves an InferencePool to other pods and ports', async () => {
    const pool = 'inference.networking.k8s.io/v1';
    await create('Pod', 'v1', aPod({ name: 'c', ip: '10.0.0.3', labels: { app: 'vllm' } }));
    await create('Pod', 'v1', aPod({ name: 'd', ip: '10.0.0.4', labels: { app: 'other' } }));
    await create('InferencePool', pool, aPool({ name: 'pool', ports: [8000] }));
    const following = await follow('pool');
    try {
      await becomes(following, 'c 10.0.0.3:8000');
      const change = (spec: object): Promise<string> =>
        kubectl('patch', 'inferencepool', 'pool', '--type=merge', '-p', JSON.stringify({ spec }));
      await change({ targetPorts: [{ number: 8000 }, { number: 8001 }] });
      await becomes(following, 'c:8000 10.0.0.3:8000, c:8001 10.0.0.3:8001');
      await change({ selector: { matchLabels: { app: 'other' } }, targetPorts: [{ number: 8000 }] });
      await becomes(following, 'd 10.0.0.4:8000');
      expect(server.mistakes).toEqual([]);
    } finally {
      await following.endpoints.stop();
    }
  });

  test('is followed within a second', () => {
    const median = [...lagsMs].sort((a, b) => a - b)[Math.floor(lagsMs.length / 2)]!;
    expect(lagsMs.length).toBeGreaterThan(9);
    expect(median).toBeLessThan(1000);
  });
});
