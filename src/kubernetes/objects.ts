/** Reading of Kubernetes objects: JSON of unknown shape → the few fields that count. No I/O. */

/** A resource of one namespace; group '' is the core group. */
export type ResourceRef = {
  readonly group: string;
  readonly version: string;
  readonly plural: string;
  readonly namespace: string;
};

export type ObjectMeta = {
  readonly name: string;
  readonly uid: string;
  readonly resourceVersion: string;
};

/** What an API server answers instead of an object (`kind: Status`). */
export type ApiStatus = {
  readonly code: number;
  readonly reason: string;
  readonly message: string;
  readonly causes: readonly string[];
};

export function resourcePath({ group, version, plural, namespace }: ResourceRef): string {
  return `${group === '' ? '/api' : `/apis/${group}`}/${version}/namespaces/${namespace}/${plural}`;
}

/** As RBAC names it: `pods`, `modeladapters.model.aibrix.ai`. */
export function resourceName({ group, plural }: ResourceRef): string {
  return group === '' ? plural : `${plural}.${group}`;
}

/** Null where one of the three is missing: such an object cannot be followed. */
export function metaOf(object: unknown): ObjectMeta | null {
  const meta = recordOf(recordOf(object).metadata);
  const { name, uid, resourceVersion } = meta;
  if (!isFilled(name) || !isFilled(uid) || !isFilled(resourceVersion)) return null;
  return { name, uid, resourceVersion };
}

export function statusOf(object: unknown): ApiStatus {
  const status = recordOf(object);
  return {
    code: typeof status.code === 'number' ? status.code : 0,
    reason: textOf(status.reason),
    message: textOf(status.message),
    causes: listOf(recordOf(status.details).causes).map((cause) => textOf(recordOf(cause).reason)),
  };
}

/** Order of two resource versions, null where they are not numbers and so have none. */
export function compareVersions(a: string, b: string): number | null {
  if (!DIGITS.test(a) || !DIGITS.test(b)) return null;
  // As texts: versions have 64 bits, numbers of this language have not.
  return a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);
}

/** The value if it is a map, else an empty one. */
export function recordOf(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Readonly<Record<string, unknown>>)
    : {};
}

export function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

/** The value if it is a text, else the empty one. */
export function textOf(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

/** The entries whose values are texts. */
export function textsOf(value: unknown): Readonly<Record<string, string>> {
  const texts: [string, string][] = [];
  for (const [key, one] of Object.entries(recordOf(value))) if (typeof one === 'string') texts.push([key, one]);
  return Object.fromEntries(texts);
}

const DIGITS = /^(?:0|[1-9]\d*)$/;

function isFilled(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}
