/** One Warmpath decides and two stand by, as two priorities of Envoy's cluster: what envoy/gateway/standby.yaml is translated to. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { stringify } from 'yaml';
import type { EnvoyProcess } from '../../src/demo/envoy-process.ts';
import { startTestEnvoy } from '../support/envoy.ts';
import { aChat, chat, endpointEntry, eventually, longText, startPods, whenTrusted, type RunningPod } from './stage.ts';

/** `warmpath serve` as a process that can be ended like one, and started again on its addresses. */
type Replica = {
  readonly name: string;
  addresses: { readonly grpc: string; readonly admin: string };
  end(signal: 'SIGTERM' | 'SIGKILL'): Promise<void>;
};

let folder: string;
let pods: RunningPod[];
let first: Replica;
let standbys: Replica[];
let envoy: EnvoyProcess;
const endings: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'warmpath-standby-'));
  endings.push(() => rm(folder, { recursive: true, force: true }));
  pods = await startPods({ nPods: 3 });
  endings.push(() => Promise.all(pods.map(({ pod }) => pod.stop())));
  first = await startReplica('first');
  endings.push(() => first.end('SIGKILL'));
  standbys = await Promise.all([startReplica('standby-1'), startReplica('standby-2')]);
  endings.push(() => Promise.all(standbys.map((standby) => standby.end('SIGKILL'))));
  envoy = await startTestEnvoy(
    {
      template: 'buffered',
      withExtProc: 'yes',
      extProcAddress: first.addresses.grpc,
      pods: pods.map(({ addresses }) => addresses.httpAddress),
    },
    (bootstrap) => asEnvoyGateway(bootstrap as unknown as Filters),
  );
  endings.push(() => envoy.stop());
}, 60_000);

afterAll(async () => {
  for (let undo = endings.pop(); undo; undo = endings.pop()) await undo();
}, 30_000);

async function startReplica(name: string, addresses?: Replica['addresses']): Promise<Replica> {
  const file = join(folder, `${name}.yaml`);
  const server = {
    grpcListen: addresses?.grpc ?? '127.0.0.1:0',
    healthListen: '127.0.0.1:0',
    adminListen: addresses?.admin ?? '127.0.0.1:0',
    decisionDeadlineMs: 20_000,
    // drainDelayMs stays as shipped: Envoy must see it in that time.
    drainTimeoutMs: 2000,
  };
  const discovery = { endpoints: pods.map(endpointEntry) };
  // A busy test machine must not make a tokenizer late.
  const tokenizer = { budgetMs: 10_000 };
  await writeFile(file, stringify({ server, discovery, tokenizer, kvEvents: { readyWhen: 'replayed' } }));
  const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
  const child = spawn(process.execPath, [main, 'serve', '--config', file], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {},
  });
  const exit = once(child, 'exit');
  for await (const line of createInterface({ input: child.stdout })) {
    if (!line.includes('"msg":"serving"')) continue;
    child.stdout.resume();
    const said = JSON.parse(line) as Replica['addresses'];
    await whenTrusted(said.admin, pods.length);
    return {
      name,
      addresses: said,
      async end(signal) {
        child.kill(signal);
        await exit;
      },
    };
  }
  throw new Error(`${name} ended before it served`);
}

type Filters = {
  static_resources: {
    listeners: [
      {
        filter_chains: [
          { filters: [{ typed_config: { http_filters: { typed_config: { grpc_service: object } }[] } }] },
        ];
      },
    ];
    clusters: ({ name: string } & Record<string, unknown>)[];
  };
};

