/**
 * The list of static endpoints → `EndpointSpec`s, or every mistake at once. The same list stands in a file or inline in
 * the configuration. No I/O here, and no names: Envoy compares addresses, so an endpoint is an IP address and a port.
 *
 * | field | type | default |
 * |---|---|---|
 * | `address` | `ip:port`, IPv6 in brackets | – |
 * | `model` or `models` | served name, or names: the first is canonical | – |
 * | `name` | text, unique | the address |
 * | `adapters` | list of LoRA names | none |
 * | `kvEvents` | `tcp://ip:port` or `none` | the address's IP and `kvEvents.port`; where `kvEvents.listen` is set it connects to us |
 * | `replay` | `tcp://ip:port` or `none` | the publisher's IP and `kvEvents.replayPort`; `none` where the publisher has a port of its own |
 * | `dataParallelSize` | ranks behind the address | 1 |
 * | `labels` | map of texts | none |
 */
import { isIPv4, isIPv6, SocketAddress } from 'node:net';
import { nearestName, showGot } from '../wording.ts';
import { MAX_ENDPOINT_SLOTS, type EndpointSpec, type KvEventSource } from './endpoint.ts';

export type ListPath = readonly (string | number)[];

export type ListContext = {
  /** What messages call the list: `endpoints`, `discovery.endpoints`. */
  readonly label: string;
  /** Where something inside the list stands: `endpoints.yaml:7`. */
  place(path: ListPath): string;
  /** Default port of the publisher; null = an endpoint that names none publishes no events. */
  readonly kvPort: number | 'listen' | null;
  readonly replayPort: number;
};

export type ParsedList =
  | { readonly kind: 'endpoints'; readonly specs: readonly EndpointSpec[] }
  | { readonly kind: 'mistakes'; readonly mistakes: readonly string[] };

const FIELDS = ['name', 'address', 'model', 'models', 'adapters', 'kvEvents', 'replay', 'dataParallelSize', 'labels'];
const MAX_RANKS = 256;

export function parseEndpointList(list: unknown, context: ListContext): ParsedList {
  const mistakes: string[] = [];
  const mistake = (path: ListPath, text: string): void => {
    mistakes.push(`${label(context.label, path)} ${text} (${context.place(path)})`);
  };
  if (!Array.isArray(list)) {
    mistake([], `must be a list of endpoints, got ${showGot(list)}`);
    return { kind: 'mistakes', mistakes };
  }
  if (list.length > MAX_ENDPOINT_SLOTS) {
    mistake([], `must have at most ${MAX_ENDPOINT_SLOTS} entries, got ${list.length}`);
    return { kind: 'mistakes', mistakes };
  }
  const entries = list.map((entry: unknown, index) => parseEntry(entry, index, context, mistake));
  const specs = entries.filter((spec) => spec !== null);
  reportShared(entries, mistake);
  return mistakes.length > 0 ? { kind: 'mistakes', mistakes } : { kind: 'endpoints', specs };
}

type Report = (path: ListPath, text: string) => void;

function parseEntry(entry: unknown, index: number, context: ListContext, report: Report): EndpointSpec | null {
  if (!isRecord(entry)) {
    report([index], `must be a map of fields, got ${showGot(entry)}`);
    return null;
  }
  const before = { failed: false };
  const mistake: Report = (path, text) => {
    before.failed = true;
    report([index, ...path], text);
  };
  for (const field of Object.keys(entry)) {
    if (FIELDS.includes(field)) continue;
    const nearest = nearestName(field, FIELDS);
    const known = nearest === null ? `known are ${FIELDS.join(', ')}` : `the nearest known field is ${nearest}`;
    mistake([field], `is unknown, ${known}`);
  }
  const address = parseAddress(entry.address, mistake);
  const models = parseModels(entry, mistake);
  const adapters = parseNames(entry.adapters ?? [], ['adapters'], mistake);
  const nRanks = parseRanks(entry.dataParallelSize ?? 1, mistake);
  const labels = parseLabels(entry.labels ?? {}, mistake);
  const name = entry.name ?? address?.text ?? 'unnamed';
  if (!isName(name)) mistake(['name'], `must be a text of 1 to ${MAX_NAME_LENGTH} characters, got ${showGot(name)}`);
  const kvEvents = parseKvEvents(entry, address, nRanks, context, mistake);
  if (before.failed || address === null || typeof name !== 'string') return null;
  return {
    name,
    address: address.text,
    models,
    adapters,
    dataParallelSize: nRanks,
    rank: null,
    kvEvents,
    labels,
    ready: true,
    incarnation: '',
  };
}

