/**
 * Everything on this machine: simulated pods, a real Envoy, Warmpath, and the same chats twice: first in Envoy's own
 * round robin, then with Warmpath, caches cold each time. Every part is a process of its own, started as a user starts it,
 * and all of them are gone when this returns.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { WarmpathError } from '../errors.ts';
import { startCommand, type CommandProcess } from './command-process.ts';
import type { EnvoyBinary } from './envoy-binary.ts';
import { envoyConfig } from './envoy-config.ts';
import { startEnvoy } from './envoy-process.ts';
import { createExtProcDriver } from './ext-proc-driver.ts';
import { createProxyGateway, createRoundRobinGateway, type Gateway } from './gateway.ts';
import { readPods, readWarmpath, whenTrusted } from './observe.ts';
import { failureReasons, ratio, runReport, type DemoReport, type RunReport } from './report.ts';
import { runTraffic, sentChats, type TrafficResult } from './traffic.ts';
import { createWorkload, idealOf, plannedChats, type Workload } from './workload.ts';

export type DemoOptions = {
  readonly nPods: number;
  /** Length of each of the two runs. */
  readonly seconds: number;
  /** Null: the built-in driver stands in. */
  readonly envoy: EnvoyBinary | null;
  readonly signal: AbortSignal;
  readonly onProgress: (line: string) => void;
  /** Called with everything of the second run still running; what it awaits keeps it so. */
  readonly beforeEnd?: (report: DemoReport, addresses: DemoAddresses) => Promise<void>;
};

export type DemoAddresses = {
  /** Where to send requests, null without Envoy. */
  readonly listener: string | null;
  readonly admin: string;
  readonly pods: readonly string[];
};

export type DemoResult = {
  readonly report: DemoReport;
  readonly failures: { readonly roundRobin: FailureReasons; readonly warmpath: FailureReasons };
};
type FailureReasons = ReturnType<typeof failureReasons>;

const MODEL = 'demo-model';
const SEED = 1;
const BLOCK_SIZE_TOKENS = 16;
const REQUESTS_PER_SECOND = 13;
/** What a mid-size model on one GPU does; an uncached prompt of this workload takes about a quarter of a second. */
const PREFILL_TOKENS_PER_SECOND = 10_000;
const DECODE_STEP_MS = 10;
/** All caches together hold the working set, with as much to spare as an uneven share of conversations needs. */
const CACHE_TO_WORKING_SET = 1.3;
/** No request begins in this last part of a run, so that it ends when it should. */
const TAIL_MS = 3_000;
const TAIL_MOST_OF_RUN = 0.5;
const PROGRESS_EVERY_MS = 5_000;

export async function demo(options: DemoOptions): Promise<DemoResult> {
  const { nPods, seconds, onProgress } = options;
  const workload = createWorkload({
    seed: SEED,
    model: MODEL,
    nRequests: Math.max(1, Math.round(REQUESTS_PER_SECOND * seconds)),
    durationMs: seconds * 1000 - Math.min(TAIL_MS, seconds * 1000 * TAIL_MOST_OF_RUN),
  });
  const { nBlocks } = idealOf(plannedChats(workload), BLOCK_SIZE_TOKENS);
  const plan: Plan = { ...options, workload, nBlocksPerPod: Math.ceil((CACHE_TO_WORKING_SET * nBlocks) / nPods) + 1 };
  onProgress(
    `${workload.nRequests} requests in ${workload.conversations.length} conversations; each of ${nPods} pods caches ` +
      `${Math.round((100 * plan.nBlocksPerPod) / nBlocks)} % of what they touch`,
  );
  const roundRobin = await roundRobinRun(plan);
  return warmpathRun(plan, roundRobin);
}

type Plan = DemoOptions & { readonly workload: Workload; readonly nBlocksPerPod: number };

type Run = { readonly traffic: TrafficResult; readonly report: RunReport };

async function roundRobinRun(plan: Plan): Promise<Run> {
  return withParts(async (parts) => {
    const pods = await startPods(plan, parts);
    const gateway = plan.envoy
      ? createProxyGateway((await startProxy(plan, parts, plan.envoy, pods, null)).listenerAddress)
      : createRoundRobinGateway(pods.map(({ address }) => address));
    return measuredRun(plan, parts, 'round robin', gateway, pods);
  });
}

async function warmpathRun(plan: Plan, baseline: Run): Promise<DemoResult> {
  return withParts(async (parts) => {
    const pods = await startPods(plan, parts);
    const { grpc, admin } = await startWarmpath(plan, parts, pods);
    const proxy = plan.envoy ? await startProxy(plan, parts, plan.envoy, pods, grpc) : null;
    const gateway = proxy ? createProxyGateway(proxy.listenerAddress) : createExtProcDriver(grpc);
    const run = await measuredRun(plan, parts, 'Warmpath', gateway, pods);
    const predicted = await readWarmpath(admin);
    const report: DemoReport = {
      envoy: plan.envoy?.version ?? null,
      workload: {
        requests: plan.workload.nRequests,
        idealHitRate: idealOf(sentChats(run.traffic), BLOCK_SIZE_TOKENS).hitRate,
      },
      roundRobin: baseline.report,
      warmpath: { ...run.report, predictedHitRate: ratio(predicted.cachedTokens, predicted.promptTokens) },
    };
    const addresses = { listener: proxy?.listenerAddress ?? null, admin, pods: pods.map(({ address }) => address) };
    await plan.beforeEnd?.(report, addresses);
    const reasons = ({ traffic }: Run): FailureReasons =>
      failureReasons(traffic.requests.map(({ outcome }) => outcome));
    return { report, failures: { roundRobin: reasons(baseline), warmpath: reasons(run) } };
  });
}

