/**
 * Endpoints from Kubernetes: follows pods, an InferencePool where one is named, and ModelAdapters, and tells the whole
 * fleet after every change; beside them InferenceObjectives, which say what may be refused. Whatever the API server does,
 * the last known fleet stays in effect.
 */
import type { Clock, Timer } from '../clock.ts';
import { errorText, WarmpathError } from '../errors.ts';
import type { EndpointSpec } from '../endpoints/endpoint.ts';
import type { Log } from '../log.ts';
import { API_LIMITS, createApiClient, type ApiAccess, type ApiLimits, type FailureCause } from './api-client.ts';
import { inferencePools, readInferencePool, type InferencePool } from './inference-pool.ts';
import { inferenceObjectives, OBJECTIVE_GROUPS, readInferenceObjective } from './inference-objectives.ts';
import { loadApiAccess } from './kube-config.ts';
import { adaptersByPod, modelAdapters, readModelAdapter, type ModelAdapter } from './model-adapters.ts';
import { createObjectivesListener } from './objectives-listener.ts';
import { createPodsFollower, type FollowPods } from './pods-follower.ts';
import { createFleetBuilder, readPod, type Excluded, type Fleet, type PodOptions } from './pods.ts';
import type { RelistReason } from './reflector-state.ts';
import {
  createReflector,
  type Reflector,
  type ReflectorOptions,
  type ReflectorTiming,
  type Trouble,
} from './reflector.ts';
import type { ResourceRef } from './objects.ts';

export type KubernetesEndpointsDeps = {
  readonly log: Log;
  readonly clock: Clock;
  /** The whole fleet, once at start and after every change. */
  onEndpoints(specs: readonly EndpointSpec[]): void;
  /** Priorities of requests by the objective they name, after every change. */
  onObjectives(priorities: ReadonlyMap<string, number>): void;
  /** What keeps the fleet from being followed or from having endpoints, null = nothing any more. */
  onProblem(problem: string | null): void;
  /** The fleet was read anew. */
  onRelist(reason: RelistReason): void;
  /** A request to the API server failed; it will be repeated. */
  onFailure(cause: FailureCause): void;
  /** Default: what the kubeconfig or the service account says. */
  readonly access?: ApiAccess;
};

export type KubernetesEndpointsOptions = {
  /** Null = that of the credentials. */
  readonly namespace: string | null;
  readonly kubeconfig: string | null;
  readonly labelSelector: string;
  /** Name of the InferencePool whose selector and target ports are followed instead. */
  readonly inferencePool: string | null;
  readonly modelAdapters: 'auto' | 'on' | 'off';
  readonly inferenceObjectives: 'auto' | 'on' | 'off';
  /** How long pods that are known wait for the first list of ModelAdapters, milliseconds. */
  readonly adaptersWaitMs?: number;
  readonly timing?: Partial<ReflectorTiming>;
  readonly limits?: Partial<ApiLimits>;
} & Omit<PodOptions, 'targetPorts'>;

export type KubernetesEndpoints = {
  /**
   * Resolves after the first `onEndpoints`, however long the API server keeps it waiting. Rejects with `config_invalid`
   * where it is not known whom to ask, and with `io_failed` when stopped before.
   */
  start(): Promise<void>;
  stop(): Promise<void>;
  /** Pods that the selector names and that are no endpoints. */
  excluded(): readonly Excluded[];
  /** Milliseconds since the API server last told anything about the fleet; before it ever did, since the start. */
  ageMs(): number;
};

/** Of a problem; `pool` is what the resource says, the others but `fleet` are how it is read. */
type Source = 'pods' | 'InferencePool' | 'pool' | 'ModelAdapters' | 'InferenceObjectives' | 'fleet';
const SOURCES: readonly Source[] = ['pods', 'InferencePool', 'pool', 'ModelAdapters', 'InferenceObjectives', 'fleet'];

/** A server that has the resource answers with the pods; one that stalls must not keep them. */
const ADAPTERS_WAIT_MS = 3_000;

