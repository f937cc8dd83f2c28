/**
 * The own routing beside the best peer, cell by cell: `node test/bench/routing.bench.ts TRACE [--timing polynomial]`.
 * TRACE is a Mooncake trace; its speeds are those at which the public conversation trace loads eight engines lightly,
 * fully and beyond. With --timing polynomial the rows are those of the check table in docs/design.md.
 */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { OWN_POLICY, PEER_POLICIES, POLICIES } from '../../src/replay/policies/policies.ts';
import { replay, type Scenario } from '../../src/replay/replay.ts';
import { pooledLruHitRate, summarize, type Summary } from '../../src/replay/summary.ts';
import { POLYNOMIAL_CACHE_BLOCKS, polynomialTiming, simpleTiming } from '../../src/replay/timing.ts';
import { readMooncakeTrace, type Workload } from '../../src/replay/workload.ts';

type Cell = { readonly engines: number; readonly speed: number; readonly cacheBlocks: number };

const ENGINE_COUNTS = [8, 4, 32];
const CACHE_BLOCKS = [500, 2000, 8000];
const SPEEDS_OF_EIGHT = [0.5, 1, 1.5, 2, 3];
const PREFILL_RATE = 8000;
const POLYNOMIAL_ROWS = [
  [4, 1],
  [8, 1],
  [8, 2],
  [8, 4],
  [8, 6],
  [16, 4],
] as const;

const [file, flag, name] = process.argv.slice(2);
if (file === undefined || (flag !== undefined && !(flag === '--timing' && name === 'polynomial'))) {
  process.stderr.write('usage: node test/bench/routing.bench.ts TRACE [--timing polynomial]\n');
  process.exit(2);
}
const workload = await readMooncakeTrace(file, createInterface({ input: createReadStream(file) }));
if (name === 'polynomial') polynomialTable(workload);
else simpleTable(workload);

function simpleTable(trace: Workload): void {
  print(
    'engines  cache  speed | best peer: mean      p90 | own: mean      p90 | own ÷ peer: mean   p90 | hit ÷ pooled',
  );
  for (const engines of ENGINE_COUNTS) {
    for (const cacheBlocks of CACHE_BLOCKS) {
      for (const speed of SPEEDS_OF_EIGHT) {
        const cell = { engines, cacheBlocks, speed: (speed * engines) / 8 };
        const own = run(trace, OWN_POLICY, cell, 'simple');
        const peers = PEER_POLICIES.map((policy) => run(trace, policy, cell, 'simple'));
        const mean = Math.min(...peers.map(({ ttftMs }) => ttftMs.mean));
        const p90 = Math.min(...peers.map(({ ttftMs }) => ttftMs.p90));
        const pooled = pooledLruHitRate(trace, simpleTiming(PREFILL_RATE, trace.blockTokens), engines * cacheBlocks);
        print(
          `${pad(engines, 7)} ${pad(cacheBlocks, 6)} ${pad(cell.speed, 6)} | ${pad(mean, 15)} ${pad(p90, 8)} | ` +
            `${pad(own.ttftMs.mean, 9)} ${pad(own.ttftMs.p90, 8)} | ${ratio(own.ttftMs.mean / mean, 16)} ` +
            `${ratio(own.ttftMs.p90 / p90, 5)} | ${ratio(own.hitRate / pooled, 12)}`,
        );
      }
    }
  }
}

function polynomialTable(trace: Workload): void {
  print('engines  speed  policy                reuse %  TTFT mean      p95  E2E mean');
  for (const [engines, speed] of POLYNOMIAL_ROWS) {
    for (const policy of ['round-robin', 'dynamo', OWN_POLICY]) {
      const { hitRate, ttftMs, e2eMs } = run(
        trace,
        policy,
        { engines, speed, cacheBlocks: POLYNOMIAL_CACHE_BLOCKS },
        'polynomial',
      );
      print(
        `${pad(engines, 7)} ${pad(speed, 6)}  ${policy.padEnd(20)} ${(100 * hitRate).toFixed(1).padStart(8)} ` +
          `${pad(ttftMs.mean, 10)} ${pad(ttftMs.p95, 8)} ${pad(e2eMs.mean, 9)}`,
      );
    }
  }
}

function run(trace: Workload, policy: string, cell: Cell, timing: 'simple' | 'polynomial'): Summary {
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
    seed: 1,
  };
  return summarize(replay(trace, POLICIES[policy]!, scenario));
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
