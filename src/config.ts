/**
 * Every configuration key, once: kind, default, meaning. The type, the environment names, the messages and the table of
 * the documentation follow from it. Deliberately not here: reading of files and the environment (callers hand both in),
 * and the shape of an endpoint (endpoints/endpoint-list.ts).
 */
import { stringify } from 'yaml';
import { environmentName, readSources, type SourceInput } from './config-sources.ts';
import {
  choice,
  clientIdentity,
  filePath,
  flag,
  GIB,
  freeHeaderName,
  headerName,
  hostAndPort,
  headerNameOrEmpty,
  httpUrl,
  integer,
  KIB,
  type Kind,
  kubernetesName,
  labelKey,
  labelSelector,
  list,
  listenAddress,
  MIB,
  milliseconds,
  optional,
  port,
  share,
  size,
  structure,
  text,
} from './config-values.ts';
import { knownNames, parseStrategy, strategyNotice } from './scheduling/strategy-names.ts';
import { showGot, withoutCredentials } from './wording.ts';

export type Setting<T> = {
  readonly kind: Kind<T>;
  readonly default: T;
  readonly meaning: string;
  /** True: a changed file takes effect at once. False: at the next start. */
  readonly reloadable: boolean;
  /** Keys that say whether this one is asked at all: together with a change of theirs it waits for the next start. */
  readonly waitsFor?: readonly string[];
};

const strategyText: Kind<string> = {
  type: 'strategy',
  unit: null,
  parse(raw) {
    const parsed = typeof raw === 'string' ? parseStrategy(raw) : parseStrategy('');
    return parsed.kind === 'mistake' ? parsed : { kind: 'value', value: String(raw).trim() };
  },
  show: String,
};
const objectiveName = text('name', 'the name of an objective', (value) => /^[\w.:/-]{1,253}$/.test(value));

