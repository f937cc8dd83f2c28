/**
 * Two documents of the chart that follow from others: `values.schema.json` and the table of `README.md`, from values.yaml
 * (a value is documented by the line `# -- meaning` above it; its type is its default's, or the row of `RULES` here) and
 * from the configuration keys. So a key of src/config.ts is a value of the chart, and a mistyped one is refused by Helm.
 */
import { readFileSync } from 'node:fs';
import { parse } from 'yaml';
import { configTable } from '../../src/config.ts';

type Schema = Record<string, unknown>;
export type ChartValue = { readonly path: string; readonly meaning: string; readonly default: unknown };

const VALUES = new URL('../../charts/warmpath/values.yaml', import.meta.url);

const strings: Schema = { type: 'array', items: { type: 'string' } };
const objects: Schema = { type: 'array', items: { type: 'object' } };
const stringMap: Schema = { type: 'object', additionalProperties: { type: 'string' } };
const port: Schema = { type: 'integer', minimum: 1, maximum: 65_535 };
const quantity: Schema = { type: 'string', pattern: '^[1-9][0-9]*(Ki|Mi|Gi)?$' };
const duration: Schema = { type: 'string', pattern: '^([0-9]{1,5}(h|m|s|ms)){1,4}$' };

/** Where the default says too little. */
const RULES: Readonly<Record<string, Schema>> = {
  'pods.matchLabels': stringMap,
  'pods.port': port,
  'gateway.bodyMode': { enum: ['Buffered', 'FullDuplexStreamed'] },
  'gateway.maxBodySize': quantity,
  'gateway.httpRoute.hostnames': strings,
  'gateway.extensionPolicy.messageTimeout': duration,
  'gateway.extensionPolicy.maxRequestsPerConnection': { type: 'integer', minimum: 1, maximum: 1000 },
  'gateway.extensionPolicy.maxParallelRequests': { type: 'integer', minimum: 1 },
  'gateway.backendTrafficPolicy.numRetries': { type: 'integer', minimum: 0, maximum: 16 },
  'gateway.clientTrafficPolicy.maxConcurrentStreams': { type: 'integer', minimum: 100 },
  'inferencePool.targetPorts': { type: 'array', items: port, maxItems: 8, uniqueItems: true },
  'inferencePool.failureMode': { enum: ['FailOpen', 'FailClose'] },
  'image.digest': { type: 'string', pattern: '^(sha256:[0-9a-f]{64})?$' },
  'image.pullPolicy': { enum: ['Always', 'IfNotPresent', 'Never'] },
  'image.pullSecrets': strings,
  replicas: { type: 'integer', minimum: 0 },
  'standby.enabled': { enum: ['auto', true, false] },
  'autoscaling.minReplicas': { type: 'integer', minimum: 1 },
  'autoscaling.maxReplicas': { type: 'integer', minimum: 1 },
  'autoscaling.targetCPUUtilizationPercentage': { type: 'integer', minimum: 1, maximum: 100 },
  'podDisruptionBudget.maxUnavailable': { type: ['integer', 'string'], pattern: '^[0-9]+%$', minimum: 0 },
  'serviceAccount.annotations': stringMap,
  'service.type': { enum: ['ClusterIP', 'NodePort', 'LoadBalancer'] },
  'service.annotations': stringMap,
  'tls.mode': { enum: ['none', 'selfSigned', 'secret', 'certManager'] },
  'tls.certManager.issuerRef.kind': { enum: ['Issuer', 'ClusterIssuer'] },
  'tls.certManager.duration': duration,
  'networkPolicy.gatewayNamespaces': strings,
  'networkPolicy.monitoringNamespaces': strings,
  'networkPolicy.apiServer.cidrs': strings,
  'networkPolicy.apiServer.ports': { type: 'array', items: port },
  'networkPolicy.extraEgress': objects,
  'networkPolicy.extraIngress': objects,
  'serviceMonitor.interval': duration,
  'serviceMonitor.labels': stringMap,
  'alerts.labels': stringMap,
  'dashboard.labels': stringMap,
  'dashboard.annotations': stringMap,
  topologySpreadConstraints: objects,
  nodeSelector: stringMap,
  tolerations: objects,
  podAnnotations: stringMap,
  podLabels: stringMap,
  commonLabels: stringMap,
  extraEnv: objects,
  extraVolumes: objects,
  extraVolumeMounts: objects,
  minReadySeconds: { type: 'integer', minimum: 0 },
};

/** Every documented value, in the order of the file. */
export function chartValues(text: string = readFileSync(VALUES, 'utf8')): readonly ChartValue[] {
  const defaults = parse(text) as Record<string, unknown>;
  const found: ChartValue[] = [];
  const parents: { readonly indent: number; readonly key: string }[] = [];
  let meaning: string | null = null;
  for (const line of text.split('\n')) {
    const comment = /^ *# -- (.*)$/.exec(line);
    if (comment !== null) {
      meaning = comment[1]!;
      continue;
    }
    const key = /^( *)([A-Za-z]\w*):/.exec(line);
    if (key === null) continue;
    const indent = key[1]!.length;
    while (parents.length > 0 && parents.at(-1)!.indent >= indent) parents.pop();
    parents.push({ indent, key: key[2]! });
    if (meaning === null) continue;
    const path = parents.map((parent) => parent.key);
    const value = path.reduce<unknown>((from, part) => (from as Record<string, unknown>)[part], defaults);
    found.push({ path: path.join('.'), meaning, default: value });
    meaning = null;
  }
  return found;
}