/** What Envoy Gateway makes of the policy, where it is not what our file says; with health checks that a test can wait for. */
function asEnvoyGateway({ static_resources: { listeners, clusters } }: Filters): void {
  const [filter] = listeners[0].filter_chains[0].filters[0].typed_config.http_filters;
  // Nothing asks again where a side stream dies.
  filter!.typed_config.grpc_service = { envoy_grpc: { cluster_name: 'warmpath' } };
  const cluster = clusters.find(({ name }) => name === 'warmpath')!;
  // Changes of health are collected for a second.
  cluster['common_lb_config'] = { healthy_panic_threshold: { value: 0 }, locality_weighted_lb_config: {} };
  cluster['outlier_detection'] = {
    split_external_local_origin_errors: true,
    consecutive_local_origin_failure: 1,
    consecutive_5xx: 5,
    max_ejection_percent: 100,
    interval: '1s',
    base_ejection_time: '5s',
  };
  cluster['health_checks'] = [
    {
      timeout: '5s',
      interval: '0.2s',
      no_traffic_interval: '0.2s',
      unhealthy_threshold: 1,
      healthy_threshold: 1,
      http_health_check: { host: 'warmpath', path: '/readyz', expected_statuses: [{ start: 200, end: 201 }] },
    },
  ];
  const member = ({ addresses: { grpc, admin } }: Replica): object => ({
    endpoint: {
      address: { socket_address: { address: '127.0.0.1', port_value: portOf(grpc) } },
      health_check_config: { port_value: portOf(admin) },
    },
    load_balancing_weight: 1,
  });
  cluster['load_assignment'] = {
    cluster_name: 'warmpath',
    endpoints: [[first], standbys].map((replicas, priority) => ({
      locality: { region: replicas[0]!.name },
      lb_endpoints: replicas.map(member),
      load_balancing_weight: replicas.length,
      priority,
    })),
  };
}

const portOf = (address: string): number => Number(address.slice(address.lastIndexOf(':') + 1));

/** Requests this process has decided. */
async function decisions({ addresses }: Replica): Promise<number> {
  const text = await (await fetch(`http://${addresses.admin}/metrics`)).text();
  const counts = [...text.matchAll(/^warmpath_decisions_total\{.*\} (\d+)$/gm)];
  return counts.reduce((sum, [, count]) => sum + Number(count), 0);
}

async function decisionsOfStandbys(): Promise<number> {
  const counts = await Promise.all(standbys.map(decisions));
  return counts.reduce((sum, count) => sum + count, 0);
}

type Traffic = {
  /** Resolves when everything sent so far is answered. */
  settled(): Promise<unknown>;
  /** @returns what the answers were, one word each */
  stop(): Promise<readonly string[]>;
};

/** Conversations of a few topics, some fifty requests a second, none of them waiting for another. */
function startTraffic(): Traffic {
  const sent: Promise<string>[] = [];
  let isOver = false;
  const sending = (async () => {
    for (let i = 0; !isOver; i++) {
      const body = aChat(longText(`topic${i % 7}x`, 40 + (i % 5) * 16), { max_tokens: 8 });
      sent.push(chat(envoy.listenerAddress, body).then(({ status }) => String(status), String));
      await delay(20);
    }
  })();
  return {
    settled: () => Promise.all([...sent]),
    async stop() {
      isOver = true;
      await sending;
      return Promise.all(sent);
    },
  };
}

/** Requests that went on without a choice. */
async function unpicked(): Promise<number> {
  const counters = await envoy.stats('ext_proc.warmpath.failure_mode_allowed');
  expect(counters.size).toBe(1);
  return [...counters.values()][0]!;
}

/** A long prompt that one pod holds now, as all replicas have heard. */
async function warmPrompt(topic: string): Promise<object> {
  const body = aChat(longText(topic, 800));
  expect((await chat(envoy.listenerAddress, body)).status).toBe(200);
  const holder = async ({ addresses }: Replica): Promise<string> => {
    const response = await fetch(`http://${addresses.admin}/api/v1/explain`, {
      method: 'POST',
      body: JSON.stringify({ path: '/v1/chat/completions', headers: {}, body }),
    });
    type Explained = { candidates: { endpoint: string; matchedTokens: number }[] };
    const { candidates } = (await response.json()) as Explained;
    return candidates
      .filter(({ matchedTokens }) => matchedTokens > 700)
      .map(({ endpoint }) => endpoint)
      .join();
  };
  await eventually(async () => {
    const [one, ...others] = await Promise.all([first, ...standbys].map(holder));
    const agree = one !== '' && !one!.includes(',') && others.every((other) => other === one);
    return agree ? 'done' : `the first says ${one}, the others ${others.join(' and ')}`;
  });
  return body;
}

