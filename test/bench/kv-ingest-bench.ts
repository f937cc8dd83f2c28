/** The real ingest thread over real sockets: how soon an event is visible, and what following many sources costs. */
import { fork } from 'node:child_process';
import { createServer, type AddressInfo } from 'node:net';
import { setImmediate as nextTurn, setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createIngest, type IngestSource } from '../../src/kvevents/ingest.ts';
import { silentLog } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { otherThreadsCpuUs } from './kv-measure.ts';
import { BLOCK_SIZE, tokensOf } from './kv-payloads.ts';
import { FIRST_MARK, monotonicMs, type PublishOrder, type PublishReport } from './kv-orders.ts';

const MODEL = 'm';
const MARK_TIMEOUT_MS = 2000;

function sourcesAt(endpoints: readonly string[]): IngestSource[] {
  return endpoints.map((endpoint, slot) => ({
    endpointId: `endpoint-${slot}` as EndpointId,
    slot: slot as EndpointSlot,
    rank: 0,
    model: MODEL,
    kvEvents: { endpoint, replayEndpoint: null },
    incarnation: '',
  }));
}

function startIngest() {
  const seed = createHashSeed();
  const deps = { log: silentLog, clock: systemClock, onCounters: () => undefined };
  const ingest = createIngest(deps, { indexMaxBytes: 256 * 2 ** 20, seed });
  return { ingest, reader: ingest.index, hasher: createBlockHasher(seed) };
}

async function startPublishers(nSources: number) {
  const file = fileURLToPath(new URL('kv-publishers.ts', import.meta.url));
  const child = fork(file, [String(nSources)]);
  const next = <T>(): Promise<T> => new Promise((resolve) => child.once('message', (message) => resolve(message as T)));
  const endpoints = await next<string[]>();
  return {
    endpoints,
    publish(order: PublishOrder): Promise<PublishReport> {
      const report = next<PublishReport>();
      child.send(order);
      return report;
    },
    stop: () =>
      new Promise<void>((resolve) => {
        child.once('exit', () => resolve());
        child.disconnect();
      }),
  };
}

export type FleetRun = {
  /** Handed to the publisher's socket → found by a look-up in the serving thread; milliseconds per mark, NaN = never. */
  readonly visibleMs: readonly number[];
  /** Of the ingest thread and of ZMQ's own. */
  readonly cpuShare: number;
  readonly nBlocks: number;
  readonly lateMs: number;
  readonly isLossless: boolean;
};

/** Publishers of another process, followed by the ingest thread as in `serve`. */
export async function followFleet(order: PublishOrder): Promise<FleetRun> {
  const publishers = await startPublishers(order.nSources);
  const { ingest, reader, hasher } = startIngest();
  await ingest.start();
  await ingest.reconcile(sourcesAt(publishers.endpoints));
  const readyBy = performance.now() + 20_000;
  while (!ingest.statuses().every(({ state }) => state === 'live') && performance.now() < readyBy) await delay(20);
  const root = hasher.root(MODEL, null, BLOCK_SIZE);
  let report: PublishReport | null = null;
  const cpuBefore = otherThreadsCpuUs();
  const startMs = performance.now();
  void publishers.publish(order).then((its) => (report = its));
  const foundMs: number[] = [];
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  const isOver = (): boolean => report !== null && foundMs.length >= report.sentMs.length;
  let nextKeys = hasher.blocks(Uint32Array.from(tokensOf(FIRST_MARK, 1)), root, BLOCK_SIZE);
  let waitedFromMs = performance.now();
  while (!isOver()) {
    if (order.markEvery === 0) {
      await delay(20);
      continue;
    }
    const slot = (foundMs.length * order.markEvery) % order.nSources;
    const isLost = performance.now() - waitedFromMs > MARK_TIMEOUT_MS;
    if (!isLost && reader.longestMatch(nextKeys).blocks(slot) === 0) {
      Atomics.wait(sleeper, 0, 0, 0.1);
      await nextTurn();
      continue;
    }
    foundMs.push(isLost ? NaN : monotonicMs());
    nextKeys = hasher.blocks(Uint32Array.from(tokensOf(FIRST_MARK + foundMs.length, 1)), root, BLOCK_SIZE);
    waitedFromMs = performance.now();
  }
  const cpuShare = (otherThreadsCpuUs() - cpuBefore) / 1000 / (performance.now() - startMs);
  await delay(200);
  const statuses = ingest.statuses();
  await ingest.stop();
  await publishers.stop();
  const { sentMs, lateMs } = report!;
  return {
    visibleMs: sentMs.map((sent, i) => foundMs[i]! - sent),
    cpuShare,
    nBlocks: statuses.reduce((sum, { nBlocks }) => sum + nBlocks, 0),
    lateMs,
    isLossless: statuses.every(({ gaps, state, errors }) => gaps === 0 && errors === 0 && state === 'live'),
  };
}

/** Addresses nobody listens at. @returns share of a core */
export async function followDead(nSources: number, settleMs: number, seconds: number): Promise<number> {
  const port = await closedPort();
  const { ingest } = startIngest();
  await ingest.start();
  const addresses = Array.from({ length: nSources }, (_, i) => `tcp://127.1.${i >>> 8}.${i & 255}:${port}`);
  await ingest.reconcile(sourcesAt(addresses));
  await delay(settleMs);
  const cpuBefore = otherThreadsCpuUs();
  const startMs = performance.now();
  await delay(seconds * 1000);
  const share = (otherThreadsCpuUs() - cpuBefore) / 1000 / (performance.now() - startMs);
  await ingest.stop();
  return share;
}

async function closedPort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
