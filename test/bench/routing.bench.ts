/**
 * The own routing beside the best peer: `node test/bench/routing.bench.ts TRACE [--part cells|polynomial|scenarios]`.
 * TRACE is a Mooncake trace; the speeds are those at which the public conversation trace loads eight engines lightly, fully
 * and beyond. `cells` (default) is loads × caches × fleets; `polynomial` the rows of the check table in docs/design.md;
 * `scenarios` what goes wrong in a fleet, and the seeded workloads. The last column says whether the target is reached.
 */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { OWN_POLICY, PEER_POLICIES, POLICIES } from '../../src/replay/policies/policies.ts';
import type { CreatePolicy } from '../../src/replay/policies/policy.ts';
import { replay, type Scenario } from '../../src/replay/replay.ts';
import { pooledLruHitRate, summarize, TIMELINE_PARTS, type Summary } from '../../src/replay/summary.ts';
import { syntheticWorkload, WORKLOAD_NAMES } from '../../src/replay/synthetic-workloads.ts';
import { POLYNOMIAL_CACHE_BLOCKS, polynomialTiming, simpleTiming } from '../../src/replay/timing.ts';
import { readMooncakeTrace, type Workload } from '../../src/replay/workload.ts';
import { informedRouters } from './informed-routers.ts';

type Cell = { readonly engines: number; readonly speed: number; readonly cacheBlocks: number };

const ENGINE_COUNTS = [8, 4, 32];
const CACHE_BLOCKS = [500, 2000, 8000];
const SPEEDS_OF_EIGHT = [0.5, 1, 1.5, 2, 3];
const PREFILL_RATE = 8000;
/** From here on more comes than peers can serve: the own routing must be well ahead. */
const SATURATED_MS = 20_000;
const TIE = 1.02;
/** Engines, speed, and the best mean TTFT and E2E (ms) of a tuned setting in an independent simulator. */
const POLYNOMIAL_ROWS = [
  [4, 1, 402, 3831],
  [8, 1, null, null],
  [8, 2, 251, 3410],
  [8, 4, 282, 7221],
  [8, 6, 386, 19_862],
  [16, 4, 200, 3182],
] as const;
/** Speeds where engines are busy two fifths and four fifths of the time. */
const SCENARIO_SPEEDS = [1, 2];
/**
 * Near saturation one other choice early on moves the mean of the last quarter by 6 % (standard deviation, with whatever is
 * compared). So what is compared with itself is the mean over runs that begin with a later request each.
 */
const STARTS = [0, 3, 7, 12, 20, 31, 45, 60, 80, 100, 125, 150];
const STARTS_OF_REPLICAS = 3;
/** Of what one start moves by more than it is from its limit: the hit rate of the smallest caches by half a per cent. */
const FEW_STARTS = 6;
/** What Envoy needs to see that a router is gone, with the health checks of `envoy/`. */
const UNNOTICED_MS = 3000;
const APPROXIMATE_PEERS = PEER_POLICIES.filter((policy) => policy !== 'dynamo');
const PARTS = ['cells', 'polynomial', 'scenarios'] as const;

const [file, flag, name = 'cells'] = process.argv.slice(2);
const part = PARTS.find((word) => word === name);
if (file === undefined || part === undefined || (flag !== undefined && flag !== '--part')) {
  process.stderr.write(`usage: node test/bench/routing.bench.ts TRACE [--part ${PARTS.join('|')}]\n`);
  process.exit(2);
}
const workload = await readMooncakeTrace(file, createInterface({ input: createReadStream(file) }));
if (part === 'polynomial') polynomialTable(workload);
else if (part === 'scenarios') scenarioTable(workload);
else simpleTable(workload);

