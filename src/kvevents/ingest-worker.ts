/**
 * Entry of the ingest thread: sockets, decoding and every write to the index happen here and nowhere else. It is told
 * which sources to follow and writes their state on the board; it never waits for the serving thread.
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
import { createRedials } from './redials.ts';
import { createReplayPermits } from './replay-permits.ts';
import { createCounterSink } from './source-status.ts';
import { openStatusBoardWriter } from './status-board.ts';
import { createSubscriber } from './subscriber.ts';
import { createSubscriptions } from './subscriptions.ts';
import { createTopicListeners } from './topic-listeners.ts';
import { createZmqContext } from './zmq-frames.ts';

const TICK_MS = 50;
/** Some tenths of a millisecond. */
const TIDY_BLOCKS = 512;

if (parentPort === null) throw new WarmpathError('worker_died', 'ingest-worker must be started as a worker thread');
run(parentPort, workerData as IngestWorkerOptions);

function run(port: MessagePort, options: IngestWorkerOptions): void {
  const clock = systemClock;
  const post = (message: FromIngestWorker): void => port.postMessage(message);
  const log = createPortLog(post, options.debugLog);
  const counters = createCounterSink();
  const board = openStatusBoardWriter(options.board);
  const context = createZmqContext();
  const listeners =
    options.listen === null
      ? null
      : createTopicListeners(
          {
            clock,
            context,
            onUnknownTopic: () => counters.error('unknown_topic'),
            onFailure(error, endpoint) {
              counters.error('socket');
              log.warn('kv event port not open', { endpoint, problem: errorText(error) });
            },
          },
          options.listen,
        );
  const shared = {
    clock,
    log,
    decoder: createKvEventDecoder({}, 'joined'),
    context,
    listeners,
    permits: createReplayPermits(options.maxParallelReplays),
    redials: createRedials(),
    counters,
  };
  const engineBlocks = createEngineBlocks({
    index: openPrefixIndexWriter(options.memory),
    hasher: createBlockHasher(options.seed),
  });
  const subscriptions = createSubscriptions((source) => {
    const blocks = engineBlocks.openSource({ slot: source.slot, rank: source.rank, model: source.model });
    const subscriber = createSubscriber(
      { ...shared, blocks, onStanding: () => board.write(source.place, subscriber.status()) },
      source,
      options.stream,
    );
    return subscriber;
  });

  const report = (): void => {
    subscriptions.report(({ place }, status) => board.write(place, status));
    const counted = counters.take();
    if (counted !== null) post({ kind: 'counted', counters: counted });
  };

  let isOver = false;
  let isTidying = false;
  /** What sources that left have held goes in slices, between everything else there is to do. */
  const tidyUp = (): void => {
    isTidying = !isOver && engineBlocks.tidy(TIDY_BLOCKS);
    if (isTidying) setImmediate(tidyUp);
  };

  const tick = (): void => {
    // The serving thread had given this one up: whatever held it back, there is another one now.
    if (board.isReplaced()) {
      die(new WarmpathError('worker_died', 'ingest thread was silent for too long and has been replaced'));
      return;
    }
    board.beat();
    subscriptions.tick();
    listeners?.tick();
    if (!isTidying) tidyUp();
  };

  const timers = [setInterval(tick, TICK_MS), setInterval(report, options.reportMs)];

  const stop = async (): Promise<void> => {
    isOver = true;
    timers.forEach(clearInterval);
    await subscriptions.stop();
    await listeners?.close();
    // Nothing is left to do then, and the thread ends by itself.
    port.close();
  };

  // A thread that ends with open ZMQ sockets takes the whole process down (zeromq.js issue 411), so it must never just
  // end: not by an uncaught error, not by `terminate`, not by the main thread's `process.exit`.
  let isDying = false;
  const die = (error: unknown): void => {
    if (isDying) return;
    isDying = isOver = true;
    timers.forEach(clearInterval);
    post({ kind: 'dying', problem: errorText(error) });
    void Promise.allSettled([subscriptions.abandon(), listeners?.close()]).then(() => port.close());
  };
  process.on('uncaughtException', die);

  const reconcile = async (id: number, sources: Parameters<typeof subscriptions.reconcile>[0]): Promise<void> => {
    await subscriptions.reconcile(sources);
    report();
    post({ kind: 'reconciled', id });
  };

  const handle = (message: ToIngestWorker): Promise<void> | void => {
    switch (message.kind) {
      case 'reconcile':
        return reconcile(message.id, message.sources);
      case 'snapshot': {
        const snapshot = subscriptions.at(message.place)?.snapshot() ?? null;
        const answer: FromIngestWorker = { kind: 'snapshot', id: message.id, snapshot };
        port.postMessage(answer, snapshot === null ? [] : [snapshot.words.buffer as ArrayBuffer]);
        return;
      }
      case 'adopt': {
        const isProving = subscriptions.at(message.place)?.adopt(message.snapshot) ?? false;
        post({ kind: 'adopted', id: message.id, isProving });
        return;
      }
      case 'stop':
        return stop();
    }
  };

  port.on('message', (message: ToIngestWorker) => {
    // A failure here is a bug: it ends the thread, which is noticed, and everything is relearnt.
    Promise.resolve()
      .then(() => handle(message))
      .catch(die);
  });
  post({ kind: 'ready' });
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
