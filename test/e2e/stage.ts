/** The whole product for one test: simulated pods, the `serve` app and a real Envoy in front, all on free ports. */
import { setTimeout as delay } from 'node:timers/promises';
import { stringify } from 'yaml';
import { createApp, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { loadConfig, type Config } from '../../src/config.ts';
import type { EnvoyBootstrap, EnvoyConfigOptions } from '../../src/demo/envoy-config.ts';
import type { EnvoyProcess } from '../../src/demo/envoy-process.ts';
import { silentLog } from '../../src/log.ts';
import {
  createSimulatedPod,
  type SimulatedPod,
  type SimulatedPodAddresses,
  type SimulatedPodOptions,
} from '../../src/simulator/simulated-pod.ts';
import { startTestEnvoy } from '../support/envoy.ts';

export const MODEL = 'demo-model';

export type RunningPod = {
  readonly name: string;
  readonly addresses: SimulatedPodAddresses;
  pod: SimulatedPod;
};

export type Stage = {
  readonly pods: readonly RunningPod[];
  readonly warmpath: AppAddresses;
  readonly envoy: EnvoyProcess;
  /** A pod's process dies; connections are reset. */
  kill(pod: RunningPod): Promise<void>;
  /** A new process on the same addresses, with an empty cache. */
  restart(pod: RunningPod): Promise<void>;
  end(): Promise<void>;
};

export type StageOptions = {
  readonly nPods?: number;
  readonly pod?: Partial<SimulatedPodOptions>;
  readonly envoy?: Partial<Pick<EnvoyConfigOptions, 'template' | 'requestBodyMode'>>;
  readonly changeBootstrap?: (bootstrap: EnvoyBootstrap) => void;
  /** Sections of the configuration file, on top of what the stage needs. */
  readonly config?: Readonly<Record<string, object>>;
};

export async function setStage(options: StageOptions = {}): Promise<Stage> {
  const endings: (() => Promise<unknown>)[] = [];
  const end = async (): Promise<void> => {
    for (let undo = endings.pop(); undo; undo = endings.pop()) await undo();
  };
  try {
    const pods = await startPods(options);
    endings.push(() => Promise.all(pods.map(({ pod }) => pod.stop())));
    const app = createApp(stageConfig(pods, options.config), { log: silentLog, clock: systemClock });
    endings.push(() => app.stop());
    const warmpath = await app.start();
    await whenTrusted(warmpath.admin, pods.length * (options.pod?.dataParallelSize ?? 1));
    const envoy = await startTestEnvoy(
      {
        template: 'buffered',
        withExtProc: 'yes',
        extProcAddress: warmpath.grpc,
        // A cluster needs a member; nothing listens on port 1.
        pods: pods.length > 0 ? pods.map(({ addresses }) => addresses.httpAddress) : ['127.0.0.1:1'],
        ...options.envoy,
      },
      options.changeBootstrap,
    );
    endings.push(() => envoy.stop());
    return {
      pods,
      warmpath,
      envoy,
      kill: ({ pod }) => pod.kill(),
      async restart(running) {
        const { httpAddress, kvEventsEndpoint, replayEndpoint } = running.addresses;
        running.pod = createSimulatedPod({
          ...running.pod.options,
          port: portOf(httpAddress),
          kvEventsPort: portOf(kvEventsEndpoint),
          replayPort: portOf(replayEndpoint),
        });
        await running.pod.start();
      },
      end,
    };
  } catch (error) {
    await end();
    throw error;
  }
}

/** The configuration a file with these sections gives, on free ports of this machine. */
export function stageConfig(pods: readonly RunningPod[], sections: StageOptions['config'] = {}): Config {
  const file = {
    discovery: { endpoints: pods.map(endpointEntry) },
    // A busy test machine must make neither a tokenizer nor a decision late.
    tokenizer: { budgetMs: 300 },
    ...sections,
    server: {
      decisionDeadlineMs: 20_000,
      grpcListen: '127.0.0.1:0',
      healthListen: '127.0.0.1:0',
      adminListen: '127.0.0.1:0',
      drainDelayMs: 0,
      drainTimeoutMs: 2000,
      ...sections['server'],
    },
  };
  const loaded = loadConfig({ file: 'stage.yaml', readFile: () => stringify(file), env: {}, sets: [] });
  if (loaded.kind === 'mistakes') throw new Error(loaded.mistakes.join('\n'));
  return loaded.config;
}

export function endpointEntry({ name, addresses, pod }: RunningPod): object {
  const { httpAddress, kvEventsEndpoint, replayEndpoint } = addresses;
  const { dataParallelSize } = pod.options;
  return {
    name,
    address: httpAddress,
    model: MODEL,
    kvEvents: kvEventsEndpoint,
    replay: replayEndpoint,
    dataParallelSize,
  };
}

export async function startPods({ nPods = 3, pod: given }: StageOptions): Promise<RunningPod[]> {
  return Promise.all(
    Array.from({ length: nPods }, async (_, i) => {
      const pod = createSimulatedPod({
        model: MODEL,
        seed: i + 1,
        prefillTokensPerSecond: 100_000,
        decodeStepMs: 2,
        ...given,
      });
      return { name: `pod-${i}`, addresses: await pod.start(), pod };
    }),
  );
}

export type EndpointView = { readonly name: string; readonly address: string; readonly trust: string };

export async function endpointViews(admin: string): Promise<EndpointView[]> {
  const response = await fetch(`http://${admin}/api/v1/endpoints`);
  return (await response.json()) as EndpointView[];
}

export async function whenTrusted(admin: string, nEndpoints: number): Promise<void> {
  await eventually(async () => {
    const trusted = (await endpointViews(admin)).filter(({ trust }) => trust === 'exact');
    return trusted.length === nEndpoints ? 'done' : `${trusted.length} of ${nEndpoints} endpoints are trusted`;
  });
}

/** Polls until the condition says 'done'; fails with what it said last. */
export async function eventually(condition: () => string | Promise<string>, withinMs = 20_000): Promise<void> {
  const deadline = performance.now() + withinMs;
  let said = await condition();
  while (said !== 'done') {
    if (performance.now() > deadline) throw new Error(`not within ${withinMs} ms: ${said}`);
    await delay(20);
    said = await condition();
  }
}

export type ChatAnswer = {
  readonly status: number;
  readonly headers: Headers;
  readonly json: {
    readonly error?: { message: string; type: string; code: string | null };
    readonly usage?: { prompt_tokens: number; prompt_tokens_details: { cached_tokens: number } | null };
  };
  readonly cachedTokens: number;
  readonly durationMs: number;
};

/** One chat without streaming; a string goes out as the raw body. */
export async function chat(listener: string, body: object | string): Promise<ChatAnswer> {
  const startMs = performance.now();
  const response = await fetch(`http://${listener}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  });
  const text = await response.text();
  const json = (response.headers.get('content-type')?.includes('json') ? JSON.parse(text) : {}) as ChatAnswer['json'];
  return {
    status: response.status,
    headers: response.headers,
    json,
    cachedTokens: json.usage?.prompt_tokens_details?.cached_tokens ?? 0,
    durationMs: performance.now() - startMs,
  };
}

export function aChat(content: string, more: object = {}): object {
  return { model: MODEL, messages: [{ role: 'user', content }], max_tokens: 4, ...more };
}

/** About `nWords` tokens that no other topic shares. */
export function longText(topic: string, nWords: number): string {
  return Array.from({ length: nWords }, (_, i) => `${topic}${i}`).join(' ');
}

/** Requests each pod has finished so far. */
export function finishedRequests(pods: readonly RunningPod[]): number[] {
  return pods.map(({ pod }) => pod.stats().finishedRequests);
}

function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(':') + 1));
}
