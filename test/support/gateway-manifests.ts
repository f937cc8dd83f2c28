/** The Envoy Gateway manifests of envoy/gateway/, read as an API server reads them. */
import { readdirSync, readFileSync } from 'node:fs';
import { parseAllDocuments } from 'yaml';
import type { Manifest } from './kube-schemas.ts';

const FOLDER = new URL('../../envoy/gateway/', import.meta.url);

export function gatewayFiles(): readonly string[] {
  return readdirSync(FOLDER)
    .filter((name) => name.endsWith('.yaml'))
    .sort();
}

/** Duplicate keys are errors here; Kubernetes would take one of them. */
export function gatewayManifests(file: string): readonly Manifest[] {
  return parseAllDocuments(readFileSync(new URL(file, FOLDER), 'utf8')).map((document) => {
    if (document.errors.length > 0) throw new Error(`${file}: ${String(document.errors[0])}`);
    return document.toJS() as Manifest;
  });
}

/** Fields that the tests look at; everything else is the schemas' business. */
export type ExtensionPolicy = Manifest & {
  readonly spec: {
    readonly extProc: readonly [
      {
        readonly messageTimeout: string;
        readonly failOpen: boolean;
        readonly backendSettings: {
          readonly circuitBreaker: { readonly maxRequestsPerConnection: number };
          readonly healthCheck: { readonly active: { readonly interval: string; readonly timeout: string } };
        };
      },
    ];
  };
};
export type BackendPolicy = Manifest & { readonly spec: { readonly retry: { readonly numRetries: number } } };
export type ClientPolicy = Manifest & {
  readonly spec: {
    readonly connection: { readonly bufferLimit: string };
    readonly headers: { readonly earlyRequestHeaders: { readonly remove: readonly string[] } };
  };
};

export function policy<T extends Manifest>(manifests: readonly Manifest[], kind: string): T {
  const [found, ...more] = manifests.filter((manifest) => manifest.kind === kind);
  if (found === undefined || more.length > 0)
    throw new Error(`expected one ${kind}, got ${more.length + Number(!!found)}`);
  return found as T;
}

/** What a policy says, without whom it is for: the chart and the manifests have names of their own. */
export function meaning(manifest: Manifest): unknown {
  const { targetRefs: _, ...spec } = structuredClone(manifest.spec) as Record<string, unknown>;
  return JSON.parse(JSON.stringify(spec)) as unknown;
}
