/** `warmpath replay`: a trace or a seeded workload over simulated engines, several policies side by side, in virtual time. */
import { createReadStream } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { errorText, WarmpathError } from '../errors.ts';
import { ORACLE_POLICY, OWN_POLICY, POLICIES } from '../replay/policies/policies.ts';
import { replay, type Crash, type RouterDeath, type ScaleOut, type Scenario } from '../replay/replay.ts';
import { pooledLruHitRate, summarize, type Summary } from '../replay/summary.ts';
import { svgPlot } from '../replay/svg-plot.ts';
import { syntheticWorkload, WORKLOAD_NAMES } from '../replay/synthetic-workloads.ts';
import { polynomialTiming, simpleTiming, TIMING_NAMES, type TimingName } from '../replay/timing.ts';
import { readMooncakeTrace, TRACE_BLOCK_TOKENS, type Workload } from '../replay/workload.ts';
import { integer, number, oneOf, parseOptions, positive, readPlan } from './arguments.ts';

export type ReplayIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly isTerminal: boolean;
};

const HELP = `usage: warmpath replay TRACE [options]
       warmpath replay --workload NAME [options]

Routes a Mooncake trace (JSON lines with timestamp, input_length, output_length, hash_ids) or a seeded workload over
simulated engines with several policies side by side, in virtual time. docs/design.md says what is simulated.

  --policies A,B,…       default: all of ${Object.keys(POLICIES).join(', ')}
                         (${ORACLE_POLICY} reads the future: a mark, not a competitor)
  --workload NAME        ${WORKLOAD_NAMES.join(', ')}
  --requests N           length of a workload (default 4000)
  --seed N               of workload, ties and event loss (default 1)
  --engines N            (default 8)
  --engine-speeds LIST   one factor per engine, such as 1,1,1,0.5; replaces --engines
  --speed X              arrival times are divided by it (default 1)
  --timing MODEL         ${TIMING_NAMES.join(' or ')} (default simple)
  --cache-blocks N       per engine, blocks of ${TRACE_BLOCK_TOKENS} tokens (default 2000; polynomial 2048)
  --prefill-rate N       tokens per second of an engine (default 8000; polynomial brings its own)
  --event-delay-ms N     KV events arrive that late (default 0)
  --event-loss X         part of the KV event batches that is lost, 0 to 1; 1 = engines publish none (default 0)
  --crash E@S[-S]        engine E (from 0) dies at second S and comes back, cold, at the second one; repeatable
  --scale-out N@S        N more engines at second S; repeatable
  --replicas N           routers that share the requests and do not talk to each other (default 1)
  --standby              the first of them decides alone, the others stand by
  --router-death S[-S]   the first router dies at second S and the others take over; back at the second one; repeatable
  --svg FILE             also draw a plot
  --json                 one JSON line per policy

Exit codes: 0 done, 1 a file cannot be read or written, 2 wrong usage or a trace that does not parse.`;

type Plan = {
  readonly source:
    { readonly kind: 'trace'; readonly file: string } | { readonly kind: 'workload'; readonly name: string };
  readonly nRequests: number;
  readonly policies: readonly string[];
  readonly scenario: Scenario;
  readonly svgFile: string | null;
  readonly output: 'table' | 'json';
};

/** @returns exit code: 0 done, 1 a file could not be read or written, 2 wrong usage or a trace that does not parse */
export async function runReplay(args: readonly string[], io: ReplayIo): Promise<number> {
  const asked = readPlan('replay', HELP, io, () => readArguments(args));
  if (asked.kind === 'exit') return asked.code;
  const { plan } = asked;
  try {
    await run(plan, io);
    return 0;
  } catch (error) {
    io.stderr(`warmpath replay: ${errorText(error)}`);
    return error instanceof WarmpathError && error.code === 'usage_invalid' ? 2 : 1;
  }
}

async function run(plan: Plan, io: ReplayIo): Promise<void> {
  const { scenario, policies } = plan;
  const workload = await loadWorkload(plan);
  checkFits(workload, scenario);
  const pooled = pooledLruHitRate(workload, scenario.timing, scenario.cacheBlocks * scenario.engineSpeeds.length);
  const rows: { policy: string; summary: Summary }[] = [];
  for (const [i, policy] of policies.entries()) {
    if (io.isTerminal) io.stderr(`${i + 1}/${policies.length} ${policy}`);
    const summary = summarize(replay(workload, POLICIES[policy]!, scenario));
    rows.push({ policy, summary });
    if (plan.output === 'json') io.stdout(JSON.stringify(jsonLine(policy, workload, scenario, summary, pooled)));
  }
  const title = describe(workload, scenario);
  if (plan.output === 'table') for (const line of tableLines(title, rows, pooled)) io.stdout(line);
  if (plan.svgFile !== null) await writeFile(plan.svgFile, svgPlot(title, rows, pooled, OWN_POLICY));
}

