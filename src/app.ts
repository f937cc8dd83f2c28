/**
 * Composition root of `serve`: builds every part with constructor arguments, wires the three flows, owns start and stop
 * order. Start: admin, health → endpoints (first list) → KV events → ext_proc. Stop: the reverse, readiness first.
 */
import { createDecisionLog } from './admin/decision-log.ts';
import { explain } from './admin/explain.ts';
import { createAdminServer } from './admin/http.ts';
import { createReadiness } from './admin/readiness.ts';
import { createReporter } from './app-reporter.ts';
import type { Clock } from './clock.ts';
import { changedKeys, redactedConfig, withLiveKeys, type Config, type ConfigKey } from './config.ts';
import { createEndpointPicker } from './endpoint-picker.ts';
import { createEndpointStore, type EndpointStore } from './endpoints/endpoint-store.ts';
import {
  ranksApart,
  type Endpoint,
  type EndpointId,
  type EndpointSlot,
  type EndpointSpec,
} from './endpoints/endpoint.ts';
import { createStaticEndpoints } from './endpoints/static-endpoints.ts';
import { errorText } from './errors.ts';
import { createExtProcServer, type ExtProcServerOptions } from './extproc/server.ts';
import { createFleetChanges } from './fleet-changes.ts';
import { createKnowledge, createStreamSummaries, type StreamSummary } from './kvevents/endpoint-knowledge.ts';
import { createIngest } from './kvevents/ingest.ts';
import { createMissingPublishers } from './kvevents/missing-publishers.ts';
import { createWarmStart } from './kvevents/warm-start.ts';
import { createKubernetesEndpoints } from './kubernetes/kubernetes-endpoints.ts';
import type { CreditWeights } from './load/cache-trust.ts';
import { createEngineSeedFile } from './load/engine-seed-file.ts';
import { createFleetLoad } from './load/fleet-load.ts';
import { createRequestTrace } from './load/request-trace.ts';
import type { Log } from './log.ts';
import { createMetrics } from './metrics.ts';
import { createUsageReader } from './openai/usage.ts';
import { createOutageWatch } from './outage-watch.ts';
import { createHashSeed } from './prefix/block-hash.ts';
import { createLateHasher } from './prefix/late-hasher.ts';
import { createEvictionAges } from './prefix/eviction-ages.ts';
import { createRoutedPrefixes } from './prefix/routed-prefixes.ts';
import { DEFAULT_BLOCK_SIZE_TOKENS } from './picking/decision-record.ts';
import type { StrategyOptions } from './picking/strategy-choice.ts';
import { parseStrategy } from './scheduling/strategy-names.ts';
import { createSiblingService } from './siblings/sibling-service.ts';
import { tlsChannel } from './siblings/sibling-tls.ts';
import { createSiblings, plaintextChannel, type Siblings, type SiblingsDeps } from './siblings/siblings.ts';
import { createTokenizerLadder } from './tokenizer/tokenizer-ladder.ts';
import { createLocalTokenizer } from './tokenizer/local-tokenizer.ts';
import type { StartableTokenizer } from './tokenizer/sharing-tokenizer.ts';
import { createVllmTokenizer, type VllmTokenizerDeps } from './tokenizer/vllm-tokenizer.ts';

/** Addresses actually bound, `ip:port`. */
export type AppAddresses = { readonly grpc: string; readonly health: string | null; readonly admin: string };

export type App = {
  /** Resolves when usable. Rejects with one WarmpathError and nothing left running when a part cannot start. */
  start(): Promise<AppAddresses>;
  /** Drains and stops everything; idempotent. */
  stop(): Promise<void>;
  /** Puts what may change while it runs into effect. @returns the keys that changed, and those that a restart would change */
  reconfigure(next: Config): { readonly live: readonly ConfigKey[]; readonly atStart: readonly ConfigKey[] };
  /** The newest file is wrong: nothing changes but what readiness says. */
  refuseConfig(mistakes: readonly string[]): void;
};

