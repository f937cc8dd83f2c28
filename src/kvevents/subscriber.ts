/**
 * Follows one publisher: what it is, how it is reached, what is counted and told of it. Payloads are applied in
 * batch-applier.ts, sequence rules are in event-stream.ts, sockets in event-connection.ts and topic-connection.ts.
 */
import type { Clock } from '../clock.ts';
import { errorText } from '../errors.ts';
import type { Log } from '../log.ts';
import { createBatchApplier } from './batch-applier.ts';
import type { KvEventDecoder } from './decode.ts';
import type { EngineBlocksSource } from './engine-blocks.ts';
import { createEventConnection, type EventConnectionDeps } from './event-connection.ts';
import type { EventStreamOptions, StreamState } from './event-stream.ts';
import { createLateness } from './lateness.ts';
import type { Redials } from './redials.ts';
import type { ReplayPermits } from './replay-permits.ts';
import type { Installed } from './replayed-stream.ts';
import { inSlices } from './slices.ts';
import type { CounterSink, IngestSource, SourceSnapshot, SourceStatus } from './source-status.ts';
import { createTopicConnection } from './topic-connection.ts';
import { isTopic, type TopicListeners } from './topic-listeners.ts';
import { deriveTrust } from './trust.ts';
import type { Zmtp } from './zmtp.ts';

export type SubscriberDeps = {
  readonly clock: Clock;
  readonly log: Log;
  /** Shared by all sources: a batch is applied before the next one is decoded. */
  readonly decoder: KvEventDecoder;
  readonly blocks: EngineBlocksSource;
  readonly zmtp: Zmtp;
  readonly permits: ReplayPermits;
  readonly redials: Redials;
  /** Null: no port is open for publishers that connect to us. */
  readonly listeners: TopicListeners | null;
  readonly counters: CounterSink;
  /** Less or more is to be believed than a moment ago. */
  onStanding(): void;
  /** More than ages may be different in `status`. */
  onChange(): void;
};

export type Subscriber = {
  start(): void;
  /** Then the blocks are gone from the index. */
  stop(): void;
  /** To be called several times a second. @returns when next, where nothing can happen before; else 0 */
  tick(): number;
  /** The process behind the source is another one. */
  restarted(): void;
  /** For another replica. @param done called once; null: there is a doubt, nothing to tell, or no time to tell it */
  snapshot(done: (snapshot: SourceSnapshot | null) => void): void;
  /** Takes over what another replica knows. @param done called once: whether it is being proved; false: it is of no use */
  adopt(snapshot: SourceSnapshot, done: (isProving: boolean) => void): void;
  status(): SourceStatus;
};

/** Timestamps above are in milliseconds (Mooncake), not in seconds: the year 5138. */
const MAX_UNIX_SECONDS = 1e11;

