/**
 * Publishers in a process of their own, whose CPU must not count: many PUB sockets that send on time. Told over IPC what to
 * send; answers with when the marked batches were handed to their sockets. `kv-ingest-bench.ts` starts it.
 */
import { Publisher } from 'zeromq';
import {
  DECODE_BLOCKS,
  FIRST_MARK,
  monotonicMs,
  PREFILL_BLOCKS,
  type PublishOrder,
  type PublishReport,
} from './kv-orders.ts';
import { packBatch, removedMap, storedMap } from './kv-payloads.ts';

const RING = 40;
const BLOCKS_PER_SOURCE = 1 << 16;
/** Batches of one source that can be sent round and round: what one stores, one half a round later removes. */
function ringOf(source: number, load: PublishOrder['load']): Buffer[] {
  const base = 1 + source * BLOCKS_PER_SOURCE;
  const small = (step: number): number => base + step * 4;
  const prefill = (step: number): number => base + step * PREFILL_BLOCKS;
  // Sixteen sequences, each a chain of one block per step.
  const decode = (step: number, sequence: number): number => base + RING * PREFILL_BLOCKS + sequence * RING + step;
  return Array.from({ length: RING }, (_, step) => {
    const old = (step + RING / 2) % RING;
    if (load === 'small') {
      return packBatch([storedMap(small(step), 4, null), ...[3, 2, 1, 0].map((i) => removedMap(small(old) + i))]);
    }
    const sequences = Array.from({ length: DECODE_BLOCKS }, (__, i) => i);
    const gone = [
      ...Array.from({ length: PREFILL_BLOCKS }, (__, i) => prefill(old) + PREFILL_BLOCKS - 1 - i),
      ...sequences.map((i) => decode(old, i)),
    ];
    return packBatch([
      ...gone.map((block) => removedMap(block)),
      storedMap(prefill(step), PREFILL_BLOCKS, null),
      ...sequences.map((i) => storedMap(decode(step, i), 1, step === 0 ? null : decode(step - 1, i))),
    ]);
  });
}

async function publish(
  publishers: readonly Publisher[],
  rings: readonly (readonly Buffer[])[],
  order: PublishOrder,
): Promise<PublishReport> {
  const seqs = publishers.map(() => 0);
  const sentMs: number[] = [];
  let nBatches = 0;
  let lateMs = 0;
  const startMs = monotonicMs();
  const nAll = order.batchesPerSecond * order.seconds;
  while (nBatches < nAll) {
    const nDue = Math.min(nAll, ((monotonicMs() - startMs) * order.batchesPerSecond) / 1000);
    while (nBatches < nDue) {
      const source = nBatches % publishers.length;
      const seq = seqs[source]!++;
      const frame = Buffer.alloc(8);
      frame.writeBigUInt64BE(BigInt(seq));
      const isMarked = order.markEvery > 0 && nBatches % order.markEvery === 0;
      const payload = isMarked
        ? packBatch([storedMap(FIRST_MARK + sentMs.length, 1, null)])
        : rings[source]![seq % RING]!;
      if (isMarked) sentMs.push(monotonicMs());
      await publishers[source]!.send(['kv@bench', frame, payload]);
      nBatches++;
    }
    lateMs = Math.max(lateMs, monotonicMs() - startMs - (nBatches * 1000) / order.batchesPerSecond);
    await new Promise((resolve) => setTimeout(resolve, 0.5));
  }
  return { sentMs, nBatches, lateMs };
}

async function run(): Promise<void> {
  const nSources = Number(process.argv[2]);
  const publishers: Publisher[] = [];
  for (let i = 0; i < nSources; i++) {
    const publisher = new Publisher({ sendHighWaterMark: 0, linger: 0 });
    await publisher.bind('tcp://127.0.0.1:*');
    publishers.push(publisher);
  }
  const rings = publishers.map((_, source) => ringOf(source, process.argv[3] as PublishOrder['load']));
  process.on('disconnect', () => {
    for (const publisher of publishers) publisher.close();
  });
  process.on('message', (order: PublishOrder) => {
    void publish(publishers, rings, order).then((report) => process.send!(report));
  });
  process.send!(publishers.map((publisher) => publisher.lastEndpoint));
}

await run();