/** Requests that only the first replica decides are only counted there. */
async function onlyFirstDecides(): Promise<void> {
  const before = [await decisions(first), await decisionsOfStandbys()];
  for (let i = 0; i < 20; i++) await chat(envoy.listenerAddress, aChat(longText(`calm${i % 3}x`, 40)));
  const after = [await decisions(first), await decisionsOfStandbys()];
  expect(after.map((count, i) => count - before[i]!)).toEqual([20, 0]);
}

async function firstComesBack(): Promise<void> {
  first = await startReplica('first', first.addresses);
  await eventually(async () => ((await decisions(first)) > 0 ? 'done' : 'the first one is not asked again'));
}

test('while the first one is ready it decides everything, and the others know what pods hold all the same', async () => {
  await onlyFirstDecides();
  await warmPrompt('all');
  expect(await decisionsOfStandbys()).toBe(0);
});

test('SIGTERM: every request is decided, those that stood by find the warm pod at once, and all come back to the first', async () => {
  const warm = await warmPrompt('term');
  const unpickedBefore = await unpicked();
  const traffic = startTraffic();
  try {
    await delay(50);
    await first.end('SIGTERM');
    await traffic.settled();
    expect(await decisionsOfStandbys()).toBeGreaterThan(10);
    const { status, cachedTokens } = await chat(envoy.listenerAddress, warm);
    expect(status).toBe(200);
    expect(cachedTokens).toBeGreaterThan(700);
    await firstComesBack();
  } finally {
    const answers = await traffic.stop();
    expect([...new Set(answers)]).toEqual(['200']);
  }
  expect(await unpicked()).toBe(unpickedBefore);
  await onlyFirstDecides();
}, 60_000);

test('SIGKILL: every request is answered, without a choice until it is seen, then by one that stood by and the warm pod', async () => {
  const warm = await warmPrompt('kill');
  const traffic = startTraffic();
  try {
    await delay(50);
    await first.end('SIGKILL');
    const decidedBefore = await decisionsOfStandbys();
    await eventually(async () => ((await decisionsOfStandbys()) > decidedBefore ? 'done' : 'no standby is asked'));
    await traffic.settled();
    const unpickedBefore = await unpicked();
    const { status, cachedTokens } = await chat(envoy.listenerAddress, warm);
    expect(status).toBe(200);
    expect(cachedTokens).toBeGreaterThan(700);
    await firstComesBack();
    await traffic.settled();
    // Once the standby is asked nobody goes without a choice, nor when the first one is back.
    expect(await unpicked()).toBe(unpickedBefore);
  } finally {
    const answers = await traffic.stop();
    expect([...new Set(answers)]).toEqual(['200']);
  }
  await onlyFirstDecides();
}, 60_000);

test('with the first one and a standby gone, the other one decides everything', async () => {
  const [gone, left] = standbys;
  await gone!.end('SIGKILL');
  standbys = [left!];
  await onlyFirstDecides();
  await first.end('SIGTERM');
  const [decidedBefore, unpickedBefore] = [await decisions(left!), await unpicked()];
  // The dead standby refuses one connection before Envoy leaves it out.
  await eventually(async () => {
    const { status } = await chat(envoy.listenerAddress, aChat(longText('left', 40)));
    expect(status).toBe(200);
    return (await decisions(left!)) > decidedBefore ? 'done' : 'the one that is left is not asked';
  });
  const [decided, went] = [await decisions(left!), await unpicked()];
  for (let i = 0; i < 20; i++) await chat(envoy.listenerAddress, aChat(longText(`left${i % 3}x`, 40)));
  expect([(await decisions(left!)) - decided, (await unpicked()) - went]).toEqual([20, 0]);
  expect(went - unpickedBefore).toBeLessThanOrEqual(1);
}, 60_000);