export function createSubscriber(
  deps: SubscriberDeps,
  source: IngestSource,
  options: Partial<EventStreamOptions> = {},
): Subscriber {
  const { clock, decoder, blocks, counters } = deps;
  const log = deps.log.with({ endpoint: source.kvEvents.endpoint, rank: source.rank });
  const counts = { gaps: 0, restarts: 0, replays: 0, errors: 0 };
  const latenessOf = createLateness(clock);
  let lagMs: number | null = null;
  let loggedState: StreamState = 'unknown';
  let hasNewStanding = false;
  let lastFailure: string | null = null;
  let isTelling = false;

  const error = (reason: string): void => {
    counts.errors++;
    counters.error(reason);
    deps.onChange();
  };

  const applier = createBatchApplier({
    decoder,
    blocks,
    onEvents: counters.events,
    onError(reason, problem) {
      error(reason);
      if (reason === 'internal') log.error('kv event batch not applied', { problem });
      else if (problem !== null) log.debug('kv event payload refused', { problem });
    },
  });

  const noteLag = (ts: number): void => {
    const sentUnixMs = ts < MAX_UNIX_SECONDS ? ts * 1000 : ts;
    // Zero is what a publisher without a clock sends.
    if (!Number.isFinite(sentUnixMs) || sentUnixMs <= 0) return;
    lagMs = latenessOf(sentUnixMs);
    // Clocks differ a little: a batch from the future has no lag.
    counters.lag(Math.max(0, clock.unixMs() - sentUnixMs));
  };

  const connectionDeps: EventConnectionDeps = {
    clock,
    zmtp: deps.zmtp,
    permits: deps.permits,
    redials: deps.redials,
    apply: (payload, _seq, origin) => applier.apply(payload, origin === 'live' ? noteLag : undefined),
    isBatch: applier.isBatch,
    clear: () => blocks.clear(),
    onStanding() {
      hasNewStanding = true;
      deps.onStanding();
    },
    onChange: () => deps.onChange(),
    onGap() {
      counts.gaps++;
      counters.gap();
    },
    onRestart() {
      counts.restarts++;
      counters.restart();
    },
    onReplay(result) {
      counts.replays++;
      counters.replay(result);
    },
    onGarbage: error,
    onFailure(problem) {
      error('socket');
      const text = errorText(problem);
      if (text !== lastFailure) log.warn('kv event socket failed', { problem: text });
      lastFailure = text;
    },
  };
  const connection =
    deps.listeners !== null && isTopic(source.kvEvents.endpoint)
      ? createTopicConnection(connectionDeps, deps.listeners, source.kvEvents, options)
      : createEventConnection(connectionDeps, source.kvEvents, options);

  function* install(words: Uint32Array): Generator<void, Installed> {
    try {
      yield* blocks.restore(words);
      return blocks.stats().partial ? 'partial' : 'whole';
    } catch (problem) {
      error('snapshot');
      log.warn('kv event snapshot refused', { problem: errorText(problem) });
      return 'failed';
    }
  }

  const logState = (): void => {
    hasNewStanding = false;
    const { state } = connection.status();
    if (state === loggedState) return;
    log.info('kv event stream changed', { state, before: loggedState });
    loggedState = state;
  };

  return {
    start: () => connection.open(),
    stop() {
      connection.close();
      blocks.close();
    },
    tick() {
      const nextMs = connection.tick();
      // Here, so that a stream in trouble does not fill the log.
      if (hasNewStanding) logState();
      return nextMs;
    },
    restarted: () => connection.restarted(),
    snapshot(done) {
      const mark = isTelling ? null : connection.mark();
      if (mark === null) {
        done(null);
        return;
      }
      isTelling = true;
      const letGo = connection.hold();
      inSlices(blocks.snapshot(), (words) => {
        isTelling = false;
        letGo();
        done(words === null ? null : { mark, words });
      });
    },
    adopt: ({ mark, words }, done) => connection.adopt(mark, () => install(words), done),
    status() {
      const stream = connection.status();
      const held = blocks.stats();
      const unixMs = (ms: number | null): number | null => (ms === null ? null : clock.unixMs() - (clock.nowMs() - ms));
      return {
        endpointId: source.endpointId,
        rank: source.rank,
        state: stream.state,
        connection: connection.reached(),
        trust: deriveTrust({ stream, indexable: held.indexable, partial: held.partial }),
        lastSeq: stream.lastSeq === null ? null : stream.lastSeq.toString(),
        ...counts,
        nBlocks: held.nBlocks,
        blockSizeTokens: held.blockSizeTokens,
        reportsExtraKeys: held.reportsExtraKeys,
        lastEventUnixMs: unixMs(stream.lastHeardMs),
        lastBatchUnixMs: unixMs(stream.lastBatchMs),
        lastProvenUnixMs: unixMs(stream.lastProvenMs),
        lagMs,
        behind: stream.behind,
        replay: stream.replay,
        partial: stream.partial || held.partial,
      };
    },
  };
}
