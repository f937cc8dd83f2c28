import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from '@jest/globals';
import { createApp, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import type { EnvoyProcess } from '../../src/demo/envoy-process.ts';
import { silentLog } from '../../src/log.ts';
import { createSimulatedPod } from '../../src/simulator/simulated-pod.ts';
import { startTestEnvoy } from '../support/envoy.ts';
import { FakeApiServer } from '../support/fake-api-server.ts';
import type { ObjectDraft } from '../support/fake-api-store.ts';
import { aPod, kubeconfigOf, MODEL_LABEL, type PodGiven } from '../support/kubernetes.ts';
import {
  aChat,
  chat,
  endpointViews,
  eventually,
  longText,
  MODEL,
  stageConfig,
  type EndpointView,
  type RunningPod,
} from './stage.ts';

const N_PODS = 7;

type Cluster = {
  readonly api: FakeApiServer;
  /** Processes that run from the beginning; each is a pod once the API server knows it. */
  readonly pods: readonly RunningPod[];
  readonly warmpath: AppAddresses;
  readonly envoy: EnvoyProcess;
  end(): Promise<void>;
};

/** The first `nReady` processes are ready pods; Envoy knows all of them, so that only Warmpath can tell them apart. */
async function aCluster(nReady: number): Promise<Cluster> {
  const endings: (() => Promise<unknown>)[] = [];
  const end = async (): Promise<void> => {
    for (let undo = endings.pop(); undo; undo = endings.pop()) await undo();
  };
  try {
    const api = await FakeApiServer.start();
    endings.push(() => api.stop());
    const pods = await Promise.all(
      Array.from({ length: N_PODS }, async (_, i) => {
        const pod = createSimulatedPod({ model: MODEL, seed: i + 1, decodeStepMs: 2, host: `127.0.1.${i + 1}` });
        return { name: `vllm-${i}`, addresses: await pod.start(), pod };
      }),
    );
    endings.push(() => Promise.all(pods.map(({ pod }) => pod.stop())));
    for (const pod of pods.slice(0, nReady)) api.store.create('pods', podObject(pod));
    const folder = await mkdtemp(join(tmpdir(), 'warmpath-e2e-'));
    endings.push(() => rm(folder, { recursive: true, force: true }));
    const kubeconfig = join(folder, 'config');
    await writeFile(kubeconfig, kubeconfigOf(api));
    const config = stageConfig([], { discovery: { mode: 'kubernetes', kubernetes: { kubeconfig } } });
    const app = createApp(config, { log: silentLog, clock: systemClock });
    endings.push(() => app.stop());
    const warmpath = await app.start();
    const envoy = await startTestEnvoy({
      template: 'buffered',
      withExtProc: 'yes',
      extProcAddress: warmpath.grpc,
      pods: pods.map(({ addresses }) => addresses.httpAddress),
    });
    endings.push(() => envoy.stop());
    const cluster = { api, pods, warmpath, envoy, end };
    await whenReady(cluster, pods.slice(0, nReady));
    return cluster;
  } catch (error) {
    await end();
    throw error;
  }
}

/** What the API server says of a process. */
function podObject({ name, addresses }: RunningPod, given: PodGiven = {}): ObjectDraft {
  const { httpAddress, kvEventsEndpoint, replayEndpoint } = addresses;
  const portOf = (address: string): string => address.slice(address.lastIndexOf(':') + 1);
  return aPod({
    name,
    ip: httpAddress.slice(0, httpAddress.lastIndexOf(':')),
    labels: {
      [MODEL_LABEL]: MODEL,
      'model.aibrix.ai/port': portOf(httpAddress),
      'model.aibrix.ai/kv-events-enabled': 'true',
    },
    annotations: {
      'warmpath.dev/kv-events-port': portOf(kvEventsEndpoint),
      'warmpath.dev/kv-replay-port': portOf(replayEndpoint),
    },
    ...given,
  });
}

/** Every pod of the list is an endpoint, ready and trusted, and no other is ready. */
async function whenReady({ warmpath }: Cluster, pods: readonly RunningPod[], withinMs = 3000): Promise<void> {
  const wanted = pods.map(({ name }) => name).sort();
  await eventually(async () => {
    const views = (await endpointViews(warmpath.admin)) as (EndpointView & { ready: boolean })[];
    const ready = views.filter(({ ready, trust }) => ready && trust === 'exact').map(({ name }) => name);
    const rest = views.filter(({ name, ready }) => ready && !wanted.includes(name));
    return ready.sort().join() === wanted.join() && rest.length === 0 ? 'done' : JSON.stringify(views);
  }, withinMs);
}

type Traffic = {
  /** Resolves when everything sent so far is answered: what was decided before now has arrived. */
  settled(): Promise<unknown>;
  /** Ends it; resolves with the moments and statuses of everything sent. */
  stop(): Promise<readonly { readonly startMs: number; readonly status: number }[]>;
};

/** About a hundred requests a second, in conversations that grow and in new ones. */
function startTraffic({ envoy }: Cluster): Traffic {
  const sent: Promise<{ startMs: number; status: number }>[] = [];
  let isOver = false;
  const send = async (): Promise<void> => {
    for (let i = 0; !isOver; i++) {
      const content = i % 2 === 0 ? longText(`topic${i % 8}x`, 40 + (i % 5) * 16) : longText(`n${i}x`, 40);
      const startMs = performance.now();
      const answer = chat(envoy.listenerAddress, aChat(content, { max_tokens: 8 }));
      sent.push(
        answer.then(
          ({ status }) => ({ startMs, status }),
          () => ({ startMs, status: 0 }),
        ),
      );
      await delay(10);
    }
  };
  const sending = send();
  return {
    settled: () => Promise.all([...sent]),
    async stop() {
      isOver = true;
      await sending;
      return Promise.all(sent);
    },
  };
}

const finished = ({ pod }: RunningPod): number => pod.stats().finishedRequests;
const inFlight = ({ pod }: RunningPod): number => pod.stats().running + pod.stats().waiting;

/**
 * kubectl delete pod, as kubelet does it: told first, then the process ends what it has, then it is gone. What was
 * decided before Warmpath saw it may still arrive; afterwards nothing may.
 */
async function drain({ api, warmpath }: Cluster, pod: RunningPod, traffic: Traffic): Promise<void> {
  api.store.terminate('pods', pod.name);
  await eventually(async () => {
    const views = (await endpointViews(warmpath.admin)) as (EndpointView & { ready: boolean })[];
    return views.some(({ name, ready }) => name === pod.name && ready) ? `${pod.name} is still ready` : 'done';
  });
  await traffic.settled();
  await eventually(() => (inFlight(pod) === 0 ? 'done' : `${pod.name} still has ${inFlight(pod)} requests`));
  const nFinished = finished(pod);
  for (let i = 0; i < 4; i++) await delay(50);
  expect([pod.name, finished(pod)]).toEqual([pod.name, nFinished]);
  await pod.pod.stop();
  api.store.delete('pods', pod.name);
}

describe('pods that come and go', () => {
  test('scale up, rolling update and scale down under traffic: no request fails, nobody is asked who is not ready', async () => {
    const cluster = await aCluster(3);
    const { api, pods } = cluster;
    const traffic = startTraffic(cluster);
    try {
      const comes = async (pod: RunningPod): Promise<void> => {
        api.store.create('pods', podObject(pod, { phase: 'Pending', ready: 'False', ip: null }));
        await delay(30);
        api.store.update('pods', pod.name, () => ({ status: podObject(pod, { ready: 'False' }).status }));
        await delay(50);
        expect([pod.name, finished(pod) + inFlight(pod)]).toEqual([pod.name, 0]);
        api.store.update('pods', pod.name, () => ({ status: podObject(pod).status }));
        await eventually(() => (finished(pod) > 0 ? 'done' : `${pod.name} is asked nothing`));
      };
      await comes(pods[3]!);
      await whenReady(cluster, pods.slice(0, 4));
      for (const [old, next] of [
        [0, 4],
        [1, 5],
      ] as const) {
        await comes(pods[next]!);
        await drain(cluster, pods[old]!, traffic);
      }
      await drain(cluster, pods[3]!, traffic);
      await whenReady(cluster, [pods[2]!, pods[4]!, pods[5]!]);
      const answers = await traffic.stop();
      expect(answers.length).toBeGreaterThan(100);
      expect(answers.filter(({ status }) => status !== 200)).toEqual([]);
      // The seventh process is known to Envoy and to nobody else.
      expect(finished(pods[6]!)).toBe(0);
      expect(api.mistakes).toEqual([]);
    } finally {
      await traffic.stop();
      await cluster.end();
    }
  });

  test('a crash takes only what was in flight; the pod comes back when it is ready, without its old blocks', async () => {
    const cluster = await aCluster(3);
    const { api, pods, warmpath } = cluster;
    const victim = pods[1]!;
    const traffic = startTraffic(cluster);
    try {
      await eventually(() =>
        finished(victim) > 10 && inFlight(victim) > 0 ? 'done' : 'the victim has too little to do',
      );
      const nInFlight = inFlight(victim);
      await victim.pod.kill();
      const deadMs = performance.now();
      // Kubelet takes a moment to see it.
      await delay(50);
      await delay(50);
      api.store.update('pods', victim.name, () => ({
        status: podObject(victim, { ready: 'False', restarts: 1 }).status,
      }));
      await whenReady(cluster, [pods[0]!, pods[2]!]);
      await traffic.settled();
      const { addresses } = victim;
      const portOf = (address: string): number => Number(address.slice(address.lastIndexOf(':') + 1));
      victim.pod = createSimulatedPod({
        ...victim.pod.options,
        port: portOf(addresses.httpAddress),
        kvEventsPort: portOf(addresses.kvEventsEndpoint),
        replayPort: portOf(addresses.replayEndpoint),
      });
      await victim.pod.start();
      await delay(50);
      expect(finished(victim) + inFlight(victim)).toBe(0);
      const held = await heldBlocks(warmpath.admin, addresses.httpAddress);
      expect(held).toBe(0);
      api.store.update('pods', victim.name, () => ({ status: podObject(victim, { restarts: 1 }).status }));
      await whenReady(cluster, pods.slice(0, 3));
      await eventually(() => (finished(victim) > 0 ? 'done' : 'the victim is asked nothing'));
      const answers = await traffic.stop();
      const failed = answers.filter(({ status }) => status !== 200);
      expect(failed.filter(({ startMs }) => startMs > deadMs)).toEqual([]);
      // A request may reach it between the count and its death.
      expect(failed.length).toBeLessThanOrEqual(nInFlight + 2);
    } finally {
      await traffic.stop();
      await cluster.end();
    }
  });

  test('an API server that is away costs nothing; what happened meanwhile counts when it is back', async () => {
    const cluster = await aCluster(3);
    const { api, pods } = cluster;
    const traffic = startTraffic(cluster);
    try {
      await api.down();
      await eventually(async () => {
        const { conditions, ready } = (await (await fetch(`http://${cluster.warmpath.admin}/readyz`)).json()) as {
          ready: boolean;
          conditions: { endpoints: string };
        };
        return ready && /^ok, but .*cannot watch pods/.test(conditions.endpoints) ? 'done' : conditions.endpoints;
      });
      const before = pods.slice(0, 3).map(finished);
      await delay(50);
      await eventually(() =>
        pods.slice(0, 3).every((pod, i) => finished(pod) > before[i]!) ? 'done' : 'some pod is asked nothing',
      );
      api.store.terminate('pods', pods[0]!.name);
      api.store.create('pods', podObject(pods[3]!));
      api.compact();
      await api.up();
      await whenReady(cluster, pods.slice(1, 4), 15_000);
      await drain(cluster, pods[1]!, traffic);
      await whenReady(cluster, pods.slice(2, 4));
      const answers = await traffic.stop();
      expect(answers.filter(({ status }) => status !== 200)).toEqual([]);
    } finally {
      await traffic.stop();
      await cluster.end();
    }
  });
});

/** Blocks the index still has for an endpoint, by the prompts of the traffic. */
async function heldBlocks(admin: string, address: string): Promise<number> {
  let nBlocks = 0;
  for (let topic = 0; topic < 8; topic++) {
    const response = await fetch(`http://${admin}/api/v1/explain`, {
      method: 'POST',
      body: JSON.stringify({ path: '/v1/chat/completions', headers: {}, body: aChat(longText(`topic${topic}x`, 40)) }),
    });
    const { candidates } = (await response.json()) as {
      candidates: { endpoint: string; matchedBlocks: { gpu: number } }[];
    };
    nBlocks += candidates.find(({ endpoint }) => endpoint === address)?.matchedBlocks.gpu ?? 0;
  }
  return nBlocks;
}
