/**
 * What users type and see: names and shapes that manifests, dashboards and scripts rely on. Adding is free; whoever changes
 * a line here breaks somebody and writes an alias and a line in the changelog. Metrics are held in unit/metrics.test.ts.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { runCheck } from '../src/cli/check.ts';
import { runDemo } from '../src/cli/demo.ts';
import { runDoctor } from '../src/cli/doctor.ts';
import { runEvents } from '../src/cli/events.ts';
import { runExplain } from '../src/cli/explain.ts';
import { runReplay } from '../src/cli/replay.ts';
import { runServe } from '../src/cli/serve.ts';
import { runSimulateVllm } from '../src/cli/simulate-vllm.ts';
import { createApp, type App, type AppAddresses } from '../src/app.ts';
import { systemClock } from '../src/clock.ts';
import { environmentName } from '../src/config-sources.ts';
import { loadConfig, type Config } from '../src/config.ts';
import { silentLog } from '../src/log.ts';
import { createExtProcClient, type ExtProcClient } from './support/extproc-client.ts';
import type { Answer } from './support/extproc-messages.ts';
import { createHealthClient } from './support/health-client.ts';
import { aChat, eventually, longText, stageConfig, startPods, whenTrusted, type RunningPod } from './e2e/stage.ts';

const ROOT = new URL('../', import.meta.url);

/** A process without terminal, environment and signals. */
const silentIo = {
  stdout: (_line: string): void => undefined,
  stderr: (_line: string): void => undefined,
  stdin: (async function* (): AsyncGenerator<Uint8Array> {})(),
  env: {},
  isTerminal: false,
  signal: new AbortController().signal,
  hurry: new AbortController().signal,
  surviveRejections: (): void => undefined,
};

describe('commands', () => {
  const warmpath = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(process.execPath, [new URL('src/main.ts', ROOT).pathname, ...args], { encoding: 'utf8' });

  test('the list of commands', () => {
    const { status, stdout } = warmpath('--help');
    expect(status).toBe(0);
    const names = [...stdout.matchAll(/^ {2}(\S+) /gm)].map(([, name]) => name);
    expect(names.sort()).toEqual(['check', 'demo', 'doctor', 'events', 'explain', 'replay', 'serve', 'simulate-vllm']);
  });

  test('its version, and a command that does not exist', () => {
    const { version } = JSON.parse(readFileSync(new URL('package.json', ROOT), 'utf8')) as { version: string };
    expect(warmpath('--version')).toMatchObject({ status: 0, stdout: `${version}\n` });
    const unknown = warmpath('doctr');
    expect([unknown.status, unknown.stderr]).toEqual([
      2,
      expect.stringMatching(/^warmpath: unknown command "doctr", the nearest known one is doctor; /),
    ]);
  });

  type Run = (args: readonly string[], io: typeof silentIo) => Promise<number>;

  test.each<[string, Run, readonly string[]]>([
    ['serve', runServe, ['--config', '--set']],
    ['check', runCheck, ['--config', '--set']],
    ['demo', runDemo, ['--pods', '--seconds', '--envoy', '--keep', '--json']],
    ['simulate-vllm', runSimulateVllm, ['--pods', '--host', '--port', '--json']],
    [
      'replay',
      runReplay,
      ['--policies', '--engines', '--speed', '--cache-blocks', '--prefill-rate', '--timing', '--json'],
    ],
    ['doctor', runDoctor, ['--config', '--set', '--replay', '--probe', '--json']],
    ['explain', runExplain, ['--admin', '--path']],
    ['events', runEvents, ['--replay', '--decode', '--tokens']],
  ])(
    '%s --help names what it takes and how it ends; what it does not take is exit code 2',
    async (name, run, options) => {
      const out: string[] = [];
      expect(await run(['--help'], { ...silentIo, stdout: (text) => void out.push(text) })).toBe(0);
      const help = out.join('\n');
      expect(help).toMatch(new RegExp(`^usage: warmpath ${name} `));
      expect(options.filter((option) => !help.includes(option))).toEqual([]);
      expect(help).toMatch(/^Exit codes: 0 .*, 2 wrong/m);
      expect(await run(['--no-such-option'], silentIo)).toBe(2);
    },
  );

  test('make targets', () => {
    const makefile = readFileSync(new URL('Makefile', ROOT), 'utf8');
    const targets = 'help check test e2e demo chaos bench image chart test-kv-sync test-zmq test-zmq-coverage '
      .concat('test-kv-sync-e2e test-kv-sync-benchmark test-kv-sync-chaos test-kv-sync-all')
      .split(' ');
    expect(targets.filter((name) => !new RegExp(`^${name}:`, 'm').test(makefile))).toEqual([]);
  });
});

