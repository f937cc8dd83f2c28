/**
 * A thread with a large index in it: fills it, changes it at a given pace while another thread reads, and times its own
 * longest stretch without a pause. `kv.bench.ts` starts it.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { createIndexLoad, type IndexLoad } from './kv-index-load.ts';
import { threadCpuUs } from './kv-measure.ts';
import { CHURN, END, REST, type IndexThreadOrder, type IndexThreadReport } from './kv-orders.ts';
import { createWorkload } from './kv-workload.ts';

/** What one tick of an idle ingest thread takes out. */
const TIDY_BLOCKS = 512;

const order = workerData as IndexThreadOrder;
const post = (report: IndexThreadReport): void => parentPort!.postMessage(report);
const workload = createWorkload(order.nEngines, order.nEntries, order.seed);

/** CPU time of one call, in µs: read in steps of up to 4 ms, so never more than the wall time. */
function timed(call: () => void): number {
  const startCpuUs = threadCpuUs();
  const startMs = performance.now();
  call();
  const tookUs = (performance.now() - startMs) * 1000;
  return tookUs < 200 ? tookUs : Math.min(tookUs, threadCpuUs() - startCpuUs);
}

/**
 * Takes so many steps and keeps for each the shortest time it ever took: the work is the same in every round, but who else
 * takes the core is not.
 * @returns the longest step, in µs
 */
function longestStepUs(shortestUs: number[], nSteps: number, step: (i: number) => void): number {
  let longest = 0;
  for (let i = 0; i < nSteps; i++) {
    shortestUs[i] = Math.min(
      shortestUs[i] ?? Infinity,
      timed(() => step(i)),
    );
    longest = Math.max(longest, shortestUs[i]!);
  }
  return longest;
}

const storeUs: number[] = [];
const removalUs: number[] = [];

function fill(): { load: IndexLoad; longestUs: number } {
  const load = createIndexLoad(workload, 'shared');
  const { stores } = workload;
  return { load, longestUs: longestStepUs(storeUs, stores.length, (i) => load.store(stores[i]!)) };
}

/** The first step takes an endpoint out of sight, the others take out of memory what it held. */
function removeEndpoint(load: IndexLoad): number {
  const nSteps = 1 + Math.ceil(load.stats().nBlocks / order.nEngines / TIDY_BLOCKS) * 4;
  return longestStepUs(removalUs, nSteps, (i) => {
    if (i === 0) load.closeSource(0);
    else load.tidy(TIDY_BLOCKS);
  });
}

function churn(): void {
  const startMs = performance.now();
  let nDone = 0;
  for (let i = 0; Atomics.load(order.control, 0) === CHURN;) {
    const nDue = ((performance.now() - startMs) * order.opsPerSecond) / 1000;
    while (nDone < nDue) nDone += load.churn((i++ * 7919) % workload.prompts.length);
    Atomics.store(order.control, 1, nDone);
    Atomics.wait(order.control, 0, CHURN, 0.2);
  }
}

removeEndpoint(fill().load);
const { load, longestUs } = fill();
post({ kind: 'filled', memory: load.memory, longestUs });
for (;;) {
  Atomics.wait(order.control, 0, REST);
  const what = Atomics.load(order.control, 0);
  if (what === END) break;
  if (what === CHURN) churn();
  else post({ kind: 'removed', longestUs: removeEndpoint(load) });
  // Unless the next order is there already.
  Atomics.compareExchange(order.control, 0, what, REST);
}
