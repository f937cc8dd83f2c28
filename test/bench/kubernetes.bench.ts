/**
 * What following a big fleet costs: `node test/bench/kubernetes.bench.ts`. The API server is a process of its own; 10,000
 * pods of about 8 KB each, read by watch-list and in pages, then a thousand changes a second. CPU and stalls of the event
 * loop are those of the process that follows.
 */
import { fork } from 'node:child_process';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../../src/clock.ts';
import { createEndpointStore } from '../../src/endpoints/endpoint-store.ts';
import { createKubernetesEndpoints } from '../../src/kubernetes/kubernetes-endpoints.ts';
import { silentLog } from '../../src/log.ts';
import { FakeApiServer } from '../support/fake-api-server.ts';
import { aPod, DISCOVERY_OPTIONS } from '../support/kubernetes.ts';

const N_PODS = 10_000;
const CHANGES_PER_SECOND = 1_000;
const SECONDS = 5;

type Order = 'changes' | 'watch-list on' | 'watch-list off';

/** About as long as a real pod of an inference server. */
function aLongPod(i: number, round: number): ReturnType<typeof aPod> {
  const pod = aPod({ name: `vllm-${i}`, ip: `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, restarts: round });
  const env = Array.from({ length: 40 }, (_, n) => ({ name: `VARIABLE_${n}`, value: 'x'.repeat(40) }));
  const managedFields = [{ manager: 'kubelet', fieldsV1: { 'f:status': { 'f:conditions': 'x'.repeat(3500) } } }];
  const metadata = { ...pod.metadata, managedFields };
  return { ...pod, metadata, spec: { ...(pod.spec as object), volumes: [{ env }] } };
}

async function serve(): Promise<void> {
  const server = await FakeApiServer.start();
  for (let i = 0; i < N_PODS; i++) server.store.create('pods', aLongPod(i, 0));
  process.on('message', (order: Order) => {
    if (order !== 'changes') {
      server.watchList = order === 'watch-list on' ? 'on' : 'off';
      return;
    }
    const round = server.store.version;
    let n = 0;
    const timer = setInterval(() => {
      for (let k = 0; k < CHANGES_PER_SECOND / 50; k++, n++) {
        const i = (n * 7919) % N_PODS;
        server.store.update('pods', `vllm-${i}`, () => ({ status: aLongPod(i, round + n).status }));
      }
      if (n >= CHANGES_PER_SECOND * SECONDS) clearInterval(timer);
    }, 20);
  });
  process.send!({ url: server.url, bytes: JSON.stringify(server.store.list('pods')[0]).length });
}

function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

async function follow(): Promise<void> {
  const child = fork(fileURLToPath(import.meta.url), ['server']);
  const { url, bytes } = await new Promise<{ url: string; bytes: number }>((resolve) => child.once('message', resolve));
  process.stdout.write(`${N_PODS} pods of ${bytes} bytes\n`);
  const access = {
    server: new URL(url),
    namespace: 'rec',
    credentials: async () => ({ headers: { authorization: 'Bearer secret' }, tls: {} }),
  };
  for (const mode of ['watch-list on', 'watch-list off'] as const) {
    child.send(mode);
    await delay(200);
    const store = createEndpointStore();
    let nSnapshots = 0;
    const endpoints = createKubernetesEndpoints(
      {
        log: silentLog,
        clock: systemClock,
        onEndpoints(specs) {
          store.replace(specs);
          nSnapshots += 1;
        },
        onProblem: () => undefined,
        onObjectives: () => undefined,
        onRelist: () => undefined,
        onFailure: () => undefined,
        access,
      },
      {
        ...DISCOVERY_OPTIONS,
        modelAdapters: 'off',
      },
    );
    const stalls = monitorEventLoopDelay({ resolution: 1 });
    const report = (what: string, beganMs: number, cpuBeganMs: number): void => {
      const tookMs = performance.now() - beganMs;
      const usedMs = cpuMs() - cpuBeganMs;
      process.stdout.write(
        `${mode}, ${what}: ${tookMs.toFixed(0)} ms, CPU ${usedMs.toFixed(0)} ms (${((100 * usedMs) / tookMs).toFixed(0)} %), ` +
          `longest stall ${(stalls.max / 1e6).toFixed(0)} ms, snapshots ${nSnapshots}, heap ${(process.memoryUsage().heapUsed / 1e6).toFixed(0)} MB\n`,
      );
      stalls.reset();
      nSnapshots = 0;
    };
    stalls.enable();
    const startMs = performance.now();
    const startCpuMs = cpuMs();
    await endpoints.start();
    report('first reading', startMs, startCpuMs);
    await delay(500);
    stalls.reset();
    const changesMs = performance.now();
    const changesCpuMs = cpuMs();
    child.send('changes' satisfies Order);
    await delay(SECONDS * 1000);
    report(`${CHANGES_PER_SECOND} changes a second`, changesMs, changesCpuMs);
    await endpoints.stop();
  }
  child.kill();
}

await (process.argv[2] === 'server' ? serve() : follow());
