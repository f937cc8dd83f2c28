/**
 * Publishers in a process of their own, whose CPU must not count: many PUB sockets that send on time. Told over IPC what to
 * send; answers with when the marked batches were handed to their sockets. `kv-ingest-bench.ts` starts it.
 */
import { Publisher } from 'zeromq';
import { BATCHES, FIRST_MARK, monotonicMs, type Load, type PublishOrder, type PublishReport } from './kv-orders.ts';
import { BLOCK_SIZE, hashWords, packBatch, removedMap, storedMap, wireHash } from './kv-payloads.ts';

/** Numbers of blocks one engine uses; marks lie behind those of all. */
const BLOCKS_PER_SOURCE = 1 << 21;
/** Blocks of an answer before it is another one's turn. */
const ANSWER_BLOCKS = 40;
const FIRST_TEMPLATE_BLOCK = 1 << 30;
const TEMPLATE_TOKEN = 70_000;

/** A batch whose hashes, and the first token of every block, are written in place: packing each anew would take too long. */
type Template = { readonly bytes: Buffer; readonly hashesAt: readonly number[]; readonly tokensAt: readonly number[] };

/** Blocks of one step: a prompt's, then one of each answer. */
type Step = { readonly blocks: readonly number[]; readonly parents: readonly number[] };

function createSteps(load: Load) {
  const { prefillBlocks, decodeBlocks, residentBlocks } = BATCHES[load];
  const nBlocks = prefillBlocks + decodeBlocks;
  const nResident = Math.floor(residentBlocks / nBlocks);

  const stepOf = (source: number, step: number): Step => {
    const first = 1 + source * BLOCKS_PER_SOURCE + step * nBlocks;
    const blocks = Array.from({ length: nBlocks }, (_, i) => first + i);
    const parents = step % ANSWER_BLOCKS === 0 ? [] : blocks.slice(prefillBlocks).map((block) => block - nBlocks);
    return { blocks, parents };
  };

  /** Blocks are numbered in the order in which the events name them. */
  const templateOf = (removals: 'with removals' | 'stores only', answers: 'go on' | 'begin'): Template => {
    let next = FIRST_TEMPLATE_BLOCK;
    const gone = removals === 'with removals' ? Array.from({ length: nBlocks }, () => removedMap(next++)) : [];
    const prompt = storedMap(next, prefillBlocks, null);
    next += prefillBlocks;
    const stored = Array.from({ length: decodeBlocks }, () => {
      const parent = answers === 'go on' ? next++ : null;
      return storedMap(next++, 1, parent);
    });
    let token = TEMPLATE_TOKEN;
    for (const { token_ids: ids } of [prompt, ...stored] as { token_ids: number[] }[]) {
      for (let i = 0; i < ids.length; i += BLOCK_SIZE) ids[i] = token++;
    }
    const bytes = packBatch([...gone, prompt, ...stored]);
    const find = (sought: Buffer): number => {
      const at = bytes.indexOf(sought);
      if (at < 0) throw new Error('a template without what was packed into it');
      return at;
    };
    const hash = Buffer.alloc(8);
    const word = Buffer.alloc(5, 0xce);
    return {
      bytes,
      hashesAt: Array.from({ length: next - FIRST_TEMPLATE_BLOCK }, (_, i) => {
        hash.writeBigUInt64BE(wireHash(FIRST_TEMPLATE_BLOCK + i));
        return find(hash);
      }),
      tokensAt: Array.from({ length: nBlocks }, (_, i) => {
        word.writeUInt32BE(TEMPLATE_TOKEN + i, 1);
        return find(word) + 1;
      }),
    };
  };
  const templates = [
    [templateOf('stores only', 'begin'), templateOf('stores only', 'go on')],
    [templateOf('with removals', 'begin'), templateOf('with removals', 'go on')],
  ] as const;

  return {
    nResident,
    /** Stores the blocks of this step, and removes those of the one that is no longer resident. */
    batch(source: number, step: number): Buffer {
      const { blocks, parents } = stepOf(source, step);
      const old = step < nResident ? [] : stepOf(source, step - nResident).blocks;
      const gone = [...old.slice(0, prefillBlocks).reverse(), ...old.slice(prefillBlocks)];
      const answers = blocks
        .slice(prefillBlocks)
        .flatMap((block, i) => (parents.length > 0 ? [parents[i]!, block] : [block]));
      const named = [...gone, ...blocks.slice(0, prefillBlocks), ...answers];
      const { bytes, hashesAt, tokensAt } = templates[gone.length > 0 ? 1 : 0][parents.length > 0 ? 1 : 0];
      const batch = Buffer.from(bytes);
      named.forEach((block, i) => writeHash(batch, hashesAt[i]!, block));
      blocks.forEach((block, i) => batch.writeUInt32BE(0x10000 + (block & 0xfffffff), tokensAt[i]!));
      return batch;
    },
  };
}