function simpleTable(trace: Workload): void {
  print(
    'engines  cache  speed | best peer: mean      p90 | own: mean      p90 | own ÷ peer: mean   p90 | hit ÷ pooled |',
  );
  for (const engines of ENGINE_COUNTS) {
    for (const cacheBlocks of CACHE_BLOCKS) {
      for (const speed of SPEEDS_OF_EIGHT) {
        const cell = { engines, cacheBlocks, speed: (speed * engines) / 8 };
        const own = run(trace, OWN_POLICY, cell, 'simple');
        const peers = PEER_POLICIES.map((policy) => run(trace, policy, cell, 'simple'));
        const mean = Math.min(...peers.map(({ ttftMs }) => ttftMs.mean));
        const p90 = Math.min(...peers.map(({ ttftMs }) => ttftMs.p90));
        const nStarts = cacheBlocks === CACHE_BLOCKS[0] ? FEW_STARTS : 1;
        const hits = STARTS.slice(0, nStarts).map((first) => {
          const start = beginningWith(trace, first);
          const { hitRate } = first === 0 ? own : run(start, OWN_POLICY, cell, 'simple');
          return (
            hitRate / pooledLruHitRate(start, simpleTiming(PREFILL_RATE, trace.blockTokens), engines * cacheBlocks)
          );
        });
        const hitsOfPooled = sum(hits) / nStarts;
        const most = mean > SATURATED_MS ? 0.8 : TIE;
        const reached = own.ttftMs.mean <= most * mean && own.ttftMs.p90 <= TIE * p90 && hitsOfPooled >= 0.98 - 5e-4;
        print(
          `${pad(engines, 7)} ${pad(cacheBlocks, 6)} ${pad(cell.speed, 6)} | ${pad(mean, 15)} ${pad(p90, 8)} | ` +
            `${pad(own.ttftMs.mean, 9)} ${pad(own.ttftMs.p90, 8)} | ${ratio(own.ttftMs.mean / mean, 16)} ` +
            `${ratio(own.ttftMs.p90 / p90, 5)} | ${hitsOfPooled.toFixed(3).padStart(12)} | ${verdict(reached)}`,
        );
      }
    }
  }
}

function polynomialTable(trace: Workload): void {
  print(
    'engines  speed  policy                reuse %  TTFT mean      p95  E2E mean | ÷ tuned: TTFT   E2E | over starts: TTFT E2E',
  );
  for (const [engines, speed, tunedTtftMs, tunedE2eMs] of POLYNOMIAL_ROWS) {
    const cell = { engines, speed, cacheBlocks: POLYNOMIAL_CACHE_BLOCKS };
    for (const policy of ['round-robin', 'dynamo', OWN_POLICY]) {
      const summary = run(trace, policy, cell, 'polynomial');
      const { hitRate, ttftMs, e2eMs } = summary;
      print(
        `${pad(engines, 7)} ${pad(speed, 6)}  ${policy.padEnd(20)} ${(100 * hitRate).toFixed(1).padStart(8)} ` +
          `${pad(ttftMs.mean, 10)} ${pad(ttftMs.p95, 8)} ${pad(e2eMs.mean, 9)} | ` +
          (policy !== OWN_POLICY || tunedTtftMs === null
            ? ''
            : besideTuned(summary, tunedTtftMs, tunedE2eMs, cell, trace)),
      );
    }
  }
}

function besideTuned(own: Summary, tunedTtftMs: number, tunedE2eMs: number, cell: Cell, trace: Workload): string {
  const later = STARTS.slice(1, FEW_STARTS).map((first) =>
    run(beginningWith(trace, first), OWN_POLICY, cell, 'polynomial'),
  );
  const ratios = (runs: readonly Summary[]): string => {
    const ttft = sum(runs.map(({ ttftMs }) => ttftMs.mean / tunedTtftMs)) / runs.length;
    const e2e = sum(runs.map(({ e2eMs }) => e2eMs.mean / tunedE2eMs)) / runs.length;
    return `${ttft.toFixed(3).padStart(13)} ${e2e.toFixed(3)}`;
  };
  const reached = own.ttftMs.mean <= tunedTtftMs && own.e2eMs.mean <= tunedE2eMs;
  return `${ratios([own])} | ${ratios([own, ...later])} | ${verdict(reached)}`;
}