const DECISION_LOG_ENTRIES = 1000;
/** A few hundred bytes each. */
const TRACE_ENTRIES = 10_000;
/** Bodies of the largest size that may wait at the same time, unless configured. */
const BODIES_HELD = 16;
/** How long the readiness of KV events may lag behind what they are. */
const WATCH_MS = 50;
/** What may pass between the tokenizer's budget and the answer: shorter than any message timeout we ship for Envoy. */
const DECISION_MARGIN_MS = 300;

export function createApp(config: Config, { log, clock }: { log: Log; clock: Clock }): App {
  /** What is in effect: the configuration at start, and the live keys of the newest file. */
  let current = config;
  const metrics = createMetrics();
  const readiness = createReadiness(['config', 'endpoints', 'grpc', 'kvEvents']);
  const endpoints = createEndpointStore();
  const decisions = createDecisionLog(DECISION_LOG_ENTRIES);
  const trace = createRequestTrace(TRACE_ENTRIES);
  const load = createFleetLoad(
    {
      log,
      clock,
      onScrape: (result, nIgnored) => reporter.scrape(result, nIgnored),
      onAdapters: (id, adapters) => endpoints.learnAdapters(id, adapters),
      onReplaced: (endpoint, adapter) => fleet.learnAnew(endpoint, adapter),
    },
    { ...config.load, adapterIntervalMs: config.discovery.adapterIntervalMs },
  );
  const { inFlight } = load;
  const cacheBlocks = (slot: number): number | null => {
    const { capacityTokens } = load.profiles.of(slot);
    if (capacityTokens === null) return null;
    return Math.floor(capacityTokens / (streamAt(slot)?.blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS));
  };
  const routed = createRoutedPrefixes(clock, { keptBlocks: cacheBlocks });
  const evictionAges = createEvictionAges(clock, {
    capacityBlocks: (slot) => (load.expected.allPerOwn() > 1 ? null : cacheBlocks(slot)),
  });
  const seed = createHashSeed();
  const hasher = createLateHasher(seed);
  const ladder = createTokenizerLadder({ hasher, clock }, config.tokenizer);
  const ingest = createIngest(
    { log, clock, onCounters: (delta) => reporter.kvEvents(delta) },
    {
      indexMaxBytes: config.kvEvents.indexMaxBytes,
      seed,
      listen: config.kvEvents.enabled ? config.kvEvents.listen : null,
    },
  );
  const { index } = ingest;
  let ownPort = portOf(config.server.grpcListen);
  const siblings = siblingsOf(config, { log, clock, seed, ingest, ownPort: () => ownPort });
  const streamOf = createStreamSummaries(() => ingest.statuses());
  const missingPublishers = createMissingPublishers({ log, unixMs: () => clock.unixMs(), streamOf });
  const forgetSent = (slot: EndpointSlot): void => {
    routed.forget(slot);
    evictionAges.forget(slot);
    ladder.forget(slot);
  };
  const slotIds = new Map<number, EndpointId>();
  const streamAt = (slot: number): StreamSummary | undefined => {
    const id = slotIds.get(slot);
    return id === undefined ? undefined : streamOf(id);
  };
  const creditWeights = ({ slot }: Pick<Endpoint, 'slot'>): CreditWeights => {
    const stream = streamAt(slot);
    if (stream === undefined || stream.trust === 'fallback') return load.creditWeights(slot, null);
    const { lastProvenUnixMs: provenUnixMs, lagMs, blocks, blockSizeTokens } = stream;
    return load.creditWeights(slot, { provenUnixMs, lagMs, heldTokens: blocks * (blockSizeTokens ?? 0) });
  };
  const knowledge = createKnowledge(streamOf, forgetSent, missingPublishers.isMissing);
  const reporter = createReporter({
    metrics,
    decisions,
    trace,
    endpoints,
    inFlight,
    engineMetrics: load.metrics,
    index,
    ladder,
    streamOf,
    missingPublishers,
    knowledge: knowledge.of,
    creditWeights,
    unixMs: () => clock.unixMs(),
  });
  const tokenizer = createTokenizer(config, { log, clock, onCall: reporter.tokenizerCall });
  /** Of requests, by the objective they name. */
  let priorities: ReadonlyMap<string, number> = new Map();
  const picker = createEndpointPicker(
    {
      clock,
      endpoints,
      knowledge: knowledge.of,
      creditWeights,
      evictionAges,
      index,
      hasher,
      ladder,
      routed,
      inFlight,
      expectedLoad: load.expected,
      isDown: load.metrics.isDown,
      signals: load.signals,
      forecast: load.forecast,
      random: Math.random,
      tokenizer: config.tokenizer.api === 'none' ? null : tokenizer,
      record: reporter.decision,
      recordEnd(end) {
        reporter.end(end);
        load.ended(end);
        fleet.freeSlots();
      },
    },
    {
      budgetMs: config.tokenizer.budgetMs,
      get fallbackEndpoints() {
        return current.routing.fallbackEndpoints;
      },
      mediaWeights: config.routing.mediaWeights,
      strategy: strategyOptions(config),
      shedding: { ...config.routing, priorityOf: (objective) => priorities.get(objective) ?? null },
      testSelectionHeader: config.routing.testSelectionHeader,
    },
  );
  const extProc = createExtProcServer(
    { picker, log, clock, createUsageReader, onStream: reporter.stream },
    {
      grpcListen: config.server.grpcListen,
      healthListen: config.server.healthListen,
      bodyMaxBytes: config.server.bodyMaxBytes,
      bodiesMaxBytes: config.server.bodiesMaxBytes ?? BODIES_HELD * config.server.bodyMaxBytes,
      failureMode: config.server.failureMode,
      defaultBodyMode: config.server.defaultBodyMode,
      deadlineMs: config.server.decisionDeadlineMs ?? config.tokenizer.budgetMs + DECISION_MARGIN_MS,
      responseTrailers: config.server.responseTrailers,
      completion: config.server.completion,
      assumedAnswerMs: config.server.assumedAnswerMs,
      destinationHeader: config.routing.destinationHeader,
      compatTargetPodHeader: config.routing.compatTargetPodHeader,
      tls: tlsFiles(config),
      drainDelayMs: config.server.drainDelayMs,
      drainTimeoutMs: config.server.drainTimeoutMs,
      limits: config.server,
      moreServices: () => (siblings === null ? [] : [createSiblingService({ log, seed, ingest })]),
    },
  );
  const admin = createAdminServer(
    {
      metrics,
      readiness,
      log,
      endpoints: reporter.endpointViews,
      excluded: () => [...(kubernetes?.excluded() ?? []), ...endpoints.leftOut()],
      explain: (input) => explain(picker, input),
      decisions: (limit) => decisions.recent(limit),
      requests: trace.jsonLines,
      config: () => ({ ...redactedConfig(current), completionSignals: reporter.completions() }),
    },
    { listen: config.server.adminListen },
  );
  const fleet = createFleetChanges({
    log,
    endpoints,
    follow: (sources) => ingest.reconcile(config.kvEvents.enabled ? sources : []),
    load,
    inFlight,
    forgetSent,
  });
  endpoints.onChange((change) => {
    metrics.setModels(endpoints.modelNames());
    knowledge.keep(endpoints.all());
    slotIds.clear();
    for (const { slot, id } of endpoints.all()) slotIds.set(slot, id);
    missingPublishers.keep(endpoints.all());
    fleet.apply(change);
  });
  /** Null = discovery is in order. What it had last goes on serving, and `/readyz` says so. */
  let discoveryProblem: string | null = null;
  let hasFleet = false;
  const showDiscovery = (): void => {
    const problem = discoveryProblem;
    const but = problem ?? whyNobody(endpoints);
    if (!hasFleet) readiness.set('endpoints', problem ?? 'starting');
    else readiness.set('endpoints', but === null ? 'ok' : `ok, but ${but}`);
  };
  endpoints.onChange(() => showDiscovery());
  /** Each is told once while it lasts: every change of the fleet brings the whole list again. */
  let toldProblems: readonly string[] = [];
  const discoveryDeps = {
    log,
    onEndpoints(specs: readonly EndpointSpec[]): void {
      const { problems } = endpoints.replace(config.routing.pinDataParallelRank ? ranksApart(specs) : specs);
      for (const problem of problems) {
        if (!toldProblems.includes(problem)) log.warn('endpoint not used', { problem });
      }
      toldProblems = problems;
      hasFleet = true;
      showDiscovery();
    },
    onProblem(problem: string | null): void {
      discoveryProblem = problem;
      showDiscovery();
    },
  };
  const eventPorts = {
    // Without events nobody subscribes, and several endpoints on one IP need no ports of their own.
    kvPort: !config.kvEvents.enabled
      ? null
      : config.kvEvents.listen === null
        ? config.kvEvents.port
        : ('listen' as const),
    replayPort: config.kvEvents.replayPort,
  };
  const kubernetes =
    config.discovery.mode === 'kubernetes'
      ? createKubernetesEndpoints(
          {
            ...discoveryDeps,
            clock,
            onObjectives: (next) => (priorities = next),
            onRelist: (reason) => metrics.discoveryRelistsTotal.inc({ reason }),
            onFailure: (cause) => metrics.discoveryErrorsTotal.inc({ cause }),
          },
          { ...config.discovery.kubernetes, ...eventPorts },
        )
      : null;
  const staticEndpoints = createStaticEndpoints(
    {
      ...discoveryDeps,
      // A list that cannot be read changes nothing.
      onProblem: (problem) => discoveryDeps.onProblem(problem === null ? null : `not the newest list: ${problem}`),
    },
    { file: config.discovery.file, inline: config.discovery.endpoints, ...eventPorts },
  );
  const discovery = kubernetes ?? staticEndpoints;

  /** Null before the start is over. */
  let configState: string | null = null;
  let seedProblem: string | null = null;
  const showConfig = (state: string | null): void => {
    configState = state;
    if (state === null) return;
    const but = state === 'ok' ? 'ok, but' : `${state};`;
    readiness.set('config', seedProblem === null ? state : `${but} not the newest engine profiles: ${seedProblem}`);
  };
  const { engineProfileFile } = config.load;
  const seedFile =
    engineProfileFile === null
      ? null
      : createEngineSeedFile(
          {
            log,
            onSeeds: load.seed,
            onProblem(problem) {
              seedProblem = problem;
              showConfig(configState);
            },
          },
          { file: engineProfileFile, gpuTypeLabel: config.load.gpuTypeLabel },
        );

  readiness.onChange((ready) => extProc.setServing(ready ? 'SERVING' : 'NOT_SERVING'));
  metrics.beforeScrape(() => {
    reporter.writeGauges();
    metrics.extprocStreams.set(extProc.openStreams());
    metrics.discoveryAgeSeconds.set((kubernetes?.ageMs() ?? 0) / 1000);
  });

  /** Undone in reverse order, by `stop` and by a start that fails half-way. */
  const started: (() => Promise<void>)[] = [];
  async function stop(): Promise<void> {
    for (let undo = started.pop(); undo; undo = started.pop()) {
      // One part that cannot be stopped must not keep the others running.
      await Promise.resolve()
        .then(undo)
        .catch((error: unknown) => log.error('a part did not stop in order', { error: errorText(error) }));
    }
  }

  async function start(): Promise<AppAddresses> {
    started.push(() => tokenizer.close());
    await tokenizer.start();
    const { address } = await admin.start();
    started.push(() => admin.stop());
    // Probes are answered from here on: how long the first list takes says nothing about this process.
    let isServing = false;
    started.push(async () => {
      if (!isServing) await extProc.stop();
    });
    await extProc.startHealth();
    started.push(async () => seedFile?.stop());
    await seedFile?.start();
    // In this order, because the first list may be long in coming and `stop` must not wait for it.
    started.push(() => discovery.stop());
    await discovery.start();
    started.push(async () => siblings?.stop());
    await siblings?.joinSeed();
    await ingest.start();
    started.push(async () => {
      fleet.stop();
      await ingest.stop();
    });
    await fleet.start();
    load.start();
    started.push(() => load.stop());
    const warmStart = createWarmStart(() => clock.nowMs(), config.kvEvents);
    const outages = createOutageWatch({ log, nowMs: () => clock.nowMs() });
    const judgeKvEvents = (): void => {
      readiness.set('kvEvents', warmStart.condition(ingest));
      missingPublishers.check();
      const sources = ingest.statuses();
      const nDown = sources.filter(({ connection }) => connection === 'down').length;
      outages.check('no publisher of kv events can be reached', sources.length, nDown);
      const fleet = endpoints.ready();
      const nRefusing = fleet.filter(({ id }) => load.metrics.isDown(id)).length;
      outages.check('no endpoint accepts connections', fleet.length, nRefusing);
    };
    const watchdog = setInterval(judgeKvEvents, WATCH_MS);
    started.push(async () => clearInterval(watchdog));
    judgeKvEvents();
    const { grpcAddress, healthAddress } = await extProc.start();
    isServing = true;
    started.push(async () => {
      readiness.set('grpc', 'draining');
      await extProc.stop();
    });
    ownPort = portOf(grpcAddress);
    void siblings?.fill();
    readiness.set('grpc', 'ok');
    showConfig('ok');
    return { grpc: grpcAddress, health: healthAddress, admin: address };
  }

  let starting: Promise<AppAddresses> | null = null;
  let stopping: Promise<void> | null = null;
  return {
    start() {
      starting = start().catch(async (error: unknown) => {
        await stop();
        throw error;
      });
      return starting;
    },
    // A start under way is not waited for by whatever it waits for; what it has brought up meanwhile is stopped as well.
    stop: () =>
      (stopping ??= stop()
        .then(() => starting)
        .then(stop, stop)),
    reconfigure(next) {
      const before = current;
      current = withLiveKeys(config, next);
      const live = changedKeys(before, current);
      if (live.includes('discovery.endpoints')) staticEndpoints.replace(current.discovery.endpoints);
      const atStart = changedKeys(current, next);
      showConfig(atStart.length === 0 ? 'ok' : `ok, but a restart is needed for ${atStart.join(', ')}`);
      return { live, atStart };
    },
    refuseConfig: (mistakes) => showConfig(`ok, but not the newest file: ${mistakes.join('; ')}`),
  };
}

