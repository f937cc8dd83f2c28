/** What a fake API server keeps: objects, one growing version for all of them, and every change with its version. */

export type KubeObject = {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: {
    readonly name: string;
    readonly namespace: string;
    readonly uid: string;
    readonly resourceVersion: string;
    readonly creationTimestamp: string;
    readonly deletionTimestamp?: string;
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
    readonly managedFields?: readonly object[];
  };
  readonly spec?: unknown;
  readonly status?: unknown;
};

/** What a test says of an object; the rest is the server's. */
export type ObjectDraft = {
  readonly metadata: {
    readonly name: string;
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly spec?: unknown;
  readonly status?: unknown;
};

export type StoreChange = {
  readonly version: number;
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED';
  readonly plural: string;
  readonly before: KubeObject | null;
  /** For DELETED the last state with the version of the deletion. */
  readonly object: KubeObject;
};

const KINDS: Readonly<Record<string, { readonly apiVersion: string; readonly kind: string }>> = {
  pods: { apiVersion: 'v1', kind: 'Pod' },
  inferencepools: { apiVersion: 'inference.networking.k8s.io/v1', kind: 'InferencePool' },
  modeladapters: { apiVersion: 'model.aibrix.ai/v1alpha1', kind: 'ModelAdapter' },
  inferenceobjectives: { apiVersion: 'inference.networking.x-k8s.io/v1alpha2', kind: 'InferenceObjective' },
};

export function kindOf(plural: string): { readonly apiVersion: string; readonly kind: string } {
  return KINDS[plural] ?? { apiVersion: 'v1', kind: 'Unknown' };
}

export class FakeApiStore {
  version: number;
  readonly changes: StoreChange[] = [];
  private readonly namespace: string;
  private readonly objects = new Map<string, Map<string, KubeObject>>();
  private readonly listeners = new Set<(change: StoreChange) => void>();
  private nUids = 0;

  constructor(namespace: string, version = 0) {
    this.namespace = namespace;
    this.version = version;
  }

  create(plural: string, draft: ObjectDraft): KubeObject {
    const before = this.get(plural, draft.metadata.name);
    if (before !== null) throw new Error(`${plural} ${draft.metadata.name} exists already`);
    const uid = `00000000-0000-4000-8000-${String((this.nUids += 1)).padStart(12, '0')}`;
    const creationTimestamp = new Date(1_790_000_000_000 + this.version * 1000).toISOString().replace('.000', '');
    const metadata = { namespace: this.namespace, uid, creationTimestamp, ...draft.metadata };
    return this.put('ADDED', plural, null, {
      ...kindOf(plural),
      ...draft,
      metadata: { ...metadata, resourceVersion: '' },
    });
  }

  update(plural: string, name: string, change: (object: KubeObject) => Partial<ObjectDraft> & object): KubeObject {
    const before = this.mustGet(plural, name);
    const changed = change(before) as Partial<KubeObject>;
    const metadata = { ...before.metadata, ...changed.metadata };
    return this.put('MODIFIED', plural, before, { ...before, ...changed, metadata });
  }

  /** What `kubectl delete` does first: the object stays until its grace period is over. */
  terminate(plural: string, name: string): KubeObject {
    const before = this.mustGet(plural, name);
    const metadata = { ...before.metadata, deletionTimestamp: '2026-11-21T02:14:22Z' };
    return this.put('MODIFIED', plural, before, { ...before, metadata });
  }

  delete(plural: string, name: string): void {
    const before = this.mustGet(plural, name);
    this.objects.get(plural)!.delete(name);
    this.record('DELETED', plural, before, before);
  }

  get(plural: string, name: string): KubeObject | null {
    return this.objects.get(plural)?.get(name) ?? null;
  }

  /** In the order of their names, as etcd has them. */
  list(plural: string): readonly KubeObject[] {
    return [...(this.objects.get(plural)?.values() ?? [])].sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1));
  }

  /** The list as it was at a version. */
  listAt(plural: string, version: number): readonly KubeObject[] {
    if (version >= this.version) return this.list(plural);
    const then = new Map<string, KubeObject>();
    for (const change of this.changes) {
      if (change.version > version) break;
      if (change.plural !== plural) continue;
      if (change.type === 'DELETED') then.delete(change.object.metadata.name);
      else then.set(change.object.metadata.name, change.object);
    }
    return [...then.values()].sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1));
  }

  /** As after a restore of etcd from a backup: the objects of then, and versions that are given a second time. */
  restore(version: number): void {
    for (const plural of this.objects.keys()) {
      this.objects.set(plural, new Map(this.listAt(plural, version).map((object) => [object.metadata.name, object])));
    }
    this.changes.splice(this.changes.findLastIndex((change) => change.version <= version) + 1);
    this.version = version;
  }

  onChange(listener: (change: StoreChange) => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  private mustGet(plural: string, name: string): KubeObject {
    const object = this.get(plural, name);
    if (object === null) throw new Error(`${plural} ${name} does not exist`);
    return object;
  }

  private put(type: 'ADDED' | 'MODIFIED', plural: string, before: KubeObject | null, object: KubeObject): KubeObject {
    const stored = this.record(type, plural, before, object);
    let objects = this.objects.get(plural);
    if (objects === undefined) this.objects.set(plural, (objects = new Map()));
    objects.set(stored.metadata.name, stored);
    for (const listener of this.listeners) listener(this.changes.at(-1)!);
    return stored;
  }

  private record(type: StoreChange['type'], plural: string, before: KubeObject | null, object: KubeObject): KubeObject {
    this.version += 1;
    const stored = { ...object, metadata: { ...object.metadata, resourceVersion: String(this.version) } };
    this.changes.push({ version: this.version, type, plural, before, object: stored });
    if (type === 'DELETED') for (const listener of this.listeners) listener(this.changes.at(-1)!);
    return stored;
  }
}

/** A label selector as a test of labels; null = not one that this fake knows. */
export function labelTest(selector: string): ((labels: Readonly<Record<string, string>>) => boolean) | null {
  const tests: ((labels: Readonly<Record<string, string>>) => boolean)[] = [];
  for (const part of selector.split(/,(?![^(]*\))/).map((one) => one.trim())) {
    const set = /^([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)$/.exec(part);
    const equal = /^([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)$/.exec(part);
    const exists = /^(!?)([\w./-]+)$/.exec(part);
    if (set !== null) {
      const values = set[3]!.split(',').map((value) => value.trim());
      tests.push((labels) => values.includes(labels[set[1]!] ?? '\0') === (set[2] === 'in'));
    } else if (equal !== null) {
      tests.push((labels) => (labels[equal[1]!] === equal[3]) === (equal[2] !== '!='));
    } else if (exists !== null) {
      tests.push((labels) => (labels[exists[2]!] !== undefined) === (exists[1] === ''));
    } else {
      return null;
    }
  }
  return (labels) => tests.every((one) => one(labels));
}
