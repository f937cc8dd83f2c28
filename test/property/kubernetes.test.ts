/** Random histories of an API server and its network: the product ends with what the server has, and not much later. */
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from '@jest/globals';
import fc from 'fast-check';
import { systemClock } from '../../src/clock.ts';
import type { EndpointSpec } from '../../src/endpoints/endpoint.ts';
import { createFleetBuilder, readPod } from '../../src/kubernetes/pods.ts';
import {
  createKubernetesEndpoints,
  type KubernetesEndpointsOptions,
} from '../../src/kubernetes/kubernetes-endpoints.ts';
import { silentLog } from '../../src/log.ts';
import { FakeApiServer } from '../support/fake-api-server.ts';
import { accessTo, anAdapter, aPod, MODEL_LABEL, DISCOVERY_OPTIONS } from '../support/kubernetes.ts';

const OPTIONS: KubernetesEndpointsOptions = {
  ...DISCOVERY_OPTIONS,
  timing: { backoffMs: 4, backoffMaxMs: 30, goodWatchMs: 30, missingMs: 20, settleMs: 2, firstObjectsMs: 100 },
  limits: { connectMs: 200, headMs: 100, idleMs: 60 },
};

type Step =
  | {
      readonly kind: 'create' | 'change' | 'restart container' | 'terminate' | 'delete' | 'unlabel';
      readonly pod: number;
    }
  | { readonly kind: 'load' | 'unload'; readonly pod: number }
  | { readonly kind: Fault }
  | { readonly kind: 'wait'; readonly ms: number };

const FAULTS = [
  'reset',
  'cut',
  'end watches',
  'freeze',
  'compact',
  'expire tokens',
  'restart',
  'rotate token',
  'no role',
  'storm',
  'calm',
  'broken line',
  'no watch-list',
  'other watch-list',
  'ignored watch-list',
] as const;
type Fault = (typeof FAULTS)[number];

const aStep: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        'create',
        'change',
        'restart container',
        'terminate',
        'delete',
        'unlabel',
        'load',
        'unload',
      ),
      pod: fc.nat(7),
    }),
  },
  { weight: 3, arbitrary: fc.record({ kind: fc.constantFrom(...FAULTS) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('wait' as const), ms: fc.nat(12) }) },
);

async function perform(step: Step, server: FakeApiServer): Promise<void> {
  const { store } = server;
  switch (step.kind) {
    case 'wait':
      return delay(step.ms);
    case 'create':
    case 'change':
    case 'restart container':
    case 'terminate':
    case 'delete':
    case 'unlabel':
    case 'load':
    case 'unload':
      return performOnPod(step.kind, step.pod, server);
    case 'reset':
      return server.reset();
    case 'cut':
      return server.cut();
    case 'end watches':
      return server.endWatches();
    case 'freeze':
      return server.freeze();
    case 'compact':
      return server.compact();
    case 'expire tokens':
      return server.expireTokens();
    case 'restart':
      return server.restart();
    case 'rotate token':
      server.token = `token-${store.version}`;
      return server.reset();
    case 'no role':
      server.grants = [];
      return server.reset();
    case 'storm':
      server.storm = { status: 503 };
      return server.reset();
    case 'calm':
      server.storm = null;
      server.grants = FakeApiServer.everything();
      return undefined;
    case 'broken line':
      return server.sendLine('{"type":"MODI');
    case 'no watch-list':
      server.watchList = 'off';
      return undefined;
    case 'ignored watch-list':
      server.watchList = 'ignored';
      return undefined;
    case 'other watch-list':
      server.watchList = 'on';
  }
}

function performOnPod(kind: Extract<Step, { pod: number }>['kind'], index: number, { store }: FakeApiServer): void {
  const name = `p${index}`;
  const pod = store.get('pods', name);
  const fields = { name, ip: `10.0.0.${index}` };
  if (pod === null) {
    if (kind === 'create') store.create('pods', aPod(fields));
    return;
  }
  switch (kind) {
    case 'create':
      return;
    case 'change': {
      const isReady = JSON.stringify(pod.status).includes('"Ready","status":"True"');
      store.update('pods', name, () => ({ status: aPod({ ...fields, ready: isReady ? 'False' : 'True' }).status }));
      return;
    }
    case 'restart container':
      store.update('pods', name, () => ({ status: aPod({ ...fields, restarts: store.version }).status }));
      return;
    case 'terminate':
      store.terminate('pods', name);
      return;
    case 'delete':
      store.delete('pods', name);
      return;
    case 'unlabel':
      store.update('pods', name, ({ metadata }) => ({ metadata: { ...metadata, labels: {} } }));
      return;
    case 'load':
    case 'unload': {
      const adapter = `lora-${index % 2}`;
      const instances = kind === 'load' ? [name] : [];
      if (store.get('modeladapters', adapter) === null) store.create('modeladapters', anAdapter(adapter, instances));
      else store.update('modeladapters', adapter, () => anAdapter(adapter, instances));
    }
  }
}

/** The fleet computed from what the server has now. */
function truth({ store }: FakeApiServer): readonly EndpointSpec[] {
  const pods = store.list('pods').filter(({ metadata }) => metadata.labels?.[MODEL_LABEL] !== undefined);
  const adapters = new Map<string, string[]>();
  for (const { metadata, status } of store.list('modeladapters')) {
    for (const pod of (status as { instances: string[] }).instances) {
      adapters.set(pod, [...(adapters.get(pod) ?? []), metadata.name].sort());
    }
  }
  return createFleetBuilder({ ...OPTIONS, targetPorts: null })(pods.map(readPod), adapters).specs;
}

const sorted = (specs: readonly EndpointSpec[]): string =>
  JSON.stringify(specs.toSorted((a, b) => (a.address < b.address ? -1 : 1)));

test('whatever happens, the fleet ends as the server has it', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(aStep, { minLength: 5, maxLength: 25 }), async (steps) => {
      const server = await FakeApiServer.start({ bookmarkMs: 20 });
      let specs: readonly EndpointSpec[] = [];
      const twice: string[] = [];
      const endpoints = createKubernetesEndpoints(
        {
          log: silentLog,
          clock: systemClock,
          onEndpoints(next) {
            specs = next;
            const addresses = next.map(({ address }) => address);
            twice.push(...addresses.filter((address, index) => addresses.indexOf(address) !== index));
          },
          onProblem: () => undefined,
          onObjectives: () => undefined,
          onRelist: () => undefined,
          onFailure: () => undefined,
          access: accessTo(server),
        },
        OPTIONS,
      );
      try {
        server.store.create('pods', aPod({ name: 'p0', ip: '10.0.0.0' }));
        await endpoints.start();
        for (const step of steps) await perform(step, server);
        server.storm = null;
        server.grants = FakeApiServer.everything();
        const deadlineMs = performance.now() + 1500;
        while (sorted(specs) !== sorted(truth(server)) && performance.now() < deadlineMs) await delay(2);
        expect(sorted(specs)).toBe(sorted(truth(server)));
        expect(twice).toEqual([]);
        expect(server.requests.length).toBeLessThan(400);
      } finally {
        await endpoints.stop();
        await server.stop();
      }
    }),
    { numRuns: 60 },
  );
}, 60_000);
