/**
 * `make e2e-gateway`: Envoy Gateway's own translator makes Envoy's configuration of the manifests in envoy/gateway/ and of the rendered
 * chart, and what it made is compared with what we mean. The translator (`egctl`) is built from its Go module, once, into
 * the user's cache folder. Deliberately not here: Envoy AI Gateway's translation of an InferencePool, which Envoy Gateway
 * alone does not know.
 */
import { deepStrictEqual } from 'node:assert';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { access, constants, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { stringify } from 'yaml';
import { gatewayManifests } from './gateway-manifests.ts';
import { createHelm } from './helm.ts';
import type { Manifest } from './kube-schemas.ts';

type Fields = Record<string, unknown>;

const VERSION = 'v1.9.1';
const BUILD_TIMEOUT_MS = 3_600_000;
const run = promisify(execFile);

/** What Envoy is told, as far as Warmpath depends on it. Durations and sizes as xDS spells them. */
type Facts = {
  readonly filter: Fields;
  readonly warmpathCluster: Fields;
  /** Of the Services of Warmpath, in the order of the policy. */
  readonly priorities: readonly unknown[];
  /** Of each that is spoken to by TLS, the name its certificate must have. */
  readonly tlsNames: readonly unknown[];
  readonly podsCluster: Fields;
  readonly route: Fields;
  readonly listener: Fields;
  /** Of every object: whether the gateway accepted it. */
  readonly notAccepted: readonly string[];
};

const BUFFERED: Facts = {
  filter: {
    failureModeAllow: true,
    messageTimeout: '0.500s',
    allowModeOverride: true,
    statusOnError: undefined,
    processingMode: {
      requestHeaderMode: 'SEND',
      requestBodyMode: 'BUFFERED',
      requestTrailerMode: 'SKIP',
      responseHeaderMode: 'SKIP',
      responseTrailerMode: 'SKIP',
    },
    metadataOptions: {
      forwardingNamespaces: { untyped: ['envoy.lb', 'envoy.lb.subset_hint'] },
      receivingNamespaces: { untyped: ['envoy.lb'] },
    },
  },
  warmpathCluster: {
    limits: { maxConnections: 1024, maxPendingRequests: 65536, maxRequests: 65536, maxRetries: 1024 },
    maxRequestsPerConnection: 900,
    http2: { initialConnectionWindowSize: 16 * 2 ** 20, initialStreamWindowSize: 2 ** 20 },
    bufferBytes: 2 ** 20,
    connectTimeout: '0.250s',
    healthCheck: { path: '/readyz', interval: '2s', timeout: '1s', unhealthyThreshold: 1, port: 9090 },
    panicThreshold: {},
    ejection: {
      splitExternalLocalOriginErrors: true,
      consecutiveLocalOriginFailure: 1,
      maxEjectionPercent: 100,
      interval: '1s',
      baseEjectionTime: '5s',
      consecutive5xx: 5,
      alwaysEjectOneHost: false,
    },
  },
  // 0 is not spelt out.
  priorities: [undefined],
  tlsNames: [],
  podsCluster: {
    limits: { maxConnections: 65536, maxPendingRequests: 65536, maxRequests: 65536, maxRetries: 65536 },
    override: [{ header: 'x-gateway-destination-endpoint' }],
    fallback: 'envoy.load_balancing_policies.least_request',
    connectTimeout: '2s',
    idleTimeout: '3s',
  },
  route: {
    timeout: '0s',
    idleTimeout: '300s',
    retryOn: 'connect-failure,refused-stream',
    numRetries: 3,
    hostPredicates: ['envoy.retry_host_predicates.previous_hosts'],
  },
  listener: {
    bufferBytes: 16 * 2 ** 20,
    http2: {
      initialConnectionWindowSize: 64 * 2 ** 20,
      initialStreamWindowSize: 16 * 2 ** 20,
      maxConcurrentStreams: 1024,
    },
    removed: [
      'x-gateway-destination-endpoint',
      'x-gateway-destination-endpoint-subset',
      'target-pod',
      'x-data-parallel-rank',
    ],
  },
  notAccepted: [],
};

const FULL_DUPLEX: Facts = {
  ...BUFFERED,
  filter: {
    ...BUFFERED.filter,
    failureModeAllow: undefined,
    allowModeOverride: undefined,
    statusOnError: { code: 'ServiceUnavailable' },
    // Envoy takes this body mode only together with trailers; Envoy Gateway adds them.
    processingMode: {
      ...(BUFFERED.filter.processingMode as Fields),
      requestBodyMode: 'FULL_DUPLEX_STREAMED',
      requestTrailerMode: 'SEND',
    },
  },
  listener: {
    ...BUFFERED.listener,
    bufferBytes: 2 ** 20,
    http2: { initialConnectionWindowSize: 16 * 2 ** 20, initialStreamWindowSize: 2 ** 20, maxConcurrentStreams: 1024 },
  },
};

const STANDBY: Facts = { ...BUFFERED, priorities: [undefined, 1] };

/** The port of the check is that of requests, and TLS is spoken there. */
const STANDBY_TLS: Facts = {
  ...STANDBY,
  warmpathCluster: {
    ...STANDBY.warmpathCluster,
    healthCheck: { path: undefined, interval: '2s', timeout: '1s', unhealthyThreshold: 1, port: undefined },
  },
  tlsNames: ['warmpath.llm.svc', 'warmpath.llm.svc'],
};

/** The listener is AIBrix' own: what Envoy Gateway makes of one that nobody has said anything about. */
const CANARY: Facts = {
  ...BUFFERED,
  listener: {
    bufferBytes: 32 * 2 ** 10,
    http2: { initialConnectionWindowSize: 2 ** 20, initialStreamWindowSize: 64 * 2 ** 10, maxConcurrentStreams: 100 },
    removed: [],
  },
};

async function main(): Promise<void> {
  const egctl = await findEgctl();
  const helm = await createHelm();
  const values = { pods: { matchLabels: { app: 'vllm' } }, gateway: { name: 'llm' } };
  const [gatewayClass, gateway] = gatewayManifests('buffered.yaml');
  const around = [gatewayClass!, withoutParameters(gateway!)];
  const aibrix = { ...withoutParameters(gateway!), metadata: { name: 'aibrix-eg', namespace: 'aibrix-system' } };
  const cases: readonly (readonly [string, readonly Manifest[], Facts])[] = [
    ['buffered.yaml', [...gatewayManifests('buffered.yaml'), service('warmpath', 'llm', WARMPATH_PORTS)], BUFFERED],
    [
      'full-duplex.yaml',
      [...gatewayManifests('full-duplex.yaml'), service('warmpath', 'llm', WARMPATH_PORTS)],
      FULL_DUPLEX,
    ],
    [
      'beside-aibrix.yaml',
      [
        gatewayClass!,
        aibrix,
        ...gatewayManifests('beside-aibrix.yaml'),
        service('warmpath', 'aibrix-system', WARMPATH_PORTS),
        service('my-model', 'default', [{ name: 'http', port: 8000 }]),
      ],
      CANARY,
    ],
    [
      'standby.yaml',
      [
        ...gatewayManifests('buffered.yaml').filter(({ kind }) => kind !== 'EnvoyExtensionPolicy'),
        ...gatewayManifests('standby.yaml'),
        service('warmpath', 'llm', WARMPATH_PORTS),
        service('warmpath-standby', 'llm', WARMPATH_PORTS),
      ],
      STANDBY,
    ],
    ['the chart', [...around, ...(await helm.template(values))], STANDBY],
    [
      'the chart, all deciding',
      [...around, ...(await helm.template({ ...values, standby: { enabled: false } }))],
      BUFFERED,
    ],
    [
      'the chart, by TLS',
      [
        ...around,
        secret('tls', 'llm'),
        ...(await helm.template({
          ...values,
          tls: { mode: 'secret', secretName: 'tls' },
        })),
      ],
      STANDBY_TLS,
    ],
    [
      'the chart, full duplex',
      [
        ...around,
        ...(await helm.template({
          ...values,
          gateway: { name: 'llm', bodyMode: 'FullDuplexStreamed', maxBodySize: '1Mi' },
        })),
      ],
      {
        ...FULL_DUPLEX,
        listener: {
          ...FULL_DUPLEX.listener,
          http2: { ...(FULL_DUPLEX.listener.http2 as Fields), initialConnectionWindowSize: 64 * 2 ** 20 },
        },
      },
    ],
  ];
  for (const [name, manifests, expected] of cases) {
    const facts = factsOf(await translate(egctl, manifests));
    deepStrictEqual(facts, expected, `${name} must be translated as meant`);
    say(`${name}: filter, body mode, choice of the pod, limits as meant`);
  }
  say(`${cases.length} passed, 0 failed`);
}

const WARMPATH_PORTS: readonly Fields[] = [
  { name: 'grpc', port: 9002, appProtocol: 'kubernetes.io/h2c' },
  { name: 'admin', port: 9090 },
];

function service(name: string, namespace: string, ports: readonly Fields[]): Manifest {
  return { apiVersion: 'v1', kind: 'Service', metadata: { name, namespace }, spec: { selector: { app: name }, ports } };
}

function secret(name: string, namespace: string): Manifest {
  const ca = readFileSync(new URL('../fixtures/tls/ca.crt', import.meta.url)).toString('base64');
  return { apiVersion: 'v1', kind: 'Secret', metadata: { name, namespace }, ...{ data: { 'ca.crt': ca } } };
}

function withoutParameters(gateway: Manifest): Manifest {
  const { infrastructure: _, ...spec } = gateway.spec as Fields;
  return { ...gateway, spec };
}

/** The translator takes the address of a Service, which an API server would give, for its only endpoint. */
function withAddress(manifest: Manifest, index: number): Manifest {
  if (manifest.kind !== 'Service') return manifest;
  return { ...manifest, spec: { ...(manifest.spec as Fields), clusterIP: `10.96.0.${index + 1}` } };
}

async function translate(egctl: string, manifests: readonly Manifest[]): Promise<Fields> {
  const folder = await mkdtemp(join(tmpdir(), 'warmpath-egctl-'));
  try {
    const file = join(folder, 'in.yaml');
    // What the gateway does not know is not its business.
    const known = /^(gateway|v1$)/;
    const input = manifests.filter(
      ({ apiVersion, kind }) => known.test(apiVersion) && !['ConfigMap', 'ServiceAccount'].includes(kind),
    );
    await writeFile(file, input.map((manifest, index) => stringify(withAddress(manifest, index))).join('---\n'));
    const args = ['x', 'translate', '--from', 'gateway-api', '--to', 'gateway-api,xds', '-o', 'json', '-f', file];
    const { stdout } = await run(egctl, args, { maxBuffer: 2 ** 28, timeout: 120_000 });
    return JSON.parse(stdout) as Fields;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function factsOf(translated: Fields): Facts {
  const [xds] = Object.values(translated.xds as Fields);
  const listener = only(
    xds,
    (one) => typeOf(one) === 'Listener' && only(one, (inner) => typeOf(inner) === 'ExternalProcessor', 'none') !== null,
  );
  const filter = only(listener, (one) => typeOf(one) === 'ExternalProcessor');
  const clusters = all(xds, (one) => typeOf(one) === 'Cluster');
  const warmpath = clusters.find(({ name }) => String(name).startsWith('envoyextensionpolicy/'))!;
  const pods = clusters.find(({ name }) => String(name).startsWith('httproute/'))!;
  // One for each match of the rule, all alike.
  const [route, ...others] = all(xds, (one) => 'retryPolicy' in one) as [Fields, ...Fields[]];
  for (const other of others) deepStrictEqual(other, route);
  const retry = route.retryPolicy as Fields & { retryHostPredicate: { name: string }[] };
  const override = only(pods, (one) => typeOf(one) === 'OverrideHost');
  const [check] = warmpath.healthChecks as [Fields & { httpHealthCheck?: { path: string } }];
  const members = only(xds, (one) => typeOf(one) === 'ClusterLoadAssignment' && one.clusterName === warmpath.name);
  // The same of each member.
  const [checked, ...otherChecks] = all(members, (one) => 'healthCheckConfig' in one).map(
    ({ healthCheckConfig }) => healthCheckConfig as { portValue: number },
  );
  const sockets = (warmpath.transportSocketMatches ?? []) as Fields[];
  for (const other of otherChecks) deepStrictEqual(other, checked);
  const protocolOf = (cluster: Fields): Fields => only(cluster, (one) => typeOf(one) === 'HttpProtocolOptions');
  const common = (cluster: Fields): Fields => (protocolOf(cluster).commonHttpProtocolOptions ?? {}) as Fields;
  const hcm = only(listener, (one) => typeOf(one) === 'HttpConnectionManager');
  const pick = (from: Fields, keys: readonly string[]): Fields =>
    Object.fromEntries(keys.map((key) => [key, from[key]]));
  return {
    filter: pick(filter, [
      'failureModeAllow',
      'messageTimeout',
      'allowModeOverride',
      'statusOnError',
      'processingMode',
      'metadataOptions',
    ]),
    warmpathCluster: {
      limits: limitsOf(warmpath),
      maxRequestsPerConnection: common(warmpath).maxRequestsPerConnection,
      http2: (protocolOf(warmpath).explicitHttpConfig as { http2ProtocolOptions: Fields }).http2ProtocolOptions,
      bufferBytes: warmpath.perConnectionBufferLimitBytes,
      connectTimeout: warmpath.connectTimeout,
      healthCheck: {
        path: check.httpHealthCheck?.path,
        ...pick(check, ['interval', 'timeout', 'unhealthyThreshold']),
        port: checked?.portValue,
      },
      panicThreshold: (warmpath.commonLbConfig as Fields).healthyPanicThreshold,
      ejection: warmpath.outlierDetection,
    },
    tlsNames: sockets.map((socket) => only(socket, (one) => 'sni' in one).sni),
    priorities: (members.endpoints as Fields[]).map(({ priority }) => priority),
    podsCluster: {
      limits: limitsOf(pods),
      override: override.overrideHostSources,
      fallback: (only(override.fallbackPolicy, (one) => 'typedExtensionConfig' in one).typedExtensionConfig as Fields)
        .name,
      connectTimeout: pods.connectTimeout,
      idleTimeout: common(pods).idleTimeout,
    },
    route: {
      timeout: route.timeout,
      idleTimeout: route.idleTimeout,
      retryOn: retry.retryOn,
      numRetries: retry.numRetries,
      hostPredicates: retry.retryHostPredicate.map(({ name }) => name),
    },
    listener: {
      bufferBytes: listener.perConnectionBufferLimitBytes,
      http2: (() => {
        const { initialConnectionWindowSize, initialStreamWindowSize, maxConcurrentStreams } =
          hcm.http2ProtocolOptions as Fields;
        return { initialConnectionWindowSize, initialStreamWindowSize, maxConcurrentStreams };
      })(),
      removed: all(hcm.earlyHeaderMutationExtensions ?? [], (one) => typeof one.remove === 'string').map(({ remove }) =>
        String(remove),
      ),
    },
    notAccepted: all(translated, (one) => one.type === 'Accepted' || one.type === 'ResolvedRefs')
      .filter(({ status }) => status !== 'True')
      .map(({ type, reason, message }) => `${String(type)}: ${String(reason)} ${String(message)}`),
  };
}

function limitsOf(cluster: Fields): unknown {
  return (cluster.circuitBreakers as { thresholds: unknown[] }).thresholds[0];
}

function typeOf(one: Fields): string {
  return String(one['@type'] ?? '').replace(/^.*\./, '');
}

/** Every map below a value, itself included, that the test holds for. */
function all(value: unknown, test: (one: Fields) => boolean): Fields[] {
  if (typeof value !== 'object' || value === null) return [];
  const below = Object.values(value).flatMap((inner) => all(inner, test));
  return !Array.isArray(value) && test(value as Fields) ? [value as Fields, ...below] : below;
}

function only(value: unknown, test: (one: Fields) => boolean): Fields;
function only(value: unknown, test: (one: Fields) => boolean, otherwise: 'none'): Fields | null;
function only(value: unknown, test: (one: Fields) => boolean, otherwise?: 'none'): Fields | null {
  const found = all(value, test);
  if (found.length === 1) return found[0]!;
  if (otherwise === 'none') return null;
  throw new Error(`expected one ${test.toString()}, got ${found.length}`);
}

async function findEgctl(): Promise<string> {
  const folder = join(homedir(), '.cache', 'warmpath', 'egctl', VERSION);
  const path = join(folder, 'egctl');
  const isThere = await access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
  if (isThere) return path;
  await run('go', ['version']).catch((error: unknown) => {
    throw new Error('Go is needed to build egctl, found none on the PATH', { cause: error });
  });
  say(`building egctl ${VERSION} from its Go module, once: ten minutes of CPU`);
  await mkdir(folder, { recursive: true });
  const env = { ...process.env, GOBIN: folder };
  await run('go', ['install', `github.com/envoyproxy/gateway/cmd/egctl@${VERSION}`], {
    env,
    timeout: BUILD_TIMEOUT_MS,
  });
  return path;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

await main();