async function measuredRun(
  plan: Plan,
  parts: Parts,
  name: string,
  gateway: Gateway,
  pods: readonly PodAddresses[],
): Promise<Run> {
  let nAnswered = 0;
  const total = plan.workload.nRequests;
  plan.onProgress(`${name}: ${plan.seconds} s of chats`);
  const ticker = setInterval(() => plan.onProgress(`${name}: ${nAnswered} of ${total} answered`), PROGRESS_EVERY_MS);
  const dead = new AbortController();
  void parts.died.then((reason) => dead.abort(new WarmpathError('peer_failed', reason)));
  try {
    const traffic = await runTraffic(plan.workload, gateway, {
      signal: AbortSignal.any([plan.signal, dead.signal]),
      onAnswered: (n) => (nAnswered = n),
    });
    const finished = await readPods(pods.map(({ address }) => address));
    const outcomes = traffic.requests.map(({ outcome }) => outcome);
    return { traffic, report: runReport(outcomes, finished) };
  } finally {
    clearInterval(ticker);
    await gateway.close();
  }
}

/** An entry of a static endpoints file. */
type PodAddresses = { readonly name: string; readonly address: string };

async function startPods(plan: Plan, parts: Parts): Promise<readonly PodAddresses[]> {
  const flags = {
    pods: plan.nPods,
    port: 0,
    'kv-port': 0,
    'replay-port': 0,
    model: MODEL,
    seed: SEED,
    'block-size': BLOCK_SIZE_TOKENS,
    blocks: plan.nBlocksPerPod,
    'prefill-rate': PREFILL_TOKENS_PER_SECOND,
    'decode-ms': DECODE_STEP_MS,
  };
  const args = Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, String(value)]);
  const child = await startCommand({
    args: ['simulate-vllm', ...args, '--json'],
    isReadyLine: (line) => line.startsWith('{'),
    nReadyLines: plan.nPods,
    signal: plan.signal,
  });
  parts.add(child);
  return child.readyLines.map((line) => JSON.parse(line) as PodAddresses);
}

async function startWarmpath(
  plan: Plan,
  parts: Parts,
  pods: readonly PodAddresses[],
): Promise<{ grpc: string; admin: string }> {
  const config = {
    server: {
      grpcListen: '127.0.0.1:0',
      healthListen: '127.0.0.1:0',
      adminListen: '127.0.0.1:0',
      // Nobody has to notice before the end of a demo.
      drainDelayMs: 0,
      drainTimeoutMs: 1000,
    },
    discovery: { endpoints: pods },
    // Four engines, Envoy and the client share the cores with Warmpath here, and answers of tokenizers wait for their turn.
    tokenizer: { budgetMs: 150 },
  };
  const folder = await mkdtemp(join(tmpdir(), 'warmpath-demo-'));
  try {
    const file = join(folder, 'warmpath.yaml');
    await writeFile(file, stringify(config));
    const child = await startCommand({
      args: ['serve', '--config', file],
      isReadyLine: (line) => line.includes('"msg":"serving"'),
      signal: plan.signal,
    });
    parts.add(child);
    const { grpc, admin } = JSON.parse(child.readyLines[0]!) as { grpc: string; admin: string };
    await whenTrusted(admin, pods.length, plan.signal);
    return { grpc, admin };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function startProxy(
  plan: Plan,
  parts: Parts,
  { path }: EnvoyBinary,
  pods: readonly PodAddresses[],
  extProcAddress: string | null,
): Promise<{ listenerAddress: string }> {
  const config = envoyConfig({
    template: 'buffered',
    pods: pods.map(({ address }) => address),
    ...(extProcAddress === null ? { withExtProc: 'no' } : { withExtProc: 'yes', extProcAddress }),
  });
  const envoy = await startEnvoy(config, { binary: path, signal: plan.signal });
  parts.add(envoy);
  return envoy;
}

type Part = { stop(): Promise<unknown>; readonly died?: CommandProcess['died'] };
type Parts = {
  add(part: Part): void;
  /** Resolves with the reason when one of them ends by itself. */
  readonly died: Promise<string>;
};

/** Whatever `use` does, every part added is stopped afterwards, the last one first. */
async function withParts<T>(use: (parts: Parts) => Promise<T>): Promise<T> {
  const started: Part[] = [];
  let tell: (reason: string) => void;
  const died = new Promise<string>((resolve) => (tell = resolve));
  try {
    return await use({
      add(part) {
        started.push(part);
        void part.died?.then((reason) => tell(reason));
      },
      died,
    });
  } finally {
    for (const part of started.reverse()) await part.stop();
  }
}
