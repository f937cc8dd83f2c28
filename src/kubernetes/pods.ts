/**
 * Pods → endpoints. Reads labels, annotations and status; decides nothing about where requests go and does no I/O.
 *
 * | what | from, in this order |
 * |---|---|
 * | model | annotation `warmpath.dev/model` (`name,alias,…`), label `discovery.kubernetes.modelLabel` |
 * | ports | the pool's target ports where one is followed; else annotation `warmpath.dev/port` (`8000,8001`), label `discovery.kubernetes.portLabel`, 8000 |
 * | ranks | annotation `warmpath.dev/data-parallel-size`, one per port |
 * | KV events | label `discovery.kubernetes.kvEventsLabel` is `true`, or only annotation `warmpath.dev/kv-events-port` is there |
 * | event port, replay port | annotations `warmpath.dev/kv-events-port`, `warmpath.dev/kv-replay-port` (a port or `none`), `kvEvents.port`, `kvEvents.replayPort`; where `kvEvents.listen` is set and no event port is given, the pod connects to us |
 */
import { isIPv4, isIPv6 } from 'node:net';
import { parseIpPort, topicOf } from '../endpoints/endpoint-list.ts';
import type { EndpointSpec, KvEventSource } from '../endpoints/endpoint.ts';
import { showGot } from '../wording.ts';
import { listOf, recordOf, textOf, textsOf } from './objects.ts';

/** What is kept of a pod. */
export type Pod = {
  readonly name: string;
  readonly uid: string;
  readonly createdAt: string;
  /** '' before it has one. */
  readonly ip: string;
  readonly phase: string;
  readonly isReady: boolean;
  readonly isTerminating: boolean;
  readonly labels: Readonly<Record<string, string>>;
  /** Those of Warmpath, by their names without the prefix. */
  readonly annotations: Readonly<Record<string, string>>;
  readonly containers: readonly {
    readonly ports: readonly number[];
    /** Another text after a restart. */
    readonly process: string;
  }[];
};

export type PodOptions = {
  readonly modelLabel: string;
  readonly portLabel: string;
  readonly kvEventsLabel: string;
  readonly deploymentLabel: string | null;
  readonly fleetLabel: string | null;
  /** Null = nobody subscribes. */
  readonly kvPort: number | 'listen' | null;
  readonly replayPort: number;
  /** Of the InferencePool that is followed, null = none is. */
  readonly targetPorts: readonly number[] | null;
};

export type Excluded = { readonly name: string; readonly reason: string };

export type Fleet = {
  readonly specs: readonly EndpointSpec[];
  /** Pods that the selector names and that cannot be endpoints. */
  readonly excluded: readonly Excluded[];
};

const ANNOTATION_PREFIX = 'warmpath.dev/';
/** What vLLM listens on unless told otherwise. */
const DEFAULT_PORT = 8000;
const MAX_RANKS = 256;
const MAX_PORTS = 8;

/** Keeps what endpoints are made of; anything missing is empty. */
export function readPod(object: unknown): Pod {
  const pod = recordOf(object);
  const metadata = recordOf(pod.metadata);
  const status = recordOf(pod.status);
  const statuses = new Map(
    listOf(status.containerStatuses).map((one) => [textOf(recordOf(one).name), recordOf(one)] as const),
  );
  const annotations = Object.entries(textsOf(metadata.annotations))
    .filter(([key]) => key.startsWith(ANNOTATION_PREFIX))
    .map(([key, value]) => [key.slice(ANNOTATION_PREFIX.length), value.trim()] as const);
  return {
    name: textOf(metadata.name),
    uid: textOf(metadata.uid),
    createdAt: textOf(metadata.creationTimestamp),
    ip: textOf(status.podIP),
    phase: textOf(status.phase),
    isReady: listOf(status.conditions).some((one) => {
      const { type, status: is } = recordOf(one);
      return type === 'Ready' && is === 'True';
    }),
    isTerminating: textOf(metadata.deletionTimestamp) !== '',
    labels: textsOf(metadata.labels),
    annotations: Object.fromEntries(annotations),
    containers: listOf(recordOf(pod.spec).containers).map((one) => {
      const { name, ports } = recordOf(one);
      const { restartCount, containerID } = statuses.get(textOf(name)) ?? {};
      return {
        ports: listOf(ports).flatMap((port) => {
          const { containerPort } = recordOf(port);
          return typeof containerPort === 'number' ? [containerPort] : [];
        }),
        process: `${typeof restartCount === 'number' ? restartCount : 0}/${textOf(containerID)}`,
      };
    }),
  };
}

