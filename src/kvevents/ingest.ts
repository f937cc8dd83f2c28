/**
 * The serving thread's side of KV event ingest: starts the ingest thread, tells it which publishers to follow, and reads
 * their state where that thread writes it. It never parses an event and never waits for one. When the thread dies or
 * falls silent, nothing of the index is trusted until a new thread has relearnt it.
 */
import { Worker } from 'node:worker_threads';
import { backoffMs, type Clock, type Timer } from '../clock.ts';
import { WarmpathError, errorText } from '../errors.ts';
import type { Log } from '../log.ts';
import type { HashSeed } from '../prefix/block-hash.ts';
import {
  createPrefixIndexMemory,
  openPrefixIndexReader,
  type PrefixIndexMemory,
  type PrefixIndexReader,
} from '../prefix/prefix-index.ts';
import type { FromIngestWorker, IngestWorkerOptions, ToIngestWorker } from './ingest-messages.ts';
import { createSourceStatuses } from './source-statuses.ts';
import type { IngestSource, KvEventCounters, SourceSnapshot, SourceStatus } from './source-status.ts';
import {
  createStatusBoardMemory,
  openStatusBoardReader,
  type StatusBoardReader,
  type StatusPlace,
} from './status-board.ts';

export { MAX_SNAPSHOT_BYTES } from './source-snapshot.ts';
export type { IngestSource, KvEventCounters, SourceSnapshot, SourceStatus } from './source-status.ts';

export type IngestDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly onCounters: (delta: KvEventCounters) => void;
};

export type IngestOptions = {
  readonly indexMaxBytes: number;
  readonly seed: HashSeed;
  /** Silence after which nothing is believed, and after which the thread is given up. */
  readonly silence?: { readonly doubtMs: number; readonly giveUpMs: number };
  /** Another entry than ingest-worker.ts, for tests. */
  readonly workerUrl?: URL;
} & Partial<Omit<IngestWorkerOptions, 'memory' | 'board' | 'seed' | 'debugLog'>>;

export type Ingest = {
  /** What is held where; the same object for good, empty again after the thread was replaced. */
  readonly index: PrefixIndexReader;
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
  /** Names of the sources that are followed, the same on every replica; or only of those whose view has holes. */
  sharedNames(which: 'all' | 'partial'): readonly string[];
  /** What is known of a source; null where it is not followed, in doubt, or cannot be told. */
  snapshot(sharedName: string): Promise<SourceSnapshot | null>;
  /** Takes over what another replica knows of a source; its words are given away. @returns whether it is being proved */
  adopt(sharedName: string, snapshot: SourceSnapshot): Promise<boolean>;
  /** Why the index is not kept up to date, null when it is. */
  problem(): string | null;
  /** Threads that were lost so far: what was learnt before is learnt again. */
  nLost(): number;
};

const DEFAULTS = { maxParallelReplays: 8, listen: null, reportMs: 200, stream: {} };
/** The thread beats every 50 ms; taking over a long list of sources, or a large batch, takes it a part of a second. */
const SILENCE = { doubtMs: 3000, giveUpMs: 10_000 };
const WATCH_MS = 250;
const RESTART_BASE_MS = 100;
const RESTART_MAX_MS = 10_000;
/** A thread that lived this long died of something new. */
const STABLE_MS = 60_000;
const STOP_TIMEOUT_MS = 3000;
/** A thread that starts may be silent so much longer. */
const STARTING_MS = 20_000;

type Waiting = { readonly id: number; readonly resolve: () => void };

