/**
 * How much engines publish under real traffic: `node test/bench/kv-rate.bench.ts TRACE` replays a Mooncake trace over eight
 * engines as `warmpath replay` does (8,000 tokens/s each, caches of 2,000 × 512 tokens, Warmpath's own routing) and counts what
 * vLLM publishes: one batch at the end of every step that filled a block of 16 tokens, prompt's or answer's. A full cache
 * drops a block for every one it stores. The rates that kv.bench.ts publishes at come from here (kv-orders.ts).
 */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { OWN_POLICY, POLICIES } from '../../src/replay/policies/policies.ts';
import { replay } from '../../src/replay/replay.ts';
import { simpleTiming, type TimingModel } from '../../src/replay/timing.ts';
import { readMooncakeTrace, type Workload } from '../../src/replay/workload.ts';
import { BLOCK_SIZE } from './kv-payloads.ts';

const N_ENGINES = 8;
const PREFILL_RATE = 8000;
const CACHE_BLOCKS = 2000;
/** At ×2 eight engines have something to compute all the time; at ×3 more comes than they can serve. */
const SPEEDS = [1, 2, 3];
/** Tokens of a step: those of the timing model; vLLM's default for smaller GPUs, and for the largest. */
const STEP_TOKENS = [256, 2048, 8192];

const [file] = process.argv.slice(2);
if (file === undefined) {
  process.stderr.write('usage: node test/bench/kv-rate.bench.ts TRACE\n');
  process.exit(2);
}
const trace = await readMooncakeTrace(file, createInterface({ input: createReadStream(file) }));
process.stdout.write(
  '| speed | tokens in a step | busy | steps/s | batches/s | blocks stored/s | blocks in a batch |\n',
);
process.stdout.write('|---|---|---|---|---|---|---|\n');
for (const speed of SPEEDS) for (const stepTokens of STEP_TOKENS) process.stdout.write(rowOf(trace, speed, stepTokens));

/** Per engine and second, over the whole replay. */
function rowOf(workload: Workload, speed: number, stepTokens: number): string {
  let nSteps = 0;
  let nBatches = 0;
  let nDecoded = 0;
  const model = simpleTiming(PREFILL_RATE, workload.blockTokens);
  const timing: TimingModel = {
    ...model,
    maxPrefillTokens: stepTokens,
    passMs(nPrefill, nDecodes, contextTokens, capacityTokens) {
      nSteps++;
      nDecoded += nDecodes;
      // Each answer fills a block every sixteen steps.
      nBatches += nPrefill >= BLOCK_SIZE ? 1 : 1 - (1 - 1 / BLOCK_SIZE) ** nDecodes;
      return model.passMs(nPrefill, nDecodes, contextTokens, capacityTokens);
    },
  };
  const { computedTokensPerEngine, busyMsPerEngine, durationMs } = replay(workload, POLICIES[OWN_POLICY]!, {
    timing,
    engineSpeeds: Array.from({ length: N_ENGINES }, () => 1),
    speed,
    cacheBlocks: CACHE_BLOCKS,
    eventDelayMs: 0,
    eventLoss: 0,
    crashes: [],
    scaleOuts: [],
    replicas: 1,
    deciding: 'all',
    routerDeaths: [],
    seed: 1,
  });
  const engineSeconds = (N_ENGINES * durationMs) / 1000;
  const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);
  const nStored = (sum(computedTokensPerEngine) + nDecoded) / BLOCK_SIZE;
  const cells = [
    `×${speed}`,
    stepTokens,
    `${((100 * sum(busyMsPerEngine)) / 1000 / engineSeconds).toFixed(0)} %`,
    (nSteps / engineSeconds).toFixed(1),
    (nBatches / engineSeconds).toFixed(1),
    (nStored / engineSeconds).toFixed(0),
    (nStored / nBatches).toFixed(0),
  ];
  return `| ${cells.join(' | ')} |\n`;
}