const SETTINGS = {
  'server.grpcListen': setting(listenAddress, '0.0.0.0:9002', 'ext_proc and gRPC health'),
  'server.healthListen': setting(listenAddress, '0.0.0.0:9003', 'plaintext gRPC health for probes'),
  'server.adminListen': setting(listenAddress, '0.0.0.0:9090', 'metrics, readiness, API, dashboard'),
  'server.tls.certFile': setting(
    optional(filePath),
    null,
    'certificate chain (PEM) of the gRPC port; none = plaintext',
  ),
  'server.tls.selfSigned': setting(
    flag,
    false,
    'a certificate made at start where no file is given: encryption without identity, what an `endpointPickerRef` needs',
  ),
  'server.tls.keyFile': setting(optional(filePath), null, 'private key (PEM) of the certificate'),
  'server.tls.clientCaFile': setting(optional(filePath), null, 'CA (PEM) that clients must come from: mutual TLS'),
  'server.tls.allowedClients': setting(
    list(clientIdentity),
    [],
    'which clients of that CA may ask: one of these names (SAN) must stand in their certificate; empty = all of them',
  ),
  'server.bodyMaxBytes': setting(size(KIB, GIB), 16 * MIB, 'larger request bodies get 413'),
  'server.bodiesMaxBytes': setting(
    optional(size(KIB, 1024 * GIB)),
    null,
    'request bodies that wait at the same time, to be complete or for a choice; above it the largest gets 503. None = 16 × `server.bodyMaxBytes`',
  ),
  'server.drainDelayMs': setting(milliseconds(0, 600_000), 5_000, 'from "not ready" to "no new connections" at stop'),
  'server.drainTimeoutMs': setting(milliseconds(0, 3_600_000), 30_000, 'the longest wait for open streams at stop'),
  'server.failureMode': setting(
    choice('open', 'closed'),
    'open',
    "on an internal fault: `open` passes on without a destination (Envoy's fallback policy chooses), `closed` answers 503",
  ),
  'server.defaultBodyMode': setting(
    choice('NONE', 'BUFFERED', 'BUFFERED_PARTIAL', 'STREAMED', 'FULL_DUPLEX_STREAMED'),
    'BUFFERED',
    'request body mode of an Envoy that does not announce it (before 1.34)',
  ),
  'server.decisionDeadlineMs': setting(
    optional(milliseconds(1, 60_000)),
    null,
    "from the complete request to its answer, then `server.failureMode` decides; none = `tokenizer.budgetMs` + 300. Must be below Envoy's `message_timeout` (its default 200 ms, in `envoy/` 500 ms)",
  ),
  'server.responseTrailers': setting(
    choice('as_configured', 'ask'),
    'as_configured',
    '`ask`: ask Envoy, by mode override, for what `response_trailer_mode: SEND` says, where its configuration cannot (Envoy Gateway with `allowModeOverride`); answers it would collect (BUFFERED) are then passed on piece by piece',
  ),
  'server.completion': setting(
    choice('stream', 'estimate'),
    'stream',
    "when a request counts as over if its answer is not shown: `stream` = at the end of Envoy's stream (true with `response_trailer_mode: SEND`), `estimate` = `server.assumedAnswerMs` after the choice, where Envoy ends its streams early",
  ),
  'server.assumedAnswerMs': setting(
    milliseconds(1, 3_600_000),
    10_000,
    'how long an answer takes, for `server.completion: estimate`, where neither answers nor metrics of the engine have told; never ends a request whose stream is open',
  ),
  'server.maxStreams': setting(
    integer(1, 1_000_000),
    32_768,
    'open streams, each one request from its headers to the end of its answer; more get 503. About 20 KB each; Envoy: `max_requests` of the cluster (its default 1,024, in `envoy/` 65,536)',
  ),
  'server.maxStreamsPerConnection': setting(
    integer(1, 1_000_000),
    4_096,
    'announced to Envoy. Must stay above its own `max_concurrent_streams` (1,024 since 1.36; set it before), which is what opens a further connection: at this limit Node resets streams that begin as others end',
  ),
  'server.maxMessagesPerStream': setting(
    integer(4, 100_000_000),
    1_000_000,
    'messages of one request; more end its stream (one per token where response bodies are shown; Envoy has no such limit)',
  ),
  'server.maxHeaders': setting(integer(1, 10_000), 256, 'headers of a request; more get 400 (Envoy: 100)'),
  'server.maxHeaderBytes': setting(
    size(KIB, 16 * MIB),
    128 * KIB,
    'names and values of those headers together; more get 400 (Envoy: 60 KiB)',
  ),
  'server.threads': setting(
    integer(1, 1),
    1,
    'serving threads sharing one port and one index; only one in this version',
  ),
  'discovery.mode': setting(choice('static', 'kubernetes'), 'static', 'where endpoints come from'),
  'discovery.file': setting(optional(filePath), null, 'static endpoints: a watched YAML file'),
  'discovery.endpoints': {
    ...live(structure, null, 'static endpoints, inline; same format as the list in the file'),
    waitsFor: ['discovery.mode', 'discovery.file'],
  },
  'discovery.adapterIntervalMs': setting(
    milliseconds(0, 3_600_000),
    15_000,
    'pause between two questions to every engine which LoRA adapters it serves (`/v1/models`); 0 = only those of the list or of Kubernetes count',
  ),
  'discovery.kubernetes.namespace': setting(optional(kubernetesName), null, 'namespace of the pods; none = its own'),
  'discovery.kubernetes.kubeconfig': setting(
    optional(filePath),
    null,
    'how to reach and to sign in at the API server; none = the service account, else what kubectl would use',
  ),
  'discovery.kubernetes.labelSelector': setting(labelSelector, 'model.aibrix.ai/name', 'which pods are endpoints'),
  'discovery.kubernetes.inferencePool': setting(
    optional(kubernetesName),
    null,
    "follow this InferencePool's selector and target ports instead",
  ),
  'discovery.kubernetes.modelLabel': setting(labelKey, 'model.aibrix.ai/name', 'label with the served model name'),
  'discovery.kubernetes.portLabel': setting(labelKey, 'model.aibrix.ai/port', "label with the engine's HTTP port"),
  'discovery.kubernetes.kvEventsLabel': setting(
    labelKey,
    'model.aibrix.ai/kv-events-enabled',
    '`"true"` subscribes to the KV events of the pod',
  ),
  'discovery.kubernetes.deploymentLabel': setting(optional(labelKey), null, 'label that names the deployment of a pod'),
  'discovery.kubernetes.fleetLabel': setting(optional(labelKey), null, 'label that names the RayClusterFleet of a pod'),
  'discovery.kubernetes.modelAdapters': setting(
    choice('auto', 'on', 'off'),
    'auto',
    'watch ModelAdapter resources; `auto` = where the CRD exists',
  ),
  'discovery.kubernetes.inferenceObjectives': setting(
    choice('auto', 'on', 'off'),
    'auto',
    'watch InferenceObjective resources, for the priority of requests that name one; `auto` = where the CRD exists',
  ),
  'kvEvents.enabled': setting(flag, true, 'off: the index is fed by own decisions only'),
  'kvEvents.port': setting(port, 5557, 'where an endpoint publishes KV events unless it says otherwise'),
  'kvEvents.replayPort': setting(port, 5558, 'where an endpoint replays KV events unless it says otherwise'),
  'kvEvents.listen': setting(
    optional(listenAddress),
    null,
    'publishers connect here and are told apart by their topic `kv@ip:port@model`, rank r at this port + r; then only an endpoint that names its publisher is dialled',
  ),
  'kvEvents.indexMaxBytes': setting(size(MIB, 64 * GIB), 512 * MIB, 'hard budget of the index'),
  'kvEvents.readyWhen': setting(
    choice('connected', 'replayed'),
    'connected',
    'a replica that starts is ready when every source is connected (or cannot be reached), or has also replayed what it still knew',
  ),
  'kvEvents.siblings': setting(
    optional(hostAndPort),
    null,
    'DNS name of the other replicas (a headless Service), `:port` where it is not that of `server.grpcListen`; one that starts takes over their hash seed, and what engines no longer replay',
  ),
  'kvEvents.readyTimeoutMs': setting(
    milliseconds(0, 600_000),
    30_000,
    'the longest `kvEvents.readyWhen` is waited for: a pod that is gone must not keep a replica from serving',
  ),
  'tokenizer.urls': setting(
    list(httpUrl),
    [],
    'dedicated tokenizers; empty = ask the endpoints of the model. Credentials belong into `tokenizer.auth.file`',
  ),
  'tokenizer.api': setting(
    choice('auto', 'render', 'tokenize', 'local', 'none'),
    'auto',
    "what to ask; `auto` = render, else tokenize; `local` = nobody, but the model's own files (`tokenizer.file`); `none` = never ask",
  ),
  'tokenizer.file': setting(
    optional(filePath),
    null,
    '`tokenizer.json` of the model, for `tokenizer.api: local`: fleets of one model; a `tokenizer_config.json` beside it is read too',
  ),
  'tokenizer.chatTemplateFile': setting(
    optional(filePath),
    null,
    'chat template (Jinja) of that model; none = `chat_template.jinja` beside the file, else the one in its `tokenizer_config.json`',
  ),
  'tokenizer.threads': setting(integer(1, 64), 1, 'threads for `tokenizer.api: local`'),
  'tokenizer.budgetMs': setting(milliseconds(0, 10_000), 50, 'the longest a request waits for tokens; 0 = never'),
  'tokenizer.timeoutMs': setting(milliseconds(1, 600_000), 2_000, 'when a call is given up'),
  'tokenizer.maxInFlight': setting(
    integer(1, 10_000),
    64,
    'calls at once, per URL; calls that nobody waits for take no more than half of them',
  ),
  'tokenizer.maxQueued': setting(
    integer(0, 10_000),
    64,
    'calls that wait for their turn, per URL, for no longer than `tokenizer.budgetMs`; more are refused at once',
  ),
  'tokenizer.hedging': setting(
    flag,
    true,
    'ask a second server where the first is later than in 95 of 100 cases (at most one in ten calls)',
  ),
  'tokenizer.responseMaxBytes': setting(size(64 * KIB, GIB), 8 * MIB, 'larger answers are not read to their end'),
  'tokenizer.cacheMaxBytes': setting(
    size(0, 16 * GIB),
    16 * MIB,
    'memory for answers of the last five minutes, for prompts that come again byte by byte; 0 = off',
  ),
  'tokenizer.auth.file': setting(
    optional(filePath),
    null,
    'file with the value of the header by which tokenizers let us in, such as `Bearer …`; read again when one answers 401. Where `tokenizer.urls` is empty, it is sent to the endpoints',
  ),
  'tokenizer.auth.header': setting(freeHeaderName, 'authorization', 'name of that header'),
  'tokenizer.tls.caFile': setting(optional(filePath), null, "CA (PEM) of https tokenizers; none = the system's"),
  'tokenizer.memoMaxBytes': setting(
    size(0, 16 * GIB),
    64 * MIB,
    'memory for what is known of prompts seen before, so that their next turn need not wait; 0 = off',
  ),
  'routing.strategy': setting(
    strategyText,
    'prefix-cache',
    'how endpoints are chosen: one of the strategies of the README, or a weighted mix like `least-request:2,prefix-cache`',
  ),
  'routing.strategyHeader': setting(
    headerNameOrEmpty,
    'routing-strategy',
    'request header that may choose one of `routing.allowedStrategies`; empty = off',
  ),
  'routing.allowedStrategies': setting(list(choice(...knownNames())), [], 'what the header may choose; empty = off'),
  'routing.fallbackEndpoints': live(
    integer(0, 16),
    2,
    'further endpoints named after the first; 0 where the data plane takes only one (ORIGINAL_DST, as AI gateways build for an InferencePool)',
  ),
  'routing.destinationHeader': setting(headerName, 'x-gateway-destination-endpoint', 'header with the destination'),
  'routing.pinDataParallelRank': setting(
    flag,
    true,
    'data-parallel ranks behind one address (`dataParallelSize`) are chosen one by one, by the header `x-data-parallel-rank`; false for engines that do not know it, and the ranks are one endpoint',
  ),
  'routing.compatTargetPodHeader': setting(flag, false, 'also set `target-pod` (first endpoint only)'),
  'routing.testSelectionHeader': setting(
    headerNameOrEmpty,
    '',
    'for conformance runs of the inference extension (`test-epp-endpoint-selection`): request header by which a client restricts the choice to IP addresses of the fleet; empty = off, as it must be wherever clients are not the test',
  ),
  'routing.mediaWeights.gpu': setting(
    share,
    1,
    'what a cached block on the GPU is worth: the part of its computing that it saves',
  ),
  'routing.mediaWeights.host': setting(
    share,
    0.75,
    '… one in the memory of the host, from where it must be fetched first',
  ),
  'routing.mediaWeights.disk': setting(share, 0.25, '… one on a disk'),
  'routing.sheddableObjectives': setting(
    list(objectiveName),
    [],
    'objectives (header `x-gateway-inference-objective`) whose priority is below zero, beside those InferenceObjective resources say it of: refused with 429 while every endpoint has a longer wait than `routing.shedWaitMs`; a number below zero in the header is one, too. Nothing else is ever refused for load',
  ),
  'routing.shedWaitMs': setting(
    milliseconds(0, 3_600_000),
    2_000,
    'wait before the prompt from which such requests are refused',
  ),
  'load.metricsIntervalMs': setting(milliseconds(50, 600_000), 1_000, "pause between two reads of an engine's metrics"),
  'load.gpuTypeLabel': setting(
    optional(labelKey),
    null,
    'label of endpoints that names their GPU: until an endpoint has shown how fast it is, those with the same value answer for it',
  ),
  'load.engineProfileFile': setting(
    optional(filePath),
    null,
    'watched YAML file with what was measured of engines before, per GPU type or endpoint: prefill and decode rate, capacity (docs/operations.md); what engines show while serving counts more from the tenth prompt on',
  ),
  'load.engineProfileCaching': setting(
    flag,
    true,
    'learn how fast each engine is (prefill and decode rate); off: as `load.engineProfileFile` says, else all alike',
  ),
  'log.level': live(choice('debug', 'info', 'warn', 'error'), 'info', 'least severe lines that are written'),
} as const;