export function chartSchema(): string {
  const root = section();
  for (const value of chartValues()) {
    const path = value.path.split('.');
    const last = path.pop()!;
    let at = root;
    for (const part of path) at = (at.properties[part] ??= section()) as Section;
    at.properties[last] = { description: value.meaning, ...schemaOf(value) };
  }
  // What Helm hands to every chart that is part of another one.
  root.properties.global = { type: 'object' };
  const schema = { $schema: 'http://json-schema.org/draft-07/schema#', title: 'Values of the Warmpath chart', ...root };
  return `${JSON.stringify(schema, null, 2)}\n`;
}

type Section = { readonly type: 'object'; readonly additionalProperties: false; readonly properties: Schema };

function section(): Section {
  return { type: 'object', additionalProperties: false, properties: {} };
}

function schemaOf({ path, default: value }: ChartValue): Schema {
  if (path === 'config') return configSchema();
  const rule = RULES[path];
  if (rule !== undefined) return rule;
  if (Array.isArray(value)) throw new Error(`a list says nothing of its items: ${path} needs a row in RULES`);
  if (typeof value === 'number') return { type: 'integer' };
  return { type: typeof value };
}

/** The keys of src/config.ts. Sizes and times are checked by Warmpath itself, with better words. */
function configSchema(): Schema {
  const root = section();
  for (const row of configTable().split('\n').slice(2)) {
    const [key, type] = row.slice(2, -2).split(' | ');
    const path = key!.replaceAll('`', '').split('.');
    const last = path.pop()!;
    let at = root;
    for (const part of path) at = (at.properties[part] ??= section()) as Section;
    at.properties[last] = configType(type!);
  }
  return root;
}

function configType(type: string): Schema {
  if (type === 'structure') return {};
  if (type.startsWith('list of ')) return strings;
  if (type.startsWith('`')) return { enum: type.split(', ').map((choice) => choice.replaceAll('`', '')) };
  if (type === 'boolean') return { type: 'boolean' };
  if (type.startsWith('integer')) return { type: ['integer', 'null'] };
  if (type.startsWith('size')) return { type: ['integer', 'string'] };
  return { type: ['string', 'null'] };
}

/** Keys that take effect while Warmpath runs, one a line. */
export function chartLiveKeys(): string {
  const rows = configTable().split('\n').slice(2);
  const live = rows.map((row) => row.slice(2, -2).split(' | ')).filter((cells) => cells[4] === 'at once');
  return live.map(([key]) => key!.replaceAll('`', '')).join('\n');
}

export function chartReadme(): string {
  const rows = chartValues().map(
    ({ path, meaning, default: value }) => `| \`${path}\` | ${shown(value)} | ${meaning} |`,
  );
  return `# Helm chart

Warmpath beside your model servers: two replicas that find the pods through the API server, one that answers Envoy and one that stands by.

\`\`\`sh
helm install warmpath charts/warmpath --namespace llm \\
  --set image.repository=REGISTRY/warmpath \\
  --set pods.matchLabels.app=vllm \\
  --set gateway.name=llm
\`\`\`

makes everything for pods \`app=vllm\` with the label \`model.aibrix.ai/name\` in namespace \`llm\`, behind the Gateway \`llm\` of Envoy
Gateway 1.8 or newer: the route, the choice of the pod, the limits. Without \`gateway.name\` nothing is attached, and
[envoy/README.md](../../envoy/README.md) shows how to attach an Envoy of your own. The image is built by \`make image\`.

| set-up | values |
|---|---|
| pods in another namespace | \`pods.namespace\`; the Role is made there |
| pods without a model label | \`config.discovery.kubernetes.modelLabel\`, or the annotation \`warmpath.dev/model\` |
| an HTTPRoute you have | \`gateway.httpRoute.create=false\`, \`gateway.httpRoute.name\` |
| a Gateway that has a ClientTrafficPolicy | \`gateway.clientTrafficPolicy.create=false\`; take the settings over from [envoy/gateway](../../envoy/gateway/README.md) |
| replicas that all decide | \`standby.enabled=false\`; [docs/operations.md](../../docs/operations.md#how-many-replicas) says when |
| an InferencePool | \`inferencePool.create=true\`, \`tls.mode=selfSigned\`, \`pods.matchLabels\`; a gateway that takes a pool as backend |
| beside an AIBrix gateway | \`config.routing.compatTargetPodHeader=true\`; [docs/migrating.md](../../docs/migrating.md) |
| Prometheus operator, Grafana | \`serviceMonitor.enabled\`, \`alerts.enabled\`, \`dashboard.enabled\` |

What is made: Deployment (no replica goes before the new one is ready) and Service, each twice with a standby, ServiceAccount, ConfigMap, a Role with \`list\` and \`watch\`
of pods (and of InferencePools and ModelAdapters where they are followed) and its RoleBinding, PodDisruptionBudget, NetworkPolicy. The pods
pass Pod Security "restricted" with a read-only root file system. There is no ClusterRole and nothing is ever written to the API server.

Every key of [docs/configuration.md](../../docs/configuration.md) is a value below \`config\`; Helm refuses one that does not exist. Keys
that are read at the start roll the Deployment when they change, the others take effect in the running pods.

This page and \`values.schema.json\` are made from \`values.yaml\` and \`src/config.ts\` by \`make docs\`; \`make chart\` checks what is rendered.

## Values

| value | default | meaning |
|---|---|---|
${rows.join('\n')}
`;
}

function shown(value: unknown): string {
  if (value === '') return '–';
  return `\`${JSON.stringify(value).replaceAll('|', '\\|')}\``;
}