/**
 * Every pod as endpoints or with the reason why not. Verdicts are kept per pod, so that a change costs what changed.
 * @returns a function of the pods and of the adapters by pod name
 */
export function createFleetBuilder(
  options: PodOptions,
): (pods: readonly Pod[], adapters: ReadonlyMap<string, readonly string[]>) => Fleet {
  const judged = new WeakMap<Pod, Judged>();
  const judgedOf = (pod: Pod, adapters: readonly string[]): Judged => {
    const before = judged.get(pod);
    if (before !== undefined && isSameList(before.adapters, adapters)) return before;
    const verdict = judge(pod, options, adapters);
    const owned = verdict.kind === 'endpoints' ? verdict.specs.map((spec) => ({ spec, pod })) : [];
    const reason = verdict.kind === 'excluded' ? verdict.reason : null;
    const after = { adapters, owned, reason };
    judged.set(pod, after);
    return after;
  };
  return (pods, adapters) => {
    const owned: Owned[] = [];
    const excluded: Excluded[] = [];
    for (const pod of pods) {
      const { owned: its, reason } = judgedOf(pod, adapters.get(pod.name) ?? NO_ADAPTERS);
      if (reason !== null) excluded.push({ name: pod.name, reason });
      for (const one of its) owned.push(one);
    }
    return { specs: withoutShared(owned, excluded), excluded };
  };
}

type Judged = {
  readonly adapters: readonly string[];
  readonly owned: readonly Owned[];
  /** Why there is no endpoint, null = there are some. */
  readonly reason: string | null;
};
type Owned = { readonly spec: EndpointSpec; readonly pod: Pod };

/** An address or a publisher belongs to one pod: the other would be believed to hold what the one holds. */
function withoutShared(owned: readonly Owned[], excluded: Excluded[]): readonly EndpointSpec[] {
  const addressOfOwn = ({ spec }: Owned): readonly string[] => [spec.address];
  const publishersOf = ({ spec }: Owned): readonly string[] => spec.kvEvents.map(({ endpoint }) => endpoint);
  const apart = withoutRivals(owned, { what: 'address', keysOf: addressOfOwn, isPreferred: isSuccessor }, excluded);
  const what = 'KV event publisher';
  return withoutRivals(apart, { what, keysOf: publishersOf, isPreferred: isSenior }, excluded).map(({ spec }) => spec);
}

/** Of those that name the same, the preferred one stays; who gives way takes nothing from others. */
function withoutRivals(
  owned: readonly Owned[],
  by: {
    readonly what: string;
    readonly keysOf: (one: Owned) => readonly string[];
    readonly isPreferred: (a: Pod, b: Pod) => boolean;
  },
  excluded: Excluded[],
): readonly Owned[] {
  const named = new Map<string, Owned>();
  const rivals = new Set<Owned>();
  for (const one of owned) {
    for (const key of by.keysOf(one)) {
      const other = named.get(key);
      if (other === undefined) named.set(key, one);
      else rivals.add(other).add(one);
    }
  }
  if (rivals.size === 0) return owned;
  const holders = new Map<string, Pod>();
  const losers = new Set<Owned>();
  const order = (a: Owned, b: Owned): number => (a.pod === b.pod ? 0 : by.isPreferred(a.pod, b.pod) ? -1 : 1);
  for (const one of [...rivals].sort(order)) {
    const keys = by.keysOf(one);
    const taken = keys.find((key) => holders.has(key));
    if (taken === undefined) {
      for (const key of keys) holders.set(key, one.pod);
      continue;
    }
    losers.add(one);
    excluded.push({
      name: one.spec.name,
      reason: `its ${by.what} ${taken} is that of pod ${holders.get(taken)!.name}`,
    });
  }
  return owned.filter((one) => !losers.has(one));
}

type Verdict =
  | { readonly kind: 'endpoints'; readonly specs: readonly EndpointSpec[] }
  | { readonly kind: 'excluded'; readonly reason: string };

const NO_ADAPTERS: readonly string[] = [];

