/**
 * What an endpoint says over HTTP: whether it answers, what it serves, what its metrics name, what it says of its own
 * events, and how late its clock is. Only reads.
 */
import type { Clock } from '../clock.ts';
import type { EndpointSpec } from '../endpoints/endpoint.ts';
import { parseModels, type ServedModels } from '../load/engine-models.ts';
import type { Get, GetAnswer } from '../http/http-get.ts';
import { createMetricsReader, type EngineReading } from '../load/metrics-page.ts';
import { ok, problem, warning, type Finding } from './finding.ts';

/** What an engine says it publishes, one entry per data-parallel rank. Undefined: it does not tell (vLLM before 0.31). */
export type AnnouncedSources =
  readonly { readonly rank: number; readonly port: number | null; readonly replayPort: number | null }[] | undefined;

export type HttpFindings = {
  readonly findings: readonly Finding[];
  readonly isReachable: boolean;
  /** False where it is known to serve others only. */
  readonly servesModel: boolean;
  /** Of the engine's metrics. */
  readonly blockSizeTokens: number | null;
  readonly announced: AnnouncedSources;
};

/** A Date header has no fractions of a second, and the way takes its time. */
const CLOCK_TOLERANCE_MS = 2_000;

export async function checkHttp(
  { get, clock }: { readonly get: Get; readonly clock: Clock },
  endpoint: EndpointSpec,
): Promise<HttpFindings> {
  const origin = `http://${endpoint.address}`;
  const askedUnixMs = clock.unixMs();
  const models = await get(origin, '/v1/models');
  const answeredUnixMs = clock.unixMs();
  const unreachable = whyUnreachable(origin, models);
  if (unreachable !== null) {
    return {
      findings: [unreachable],
      isReachable: false,
      servesModel: false,
      blockSizeTokens: null,
      announced: undefined,
    };
  }
  const [version, page, sources] = await Promise.all([
    get(origin, '/version'),
    get(origin, '/metrics'),
    get(origin, '/kv_event_sources'),
  ]);
  const reading = page.kind === 'page' ? createMetricsReader()(page.body) : null;
  const findings = [
    ok('http', `${origin} answers${versionText(version)}`),
    ...modelFindings(endpoint, models),
    metricsFinding(page, reading),
  ];
  if (models.kind === 'page' && models.date !== null) {
    const finding = clockFinding(Date.parse(models.date), askedUnixMs, answeredUnixMs);
    if (finding !== null) findings.push(finding);
  }
  return {
    findings,
    isReachable: true,
    servesModel: !findings.some(({ check, status }) => check === 'model' && status === 'problem'),
    blockSizeTokens: reading?.blockSizeTokens ?? null,
    announced: announcedSources(sources),
  };
}

function whyUnreachable(origin: string, answer: GetAnswer): Finding | null {
  const check = 'the address and port of the endpoint, whether the engine has started, NetworkPolicies in between';
  switch (answer.kind) {
    case 'refused':
      return problem('http', `nobody listens at ${origin}`, `check ${check}`);
    case 'timeout':
      return problem('http', `${origin} does not answer in time`, `check ${check}`);
    case 'failed':
      return problem('http', `${origin} does not speak HTTP: ${answer.message}`, `check ${check}`);
    default:
      return null;
  }
}

function versionText(answer: GetAnswer): string {
  if (answer.kind !== 'page') return '';
  const version = fieldOf(jsonOf(answer.body), 'version');
  return typeof version === 'string' && version.length <= 64 ? `, version ${version}` : '';
}

function modelFindings(endpoint: EndpointSpec, answer: GetAnswer): Finding[] {
  const served = answer.kind === 'page' ? parseModels(answer.body) : null;
  if (served === null) {
    const got = answer.kind === 'status' ? `answers ${answer.status}` : 'does not answer with a list of models';
    const advice =
      answer.kind === 'status' && answer.status === 401
        ? 'the engine asks for an API key: its adapters are known only as far as the endpoint names them'
        : 'an OpenAI-compatible engine lists its models there; check the port of the endpoint';
    return [warning('model', `GET /v1/models ${got}`, advice)];
  }
  return [modelFinding(endpoint, served), ...adapterFindings(endpoint, served)];
}

