/**
 * Kinds of configuration values: how a text or a YAML value becomes a typed one, and how a wrong one is described.
 * No key is named here; the keys, their kinds and defaults are config.ts.
 */
import { type Document, parseDocument, visit } from 'yaml';

export type Parsed<T> =
  | { readonly kind: 'value'; readonly value: T }
  /** Completes "… must be". */
  | { readonly kind: 'mistake'; readonly expected: string };

export type Kind<T> = {
  /** Word for the documentation table. */
  readonly type: string;
  readonly unit: string | null;
  /** Takes a YAML value, or the text of an environment variable or a `--set`. */
  parse(raw: unknown): Parsed<T>;
  /** The value as the documentation table shows it. */
  show(value: T): string;
};

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

/** A whole number in the closed range. */
export function integer(min: number, max: number, unit: string | null = null): Kind<number> {
  const mistake = { kind: 'mistake', expected: `an integer from ${min} to ${max}` } as const;
  return {
    type: 'integer',
    unit,
    parse(raw) {
      const value = typeof raw === 'string' && /^[+-]?\d{1,15}$/.test(raw.trim()) ? Number(raw) : raw;
      return typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max ? ok(value) : mistake;
    },
    show: String,
  };
}

/** A number from 0 to 1. */
export const share: Kind<number> = {
  type: 'number',
  unit: null,
  parse(raw) {
    const value = typeof raw === 'string' && /^\d{0,3}\.?\d{1,9}$/.test(raw.trim()) ? Number(raw) : raw;
    if (typeof value === 'number' && value >= 0 && value <= 1) return ok(value);
    return { kind: 'mistake', expected: 'a number from 0 to 1' };
  },
  show: String,
};

export const milliseconds = (min: number, max: number): Kind<number> => integer(min, max, 'ms');

export const port: Kind<number> = integer(1, 65_535);

const SIZE_UNITS: ReadonlyMap<string, number> = new Map([
  ['', 1],
  ['b', 1],
  ['kb', 1e3],
  ['mb', 1e6],
  ['gb', 1e9],
  ['ki', KIB],
  ['kib', KIB],
  ['mi', MIB],
  ['mib', MIB],
  ['gi', GIB],
  ['gib', GIB],
]);

/** Bytes, as a number or with a unit: `16 MiB`, `512Mi`, `1.5 GiB`, `500 kB`. */
export function size(min: number, max: number): Kind<number> {
  const mistake = { kind: 'mistake', expected: `a size from ${showSize(min)} to ${showSize(max)}` } as const;
  return {
    type: 'size',
    unit: 'bytes',
    parse(raw) {
      const parts = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(String(raw).trim());
      if ((typeof raw !== 'string' && typeof raw !== 'number') || parts === null) return mistake;
      const bytes = Number(parts[1]) * (SIZE_UNITS.get((parts[2] ?? '').toLowerCase()) ?? Number.NaN);
      return Number.isInteger(bytes) && bytes >= min && bytes <= max ? ok(bytes) : mistake;
    },
    show: showSize,
  };
}

/** One of the names, spelt exactly so. */
export function choice<const T extends string>(...names: readonly T[]): Kind<T> {
  return {
    type: names.map((name) => `\`${name}\``).join(', '),
    unit: null,
    parse(raw) {
      const name = names.find((one) => one === raw);
      if (name !== undefined) return ok(name);
      return { kind: 'mistake', expected: names.length === 1 ? names[0]! : `one of ${names.join(', ')}` };
    },
    show: String,
  };
}

export const flag: Kind<boolean> = {
  type: 'boolean',
  unit: null,
  parse(raw) {
    // 0 and 1 because environment variables are often written so.
    const word = typeof raw === 'string' ? raw.trim().toLowerCase() : raw;
    if (word === true || word === 'true' || word === '1') return ok(true);
    if (word === false || word === 'false' || word === '0') return ok(false);
    return { kind: 'mistake', expected: 'true or false' };
  },
  show: String,
};

/** Text that fulfils a rule. @param expected completes "… must be" */
export function text(type: string, expected: string, isValid: (value: string) => boolean): Kind<string> {
  return {
    type,
    unit: null,
    parse: (raw) => (typeof raw === 'string' && isValid(raw) ? ok(raw) : { kind: 'mistake', expected }),
    show: String,
  };
}

export const filePath: Kind<string> = text(
  'path',
  'a file path',
  (value) => value.trim() !== '' && !value.includes('\0'),
);

export const headerName: Kind<string> = text('header', 'a lower-case HTTP header name', (value) =>
  /^[!#$%&'*+.^_`|~0-9a-z-]{1,128}$/.test(value),
);

/** What an HTTP client writes or refuses itself (RFC 9110, 9112). */
const HEADERS_OF_HTTP = [
  'connection',
  'content-length',
  'content-type',
  'expect',
  'host',
  'keep-alive',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
];

/** One that can carry a value of the user's. */
export const freeHeaderName: Kind<string> = text(
  'header',
  'a lower-case HTTP header name that HTTP does not use itself',
  (value) => headerName.parse(value).kind === 'value' && !HEADERS_OF_HTTP.includes(value),
);

/** Empty switches the feature off. */
export const headerNameOrEmpty: Kind<string> = text(
  'header',
  'a lower-case HTTP header name, or empty for off',
  (value) => value === '' || headerName.parse(value).kind === 'value',
);

/** `host:port`; port 0 lets the system choose. */
export const listenAddress: Kind<string> = text('address', 'host:port, an IPv6 host in brackets', (value) => {
  const parts = /^(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})$/.exec(value);
  return parts !== null && Number(parts[1]) <= 65_535;
});

