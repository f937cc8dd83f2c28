/**
 * A vLLM pod without a GPU: engine, HTTP and KV events put together; with data parallelism several engines with a cache and
 * a publisher each behind one HTTP port. Every pod starts with an empty cache and sequence number 0; a restart is a new pod
 * on the same ports. Part of the product as a test kit; `serve` never imports it.
 */
import { systemClock, type Clock } from '../clock.ts';
import { createEngine, type Engine, type EngineOptions, type EngineStats, type ResidentBlock } from './engine.ts';
import { createEventPublisher, type EventPublisher, type ReplayFrames } from './event-publisher.ts';
import { createPodHttp, type RenderMode } from './http.ts';
import { encodeBatch, type EventsForm, type HashForm } from './kv-event-encoding.ts';
import { metricsPage } from './metrics-page.ts';
import { createRequestReader } from './openai-requests.ts';
import { createServedModels } from './served-models.ts';

/** How the pod speaks; the defaults are those of a current vLLM. */
export type WireForm = {
  readonly events: EventsForm;
  readonly hashes: HashForm;
  readonly replayFrames: ReplayFrames;
};

export type SimulatedPodOptions = EngineOptions & {
  /** An IP address; sockets bind on it alone. */
  readonly host: string;
  /** HTTP; 0 picks a free port, here and below. */
  readonly port: number;
  readonly kvEventsPort: number;
  readonly replayPort: number;
  readonly model: string;
  readonly adapters: readonly string[];
  /** Longest prompt plus answer; null = what the cache holds, 131 072 at most. */
  readonly maxModelLen: number | null;
  /** Length of a chat answer when the client sets no limit. */
  readonly defaultAnswerTokens: number;
  readonly wire: WireForm;
  /** 'forbidden': 403, as 0.30 and later without --enable-scale-out. 'missing': 404, as before 0.18. */
  readonly render: RenderMode;
  readonly promptTokensDetails: 'on' | 'off';
  /** Batches kept for replay. */
  readonly bufferSteps: number;
  /** First frame of live batches; null = `kv@<ip>:<port>@<model>` once the port is known. */
  readonly topic: string | null;
  /** Of the first engine, as its batches say it. */
  readonly dataParallelRank: number;
  /** Engines; rank r publishes on both ports + r, which are given then and lie far enough apart. */
  readonly dataParallelSize: number;
  /** Delay of tokenizer and render answers; 'hang' never answers. */
  readonly tokenizerDelayMs: number | 'hang';
  /** How far its clock is ahead of this machine's; negative: behind. */
  readonly clockOffsetMs: number;
};

export type SimulatedPodAddresses = {
  /** `ip:port` */
  readonly httpAddress: string;
  /** `tcp://ip:port` of the first rank. */
  readonly kvEventsEndpoint: string;
  readonly replayEndpoint: string;
};

export type SimulatedPodStats = EngineStats & {
  /** Batches numbered so far: the sequence number of the next one. */
  readonly nextSeq: number;
};

/** Faults to inject while the pod runs, into every rank. */
export type PodFaults = {
  setTokenizerDelay(delay: number | 'hang'): void;
  /** The next `n` batches are lost on the live stream; replay has them. */
  dropLiveBatches(n: number): void;
  /** Sends one message with these frames on the live stream. */
  sendRaw(frames: readonly Buffer[]): void;
  /** Replies to later replays that are lost on the way, by sequence number; −1 is the end marker. */
  loseInReplays(isLost: (seq: number) => boolean): void;
  ignoreReplays(): void;
  answerReplays(): void;
  /** The engine stops stepping: requests wait, events stay away. */
  stall(): void;
  resume(): void;
};

export type SimulatedPod = {
  readonly options: SimulatedPodOptions;
  readonly faults: PodFaults;
  start(): Promise<SimulatedPodAddresses>;
  /** Cuts what is in flight and frees the ports. Nothing is announced, as with a real engine's end. */
  stop(): Promise<void>;
  /** The same for a crash: connections are reset. */
  kill(): Promise<void>;
  /** @param rank the first one unless told otherwise, here and below */
  residentBlocks(rank?: number): ResidentBlock[];
  resetPrefixCache(): 'done' | 'in_use';
  stats(rank?: number): SimulatedPodStats;
};

export const SIMULATED_POD_DEFAULTS: SimulatedPodOptions = {
  host: '127.0.0.1',
  port: 0,
  kvEventsPort: 0,
  replayPort: 0,
  model: 'demo-model',
  adapters: [],
  blockSizeTokens: 16,
  nBlocks: 2048,
  uncachedBlocks: 'reused_first',
  prefillTokensPerSecond: 8000,
  decodeStepMs: 10,
  maxBatchedTokens: 2048,
  maxSequences: 256,
  seed: 1,
  maxModelLen: null,
  defaultAnswerTokens: 64,
  wire: { events: 'maps', hashes: 'int', replayFrames: 4 },
  render: 'on',
  promptTokensDetails: 'on',
  bufferSteps: 10_000,
  topic: null,
  dataParallelRank: 0,
  dataParallelSize: 1,
  tokenizerDelayMs: 0,
  clockOffsetMs: 0,
};

const MAX_MODEL_LEN = 131_072;
const HIGH_WATER_MARK = 100_000;

