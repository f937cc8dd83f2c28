/**
 * The serving thread's side of KV event ingest: starts the ingest thread, tells it which publishers to follow, and knows
 * their latest state. It never parses an event and never waits for one. When the thread dies, nothing of the index is
 * trusted until a new thread has relearnt it; when it falls silent, until it is heard again.
 */
import { Worker } from 'node:worker_threads';
import { backoffMs, type Clock, type Timer } from '../clock.ts';
import { WarmpathError, errorText } from '../errors.ts';
import type { Log } from '../log.ts';
import type { HashSeed } from '../prefix/block-hash.ts';
import type { PrefixIndexMemory } from '../prefix/prefix-index.ts';
import type { FromIngestWorker, IngestWorkerOptions, ToIngestWorker } from './ingest-messages.ts';
import type { IngestSource, KvEventCounters, SourceStatus } from './source-status.ts';

export type { IngestSource, KvEventCounters, SourceStatus } from './source-status.ts';

export type IngestDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly onCounters: (delta: KvEventCounters) => void;
};

export type IngestOptions = {
  readonly memory: PrefixIndexMemory;
  readonly seed: HashSeed;
} & Partial<Omit<IngestWorkerOptions, 'memory' | 'seed' | 'debugLog'>>;

export type Ingest = {
  /** Resolves when the thread runs. */
  start(): Promise<void>;
  /** Resolves when the thread is gone; idempotent. */
  stop(): Promise<void>;
  /**
   * All sources that should be followed, each time. Resolves when the blocks of sources that left are out of the index.
   * A later call includes an earlier one.
   */
  reconcile(sources: readonly IngestSource[]): Promise<void>;
  /** Latest known, the same array until something changes; one entry per source. */
  statuses(): readonly SourceStatus[];
  alive(): boolean;
};

const DEFAULTS = { maxParallelReplays: 8, reportMs: 50, stream: {} };
/** The thread reports every 5 s at least with a thousand sources; one long replay batch takes some tens of milliseconds. */
const SILENCE_LIMIT_MS = 10_000;
const WATCH_MS = 1000;
const RESTART_BASE_MS = 100;
const RESTART_MAX_MS = 10_000;
/** A thread that lived this long died of something new. */
const STABLE_MS = 60_000;
const STOP_TIMEOUT_MS = 3000;

type Waiting = { readonly id: number; readonly resolve: () => void };

