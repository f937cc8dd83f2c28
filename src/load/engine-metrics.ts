/**
 * What engines say of themselves: the /metrics of every endpoint, read at an interval with jitter, each endpoint on its
 * own. A page that hangs, is huge or is garbage costs its own endpoint the knowledge and nobody else anything: every
 * reading has a limit in time and bytes, few run at once, and failures are repeated ever more rarely.
 *
 * Deliberately not here: what a number is worth for a choice (expected-load.ts). An endpoint never read is unknown, not
 * idle; how old a reading is goes with it.
 */
import { backoffMs, type Clock, type Timer } from '../clock.ts';
import type { Endpoint, EndpointId } from '../endpoints/endpoint.ts';
import type { Log } from '../log.ts';
import type { Get, GetAnswer } from './http-get.ts';
import { createMetricsReader, type EngineReading, type MetricsReader } from './metrics-page.ts';

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

type Source = {
  endpoint: Endpoint;
  readonly read: MetricsReader;
  reading: EngineReading | null;
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
    deps.onAsk?.(source.endpoint);
    const answer = await deps.get(`http://${source.endpoint.address}`, '/metrics');
    nAtOnce -= 1;
    if (stopped) return;
    if (!source.isGone) note(source, answer);
    work();
  }

  function note(source: Source, answer: GetAnswer): void {
    const reading = answer.kind === 'page' ? source.read(answer.body) : null;
    const result = reading !== null ? 'ok' : answer.kind === 'page' ? 'garbage' : answer.kind;
    deps.onScrape(result, reading?.nIgnored ?? 0);
    tell(source, result);
    // A timeout says neither; everything else is an answer of somebody.
    if (result !== 'timeout') source.isDown = result === 'refused';
    if (reading !== null) {
      source.reading = reading;
      source.readMs = clock.nowMs();
      source.nFailures = 0;
      deps.onReading?.(source.endpoint, reading);
      return wait(source, intervalMs * (1 - JITTER + 2 * JITTER * random()));
    }
    source.nFailures += 1;
    const mostMs = result === 'refused' ? REFUSED_MAX_PAUSE_MS : FAILED_MAX_PAUSE_MS;
    wait(source, backoffMs(source.nFailures - 1, intervalMs, Math.max(intervalMs, mostMs), random));
  }

  /** Changes only. */
  function tell(source: Source, result: ScrapeResult): void {
    const { endpoint, nFailures, isDown } = source;
    if (result === 'ok') {
      if (nFailures > 0) log.info('engine metrics are read again', { endpoint: endpoint.address });
    } else if (nFailures === 0 || (result === 'refused') !== isDown) {
      log.info('engine metrics not read', { endpoint: endpoint.address, result });
    }
  }

  return {
    reconcile(endpoints) {
      const wanted = new Set(endpoints.map(({ id }) => id));
      for (const [id, source] of sources) {
        if (wanted.has(id)) continue;
        source.isGone = true;
        source.timer?.cancel();
        sources.delete(id);
      }
      for (const endpoint of endpoints) {
        const known = sources.get(endpoint.id);
        if (known !== undefined) {
          known.endpoint = endpoint;
          continue;
        }
        const source: Source = {
          endpoint,
          read: createMetricsReader(),
          reading: null,
          readMs: 0,
          nFailures: 0,
          isDown: false,
          timer: null,
          isGone: false,
        };
        sources.set(endpoint.id, source);
        wait(source, random() * Math.min(intervalMs, FIRST_WITHIN_MS));
      }
    },
    of(id) {
      const source = sources.get(id);
      if (source === undefined || source.reading === null) return null;
      return { ...source.reading, ageMs: clock.nowMs() - source.readMs };
    },
    isDown: (id) => sources.get(id)?.isDown ?? false,
    stop() {
      stopped = true;
      for (const source of sources.values()) source.timer?.cancel();
      sources.clear();
      due.length = 0;
    },
  };
}
