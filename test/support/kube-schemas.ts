/**
 * Whether an API server would take an object: the owners' schemas (test/fixtures/kubernetes-schemas), defaults included,
 * then the CEL rules in them. For the three kinds whose CRDs are not in a package we use, the fields we write are listed
 * here. Deliberately not here: admission, and whether what an object refers to exists.
 */
import { existsSync, readFileSync } from 'node:fs';
import { Environment } from '@marcbachmann/cel-js';
import { Ajv, type ValidateFunction } from 'ajv';

type Schema = Record<string, unknown>;
export type Manifest = {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: {
    readonly name: string;
    readonly namespace?: string;
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly spec?: unknown;
};

const FOLDER = new URL('../fixtures/kubernetes-schemas/', import.meta.url);
const META = 'io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta';

/** apiVersion → where its kinds stand in the OpenAPI document. */
const CORE: Readonly<Record<string, string>> = {
  v1: 'io.k8s.api.core.v1',
  'apps/v1': 'io.k8s.api.apps.v1',
  'autoscaling/v2': 'io.k8s.api.autoscaling.v2',
  'networking.k8s.io/v1': 'io.k8s.api.networking.v1',
  'policy/v1': 'io.k8s.api.policy.v1',
  'rbac.authorization.k8s.io/v1': 'io.k8s.api.rbac.v1',
};

const string = { type: 'string', minLength: 1 };
const labels = { type: 'object', additionalProperties: { type: 'string' } };
const duration = { type: 'string', pattern: '^([0-9]+(ms|s|m|h))+$' };
const closed = (properties: Schema, required: readonly string[] = []): Schema => ({
  type: 'object',
  properties,
  required,
  additionalProperties: false,
});
const list = (items: Schema): Schema => ({ type: 'array', minItems: 1, items });

/** Own words for the documented fields that the chart writes; anything else is a mistake. */
const OWN: Readonly<Record<string, Schema>> = {
  'monitoring.coreos.com/v1 ServiceMonitor': closed(
    {
      selector: closed({ matchLabels: labels }, ['matchLabels']),
      endpoints: list(closed({ port: string, path: string, interval: duration }, ['port'])),
    },
    ['selector', 'endpoints'],
  ),
  'monitoring.coreos.com/v1 PrometheusRule': closed(
    {
      groups: list(
        closed(
          {
            name: string,
            rules: list(
              closed(
                {
                  alert: { type: 'string', pattern: '^[A-Za-z]\\w*$' },
                  expr: string,
                  for: duration,
                  labels,
                  annotations: labels,
                },
                ['alert', 'expr'],
              ),
            ),
          },
          ['name', 'rules'],
        ),
      ),
    },
    ['groups'],
  ),
  'cert-manager.io/v1 Certificate': closed(
    {
      secretName: string,
      duration,
      privateKey: closed({
        algorithm: { enum: ['RSA', 'ECDSA', 'Ed25519'] },
        size: { type: 'integer' },
        rotationPolicy: { enum: ['Never', 'Always'] },
      }),
      usages: list({ enum: ['server auth', 'client auth', 'digital signature', 'key encipherment'] }),
      dnsNames: list(string),
      issuerRef: closed({ name: string, kind: string, group: string }, ['name']),
    },
    ['secretName', 'issuerRef'],
  ),
};

/** @returns one line per mistake: where, what, expected. Empty = an API server takes it. */
export type ProblemsOf = (manifest: Manifest) => readonly string[];

export function createSchemas(): ProblemsOf {
  const ajv = new Ajv({ strict: false, allErrors: true, useDefaults: true, validateFormats: false });
  ajv.addSchema({ $id: 'kubernetes', ...readJson('kubernetes.json') });
  const meta = ajv.compile({ $ref: `kubernetes#/$defs/${META}` });
  const known = new Map<string, { readonly validate: ValidateFunction; readonly schema: Schema }>();
  const cel = new Environment({ unlistedVariablesAreDyn: true });

  function schemaOf({ apiVersion, kind }: Manifest) {
    const key = `${apiVersion} ${kind}`;
    const found = known.get(key);
    if (found !== undefined) return found;
    const core = CORE[apiVersion];
    let schema: Schema;
    if (core !== undefined) schema = { $ref: `kubernetes#/$defs/${core}.${kind}` };
    else if (key in OWN) schema = { properties: { spec: OWN[key] }, required: ['spec'] };
    else {
      const file = `${apiVersion.replace('/', '_')}_${kind}.json`;
      if (!existsSync(new URL(file, FOLDER))) throw new Error(`no schema for ${key}; make kube-schemas writes them`);
      schema = readJson(file);
    }
    const entry = { validate: ajv.compile(schema), schema };
    known.set(key, entry);
    return entry;
  }

  return (manifest) => {
    const { validate, schema } = schemaOf(manifest);
    const object = structuredClone(manifest) as unknown;
    const problems: string[] = [];
    const where = `${manifest.kind} ${manifest.metadata?.name ?? '(without a name)'}`;
    for (const [what, path] of [
      [validate, ''],
      [meta, '/metadata'],
    ] as const) {
      if (what(path === '' ? object : manifest.metadata)) continue;
      for (const { instancePath, message, params } of what.errors ?? []) {
        problems.push(`${where} ${path}${instancePath}: ${message} ${JSON.stringify(params)}`);
      }
    }
    problems.push(...metadataProblems(manifest).map((problem) => `${where} /metadata: ${problem}`));
    if (problems.length === 0) problems.push(...ruleProblems(cel, schema, object, where));
    return problems;
  };
}

const NAME = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;
const LABEL_VALUE = /^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$/;
const LABEL_KEY = /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;

/** What validation of metadata says beyond types. Names as strict as a Service's, the strictest kind. */
function metadataProblems({ metadata: { name, labels: given = {}, annotations = {} } }: Manifest): string[] {
  const problems = NAME.test(name) ? [] : [`name must be a DNS label, got ${name}`];
  for (const [key, value] of Object.entries(given)) {
    if (!LABEL_KEY.test(key) || !LABEL_VALUE.test(value)) problems.push(`not a label: ${key}=${value}`);
  }
  for (const [key, value] of Object.entries(annotations)) {
    if (!LABEL_KEY.test(key) || typeof value !== 'string') problems.push(`not an annotation: ${key}=${value}`);
  }
  return problems;
}

/** `x-kubernetes-validations` of every node the object has; rules about updates have nothing to compare with. */
function ruleProblems(cel: Environment, schema: unknown, value: unknown, where: string): string[] {
  if (typeof schema !== 'object' || schema === null || value === undefined) return [];
  const node = schema as Schema;
  const problems: string[] = [];
  for (const rule of (node['x-kubernetes-validations'] ?? []) as { rule: string; message?: string }[]) {
    if (/\boldSelf\b/.test(rule.rule)) continue;
    let holds: unknown;
    try {
      holds = cel.evaluate(spelt(rule.rule), { self: celValue(value) });
    } catch (error) {
      holds = `cannot be evaluated: ${String(error)}`;
    }
    if (holds !== true)
      problems.push(`${where}: ${rule.message ?? rule.rule}${holds === false ? '' : ` (${String(holds)})`}`);
  }
  for (const inner of [...((node.allOf ?? []) as unknown[])]) problems.push(...ruleProblems(cel, inner, value, where));
  if (Array.isArray(value)) {
    for (const one of value) problems.push(...ruleProblems(cel, node.items, one, where));
  } else if (typeof value === 'object' && value !== null) {
    const properties = (node.properties ?? {}) as Schema;
    for (const [key, inner] of Object.entries(value)) {
      problems.push(...ruleProblems(cel, properties[key] ?? node.additionalProperties, inner, where));
    }
  }
  return problems;
}

/** `has(a[0].b)` in words the evaluator has. */
function spelt(rule: string): string {
  return rule.replace(/\bhas\(([\w.]+\[\d+\])\.(\w+)\)/g, '("$2" in $1)');
}

/** CEL tells integers from floating-point numbers. */
function celValue(value: unknown): unknown {
  if (typeof value === 'number') return Number.isInteger(value) ? BigInt(value) : value;
  // Rebuilt here: what structuredClone makes under jest has another realm's constructors, which the evaluator does not know.
  if (Array.isArray(value)) return Array.from(value, celValue);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, celValue(inner)]));
}

function readJson(name: string): Schema {
  return JSON.parse(readFileSync(new URL(name, FOLDER), 'utf8')) as Schema;
}