describe('configuration', () => {
  const load = (env: Record<string, string>): ReturnType<typeof loadConfig> =>
    loadConfig({ file: null, readFile: () => '', env, sets: [] });
  const loaded = (env: Record<string, string> = {}): Config => {
    const result = load(env);
    if (result.kind === 'mistakes') throw new Error(result.mistakes.join('\n'));
    return result.config;
  };
  const valueOf = (config: Config, key: string): unknown =>
    key.split('.').reduce<unknown>((inner, part) => (inner as Record<string, unknown>)[part], config);

  test.each<[string, unknown]>([
    ['server.grpcListen', '0.0.0.0:9002'],
    ['server.healthListen', '0.0.0.0:9003'],
    ['server.adminListen', '0.0.0.0:9090'],
    ['server.tls.certFile', null],
    ['server.tls.keyFile', null],
    ['server.tls.clientCaFile', null],
    ['server.bodyMaxBytes', 16 * 2 ** 20],
    ['server.drainDelayMs', 5000],
    ['server.drainTimeoutMs', 30_000],
    ['server.failureMode', 'open'],
    ['server.threads', 1],
    ['discovery.mode', 'static'],
    ['discovery.file', null],
    ['discovery.endpoints', null],
    ['discovery.kubernetes.namespace', null],
    ['discovery.kubernetes.labelSelector', 'model.aibrix.ai/name'],
    ['discovery.kubernetes.inferencePool', null],
    ['discovery.kubernetes.modelLabel', 'model.aibrix.ai/name'],
    ['discovery.kubernetes.portLabel', 'model.aibrix.ai/port'],
    ['discovery.kubernetes.kvEventsLabel', 'model.aibrix.ai/kv-events-enabled'],
    ['discovery.kubernetes.modelAdapters', 'auto'],
    ['kvEvents.enabled', true],
    ['kvEvents.port', 5557],
    ['kvEvents.replayPort', 5558],
    ['kvEvents.indexMaxBytes', 512 * 2 ** 20],
    ['tokenizer.urls', []],
    ['tokenizer.api', 'auto'],
    ['tokenizer.budgetMs', 50],
    ['tokenizer.timeoutMs', 2000],
    ['tokenizer.maxInFlight', 64],
    ['routing.strategy', 'prefix-cache'],
    ['routing.strategyHeader', 'routing-strategy'],
    ['routing.allowedStrategies', []],
    ['routing.fallbackEndpoints', 2],
    ['routing.destinationHeader', 'x-gateway-destination-endpoint'],
    ['routing.compatTargetPodHeader', false],
    ['log.level', 'info'],
  ])('%s is %j unless set', (key, value) => {
    expect(valueOf(loaded(), key)).toEqual(value);
  });

  test('the environment says the same in capitals, parted by _', () => {
    expect(environmentName('discovery.kubernetes.kvEventsLabel')).toBe('WARMPATH_DISCOVERY_KUBERNETES_KV_EVENTS_LABEL');
    expect(loaded({ WARMPATH_TOKENIZER_BUDGET_MS: '7' }).tokenizer.budgetMs).toBe(7);
  });

  test.each<[string, string, string, unknown]>([
    ['AIBRIX_KV_EVENT_SYNC_ENABLED', 'false', 'kvEvents.enabled', false],
    ['AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED', 'false', 'kvEvents.enabled', false],
    ['AIBRIX_USE_REMOTE_TOKENIZER', 'false', 'tokenizer.api', 'none'],
    ['AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER', 'true', 'tokenizer.api', 'auto'],
    ['AIBRIX_POD_DEPLOYMENT_LABEL', 'app', 'discovery.kubernetes.deploymentLabel', 'app'],
    ['AIBRIX_POD_RAYCLUSTERFLEET_LABEL', 'ray', 'discovery.kubernetes.fleetLabel', 'ray'],
    ['AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS', '250', 'load.metricsIntervalMs', 250],
    ['AIBRIX_MODEL_GPU_PROFILE_CACHING_FLAG', 'false', 'load.engineProfileCaching', false],
    ['AIBRIX_Model_GPU_PROFILE_CACHING_FLAG', 'false', 'load.engineProfileCaching', false],
    ['ROUTING_ALGORITHM', 'least-request', 'routing.strategy', 'least-request'],
  ])('%s=%s is understood, and told', (name, text, key, value) => {
    const result = load({ [name]: text });
    expect(result).toMatchObject({ kind: 'config', notices: [expect.stringContaining(name)] });
    expect(valueOf(loaded({ [name]: text }), key)).toEqual(value);
  });

  test('every field of a static endpoint', () => {
    const list = `[{name: a, address: "[2001:db8::1]:8000", models: [m, alias], adapters: [sql], kvEvents: none,
      dataParallelSize: 1, labels: {zone: a}}]`;
    expect(load({ WARMPATH_DISCOVERY_ENDPOINTS: list }).kind).toBe('config');
  });
});

