/**
 * Where configuration values come from: a YAML file, environment variables and `key=value` texts, each value with the
 * place it was found at. Knows names of keys, not their kinds: values stay raw here.
 */
import { isAlias, isMap, isNode, isScalar, LineCounter, parseDocument, type Document, type Node } from 'yaml';
import { errorText } from './errors.ts';
import { nearestName, showGot } from './wording.ts';

export type SourceInput = {
  readonly file: string | null;
  readFile(path: string): string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly sets: readonly string[];
};

export type Alias = { readonly key: string; readonly translate?: Readonly<Record<string, string>> };

export type RawValue = {
  readonly key: string;
  readonly raw: unknown;
  /** `file:line`, the name of the variable, or `--set`. */
  readonly where: string;
};

export type Sources = {
  /** In rising order of precedence. */
  readonly values: readonly RawValue[];
  readonly mistakes: readonly string[];
  readonly notices: readonly string[];
  /** `file:line` of something inside a value of the file; null for values from elsewhere. */
  lineBelow(where: string, key: string, path: readonly (string | number)[]): string | null;
};

/** `kvEvents.indexMaxBytes` → `WARMPATH_KV_EVENTS_INDEX_MAX_BYTES`. */
export function environmentName(key: string): string {
  return `WARMPATH_${key.replaceAll('.', '_').replaceAll(/([a-z0-9])([A-Z])/g, '$1_$2')}`.toUpperCase();
}

export function readSources(
  input: SourceInput,
  keys: readonly string[],
  aliases: Readonly<Record<string, Alias>>,
): Sources {
  const file = input.file === null ? EMPTY_FILE : readYaml(input.file, input.readFile, keys);
  const environment = readEnvironment(input.env, keys, aliases);
  const sets = readSets(input.sets, keys);
  return {
    values: [...file.values, ...environment.values, ...sets.values],
    mistakes: [...file.mistakes, ...environment.mistakes, ...sets.mistakes],
    notices: environment.notices,
    lineBelow: (where, key, path) =>
      input.file !== null && where.startsWith(`${input.file}:`) ? file.line(key, path) : null,
  };
}

type FileValues = {
  readonly values: readonly RawValue[];
  readonly mistakes: readonly string[];
  line(key: string, path: readonly (string | number)[]): string | null;
};

const EMPTY_FILE: FileValues = { values: [], mistakes: [], line: () => null };

function readYaml(path: string, readFile: (path: string) => string, keys: readonly string[]): FileValues {
  let source: string;
  try {
    source = readFile(path);
  } catch (error) {
    return { ...EMPTY_FILE, mistakes: [`cannot read the configuration file ${path}: ${errorText(error)}`] };
  }
  const lines = new LineCounter();
  const document = parseDocument(source, { lineCounter: lines, prettyErrors: false });
  const at = (offset: number | undefined): string => `${path}:${lines.linePos(offset ?? 0).line}`;
  const mistakes = document.errors.map((error) => `${path} must be YAML: ${error.message} (${at(error.pos[0])})`);
  // What a broken document seems to say would be told as mistakes that nobody made; a key given twice breaks nothing.
  if (document.errors.some(({ code }) => code !== 'DUPLICATE_KEY')) return { ...EMPTY_FILE, mistakes };
  const toldTwice = new Set(document.errors.map((error) => at(error.pos[0])));

  const values: RawValue[] = [];
  const nodes = new Map<string, Node>();
  const sections = new Set(keys.flatMap((key) => prefixesOf(key)));
  const walk = (node: unknown, prefix: string, where: string): void => {
    const inner = isAlias(node) ? node.resolve(document) : node;
    if (isAlias(node) && inner === undefined) {
      mistakes.push(`*${node.source} must name an anchor of the file, got one that is not there (${where})`);
      return;
    }
    if (isEmpty(inner)) return;
    if (!isMap(inner)) {
      const got = showGot(toValue(inner, document));
      mistakes.push(`${prefix === '' ? 'the configuration' : prefix} must be a map of keys, got ${got} (${where})`);
      return;
    }
    for (const { key: keyNode, value } of inner.items) {
      const name = isScalar(keyNode) ? String(keyNode.value) : showGot(toValue(keyNode, document));
      const key = prefix === '' ? name : `${prefix}.${name}`;
      const place = at((keyNode as Node).range?.[0]);
      if (nodes.has(key)) {
        if (!toldTwice.has(place)) mistakes.push(`${key} must be given once, got it twice (${place})`);
      } else if (keys.includes(key)) {
        const raw = toValue(value, document);
        nodes.set(key, value as Node);
        values.push({ key, raw, where: place });
      } else if (sections.has(key)) walk(value, key, place);
      else {
        const known = isMap(value) ? [...keys, ...sections] : keys;
        mistakes.push(`unknown key ${key}, ${nearestKey(key, known)} (${place})`);
      }
    }
  };
  try {
    walk(document.contents, '', at(document.contents?.range?.[0]));
  } catch (error) {
    // The parser refuses documents whose aliases multiply into something huge.
    return { ...EMPTY_FILE, mistakes: [`${path} must be plain YAML: ${errorText(error)}`] };
  }
  return {
    values,
    mistakes,
    line(key, below) {
      let node = nodes.get(key);
      for (const part of below) {
        const inner: unknown = isAlias(node) ? node.resolve(document) : node;
        const next = (inner as { get?(part: string | number, keep: true): unknown } | undefined)?.get?.(part, true);
        if (next === undefined || next === null) break;
        node = next as Node;
      }
      return node?.range ? at(node.range[0]) : null;
    },
  };
}

