/**
 * What the event streams of one endpoint say together: data-parallel ranks merged, the worst one decides. Read on every
 * request, so the merge is made once per list of statuses.
 */
import type { Endpoint, EndpointId, EndpointSlot, Trust } from '../endpoints/endpoint.ts';
import type { SourceStatus } from './ingest.ts';

export type StreamSummary = {
  readonly trust: Trust;
  readonly blockSizeTokens: number | null;
  readonly state: SourceStatus['state'];
  readonly lastSeq: string | null;
  readonly gaps: number;
  readonly replays: number;
  readonly restarts: number;
  readonly blocks: number;
  readonly lastEventUnixMs: number | null;
  readonly lastBatchUnixMs: number | null;
  /** Since when nothing is known to be missing. The longest ago of all ranks. */
  readonly lastProvenUnixMs: number | null;
  readonly lagMs: number | null;
  /** Batches that are known to exist and are not applied yet. */
  readonly behind: number;
  readonly replay: SourceStatus['replay'];
  /** whole: everything the engine holds. partial: blocks may be missing. none: nothing has been learnt yet. */
  readonly coverage: 'whole' | 'partial' | 'none';
};

const TRUST_ORDER: readonly Trust[] = ['fallback', 'degraded', 'exact'];
const COVERAGE_ORDER = ['none', 'partial', 'whole'] as const;
const REPLAY_ORDER: readonly SourceStatus['replay'][] = ['none', 'broken', 'works'];
const STATE_ORDER: readonly SourceStatus['state'][] = ['unknown', 'suspect', 'replaying', 'live'];

/** @returns the summary of an endpoint, undefined for one without event sources */
export function createStreamSummaries(
  statuses: () => readonly SourceStatus[],
): (endpointId: EndpointId) => StreamSummary | undefined {
  let merged = new Map<EndpointId, StreamSummary>();
  let from: readonly SourceStatus[] | null = null;
  return (endpointId) => {
    const current = statuses();
    if (current !== from) {
      merged = new Map();
      for (const status of current) {
        const before = merged.get(status.endpointId);
        merged.set(status.endpointId, before ? merge(before, summary(status)) : summary(status));
      }
      from = current;
    }
    return merged.get(endpointId);
  };
}

export type Knowledge = {
  /** What the index is worth for an endpoint now. */
  of(endpoint: Endpoint): Pick<StreamSummary, 'trust' | 'blockSizeTokens' | 'coverage'>;
  /** Endpoints that are not among these are not remembered any longer. */
  keep(endpoints: readonly Endpoint[]): void;
};

/**
 * Trust as requests read it. While a stream is not believed, an endpoint is known only by what was sent there; once its
 * events tell again, or tell of another process, that is worth nothing any more.
 * @param relearnt called before the first answer that is built on the new knowledge
 * @param isMissing whether a publisher stays silent about requests that were sent there: its empty view is worth nothing
 */
export function createKnowledge(
  streamOf: (id: EndpointId) => StreamSummary | undefined,
  relearnt: (slot: EndpointSlot) => void,
  isMissing: (id: EndpointId) => boolean = () => false,
): Knowledge {
  const known = new Map<EndpointId, StreamSummary>();
  const missed = new Set<EndpointId>();
  return {
    of({ id, slot }) {
      const stream = streamOf(id);
      if (stream === undefined) return { trust: 'fallback', blockSizeTokens: null, coverage: 'none' };
      const before = known.get(id);
      if (before !== stream) {
        known.set(id, stream);
        const believedAgain = before?.trust === 'fallback' && stream.trust !== 'fallback';
        if (before !== undefined && (believedAgain || stream.restarts > before.restarts)) relearnt(slot);
      }
      if (isMissing(id)) {
        missed.add(id);
        return { trust: 'fallback', blockSizeTokens: stream.blockSizeTokens, coverage: 'none' };
      }
      if (missed.delete(id)) relearnt(slot);
      return stream;
    },
    keep(endpoints) {
      const ids = new Set(endpoints.map(({ id }) => id));
      for (const id of known.keys()) if (!ids.has(id)) known.delete(id);
      for (const id of missed) if (!ids.has(id)) missed.delete(id);
    },
  };
}

function summary(status: SourceStatus): StreamSummary {
  return {
    trust: status.trust,
    blockSizeTokens: status.blockSizeTokens,
    state: status.state,
    lastSeq: status.lastSeq === null ? null : String(status.lastSeq),
    gaps: status.gaps,
    replays: status.replays,
    restarts: status.restarts,
    blocks: status.nBlocks,
    lastEventUnixMs: status.lastEventUnixMs,
    lastBatchUnixMs: status.lastBatchUnixMs,
    lastProvenUnixMs: status.lastProvenUnixMs,
    lagMs: status.lagMs,
    behind: status.behind,
    replay: status.replay,
    coverage: coverageOf(status),
  };
}

function merge(a: StreamSummary, b: StreamSummary): StreamSummary {
  return {
    trust: worse(TRUST_ORDER, a.trust, b.trust),
    blockSizeTokens: a.blockSizeTokens ?? b.blockSizeTokens,
    state: worse(STATE_ORDER, a.state, b.state),
    lastSeq: a.lastSeq,
    gaps: a.gaps + b.gaps,
    replays: a.replays + b.replays,
    restarts: a.restarts + b.restarts,
    blocks: a.blocks + b.blocks,
    lastEventUnixMs: least(a.lastEventUnixMs, b.lastEventUnixMs),
    lastBatchUnixMs: greatest(a.lastBatchUnixMs, b.lastBatchUnixMs),
    lastProvenUnixMs: least(a.lastProvenUnixMs, b.lastProvenUnixMs),
    lagMs: greatest(a.lagMs, b.lagMs),
    behind: a.behind + b.behind,
    replay: worse(REPLAY_ORDER, a.replay, b.replay),
    coverage: worse(COVERAGE_ORDER, a.coverage, b.coverage),
  };
}

/** How much of what the engine holds is known, whether or not it is believed just now. */
export function coverageOf({ state, partial }: SourceStatus): StreamSummary['coverage'] {
  if (state === 'unknown' || state === 'replaying') return 'none';
  return partial ? 'partial' : 'whole';
}

function least(a: number | null, b: number | null): number | null {
  return a === null ? b : b === null ? a : Math.min(a, b);
}

function greatest(a: number | null, b: number | null): number | null {
  return a === null ? b : b === null ? a : Math.max(a, b);
}

function worse<T>(order: readonly T[], a: T, b: T): T {
  return order.indexOf(a) < order.indexOf(b) ? a : b;
}