export function createKubernetesEndpoints(
  deps: KubernetesEndpointsDeps,
  options: KubernetesEndpointsOptions,
): KubernetesEndpoints {
  const { log, clock } = deps;
  const problems = new Map<Source, string>();
  const reflectors = new Set<Reflector>();
  let told: string | null = null;
  let follow: FollowPods | null = null;
  /** Null until the server was asked once. */
  let adapters: readonly ModelAdapter[] | null = options.modelAdapters === 'off' ? [] : null;
  let adaptersLate: Timer | null = null;
  let fleet: Fleet = { specs: [], excluded: [] };
  let first: { resolve(): void; reject(error: unknown): void } | null = null;
  let isStopped = false;
  const beganMs = clock.nowMs();

  function setProblem(source: Source, text: string | null): void {
    if (isStopped) return;
    if (text === null) problems.delete(source);
    else problems.set(source, text);
    const next = problems.size === 0 ? null : SOURCES.flatMap((one) => problems.get(one) ?? []).join('; ');
    if (next === told) return;
    told = next;
    if (next === null) log.info('discovery is in order again');
    else log.warn('discovery is not in order', { problem: next });
    deps.onProblem(next);
  }

  function publish(): void {
    if (follow === null || adapters === null || isStopped) return;
    fleet = follow.build(follow.pods, adaptersByPod(adapters));
    deps.onEndpoints(fleet.specs);
    setProblem('fleet', emptiness(fleet, follow));
    first?.resolve();
    first = null;
  }

  function run(reflector: Reflector): Reflector {
    reflectors.add(reflector);
    reflector.start();
    return reflector;
  }

  function end(reflector: Reflector): void {
    reflector
      .stop()
      .then(() => reflectors.delete(reflector))
      .catch((error: unknown) => log.error('discovery loop failed', { error: errorText(error) }));
  }

  type Watched<T> = Pick<ReflectorOptions<T>, 'labelSelector' | 'fieldSelector' | 'read'>;
  type Told<T> = {
    onSnapshot(objects: readonly T[]): void;
    onTrouble(trouble: Trouble | null): void;
    onFailure?(): void;
  };

  function begin(access: ApiAccess, namespace: string): void {
    const client = createApiClient({ access, clock }, { ...API_LIMITS, ...options.limits });
    const reflect = <T>(resource: ResourceRef, watched: Watched<T>, on: Told<T>, counts: 'counted' | 'not counted') =>
      createReflector<T>(
        {
          client,
          clock,
          log,
          ...on,
          onRelist: (reason) => counts === 'counted' && deps.onRelist(reason),
          onFailure(cause) {
            deps.onFailure(cause);
            on.onFailure?.();
          },
        },
        { resource, ...watched, timing: options.timing },
      );
    const followPods = createPodsFollower(
      { run, end, onFollow, onTrouble: (trouble) => setProblem('pods', keepsServing(trouble)) },
      (labelSelector, on) =>
        reflect(
          { group: '', version: 'v1', plural: 'pods', namespace },
          { labelSelector, read: readPod },
          on,
          'counted',
        ),
    );

    function onFollow(next: FollowPods): void {
      follow = next;
      if (adapters === null) adaptersLate ??= clock.after(options.adaptersWaitMs ?? ADAPTERS_WAIT_MS, withoutAdapters);
      publish();
    }

    function withoutAdapters(): void {
      if (adapters !== null) return;
      adapters = [];
      publish();
    }

    function onPools(pools: readonly InferencePool[]): void {
      const pool = pools[0];
      // Its absence stops nobody's pods: whoever refers to it does not get here, and everybody else goes on.
      if (pool === undefined) {
        return setProblem(
          'pool',
          `InferencePool ${options.inferencePool} must exist in namespace ${namespace}, got none`,
        );
      }
      if (pool.kind === 'unusable') {
        return setProblem('pool', `InferencePool ${pool.name} cannot be followed: ${pool.reason}`);
      }
      setProblem('pool', null);
      const build = createFleetBuilder({ ...options, targetPorts: pool.targetPorts });
      followPods({
        labelSelector: pool.labelSelector,
        where: `InferencePool ${pool.name} in namespace ${namespace}`,
        build,
      });
    }

    if (options.modelAdapters !== 'off') {
      run(reflect(modelAdapters(namespace), { read: readModelAdapter }, adaptersListener(), 'not counted'));
    }
    if (options.inferenceObjectives !== 'off') {
      const listen = createObjectivesListener(
        {
          log,
          onObjectives: (priorities) => deps.onObjectives(priorities),
          onProblem: (problem) => setProblem('InferenceObjectives', problem),
        },
        { wanted: options.inferenceObjectives, pool: options.inferencePool },
      );
      for (const group of OBJECTIVE_GROUPS) {
        const watched = { read: readInferenceObjective };
        run(reflect(inferenceObjectives(group, namespace), watched, listen(group), 'not counted'));
      }
    }
    if (options.inferencePool === null) {
      const build = createFleetBuilder({ ...options, targetPorts: null });
      followPods({ labelSelector: options.labelSelector, where: `namespace ${namespace}`, build });
      return;
    }
    const watched = { fieldSelector: `metadata.name=${options.inferencePool}`, read: readInferencePool };
    const onTrouble = (trouble: Trouble | null): void => setProblem('InferencePool', keepsServing(trouble));
    run(reflect(inferencePools(namespace), watched, { onSnapshot: onPools, onTrouble }, 'not counted'));
  }

  function adaptersListener(): Told<ModelAdapter> {
    const replace = (next: readonly ModelAdapter[]): void => {
      adapters = next;
      publish();
    };
    return {
      onSnapshot: replace,
      onTrouble(trouble) {
        const isMissing = trouble?.cause === 'not_found';
        setProblem('ModelAdapters', isMissing && options.modelAdapters === 'auto' ? null : (trouble?.text ?? null));
        // Without the resource there are no adapters; with any other trouble the last known ones stay.
        const isRefused = trouble?.cause === 'forbidden' || trouble?.cause === 'unauthorized';
        if (isMissing || (isRefused && adapters === null)) replace([]);
      },
      // A server that was away when we began gets its second chance; after that pods are served without adapters.
      onFailure() {
        if (adapters === null && follow !== null) replace([]);
      },
    };
  }

  return {
    async start() {
      const access = deps.access ?? (await loadApiAccess(options.kubeconfig));
      const namespace = options.namespace ?? access.namespace;
      if (namespace === null) {
        const text =
          'discovery.kubernetes.namespace must be given where the credentials belong to no namespace, got nothing';
        throw new WarmpathError('config_invalid', text);
      }
      if (isStopped) throw stoppedEarly();
      await new Promise<void>((resolve, reject) => {
        first = { resolve, reject };
        begin(access, namespace);
      });
    },
    async stop() {
      isStopped = true;
      adaptersLate?.cancel();
      first?.reject(stoppedEarly());
      first = null;
      await Promise.all([...reflectors].map((reflector) => reflector.stop()));
    },
    excluded: () => fleet.excluded,
    ageMs: () => follow?.reflector.ageMs() ?? clock.nowMs() - beganMs,
  };
}

function emptiness({ specs, excluded }: Fleet, { pods, labelSelector, where }: FollowPods): string | null {
  if (specs.length > 0) return null;
  if (pods.length === 0) return `no pod matches the selector ${labelSelector} of ${where}`;
  const [one] = excluded;
  return `none of ${pods.length} pods can be an endpoint, for example ${one?.name ?? 'one'}: ${one?.reason ?? 'no ports'}`;
}

function keepsServing(trouble: Trouble | null): string | null {
  return trouble === null ? null : `${trouble.text}; what is known stays in effect`;
}

function stoppedEarly(): WarmpathError {
  return new WarmpathError('io_failed', 'stopped before the first list of pods came');
}
