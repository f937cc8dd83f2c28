/** Every size and framing of a request, and every way a request can end, through a real Envoy. */
import { createHash, randomBytes } from 'node:crypto';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import http2 from 'node:http2';
import { request as httpRequest } from 'node:http';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { createApp, type App, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import type { EnvoyBootstrap, EnvoyTemplate } from '../../src/demo/envoy-config.ts';
import type { EnvoyProcess } from '../../src/demo/envoy-process.ts';
import { silentLog } from '../../src/log.ts';
import { startEchoUpstream, type Echo, type EchoUpstream } from '../support/echo-upstream.ts';
import { startTestEnvoy } from '../support/envoy.ts';
import { startFakeTokenizer, type FakeTokenizer } from '../support/fake-tokenizer.ts';
import { eventually, MODEL, stageConfig } from './stage.ts';

type Stage = {
  readonly upstream: EchoUpstream;
  readonly warmpath: AppAddresses;
  readonly envoy: EnvoyProcess;
  end(): Promise<void>;
};
type Change = (bootstrap: Filters) => void;
/** The parts of a bootstrap these tests turn. */
type Filters = {
  static_resources: {
    listeners: [
      {
        filter_chains: [
          {
            filters: [{ typed_config: { http_filters: { typed_config: FilterConfig }[] } }];
          },
        ];
      },
    ];
    clusters: { name: string; health_checks?: HealthCheck[]; load_assignment: LoadAssignment }[];
  };
};
type FilterConfig = {
  grpc_service: { retry_policy?: object };
  failure_mode_allow: boolean;
  processing_mode: Record<string, string>;
  allow_mode_override?: boolean;
};
type HealthCheck = { interval: string; no_traffic_interval: string };
type LoadAssignment = { endpoints: [{ lb_endpoints: object[] }] };

const filterOf = (bootstrap: Filters): FilterConfig =>
  bootstrap.static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0]!.typed_config;
const failClosed: Change = (bootstrap) => void (filterOf(bootstrap).failure_mode_allow = false);

/** Envoy 1.40 asks again, by this policy, for a client that went away before the first answer: here each is to be asked once. */
const askOnce: Change = (bootstrap) => void delete filterOf(bootstrap).grpc_service.retry_policy;

async function setUp(
  template: EnvoyTemplate,
  change: Change = () => undefined,
  tokenizer: object = { api: 'none' },
  server: object = {},
): Promise<Stage> {
  const upstream = await startEchoUpstream();
  const app = createApp(appConfig(upstream, server, tokenizer), { log: silentLog, clock: systemClock });
  const warmpath = await app.start();
  const envoy = await startTestEnvoy(
    { template, withExtProc: 'yes', extProcAddress: warmpath.grpc, pods: [upstream.address] },
    (bootstrap: EnvoyBootstrap) => change(bootstrap as unknown as Filters),
  );
  return {
    upstream,
    warmpath,
    envoy,
    async end() {
      await envoy.stop();
      await app.stop();
      await upstream.stop();
    },
  };
}

function appConfig(
  upstream: EchoUpstream,
  server: object = {},
  tokenizer: object = { api: 'none' },
): ReturnType<typeof stageConfig> {
  const endpoints = [{ name: 'echo', address: upstream.address, model: MODEL, kvEvents: 'none' }];
  return stageConfig([], { discovery: { endpoints }, tokenizer, server });
}

async function metricsOf({ warmpath }: Pick<Stage, 'warmpath'>): Promise<string> {
  return (await fetch(`http://${warmpath.admin}/metrics`)).text();
}

async function openStreams(stage: Stage): Promise<number> {
  return Number(/^warmpath_extproc_streams (\d+)$/m.exec(await metricsOf(stage))![1]);
}

async function cancelledRequests(stage: Stage): Promise<number> {
  const counts = (await metricsOf(stage)).matchAll(/^warmpath_requests_total\{.*outcome="cancelled"\} (\d+)$/gm);
  return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
}

async function nothingLeft(stage: Pick<Stage, 'warmpath'>): Promise<void> {
  await eventually(async () => {
    const text = await metricsOf(stage);
    const left = /^warmpath_(?:extproc_streams|endpoint_in_flight_\w+)(?:\{.*\})? [^0].*$/m.exec(text);
    return left === null ? 'done' : `left over: ${left[0]}`;
  });
}

