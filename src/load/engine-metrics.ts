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
import type { Get, GetAnswer } from '../http/http-get.ts';
import { createRankMetricsReader, type EngineReading, type RankReadings } from './metrics-page.ts';
import { createTcpProbe, type TcpProbe } from './tcp-probe.ts';

export type EngineSnapshot = EngineReading & { readonly ageMs: number };

/** `garbage`: a page that names no engine; `status`: anything but 200. */
export type ScrapeResult = 'ok' | 'garbage' | Exclude<GetAnswer['kind'], 'page'>;

export type EngineMetrics = {
  /** Reads these from now on, and no others. Idempotent; the whole list every time. */
  reconcile(endpoints: readonly Endpoint[]): void;
  /** The newest reading, null before the first. */
  of(id: EndpointId): EngineSnapshot | null;
  /** True from a refused connection on, or from a vanished one, until something answers there. */
  isDown(id: EndpointId): boolean;
  stop(): void;
};

export type EngineMetricsDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly get: Get;
  /** Default: one that waits `CONNECT_MS`. */
  readonly probe?: TcpProbe;
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
  /** Something was heard of it: it can be reached from here. */
  hasAnswered: boolean;
  /** Down because no connection came about. */
  isVanished: boolean;
  timer: Timer | null;
  isGone: boolean;
};

type Reach = 'up' | 'down' | 'unknown';
const VANISHED = { answer: { kind: 'timeout' }, reach: 'down' } as const;

/** Readings under way at once, over all endpoints. */
const MAX_AT_ONCE = 64;
/** Intervals differ by so much each way, so that readings of a fleet do not come in bursts. */
const JITTER = 0.1;
/** A refused connection costs next to nothing and is worth knowing the end of; a hanging one holds a place. */
const REFUSED_MAX_PAUSE_MS = 2_000;
const FAILED_MAX_PAUSE_MS = 30_000;
/** A node that vanished may come back, and holds a place for `CONNECT_MS` each time only. */
const VANISHED_MAX_PAUSE_MS = 5_000;
/** In one cluster a connection takes a millisecond; one lost packet is sent again after a second. */
const CONNECT_MS = 1_500;
/** The first readings of a fleet are spread over so long at most. */
const FIRST_WITHIN_MS = 1_000;

export function createEngineMetrics(deps: EngineMetricsDeps, { intervalMs }: EngineMetricsOptions): EngineMetrics {
  const { clock, log } = deps;
  const { random = Math.random, probe = createTcpProbe(clock, { timeoutMs: CONNECT_MS }) } = deps;
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
    const { answer, reach } = await ask(source);
    nAtOnce -= 1;
    if (stopped) return;
    if (!source.isGone) note(source, answer, reach);
    work();
  }

  /**
   * A page that does not come says nothing of the pod: it may be busy. A connection that does not come about says that pod or
   * node is gone, if there has been one before; else a NetworkPolicy may be between us that Envoy does not meet.
   */
  async function ask(source: Source): Promise<{ readonly answer: GetAnswer; readonly reach: Reach }> {
    const { address } = source.endpoints[0]!;
    if (source.isVanished && (await probe(address)) === 'not accepted') return VANISHED;
    const answer = await deps.get(`http://${address}`, '/metrics');
    if (answer.kind === 'refused') return { answer, reach: 'down' };
    if (answer.kind !== 'timeout') return { answer, reach: 'up' };
    if (!source.hasAnswered) return { answer, reach: 'unknown' };
    return { answer, reach: (await probe(address)) === 'accepted' ? 'up' : 'down' };
  }

  function note(source: Source, answer: GetAnswer, reach: Reach): void {
    const read = answer.kind === 'page' ? source.read(answer.body) : null;
    const result = read !== null ? 'ok' : answer.kind === 'page' ? 'garbage' : answer.kind;
    const isDown = reach === 'unknown' ? source.isDown : reach === 'down';
    deps.onScrape(result, read?.whole.nIgnored ?? 0);
    tell(source, result, isDown);
    source.isDown = isDown;
    source.isVanished = isDown && answer.kind === 'timeout' && source.hasAnswered;
    if (reach === 'up') source.hasAnswered = true;
    if (read !== null) {
      source.readings = read.ranks;
      source.readMs = clock.nowMs();
      source.nFailures = 0;
      source.endpoints.forEach((endpoint, index) => deps.onReading?.(endpoint, read.ranks[index]!));
      return wait(source, intervalMs * (1 - JITTER + 2 * JITTER * random()));
    }
    source.nFailures += 1;
    const downMaxMs = result === 'refused' ? REFUSED_MAX_PAUSE_MS : VANISHED_MAX_PAUSE_MS;
    const mostMs = reach === 'down' ? downMaxMs : FAILED_MAX_PAUSE_MS;
    wait(source, backoffMs(source.nFailures - 1, intervalMs, Math.max(intervalMs, mostMs), random));
  }

  /** Changes only. */
  function tell(source: Source, result: ScrapeResult, isDown: boolean): void {
    const { address } = source.endpoints[0]!;
    if (result === 'ok') {
      if (source.nFailures > 0) log.info('engine metrics are read again', { endpoint: address });
    } else if (source.nFailures === 0 || isDown !== source.isDown) {
      log.info('engine metrics not read', { endpoint: address, result, reachable: !isDown });
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
          hasAnswered: false,
          isVanished: false,
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
