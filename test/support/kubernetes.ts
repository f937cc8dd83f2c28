/** Builders for tests about Kubernetes: pods, pools, adapters, and how to reach a fake API server. */
import { stringify } from 'yaml';
import type { ApiAccess } from '../../src/kubernetes/api-client.ts';
import type { FakeApiServer } from './fake-api-server.ts';
import type { ObjectDraft } from './fake-api-store.ts';

export type PodGiven = {
  readonly name?: string;
  readonly ip?: string | null;
  readonly phase?: string;
  readonly ready?: 'True' | 'False';
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly restarts?: number;
  readonly containerPorts?: readonly number[];
};

export const MODEL_LABEL = 'model.aibrix.ai/name';

/** What the configuration says of pods by default. */
export const POD_OPTIONS = {
  modelLabel: MODEL_LABEL,
  portLabel: 'model.aibrix.ai/port',
  kvEventsLabel: 'model.aibrix.ai/kv-events-enabled',
  deploymentLabel: null,
  fleetLabel: null,
  kvPort: 5557,
  replayPort: 5558,
} as const;

/** What it says of discovery. */
export const DISCOVERY_OPTIONS = {
  ...POD_OPTIONS,
  namespace: null,
  kubeconfig: null,
  labelSelector: MODEL_LABEL,
  inferencePool: null,
  modelAdapters: 'auto',
  inferenceObjectives: 'off',
} as const;

/** A running, ready vLLM pod unless told otherwise. */
export function aPod(given: PodGiven = {}): ObjectDraft {
  const { name = 'vllm-0', ip = '10.50.0.1', phase = 'Running', ready = 'True', restarts = 0 } = given;
  const containerID = `containerd://${name}-${restarts}`;
  return {
    metadata: {
      name,
      labels: { [MODEL_LABEL]: 'demo-model', ...given.labels },
      ...(given.annotations === undefined ? {} : { annotations: given.annotations }),
    },
    spec: {
      containers: [
        { name: 'vllm', ports: (given.containerPorts ?? [8000]).map((containerPort) => ({ containerPort })) },
      ],
    },
    status: {
      phase,
      ...(ip === null ? {} : { podIP: ip, podIPs: [{ ip }] }),
      conditions: [
        { type: 'Initialized', status: 'True' },
        { type: 'Ready', status: ready },
      ],
      containerStatuses: [{ name: 'vllm', restartCount: restarts, containerID }],
    },
  };
}

export function aPool(
  given: { name?: string; matchLabels?: Record<string, string>; ports?: readonly number[] } = {},
): ObjectDraft {
  const { name = 'pool', matchLabels = { app: 'vllm' }, ports = [8000] } = given;
  return {
    metadata: { name },
    spec: {
      selector: { matchLabels },
      targetPorts: ports.map((number) => ({ number })),
      endpointPickerRef: { name: 'warmpath' },
    },
  };
}

export function anAdapter(name: string, instances: readonly string[]): ObjectDraft {
  return {
    metadata: { name },
    spec: { baseModel: 'demo-model', artifactURL: `huggingface://org/${name}`, podSelector: {} },
    status: { phase: 'Running', instances },
  };
}

/** The access a service account gives; the token is the one the server wants now unless told otherwise. */
export function accessTo(server: FakeApiServer, token: () => string = () => server.token): ApiAccess {
  return {
    server: new URL(server.url),
    namespace: server.namespace,
    credentials: async () => ({ headers: { authorization: `Bearer ${token()}` }, tls: {} }),
  };
}

/** A kubeconfig file for a fake API server. @param user its credentials; default: the token of the server */
export function kubeconfigOf(server: FakeApiServer, user: object = { token: server.token }): string {
  return stringify({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'test',
    contexts: [{ name: 'test', context: { cluster: 'fake', user: 'somebody', namespace: server.namespace } }],
    clusters: [{ name: 'fake', cluster: { server: server.url } }],
    users: [{ name: 'somebody', user }],
  });
}