describe('bodies of every size and framing arrive unchanged', () => {
  const modes: readonly { name: string; template: EnvoyTemplate; change?: Change }[] = [
    { name: 'BUFFERED', template: 'buffered' },
    {
      name: 'BUFFERED_PARTIAL',
      template: 'buffered',
      change: (bootstrap) => void (filterOf(bootstrap).processing_mode['request_body_mode'] = 'BUFFERED_PARTIAL'),
    },
    { name: 'FULL_DUPLEX_STREAMED', template: 'full-duplex' },
    {
      name: 'STREAMED',
      template: 'buffered',
      change: (bootstrap) => void (filterOf(bootstrap).processing_mode['request_body_mode'] = 'STREAMED'),
    },
    { name: 'NONE', template: 'headers-only' },
  ];
  const framings = {
    'content-length': viaHttp1,
    chunked: viaHttp1,
    'expect: 100-continue': viaHttp1,
    'HTTP/2': viaHttp2,
    'HTTP/2, a byte a frame': viaHttp2,
  };
  const sent: readonly (readonly [size: number, framings: readonly (keyof typeof framings)[]])[] = [
    [1024, ['content-length', 'chunked', 'expect: 100-continue', 'HTTP/2', 'HTTP/2, a byte a frame']],
    [64 * 1024, ['chunked', 'expect: 100-continue', 'HTTP/2']],
    [1024 * 1024, ['content-length', 'HTTP/2']],
    [8 * 1024 * 1024, ['chunked', 'HTTP/2']],
  ];

  test.each(modes)('in $name', async ({ template, change }) => {
    const stage = await setUp(template, change);
    try {
      for (const [size, names] of sent) {
        const body = randomBytes(size);
        const md5 = createHash('md5').update(body).digest('hex');
        for (const framing of names) {
          const { status, text } = await framings[framing](stage.envoy.listenerAddress, body, framing);
          const got = status === 200 ? (JSON.parse(text) as Echo) : { bytes: -1, md5: text };
          expect({ size, framing, status, bytes: got.bytes, md5: got.md5 }).toEqual({
            size,
            framing,
            status: 200,
            bytes: size,
            md5,
          });
        }
      }
      await nothingLeft(stage);
    } finally {
      await stage.end();
    }
  });
});

async function viaHttp1(address: string, body: Buffer, framing: string): Promise<{ status: number; text: string }> {
  const headers: Record<string, string> = { 'content-type': 'application/octet-stream' };
  if (framing !== 'chunked') headers['content-length'] = String(body.length);
  if (framing.startsWith('expect')) headers['expect'] = '100-continue';
  const request = httpRequest(`http://${address}/anything`, { method: 'POST', headers, agent: false });
  if (framing.startsWith('expect')) {
    request.flushHeaders();
    await once(request, 'continue');
  }
  const answered = once(request, 'response');
  for (let at = 0; at < body.length; at += 100_000) request.write(body.subarray(at, at + 100_000));
  request.end();
  const [response] = (await answered) as [NodeJS.ReadableStream & { statusCode: number }];
  return { status: response.statusCode, text: await textOf(response) };
}

async function viaHttp2(address: string, body: Buffer, framing: string): Promise<{ status: number; text: string }> {
  const session = http2.connect(`http://${address}`);
  try {
    const stream = session.request({ ':method': 'POST', ':path': '/anything' });
    const answered = once(stream, 'response');
    const step = framing.includes('a byte a frame') ? 1 : body.length;
    for (let at = 0; at < body.length; at += step) {
      await new Promise((written) => stream.write(body.subarray(at, at + step), written));
    }
    stream.end();
    const [headers] = (await answered) as [http2.IncomingHttpHeaders & { ':status': number }];
    return { status: headers[':status'], text: await textOf(stream) };
  } finally {
    session.destroy();
  }
}

async function textOf(stream: NodeJS.ReadableStream): Promise<string> {
  let text = '';
  for await (const chunk of stream) text += String(chunk);
  return text;
}

type Begun = {
  /** Resolves with the first bytes of the answer. */ readonly answering: Promise<unknown>;
  abort(): void;
};
type Begin = (address: string, path: string, body: string, how: 'whole' | 'unfinished') => Begun;

