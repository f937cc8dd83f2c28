/**
 * Writes test/fixtures/kubernetes-schemas/ from what the owners publish: the OpenAPI definitions of Kubernetes and the CRDs
 * of the Gateway API, its inference extension and Envoy Gateway. `make kube-schemas` fetches those and calls this; tests
 * read only what was written. Descriptions and status are left out, and a field the owner does not name is an error, as
 * an API server with strict field validation says.
 *
 *     node test/support/write-kube-schemas.ts DEFINITIONS.json CRD.yaml…
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { parseAllDocuments } from 'yaml';

type Schema = Record<string, unknown>;

const FOLDER = new URL('../fixtures/kubernetes-schemas/', import.meta.url);

/** What the chart can render, by its name in the OpenAPI document. */
const CORE = [
  'io.k8s.api.apps.v1.Deployment',
  'io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler',
  'io.k8s.api.core.v1.ConfigMap',
  'io.k8s.api.core.v1.Namespace',
  'io.k8s.api.core.v1.Pod',
  'io.k8s.api.core.v1.Secret',
  'io.k8s.api.core.v1.Service',
  'io.k8s.api.core.v1.ServiceAccount',
  'io.k8s.api.networking.v1.NetworkPolicy',
  'io.k8s.api.policy.v1.PodDisruptionBudget',
  'io.k8s.api.rbac.v1.ClusterRole',
  'io.k8s.api.rbac.v1.ClusterRoleBinding',
  'io.k8s.api.rbac.v1.Role',
  'io.k8s.api.rbac.v1.RoleBinding',
];

const KINDS = new Set([
  'BackendTrafficPolicy',
  'ClientTrafficPolicy',
  'EnvoyExtensionPolicy',
  'EnvoyPatchPolicy',
  'EnvoyProxy',
  'Backend',
  'Gateway',
  'GatewayClass',
  'HTTPRoute',
  'InferenceObjective',
  'InferencePool',
  'ReferenceGrant',
  'BackendTLSPolicy',
]);

function record(value: unknown): Schema {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Schema) : {};
}

/** Without prose; unknown fields refused; `$ref` below `#/$defs/`. */
function strict(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(strict);
  const node = record(value);
  if (node !== value) return value;
  // Absent is what it says: an API server drops a null of an optional field.
  const result: Schema = {};
  for (const [key, inner] of Object.entries(node)) {
    if (key === 'description' && typeof inner === 'string') continue;
    if (['x-kubernetes-group-version-kind', '$schema', '$id', 'title', 'externalDocs', 'example'].includes(key))
      continue;
    if (key === '$ref') result.$ref = `#/$defs/${nameOf(String(inner))}`;
    else if (key === 'properties') {
      const names = Object.entries(record(inner)).filter(([name]) => name !== 'status' || !('spec' in record(inner)));
      result.properties = Object.fromEntries(names.map(([name, property]) => [name, strict(property)]));
    } else result[key] = strict(inner);
  }
  const isObject = 'properties' in node && !('additionalProperties' in node);
  if (isObject && node['x-kubernetes-preserve-unknown-fields'] !== true && !('$ref' in node)) {
    result.additionalProperties = false;
  }
  return result;
}

function nameOf(ref: string): string {
  return ref.replace(/^.*[/#]/, '');
}

function refsIn(value: unknown): string[] {
  if (Array.isArray(value)) return value.flatMap(refsIn);
  return Object.entries(record(value)).flatMap(([key, inner]) =>
    key === '$ref' ? [nameOf(String(inner))] : refsIn(inner),
  );
}

function coreSchema(path: string): Schema {
  const document = record(JSON.parse(readFileSync(path, 'utf8')));
  const all = record(document.$defs ?? document.definitions);
  const $defs: Schema = {};
  const open = [...CORE];
  for (let name = open.pop(); name !== undefined; name = open.pop()) {
    if (name in $defs) continue;
    if (!(name in all)) throw new Error(`${path} must define ${name}`);
    $defs[name] = strict(all[name]);
    open.push(...refsIn($defs[name]));
  }
  return { $defs: Object.fromEntries(Object.entries($defs).sort(([a], [b]) => (a < b ? -1 : 1))) };
}

function customSchemas(path: string): readonly (readonly [string, Schema])[] {
  // Charts wrap their CRDs in an `{{- if … }}` of their own.
  const text = readFileSync(path, 'utf8').replace(/^\{\{.*\}\}\n?/gm, '');
  const found: [string, Schema][] = [];
  for (const document of parseAllDocuments(text)) {
    const crd = record(document.toJS());
    const { group, names, versions } = record(crd.spec);
    const { kind } = record(names);
    if (crd.kind !== 'CustomResourceDefinition' || !KINDS.has(String(kind))) continue;
    // Of objectives there is no other version yet.
    if (String(group).includes('.x-k8s.io') && kind !== 'InferenceObjective') continue;
    for (const version of (versions as unknown[]).map(record)) {
      // Of several versions the newest; a grant is still written in its oldest, which every release takes.
      if (version.served !== true || (version.name !== 'v1beta1') === (kind === 'ReferenceGrant')) continue;
      const schema = record(record(version.schema).openAPIV3Schema);
      found.push([`${String(group)}_${String(version.name)}_${String(kind)}`, strict(schema) as Schema]);
    }
  }
  return found;
}

const [definitions, ...crds] = process.argv.slice(2);
if (definitions === undefined) throw new Error('expected DEFINITIONS.json CRD.yaml…');
const written: (readonly [string, Schema])[] = [['kubernetes', coreSchema(definitions)]];
for (const path of crds) written.push(...customSchemas(path));
for (const [name, schema] of written) writeFileSync(new URL(`${name}.json`, FOLDER), `${JSON.stringify(schema)}\n`);