type Address = { readonly host: string; readonly port: number; readonly text: string };

/** `ip:port` in the spelling Envoy uses; a text that says why not. */
export function parseIpPort(text: string): Address | string {
  const parts = /^(?:\[([^\]]*)\]|([^:]*)):([^:]*)$/.exec(text);
  if (parts === null) {
    return isIPv6(text) || /^[0-9a-f]*:.*:/i.test(text) ? 'an IPv6 address needs brackets' : 'the port is missing';
  }
  const [, bracketed, plain = '', portText = ''] = parts;
  const port = Number(portText);
  if (!/^\d{1,5}$/.test(portText) || port < 1 || port > 65_535) return 'the port must be from 1 to 65535';
  if (bracketed !== undefined) {
    if (!isIPv6(bracketed)) return 'brackets must hold an IPv6 address';
    if (bracketed.includes('%')) return 'an IPv6 address must have no zone';
    const host = new SocketAddress({ address: bracketed, family: 'ipv6' }).address;
    if (host === '::') return 'it must name one machine, not all addresses of one';
    return { host: `[${host}]`, port, text: `[${host}]:${port}` };
  }
  if (!isIPv4(plain)) {
    return /^[0-9.]+$/.test(plain) || plain === ''
      ? 'it is no IPv4 address'
      : 'it must be an IP address, because Envoy compares addresses and names are not resolved';
  }
  if (plain === '0.0.0.0') return 'it must name one machine, not all addresses of one';
  return { host: plain, port, text: `${plain}:${port}` };
}

function parseAddress(raw: unknown, mistake: Report): Address | null {
  const parsed = typeof raw === 'string' ? parseIpPort(raw) : '';
  if (typeof parsed !== 'string') return parsed;
  const why = parsed === '' ? '' : `: ${parsed}`;
  mistake(['address'], `must be ip:port, got ${showGot(raw)}${why}`);
  return null;
}

function parseModels(entry: Record<string, unknown>, mistake: Report): readonly string[] {
  const { model, models } = entry;
  if (model !== undefined && models !== undefined) {
    mistake(['models'], 'must not be given together with model');
    return [];
  }
  if (models === undefined) {
    if (isName(model)) return [model];
    mistake(['model'], `must be a text of 1 to ${MAX_NAME_LENGTH} characters, got ${showGot(model)}`);
    return [];
  }
  const names = parseNames(models, ['models'], mistake);
  if (Array.isArray(models) && models.length === 0) mistake(['models'], 'must have at least one name, got []');
  return names;
}

function parseNames(raw: unknown, path: ListPath, mistake: Report): readonly string[] {
  if (!Array.isArray(raw)) {
    mistake(path, `must be a list of names, got ${showGot(raw)}`);
    return [];
  }
  raw.forEach((name: unknown, at) => {
    if (!isName(name))
      mistake([...path, at], `must be a text of 1 to ${MAX_NAME_LENGTH} characters, got ${showGot(name)}`);
  });
  return [...new Set(raw.filter(isName))];
}

function parseRanks(raw: unknown, mistake: Report): number {
  if (typeof raw === 'number' && Number.isInteger(raw) && raw >= 1 && raw <= MAX_RANKS) return raw;
  mistake(['dataParallelSize'], `must be an integer from 1 to ${MAX_RANKS}, got ${showGot(raw)}`);
  return 1;
}

function parseLabels(raw: unknown, mistake: Report): Readonly<Record<string, string>> {
  if (!isRecord(raw)) {
    mistake(['labels'], `must be a map of texts, got ${showGot(raw)}`);
    return {};
  }
  const pairs: [string, string][] = [];
  for (const [key, value] of Object.entries(raw)) {
    if (typeof value === 'object') mistake(['labels', key], `must be a text, got ${showGot(value)}`);
    else pairs.push([key, String(value)]);
  }
  return Object.fromEntries(pairs);
}