/** A fleet that serves nobody does not make this process unready: everything may be scaled to nothing for a while. */
function whyNobody(endpoints: Pick<EndpointStore, 'all' | 'ready'>): string | null {
  const { length } = endpoints.all();
  if (length === 0) return 'there is no endpoint: requests get 503';
  return endpoints.ready().length > 0 ? null : `none of ${length} endpoints is ready: requests get 503`;
}

function createTokenizer({ tokenizer }: Config, deps: VllmTokenizerDeps): StartableTokenizer {
  const { api, file } = tokenizer;
  if (api !== 'local') return createVllmTokenizer(deps, { ...tokenizer, api });
  // The configuration has been checked: local comes with a file.
  return createLocalTokenizer(deps, { ...tokenizer, file: file! });
}

function strategyOptions({ routing }: Config): StrategyOptions {
  const parsed = parseStrategy(routing.strategy);
  if (parsed.kind === 'mistake')
    throw new Error(`routing.strategy must be ${parsed.expected}, got ${routing.strategy}`);
  return { default: parsed.strategy, header: routing.strategyHeader, allowed: routing.allowedStrategies };
}

function siblingsOf(config: Config, deps: Omit<SiblingsDeps, 'channel'> & { ownPort: () => number }): Siblings | null {
  const { siblings } = config.kvEvents;
  if (siblings === null) return null;
  const [host, port] = siblings.split(':') as [string, string | undefined];
  const tls = tlsFiles(config);
  return createSiblings(
    // A certificate made at start is refused with siblings by the configuration.
    { ...deps, channel: tls === null || tls === 'self_signed' ? plaintextChannel : () => tlsChannel(tls!) },
    { host, port: port === undefined ? deps.ownPort() : Number(port), ownPort: deps.ownPort },
  );
}

function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(':') + 1));
}

function tlsFiles({ server: { tls } }: Config): ExtProcServerOptions['tls'] {
  if (tls.selfSigned) return 'self_signed';
  if (tls.certFile === null || tls.keyFile === null) return null;
  return {
    certFile: tls.certFile,
    keyFile: tls.keyFile,
    clientCaFile: tls.clientCaFile,
    allowedClients: tls.allowedClients,
  };
}