type Settings = typeof SETTINGS;
export type ConfigKey = keyof Settings;
type HeadOf<K extends string> = K extends `${infer Head}.${string}` ? Head : K;
type Below<K extends string, Head extends string> = K extends `${Head}.${infer Rest}` ? Rest : never;
type ValueOf<S> = S extends Setting<infer T> ? T : never;
type Section<K extends string, Prefix extends string> = {
  readonly [Head in HeadOf<K>]: Below<K, Head> extends never
    ? ValueOf<Settings[`${Prefix}${Head}` & ConfigKey]>
    : Section<Below<K, Head>, `${Prefix}${Head}.`>;
};

/** The keys as nested objects: `config.server.grpcListen`. */
export type Config = Section<ConfigKey, ''>;

export type ConfigInput = {
  /** Path of the YAML file, null = none. */
  readonly file: string | null;
  /** Whole text of a file; throws when it cannot be read. */
  readFile(path: string): string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** `key=value` texts of the command line, in order. */
  readonly sets: readonly string[];
};

export type LoadedConfig =
  | {
      readonly kind: 'config';
      readonly config: Config;
      /** Things to know that are not wrong: an alias used, a variable that has no effect. */
      readonly notices: readonly string[];
      readonly where: Where;
    }
  | {
      readonly kind: 'mistakes';
      readonly mistakes: readonly string[];
      /** What was right, defaults elsewhere: for finding further mistakes in the same run, never to be served. */
      readonly rest: Config;
      readonly where: Where;
    };

