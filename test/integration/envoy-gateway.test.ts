import { beforeAll, describe, expect, jest, test } from '@jest/globals';
import { loadConfig, type Config } from '../../src/config.ts';
import {
  gatewayFiles,
  gatewayManifests,
  meaning,
  policy,
  type BackendPolicy,
  type ClientPolicy,
  type ExtensionPolicy,
} from '../support/gateway-manifests.ts';
import { createHelm, type Values } from '../support/helm.ts';
import { createSchemas, type Manifest } from '../support/kube-schemas.ts';

const FILES = ['beside-aibrix.yaml', 'buffered.yaml', 'full-duplex.yaml', 'inference-pool.yaml', 'standby.yaml'];
const ASKING = ['beside-aibrix.yaml', 'buffered.yaml', 'full-duplex.yaml', 'standby.yaml'];
/** Complete ones: what is missing in the others is AIBrix', or stands in buffered.yaml. */
const BALANCING = ASKING.filter((file) => file !== 'standby.yaml');
const POLICIES = ['EnvoyExtensionPolicy', 'BackendTrafficPolicy', 'ClientTrafficPolicy'];
const CONFIG = (loadConfig({ file: null, readFile: () => '', env: {}, sets: [] }) as { config: Config }).config;
// Compiling the larger schemas and starting Helm take seconds on a busy machine.
jest.setTimeout(60_000);
const problemsOf = createSchemas();

/** `2s`, `250ms` → milliseconds. */
function msOf(duration: string): number {
  const [, value, unit] = /^(\d+)(ms|s)$/.exec(duration)!;
  return Number(value) * (unit === 's' ? 1000 : 1);
}

function bytesOf(quantity: string): number {
  const [, value, unit] = /^(\d+)(Ki|Mi)$/.exec(quantity)!;
  return Number(value) * (unit === 'Mi' ? 2 ** 20 : 2 ** 10);
}