/** One source per data-parallel rank: vLLM adds the rank to both ports. */
function parseKvEvents(
  entry: Record<string, unknown>,
  address: Address | null,
  nRanks: number,
  context: ListContext,
  mistake: Report,
): readonly KvEventSource[] {
  const live = parseTcp(entry.kvEvents, 'kvEvents', nRanks, mistake);
  const replay = parseTcp(entry.replay, 'replay', nRanks, mistake);
  if (live === 'wrong' || replay === 'wrong' || address === null) return [];
  if (live === 'none' || (live === 'default' && context.kvPort === null)) {
    if (typeof replay === 'object') mistake(['replay'], 'must not be given where the endpoint publishes no events');
    return [];
  }
  const { host, port } = live === 'default' ? { host: address.host, port: context.kvPort } : live;
  if (port === null || port === 'listen') {
    return Array.from({ length: nRanks }, (_, rank) => ({
      endpoint: topicOf(address.text, rank),
      replayEndpoint: typeof replay === 'object' ? `tcp://${replay.host}:${replay.port + rank}` : null,
    }));
  }
  // Beside a publisher on another port, a guessed replay socket could be that of another pod.
  const isUsual = port === context.kvPort;
  const replayBase =
    replay === 'default' ? (isUsual ? { host, port: context.replayPort } : null) : replay === 'none' ? null : replay;
  if (replayBase !== null && replayBase.host === host && Math.abs(replayBase.port - port) < nRanks) {
    const got = `tcp://${replayBase.host}:${replayBase.port}`;
    mistake(
      entry.replay === undefined ? ['dataParallelSize'] : ['replay'],
      `must leave the ports of kvEvents (${port} to ${port + nRanks - 1}) free for replay, got ${got}`,
    );
    return [];
  }
  const lastPort = Math.max(port, replayBase?.port ?? 0) + nRanks - 1;
  if (lastPort > 65_535) {
    mistake(['dataParallelSize'], `must keep every port below 65536, got ${lastPort} for the last rank`);
    return [];
  }
  return Array.from({ length: nRanks }, (_, rank) => ({
    endpoint: `tcp://${host}:${port + rank}`,
    replayEndpoint: replayBase === null ? null : `tcp://${replayBase.host}:${replayBase.port + rank}`,
  }));
}

/** How a publisher that connects to us is told from others; see `KvEventSource`. */
export function topicOf(address: string, rank: number): string {
  return rank === 0 ? `kv@${address}` : `kv@${address}#${rank}`;
}

type Tcp = { readonly host: string; readonly port: number };

function parseTcp(raw: unknown, field: string, nRanks: number, mistake: Report): Tcp | 'none' | 'default' | 'wrong' {
  if (raw === undefined) return 'default';
  if (raw === 'none') return 'none';
  const rest = typeof raw === 'string' && raw.startsWith('tcp://') ? raw.slice('tcp://'.length) : null;
  const parsed = rest === null ? '' : parseIpPort(rest);
  if (typeof parsed !== 'string') return parsed;
  // What an engine is told to bind is a frequent thing to copy here.
  const why = rest?.startsWith('*')
    ? ': * is what the engine binds, not where it can be reached'
    : parsed && `: ${parsed}`;
  mistake([field], `must be tcp://ip:port or none, got ${showGot(raw)}${why}`);
  return 'wrong';
}

/** Two endpoints with one address, name or publisher: the second would be believed to hold what the first holds. */
function reportShared(entries: readonly (EndpointSpec | null)[], report: Report): void {
  const owner = new Map<string, EndpointSpec>();
  const claim = (key: string, spec: EndpointSpec, path: ListPath, text: (other: string) => string): void => {
    const other = owner.get(key);
    if (other === undefined) owner.set(key, spec);
    else if (other !== spec) report(path, text(other.name));
  };
  entries.forEach((spec, index) => {
    if (spec === null) return;
    claim(
      `address ${spec.address}`,
      spec,
      [index, 'address'],
      (other) => `must differ from every other, got ${spec.address} of ${other}`,
    );
    claim(
      `name ${spec.name}`,
      spec,
      [index, 'name'],
      () => `must differ from every other, got ${showGot(spec.name)} twice`,
    );
    for (const { endpoint, replayEndpoint } of spec.kvEvents) {
      const shared = (socket: string) => (other: string) =>
        `must be a publisher of its own, got ${socket} of ${other}; give its address, or none`;
      claim(`socket ${endpoint}`, spec, [index, 'kvEvents'], shared(endpoint));
      if (replayEndpoint !== null) claim(`socket ${replayEndpoint}`, spec, [index, 'replay'], shared(replayEndpoint));
    }
  });
}

const MAX_NAME_LENGTH = 256;

function isName(raw: unknown): raw is string {
  return (
    typeof raw === 'string' && raw.length >= 1 && raw.length <= MAX_NAME_LENGTH && !/[\u0000-\u001f\u007f]/.test(raw)
  );
}

function isRecord(raw: unknown): raw is Record<string, unknown> {
  return typeof raw === 'object' && raw !== null && !Array.isArray(raw);
}

/** `endpoints[2].address` */
function label(root: string, path: ListPath): string {
  return path.reduce<string>((text, part) => (typeof part === 'number' ? `${text}[${part}]` : `${text}.${part}`), root);
}