export function createSimulatedPod(
  given: Partial<Omit<SimulatedPodOptions, 'wire'>> & { readonly wire?: Partial<WireForm> } = {},
  machineClock: Clock = systemClock,
): SimulatedPod {
  const wire = { ...SIMULATED_POD_DEFAULTS.wire, ...given.wire };
  const options: SimulatedPodOptions = {
    ...SIMULATED_POD_DEFAULTS,
    // Engines that speak arrays are of the time before uncached blocks were reused first.
    uncachedBlocks: wire.events === 'arrays' ? 'in_order' : 'reused_first',
    ...given,
    wire,
  };
  const capacityTokens = (options.nBlocks - 1) * options.blockSizeTokens;
  const maxModelLen = Math.min(options.maxModelLen ?? MAX_MODEL_LEN, capacityTokens);
  const clock: Clock = { ...machineClock, unixMs: () => machineClock.unixMs() + options.clockOffsetMs };
  let tokenizerDelay = options.tokenizerDelayMs;

  const ranks = Array.from({ length: options.dataParallelSize }, (_, rank) => createRank(options, clock, rank));
  const engines = ranks.map(({ engine }) => engine);
  const publishers = ranks.map(({ publisher }) => publisher);
  const models = createServedModels(options.model, options.adapters);
  let sources: Awaited<ReturnType<EventPublisher['start']>>[] = [];
  let topic = options.topic ?? '';

  const http = createPodHttp(
    {
      clock,
      engines,
      models,
      reader: createRequestReader(models, { maxModelLen, defaultAnswerTokens: options.defaultAnswerTokens }),
      metrics: () =>
        metricsPage(
          engines.map((engine) => engine.stats()),
          options,
          { model: options.model, nAdapters: models.list().length - 1, unixSeconds: clock.unixMs() / 1000 },
        ),
      kvEventSources: () =>
        Object.fromEntries(
          ranks.map((_, rank) => [
            String(options.dataParallelRank + rank),
            {
              enable_kv_cache_events: true,
              publisher: 'zmq',
              endpoint: sources[rank]?.kvEventsEndpoint,
              replay_endpoint: sources[rank]?.replayEndpoint,
              buffer_steps: options.bufferSteps,
              hwm: HIGH_WATER_MARK,
              max_queue_size: HIGH_WATER_MARK,
              topic,
            },
          ]),
        ),
      tokenizerDelay: () => tokenizerDelay,
    },
    {
      host: options.host,
      port: options.port,
      maxModelLen,
      render: options.render,
      seed: options.seed,
      era: options.wire.events,
      promptTokensDetails: options.promptTokensDetails,
    },
  );

  const end = async (how: 'close' | 'reset'): Promise<void> => {
    for (const engine of engines) engine.stop();
    await Promise.all([http.stop(how), ...publishers.map((publisher) => publisher.stop())]);
  };

  return {
    options,
    faults: {
      setTokenizerDelay(delay) {
        tokenizerDelay = delay;
      },
      dropLiveBatches: (n) => publishers.forEach((publisher) => publisher.dropLiveBatches(n)),
      sendRaw: (frames) => publishers.forEach((publisher) => publisher.sendRaw(frames)),
      loseInReplays: (isLost) => publishers.forEach((publisher) => publisher.loseInReplays(isLost)),
      ignoreReplays: () => publishers.forEach((publisher) => publisher.ignoreReplays()),
      answerReplays: () => publishers.forEach((publisher) => publisher.answerReplays()),
      stall: () => engines.forEach((engine) => engine.stall()),
      resume: () => engines.forEach((engine) => engine.resume()),
    },
    async start() {
      const httpAddress = await http.start();
      try {
        topic = options.topic ?? `kv@${httpAddress}@${options.model}`;
        sources = [];
        for (const publisher of publishers) sources.push(await publisher.start(topic));
        return { httpAddress, ...sources[0]! };
      } catch (error) {
        await end('close');
        throw error;
      }
    },
    stop: () => end('close'),
    kill: () => end('reset'),
    residentBlocks: (rank = 0) => engines[rank]!.residentBlocks(),
    resetPrefixCache: () =>
      engines.map((engine) => engine.resetPrefixCache()).every((outcome) => outcome === 'done') ? 'done' : 'in_use',
    stats: (rank = 0) => ({ ...engines[rank]!.stats(), nextSeq: publishers[rank]!.nextSeq() }),
  };
}

/** Blocks of two ranks never have one name: processes draw their seeds each for itself. */
const SEEDS_APART = 1_000_003;

function createRank(
  options: SimulatedPodOptions,
  clock: Clock,
  rank: number,
): { readonly engine: Engine; readonly publisher: EventPublisher } {
  const { wire, blockSizeTokens } = options;
  const form = { ...wire, blockSizeTokens, dataParallelRank: options.dataParallelRank + rank };
  const publisher = createEventPublisher({
    host: options.host,
    port: rankPort(options.kvEventsPort, options, rank),
    replayPort: rankPort(options.replayPort, options, rank),
    replayFrames: wire.replayFrames,
    bufferSteps: options.bufferSteps,
    highWaterMark: HIGH_WATER_MARK,
  });
  const engine = createEngine(
    { clock, publish: (events, unixSeconds) => publisher.publish(encodeBatch(events, unixSeconds, form)) },
    { ...options, seed: options.seed + rank * SEEDS_APART },
  );
  return { engine, publisher };
}

function rankPort(port: number, { dataParallelSize }: SimulatedPodOptions, rank: number): number {
  if (port === 0 && dataParallelSize > 1) {
    throw new Error(`event and replay port of ${dataParallelSize} data-parallel ranks must be given, got 0`);
  }
  return port + (port === 0 ? 0 : rank);
}