/** Where a value, or something inside it, was given: `where('discovery.endpoints', [0, 'address'])` → `warmpath.yaml:14`. */
export type Where = (key: ConfigKey, path?: readonly (string | number)[]) => string;

/** Names of the seed feature, and the key each stands for. */
const ALIASES: Readonly<
  Record<string, { readonly key: ConfigKey; readonly translate?: Readonly<Record<string, string>> }>
> = {
  AIBRIX_KV_EVENT_SYNC_ENABLED: { key: 'kvEvents.enabled' },
  AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED: { key: 'kvEvents.enabled' },
  AIBRIX_USE_REMOTE_TOKENIZER: { key: 'tokenizer.api', translate: { true: 'auto', false: 'none' } },
  AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER: { key: 'tokenizer.api', translate: { true: 'auto', false: 'none' } },
  AIBRIX_POD_DEPLOYMENT_LABEL: { key: 'discovery.kubernetes.deploymentLabel' },
  AIBRIX_POD_RAYCLUSTERFLEET_LABEL: { key: 'discovery.kubernetes.fleetLabel' },
  AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS: { key: 'load.metricsIntervalMs' },
  AIBRIX_MODEL_GPU_PROFILE_CACHING_FLAG: { key: 'load.engineProfileCaching' },
  AIBRIX_Model_GPU_PROFILE_CACHING_FLAG: { key: 'load.engineProfileCaching' },
  ROUTING_ALGORITHM: { key: 'routing.strategy' },
};