function modelFinding({ models }: EndpointSpec, served: ServedModels): Finding {
  const missing = models.filter((name) => !served.models.includes(name));
  if (missing.length === 0) return ok('model', `serves ${models.join(', ')}`);
  return problem(
    'model',
    `does not serve ${missing.join(', ')}, but ${served.models.join(', ')}`,
    'name the model as the engine does, or start the engine with --served-model-name',
  );
}

function adapterFindings({ adapters }: EndpointSpec, served: ServedModels): Finding[] {
  const names = served.adapters.map(({ name }) => name);
  const missing = adapters.filter((name) => !names.includes(name));
  if (missing.length > 0) {
    const text = `adapters not loaded: ${missing.join(', ')}`;
    return [warning('model', text, 'load them, or take them out of the endpoint: requests for them fail there')];
  }
  return names.length === 0 ? [] : [ok('model', `adapters ${names.join(', ')}`)];
}

function metricsFinding(page: GetAnswer, reading: EngineReading | null): Finding {
  const blind = 'its load is then known from what goes through this Warmpath only';
  if (page.kind !== 'page') {
    const got = page.kind === 'status' ? `answers ${page.status}` : `cannot be read (${page.kind})`;
    return warning('metrics', `GET /metrics ${got}`, `let it answer (SGLang: --enable-metrics); ${blind}`);
  }
  if (reading === null) {
    return warning('metrics', 'GET /metrics names no engine known here', `vLLM, SGLang, TensorRT-LLM are; ${blind}`);
  }
  const fields = ['running', 'waiting', 'kvUsage', 'nBlocks', 'blockSizeTokens'] as const;
  const missing = fields.filter((field) => reading[field] === null);
  if (missing.length === 0) return ok('metrics', `metrics of ${reading.engine} read`);
  return warning('metrics', `metrics of ${reading.engine} do not tell ${missing.join(', ')}`, `look at them; ${blind}`);
}

function clockFinding(theirUnixMs: number, askedUnixMs: number, answeredUnixMs: number): Finding | null {
  if (Number.isNaN(theirUnixMs)) return null;
  // Truncated to a second: it was between this and a second more.
  const aheadMs = theirUnixMs - answeredUnixMs;
  const behindMs = askedUnixMs - (theirUnixMs + 1000);
  if (aheadMs <= CLOCK_TOLERANCE_MS && behindMs <= CLOCK_TOLERANCE_MS) return ok('clock', 'clocks agree');
  const text = aheadMs > 0 ? `${seconds(aheadMs)} ahead of` : `${seconds(behindMs)} behind`;
  return warning(
    'clock',
    `its clock is ${text} this one`,
    'let both machines follow a time server; routing does not mind, the lag of KV events is measured wrongly',
  );
}

function seconds(ms: number): string {
  return `${Math.round(ms / 1000)} s`;
}

function announcedSources(answer: GetAnswer): AnnouncedSources {
  const byRank = answer.kind === 'page' ? jsonOf(answer.body) : null;
  if (typeof byRank !== 'object' || byRank === null || Array.isArray(byRank)) return undefined;
  return Object.entries(byRank)
    .filter(([rank, source]) => /^\d+$/.test(rank) && fieldOf(source, 'enable_kv_cache_events') !== false)
    .map(([rank, source]) => ({
      rank: Number(rank),
      port: portOf(fieldOf(source, 'endpoint')),
      replayPort: portOf(fieldOf(source, 'replay_endpoint')),
    }));
}

function portOf(endpoint: unknown): number | null {
  const digits = typeof endpoint === 'string' ? /:(\d{1,5})$/.exec(endpoint)?.[1] : undefined;
  return digits === undefined ? null : Number(digits);
}

function jsonOf(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'));
  } catch {
    return null;
  }
}

function fieldOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined;
}
