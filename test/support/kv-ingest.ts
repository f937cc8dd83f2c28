/**
 * The real ingest thread beside a test: publishers it may follow, sources by slot, what is believed of them, what is
 * counted and said.
 */
import type { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { Packr } from 'msgpackr';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import {
  createIngest,
  type Ingest,
  type IngestOptions,
  type IngestSource,
  type SourceStatus,
} from '../../src/kvevents/ingest.ts';
import { silentLog, type Log } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import { FakePublisher, type FakePublisherOptions } from './fake-publisher.ts';
import { ZmtpPeer } from './zmtp-peer.ts';

export const MODEL = 'test-model';
export const BLOCK = 4;
const PATIENCE_MS = 40_000;

type Stoppable = { stop(): Promise<unknown> };

export type IngestBench = {
  readonly ingest: Ingest;
  /** By reason, so far. */
  readonly errors: Readonly<Record<string, number>>;
  /** `endpoint problem`, as it is logged. */
  readonly said: readonly string[];
  /** Leading blocks of a prompt that a slot holds. */
  matched(slot: number, ...blocks: readonly number[]): number;
  statusOf(slot: number): SourceStatus | undefined;
  /** Polls; rejects after 40 s with what is known. */
  until(what: string, condition: () => boolean): Promise<void>;
  aPublisher(options?: FakePublisherOptions): Promise<FakePublisher>;
  aPeer(treat: (socket: Socket, nth: number, peer: ZmtpPeer) => void): Promise<ZmtpPeer>;
  /** Stops it, too, when the bench stops. */
  owns<T extends Stoppable>(one: T): T;
  /** The ingest thread first, then what it may have followed, the last first. */
  stop(): Promise<void>;
};

/** @param options of the ingest, and the fault of faulty-ingest-worker.ts */
export async function startIngest({
  stream,
  ...options
}: Partial<IngestOptions> & { fault?: SharedArrayBuffer } = {}): Promise<IngestBench> {
  const owned: Stoppable[] = [];
  const owns = <T extends Stoppable>(one: T): T => {
    owned.push(one);
    return one;
  };
  const errors: Record<string, number> = {};
  const said: string[] = [];
  const seed = createHashSeed();
  const hasher = createBlockHasher(seed);
  const root = hasher.root(MODEL, null, BLOCK);
  const log: Log = {
    ...silentLog,
    with: () => log,
    warn: (_message, fields) => void said.push(`${String(fields?.['endpoint'])} ${String(fields?.['problem'])}`),
  };
  const ingest = createIngest(
    {
      log,
      clock: systemClock,
      onCounters(delta) {
        for (const [reason, n] of Object.entries(delta.errors)) errors[reason] = (errors[reason] ?? 0) + n;
      },
    },
    {
      indexMaxBytes: 8 * 2 ** 20,
      seed,
      reportMs: 10,
      ...options,
      stream: { idleProbeMs: 300, firstProbeMs: 50, replayTimeoutMs: 2000, retryMaxMs: 500, ...stream },
    },
  );
  await ingest.start();
  return {
    ingest,
    errors,
    said,
    matched: (slot, ...blocks) =>
      ingest.index.longestMatch(hasher.blocks(Uint32Array.from(tokens(...blocks)), root, BLOCK)).blocks(slot),
    statusOf: (slot) => ingest.statuses().find(({ endpointId }) => endpointId === `pod-${slot}`),
    async until(what, condition) {
      const startMs = performance.now();
      while (!condition()) {
        if (performance.now() - startMs > PATIENCE_MS) {
          throw new Error(`not within 40 s: ${what}; ${JSON.stringify([errors, said, ingest.statuses()])}`);
        }
        await delay(5);
      }
    },
    aPublisher: async (how) => owns(await FakePublisher.start(how)),
    aPeer: async (treat) => owns(await ZmtpPeer.listen(treat)),
    owns,
    async stop() {
      await ingest.stop();
      for (let one = owned.pop(); one; one = owned.pop()) await one.stop();
    },
  };
}

export function sourceOf(slot: number, endpoint: string, replayEndpoint: string | null = null): IngestSource {
  return {
    endpointId: `pod-${slot}` as EndpointId,
    slot: slot as EndpointSlot,
    rank: 0,
    model: MODEL,
    kvEvents: { endpoint, replayEndpoint },
    incarnation: '',
  };
}

/** Four tokens per block, all told apart by its number. */
export const tokens = (...blocks: readonly number[]): number[] =>
  blocks.flatMap((i) => [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]);

const packr = new Packr({ useRecords: false });

/** A payload as engines send it. */
export const batch = (...events: readonly unknown[]): Buffer => packr.pack([Date.now() / 1000, events, 0]);
