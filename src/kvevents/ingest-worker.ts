/**
 * Entry of the ingest thread: sockets, decoding and every write to the index happen here and nowhere else. It is told
 * which sources to follow and writes their state on the board; it never waits for the serving thread, which also ends it.
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
import { createCounterSink, type SourceSnapshot } from './source-status.ts';
import { openStatusBoardWriter } from './status-board.ts';
import { createSubscriber, type Subscriber } from './subscriber.ts';
import { createSubscriptions } from './subscriptions.ts';
import { createTopicListeners } from './topic-listeners.ts';
import { createZmtp } from './zmtp.ts';

const TICK_MS = 50;
/** Some tenths of a millisecond. */
const TIDY_BLOCKS = 512;
/** Whoever may connect may do so wrongly, again and again: what it did is counted, and told so many times a minute. */
const MAX_PORT_LINES = 30;

if (parentPort === null) throw new WarmpathError('worker_died', 'ingest-worker must be started as a worker thread');
run(parentPort, workerData as IngestWorkerOptions);

function run(port: MessagePort, options: IngestWorkerOptions): void {
  const clock = systemClock;
  const post = (message: FromIngestWorker): void => port.postMessage(message);
  const log = createPortLog(post, options.debugLog);
  const counters = createCounterSink();
  const board = openStatusBoardWriter(options.board);
  const zmtp = createZmtp(clock);
  let nPortLines = 0;
  const listeners =
    options.listen === null
      ? null
      : createTopicListeners(
          {
            clock,
            zmtp,
            onUnknownTopic: () => counters.error('unknown_topic'),
            onFailure(error, endpoint) {
              counters.error('socket');
              if (nPortLines++ < MAX_PORT_LINES) {
                log.warn('kv event port in trouble', { endpoint, problem: errorText(error) });
              }
            },
          },
          options.listen,
        );
  const shared = {
    clock,
    log,
    decoder: createKvEventDecoder({}, 'joined'),
    zmtp,
    listeners,
    permits: createReplayPermits(options.maxParallelReplays, clock),
    redials: createRedials(),
    counters,
  };
  const engineBlocks = createEngineBlocks({
    index: openPrefixIndexWriter(options.memory),
    hasher: createBlockHasher(options.seed),
  });
  const subscriptions = createSubscriptions((source, onChange) => {
    const blocks = engineBlocks.openSource({ slot: source.slot, rank: source.rank, model: source.model });
    const subscriber = createSubscriber(
      { ...shared, blocks, onStanding: () => board.write(source.place, subscriber.status()), onChange },
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
    board.beat();
    subscriptions.tick(clock.nowMs());
    listeners?.tick();
    if (!isTidying) tidyUp();
  };

  const timers = [
    setInterval(tick, TICK_MS),
    setInterval(report, options.reportMs),
    setInterval(() => void (nPortLines = 0), 60_000),
  ];

  // A failure here is a bug: the serving thread ends this one, and everything is relearnt.
  const die = (error: unknown): void => {
    if (isOver) return;
    isOver = true;
    timers.forEach(clearInterval);
    post({ kind: 'dying', problem: errorText(error) });
  };
  process.on('uncaughtException', die);

  const tell = (id: number, subscriber: Subscriber | undefined): void => {
    const answer = (snapshot: SourceSnapshot | null): void => {
      const message: FromIngestWorker = { kind: 'snapshot', id, snapshot };
      port.postMessage(message, snapshot === null ? [] : [snapshot.words.buffer as ArrayBuffer]);
    };
    if (subscriber === undefined) answer(null);
    else subscriber.snapshot(answer);
  };

  port.on('message', (message: ToIngestWorker) => {
    switch (message.kind) {
      case 'reconcile':
        subscriptions.reconcile(message.sources);
        report();
        post({ kind: 'reconciled', id: message.id });
        return;
      case 'snapshot':
        tell(message.id, subscriptions.at(message.place));
        return;
      case 'adopt': {
        const answer = (isProving: boolean): void => post({ kind: 'adopted', id: message.id, isProving });
        const subscriber = subscriptions.at(message.place);
        if (subscriber === undefined) answer(false);
        else subscriber.adopt(message.snapshot, answer);
      }
    }
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
