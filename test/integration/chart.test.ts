import { writeFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, jest, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import { loadConfig, type Config } from '../../src/config.ts';
import { createKubernetesEndpoints } from '../../src/kubernetes/kubernetes-endpoints.ts';
import { silentLog } from '../../src/log.ts';
import { FakeApiServer, type Grant } from '../support/fake-api-server.ts';
import { createHelm, NAMESPACE, type Helm, type Values } from '../support/helm.ts';
import { aPod, aPool, anAdapter, kubeconfigOf } from '../support/kubernetes.ts';
import { createSchemas, type Manifest } from '../support/kube-schemas.ts';
import { restrictedBreaches } from '../support/pod-security.ts';

const THREE = { pods: { namespace: NAMESPACE, matchLabels: { app: 'vllm' } }, gateway: { name: 'llm' } };
const POOL = { pods: { matchLabels: { app: 'vllm' } }, inferencePool: { create: true }, tls: { mode: 'selfSigned' } };

/** What people install. */
const MATRIX: Readonly<Record<string, Values>> = {
  'nothing given': {},
  'the three values': THREE,
  'full duplex': { ...THREE, gateway: { name: 'llm', bodyMode: 'FullDuplexStreamed', maxBodySize: '64Mi' } },
  'a gateway, a route and pods elsewhere': {
    pods: { namespace: 'models', matchLabels: { app: 'vllm', 'app.kubernetes.io/part-of': 'llm' }, port: 8080 },
    gateway: { name: 'shared', namespace: 'gateways', httpRoute: { hostnames: ['llm.example.com'], pathPrefix: '/' } },
  },
  'a route of your own': {
    gateway: {
      name: 'llm',
      httpRoute: { create: false, name: 'mine' },
      clientTrafficPolicy: { create: false },
      backendTrafficPolicy: { create: false },
    },
  },
  'an InferencePool': { ...POOL, gateway: { name: 'llm', clientTrafficPolicy: { create: false } } },
  'an InferencePool of eight ports': {
    ...POOL,
    inferencePool: { create: true, name: 'pool', targetPorts: [1, 2, 3, 4, 5, 6, 7, 8], failureMode: 'FailClose' },
  },
  'an InferencePool that is there': { inferencePool: { name: 'theirs' }, tls: { mode: 'secret', secretName: 'tls' } },
  'an InferencePool by its key': { config: { discovery: { kubernetes: { inferencePool: 'theirs' } } } },
  'a namespace by its key': { config: { discovery: { kubernetes: { namespace: 'models' } } } },
  'TLS by cert-manager': {
    ...THREE,
    tls: { mode: 'certManager', certManager: { issuerRef: { name: 'ca', kind: 'ClusterIssuer' } } },
  },
  'mutual TLS': {
    tls: { mode: 'secret', secretName: 'warmpath-mtls', mutual: true },
    config: { server: { tls: { allowedClients: ['URI:spiffe://cluster.local/ns/gateway/sa/envoy'] } } },
  },
  'static endpoints': {
    config: {
      discovery: { mode: 'static', endpoints: [{ name: 'a', address: '10.0.0.1:8000', model: 'm', kvEvents: 'none' }] },
    },
  },
  'engines that connect': {
    replicas: 1,
    pods: { matchLabels: { app: 'vllm' } },
    config: { kvEvents: { listen: '0.0.0.0:5557' } },
  },
  'no adapters': { config: { discovery: { kubernetes: { modelAdapters: 'off' } } } },
  'no objectives': { config: { discovery: { kubernetes: { inferenceObjectives: 'off' } } } },
  monitored: {
    serviceMonitor: { enabled: true, labels: { release: 'prometheus' } },
    alerts: { enabled: true },
    dashboard: { enabled: true },
  },
  'scaled by load': {
    autoscaling: { enabled: true, minReplicas: 3, maxReplicas: 9 },
    podDisruptionBudget: { maxUnavailable: '25%' },
  },
  'all decide': { ...THREE, standby: { enabled: false } },
  'a standby': { ...THREE, standby: { enabled: true } },
  'two that stand by': { ...THREE, replicas: 3, standby: { enabled: true } },
  'a standby, TLS and rules of your own': {
    standby: { enabled: true },
    fullnameOverride: 'picker',
    tls: { mode: 'certManager', certManager: { issuerRef: { name: 'ca' } } },
    gateway: { name: 'llm', httpRoute: { create: false, name: 'mine' } },
    service: { headless: true },
    config: { server: { grpcListen: '0.0.0.0:7002' }, kvEvents: { readyWhen: 'connected' } },
    affinity: {
      podAntiAffinity: {
        preferredDuringSchedulingIgnoredDuringExecution: [
          { weight: 1, podAffinityTerm: { topologyKey: 'rack', labelSelector: { matchLabels: { app: 'vllm' } } } },
        ],
      },
    },
  },
  'a standby and siblings by another name': {
    standby: { enabled: true },
    config: { kvEvents: { siblings: 'everybody:9002' } },
  },
  'pinned and placed': {
    image: { repository: 'registry.example.com/warmpath', digest: `sha256:${'a'.repeat(64)}`, pullSecrets: ['pull'] },
    priorityClassName: 'system-cluster-critical',
    nodeSelector: { 'kubernetes.io/arch': 'amd64' },
    tolerations: [{ key: 'gateway', operator: 'Exists' }],
    affinity: {
      nodeAffinity: {
        requiredDuringSchedulingIgnoredDuringExecution: {
          nodeSelectorTerms: [{ matchExpressions: [{ key: 'pool', operator: 'In', values: ['cpu'] }] }],
        },
      },
    },
    topologySpreadConstraints: [],
  },
  'everything extra': {
    extraEnv: [{ name: 'WARMPATH_LOG_LEVEL', value: 'debug' }],
    extraVolumes: [{ name: 'more', emptyDir: {} }],
    extraVolumeMounts: [{ name: 'more', mountPath: '/more' }],
    podAnnotations: { 'example.com/a': 'b' },
    podLabels: { team: 'llm', cost: 'picker' },
    commonLabels: { cost: 'shared' },
    serviceAccount: { name: 'theirs', annotations: { 'example.com/role': 'r' } },
    service: { headless: true, annotations: { 'example.com/a': 'b' } },
    fullnameOverride: 'picker',
    networkPolicy: {
      extraEgress: [{ to: [{ ipBlock: { cidr: '10.0.0.0/8' } }] }],
      gatewayNamespaces: [],
      monitoringNamespaces: [],
    },
  },
  'names that look like something else': {
    fullnameOverride: 'yes',
    pods: { namespace: '10023', matchLabels: { app: '1', 'example.com/gpu': 'true' } },
    gateway: { name: 'on', namespace: 'no', httpRoute: { create: true, name: 'off' } },
    tls: { mode: 'secret', secretName: '007' },
    image: { pullSecrets: ['1e3'] },
    priorityClassName: 'null',
    networkPolicy: { gatewayNamespaces: ['7'], monitoringNamespaces: ['y'] },
    config: { routing: { destinationHeader: 'on' } },
  },
  'a name and a pool of digits': { ...POOL, nameOverride: '1', inferencePool: { create: true, name: '2' } },
  'a label of every object and of what watches them': {
    commonLabels: { release: 'x', team: '1' },
    serviceMonitor: { enabled: true, labels: { release: 'y' } },
    alerts: { enabled: true, labels: { release: 'y' } },
    dashboard: { enabled: true, labels: { release: 'y' } },
  },
  'nothing optional': {
    serviceAccount: { create: false },
    rbac: { create: false },
    podDisruptionBudget: { enabled: false },
    networkPolicy: { enabled: false },
  },
  'keys that take effect at once': { config: { log: { level: 'debug' }, routing: { fallbackEndpoints: 3 } } },
  'other ports and a long drain': {
    config: {
      server: {
        grpcListen: '0.0.0.0:7002',
        healthListen: '[::]:7003',
        adminListen: '0.0.0.0:7090',
        drainDelayMs: 10_000,
        drainTimeoutMs: 120_500,
      },
    },
  },
};
const CASES = Object.entries(MATRIX);

// Compiling the larger schemas and starting Helm take seconds on a busy machine.
jest.setTimeout(60_000);
const problemsOf = createSchemas();
let helm: Helm;
const rendered = new Map<string, readonly Manifest[]>();
beforeAll(async () => {
  helm = await createHelm();
  for (const [name, values] of CASES) rendered.set(name, await helm.template(values));
}, 600_000);

function find<T>(manifests: readonly Manifest[], kind: string): T & Manifest {
  const found = manifests.filter((manifest) => manifest.kind === kind);
  expect(found.map((manifest) => manifest.kind)).toEqual([kind]);
  return found[0] as T & Manifest;
}

/** The replicas' Deployments: one, or two with a standby. */
function deploymentsOf(manifests: readonly Manifest[]): readonly (Deployment & Manifest)[] {
  const found = manifests.filter((manifest) => manifest.kind === 'Deployment') as (Deployment & Manifest)[];
  expect([1, 2]).toContain(found.length);
  return found;
}

const ofCase = (name: string): readonly Manifest[] => rendered.get(name)!;
const kindsOf = (manifests: readonly Manifest[]): readonly string[] => manifests.map(({ kind }) => kind).sort();

type Deployment = {
  spec: {
    replicas?: number;
    strategy: { rollingUpdate: { maxUnavailable: number; maxSurge: number } };
    template: {
      metadata: { annotations: Record<string, string>; labels: Record<string, string> };
      spec: {
        automountServiceAccountToken: boolean;
        terminationGracePeriodSeconds: number;
        serviceAccountName: string;
        containers: {
          image: string;
          args: string[];
          ports: { name: string; containerPort: number }[];
          startupProbe: Probe;
          livenessProbe: Probe;
          readinessProbe: Probe;
          securityContext: Record<string, unknown>;
          volumeMounts: { name: string; mountPath: string }[];
        }[];
        volumes: { name: string; secret?: { secretName: string } }[];
        topologySpreadConstraints?: { labelSelector: unknown }[];
      };
    };
  };
};
type Probe = { grpc: { port: number; service: string } };
type Role = { rules: { apiGroups: string[]; resources: string[]; verbs: string[] }[] };

/** The configuration file of a rendered chart, as Warmpath reads it. */
function configOf(manifests: readonly Manifest[], sets: readonly string[] = []): Config {
  const { data } = manifests.find(
    ({ kind, metadata }) => kind === 'ConfigMap' && !metadata.name.endsWith('-dashboard'),
  ) as Manifest & { data: Record<string, string> };
  const loaded = loadConfig({ file: 'warmpath.yaml', readFile: () => data['warmpath.yaml']!, env: {}, sets });
  expect(loaded).toMatchObject({ kind: 'config', notices: [] });
  return (loaded as { config: Config }).config;
}

describe.each(CASES)('the chart with %s', (name, values) => {
  test('passes helm lint', async () => {
    await expect(helm.lint(values)).resolves.toContain('0 chart(s) failed');
  });

  test('renders only what an API server takes, schemas and rules of the CRDs included', () => {
    const manifests = ofCase(name);
    expect(kindsOf(manifests)).toEqual(expect.arrayContaining(['ConfigMap', 'Deployment', 'Service']));
    expect(manifests.flatMap(problemsOf)).toEqual([]);
    const names = manifests.map(
      ({ apiVersion, kind, metadata }) => `${apiVersion} ${kind} ${metadata.namespace}/${metadata.name}`,
    );
    expect(new Set(names).size).toBe(names.length);
    expect(manifests.filter(({ metadata }) => metadata.namespace === undefined)).toEqual([]);
  });

  test('makes pods that pass Pod Security "restricted" and write nothing', () => {
    for (const deployment of deploymentsOf(ofCase(name))) {
      expect(restrictedBreaches(deployment)).toEqual([]);
      expect(deployment.spec.template.spec.containers[0]!.securityContext).toMatchObject({
        readOnlyRootFilesystem: true,
      });
    }
  });

  test('starts Warmpath with a configuration it understands, and probes the ports it listens on', () => {
    const manifests = ofCase(name);
    for (const { spec } of deploymentsOf(manifests)) checkContainer(manifests, spec.template.spec);
  });

  function checkContainer(manifests: readonly Manifest[], pod: Deployment['spec']['template']['spec']): void {
    const [container] = pod.containers;
    const [command, flag, file, ...sets] = container!.args;
    expect([command, flag, file]).toEqual(['serve', '--config', '/etc/warmpath/config/warmpath.yaml']);
    const { server } = configOf(
      manifests,
      sets.filter((arg) => arg !== '--set'),
    );
    expect(container!.volumeMounts).toContainEqual({
      name: 'config',
      mountPath: '/etc/warmpath/config',
      readOnly: true,
    });
    const portOf = (listen: string): number => Number(listen.slice(listen.lastIndexOf(':') + 1));
    expect(Object.fromEntries(container!.ports.map((port) => [port.name, port.containerPort]))).toEqual({
      grpc: portOf(server.grpcListen),
      health: portOf(server.healthListen),
      admin: portOf(server.adminListen),
    });
    const probe = (service: string): object => ({ port: portOf(server.healthListen), service });
    expect(container!.startupProbe.grpc).toEqual(probe('liveness'));
    expect(container!.livenessProbe.grpc).toEqual(probe('liveness'));
    expect(container!.readinessProbe.grpc).toEqual(probe('readiness'));
    expect(pod.terminationGracePeriodSeconds * 1000).toBeGreaterThan(server.drainDelayMs + server.drainTimeoutMs);
  }

  test('grants nothing but list and watch, in one namespace, and mounts a token only for that', () => {
    const manifests = ofCase(name);
    const { discovery } = configOf(manifests);
    const kinds = kindsOf(manifests);
    expect(kinds.filter((kind) => kind.startsWith('ClusterRole'))).toEqual([]);
    const pods = deploymentsOf(manifests).map(({ spec }) => spec.template.spec);
    for (const pod of pods) expect(pod.automountServiceAccountToken).toBe(discovery.mode === 'kubernetes');
    if (!kinds.includes('Role')) return;
    const role = find<Role>(manifests, 'Role');
    expect(role.rules.map(({ verbs }) => verbs)).toEqual(role.rules.map(() => ['list', 'watch']));
    expect(role.metadata.namespace).toBe(discovery.kubernetes.namespace);
    for (const { serviceAccountName } of pods) {
      expect(find<{ subjects: object[] }>(manifests, 'RoleBinding').subjects).toEqual([
        { kind: 'ServiceAccount', name: serviceAccountName, namespace: NAMESPACE },
      ]);
    }
  });
});

describe('three values', () => {
  test('are enough for a route whose pods Warmpath chooses', () => {
    expect(kindsOf(ofCase('the three values'))).toEqual([
      'BackendTrafficPolicy',
      'ClientTrafficPolicy',
      'ConfigMap',
      'Deployment',
      'Deployment',
      'EnvoyExtensionPolicy',
      'HTTPRoute',
      'NetworkPolicy',
      'PodDisruptionBudget',
      'Role',
      'RoleBinding',
      'Service',
      'Service',
      'Service',
      'ServiceAccount',
    ]);
    const config = configOf(ofCase('the three values'));
    expect(config.discovery).toMatchObject({
      mode: 'kubernetes',
      kubernetes: { namespace: NAMESPACE, labelSelector: 'app=vllm' },
    });
    expect(config.server.responseTrailers).toBe('ask');
  });

  test('can be given on the command line', async () => {
    const sets = [`pods.namespace=${NAMESPACE}`, 'pods.matchLabels.app=vllm', 'gateway.name=llm'];
    expect(await helm.template({}, sets)).toEqual(ofCase('the three values'));
  });

  test('are told what to do next', async () => {
    const notes = await helm.notes(THREE);
    expect(notes).toMatch(/^Warmpath 0\.1\.0 follows pods app=vllm in namespace llm\./);
    expect(notes.match(/^ {3}\S.*$/gm)).toHaveLength(4);
    expect(notes).toContain('main.js explain - < BODY.json');
    const elsewhere = { ...THREE, config: { server: { adminListen: '0.0.0.0:7090' } } };
    expect(await helm.notes(elsewhere)).toContain('main.js explain --admin http://127.0.0.1:7090 - < BODY.json');
    expect(await helm.notes({})).toContain('Nothing asks it yet: set gateway.name');
  });
});

describe('the Deployment', () => {
  test('loses nothing in a rolling update: two replicas, none goes before the next is ready', () => {
    const { replicas, strategy } = find<Deployment>(ofCase('nothing given'), 'Deployment').spec;
    expect({ replicas, ...strategy.rollingUpdate }).toEqual({ replicas: 2, maxUnavailable: 0, maxSurge: 1 });
    expect(find<Deployment>(ofCase('scaled by load'), 'Deployment').spec.replicas).toBeUndefined();
  });

  test('is rolled by what is read at the start, and by nothing else', () => {
    const checksum = (name: string): string =>
      find<Deployment>(ofCase(name), 'Deployment').spec.template.metadata.annotations['checksum/config']!;
    expect(checksum('no adapters')).not.toBe(checksum('nothing given'));
    expect(checksum('monitored')).toBe(checksum('nothing given'));
    expect(checksum('keys that take effect at once')).toBe(checksum('nothing given'));
    expect(configOf(ofCase('keys that take effect at once')).log.level).toBe('debug');
  });

  test('waits for the whole drain', () => {
    const pod = find<Deployment>(ofCase('other ports and a long drain'), 'Deployment').spec.template.spec;
    expect(pod.terminationGracePeriodSeconds).toBe(141);
  });

  test('takes the digest before the tag', () => {
    const imageOf = (name: string): string =>
      find<Deployment>(ofCase(name), 'Deployment').spec.template.spec.containers[0]!.image;
    expect(imageOf('nothing given')).toBe('warmpath:0.1.0');
    expect(imageOf('pinned and placed')).toBe(`registry.example.com/warmpath@sha256:${'a'.repeat(64)}`);
  });

  test.each([
    ['mutual TLS', 'warmpath-mtls'],
    ['TLS by cert-manager', 'warmpath-tls'],
  ])('finds its certificate where %s puts it', (name, secretName) => {
    const { tls } = configOf(ofCase(name)).server;
    expect(tls).toMatchObject({ certFile: '/etc/warmpath/tls/tls.crt', keyFile: '/etc/warmpath/tls/tls.key' });
    for (const { spec } of deploymentsOf(ofCase(name))) {
      const { volumes } = spec.template.spec;
      expect(volumes.find((volume) => volume.name === 'tls')!.secret).toMatchObject({ secretName });
    }
  });
});

describe('the NetworkPolicy', () => {
  type Rule = {
    from?: { namespaceSelector?: { matchLabels: Record<string, string> } }[];
    ports: { port: number | string }[];
  };
  const ingressOf = (name: string): readonly (readonly [string, string])[] => {
    const { ingress } = find<{ spec: { ingress: Rule[] } }>(ofCase(name), 'NetworkPolicy').spec;
    return ingress.map(({ from, ports }) => [
      from?.map(({ namespaceSelector: of }) => (of ? Object.values(of.matchLabels).join() : 'replicas')).join() ??
        'anybody',
      ports.map(({ port }) => port).join(),
    ]);
  };

  test('lets in the data plane, Prometheus and probes, each where it has business', () => {
    expect(ingressOf('the three values')).toEqual([
      ['envoy-gateway-system,llm', 'grpc,admin'],
      ['monitoring', 'admin'],
      ['replicas', 'grpc'],
      ['anybody', 'health'],
    ]);
    expect(ingressOf('a gateway, a route and pods elsewhere')[0]).toEqual([
      'envoy-gateway-system,gateways',
      'grpc,admin',
    ]);
  });

  test('lets in engines that connect, and no others', () => {
    expect(ingressOf('engines that connect')).toContainEqual(['llm', '5557']);
  });
});

describe('a standby', () => {
  type Selector = { matchLabels?: Record<string, string>; matchExpressions?: { key: string; values: string[] }[] };
  type Service = { spec: { selector: Record<string, string>; ports: { name: string }[] } };
  const labelsOf = (deployment: Deployment): Record<string, string> => deployment.spec.template.metadata.labels;
  const selects = ({ matchLabels = {}, matchExpressions = [] }: Selector, labels: Record<string, string>): boolean =>
    Object.entries(matchLabels).every(([key, value]) => labels[key] === value) &&
    matchExpressions.every(({ key, values }) => values.includes(labels[key]!));
  const named = <T>(name: string, kind: string, object: string): T & Manifest =>
    ofCase(name).find(({ kind: one, metadata }) => one === kind && metadata.name === object) as T & Manifest;
  const siblingOf = (deployment: Deployment): string | undefined =>
    deployment.spec.template.spec.containers[0]!.args.find((arg) => arg.startsWith('kvEvents.siblings='));

  test('is there by itself where it can take over and requests go on until it does', () => {
    expect(ofCase('the three values')).toEqual(ofCase('a standby'));
    const withStandby = [...rendered].filter(([, manifests]) =>
      manifests.some(({ kind, metadata }) => kind === 'Deployment' && metadata.name.endsWith('-standby')),
    );
    expect(withStandby.map(([name]) => name)).toEqual([
      'the three values',
      'a gateway, a route and pods elsewhere',
      'a route of your own',
      'TLS by cert-manager',
      'a standby',
      'two that stand by',
      'a standby, TLS and rules of your own',
      'a standby and siblings by another name',
      'names that look like something else',
    ]);
  });

  test('is a Deployment and a Service more; the first one keeps its names and its selector, so it is turned on and off in place', () => {
    const [one, two] = [ofCase('all decide'), ofCase('a standby')].map((manifests) =>
      manifests.map(({ kind, metadata }) => `${kind} ${metadata.name}`).sort(),
    );
    expect(two!.filter((object) => !one!.includes(object))).toEqual([
      'Deployment warmpath-standby',
      'Service warmpath-standby',
    ]);
    expect(one!.filter((object) => !two!.includes(object))).toEqual([]);
    const selectorOf = (name: string): unknown =>
      named<{ spec: { selector: unknown } }>(name, 'Deployment', 'warmpath').spec.selector;
    expect(selectorOf('a standby')).toEqual(selectorOf('all decide'));
    for (const kind of ['Service', 'Role', 'ServiceAccount', 'HTTPRoute', 'BackendTrafficPolicy']) {
      expect(named('a standby', kind, 'warmpath')).toEqual(named('all decide', kind, 'warmpath'));
    }
  });

  test.each([
    ['a standby', [1, 1]],
    ['a standby, TLS and rules of your own', [1, 1]],
    ['two that stand by', [1, 2]],
  ])('%s: %j pods, and no selector finds both kinds', (name, replicas) => {
    const deployments = deploymentsOf(ofCase(name));
    const replicasOf = new Map(
      deployments.map(({ metadata, spec }) => [metadata.name.endsWith('-standby'), spec.replicas]),
    );
    expect([replicasOf.get(false), replicasOf.get(true)]).toEqual(replicas);
    for (const { spec, metadata } of deployments) {
      const { selector } = named<Service>(name, 'Service', metadata.name).spec;
      const found = deployments.filter((deployment) => selects({ matchLabels: selector }, labelsOf(deployment)));
      expect(found.map((deployment) => deployment.metadata.name)).toEqual([metadata.name]);
      const own = (spec as unknown as { selector: Selector }).selector;
      expect(deployments.filter((deployment) => selects(own, labelsOf(deployment)))).toHaveLength(1);
      expect(spec.strategy.rollingUpdate).toEqual({ maxUnavailable: 0, maxSurge: 1 });
    }
  });

  test('of the two at most one is taken away at once, and both are behind the NetworkPolicy and seen by Prometheus', () => {
    const name = 'a standby';
    const deployments = deploymentsOf(ofCase(name));
    const budget = named<{ spec: { selector: Selector; maxUnavailable: number } }>(
      name,
      'PodDisruptionBudget',
      'warmpath',
    );
    const network = named<{ spec: { podSelector: Selector } }>(name, 'NetworkPolicy', 'warmpath');
    for (const deployment of deployments) {
      expect(selects(budget.spec.selector, labelsOf(deployment))).toBe(true);
      expect(selects(network.spec.podSelector, labelsOf(deployment))).toBe(true);
      expect(selects(budget.spec.selector, { ...labelsOf(deployment), 'app.kubernetes.io/name': 'vllm' })).toBe(false);
    }
    expect(budget.spec.maxUnavailable).toBe(1);
    const { selector } = find<{ spec: { selector: Selector } }>(ofCase('monitored'), 'ServiceMonitor').spec;
    for (const object of ['warmpath', 'warmpath-standby']) {
      const { metadata } = named<{ metadata: { labels: Record<string, string> } }>(name, 'Service', object);
      expect(selects(selector, metadata.labels)).toBe(true);
    }
  });

  test('is asked second, by the same rules and the same certificate', () => {
    type Refs = { spec: { extProc: [{ backendRefs: object[] }] } };
    const refsOf = (name: string, object: string): object[] =>
      named<Refs>(name, 'EnvoyExtensionPolicy', object).spec.extProc[0].backendRefs;
    expect(refsOf('all decide', 'warmpath')).toEqual([{ name: 'warmpath', port: 9002 }]);
    expect(refsOf('a standby', 'warmpath')).toEqual([
      { name: 'warmpath', port: 9002 },
      { name: 'warmpath-standby', port: 9002, fallback: true },
    ]);
    const tls = 'a standby, TLS and rules of your own';
    type TlsPolicy = { spec: { targetRefs: { name: string }[]; validation: { hostname: string } } };
    const { targetRefs, validation } = named<TlsPolicy>(tls, 'BackendTLSPolicy', 'picker').spec;
    expect(targetRefs.map((target) => target.name)).toEqual(['picker', 'picker-standby']);
    const { dnsNames } = named<{ spec: { dnsNames: string[] } }>(tls, 'Certificate', 'picker').spec;
    expect(dnsNames).toEqual(expect.arrayContaining([validation.hostname, 'picker-standby.llm.svc']));
  });

  test('each tells the other what engines no longer replay, and is ready when it has caught up', () => {
    const [first, standby] = ['warmpath', 'warmpath-standby'].map((object) =>
      named<Deployment>('a standby', 'Deployment', object),
    );
    expect(siblingOf(first!)).toBe('kvEvents.siblings=warmpath-standby.llm.svc:9002');
    expect(siblingOf(standby!)).toBe('kvEvents.siblings=warmpath.llm.svc:9002');
    expect(configOf(ofCase('a standby')).kvEvents.readyWhen).toBe('replayed');
    // Values say otherwise; behind a headless Service the port is the pod's own.
    const tls = 'a standby, TLS and rules of your own';
    expect(configOf(ofCase(tls)).kvEvents.readyWhen).toBe('connected');
    expect(deploymentsOf(ofCase(tls)).map(siblingOf)).toContain('kvEvents.siblings=picker-standby.llm.svc:7002');
    expect(deploymentsOf(ofCase('a standby and siblings by another name')).map(siblingOf)).toEqual([
      undefined,
      undefined,
    ]);
    for (const name of ['a standby', 'a standby and siblings by another name']) {
      type Rules = { spec: { ingress: { from?: object[] }[]; egress: { to: { podSelector?: Selector }[] }[] } };
      const { ingress, egress } = named<Rules>(name, 'NetworkPolicy', 'warmpath').spec;
      const labels = labelsOf(deploymentsOf(ofCase(name))[0]!);
      const leads = egress.some(({ to }) => to.some(({ podSelector }) => podSelector && selects(podSelector, labels)));
      const lets = ingress.some(({ from = [] }) => from.some((one) => 'podSelector' in one));
      expect([name, leads, lets]).toEqual([name, true, true]);
    }
  });

  test('is kept off the node of the first one where there is another, whatever else the values prefer', () => {
    type Term = { weight: number; podAffinityTerm: { topologyKey: string; labelSelector: Selector } };
    type Placed = { spec: { template: { spec: { affinity: { podAntiAffinity: Record<string, Term[]> } } } } };
    const name = 'a standby, TLS and rules of your own';
    const [one, two] = deploymentsOf(ofCase(name));
    for (const [placed, other] of [
      [one!, two!],
      [two!, one!],
    ]) {
      const { podAntiAffinity } = (placed as unknown as Placed).spec.template.spec.affinity;
      const terms = podAntiAffinity['preferredDuringSchedulingIgnoredDuringExecution']!;
      expect(terms.map(({ podAffinityTerm }) => podAffinityTerm.topologyKey)).toEqual([
        'rack',
        'kubernetes.io/hostname',
        'topology.kubernetes.io/zone',
      ]);
      for (const { podAffinityTerm } of terms.slice(1)) {
        expect(selects(podAffinityTerm.labelSelector, labelsOf(other!))).toBe(true);
        expect(selects(podAffinityTerm.labelSelector, labelsOf(placed!))).toBe(false);
      }
    }
    const { affinity } = find<Deployment>(ofCase('nothing given'), 'Deployment').spec.template.spec as {
      affinity?: object;
    };
    expect(affinity).toBeUndefined();
  });

  test('is told of in the notes', async () => {
    const notes = await helm.notes({ ...THREE, standby: { enabled: true } });
    expect(notes).toContain('One replica decides, warmpath; warmpath-standby is asked while it is not ready.');
    expect(notes).toContain('rollout status deployment/warmpath-standby');
    expect(await helm.notes({ ...THREE, replicas: 3, standby: { enabled: true } })).toContain(
      'One replica decides, warmpath; the 2 of warmpath-standby are asked while it is not ready.',
    );
    expect(await helm.notes({ standby: { enabled: true } })).toContain('the second with priority 1');
  });
});

describe('health as Envoy asks for it', () => {
  test.each([
    ['the three values', { type: 'HTTP', overrides: { port: 9090 } }],
    // A check of a cluster with TLS is made by TLS, and the admin port speaks plaintext.
    ['TLS by cert-manager', { type: 'TCP', tcp: {} }],
  ])('of %s reaches a port that answers it', (name, expected) => {
    type Policy = { spec: { extProc: [{ backendSettings: { healthCheck: { active: object } } }] } };
    const [{ backendSettings }] = find<Policy>(ofCase(name), 'EnvoyExtensionPolicy').spec.extProc;
    expect(backendSettings.healthCheck.active).toMatchObject(expected);
  });
});

describe('an InferencePool', () => {
  test('gets one address per request, by TLS: what data planes that dial the destination need', () => {
    for (const name of ['an InferencePool', 'an InferencePool of eight ports', 'an InferencePool that is there']) {
      const { server, routing, discovery } = configOf(ofCase(name));
      expect(routing.fallbackEndpoints).toBe(0);
      expect(server.tls.selfSigned || server.tls.certFile !== null).toBe(true);
      expect(discovery.kubernetes.inferencePool).not.toBeNull();
    }
  });
});

describe('a mistake in the values', () => {
  test.each<[string, Values, RegExp]>([
    ['a value that does not exist', { replica: 3 }, /'replica' not allowed/],
    ['a nested one', { image: { repo: 'x' } }, /\/image'.*'repo' not allowed/],
    [
      'a configuration key that does not exist',
      { config: { server: { bodyMaxByte: 1 } } },
      /'bodyMaxByte' not allowed/,
    ],
    ['a configuration section that does not exist', { config: { router: {} } }, /'router' not allowed/],
    ['a word that is none of the choices', { gateway: { bodyMode: 'Streamed' } }, /bodyMode/],
    ['a choice of the configuration', { config: { discovery: { mode: 'dns' } } }, /\/config\/discovery\/mode/],
    ['a number that is none', { replicas: 'two' }, /replicas/],
    ['a digest cut short', { image: { digest: 'sha256:abc' } }, /digest/],
    [
      'a pool without labels',
      { inferencePool: { create: true }, tls: { mode: 'selfSigned' } },
      /needs pods\.matchLabels/,
    ],
    ['a pool without TLS', { ...POOL, tls: { mode: 'none' } }, /inferencePool\.create needs tls\.mode/],
    [
      'a pool of another namespace',
      { ...POOL, pods: { ...POOL.pods, namespace: 'x' } },
      /to be the release's namespace llm.*got x/,
    ],
    ['a route without labels', { gateway: { name: 'llm' } }, /gateway\.httpRoute\.create needs pods\.matchLabels/],
    [
      'a route of nobody',
      { gateway: { name: 'llm', httpRoute: { create: false } } },
      /httpRoute\.name must name your HTTPRoute/,
    ],
    [
      'an Envoy that gives up before Warmpath does',
      { ...THREE, config: { tokenizer: { budgetMs: 200 } } },
      /messageTimeout must be above Warmpath's own deadline of 500 ms .*, got 500ms/,
    ],
    [
      'the same in seconds',
      {
        ...THREE,
        gateway: { name: 'llm', extensionPolicy: { messageTimeout: '1s' } },
        config: { server: { decisionDeadlineMs: 1000 } },
      },
      /deadline of 1000 ms .*, got 1s/,
    ],
    [
      'a Service with and without an address',
      { service: { headless: true, type: 'LoadBalancer' } },
      /service\.headless needs service\.type ClusterIP: .*, got LoadBalancer/,
    ],
    ['a Secret without a name', { tls: { mode: 'secret' } }, /tls\.secretName must name/],
    ['no issuer', { tls: { mode: 'certManager' } }, /issuerRef\.name must name/],
    [
      'mutual TLS of a self-signed certificate',
      { tls: { mode: 'selfSigned', mutual: true } },
      /tls\.mutual needs a Secret/,
    ],
    [
      'engines that connect to one of several replicas',
      { config: { kvEvents: { listen: '0.0.0.0:5557' } } },
      /kvEvents\.listen needs one replica: .*; got replicas 2\. Let engines bind/,
    ],
    [
      'engines that connect to one of many that come and go',
      { replicas: 1, autoscaling: { enabled: true }, config: { kvEvents: { listen: '0.0.0.0:5557' } } },
      /kvEvents\.listen needs one replica: .*; got autoscaling\.maxReplicas 6/,
    ],
    [
      'engines that connect to one of two, of which one stands by',
      { standby: { enabled: true }, config: { kvEvents: { listen: '0.0.0.0:5557' } } },
      /kvEvents\.listen needs one replica: .*; got replicas 2\. Let engines bind/,
    ],
    [
      'a standby without a second replica',
      { replicas: 1, standby: { enabled: true } },
      /standby\.enabled needs replicas 2 or more: one decides, the others stand by; got 1/,
    ],
    [
      'a standby beside replicas that come and go',
      { standby: { enabled: true }, autoscaling: { enabled: true } },
      /standby\.enabled and autoscaling\.enabled exclude each other/,
    ],
    [
      'a standby of the picker of a pool',
      { ...POOL, standby: { enabled: true } },
      /standby\.enabled and inferencePool exclude each other: a pool names one Service/,
    ],
    [
      'a standby of the picker of a pool that is there',
      { inferencePool: { name: 'theirs' }, tls: { mode: 'selfSigned' }, standby: { enabled: true } },
      /standby\.enabled and inferencePool exclude each other/,
    ],
    [
      'a name that no object can have',
      { nameOverride: 'My_Picker' },
      /names must begin with a lower-case letter .*, got warmpath-My_Picker from/,
    ],
    ['a name that no Service can have', { fullnameOverride: '1st' }, /names must begin with .*, got 1st from/],
    [
      'a label of the selectors for every object',
      { commonLabels: { 'app.kubernetes.io/name': 'x' } },
      /must not have app\.kubernetes\.io\/name: selectors are made of it/,
    ],
    [
      'a label of the selectors for pods',
      { podLabels: { 'app.kubernetes.io/instance': 'x' } },
      /must not have app\.kubernetes\.io\/instance: selectors are made of it/,
    ],
    [
      'a label that every object has',
      { commonLabels: { 'helm.sh/chart': 'x' } },
      /commonLabels must not have helm\.sh\/chart: every object has it already/,
    ],
    [
      'more replicas at least than at most',
      { autoscaling: { enabled: true, minReplicas: 9, maxReplicas: 2 } },
      /minReplicas must be at most autoscaling\.maxReplicas, got 9 and 2/,
    ],
    [
      'a standby of the picker of a pool that its key names',
      { config: { discovery: { kubernetes: { inferencePool: 'theirs' } } }, standby: { enabled: true } },
      /standby\.enabled and inferencePool exclude each other/,
    ],
    [
      'mutual TLS behind Envoy Gateway',
      { ...THREE, tls: { mode: 'secret', secretName: 's', mutual: true } },
      /exclude each other/,
    ],
  ])('%s is refused', async (_, values, message) => {
    await expect(helm.template(values)).rejects.toThrow(message);
  });
});

describe('alerts and dashboard', () => {
  // With a ServiceMonitor the job is the name of the Service.
  test.each([
    ['the usual name', {}, '.*warmpath.*'],
    ['a name of your own', { fullnameOverride: 'picker' }, '.*(warmpath|picker).*'],
  ])('ask for the jobs that replicas with %s are', async (_, names, jobs) => {
    const monitored = { serviceMonitor: { enabled: true }, alerts: { enabled: true }, dashboard: { enabled: true } };
    const manifests = await helm.template({ ...names, ...monitored });
    const rule = find<object>(manifests, 'PrometheusRule');
    const dashboard = manifests.find(
      ({ kind, metadata }) => kind === 'ConfigMap' && metadata.name.endsWith('dashboard'),
    );
    for (const text of [JSON.stringify(rule), JSON.stringify(dashboard)]) {
      const asked = [...text.matchAll(/job=~\\+"([^\\"]+)\\+"/g)].map((match) => match[1]);
      expect(new Set(asked)).toEqual(new Set([jobs]));
      expect(find<object>(manifests, 'Service').metadata.name).toMatch(new RegExp(`^${jobs}$`));
    }
  });
});

describe('the Role', () => {
  /** Runs discovery with the rendered configuration against an API server that grants what the rendered Role grants. */
  async function discover(
    name: string,
    watchList: 'on' | 'off',
  ): Promise<{ granted: string[]; used: string[]; refused: string[] }> {
    const manifests = ofCase(name);
    const grants = grantsOf(find<Role>(manifests, 'Role'));
    const api = await FakeApiServer.start({ namespace: NAMESPACE, grants });
    const folder = await mkdtemp(join(tmpdir(), 'warmpath-rbac-'));
    api.watchList = watchList;
    api.store.create('pods', aPod({ labels: { app: 'vllm' } }));
    api.store.create(
      'inferencepools',
      aPool({ name: configOf(manifests).discovery.kubernetes.inferencePool ?? 'other' }),
    );
    api.store.create('modeladapters', anAdapter('lora', ['vllm-0']));
    const kubeconfig = join(folder, 'config');
    await writeFile(kubeconfig, kubeconfigOf(api));
    const { promise: found, resolve } = Promise.withResolvers<void>();
    const { kubernetes } = configOf(manifests).discovery;
    const discovery = createKubernetesEndpoints(
      {
        log: silentLog,
        clock: systemClock,
        onEndpoints: (specs) => specs.length > 0 && resolve(),
        onProblem: () => undefined,
        onObjectives: () => undefined,
        onRelist: () => undefined,
        onFailure: () => undefined,
      },
      { ...kubernetes, kubeconfig, kvPort: 5557, replayPort: 5558 },
    );
    try {
      await Promise.all([discovery.start(), found]);
      // What is not streamed is listed, and then watched.
      const verbs = watchList === 'on' ? ['watch'] : ['list', 'watch'];
      const isUsed = (verb: string, resource: string): boolean =>
        api.requests.some((one) => one.verb === verb && one.resource === resource);
      const isAllUsed = (): boolean => grants.every(({ resource }) => verbs.every((verb) => isUsed(verb, resource)));
      for (let i = 0; i < 500 && !isAllUsed(); i++) await new Promise((done) => setTimeout(done, 20));
      return {
        granted: grants.flatMap(({ resource, verbs }) => verbs.map((verb) => `${verb} ${resource}`)).sort(),
        used: [...new Set(api.requests.map(({ verb, resource }) => `${verb} ${resource}`))].sort(),
        refused: api.requests
          .filter(({ status }) => status === 403 || status === 401)
          .map(({ verb, resource }) => `${verb} ${resource}`),
      };
    } finally {
      await discovery.stop();
      await api.stop();
      await rm(folder, { recursive: true, force: true });
    }
  }

  test.each([
    'nothing given',
    'the three values',
    'an InferencePool',
    'an InferencePool that is there',
    'an InferencePool by its key',
    'no adapters',
    'no objectives',
  ])('of %s is exactly what discovery uses: nothing is refused, nothing is granted in vain', async (name) => {
    const plain = await discover(name, 'off');
    const streamed = await discover(name, 'on');
    expect([...plain.refused, ...streamed.refused]).toEqual([]);
    expect([...new Set([...plain.used, ...streamed.used])].sort()).toEqual(plain.granted);
  });
});

function grantsOf(role: Role): readonly Grant[] {
  return role.rules.flatMap(({ apiGroups, resources, verbs }) =>
    apiGroups.flatMap((group) =>
      resources.map((plural) => ({ resource: group === '' ? plural : `${plural}.${group}`, verbs })),
    ),
  );
}

describe('the checks themselves', () => {
  const pod = (securityContext: object): Manifest => ({
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name: 'x' },
    spec: {
      template: { spec: { volumes: [{ name: 'h', hostPath: {} }], containers: [{ name: 'c', securityContext }] } },
    },
  });

  test('a pod as most charts make it is not "restricted"', () => {
    expect(restrictedBreaches(pod({}))).toEqual([
      'volume h is a hostPath',
      'container c: runAsNonRoot is not true',
      'container c: seccompProfile is neither RuntimeDefault nor Localhost',
      'container c: allowPrivilegeEscalation is not false',
      'container c: capabilities.drop has not ALL',
    ]);
  });

  test.each<[string, string, (spec: Record<string, never>) => void, RegExp]>([
    [
      'a field that does not exist',
      'Deployment',
      (spec) => Object.assign(spec, { replica: 1 }),
      /must NOT have additional properties .*replica/,
    ],
    [
      'a number as text',
      'Deployment',
      (spec) => Object.assign(spec, { replicas: '2' }),
      /\/spec\/replicas: must be integer/,
    ],
    [
      'a rule of the CRD broken',
      'EnvoyExtensionPolicy',
      (spec) => Object.assign(spec, { targetRefs: undefined }),
      /targetRef/,
    ],
  ])('%s is found', (_, kind, change, message) => {
    const manifest = structuredClone(find<Manifest>(ofCase('all decide'), kind));
    change(manifest.spec as Record<string, never>);
    expect(problemsOf(JSON.parse(JSON.stringify(manifest)) as Manifest).join('\n')).toMatch(message);
  });

  test('Envoy Gateway refuses full duplex with fail-open, and so do we', () => {
    const manifest = structuredClone(
      find<{ spec: { extProc: { failOpen: boolean }[] } }>(ofCase('full duplex'), 'EnvoyExtensionPolicy'),
    );
    manifest.spec.extProc[0]!.failOpen = true;
    expect(problemsOf(manifest).join()).toContain('If FullDuplexStreamed body processing mode is used');
  });
});
