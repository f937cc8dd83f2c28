/** The real ingest thread over real sockets: how soon an event is visible, and what following many sources costs. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, type AddressInfo } from 'node:net';
import { setImmediate as nextTurn, setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createIngest, type IngestSource } from '../../src/kvevents/ingest.ts';
import { silentLog } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { otherThreadsCpuUs, percentile, sortedOf } from './kv-measure.ts';
import { BLOCK_SIZE, tokensOf } from './kv-payloads.ts';
import { FIRST_MARK, monotonicMs, type PublishOrder, type PublishReport } from './kv-orders.ts';

const MODEL = 'm';
const MARK_TIMEOUT_MS = 2000;
/** For what was sent to fill the caches to be applied. */
const SETTLE_MS = 1500;
/** The same order before what counts: what V8 compiles in its first seconds is no cost of a process that runs for days. */
const WARM_UP_SECONDS = 4;

const warmUp = (order: PublishOrder): PublishOrder => ({ ...order, seconds: WARM_UP_SECONDS, markEvery: 0 });

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
  const ingest = createIngest(deps, { indexMaxBytes: 512 * 2 ** 20, seed });
  return { ingest, reader: ingest.index, hasher: createBlockHasher(seed) };
}

async function startPublishers({ nSources, load }: PublishOrder) {
  const file = fileURLToPath(new URL('kv-publishers.ts', import.meta.url));
  const child = fork(file, [String(nSources), load]);
  const next = <T>(): Promise<T> => new Promise((resolve) => child.once('message', (message) => resolve(message as T)));
  const endpoints = await next<string[]>();
  return {
    endpoints,
    fill(): Promise<string> {
      const filled = next<string>();
      child.send('fill');
      return filled;
    },
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
  /** Handed to the publisher's socket → found by a look-up in the serving thread; ms, of the quietest second. */
  readonly visibleP50Ms: number;
  readonly visibleP99Ms: number;
  /** Of the ingest thread and whatever works for it. */
  readonly cpuShare: number;
  readonly isLossless: boolean;
  readonly lateMs: number;
};

const WINDOW_MS = 1000;

/**
 * Share of a core at the rate ordered: CPU time by what was published meanwhile, since on a busy machine publishers are late,
 * and any one second may look cheap.
 */
function shareOf(cpuUs: number, nBatches: number, { batchesPerSecond }: PublishOrder): number {
  return (cpuUs / 1e6 / nBatches) * batchesPerSecond;
}

/** Publishers of another process, followed by the ingest thread as in `serve`. */
export async function followFleet(order: PublishOrder): Promise<FleetRun> {
  const publishers = await startPublishers(order);
  const { ingest, reader, hasher } = startIngest();
  await ingest.start();
  await ingest.reconcile(sourcesAt(publishers.endpoints));
  const readyBy = performance.now() + 20_000;
  while (!ingest.statuses().every(({ state }) => state === 'live') && performance.now() < readyBy) await delay(20);
  await publishers.fill();
  await delay(SETTLE_MS);
  await publishers.publish(warmUp(order));
  const root = hasher.root(MODEL, null, BLOCK_SIZE);
  const publishing = { report: null as PublishReport | null };
  const startUs = otherThreadsCpuUs();
  void publishers.publish(order).then((report) => (publishing.report = report));
  const foundMs: number[] = [];
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  const keysOfMark = (i: number) => hasher.blocks(Uint32Array.from(tokensOf(FIRST_MARK + i, 1)), root, BLOCK_SIZE);
  let nextKeys = keysOfMark(0);
  let waitedFromMs = performance.now();
  while (publishing.report === null || foundMs.length < publishing.report.sentMs.length) {
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
    nextKeys = keysOfMark(foundMs.length);
    waitedFromMs = performance.now();
  }
  await delay(200);
  const cpuShare = shareOf(otherThreadsCpuUs() - startUs, publishing.report.nBatches, order);
  const statuses = ingest.statuses();
  await ingest.stop();
  await publishers.stop();
  const { sentMs, lateMs } = publishing.report;
  const isLossless = statuses.every(({ gaps, state, errors }) => gaps === 0 && errors === 0 && state === 'live');
  return { ...quietestSecond(sentMs, foundMs), cpuShare, isLossless, lateMs };
}

function quietestSecond(sentMs: readonly number[], foundMs: readonly number[]) {
  const windows = Map.groupBy(sentMs.keys(), (i) => Math.floor((sentMs[i]! - sentMs[0]!) / WINDOW_MS));
  let quietest = { visibleP50Ms: NaN, visibleP99Ms: Infinity };
  for (const marks of windows.values()) {
    // The last one is not a whole second.
    if (marks.length < 90) continue;
    const tookMs = sortedOf(marks.map((i) => foundMs[i]! - sentMs[i]!));
    const visibleP99Ms = percentile(tookMs, 0.99);
    if (visibleP99Ms < quietest.visibleP99Ms) quietest = { visibleP50Ms: percentile(tookMs, 0.5), visibleP99Ms };
  }
  return quietest;
}

/** The same publishers, followed the usual way. @returns share of a core, as above */
export async function followFleetUsually(order: PublishOrder): Promise<number> {
  const publishers = await startPublishers(order);
  const follower = fork(fileURLToPath(new URL('kv-usual-process.ts', import.meta.url)));
  const cpuUs = async (): Promise<number> => {
    follower.send('cpu');
    const [spentUs] = (await once(follower, 'message')) as [number];
    return spentUs;
  };
  follower.send([...publishers.endpoints]);
  await delay(SETTLE_MS);
  await publishers.fill();
  await delay(SETTLE_MS);
  await publishers.publish(warmUp(order));
  const startUs = await cpuUs();
  const { nBatches } = await publishers.publish(order);
  await delay(200);
  const spentUs = (await cpuUs()) - startUs;
  follower.disconnect();
  await once(follower, 'exit');
  await publishers.stop();
  return shareOf(spentUs, nBatches, order);
}

/**
 * Addresses nobody answers at. refused: at once. dropped: never, which an attempt waits for.
 * @returns share of a core, over longer than it takes to try each of them once
 */
export async function followDead(
  how: 'refused' | 'dropped',
  nSources: number,
  settleMs: number,
  measureMs: number,
): Promise<number> {
  const dead = how === 'refused' ? { port: await closedPort(), open: () => undefined } : await blackHole();
  const { ingest } = startIngest();
  await ingest.start();
  const addresses = Array.from({ length: nSources }, (_, i) => `tcp://127.1.${i >>> 8}.${i & 255}:${dead.port}`);
  await ingest.reconcile(sourcesAt(addresses));
  await delay(settleMs);
  const cpuUs = otherThreadsCpuUs();
  const startMs = performance.now();
  await delay(measureMs);
  const share = (otherThreadsCpuUs() - cpuUs) / 1000 / (performance.now() - startMs);
  await ingest.stop();
  dead.open();
  return share;
}

async function closedPort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function blackHole(): Promise<{ port: number; open: () => void }> {
  const child = fork(fileURLToPath(new URL('kv-black-hole.ts', import.meta.url)));
  const [port] = (await once(child, 'message')) as [number];
  child.kill('SIGSTOP');
  // Its queue takes two or three; whoever comes after them is not answered.
  const fillers = Array.from({ length: 8 }, () => connect(port, '127.0.0.1').on('error', () => undefined));
  await delay(200);
  return {
    port,
    open() {
      for (const filler of fillers) filler.destroy();
      child.kill('SIGCONT');
      child.disconnect();
    },
  };
}