/** Later wins: default < file < environment < `--set`. Every mistake of every source is reported, also of values that lost. */
export function loadConfig(input: ConfigInput): LoadedConfig {
  const sources = readSources(input satisfies SourceInput, Object.keys(SETTINGS), ALIASES);
  const mistakes = [...sources.mistakes];
  const values = new Map<string, unknown>(KEYS.map((key) => [key, SETTINGS[key].default]));
  const given = new Map<string, { readonly raw: unknown; readonly where: string }>();
  for (const { key, raw, where } of sources.values) {
    const parsed = SETTINGS[key as ConfigKey].kind.parse(raw);
    if (parsed.kind === 'mistake') {
      mistakes.push(`${key} must be ${parsed.expected}, got ${showGot(raw)} (${where})`);
      continue;
    }
    values.set(key, parsed.value);
    given.set(key, { raw, where });
  }
  const config = nest(values);
  const place = (key: ConfigKey): string => given.get(key)?.where ?? 'default';
  mistakes.push(...contradictions(config, place));
  const where: Where = (key, path = []) => sources.lineBelow(place(key), key, path) ?? place(key);
  if (mistakes.length > 0) return { kind: 'mistakes', mistakes, rest: config, where };
  const { strategy, allowedStrategies } = config.routing;
  const aliased = [strategy, ...allowedStrategies].map(strategyNotice).filter((notice) => notice !== null);
  return { kind: 'config', config, notices: [...sources.notices, ...new Set(aliased), ...doubtful(config)], where };
}

