/**
 * Entry of the ingest thread: sockets, decoding and every write to the index happen here and nowhere else. It is told
 * which sources to follow and reports their state; it never waits for the serving thread.
 */
import { parentPort, workerData, type MessagePort } from 'node:worker_threads';
import { systemClock } from '../clock.ts';
import { WarmpathError, errorText } from '../errors.ts';
import type { Log, LogFields, LogLevel } from '../log.ts';
import { createBlockHasher } from '../prefix/block-hash.ts';
import { openPrefixIndexWriter } from '../prefix/prefix-index.ts';
import { createKvEventDecoder } from './decode.ts';
import { createEngineBlocks } from './engine-blocks.ts';
import type { FromIngestWorker, IngestWorkerOptions, ToIngestWorker } from './ingest-messages.ts';
import { createReplayPermits } from './replay-permits.ts';
import { createCounterSink, type SourceStatus } from './source-status.ts';
import { createSubscriber } from './subscriber.ts';
import { createSubscriptions } from './subscriptions.ts';

const TICK_MS = 50;
/** A report at least this often, as a sign of life. */
const MAX_SILENCE_MS = 500;

if (parentPort === null) throw new WarmpathError('worker_died', 'ingest-worker must be started as a worker thread');
run(parentPort, workerData as IngestWorkerOptions);

function run(port: MessagePort, options: IngestWorkerOptions): void {
  const clock = systemClock;
  const post = (message: FromIngestWorker): void => port.postMessage(message);
  const log = createPortLog(post, options.debugLog);
  const counters = createCounterSink();
  const decoder = createKvEventDecoder();
  const permits = createReplayPermits(options.maxParallelReplays);
  const engineBlocks = createEngineBlocks({
    index: openPrefixIndexWriter(options.memory),
    hasher: createBlockHasher(options.seed),
  });
  const subscriptions = createSubscriptions((source) => {
    const blocks = engineBlocks.openSource({ slot: source.slot, rank: source.rank, model: source.model });
    return createSubscriber({ clock, log, decoder, blocks, permits, counters }, source, options.stream);
  });

  let reported = '';
  let reportedAtMs = -Infinity;
  const report = (): void => {
    const statuses = subscriptions.statuses();
    const digest = digestOf(statuses);
    const counted = counters.take();
    const nowMs = clock.nowMs();
    if (digest === reported && counted === null && nowMs - reportedAtMs < MAX_SILENCE_MS) return;
    reported = digest;
    reportedAtMs = nowMs;
    post({ kind: 'report', statuses, counters: counted });
  };

  const timers = [setInterval(() => subscriptions.tick(), TICK_MS), setInterval(report, options.reportMs)];

  const stop = async (): Promise<void> => {
    timers.forEach(clearInterval);
    await subscriptions.stop();
    // Nothing is left to do then, and the thread ends by itself.
    port.close();
  };

  // A thread that ends with open ZMQ sockets takes the whole process down (zeromq.js issue 411), so it must never just
  // end: not by an uncaught error, not by `terminate`, not by the main thread's `process.exit`.
  let isDying = false;
  const die = (error: unknown): void => {
    if (isDying) return;
    isDying = true;
    timers.forEach(clearInterval);
    post({ kind: 'dying', problem: errorText(error) });
    void subscriptions.abandon().then(() => port.close());
  };
  process.on('uncaughtException', die);

  const reconcile = async (id: number, sources: Parameters<typeof subscriptions.reconcile>[0]): Promise<void> => {
    await subscriptions.reconcile(sources);
    // First what is followed now, so that nobody reads of a slot that is free already.
    report();
    post({ kind: 'reconciled', id });
  };

  port.on('message', (message: ToIngestWorker) => {
    // A failure here is a bug: it ends the thread, which is noticed, and everything is relearnt.
    (message.kind === 'stop' ? stop() : reconcile(message.id, message.sources)).catch(die);
  });
  post({ kind: 'ready' });
}

/** What a reader would notice, without ages. */
function digestOf(statuses: readonly SourceStatus[]): string {
  let digest = '';
  for (const s of statuses) {
    digest += `${s.endpointId} ${s.rank} ${s.state} ${s.trust} ${s.lastSeq} ${s.nBlocks} ${s.errors} ${s.replays} ${s.partial};`;
  }
  return digest;
}

function createPortLog(post: (message: FromIngestWorker) => void, debugLog: 'on' | 'off', fields: LogFields = {}): Log {
  const line = (level: LogLevel) => (message: string, more?: LogFields) =>
    post({ kind: 'log', level, message, fields: { ...fields, ...more } });
  return {
    debugEnabled: debugLog === 'on',
    debug: debugLog === 'on' ? line('debug') : () => undefined,
    info: line('info'),
    warn: line('warn'),
    error: line('error'),
    with: (more) => createPortLog(post, debugLog, { ...fields, ...more }),
  };
}
