/** The ingest thread with a fault to be switched on from outside. */
import { workerData } from 'node:worker_threads';
import '../../src/kvevents/ingest-worker.ts';
import { FREEZE, NO_FAULT, THROW } from './thread-faults.ts';

const { fault } = workerData as { fault?: SharedArrayBuffer };
if (fault !== undefined) {
  const word = new Int32Array(fault);
  setInterval(() => {
    Atomics.wait(word, 0, FREEZE);
    if (Atomics.compareExchange(word, 0, THROW, NO_FAULT) === THROW) throw new Error('fault of a test');
  }, 5).unref();
}