/** A request that can be left alone at any time; `unfinished` keeps back the end of the body it announced. */
const CLIENTS: Readonly<Record<string, Begin>> = {
  'HTTP/1.1': (address, path, body, how) => {
    const headers = { 'content-type': 'application/json', 'content-length': String(body.length) };
    const request = httpRequest(`http://${address}${path}`, { method: 'POST', headers, agent: false });
    request.on('error', () => undefined);
    const answering = once(request, 'response').then(([answer]) => once(answer as NodeJS.ReadableStream, 'data'));
    answering.catch(() => undefined);
    if (how === 'whole') request.end(body);
    else request.write(body.slice(0, -1));
    return { answering, abort: () => void request.destroy() };
  },
  'HTTP/2': (address, path, body, how) => {
    const session = http2.connect(`http://${address}`);
    session.on('error', () => undefined);
    const stream = session.request({
      ':method': 'POST',
      ':path': path,
      'content-type': 'application/json',
      'content-length': String(body.length),
    });
    stream.on('error', () => undefined);
    const answering = once(stream, 'data');
    answering.catch(() => undefined);
    if (how === 'whole') stream.end(body);
    else stream.write(body.slice(0, -1));
    return {
      answering,
      // The connection stays: what Envoy hears of is the one stream.
      abort: () => void stream.close(http2.constants.NGHTTP2_CANCEL, () => session.close()),
    };
  },
};

describe.each(['buffered', 'full-duplex'] as const)('%s', (template) => {
  let stage: Stage;
  let tokenizer: FakeTokenizer;
  beforeAll(async () => {
    tokenizer = await startFakeTokenizer();
    tokenizer.behaviour = 'hang';
    const asked = { api: 'tokenize', urls: [tokenizer.url], budgetMs: 10_000 };
    stage = await setUp(template, askOnce, asked);
  });
  afterAll(async () => {
    await stage.end();
    await tokenizer.stop();
  });

  test.each(Object.entries(CLIENTS))('a client over %s may go away at every stage', async (_protocol, begin) => {
    const { listenerAddress } = stage.envoy;
    const reached = stage.upstream.nRequests();
    const cancelled = await cancelledRequests(stage);
    const nCalls = tokenizer.calls.length;
    for (let i = 1; i <= 3; i++) {
      // Another prompt each time: a call under way for the same one would be shared.
      const chat = JSON.stringify({ model: MODEL, messages: [{ role: 'user', content: `${nCalls + i}` }] });
      const sending = begin(listenerAddress, '/v1/chat/completions', chat, 'unfinished');
      await eventually(async () => ((await openStreams(stage)) === 1 ? 'done' : 'the filter was not asked'));
      sending.abort();
      await nothingLeft(stage);
      // The tokenizer hangs: the pod is not chosen yet.
      const picking = begin(listenerAddress, '/v1/chat/completions', chat, 'whole');
      await eventually(() => (tokenizer.calls.length === nCalls + i ? 'done' : 'the tokenizer was not asked'));
      picking.abort();
      await nothingLeft(stage);
    }
    // Neither of the two reached a pod.
    expect(stage.upstream.nRequests()).toBe(reached);
    expect(await cancelledRequests(stage)).toBe(cancelled + 6);
    for (let i = 0; i < 3; i++) {
      const waiting = begin(listenerAddress, '/slow?ms=5000', 'x'.repeat(2000), 'whole');
      const reading = begin(listenerAddress, '/stream?ms=5000', 'x'.repeat(2000), 'whole');
      await reading.answering;
      for (const request of [waiting, reading]) request.abort();
    }
    await nothingLeft(stage);
    await eventually(() => (stage.upstream.nOpen() === 0 ? 'done' : `${stage.upstream.nOpen()} answers still open`));
  });

  test('a pod may reset before its answer and in the middle of it', async () => {
    const { listenerAddress } = stage.envoy;
    const before = await fetch(`http://${listenerAddress}/reset`, { method: 'POST', body: '{}' });
    expect(before.status).toBe(503);
    const cut = await fetch(`http://${listenerAddress}/cut`, { method: 'POST', body: '{}' });
    await expect(cut.text()).rejects.toThrow();
    await nothingLeft(stage);
  });

  test('2,000 slow requests at once are all answered', async () => {
    const sessions = [0, 1].map(() => http2.connect(`http://${stage.envoy.listenerAddress}`));
    const send = async (i: number): Promise<string> => {
      const stream = sessions[i % 2]!.request({ ':method': 'POST', ':path': '/slow?ms=1500' });
      stream.end(JSON.stringify({ model: MODEL, i }));
      const [headers] = (await once(stream, 'response')) as [{ ':status': number }];
      return `${headers[':status']} ${await textOf(stream)}`;
    };
    let most = 0;
    const watch = setInterval(() => (most = Math.max(most, stage.upstream.nOpen())), 20);
    try {
      const answers = await Promise.all(Array.from({ length: 2_000 }, (_, i) => send(i)));
      expect(new Set(answers)).toEqual(new Set(['200 slow']));
      // They really were there together, most of them.
      expect(most).toBeGreaterThan(1_000);
    } finally {
      clearInterval(watch);
      for (const session of sessions) session.destroy();
    }
    await nothingLeft(stage);
  });
});

