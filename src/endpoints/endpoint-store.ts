/**
 * The fleet as it should be: takes whole lists, gives every endpoint a slot of the index and keeps the maps a request
 * needs ready. Deliberately not here: where lists come from, and what happens to an endpoint's blocks; whoever clears
 * them says so with `freed`, and only then a slot may name another endpoint.
 */
import assert from 'node:assert';
import {
  endpointKey,
  MAX_ENDPOINT_SLOTS,
  type Endpoint,
  type EndpointId,
  type EndpointSlot,
  type EndpointSpec,
} from './endpoint.ts';

/** What a new list changed. Endpoints that stayed as they were are the same objects as before. */
export type Change = {
  readonly added: readonly Endpoint[];
  /** Their slots stay taken until `freed(slot)`. */
  readonly removed: readonly Endpoint[];
  /** Same address, rank and slot. `restarted`: another process is behind the address, and the id is a new one. */
  readonly changed: readonly {
    readonly before: Endpoint;
    readonly after: Endpoint;
    readonly what: 'restarted' | 'described anew';
  }[];
  /** What of the list could not be followed, one sentence each; the rest was. */
  readonly problems: readonly string[];
};

export type Candidates = {
  /** Endpoints that serve the model and are ready, in the order of the list; the same array until something changes. */
  readonly ready: readonly Endpoint[];
  /** Canonical name: what roots the block hashes and labels the metrics. */
  readonly model: string;
  readonly adapter: string | null;
};

export type LeftOut = { readonly name: string; readonly reason: string };

export type EndpointStore = {
  /** Makes the fleet what the list says. Idempotent; the whole list every time. */
  replace(specs: readonly EndpointSpec[]): Change;
  /** Adapters the engine itself names, beside those of the list, until told otherwise or its process is another one. */
  learnAdapters(id: EndpointId, adapters: readonly string[]): void;
  /** The blocks of a removed endpoint are gone from the index: its slot may be used again. */
  freed(slot: EndpointSlot): void;
  all(): readonly Endpoint[];
  ready(): readonly Endpoint[];
  /** Who of the newest list is not among them, and why. */
  leftOut(): readonly LeftOut[];
  /** @param model served name, alias or adapter; null = nobody serves it. One map look-up. */
  candidates(model: string): Candidates | null;
  /** Canonical names of the models served. */
  modelNames(): readonly string[];
  /** Called after every `replace` that changed something, and when a freed slot let an endpoint in. */
  onChange(listener: (change: Change) => void): () => void;
};