/** A subject alternative name as a certificate has it: kind and value. */
export const hostAndPort: Kind<string> = text('host', 'a DNS name or IPv4 address, with or without :port', (value) => {
  const [, portText] = /^[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::(\d+))?$/i.exec(value) ?? [null];
  return portText !== null && (portText === undefined || (Number(portText) >= 1 && Number(portText) <= 65_535));
});

export const clientIdentity: Kind<string> = text('SAN', 'a name as in the certificate: DNS:…, URI:… or IP:…', (value) =>
  /^(?:DNS|URI|IP):[\x21-\x7e]{1,1024}$/.test(value),
);

/** Only what is sent somewhere: credentials, a query and a fragment would be left out of every call. */
export const httpUrl: Kind<string> = text(
  'URL',
  'an http:// or https:// URL without user, query and fragment',
  (value) => {
    const url = URL.canParse(value) ? new URL(value) : null;
    if (url === null || (url.protocol !== 'http:' && url.protocol !== 'https:') || url.hostname === '') return false;
    return url.username === '' && url.password === '' && !/[?#]/.test(value);
  },
);

const LABEL_KEY = /^(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/;

export const labelKey: Kind<string> = text('label', 'a Kubernetes label key', (value) => LABEL_KEY.test(value));

export const kubernetesName: Kind<string> = text('name', 'a Kubernetes object name', (value) =>
  /^[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$/.test(value),
);

const LABEL_VALUE = /^(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$/;

/** Requirements with commas between them, as an API server parses them; it would refuse anything else at every request. */
export const labelSelector: Kind<string> = text('label selector', 'a Kubernetes label selector', (value) =>
  value.split(/,(?![^(]*\))/).every(isRequirement),
);

/** `key`, `!key`, `key=value` (`==`, `!=`), `key>5` (`<`), `key in (a,b)` (`notin`). */
function isRequirement(text: string): boolean {
  const parts = /^(!\s*)?([^\s!=<>(),]+)(?:\s*(==?|!=|[<>])\s*([^\s!=<>(),]*)|\s+(?:not)?in\s*\(([^()]*)\))?$/.exec(
    text.trim(),
  );
  const [, not, key = '', operator, value = '', values] = parts ?? [];
  if (!LABEL_KEY.test(key)) return false;
  if (not !== undefined) return operator === undefined && values === undefined;
  if (operator === '<' || operator === '>') return /^\d{1,18}$/.test(value);
  return [value, ...(values ?? '').split(',')].every((one) => LABEL_VALUE.test(one.trim()));
}

/** Absent, null or empty text mean null. */
export function optional<T>(kind: Kind<T>): Kind<T | null> {
  return {
    ...kind,
    parse: (raw) => (raw === null || raw === '' ? ok(null) : kind.parse(raw)),
    show: (value) => (value === null ? '' : kind.show(value)),
  };
}

/** A YAML list; as text `a,b` or `[a, b]`. */
export function list<T>(kind: Kind<T>): Kind<readonly T[]> {
  return {
    type: `list of ${kind.type}`,
    unit: kind.unit,
    parse(raw) {
      const values: T[] = [];
      for (const item of Array.isArray(raw) ? (raw as unknown[]) : splitList(raw)) {
        const parsed = kind.parse(item);
        if (parsed.kind === 'mistake') return { kind: 'mistake', expected: `a list, each entry ${parsed.expected}` };
        values.push(parsed.value);
      }
      return ok(values);
    },
    show: (values) => `[${values.map((value) => kind.show(value)).join(', ')}]`,
  };
}

/** Anything: a part that knows the shape parses it. A text is read as YAML, so that a variable can hold it. */
export const structure: Kind<unknown> = {
  type: 'structure',
  unit: null,
  parse(raw) {
    if (typeof raw !== 'string') return ok(raw);
    const document = parseDocument(raw, { prettyErrors: false });
    // No aliases: a short text must not unfold into a huge structure, and nobody writes them here.
    if (document.errors.length > 0 || hasAlias(document)) return { kind: 'mistake', expected: 'YAML without aliases' };
    return ok(document.toJS() as unknown);
  },
  show: (value) => (value === null ? '' : JSON.stringify(value)),
};

/** `16 MiB` where the value is a whole number of a binary unit, else plain bytes. */
export function showSize(bytes: number): string {
  if (bytes >= GIB && bytes % GIB === 0) return `${bytes / GIB} GiB`;
  if (bytes >= MIB && bytes % MIB === 0) return `${bytes / MIB} MiB`;
  if (bytes >= KIB && bytes % KIB === 0) return `${bytes / KIB} KiB`;
  return `${bytes} bytes`;
}

function splitList(raw: unknown): readonly unknown[] {
  if (raw === null || raw === '') return [];
  const inner = typeof raw === 'string' && /^\s*\[.*\]\s*$/.test(raw) ? raw.trim().slice(1, -1) : raw;
  if (typeof inner !== 'string') return [inner];
  if (inner.trim() === '') return [];
  return inner.split(',').map((item) => item.trim().replace(/^(["'])(.*)\1$/, '$2'));
}

function hasAlias(document: Document): boolean {
  let found = false;
  visit(document, {
    Alias() {
      found = true;
      return visit.BREAK;
    },
  });
  return found;
}

function ok<T>(value: T): Parsed<T> {
  return { kind: 'value', value };
}