async function loadWorkload({ source, nRequests, scenario }: Plan): Promise<Workload> {
  if (source.kind === 'workload') return syntheticWorkload(source.name, nRequests, scenario.seed);
  const input = createReadStream(source.file);
  // The reader of lines hears of no failure of the stream; the promise does.
  const failed = new Promise<never>((_, reject) => {
    input.once('error', (cause) => {
      reject(new WarmpathError('io_failed', `cannot read trace ${source.file}: ${errorText(cause)}`, { cause }));
    });
  });
  try {
    return await Promise.race([readMooncakeTrace(source.file, createInterface({ input })), failed]);
  } finally {
    input.destroy();
  }
}

/** Engines' metrics are read all the time, so that a trace of years would be replayed for hours. */
const MAX_DAYS = 366;
const DAY_MS = 24 * 3_600_000;

/** A request larger than a whole cache would wait for ever. */
function checkFits(workload: Workload, { timing, cacheBlocks, speed }: Scenario): void {
  const days = workload.requests.at(-1)!.arrivalMs / speed / DAY_MS;
  if (days > MAX_DAYS) {
    throw new WarmpathError(
      'usage_invalid',
      `${workload.name} at --speed ${speed} lasts ${Math.ceil(days)} days, limit ${MAX_DAYS}: do its timestamps begin at 0?`,
    );
  }
  if (timing.holds === 'prefill') return;
  const most = (cacheBlocks - 1) * timing.blockTokens;
  const tooLong = workload.requests.find(({ promptTokens, outputTokens }) => promptTokens + outputTokens > most);
  if (tooLong === undefined) return;
  const { index, promptTokens, outputTokens } = tooLong;
  throw new WarmpathError(
    'usage_invalid',
    `request ${index + 1} of ${workload.name} has ${promptTokens} + ${outputTokens} tokens, --cache-blocks leaves room for ${most}`,
  );
}

function jsonLine(policy: string, workload: Workload, scenario: Scenario, summary: Summary, pooled: number): object {
  const { hitRate, ttftMs, e2eMs, requestsPerEngine, requests, ...more } = summary;
  return {
    policy,
    trace: workload.name,
    timing: scenario.timing.name,
    engines: scenario.engineSpeeds.length,
    speed: scenario.speed,
    cacheBlocks: (scenario.cacheBlocks * scenario.timing.blockTokens) / TRACE_BLOCK_TOKENS,
    requests,
    hitRate: round(hitRate, 5),
    pooledLruHitRate: round(pooled, 5),
    ttftMs: rounded(ttftMs),
    e2eMs: rounded(e2eMs),
    requestsPerEngine,
    readsFuture: policy === ORACLE_POLICY,
    imbalance: round(more.imbalance, 4),
    preemptions: more.preemptions,
    unanswered: more.unanswered,
    hitRateTimeline: more.hitRateTimeline.map((rate) => round(rate, 4)),
    ttftMsTimeline: more.ttftMsTimeline.map((ms) => round(ms, 1)),
  };
}

function rounded<T extends Readonly<Record<string, number>>>(values: T): T {
  return Object.fromEntries(Object.entries(values).map(([name, ms]) => [name, round(ms, 1)])) as T;
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}

function describe(workload: Workload, scenario: Scenario): string {
  const { engineSpeeds, speed, cacheBlocks, timing } = scenario;
  const blocks = (cacheBlocks * timing.blockTokens) / TRACE_BLOCK_TOKENS;
  return `${workload.name}: ${workload.requests.length} requests, speed ${speed}, ${engineSpeeds.length} engines, caches of ${blocks} blocks, ${timing.name} timing`;
}

