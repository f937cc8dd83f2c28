/**
 * What engines say of themselves: the /metrics of every address, read at an interval with jitter, each address on its own.
 * Data-parallel ranks behind one address share a page and have a reading each. A page that hangs, is huge or is garbage costs
 * its own endpoints the knowledge and nobody else anything: every reading has a limit in time and bytes, few run at once, and
 * failures are repeated ever more rarely.
 *
 * Deliberately not here: what a number is worth for a choice (expected-load.ts). An endpoint never read is unknown, not
 * idle; how old a reading is goes with it.
 */
import { backoffMs, type Clock, type Timer } from '../clock.ts';
import { byAddress, type Endpoint, type EndpointId } from '../endpoints/endpoint.ts';
import type { Log } from '../log.ts';
import type { Get, GetAnswer } from './http-get.ts';
import { createRankMetricsReader, type EngineReading, type RankReadings } from './metrics-page.ts';

export type EngineSnapshot = EngineReading & { readonly ageMs: number };

/** `garbage`: a page that names no engine; `status`: anything but 200. */
export type ScrapeResult = 'ok' | 'garbage' | Exclude<GetAnswer['kind'], 'page'>;

export type EngineMetrics = {
  /** Reads these from now on, and no others. Idempotent; the whole list every time. */
  reconcile(endpoints: readonly Endpoint[]): void;
  /** The newest reading, null before the first. */
  of(id: EndpointId): EngineSnapshot | null;
  /** True from a refused connection on until something answers there. */
  isDown(id: EndpointId): boolean;
  stop(): void;
};

export type EngineMetricsDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly get: Get;
  readonly random?: () => number;
  /** Before a page is asked for. */
  readonly onAsk?: (endpoint: Endpoint) => void;
  readonly onReading?: (endpoint: Endpoint, reading: EngineReading) => void;
  readonly onScrape: (result: ScrapeResult, nIgnored: number) => void;
};

export type EngineMetricsOptions = { readonly intervalMs: number };

/** An address, named by the first of the endpoints that are ranks behind it; mostly there is one. */
type Source = {
  endpoints: readonly Endpoint[];
  readonly read: (page: Buffer) => RankReadings | null;
  readings: readonly EngineReading[];
  readMs: number;
  nFailures: number;
  isDown: boolean;
  timer: Timer | null;
  isGone: boolean;
};

/** Readings under way at once, over all endpoints. */
const MAX_AT_ONCE = 64;
/** Intervals differ by so much each way, so that readings of a fleet do not come in bursts. */
const JITTER = 0.1;
/** A refused connection costs next to nothing and is worth knowing the end of; a hanging one holds a place. */
const REFUSED_MAX_PAUSE_MS = 2_000;
const FAILED_MAX_PAUSE_MS = 30_000;
/** The first readings of a fleet are spread over so long at most. */
const FIRST_WITHIN_MS = 1_000;

export function createEngineMetrics(deps: EngineMetricsDeps, { intervalMs }: EngineMetricsOptions): EngineMetrics {
  const { clock, log } = deps;
  const random = deps.random ?? Math.random;
  const sources = new Map<EndpointId, Source>();
  /** By every endpoint, and which of its source's it is. */
  let places: ReadonlyMap<EndpointId, { readonly source: Source; readonly index: number }> = new Map();
  const due: Source[] = [];
  let nAtOnce = 0;
  let stopped = false;

  function wait(source: Source, delayMs: number): void {
    if (source.isGone || stopped) return;
    source.timer = clock.after(delayMs, () => {
      source.timer = null;
      due.push(source);
      work();
    });
  }

  function work(): void {
    while (nAtOnce < MAX_AT_ONCE && due.length > 0 && !stopped) {
      const source = due.shift()!;
      if (!source.isGone) void scrape(source);
    }
  }

  async function scrape(source: Source): Promise<void> {
    nAtOnce += 1;
    for (const endpoint of source.endpoints) deps.onAsk?.(endpoint);
    const answer = await deps.get(`http://${source.endpoints[0]!.address}`, '/metrics');
    nAtOnce -= 1;
    if (stopped) return;
    if (!source.isGone) note(source, answer);
    work();
  }

  function note(source: Source, answer: GetAnswer): void {
    const read = answer.kind === 'page' ? source.read(answer.body) : null;
    const result = read !== null ? 'ok' : answer.kind === 'page' ? 'garbage' : answer.kind;
    deps.onScrape(result, read?.whole.nIgnored ?? 0);
    tell(source, result);
    // A timeout says neither; everything else is an answer of somebody.
    if (result !== 'timeout') source.isDown = result === 'refused';
    if (read !== null) {
      source.readings = read.ranks;
      source.readMs = clock.nowMs();
      source.nFailures = 0;
      source.endpoints.forEach((endpoint, index) => deps.onReading?.(endpoint, read.ranks[index]!));
      return wait(source, intervalMs * (1 - JITTER + 2 * JITTER * random()));
    }
    source.nFailures += 1;
    const mostMs = result === 'refused' ? REFUSED_MAX_PAUSE_MS : FAILED_MAX_PAUSE_MS;
    wait(source, backoffMs(source.nFailures - 1, intervalMs, Math.max(intervalMs, mostMs), random));
  }

  /** Changes only. */
  function tell(source: Source, result: ScrapeResult): void {
    const { nFailures, isDown } = source;
    const endpoint = source.endpoints[0]!;
    if (result === 'ok') {
      if (nFailures > 0) log.info('engine metrics are read again', { endpoint: endpoint.address });
    } else if (nFailures === 0 || (result === 'refused') !== isDown) {
      log.info('engine metrics not read', { endpoint: endpoint.address, result });
    }
  }

  return {
    reconcile(endpoints) {
      const wanted = new Map([...byAddress(endpoints).values()].map((ranks) => [ranks[0]!.id, ranks]));
      for (const [id, source] of sources) {
        if (wanted.get(id)?.length === source.endpoints.length) continue;
        source.isGone = true;
        source.timer?.cancel();
        sources.delete(id);
      }
      for (const [id, ranks] of wanted) {
        const known = sources.get(id);
        if (known !== undefined) {
          known.endpoints = ranks;
          continue;
        }
        const source: Source = {
          endpoints: ranks,
          read: createRankMetricsReader(ranks.length),
          readings: [],
          readMs: 0,
          nFailures: 0,
          isDown: false,
          timer: null,
          isGone: false,
        };
        sources.set(id, source);
        wait(source, random() * Math.min(intervalMs, FIRST_WITHIN_MS));
      }
      places = new Map(
        [...sources.values()].flatMap((source) => source.endpoints.map(({ id }, index) => [id, { source, index }])),
      );
    },
    of(id) {
      const place = places.get(id);
      const reading = place?.source.readings[place.index];
      if (place === undefined || reading === undefined) return null;
      return { ...reading, ageMs: clock.nowMs() - place.source.readMs };
    },
    isDown: (id) => places.get(id)?.source.isDown ?? false,
    stop() {
      stopped = true;
      for (const source of sources.values()) source.timer?.cancel();
      sources.clear();
      places = new Map();
      due.length = 0;
    },
  };
}