test('an Envoy told to collect answers, and to let itself be told otherwise, passes on what there is of one', async () => {
  const stage = await setUp(
    'buffered',
    (bootstrap) => {
      const filter = filterOf(bootstrap);
      filter.allow_mode_override = true;
      Object.assign(filter.processing_mode, { response_header_mode: 'SEND', response_body_mode: 'BUFFERED' });
      delete filter.processing_mode['response_trailer_mode'];
    },
    { api: 'none' },
    { responseTrailers: 'ask' },
  );
  try {
    const client = new AbortController();
    const response = await fetch(`http://${stage.envoy.listenerAddress}/hold`, {
      method: 'POST',
      body: '{}',
      signal: client.signal,
    });
    const { value } = await response.body!.getReader().read();
    expect(Buffer.from(value!).toString()).toBe('the beginning');
    expect(await openStreams(stage)).toBe(1);
    client.abort();
    await nothingLeft(stage);
  } finally {
    await stage.end();
  }
});

describe('a Warmpath that is killed', () => {
  type Case = {
    readonly name: string;
    readonly template: EnvoyTemplate;
    readonly change: Change;
    readonly running: 'whole' | 'cut';
    readonly later: number;
    readonly back: 'asked_again' | 'not_started';
  };
  const cases: readonly Case[] = [
    {
      name: 'fail-open, BUFFERED: answers go on, new requests too; and it is asked again once it is back',
      template: 'buffered',
      change: () => undefined,
      running: 'whole',
      later: 200,
      back: 'asked_again',
    },
    {
      name: 'fail-closed, BUFFERED: answers in flight are cut, new requests are refused',
      template: 'buffered',
      change: failClosed,
      running: 'cut',
      later: 500,
      back: 'not_started',
    },
    {
      name: 'fail-open, FULL_DUPLEX_STREAMED: answers in flight are cut, new requests go on',
      template: 'full-duplex',
      change: () => undefined,
      running: 'cut',
      later: 200,
      back: 'not_started',
    },
  ];
  test.each(cases)('$name', async ({ template, change, running, later, back }) => {
    const upstream = await startEchoUpstream();
    const first = await startProcess(upstream, '127.0.0.1:0');
    const envoy = await startTestEnvoy(
      { template, withExtProc: 'yes', extProcAddress: first.grpc, pods: [upstream.address] },
      (bootstrap: EnvoyBootstrap) => {
        const filters = bootstrap as unknown as Filters;
        change(filters);
        checkOften(filters);
      },
    );
    let second: Awaited<ReturnType<typeof startProcess>> | null = null;
    const send = (path: string): Promise<Response> =>
      fetch(`http://${envoy.listenerAddress}${path}`, { method: 'POST', body: '{}' });
    try {
      const answer = await send('/stream?ms=1500');
      expect(answer.status).toBe(200);
      const text = answer.text().then(
        (whole) => (whole.endsWith('whole') ? 'whole' : 'cut'),
        () => 'cut',
      );
      await first.kill();
      expect(await text).toBe(running);
      // Until the next health check sees it.
      await eventually(async () => {
        const { status } = await send('/anything');
        return status === later ? 'done' : `answered with ${status}`;
      });
      if (back === 'not_started') return;
      second = await startProcess(upstream, first.grpc);
      await eventually(async () => {
        await send('/anything');
        const picked = envoy.accessLog().at(-1) ?? '';
        return picked.includes(`picked=${upstream.address}`) ? 'done' : picked;
      });
    } finally {
      await envoy.stop();
      await second?.kill();
      await first.kill();
      await upstream.stop();
    }
  });
});