function scenarioTable(trace: Workload): void {
  print('speed  scenario                                            measured  limit |');
  const cell = (speed: number): Cell => ({ engines: 8, speed, cacheBlocks: 2000 });
  const mean = ({ ttftMs }: Summary): number => ttftMs.mean;
  const ttft = ({ ttftMsTimeline }: Summary): readonly number[] => ttftMsTimeline;
  const hits = ({ hitRateTimeline }: Summary): readonly number[] => hitRateTimeline;
  const meanOf = (runs: readonly Summary[]): number => sum(runs.map(mean));
  const starts = STARTS.map((first) => beginningWith(trace, first));
  const fewStarts = starts.slice(0, STARTS_OF_REPLICAS);
  const evenStarts = fewStarts.map(spreadEvenly);
  for (const speed of SCENARIO_SPEEDS) {
    const row = (what: string, measured: number, limit: number | null): void =>
      print(
        `${pad(speed, 5)}  ${what.padEnd(50)} ${measured.toFixed(3).padStart(9)} ` +
          (limit === null ? '     – |' : `${limit.toFixed(2).padStart(6)} | ${verdict(measured <= limit)}`),
      );
    const each = (of: readonly Workload[], changes: Partial<Scenario>): Summary[] =>
      of.map((start) => run(start, OWN_POLICY, cell(speed), 'simple', changes));
    const own = (changes: Partial<Scenario>): Summary[] => each(starts, changes);
    const bestOf = (
      peers: readonly string[],
      changes: Partial<Scenario>,
      value: (summary: Summary) => number,
    ): number => Math.min(...peers.map((peer) => value(run(trace, peer, cell(speed), 'simple', changes))));
    const calm = own({});

    const slow = { engineSpeeds: [1, 1, 1, 1, 1, 1, 1, 0.5] };
    const withSlow = run(trace, OWN_POLICY, cell(speed), 'simple', slow);
    const computed = withSlow.computedTokensPerEngine;
    row('one engine half as fast: tokens it computes ÷ its share', computed[7]! / (sum(computed) * (0.5 / 7.5)), 1);
    row(
      'one engine half as fast: p99 ÷ best peer',
      withSlow.ttftMs.p99 / bestOf(PEER_POLICIES, slow, ({ ttftMs }) => ttftMs.p99),
      1,
    );
    row('20 % of event batches lost: mean ÷ perfect events', meanOf(own({ eventLoss: 0.2 })) / meanOf(calm), 1.05);
    row('events 2 s late: mean ÷ perfect events', meanOf(own({ eventDelayMs: 2000 })) / meanOf(calm), 1.05);
    const none = { eventLoss: 1 };
    row(
      'no events: mean ÷ best approximate peer',
      mean(run(trace, OWN_POLICY, cell(speed), 'simple', none)) / bestOf(APPROXIMATE_PEERS, none, mean),
      1.03,
    );

    const halfMs = (trace.requests.at(-1)!.arrivalMs / speed) * 0.5;
    const scaled = own({ scaleOuts: [{ engines: 4, atMs: halfMs }] });
    row('8 to 12 engines half-way: mean at the end ÷ without', atTheEnd(scaled, calm, ttft), 1);
    row('8 to 12 engines half-way: hits without ÷ hits at the end', atTheEnd(calm, scaled, hits), 1.02);
    const crashed = own({ crashes: [{ engine: 3, atMs: halfMs, restartAtMs: halfMs + 60_000 }] });
    row('crash, back after a minute: mean at the end ÷ without', atTheEnd(crashed, calm, ttft), 1.05);
    row('crash: hits without ÷ hits at the end', atTheEnd(calm, crashed, hits), 1.02);
    for (const [replicas, lasts, backAtMs] of [
      [2, 'for good', null],
      [2, 'for a minute', halfMs + 60_000],
      [3, 'for a minute', halfMs + 60_000],
      [4, 'for a minute', halfMs + 60_000],
    ] as const) {
      const routerDeaths = [{ atMs: halfMs, unnoticedMs: UNNOTICED_MS, backAtMs }];
      const death = own({ replicas, deciding: 'first', routerDeaths });
      row(`${replicas} routers, one decides, away ${lasts}: mean ÷ one`, meanOf(death) / meanOf(calm), 1.05);
      row(`  at the end ÷ one`, atTheEnd(death, calm, ttft), 1.05);
      row(`  in the twelfth of the time behind it ÷ one`, between(12, 14, death, calm, ttft), null);
    }
    const one = meanOf(each(fewStarts, {}));
    const evenlyOne = meanOf(each(evenStarts, {}));
    for (const replicas of [2, 3, 4]) {
      const several = meanOf(each(fewStarts, { replicas }));
      const apart = { replicas, deciding: 'first' } as const;
      row(`${replicas} routers, one decides: mean ÷ one router`, meanOf(each(fewStarts, apart)) / one, 1.05);
      row(`${replicas} routers, all decide: mean ÷ one router`, several / one, 1.05);
      const informed = fewStarts.map((start) => run(start, informedRouters(), cell(speed), 'simple', { replicas }));
      row(`  that know all but this very moment`, meanOf(informed) / one, 1.05);
      row(`  requests not at the same moment`, meanOf(each(evenStarts, { replicas })) / evenlyOne, 1.05);
    }
  }
  for (const workloadName of WORKLOAD_NAMES) {
    for (const seed of [1, 2]) {
      for (const speed of SCENARIO_SPEEDS) {
        const synthetic = syntheticWorkload(workloadName, 4000, seed);
        const of = (policy: string): number => mean(run(synthetic, policy, cell(speed), 'simple'));
        const measured = of(OWN_POLICY) / Math.min(...PEER_POLICIES.map(of));
        print(
          `${pad(speed, 5)}  ${`${workloadName}, seed ${seed}: mean ÷ best peer`.padEnd(50)} ` +
            `${measured.toFixed(3).padStart(9)} ${TIE.toFixed(2).padStart(6)} | ${verdict(measured <= TIE)}`,
        );
      }
    }
  }
}