/** Keys whose values differ. */
export function changedKeys(before: Config, after: Config): readonly ConfigKey[] {
  return KEYS.filter((key) => JSON.stringify(valueOf(before, key)) !== JSON.stringify(valueOf(after, key)));
}

/** What is in effect when a process that started with one configuration has read another. */
export function withLiveKeys(atStart: Config, newest: Config): Config {
  const waiting = changedKeys(atStart, newest).filter((key) => !SETTINGS[key].reloadable);
  const isLive = (key: ConfigKey): boolean => {
    const { reloadable, waitsFor = [] }: Setting<unknown> = SETTINGS[key] as Setting<unknown>;
    return reloadable && !waiting.some((other) => waitsFor.includes(other));
  };
  return nest(new Map(KEYS.map((key) => [key, valueOf(isLive(key) ? newest : atStart, key)])));
}

/** The effective configuration, readable by `loadConfig`. */
export function configToYaml(config: Config): string {
  return stringify(redactedConfig(config), { lineWidth: 0 });
}

/** The configuration as plain data without credentials. */
export function redactedConfig(config: Config): Record<string, unknown> {
  const redact = (value: unknown): unknown => {
    if (typeof value === 'string') return withoutCredentials(value);
    if (Array.isArray(value)) return value.map(redact);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, redact(inner)]));
  };
  return redact(config) as Record<string, unknown>;
}

/** The table of the documentation: one row per key. */
export function configTable(): string {
  const rows = KEYS.map((key) => {
    const { kind, default: value, meaning, reloadable } = SETTINGS[key] as Setting<unknown>;
    const shown = kind.show(value);
    const type = kind.unit === null ? kind.type : `${kind.type} (${kind.unit})`;
    const cells = [`\`${key}\``, type, shown === '' ? '–' : `\`${shown}\``, `\`${environmentName(key)}\``];
    return `| ${[...cells, reloadable ? 'at once' : 'at start', meaning].join(' | ')} |`;
  });
  return ['| key | type | default | environment | takes effect | meaning |', '|---|---|---|---|---|---|', ...rows].join(
    '\n',
  );
}

const KEYS = Object.keys(SETTINGS) as readonly ConfigKey[];

function setting<T>(kind: Kind<T>, defaultValue: NoInfer<T>, meaning: string): Setting<T> {
  return { kind, default: defaultValue, meaning, reloadable: false };
}

/** A key whose change in the file takes effect without a restart. */
function live<T>(kind: Kind<T>, defaultValue: NoInfer<T>, meaning: string): Setting<T> {
  return { ...setting(kind, defaultValue, meaning), reloadable: true };
}