/** `warmpath serve` as a process that can be killed. */
async function startProcess(
  upstream: EchoUpstream,
  grpcListen: string,
): Promise<{ grpc: string; kill(): Promise<void> }> {
  const endpoints = JSON.stringify([{ name: 'echo', address: upstream.address, model: MODEL, kvEvents: 'none' }]);
  const sets = {
    'server.grpcListen': grpcListen,
    'server.healthListen': '127.0.0.1:0',
    'server.adminListen': '127.0.0.1:0',
    'tokenizer.api': 'none',
    'discovery.endpoints': endpoints,
  };
  const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
  const args = Object.entries(sets).flatMap(([key, value]) => ['--set', `${key}=${value}`]);
  const child: ChildProcess = spawn(process.execPath, [main, 'serve', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {},
  });
  const exit = once(child, 'exit');
  for await (const line of createInterface({ input: child.stdout! })) {
    if (!line.includes('"msg":"serving"')) continue;
    const { grpc } = JSON.parse(line) as { grpc: string };
    child.stdout!.resume();
    return {
      grpc,
      async kill() {
        child.kill('SIGKILL');
        await exit;
      },
    };
  }
  throw new Error('warmpath serve ended before it served');
}

/** A test cannot wait the two seconds that production can. */
function checkOften({ static_resources: { clusters } }: Filters): void {
  for (const { health_checks: checks } of clusters) {
    for (const check of checks ?? []) check.interval = check.no_traffic_interval = '0.2s';
  }
}

describe('two replicas', () => {
  test('a rolling restart under steady load loses no request, though Envoy forgives nothing', async () => {
    const upstream = await startEchoUpstream();
    // Less than the second for which an Envoy would collect changes of health if our files did not tell it to act at once.
    const drain = { drainDelayMs: 900, drainTimeoutMs: 3_000 };
    const apps: App[] = [];
    const addresses: string[] = [];
    const startReplica = async (i: number): Promise<void> => {
      const server = { ...drain, ...(addresses[i] === undefined ? {} : { grpcListen: addresses[i] }) };
      apps[i] = createApp(appConfig(upstream, server), { log: silentLog, clock: systemClock });
      addresses[i] = (await apps[i]!.start()).grpc;
    };
    await startReplica(0);
    await startReplica(1);
    const envoys = await Promise.all(
      (['buffered', 'full-duplex'] as const).map((template) =>
        startTestEnvoy(
          { template, withExtProc: 'yes', extProcAddress: addresses[0]!, pods: [upstream.address] },
          (bootstrap: EnvoyBootstrap) => {
            const filters = bootstrap as unknown as Filters;
            failClosed(filters);
            checkOften(filters);
            setMembers(filters, addresses);
          },
        ),
      ),
    );
    const met = new Map<string, number>();
    const count = (what: string): void => void met.set(what, (met.get(what) ?? 0) + 1);
    const sent: Promise<void>[] = [];
    let running = true;
    const send = async (listener: string, path: string): Promise<void> => {
      const response = await fetch(`http://${listener}${path}`, { method: 'POST', body: '{"model":"x"}' });
      const text = await response.text();
      const isWhole = !path.startsWith('/stream') || text.endsWith('whole');
      count(isWhole ? String(response.status) : `${response.status} cut`);
    };
    const load = async ({ listenerAddress }: EnvoyProcess): Promise<void> => {
      for (let n = 0; running; n++) {
        const path = n % 4 === 0 ? '/stream?ms=900' : '/anything';
        sent.push(send(listenerAddress, path).catch((error: unknown) => count(String(error))));
        await delay(8);
      }
    };
    try {
      const loading = envoys.map(load);
      await delay(50);
      for (const i of [0, 1]) {
        await apps[i]!.stop();
        await startReplica(i);
        // Both Envoys must be using it again before the other one goes.
        for (const envoy of envoys) await eventually(() => isAsked(envoy, addresses[i]!));
      }
      running = false;
      await Promise.all(loading);
      await Promise.all(sent);
      expect([...met.keys()]).toEqual(['200']);
      expect(met.get('200')).toBeGreaterThan(200);
    } finally {
      running = false;
      await Promise.all(apps.map((app) => app.stop()));
      await Promise.all(envoys.map((envoy) => envoy.stop()));
      await upstream.stop();
    }
  });
});

function setMembers({ static_resources: { clusters } }: Filters, addresses: readonly string[]): void {
  const members = clusters.find(({ name }) => name === 'warmpath')!.load_assignment;
  members.endpoints[0].lb_endpoints = addresses.map((address) => {
    const [host, port] = address.split(':');
    return { endpoint: { address: { socket_address: { address: host, port_value: Number(port) } } } };
  });
}

async function isAsked({ adminAddress }: EnvoyProcess, member: string): Promise<string> {
  const clusters = await (await fetch(`http://${adminAddress}/clusters`)).text();
  return clusters.includes(`warmpath::${member}::cx_active::0`) ? `${member} is not asked yet` : 'done';
}
