/** What the ingest thread tells about itself: the state of every source, and counts since the last report. */
import type { EndpointId, EndpointSlot, KvEventSource, Trust } from '../endpoints/endpoint.ts';
import type { StreamMark, StreamState } from './event-stream.ts';

/** One publisher to follow. */
export type IngestSource = {
  readonly endpointId: EndpointId;
  readonly slot: EndpointSlot;
  /** Data-parallel rank of batches that name none. */
  readonly rank: number;
  /** Canonical served name. */
  readonly model: string;
  readonly kvEvents: KvEventSource;
  /** Changes when the process behind the endpoint is another one; '' where unknown. */
  readonly incarnation: string;
};

/** What is known of a source up to a mark in its stream, for another replica. */
export type SourceSnapshot = {
  readonly mark: StreamMark;
  /** See source-snapshot.ts. */
  readonly words: Uint32Array;
};

export type SourceStatus = {
  readonly endpointId: EndpointId;
  readonly rank: number;
  readonly state: StreamState;
  readonly trust: Trust;
  /** trying: the first attempt is not over. down: connected no longer, or not yet although it was tried. */
  readonly connection: 'trying' | 'up' | 'down';
  /** Decimal: sequence numbers have 64 bits. */
  readonly lastSeq: string | null;
  readonly gaps: number;
  readonly replays: number;
  readonly restarts: number;
  readonly errors: number;
  readonly nBlocks: number;
  readonly blockSizeTokens: number | null;
  /** Whether salts and images are visible in the events. */
  readonly reportsExtraKeys: 'yes' | 'no' | 'unknown';
  /** When the last batch or connection came, null before the first. */
  readonly lastEventUnixMs: number | null;
  /** When the last batch came, heartbeats included. */
  readonly lastBatchUnixMs: number | null;
  /** When it was last known that nothing is missing. Goes on while an idle publisher answers, stands still with a dead one. */
  readonly lastProvenUnixMs: number | null;
  /** By how much the newest live batch came later than the earliest of late, whatever the publisher's clock says. */
  readonly lagMs: number | null;
  /** Batches that are known to exist and are not applied yet. */
  readonly behind: number;
  /** Whether holes can be repaired and a lost tail found. */
  readonly replay: 'works' | 'none' | 'broken';
  readonly partial: boolean;
};

/** Counts since the last report. */
export type KvEventCounters = {
  readonly events: Readonly<Record<KvEventKind, number>>;
  readonly blocks: Readonly<Record<KvEventKind, number>>;
  readonly gaps: number;
  readonly restarts: number;
  /** By result: ok, hole, timeout, restarted. */
  readonly replays: Readonly<Record<string, number>>;
  /** By reason: of skipped events, refused payloads, garbage messages, failing sockets. */
  readonly errors: Readonly<Record<string, number>>;
  /** Samples of live batches, at most `MAX_LAG_SAMPLES`. */
  readonly lagMs: readonly number[];
};

export type KvEventKind = 'BlockStored' | 'BlockRemoved' | 'AllBlocksCleared' | 'unknown';

export const MAX_LAG_SAMPLES = 256;

/** Counts up; `take` hands the counts over and begins anew, null when nothing was counted. */
export type CounterSink = {
  events(kind: KvEventKind, nEvents: number, nBlocks: number): void;
  gap(): void;
  restart(): void;
  replay(result: string): void;
  error(reason: string): void;
  lag(ms: number): void;
  take(): KvEventCounters | null;
};

type MutableCounters = {
  events: Record<KvEventKind, number>;
  blocks: Record<KvEventKind, number>;
  gaps: number;
  restarts: number;
  replays: Record<string, number>;
  errors: Record<string, number>;
  lagMs: number[];
};

export function createCounterSink(): CounterSink {
  let counters = noCounters();
  let isEmpty = true;
  const add = (to: Record<string, number>, key: string): void => {
    to[key] = (to[key] ?? 0) + 1;
    isEmpty = false;
  };
  return {
    events(kind, nEvents, nBlocks) {
      counters.events[kind] += nEvents;
      counters.blocks[kind] += nBlocks;
      if (nEvents > 0) isEmpty = false;
    },
    gap() {
      counters.gaps++;
      isEmpty = false;
    },
    restart() {
      counters.restarts++;
      isEmpty = false;
    },
    replay: (result) => add(counters.replays, result),
    error: (reason) => add(counters.errors, reason),
    lag(ms) {
      if (counters.lagMs.length < MAX_LAG_SAMPLES) counters.lagMs.push(ms);
    },
    take() {
      if (isEmpty) return null;
      const taken = counters;
      counters = noCounters();
      isEmpty = true;
      return taken;
    },
  };
}

function noCounters(): MutableCounters {
  const none = { BlockStored: 0, BlockRemoved: 0, AllBlocksCleared: 0, unknown: 0 };
  return { events: { ...none }, blocks: { ...none }, gaps: 0, restarts: 0, replays: {}, errors: {}, lagMs: [] };
}