describe('the Envoy Gateway manifests', () => {
  test('are one per scenario', () => {
    expect(gatewayFiles()).toEqual(FILES);
  });

  test.each(FILES)('%s is what an API server takes, schemas and rules of the CRDs included', (file) => {
    const manifests = gatewayManifests(file);
    expect(manifests.flatMap(problemsOf)).toEqual([]);
    const names = manifests.map(({ kind, metadata }) => `${kind} ${metadata.name}`);
    expect(new Set(names).size).toBe(names.length);
  });

  test.each(ASKING)('%s gives up later than Warmpath does, and sees a replica drain before it is gone', (file) => {
    const [extProc] = policy<ExtensionPolicy>(gatewayManifests(file), 'EnvoyExtensionPolicy').spec.extProc;
    // server.decisionDeadlineMs is 300 ms after the tokenizer's budget unless set.
    expect(msOf(extProc.messageTimeout)).toBeGreaterThan(CONFIG.tokenizer.budgetMs + 300);
    const { interval, timeout } = extProc.backendSettings.healthCheck.active;
    // Envoy gathers changes of health for a second before its workers act on them.
    expect(msOf(interval) + msOf(timeout) + 1000).toBeLessThan(CONFIG.server.drainDelayMs);
    // Node closes a connection at about a thousand resets.
    expect(extProc.backendSettings.circuitBreaker.maxRequestsPerConnection).toBeLessThan(1000);
  });

  test.each(BALANCING)('%s tries every endpoint Warmpath names, and the balancer once more', (file) => {
    const { retry } = policy<BackendPolicy>(gatewayManifests(file), 'BackendTrafficPolicy').spec;
    expect(retry.numRetries).toBe(CONFIG.routing.fallbackEndpoints + 1);
  });

  test.each(['buffered.yaml', 'full-duplex.yaml', 'inference-pool.yaml'])('%s lets no client name a pod', (file) => {
    const { headers } = policy<ClientPolicy>(gatewayManifests(file), 'ClientTrafficPolicy').spec;
    expect(headers.earlyRequestHeaders.remove).toEqual(
      expect.arrayContaining([
        CONFIG.routing.destinationHeader,
        'x-gateway-destination-endpoint-subset',
        'target-pod',
        'x-data-parallel-rank',
      ]),
    );
  });

  test('a body that Warmpath takes fits where Envoy collects it, and a piece of one into a message where Envoy does not', () => {
    const bufferBytes = (file: string): number =>
      bytesOf(policy<ClientPolicy>(gatewayManifests(file), 'ClientTrafficPolicy').spec.connection.bufferLimit);
    expect(bufferBytes('buffered.yaml')).toBe(CONFIG.server.bodyMaxBytes);
    for (const file of ['full-duplex.yaml', 'inference-pool.yaml']) {
      expect([file, bufferBytes(file) <= CONFIG.server.bodyMaxBytes]).toEqual([file, true]);
    }
  });

  test('no annotation of the pool makes a gateway collect answers before the client sees them', () => {
    const pool = policy<Manifest>(gatewayManifests('inference-pool.yaml'), 'InferencePool');
    expect(pool.metadata.annotations).toBeUndefined();
  });

  test('the standby is a second Service for the policy it replaces, and nothing else', () => {
    type Policy = Manifest & { spec: { extProc: [{ backendRefs: object[] }] } };
    const [buffered, standby] = ['buffered.yaml', 'standby.yaml'].map((file) =>
      policy<Policy>(gatewayManifests(file), 'EnvoyExtensionPolicy'),
    );
    const [{ backendRefs, ...rest }] = structuredClone(standby!.spec.extProc);
    expect(backendRefs).toEqual([
      ...buffered!.spec.extProc[0].backendRefs,
      { name: 'warmpath-standby', port: 9002, fallback: true },
    ]);
    expect({
      ...standby,
      spec: { ...standby!.spec, extProc: [{ ...rest, backendRefs: backendRefs.slice(0, 1) }] },
    }).toEqual(buffered);
    expect(gatewayManifests('standby.yaml')).toHaveLength(1);
  });

  test('the canary beside AIBrix is asked and balanced exactly as the recommended set-up', () => {
    for (const kind of ['EnvoyExtensionPolicy', 'BackendTrafficPolicy']) {
      const canary = policy<Manifest>(gatewayManifests('beside-aibrix.yaml'), kind);
      expect(meaning(canary)).toEqual(meaning(policy<Manifest>(gatewayManifests('buffered.yaml'), kind)));
    }
  });
});

describe('the chart', () => {
  const three: Values = { pods: { matchLabels: { app: 'vllm' } }, gateway: { name: 'llm' } };
  const allDecide: Values = { ...three, standby: { enabled: false } };
  const cases: readonly (readonly [string, Values])[] = [
    ['buffered.yaml', allDecide],
    ['full-duplex.yaml', { ...three, gateway: { name: 'llm', bodyMode: 'FullDuplexStreamed', maxBodySize: '1Mi' } }],
  ];
  const rendered = new Map<string, readonly Manifest[]>();
  beforeAll(async () => {
    const helm = await createHelm();
    for (const [file, values] of [...cases, ['standby.yaml', three] as const])
      rendered.set(file, await helm.template(values));
  }, 600_000);

  test.each(cases)('makes the policies of %s, number by number', (file) => {
    for (const kind of POLICIES) {
      const ours = meaning(policy<Manifest>(rendered.get(file)!, kind));
      const theirs = meaning(policy<Manifest>(gatewayManifests(file), kind));
      // Whatever the mode, a wide window costs nothing.
      if (kind === 'ClientTrafficPolicy')
        Object.assign((theirs as { http2: object }).http2, { initialConnectionWindowSize: '64Mi' });
      expect([kind, ours]).toEqual([kind, theirs]);
    }
  });
  test('makes the policy of standby.yaml, number by number', () => {
    const [ours, theirs] = [rendered.get('standby.yaml')!, gatewayManifests('standby.yaml')].map((manifests) =>
      meaning(policy<Manifest>(manifests, 'EnvoyExtensionPolicy')),
    );
    expect(ours).toEqual(theirs);
  });
});