/** @returns one endpoint per port, or why there is none */
export function judge(pod: Pod, options: PodOptions, adapters: readonly string[] = NO_ADAPTERS): Verdict {
  // An ended pod keeps its address in its status while another pod may have it already.
  if (pod.phase === 'Succeeded' || pod.phase === 'Failed') return excluded(`phase is ${pod.phase}`);
  if (pod.ip === '') return excluded('has no IP address yet');
  if (!isIPv4(pod.ip) && !isIPv6(pod.ip)) return excluded(`podIP must be an IP address, got ${showGot(pod.ip)}`);
  const models = modelsOf(pod, options);
  if (typeof models === 'string') return excluded(models);
  const ports = portsOf(pod, options);
  if (typeof ports === 'string') return excluded(ports);
  const nRanks = ranksOf(pod.annotations['data-parallel-size'], ports.length);
  if (typeof nRanks === 'string') return excluded(nRanks);
  const kvEvents = kvEventsOf(pod, options, ports, nRanks);
  if (typeof kvEvents === 'string') return excluded(kvEvents);
  const ready = pod.isReady && !pod.isTerminating && pod.phase === 'Running';
  const labels = labelsOf(pod, options);
  return {
    kind: 'endpoints',
    specs: ports.map((port, index) => ({
      name: ports.length === 1 ? pod.name : `${pod.name}:${port}`,
      address: addressOf(pod.ip, port),
      models,
      adapters,
      dataParallelSize: nRanks / ports.length,
      rank: null,
      kvEvents: kvEvents[index]!,
      labels,
      ready,
      incarnation: incarnationOf(pod, port),
    })),
  };
}

/** The served names, or what is wrong. */
function modelsOf(pod: Pod, { modelLabel }: PodOptions): readonly string[] | string {
  const annotation = pod.annotations.model;
  if (annotation !== undefined) {
    const names = [...new Set(annotation.split(',').map((name) => name.trim()))];
    if (names.every((name) => name !== '')) return names;
    return `annotation warmpath.dev/model must be served names separated by commas, got ${showGot(annotation)}`;
  }
  const label = pod.labels[modelLabel];
  if (label === undefined || label === '') return `has neither label ${modelLabel} nor annotation warmpath.dev/model`;
  return [label];
}

function portsOf(pod: Pod, { targetPorts, portLabel }: PodOptions): readonly number[] | string {
  // Whoever refers to a pool sends to the pool's ports.
  if (targetPorts !== null) return targetPorts;
  const annotation = pod.annotations.port;
  const label = pod.labels[portLabel];
  const text = annotation ?? label ?? String(DEFAULT_PORT);
  const where = annotation !== undefined ? 'annotation warmpath.dev/port' : `label ${portLabel}`;
  const ports = text.split(',').map(parsePort);
  if (ports.some((port) => port === null)) return `${where} must be a port from 1 to 65535, got ${showGot(text)}`;
  if (new Set(ports).size < ports.length) return `${where} must name every port once, got ${showGot(text)}`;
  if (ports.length > MAX_PORTS) return `${where} must name at most ${MAX_PORTS} ports, got ${ports.length}`;
  return ports as readonly number[];
}

/** Sources of every port, or what is wrong. vLLM adds the rank to both ports; ranks are spread evenly over the ports. */
function kvEventsOf(
  pod: Pod,
  options: PodOptions,
  ports: readonly number[],
  nRanks: number,
): readonly KvEventSource[][] | string {
  const { annotations, labels } = pod;
  const live = eventPortOf(annotations, 'kv-events-port');
  const replay = eventPortOf(annotations, 'kv-replay-port');
  if (live === 'wrong' || replay === 'wrong') {
    const name = live === 'wrong' ? 'kv-events-port' : 'kv-replay-port';
    return `annotation warmpath.dev/${name} must be a port from 1 to 65535 or none, got ${showGot(annotations[name])}`;
  }
  const label = labels[options.kvEventsLabel];
  const publishes = label === undefined ? typeof live === 'number' : label === 'true' && live !== 'none';
  if (!publishes || options.kvPort === null) return ports.map(() => []);
  const perPort = nRanks / ports.length;
  const livePort = typeof live === 'number' ? live : options.kvPort;
  if (livePort === 'listen') {
    const replayOf = (rank: number): string | null =>
      typeof replay === 'number' ? `tcp://${addressOf(pod.ip, replay + rank)}` : null;
    return ports.map((port, index) =>
      Array.from({ length: perPort }, (_, i) => {
        const rank = index * perPort + i;
        return { endpoint: topicOf(addressOf(pod.ip, port), rank), replayEndpoint: replayOf(rank) };
      }),
    );
  }
  // Beside a publisher on another port, a guessed replay socket could be anything.
  const usual = livePort === options.kvPort ? options.replayPort : null;
  const replayPort = replay === 'none' ? null : (replay ?? usual);
  const clash = portClash(ports, nRanks, livePort, replayPort);
  if (clash !== null) return clash;
  const source = (rank: number): KvEventSource => ({
    endpoint: `tcp://${addressOf(pod.ip, livePort + rank)}`,
    replayEndpoint: replayPort === null ? null : `tcp://${addressOf(pod.ip, replayPort + rank)}`,
  });
  return ports.map((_, index) => Array.from({ length: perPort }, (_, rank) => source(index * perPort + rank)));
}