export function createIngest(deps: IngestDeps, options: IngestOptions): Ingest {
  const { log, clock, onCounters } = deps;
  let worker: Worker | null = null;
  let phase: 'created' | 'running' | 'stopped' = 'created';
  let isReady = false;
  let statuses: readonly SourceStatus[] = [];
  let sources: readonly IngestSource[] = [];
  let lastId = 0;
  let waiting: Waiting[] = [];
  let startedAtMs = 0;
  let heardAtMs = 0;
  let watchedAtMs = 0;
  let nDeaths = 0;
  let timer: Timer | null = null;
  let watch: Timer | null = null;
  let isSilent = false;

  const post = (message: ToIngestWorker): void => worker?.postMessage(message);

  const spawn = (): Promise<void> =>
    new Promise((resolve, reject) => {
      const workerData: IngestWorkerOptions = {
        ...DEFAULTS,
        ...options,
        debugLog: log.debugEnabled ? 'on' : 'off',
      };
      const spawned = new Worker(workerUrl(), { workerData, name: 'ingest' });
      worker = spawned;
      let problem: string | null = null;
      isReady = false;
      startedAtMs = heardAtMs = clock.nowMs();
      spawned.on('message', (message: FromIngestWorker) => {
        if (spawned !== worker) return;
        heardAtMs = clock.nowMs();
        isSilent = false;
        if (message.kind === 'ready') {
          isReady = true;
          resolve();
        } else if (message.kind === 'dying') {
          problem = message.problem;
          isReady = false;
          distrustAll();
        } else receive(message);
      });
      spawned.on('error', (error) => {
        problem = errorText(error);
      });
      spawned.on('exit', (code) => {
        if (spawned !== worker) return;
        const error = new WarmpathError('worker_died', `ingest thread ended: ${problem ?? `exit code ${code}`}`);
        // Before it was ready the caller of `start` hears of it.
        if (!isReady && phase === 'created') {
          worker = null;
          reject(error);
        } else died(error);
      });
    });

  const receive = (message: Exclude<FromIngestWorker, { kind: 'ready' | 'dying' }>): void => {
    switch (message.kind) {
      case 'report':
        statuses = message.scope === 'all' ? message.statuses : updated(statuses, message.statuses);
        if (message.counters !== null) onCounters(message.counters);
        return;
      case 'reconciled':
        for (const { id, resolve } of waiting) if (id <= message.id) resolve();
        waiting = waiting.filter(({ id }) => id > message.id);
        return;
      case 'log':
        log[message.level](message.message, message.fields);
    }
  };

  /** What was written last may be half a change: nothing is believed until it is relearnt. */
  const distrustAll = (): void => {
    statuses = statuses.map((status) => ({ ...status, state: 'unknown', trust: 'fallback' }));
  };

  const died = (error: WarmpathError): void => {
    worker = null;
    isReady = false;
    if (phase !== 'running') return;
    distrustAll();
    nDeaths = clock.nowMs() - startedAtMs > STABLE_MS ? 0 : nDeaths + 1;
    const delayMs = backoffMs(nDeaths, RESTART_BASE_MS, RESTART_MAX_MS);
    log.error('ingest thread died', { problem: error.message, restartInMs: Math.round(delayMs) });
    timer = clock.after(delayMs, () => {
      spawn().then(
        () => post({ kind: 'reconcile', id: lastId, sources }),
        (problem: unknown) => log.error('ingest thread not started', { problem: errorText(problem) }),
      );
    });
  };

  const lookAfter = (): void => {
    const nowMs = clock.nowMs();
    // When this thread itself was blocked, the other one's reports are still unread.
    if (nowMs - watchedAtMs > 2 * WATCH_MS) heardAtMs = nowMs;
    watchedAtMs = nowMs;
    if (worker !== null && !isSilent && nowMs - heardAtMs > SILENCE_LIMIT_MS) {
      // Ending it by force would end the whole process (see ingest-worker.ts): it is reported, and not believed.
      isSilent = true;
      distrustAll();
      log.error('ingest thread is silent', { silentMs: Math.round(nowMs - heardAtMs) });
    }
    watch = clock.after(WATCH_MS, lookAfter);
  };

  const shutDown = async (): Promise<void> => {
    const ending = worker;
    if (ending === null) return;
    const isOver = new Promise<void>((resolve) => {
      const limit = clock.after(STOP_TIMEOUT_MS, () => {
        log.error('ingest thread does not end', { waitedMs: STOP_TIMEOUT_MS });
        ending.unref();
        resolve();
      });
      ending.once('exit', () => {
        limit.cancel();
        resolve();
      });
    });
    post({ kind: 'stop' });
    // It ends by itself and never by force (see ingest-worker.ts).
    await isOver;
    worker = null;
  };

  return {
    async start() {
      await spawn();
      phase = 'running';
      watchedAtMs = clock.nowMs();
      watch = clock.after(WATCH_MS, lookAfter);
    },
    async stop() {
      if (phase === 'stopped') return;
      phase = 'stopped';
      timer?.cancel();
      watch?.cancel();
      await shutDown();
      statuses = [];
      for (const { resolve } of waiting) resolve();
      waiting = [];
    },
    reconcile(wanted) {
      if (phase !== 'running') {
        return Promise.reject(new WarmpathError('worker_died', `ingest is ${phase}, expected running`));
      }
      sources = wanted;
      const id = ++lastId;
      const done = new Promise<void>((resolve) => waiting.push({ id, resolve }));
      // A thread that is being restarted gets the newest list once it is ready.
      if (isReady) post({ kind: 'reconcile', id, sources });
      return done;
    },
    statuses: () => statuses,
    alive: () => worker !== null && isReady && !isSilent,
  };
}

function updated(known: readonly SourceStatus[], changed: readonly SourceStatus[]): readonly SourceStatus[] {
  if (changed.length === 0) return known;
  const newer = new Map(changed.map((status) => [`${status.endpointId} ${status.rank}`, status]));
  return known.map((status) => newer.get(`${status.endpointId} ${status.rank}`) ?? status);
}

/** Sources run by type stripping in development, compiled ones when packed. */
function workerUrl(): URL {
  return new URL(import.meta.url.endsWith('.ts') ? './ingest-worker.ts' : './ingest-worker.js', import.meta.url);
}