/** Variables that Kubernetes sets in every pod beside a Service called `warmpath…`: not meant for this program. */
function isServiceLink(name: string, value: string): boolean {
  if (/_PORT(?:_\d+_(?:TCP|UDP|SCTP))?$/.test(name) && /^(?:tcp|udp|sctp):\/\//.test(value)) return true;
  return /_SERVICE_HOST$|_SERVICE_PORT(?:_\w+)?$|_PORT_\d+_(?:TCP|UDP|SCTP)_(?:PROTO|PORT|ADDR)$/.test(name);
}

function readEnvironment(
  env: SourceInput['env'],
  keys: readonly string[],
  aliases: Readonly<Record<string, Alias>>,
): { values: RawValue[]; mistakes: string[]; notices: string[] } {
  const byName = new Map(keys.map((key) => [environmentName(key), key]));
  const values: RawValue[] = [];
  const mistakes: string[] = [];
  const notices: string[] = [];
  const fromAlias = new Map<string, { readonly name: string; readonly raw: string }>();
  for (const [name, { key, translate }] of Object.entries(aliases)) {
    const text = env[name];
    if (text === undefined) continue;
    const own = environmentName(key);
    if (env[own] !== undefined) {
      notices.push(`${name} has no effect because ${own} is set`);
      continue;
    }
    const first = fromAlias.get(key);
    const raw = translate === undefined ? text : translate[text.trim().toLowerCase()];
    if (raw === undefined) {
      const expected = Object.keys(translate ?? {}).join(' or ');
      mistakes.push(`${name} must be ${expected}, got ${showGot(text)} (environment)`);
    } else if (first !== undefined && first.raw !== raw) {
      mistakes.push(`${name} must agree with ${first.name}, got ${showGot(text)} (environment)`);
    } else {
      if (first === undefined) values.push({ key, raw, where: name });
      fromAlias.set(key, first ?? { name, raw });
      notices.push(`${name} is an alias of ${key}, please set ${own} instead`);
    }
  }
  for (const name of Object.keys(env).sort()) {
    const raw = env[name];
    if (!name.startsWith('WARMPATH_') || raw === undefined) continue;
    const key = byName.get(name);
    if (key !== undefined) values.push({ key, raw, where: name });
    else if (!isServiceLink(name, raw)) {
      mistakes.push(`unknown variable ${name}, ${nearestKey(name, [...byName.keys()])} (environment)`);
    }
  }
  return { values, mistakes, notices };
}

function readSets(sets: readonly string[], keys: readonly string[]): { values: RawValue[]; mistakes: string[] } {
  const values: RawValue[] = [];
  const mistakes: string[] = [];
  for (const text of sets) {
    const equals = text.indexOf('=');
    const key = equals < 0 ? text : text.slice(0, equals);
    if (equals <= 0) mistakes.push(`--set must be key=value, got ${showGot(text)}`);
    else if (!keys.includes(key)) mistakes.push(`unknown key ${key}, ${nearestKey(key, keys)} (--set)`);
    else values.push({ key, raw: text.slice(equals + 1), where: '--set' });
  }
  return { values, mistakes };
}

function nearestKey(name: string, known: readonly string[]): string {
  const nearest = nearestName(name, known);
  return nearest === null
    ? 'none is like it: docs/configuration.md has all of them'
    : `the nearest known one is ${nearest}`;
}

function prefixesOf(key: string): string[] {
  const parts = key.split('.');
  return parts.slice(1).map((_, index) => parts.slice(0, index + 1).join('.'));
}

/** Everything of `keys: ` left blank: a section whose keys are all commented out. */
function isEmpty(node: unknown): boolean {
  return node === null || node === undefined || (isScalar(node) && node.value === null);
}

function toValue(node: unknown, document: Document): unknown {
  return isNode(node) ? node.toJS(document) : (node ?? null);
}