function tableLines(title: string, rows: readonly { policy: string; summary: Summary }[], pooled: number): string[] {
  const header = ['policy', 'hit rate', 'TTFT mean', 'p50', 'p90', 'p99', 'E2E mean', 'imbalance'];
  const cells = rows.map(({ policy, summary: { hitRate, ttftMs, e2eMs, imbalance } }) => [
    policy === ORACLE_POLICY ? `${policy} (reads the future)` : policy,
    `${(100 * hitRate).toFixed(1)} %`,
    ...[ttftMs.mean, ttftMs.p50, ttftMs.p90, ttftMs.p99, e2eMs.mean].map((ms) => `${ms.toFixed(0)} ms`),
    imbalance.toFixed(2),
  ]);
  const widths = header.map((name, column) => Math.max(name.length, ...cells.map((row) => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  ');
  return [title, `one pooled LRU cache: ${(100 * pooled).toFixed(1)} %`, '', line(header), ...cells.map(line)];
}

function readArguments(args: readonly string[]): Plan | 'help' {
  const { values, positionals } = parseOptions({
    args: [...args],
    allowPositionals: true,
    options: {
      help: { type: 'boolean', short: 'h' },
      policies: { type: 'string' },
      workload: { type: 'string' },
      requests: { type: 'string', default: '4000' },
      seed: { type: 'string', default: '1' },
      engines: { type: 'string', default: '8' },
      'engine-speeds': { type: 'string' },
      speed: { type: 'string', default: '1' },
      timing: { type: 'string', default: 'simple' },
      'cache-blocks': { type: 'string' },
      'prefill-rate': { type: 'string' },
      'event-delay-ms': { type: 'string', default: '0' },
      'event-loss': { type: 'string', default: '0' },
      crash: { type: 'string', multiple: true, default: [] },
      'scale-out': { type: 'string', multiple: true, default: [] },
      replicas: { type: 'string', default: '1' },
      standby: { type: 'boolean', default: false },
      'router-death': { type: 'string', multiple: true, default: [] },
      svg: { type: 'string' },
      json: { type: 'boolean', default: false },
    },
  });
  if (values.help === true) return 'help';
  const timingName = oneOf('--timing', values.timing, TIMING_NAMES);
  if (timingName === 'polynomial' && values['prefill-rate'] !== undefined) {
    throw new Error('--prefill-rate has no effect with --timing polynomial, which brings its own');
  }
  const engineSpeeds =
    values['engine-speeds'] === undefined
      ? Array.from({ length: integer('--engines', values.engines, 1, 1000) }, () => 1)
      : values['engine-speeds'].split(',').map((speed) => number('--engine-speeds', speed, 0.001, 1000));
  const prefillRate = number('--prefill-rate', values['prefill-rate'] ?? '8000', 1, 1e9);
  return {
    source: sourceOf(positionals, values.workload),
    nRequests: integer('--requests', values.requests, 1, 10_000_000),
    policies: policiesOf(values.policies),
    scenario: {
      ...engineModel(
        timingName,
        prefillRate,
        integer('--cache-blocks', values['cache-blocks'] ?? defaultBlocks(timingName), 1, 10_000_000),
      ),
      engineSpeeds,
      speed: positive('--speed', values.speed),
      eventDelayMs: number('--event-delay-ms', values['event-delay-ms'], 0, 3_600_000),
      eventLoss: number('--event-loss', values['event-loss'], 0, 1),
      ...fleetFaults(values.crash, values['scale-out'], engineSpeeds.length),
      ...routers(integer('--replicas', values.replicas, 1, 64), values.standby, values['router-death']),
      seed: integer('--seed', values.seed, 0, 2 ** 31),
    },
    svgFile: values.svg ?? null,
    output: values.json ? 'json' : 'table',
  };
}

function sourceOf(positionals: readonly string[], workload: string | undefined): Plan['source'] {
  if (positionals.length > 1) throw new Error(`got ${positionals.length} traces, expected one`);
  const file = positionals[0];
  if (file !== undefined && workload !== undefined) throw new Error('expected either a trace or --workload, got both');
  if (file !== undefined) return { kind: 'trace', file };
  if (workload === undefined) throw new Error('expected a trace file or --workload NAME; --help says more');
  return { kind: 'workload', name: oneOf('--workload', workload, WORKLOAD_NAMES) };
}

function policiesOf(list: string | undefined): string[] {
  const known = Object.keys(POLICIES);
  if (list === undefined) return known;
  const names = [...new Set(list.split(',').map((name) => name.trim()))].filter((name) => name !== '');
  if (names.length === 0) throw new Error(`--policies is empty, expected some of ${known.join(', ')}`);
  return names.map((name) => {
    if (!Object.hasOwn(POLICIES, name))
      throw new Error(`unknown policy "${name}", expected some of ${known.join(', ')}`);
    return name;
  });
}

function defaultBlocks(timing: TimingName): string {
  return timing === 'polynomial' ? '2048' : '2000';
}

function engineModel(name: TimingName, prefillRate: number, blocks: number): Pick<Scenario, 'timing' | 'cacheBlocks'> {
  if (name === 'simple') {
    return { timing: simpleTiming(prefillRate, TRACE_BLOCK_TOKENS), cacheBlocks: blocks };
  }
  const cacheBlocks = (blocks * TRACE_BLOCK_TOKENS) / polynomialTiming.blockTokens;
  return { timing: polynomialTiming, cacheBlocks };
}

function crash(text: string, nEngines: number): Crash {
  const match = /^(\d+)@(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?$/.exec(text);
  if (!match) throw new Error(`--crash must be ENGINE@SECOND or ENGINE@SECOND-SECOND, got "${text}"`);
  const engine = Number(match[1]);
  if (engine >= nEngines) throw new Error(`--crash names engine ${engine}, expected 0 to ${nEngines - 1}`);
  const restartAtMs = match[3] === undefined ? null : 1000 * Number(match[3]);
  if (restartAtMs !== null && restartAtMs <= 1000 * Number(match[2])) {
    throw new Error(`--crash must come back after it goes, got "${text}"`);
  }
  return { engine, atMs: 1000 * Number(match[2]), restartAtMs };
}

/** A request always has an engine to go to. */
function fleetFaults(
  crashTexts: readonly string[],
  scaleOutTexts: readonly string[],
  nEngines: number,
): Pick<Scenario, 'crashes' | 'scaleOuts'> {
  const backAtMs = new Map<number, number>();
  const crashes = crashTexts.map((text) => {
    const one = crash(text, nEngines);
    if (one.atMs < (backAtMs.get(one.engine) ?? 0)) {
      throw new Error(`--crash of an engine must be in order, each after it is back, got "${text}"`);
    }
    backAtMs.set(one.engine, one.restartAtMs ?? Infinity);
    return one;
  });
  const scaleOuts = scaleOutTexts.map(scaleOut);
  // In the order in which a replay applies what happens at the same moment.
  const changes = crashes.flatMap(({ atMs, restartAtMs }) => [
    { atMs, engines: -1 },
    ...(restartAtMs === null ? [] : [{ atMs: restartAtMs, engines: 1 }]),
  ]);
  changes.push(...scaleOuts);
  let nAlive = nEngines;
  for (const { atMs, engines } of changes.sort((a, b) => a.atMs - b.atMs)) {
    nAlive += engines;
    if (nAlive <= 0) throw new Error(`--crash must leave an engine, got none from second ${atMs / 1000} on`);
  }
  return { crashes, scaleOuts };
}

/** What Envoy needs to see it with the health checks of `envoy/`. */
const UNNOTICED_MS = 3000;

/** While the first router is away there is another one to ask. */
function routers(
  replicas: number,
  standby: boolean,
  deathTexts: readonly string[],
): Pick<Scenario, 'replicas' | 'deciding' | 'routerDeaths'> {
  if (replicas === 1 && (standby || deathTexts.length > 0)) {
    throw new Error(
      `${standby ? '--standby' : '--router-death'} needs another router: expected --replicas 2 or more, got 1`,
    );
  }
  return { replicas, deciding: standby ? 'first' : 'all', routerDeaths: routerDeaths(deathTexts) };
}

function routerDeaths(texts: readonly string[]): RouterDeath[] {
  let freeFromMs = 0;
  return texts.map((text) => {
    const match = /^(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?$/.exec(text);
    if (!match) throw new Error(`--router-death must be SECOND or SECOND-SECOND, got "${text}"`);
    const atMs = 1000 * Number(match[1]);
    const backAtMs = match[2] === undefined ? null : 1000 * Number(match[2]);
    if (atMs < freeFromMs) {
      throw new Error(`--router-death must be in order, each after the router is back, got "${text}"`);
    }
    freeFromMs = backAtMs ?? Infinity;
    if (freeFromMs < atMs + UNNOTICED_MS) {
      throw new Error(`--router-death must last at least ${UNNOTICED_MS / 1000} s, until it is noticed, got "${text}"`);
    }
    return { atMs, unnoticedMs: UNNOTICED_MS, backAtMs };
  });
}

function scaleOut(text: string): ScaleOut {
  const match = /^(\d+)@(\d+(?:\.\d+)?)$/.exec(text);
  if (!match) throw new Error(`--scale-out must be ENGINES@SECOND, got "${text}"`);
  return { engines: integer('--scale-out ENGINES', match[1]!, 1, 1000), atMs: 1000 * Number(match[2]) };
}
