/**
 * Which adapters every engine serves, asked of itself (`GET /v1/models`): adapters come and go without Kubernetes or a
 * list knowing. Pass after pass over the fleet, a few engines at once, data-parallel ranks behind one address together. An engine that does not answer, or not in this
 * form, leaves what is known of it as it was.
 */
import type { Clock, Timer } from '../clock.ts';
import { byAddress, type Endpoint, type EndpointId } from '../endpoints/endpoint.ts';
import type { Log } from '../log.ts';
import type { Get } from '../http/http-get.ts';

export type EngineModels = {
  /** Asks these from now on, and no others; new ones at once. Idempotent; the whole list every time. */
  reconcile(endpoints: readonly Endpoint[]): void;
  stop(): void;
};

export type EngineModelsDeps = {
  readonly log: Log;
  readonly clock: Clock;
  readonly get: Get;
  readonly random?: () => number;
  /** After every answer, also where nothing changed. */
  readonly onAdapters: (id: EndpointId, adapters: readonly string[]) => void;
  /**
   * An adapter's name stands for other weights than before. Engines tell blocks of the two apart, their events do not
   * (vLLM 0.31): what was announced under the name must be forgotten, and not be learnt again from a replay.
   */
  readonly onReplaced: (endpoint: Endpoint, adapter: string) => void;
};

/** Engines asked at once. */
const MAX_AT_ONCE = 8;
const JITTER = 0.1;
const MAX_NAME_LENGTH = 256;
const MAX_ADAPTERS = 4_096;

export type EngineModelsOptions = {
  /** Pause between two passes; 0 = nobody is asked. */
  readonly intervalMs: number;
};

export function createEngineModels(
  { log, clock, get, random = Math.random, onAdapters, onReplaced }: EngineModelsDeps,
  { intervalMs }: EngineModelsOptions,
): EngineModels {
  let fleet = new Map<EndpointId, Endpoint>();
  let addresses: ReturnType<typeof byAddress> = new Map();
  /** Addresses not asked yet in this pass. */
  let due: string[] = [];
  let nAtOnce = 0;
  let timer: Timer | null = null;
  let stopped = false;
  /** Where each adapter's weights lay when it was last seen, kept while it is unloaded. */
  const weights = new Map<EndpointId, Map<string, string>>();
  /** Told once while it lasts. */
  const strangers = new Set<EndpointId>();

  function work(): void {
    while (nAtOnce < MAX_AT_ONCE && due.length > 0 && !stopped) {
      const ranks = addresses.get(due.shift()!);
      if (ranks !== undefined) void ask(ranks);
    }
    if (nAtOnce > 0 || timer !== null || fleet.size === 0 || stopped) return;
    timer = clock.after(intervalMs * (1 - JITTER + 2 * JITTER * random()), () => {
      timer = null;
      due = [...addresses.keys()];
      work();
    });
  }

  async function ask(ranks: readonly Endpoint[]): Promise<void> {
    nAtOnce += 1;
    const answer = await get(`http://${ranks[0]!.address}`, '/v1/models');
    nAtOnce -= 1;
    const served = answer.kind === 'page' ? parseModels(answer.body) : null;
    // Each may be gone by now, and what is told of one may change the fleet.
    for (const endpoint of ranks) if (served !== null && !stopped && fleet.has(endpoint.id)) note(endpoint, served);
    work();
  }

  function note(endpoint: Endpoint, served: ServedModels): void {
    if ((endpoint.rank ?? 0) === 0) checkName(endpoint, served.models);
    onAdapters(
      endpoint.id,
      served.adapters.map(({ name }) => name),
    );
    noteWeights(endpoint, served.adapters);
  }

  /** A request is sent on with the name its client wrote, and the engine must know it. */
  function checkName({ id, address, models }: Endpoint, served: readonly string[]): void {
    const unknown = models.filter((name) => !served.includes(name));
    if (unknown.length === 0) {
      strangers.delete(id);
      return;
    }
    if (strangers.has(id)) return;
    strangers.add(id);
    log.warn('an engine does not serve the model it is listed for', { endpoint: address, listed: unknown, served });
  }

  function noteWeights(endpoint: Endpoint, adapters: ServedModels['adapters']): void {
    let known = weights.get(endpoint.id);
    if (known === undefined) weights.set(endpoint.id, (known = new Map()));
    for (const { name, path } of adapters) {
      const before = known.get(name);
      if (before === path || (before === undefined && known.size >= MAX_ADAPTERS)) continue;
      known.set(name, path);
      if (before !== undefined) onReplaced(endpoint, name);
    }
  }

  return {
    reconcile(endpoints) {
      if (intervalMs === 0) return;
      const before = fleet;
      fleet = new Map(endpoints.map((endpoint) => [endpoint.id, endpoint]));
      for (const id of strangers) if (!fleet.has(id)) strangers.delete(id);
      for (const id of weights.keys()) if (!fleet.has(id)) weights.delete(id);
      addresses = byAddress(endpoints);
      for (const [address, ranks] of addresses) if (ranks.some(({ id }) => !before.has(id))) due.push(address);
      work();
    },
    stop() {
      stopped = true;
      timer?.cancel();
      due = [];
    },
  };
}

export type ServedModels = {
  readonly models: readonly string[];
  /** By name, each once; `path` is '' where the engine does not say it. */
  readonly adapters: readonly { readonly name: string; readonly path: string }[];
};

/**
 * @param body OpenAI's list of models, where vLLM and SGLang name the parent of an adapter
 * @returns null where it is something else
 */
export function parseModels(body: Buffer): ServedModels | null {
  let page: unknown;
  try {
    page = JSON.parse(body.toString('utf8'));
  } catch {
    return null;
  }
  const list = (page as { data?: unknown } | null)?.data;
  if (!Array.isArray(list)) return null;
  const models: string[] = [];
  const adapters = new Map<string, string>();
  for (const entry of list as ({ id?: unknown; parent?: unknown; root?: unknown } | null)[]) {
    const name = entry?.id;
    if (typeof name !== 'string' || name === '' || name.length > MAX_NAME_LENGTH) continue;
    if (typeof entry?.parent !== 'string') models.push(name);
    else if (adapters.size < MAX_ADAPTERS) adapters.set(name, typeof entry?.root === 'string' ? entry.root : '');
  }
  const byName = [...adapters].map(([name, path]) => ({ name, path })).sort((a, b) => (a.name < b.name ? -1 : 1));
  return models.length === 0 ? null : { models, adapters: byName };
}