/** Rules between keys, and values that this version cannot serve. */
function contradictions(config: Config, place: (key: ConfigKey) => string): string[] {
  const found: string[] = [];
  const { server, discovery, kvEvents, tokenizer } = config;
  const { certFile, keyFile, clientCaFile, selfSigned } = server.tls;
  if (selfSigned && certFile !== null) {
    found.push(
      `server.tls.selfSigned must be false where server.tls.certFile is set, got true (${place('server.tls.selfSigned')}, ${place('server.tls.certFile')})`,
    );
  }
  if (certFile !== null && keyFile === null) {
    found.push(
      `server.tls.keyFile must be a file path where server.tls.certFile is set, got nothing (${place('server.tls.certFile')})`,
    );
  }
  if (keyFile !== null && certFile === null) {
    found.push(
      `server.tls.certFile must be a file path where server.tls.keyFile is set, got nothing (${place('server.tls.keyFile')})`,
    );
  }
  if (clientCaFile !== null && certFile === null && keyFile === null) {
    found.push(
      `server.tls.clientCaFile needs server.tls.certFile and server.tls.keyFile, got neither (${place('server.tls.clientCaFile')})`,
    );
  }
  if (kvEvents.siblings !== null && selfSigned) {
    found.push(
      `kvEvents.siblings needs certificate files where the gRPC port speaks TLS, got server.tls.selfSigned (${place('kvEvents.siblings')})`,
    );
  }
  if (server.tls.allowedClients.length > 0 && clientCaFile === null) {
    found.push(
      `server.tls.allowedClients needs server.tls.clientCaFile, got nothing (${place('server.tls.allowedClients')})`,
    );
  }
  if (tokenizer.api === 'local' && tokenizer.file === null) {
    found.push(`tokenizer.file must be given where tokenizer.api is local, got nothing (${place('tokenizer.api')})`);
  }
  for (const key of ['file', 'chatTemplateFile'] as const) {
    if (tokenizer.api === 'local' || tokenizer[key] === null) continue;
    found.push(
      `tokenizer.${key} needs tokenizer.api: local, got ${tokenizer.api} (${place(`tokenizer.${key}`)}, ${place('tokenizer.api')})`,
    );
  }
  const { bodiesMaxBytes, decisionDeadlineMs } = server;
  if (bodiesMaxBytes !== null && bodiesMaxBytes < server.bodyMaxBytes) {
    found.push(
      `server.bodiesMaxBytes must be at least server.bodyMaxBytes (${server.bodyMaxBytes}), got ${bodiesMaxBytes} (${place('server.bodiesMaxBytes')})`,
    );
  }
  if (decisionDeadlineMs !== null && decisionDeadlineMs <= tokenizer.budgetMs) {
    found.push(
      `server.decisionDeadlineMs must be above tokenizer.budgetMs (${tokenizer.budgetMs}), got ${decisionDeadlineMs} (${place('server.decisionDeadlineMs')})`,
    );
  }
  for (const key of ['file', 'endpoints'] as const) {
    if (discovery.mode !== 'kubernetes' || discovery[key] === null) continue;
    found.push(
      `discovery.${key} must not be given where discovery.mode is kubernetes (${place(`discovery.${key}`)}, ${place('discovery.mode')})`,
    );
  }
  if (discovery.file !== null && discovery.endpoints !== null) {
    found.push(
      `discovery.endpoints must not be given together with discovery.file (${place('discovery.endpoints')}, ${place('discovery.file')})`,
    );
  }
  if (kvEvents.port === kvEvents.replayPort) {
    found.push(
      `kvEvents.replayPort must differ from kvEvents.port, got ${kvEvents.port} for both (${place('kvEvents.replayPort')})`,
    );
  }
  const listeners = ['server.grpcListen', 'server.healthListen', 'server.adminListen'] as const;
  const addresses = [server.grpcListen, server.healthListen, server.adminListen];
  addresses.forEach((address, index) => {
    const first = addresses.indexOf(address);
    if (first === index || address.endsWith(':0')) return;
    found.push(
      `${listeners[index]} must differ from ${listeners[first]}, got "${address}" for both (${place(listeners[index]!)})`,
    );
  });
  return found;
}

/** What is valid and yet loses something. */
function doubtful({ kvEvents }: Config): string[] {
  if (kvEvents.listen === null || kvEvents.siblings === null) return [];
  return [
    'kvEvents.listen beside kvEvents.siblings: a publisher that connects reaches one replica, the others route without its events',
  ];
}

function valueOf(config: Config, key: ConfigKey): unknown {
  return key.split('.').reduce<unknown>((inner, part) => (inner as Record<string, unknown>)[part], config);
}

function nest(values: ReadonlyMap<string, unknown>): Config {
  const root: Record<string, unknown> = {};
  for (const [key, value] of values) {
    const path = key.split('.');
    const last = path.pop()!;
    let section = root;
    for (const part of path) section = (section[part] ??= {}) as Record<string, unknown>;
    section[last] = value;
  }
  return root as Config;
}
