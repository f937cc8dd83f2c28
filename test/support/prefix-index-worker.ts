/** A thread that writes: every owner's chain grows and shrinks, and is retired now and then, until told to stop. */
import { parentPort, workerData } from 'node:worker_threads';
import { NO_POSITION, openPrefixIndexWriter, type PrefixIndexMemory } from '../../src/prefix/prefix-index.ts';
import { createRandom } from './kv-events.ts';

export type WriterOrder = {
  memory: PrefixIndexMemory;
  /** [0] = 1 ends the thread; [1] counts operations. */
  control: Int32Array;
  /** Keys of the chains, one per owner; all share their first part. */
  chains: Uint32Array[];
};

const { memory, control, chains } = workerData as WriterOrder;
const writer = openPrefixIndexWriter(memory);
const random = createRandom(7);
const maxBlocks = chains[0]!.length / 2;
const positions = chains.map(() => new Uint32Array(maxBlocks));
const scratch = new Uint32Array(maxBlocks);
const wasHeld = new Uint8Array(maxBlocks);
const held = chains.map(() => 0);
const owners = chains.map((_, slot) => writer.openOwner(slot));
while (Atomics.load(control, 0) === 0) {
  const at = random(chains.length);
  const mine = positions[at]!;
  const n = held[at]!;
  const chosen = random(40);
  if (chosen === 0) {
    writer.retireOwner(owners[at]!);
    owners[at] = writer.openOwner(at);
    held[at] = 0;
  } else if (chosen < 24) {
    const more = Math.min(1 + random(40), maxBlocks - n);
    const parent = n === 0 ? NO_POSITION : (mine[n - 1]! as typeof NO_POSITION);
    const keys = chains[at]!.subarray(2 * n, 2 * (n + more));
    held[at] = n + writer.store(owners[at]!, 0, parent, keys, more, scratch, wasHeld);
    mine.set(scratch.subarray(0, held[at]! - n), n);
  } else {
    const less = Math.min(random(40), n);
    writer.remove(owners[at]!, 0, mine.subarray(n - less, n).toReversed(), less);
    held[at] = n - less;
  }
  writer.sweep(64);
  Atomics.add(control, 1, 1);
}
parentPort!.postMessage(held);