function writeHash(batch: Buffer, at: number, block: number): void {
  const [high, low] = hashWords(block);
  batch.writeUInt32BE(high, at);
  batch.writeUInt32BE(low, at + 4);
}

type Fleet = {
  readonly sockets: readonly Publisher[];
  readonly steps: ReturnType<typeof createSteps>;
  readonly seqs: number[];
  /** Batches since the caches are full, over all orders. */
  nPublished: number;
};

async function send({ sockets, seqs }: Fleet, source: number, payload: Buffer): Promise<void> {
  const frame = Buffer.alloc(8);
  frame.writeBigUInt64BE(BigInt(seqs[source]!++));
  await sockets[source]!.send(['kv@bench', frame, payload]);
}

/** Until every engine's cache is full. */
async function fill(fleet: Fleet): Promise<void> {
  for (let step = 0; step < fleet.steps.nResident; step++) {
    for (let source = 0; source < fleet.sockets.length; source++) {
      await send(fleet, source, fleet.steps.batch(source, step));
    }
    if (step % 8 === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function publish(fleet: Fleet, order: PublishOrder): Promise<PublishReport> {
  const { sockets, steps } = fleet;
  const sentMs: number[] = [];
  let nBatches = 0;
  let lateMs = 0;
  const startMs = monotonicMs();
  const nAll = order.batchesPerSecond * order.seconds;
  while (nBatches < nAll) {
    const nDue = Math.min(nAll, ((monotonicMs() - startMs) * order.batchesPerSecond) / 1000);
    while (nBatches < nDue) {
      const source = fleet.nPublished % sockets.length;
      const isMarked = order.markEvery > 0 && nBatches % order.markEvery === 0;
      const payload = isMarked
        ? packBatch([storedMap(FIRST_MARK + sentMs.length, 1, null)])
        : steps.batch(source, steps.nResident + Math.floor(fleet.nPublished / sockets.length));
      if (isMarked) sentMs.push(monotonicMs());
      await send(fleet, source, payload);
      fleet.nPublished++;
      nBatches++;
    }
    lateMs = Math.max(lateMs, monotonicMs() - startMs - (nBatches * 1000) / order.batchesPerSecond);
    await new Promise((resolve) => setTimeout(resolve, 0.5));
  }
  return { sentMs, nBatches, lateMs };
}

async function run(): Promise<void> {
  const nSources = Number(process.argv[2]);
  const sockets: Publisher[] = [];
  for (let i = 0; i < nSources; i++) {
    const socket = new Publisher({ sendHighWaterMark: 0, linger: 0 });
    await socket.bind('tcp://127.0.0.1:*');
    sockets.push(socket);
  }
  const fleet: Fleet = {
    sockets,
    steps: createSteps(process.argv[3] as Load),
    seqs: sockets.map(() => 0),
    nPublished: 0,
  };
  process.on('disconnect', () => {
    for (const socket of sockets) socket.close();
  });
  process.on('message', (order: PublishOrder | 'fill') => {
    if (order === 'fill') void fill(fleet).then(() => process.send!('filled'));
    else void publish(fleet, order).then((report) => process.send!(report));
  });
  process.send!(sockets.map((socket) => socket.lastEndpoint));
}

await run();
