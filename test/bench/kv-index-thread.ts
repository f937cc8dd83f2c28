/**
 * A thread with a large index in it: fills it, changes it at a given pace while another thread reads, and times its own
 * longest stretch without a pause. `kv.bench.ts` starts it.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { createIndexLoad } from './kv-index-load.ts';
import { threadCpuUs } from './kv-measure.ts';
import { CHURN, END, REST, type IndexThreadOrder, type IndexThreadReport } from './kv-orders.ts';
import { createWorkload } from './kv-workload.ts';

/** What one tick of an idle ingest thread takes out. */
const TIDY_BLOCKS = 512;

const order = workerData as IndexThreadOrder;
const post = (report: IndexThreadReport): void => parentPort!.postMessage(report);
const workload = createWorkload(order.nEngines, order.nEntries, order.seed);
const load = createIndexLoad(workload, 'shared');

/** CPU time of one call, in µs: read coarsely, but no more than the wall time, which is more where others took the core. */
function timed(call: () => void): number {
  const startCpuUs = threadCpuUs();
  const startMs = performance.now();
  call();
  const tookUs = (performance.now() - startMs) * 1000;
  return tookUs < 200 ? tookUs : Math.min(tookUs, threadCpuUs() - startCpuUs);
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

function removeEndpoint(): void {
  const nBefore = load.stats().nBlocks;
  let longestUs = timed(() => load.closeSource(0));
  let isAnyLeft = true;
  while (isAnyLeft)
    longestUs = Math.max(
      longestUs,
      timed(() => (isAnyLeft = load.tidy(TIDY_BLOCKS))),
    );
  post({ kind: 'removed', longestUs, nEntries: nBefore - load.stats().nBlocks });
}

let longestUs = 0;
for (const stretch of workload.stores)
  longestUs = Math.max(
    longestUs,
    timed(() => load.store(stretch)),
  );
post({ kind: 'filled', memory: load.memory, longestUs });
for (;;) {
  Atomics.wait(order.control, 0, REST);
  const what = Atomics.load(order.control, 0);
  if (what === END) break;
  if (what === CHURN) churn();
  else removeEndpoint();
  // Unless the next order is there already.
  Atomics.compareExchange(order.control, 0, what, REST);
}
