/** The real ingest thread beside a test: sources by slot, what is believed of them, what is counted and said. */
import { setTimeout as delay } from 'node:timers/promises';
import { Packr } from 'msgpackr';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import type { EventStreamOptions } from '../../src/kvevents/event-stream.ts';
import { createIngest, type Ingest, type IngestSource, type SourceStatus } from '../../src/kvevents/ingest.ts';
import { silentLog, type Log } from '../../src/log.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';

const MODEL = 'test-model';
const BLOCK = 4;
const PATIENCE_MS = 40_000;

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
};

/** @param listen `host:port` for publishers that connect */
export async function startIngest(
  listen: string | null = null,
  stream: Partial<Omit<EventStreamOptions, 'canReplay' | 'random'>> = {},
): Promise<IngestBench> {
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
      listen,
      reportMs: 10,
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