function ranksOf(annotation: string | undefined, nPorts: number): number | string {
  if (annotation === undefined) return nPorts;
  const nRanks = /^\d{1,4}$/.test(annotation) ? Number(annotation) : 0;
  if (nRanks >= 1 && nRanks <= MAX_RANKS && nRanks % nPorts === 0) return nRanks;
  const multiple = nPorts === 1 ? '' : ` and a multiple of its ${nPorts} ports`;
  return `annotation warmpath.dev/data-parallel-size must be an integer from 1 to ${MAX_RANKS}${multiple}, got ${showGot(annotation)}`;
}

function eventPortOf(annotations: Pod['annotations'], name: string): number | 'none' | 'wrong' | null {
  const text = annotations[name];
  if (text === undefined) return null;
  return text === 'none' ? 'none' : (parsePort(text) ?? 'wrong');
}

/** Why the ports of requests, events and replay cannot all be meant. */
function portClash(ports: readonly number[], nRanks: number, live: number, replay: number | null): string | null {
  const last = Math.max(live, replay ?? 0) + nRanks - 1;
  if (last > 65_535) return `its ports must be below 65536, got ${last} for the events of the last of ${nRanks} ranks`;
  if (replay !== null && Math.abs(replay - live) < nRanks) {
    return `warmpath.dev/kv-replay-port must leave the event ports ${live} to ${live + nRanks - 1} free, got ${replay}`;
  }
  const isOf = (first: number | null) => (port: number) => first !== null && port >= first && port < first + nRanks;
  const shared = ports.find(isOf(live)) ?? ports.find(isOf(replay));
  return shared === undefined ? null : `port ${shared} must be for requests or for KV events, got both`;
}

function labelsOf(pod: Pod, { deploymentLabel, fleetLabel }: PodOptions): Readonly<Record<string, string>> {
  const deployment = deploymentLabel === null ? undefined : pod.labels[deploymentLabel];
  const fleet = fleetLabel === null ? undefined : pod.labels[fleetLabel];
  return {
    ...pod.labels,
    ...(deployment === undefined ? {} : { deployment }),
    ...(fleet === undefined ? {} : { fleet }),
  };
}

/** Of the container behind the port where it says so, else of all: a restart too many costs a little, one too few is wrong. */
function incarnationOf({ uid, containers }: Pod, port: number): string {
  const owners = containers.filter(({ ports }) => ports.includes(port));
  return [uid, ...(owners.length > 0 ? owners : containers).map(({ process }) => process)].join(' ');
}

/** In the spelling Envoy compares. */
function addressOf(ip: string, port: number): string {
  const parsed = parseIpPort(isIPv6(ip) ? `[${ip}]:${port}` : `${ip}:${port}`);
  return typeof parsed === 'string' ? `${ip}:${port}` : parsed.text;
}

function parsePort(text: string): number | null {
  const trimmed = text.trim();
  const port = /^[1-9]\d{0,4}$/.test(trimmed) ? Number(trimmed) : 0;
  return port >= 1 && port <= 65_535 ? port : null;
}

/** An address is given again while the pod that had it is still listed: the younger one has it now. */
function isSuccessor(a: Pod, b: Pod): boolean {
  if (a.isTerminating !== b.isTerminating) return b.isTerminating;
  return isYounger(a, b);
}

/** Two that live side by side on one node: a newcomer must not take away what runs. */
function isSenior(a: Pod, b: Pod): boolean {
  if (a.isTerminating !== b.isTerminating) return b.isTerminating;
  return isYounger(b, a);
}

function isYounger(a: Pod, b: Pod): boolean {
  return a.createdAt !== b.createdAt ? a.createdAt > b.createdAt : a.uid > b.uid;
}

function isSameList(a: readonly string[], b: readonly string[]): boolean {
  return a === b || (a.length === b.length && a.every((one, index) => one === b[index]));
}

function excluded(reason: string): Verdict {
  return { kind: 'excluded', reason };
}