export function createEndpointStore(): EndpointStore {
  const slotTaken = new Uint8Array(MAX_ENDPOINT_SLOTS);
  const listeners = new Set<(change: Change) => void>();
  const unheard: Change[] = [];
  let byKey: ReadonlyMap<string, Endpoint> = new Map();
  let view = createView([]);
  let wanted: readonly EndpointSpec[] = [];
  const learnt = new Map<EndpointId, readonly string[]>();
  let leftOut: LeftOut[] = [];
  let nMissing = 0;
  let generation = 0;

  const nextId = (key: string): EndpointId => `${key}#${(generation += 1)}` as EndpointId;
  const takeSlot = (): EndpointSlot | null => {
    const slot = slotTaken.indexOf(0);
    if (slot < 0) return null;
    slotTaken[slot] = 1;
    return slot as EndpointSlot;
  };

  function replace(specs: readonly EndpointSpec[]): Change {
    wanted = specs;
    leftOut = [];
    nMissing = 0;
    const problems: string[] = [];
    const added: Endpoint[] = [];
    const changed: Change['changed'][number][] = [];
    const next = new Map<string, Endpoint>();
    for (const spec of specs) {
      const key = endpointKey(spec);
      // Only the ranks of one endpoint share an address.
      const taken = next.get(key) ?? next.get(spec.rank === null ? `${spec.address}/0` : spec.address);
      if (taken !== undefined) {
        problems.push(`endpoint ${spec.name} must have an address of its own, got ${spec.address} of ${taken.name}`);
        leftOut.push({ name: spec.name, reason: `its address ${spec.address} is that of ${taken.name}` });
        continue;
      }
      const before = byKey.get(key);
      if (before !== undefined) {
        // Another model at an address is another process, whatever discovery knows of it.
        const restarted = before.incarnation !== spec.incarnation || before.models[0] !== spec.models[0];
        const id = restarted ? nextId(key) : before.id;
        const described = withAdapters(spec, learnt.get(id));
        const same = !restarted && isSameSpec(before, described);
        const after = same ? before : { ...described, id, slot: before.slot };
        if (!same) changed.push({ before, after, what: restarted ? 'restarted' : 'described anew' });
        next.set(key, after);
        continue;
      }
      const slot = takeSlot();
      if (slot === null) {
        nMissing += 1;
        leftOut.push({ name: spec.name, reason: `at most ${MAX_ENDPOINT_SLOTS} endpoints fit` });
        continue;
      }
      const endpoint = { ...spec, id: nextId(key), slot };
      added.push(endpoint);
      next.set(key, endpoint);
    }
    if (nMissing > 0) {
      problems.push(`at most ${MAX_ENDPOINT_SLOTS} endpoints fit, left out ${nMissing} of ${specs.length}`);
    }
    const removed = [...byKey.values()].filter((endpoint) => !next.has(endpointKey(endpoint)));
    byKey = next;
    if (learnt.size > 0) {
      const ids = new Set([...next.values()].map(({ id }) => id));
      for (const id of learnt.keys()) if (!ids.has(id)) learnt.delete(id);
    }
    view = createView([...next.values()]);
    const change: Change = { added, removed, changed, problems: [...problems, ...view.problems] };
    if (added.length + removed.length + changed.length > 0) notify(change);
    return change;
  }

  /** A listener may free a slot and so cause the next change: everybody hears of changes in their order. */
  function notify(change: Change): void {
    unheard.push(change);
    if (unheard.length > 1) return;
    for (let next = unheard[0]; next !== undefined; next = unheard[0]) {
      try {
        for (const listener of [...listeners]) listener(next);
      } finally {
        unheard.shift();
      }
    }
  }

  function learnAdapters(id: EndpointId, adapters: readonly string[]): void {
    if (isSameList(learnt.get(id) ?? [], adapters)) return;
    if (!view.all.some((endpoint) => endpoint.id === id)) return;
    learnt.set(id, adapters);
    replace(wanted);
  }

  return {
    replace,
    learnAdapters,
    freed(slot) {
      assert(!view.all.some((endpoint) => endpoint.slot === slot), `slot ${slot} freed while an endpoint has it`);
      slotTaken[slot] = 0;
      if (nMissing > 0) replace(wanted);
    },
    all: () => view.all,
    ready: () => view.ready,
    leftOut: () => leftOut,
    candidates: (model) => view.byName.get(model) ?? null,
    modelNames: () => view.modelNames,
    onChange(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
}

type View = {
  readonly all: readonly Endpoint[];
  readonly ready: readonly Endpoint[];
  readonly byName: ReadonlyMap<string, Candidates>;
  readonly modelNames: readonly string[];
  readonly problems: readonly string[];
};

/** Everything a request asks, computed once per change. */
function createView(all: readonly Endpoint[]): View {
  const names = new Map<string, Endpoint[]>();
  const adapters = new Map<string, Endpoint[]>();
  for (const endpoint of all) {
    for (const name of new Set(endpoint.models)) push(names, name, endpoint);
    for (const name of new Set(endpoint.adapters)) push(adapters, name, endpoint);
  }
  const problems: string[] = [];
  const byName = new Map<string, Candidates>();
  const add = (name: string, endpoints: readonly Endpoint[], adapter: string | null): void => {
    const canonical = [...new Set(endpoints.map((endpoint) => endpoint.models[0]!))];
    // Blocks are looked up under one name only: endpoints that know the model by another one never show a hit.
    if (canonical.length > 1) {
      problems.push(
        `${adapter === null ? 'model' : 'adapter'} ${name} should belong to one model, got ${canonical.join(', ')}`,
      );
    }
    const ready = endpoints.filter((endpoint) => endpoint.ready);
    byName.set(name, { ready, model: canonical.includes(name) ? name : canonical[0]!, adapter });
  };
  for (const [name, endpoints] of names) add(name, endpoints, null);
  for (const [name, endpoints] of adapters) {
    if (names.has(name))
      problems.push(`adapter ${name} must not have the name of a model, requests for it go to the model`);
    else add(name, endpoints, name);
  }
  return {
    all,
    ready: all.filter((endpoint) => endpoint.ready),
    byName,
    modelNames: [...new Set(all.map((endpoint) => endpoint.models[0]!))].sort(),
    problems,
  };
}

function push(map: Map<string, Endpoint[]>, name: string, endpoint: Endpoint): void {
  const list = map.get(name);
  if (list === undefined) map.set(name, [endpoint]);
  else list.push(endpoint);
}

function withAdapters(spec: EndpointSpec, learnt: readonly string[] = []): EndpointSpec {
  const more = learnt.filter((name) => !spec.adapters.includes(name) && !spec.models.includes(name));
  return more.length === 0 ? spec : { ...spec, adapters: [...spec.adapters, ...more] };
}

function isSameSpec(a: EndpointSpec, b: EndpointSpec): boolean {
  return (
    a.name === b.name &&
    a.ready === b.ready &&
    isSameList(a.models, b.models) &&
    isSameList(a.adapters, b.adapters) &&
    a.dataParallelSize === b.dataParallelSize &&
    a.kvEvents.length === b.kvEvents.length &&
    a.kvEvents.every((source, rank) => {
      const other = b.kvEvents[rank]!;
      return source.endpoint === other.endpoint && source.replayEndpoint === other.replayEndpoint;
    }) &&
    isSameLabels(a.labels, b.labels)
  );
}

function isSameList(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((one, index) => one === b[index]);
}

function isSameLabels(a: EndpointSpec['labels'], b: EndpointSpec['labels']): boolean {
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => Object.hasOwn(b, name) && a[name] === b[name]);
}