/** What comes at one moment spread over the time until the next: the trace's clock has steps of seconds. */
function spreadEvenly(trace: Workload): Workload {
  const counts = new Map<number, number>();
  for (const { arrivalMs } of trace.requests) counts.set(arrivalMs, (counts.get(arrivalMs) ?? 0) + 1);
  const moments = [...counts.keys()];
  const nextOf = new Map(moments.map((atMs, i) => [atMs, moments[i + 1] ?? atMs]));
  const nSeen = new Map<number, number>();
  const requests = trace.requests.map((request) => {
    const { arrivalMs: atMs } = request;
    const n = nSeen.get(atMs) ?? 0;
    nSeen.set(atMs, n + 1);
    return { ...request, arrivalMs: atMs + (n * (nextOf.get(atMs)! - atMs)) / counts.get(atMs)! };
  });
  return { ...trace, requests };
}

function beginningWith(trace: Workload, first: number): Workload {
  return { ...trace, requests: trace.requests.slice(first).map((request, index) => ({ ...request, index })) };
}

/** Over the last quarter of the time, and all runs. */
function atTheEnd(
  runs: readonly Summary[],
  others: readonly Summary[],
  timelineOf: (summary: Summary) => readonly number[],
): number {
  return between((3 * TIMELINE_PARTS) / 4, TIMELINE_PARTS, runs, others, timelineOf);
}

/** Over some of the equal parts of the time, and all runs. */
function between(
  firstPart: number,
  endPart: number,
  runs: readonly Summary[],
  others: readonly Summary[],
  timelineOf: (summary: Summary) => readonly number[],
): number {
  const total = (summaries: readonly Summary[]): number =>
    sum(summaries.map((summary) => sum(timelineOf(summary).slice(firstPart, endPart))));
  return total(runs) / total(others);
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

function verdict(reached: boolean): string {
  return reached ? 'yes' : 'NO';
}

function run(
  trace: Workload,
  policy: string | CreatePolicy,
  cell: Cell,
  timing: 'simple' | 'polynomial',
  changes: Partial<Scenario> = {},
): Summary {
  const scenario: Scenario = {
    timing: timing === 'simple' ? simpleTiming(PREFILL_RATE, trace.blockTokens) : polynomialTiming,
    engineSpeeds: Array.from({ length: cell.engines }, () => 1),
    speed: cell.speed,
    cacheBlocks: cell.cacheBlocks,
    eventDelayMs: 0,
    eventLoss: 0,
    crashes: [],
    scaleOuts: [],
    replicas: 1,
    deciding: 'all',
    routerDeaths: [],
    seed: 1,
    ...changes,
  };
  return summarize(replay(trace, typeof policy === 'string' ? POLICIES[policy]! : policy, scenario));
}

function pad(value: number, width: number): string {
  return String(Math.round(value * 100) / 100 >= 100 ? Math.round(value) : Math.round(value * 100) / 100).padStart(
    width,
  );
}

function ratio(value: number, width: number): string {
  return value.toFixed(2).padStart(width);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}