export function createIngest(deps: IngestDeps, options: IngestOptions): Ingest {
  const { log, clock, onCounters } = deps;
  const { indexMaxBytes, silence = SILENCE, workerUrl = defaultWorkerUrl(), ...workerOptions } = options;
  let memory: PrefixIndexMemory = createPrefixIndexMemory({ maxBytes: indexMaxBytes });
  let index = openPrefixIndexReader(memory);
  const statuses = createSourceStatuses(log);
  let worker: Worker | null = null;
  let board: StatusBoardReader | null = null;
  let phase: 'created' | 'running' | 'stopped' = 'created';
  let isReady = false;
  let lastId = 0;
  let waiting: Waiting[] = [];
  let startedAtMs = 0;
  let lastPulse = 0;
  let pulseAtMs = 0;
  let watchedAtMs = 0;
  let nDeaths = 0;
  let nLost = 0;
  let timer: Timer | null = null;
  let watch: Timer | null = null;
  let isSilent = false;

  /** Questions to the thread that is running, with what is answered when it ends before it could. */
  const asked = new Map<number, (answer: FromIngestWorker | null) => void>();
  let lastQuestion = 0;

  const ask = (
    question: (id: number) => ToIngestWorker,
    given: readonly ArrayBuffer[] = [],
  ): Promise<FromIngestWorker | null> => {
    if (!isReady) return Promise.resolve(null);
    const id = ++lastQuestion;
    return new Promise((resolve) => {
      asked.set(id, resolve);
      post(question(id), given);
    });
  };

  const answerAll = (): void => {
    for (const resolve of asked.values()) resolve(null);
    asked.clear();
  };

  const placeOf = (name: string): StatusPlace | undefined =>
    statuses.sources().find((source) => sharedName(source) === name)?.place;

  const post = (message: ToIngestWorker, given: readonly ArrayBuffer[] = []): void =>
    worker?.postMessage(message, given);

  const spawn = (): Promise<void> =>
    new Promise((resolve, reject) => {
      const boardMemory = createStatusBoardMemory();
      const workerData: IngestWorkerOptions = {
        ...DEFAULTS,
        ...workerOptions,
        memory,
        board: boardMemory,
        debugLog: log.debugEnabled ? 'on' : 'off',
      };
      const spawned = new Worker(workerUrl, { workerData, name: 'ingest' });
      worker = spawned;
      board = openStatusBoardReader(boardMemory);
      statuses.readFrom(board);
      let problem: string | null = null;
      isReady = false;
      isSilent = false;
      startedAtMs = pulseAtMs = clock.nowMs();
      spawned.on('message', (message: FromIngestWorker) => {
        if (spawned !== worker) return;
        if (message.kind === 'ready') {
          isReady = true;
          resolve();
        } else if (message.kind === 'dying') {
          problem = message.problem;
          distrust();
          void spawned.terminate();
        } else receive(message);
      });
      spawned.on('error', (error) => {
        problem = errorText(error);
      });
      spawned.on('exit', (code) => {
        if (spawned !== worker) return;
        const error = new WarmpathError('worker_died', `ingest thread ended: ${problem ?? `exit code ${code}`}`);
        worker = null;
        // Before it was ready the caller of `start` hears of it.
        if (!isReady && phase === 'created') reject(error);
        else lost(error.message);
      });
    });

  const receive = (message: Exclude<FromIngestWorker, { kind: 'ready' | 'dying' }>): void => {
    switch (message.kind) {
      case 'counted':
        onCounters(message.counters);
        return;
      case 'reconciled':
        for (const { id, resolve } of waiting) if (id <= message.id) resolve();
        waiting = waiting.filter(({ id }) => id > message.id);
        statuses.settled(message.id);
        return;
      case 'snapshot':
      case 'adopted':
        asked.get(message.id)?.(message);
        asked.delete(message.id);
        return;
      case 'log':
        log[message.level](message.message, message.fields);
    }
  };

  /** What was written last may be half a change: nothing is believed until it is relearnt. */
  const distrust = (): void => {
    isReady = false;
    statuses.readFrom(null);
    answerAll();
  };

  const lost = (problem: string): void => {
    distrust();
    if (phase !== 'running') return;
    nLost++;
    nDeaths = clock.nowMs() - startedAtMs > STABLE_MS ? 0 : nDeaths + 1;
    const delayMs = backoffMs(nDeaths, RESTART_BASE_MS, RESTART_MAX_MS);
    log.error('ingest thread lost', { problem, restartInMs: Math.round(delayMs) });
    timer = clock.after(delayMs, restart);
  };

  const restart = (): void => {
    spawn().then(
      () => post({ kind: 'reconcile', id: lastId, sources: statuses.sources() }),
      (problem: unknown) => log.error('ingest thread not started', { problem: errorText(problem) }),
    );
  };

  const lookAfter = (): void => {
    const nowMs = clock.nowMs();
    const pulse = board?.pulse() ?? 0;
    // When this thread itself was blocked, or the whole machine, the other one gets its time again.
    if (pulse !== lastPulse || nowMs - watchedAtMs > 4 * WATCH_MS) pulseAtMs = nowMs;
    lastPulse = pulse;
    watchedAtMs = nowMs;
    if (worker !== null) judgeSilence(nowMs - pulseAtMs - (isReady ? 0 : STARTING_MS));
    watch = clock.after(WATCH_MS, lookAfter);
  };

  const judgeSilence = (silentMs: number): void => {
    if (silentMs > silence.giveUpMs) {
      void endOf(worker!);
      worker = null;
      board = null;
      // Until it is gone it may go on writing: what it writes to is read by nobody any more.
      memory = createPrefixIndexMemory({ maxBytes: indexMaxBytes });
      index = openPrefixIndexReader(memory);
      lost(`silent for ${Math.round(silentMs)} ms`);
    } else if (silentMs > silence.doubtMs !== isSilent) {
      isSilent = !isSilent;
      statuses.readFrom(isSilent || !isReady ? null : board);
      if (isSilent) log.warn('ingest thread is silent', { silentMs: Math.round(silentMs) });
    }
  };

  /** By force, which it may resist while it is in the kernel. */
  const endOf = (thread: Worker): Promise<void> =>
    new Promise((resolve) => {
      const limit = clock.after(STOP_TIMEOUT_MS, () => {
        log.error('ingest thread does not end', { waitedMs: STOP_TIMEOUT_MS });
        thread.unref();
        resolve();
      });
      void thread.terminate().then(() => {
        limit.cancel();
        resolve();
      });
    });

  return {
    index: {
      longestMatch: (hashes, slots) => index.longestMatch(hashes, slots),
      stats: () => index.stats(),
    },
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
      if (worker !== null) await endOf(worker);
      worker = null;
      statuses.replace([], 0);
      answerAll();
      for (const { resolve } of waiting) resolve();
      waiting = [];
    },
    reconcile(wanted) {
      if (phase !== 'running') {
        return Promise.reject(new WarmpathError('worker_died', `ingest is ${phase}, expected running`));
      }
      const id = ++lastId;
      const sources = statuses.replace(wanted, id);
      const done = new Promise<void>((resolve) => waiting.push({ id, resolve }));
      // A thread that is being restarted gets the newest list once it is ready.
      if (isReady) post({ kind: 'reconcile', id, sources });
      return done;
    },
    statuses: () => statuses.all(),
    sharedNames(which) {
      const known = statuses.all();
      const isWanted = (i: number): boolean => which === 'all' || (known[i]!.state === 'live' && known[i]!.partial);
      return statuses.sources().flatMap((source, i) => (isWanted(i) ? [sharedName(source)] : []));
    },
    async snapshot(name) {
      const place = placeOf(name);
      if (place === undefined) return null;
      const answer = await ask((id) => ({ kind: 'snapshot', id, place }));
      return answer?.kind === 'snapshot' ? answer.snapshot : null;
    },
    async adopt(name, snapshot) {
      const place = placeOf(name);
      if (place === undefined) return false;
      const given = snapshot.words.buffer as ArrayBuffer;
      const answer = await ask((id) => ({ kind: 'adopt', id, place, snapshot }), [given]);
      return answer?.kind === 'adopted' && answer.isProving;
    },
    problem() {
      if (worker !== null && isReady && !isSilent) return null;
      return worker !== null && isSilent ? 'ingest thread is silent' : 'ingest thread is down';
    },
    nLost: () => nLost,
  };
}

/** What tells a source from others on every replica: slots and ids are local. */
function sharedName({ rank, model, kvEvents }: IngestSource): string {
  return JSON.stringify([kvEvents.endpoint, rank, model]);
}

/** Sources run by type stripping in development, compiled ones when packed. */
function defaultWorkerUrl(): URL {
  return new URL(import.meta.url.endsWith('.ts') ? './ingest-worker.ts' : './ingest-worker.js', import.meta.url);
}