describe('while it serves', () => {
  let pods: RunningPod[];
  let app: App;
  let addresses: AppAddresses;
  let data: ExtProcClient;

  beforeAll(async () => {
    pods = await startPods({ nPods: 2 });
    app = createApp(stageConfig(pods, { tokenizer: { budgetMs: 5000 } }), { log: silentLog, clock: systemClock });
    addresses = await app.start();
    await whenTrusted(addresses.admin, pods.length);
    data = createExtProcClient(addresses.grpc);
  });

  afterAll(async () => {
    data.close();
    await app.stop();
    await Promise.all(pods.map(({ pod }) => pod.stop()));
  });

  const get = async (path: string): Promise<unknown> => (await fetch(`http://${addresses.admin}${path}`)).json();
  const explain = async (body: unknown): Promise<{ status: number; json: unknown }> => {
    const question = JSON.stringify({ path: '/v1/chat/completions', headers: {}, body });
    const answer = await fetch(`http://${addresses.admin}/api/v1/explain`, { method: 'POST', body: question });
    return { status: answer.status, json: await answer.json() };
  };
  const send = async (body: string): Promise<Answer> => {
    const answers = await data.request({ mode: 'BUFFERED', body, headers: { ':path': '/v1/chat/completions' } });
    return answers.at(-1)!;
  };

  test('a request is answered with the destination and its fallbacks in header and metadata, and with nothing else', async () => {
    const [a, b] = pods.map((pod) => pod.addresses.httpAddress) as [string, string];
    const { set, remove, metadata, immediate } = await send(JSON.stringify(aChat(longText('held', 100))));
    expect([`${a},${b}`, `${b},${a}`]).toContain(metadata);
    expect({ set, remove, immediate }).toEqual({
      set: { 'x-gateway-destination-endpoint': metadata },
      remove: [],
      immediate: null,
    });
    const [newest] = (await get('/api/v1/decisions?limit=1')) as [unknown];
    expect(newest).toMatchObject({ outcome: 'routed', model: 'demo-model', rung: 'exact' });
  });

  test('GET /api/v1/endpoints', async () => {
    const number = expect.any(Number) as unknown;
    await eventually(async () => {
      const views = (await get('/api/v1/endpoints')) as { load: { waiting: number | null } }[];
      return views.every(({ load }) => load.waiting !== null) ? 'done' : 'no metrics read yet';
    });
    const [view] = (await get('/api/v1/endpoints')) as [unknown];
    expect(view).toMatchObject({
      name: 'pod-0',
      address: pods[0]!.addresses.httpAddress,
      model: 'demo-model',
      adapters: [],
      ready: true,
      trust: 'exact',
      kvEvents: { state: 'live', gaps: 0, replays: number, restarts: 0, blocks: number },
      load: {
        inFlightRequests: number,
        inFlightTokens: number,
        waiting: 0,
        running: 0,
        kvUsage: number,
        ageMs: number,
      },
      cachedTokens: { predicted: number },
    });
    expect(view).toHaveProperty('blockSizeTokens');
    expect(view).toHaveProperty('kvEvents.lastSeq');
    expect(view).toHaveProperty('kvEvents.ageMs');
    expect(view).toHaveProperty('cachedTokens.observed');
  });

  test('POST /api/v1/explain', async () => {
    const number = expect.any(Number) as unknown;
    const { status, json } = await explain(aChat('hello there'));
    expect(status).toBe(200);
    expect(json).toMatchObject({
      model: 'demo-model',
      adapter: null,
      rung: 'exact',
      promptTokens: number,
      blockSizeTokens: number,
      strategy: 'prefix-cache',
      endpoint: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
      fallbacks: [expect.stringMatching(/^127\.0\.0\.1:\d+$/)],
      reason: expect.any(String),
    });
    const { candidates } = json as { candidates: unknown[] };
    expect(candidates).toHaveLength(2);
    expect(candidates[0]).toMatchObject({
      endpoint: expect.any(String),
      trust: 'exact',
      matchedBlocks: { gpu: number, host: number, disk: number },
      matchedTokens: number,
      uncachedTokens: number,
      waitMs: number,
      costMs: number,
    });
  });

  test('GET /livez, /readyz, /api/v1/config, / and /metrics', async () => {
    expect(await get('/livez')).toMatchObject({ conditions: expect.any(Object) });
    expect(await get('/readyz')).toMatchObject({
      ready: true,
      conditions: { endpoints: 'ok', grpc: 'ok', kvEvents: 'ok' },
    });
    expect(await get('/api/v1/config')).toMatchObject({ routing: { strategy: 'prefix-cache' } });
    const page = await fetch(`http://${addresses.admin}/`);
    expect(page.headers.get('content-type')).toMatch(/^text\/html/);
    const metrics = await (await fetch(`http://${addresses.admin}/metrics`)).text();
    expect(metrics).toMatch(/^warmpath_decisions_total\{model="demo-model",rung="exact"\} \d+$/m);
  });

  test.each<[string, unknown, number, string, Record<string, unknown>]>([
    ['an unreadable body', '{"model', 400, 'bad_request', { type: 'invalid_request_error' }],
    ['no model', { messages: [] }, 400, 'bad_request', { param: 'model' }],
    ['no prompt', { model: 'demo-model' }, 400, 'bad_request', { type: 'invalid_request_error', param: 'messages' }],
    [
      'a model nobody serves',
      { ...aChat('hello'), model: 'nobody' },
      404,
      'unknown_model',
      { code: 'model_not_found', param: 'model' },
    ],
  ])('%s is refused in the shape of OpenAI, with its cause in a header', async (_, body, status, reason, error) => {
    const expected = { message: expect.any(String), type: expect.any(String), ...error };
    expect(await explain(body)).toMatchObject({ status, json: { error: expected } });
    const { set, immediate } = await send(typeof body === 'string' ? body : JSON.stringify(body));
    expect(set).toMatchObject({ 'x-warmpath-reason': reason, 'content-type': 'application/json' });
    const { error: told } = immediate!.body as { error: object };
    expect(Object.keys(told).sort()).toEqual(['code', 'message', 'param', 'type']);
    expect(told).toMatchObject(expected);
  });

  test('a body above the limit is refused with 413, a fleet without endpoints with 503 and when to come back', async () => {
    const server = { bodyMaxBytes: 2048 };
    const empty = createApp(stageConfig([], { server }), { log: silentLog, clock: systemClock });
    const { grpc, admin } = await empty.start();
    const client = createExtProcClient(grpc);
    try {
      const answerTo = async (body: object): Promise<Answer> => {
        const headers = { ':path': '/v1/chat/completions' };
        return (await client.request({ mode: 'BUFFERED', body: JSON.stringify(body), headers })).at(-1)!;
      };
      const large = await answerTo(aChat('x'.repeat(3000)));
      expect([large.immediate?.status, large.set['x-warmpath-reason']]).toEqual(['PayloadTooLarge', 'body_too_large']);
      const nowhere = await answerTo(aChat('hello'));
      expect(nowhere.immediate?.status).toBe('ServiceUnavailable');
      expect(nowhere.set).toMatchObject({ 'retry-after': expect.stringMatching(/^\d+$/) });
      const ready = await fetch(`http://${admin}/readyz`);
      expect([ready.status, await ready.json()]).toMatchObject([
        200,
        { conditions: { endpoints: 'ok, but there is no endpoint: requests get 503' } },
      ]);
    } finally {
      client.close();
      await empty.stop();
    }
  });

  test('health services', async () => {
    for (const address of [addresses.grpc, addresses.health!]) {
      const client = createHealthClient(address);
      try {
        for (const service of ['', 'liveness', 'readiness', 'envoy.service.ext_proc.v3.ExternalProcessor']) {
          expect(await client.check(service)).toBe('SERVING');
        }
      } finally {
        client.close();
      }
    }
  });
});

test('warmpath replay --json: one line per policy', async () => {
  const out: string[] = [];
  const io = { ...silentIo, stdout: (line: string) => void out.push(line) };
  const args = ['--workload', 'chat', '--requests', '40', '--policies', 'prefix-cache,random', '--json'];
  expect(await runReplay(args, io)).toBe(0);
  const lines = out.map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(lines.map(({ policy }) => policy)).toEqual(['prefix-cache', 'random']);
  const number = expect.any(Number) as unknown;
  expect(lines[0]).toMatchObject({
    trace: 'chat',
    timing: 'simple',
    engines: 8,
    speed: 1,
    cacheBlocks: 2000,
    requests: 40,
    hitRate: number,
    pooledLruHitRate: number,
    ttftMs: { mean: number, p50: number, p90: number, p99: number },
    e2eMs: { mean: number },
    requestsPerEngine: Array.from({ length: 8 }, () => number),
  });
});
