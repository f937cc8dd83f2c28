/**
 * Examines a fleet: every endpoint over HTTP, its tokenizer, its KV events, and whether all that serve a model agree.
 * Changes nothing and, unless told to probe, makes no engine compute. Who the endpoints are is found out elsewhere.
 */
import { randomBytes } from 'node:crypto';
import type { Clock } from '../clock.ts';
import type { EndpointSpec } from '../endpoints/endpoint.ts';
import { errorText } from '../errors.ts';
import { isTopic } from '../kvevents/topic-listeners.ts';
import { createZmtp, type Zmtp } from '../kvevents/zmtp.ts';
import { createHttpGet, type Get } from '../http/http-get.ts';
import type { OnTokenizerCall, StartableTokenizer } from '../tokenizer/sharing-tokenizer.ts';
import { withoutCredentials } from '../wording.ts';
import { watchSource, type SourceWatch } from './event-checks.ts';
import {
  announcedReplayFinding,
  connectionFinding,
  listenedFinding,
  noSourceFinding,
  observedFindings,
  replayFinding,
} from './event-findings.ts';
import { problem, warning, type Finding, type Report, type Subject } from './finding.ts';
import { checkHttp, type AnnouncedSources, type HttpFindings } from './http-checks.ts';
import { probeEndpoint } from './probe.ts';
import { checkTokenizer, compareTokens, type NamedTokens, type ProbeTokens } from './tokenizer-checks.ts';

export type DoctorDeps = {
  readonly clock: Clock;
  /** One that asks nobody else. */
  createTokenizer(asked: AskedTokenizer, onCall: OnTokenizerCall): StartableTokenizer;
  /** What lets us in at the engines. */
  engineHeaders(): Readonly<Record<string, string>>;
  onProgress(nDone: number, nAll: number): void;
};

/** An engine's own, a dedicated one, or the model's files. */
export type AskedTokenizer =
  | { readonly kind: 'engine'; readonly url: string }
  | { readonly kind: 'dedicated'; readonly url: string }
  | { readonly kind: 'local' };

export type DoctorOptions = {
  readonly kvEvents: 'on' | 'off';
  /** Whom `serve` would ask for tokens: nobody, the endpoints themselves, these URLs, or the model's own files. */
  readonly tokenizer: 'none' | 'endpoints' | 'local' | readonly string[];
  readonly tokenizerBudgetMs: number;
  /** Reads what publishers still hold. */
  readonly replay: 'asked' | 'not asked';
  /** Sends every endpoint a completion. */
  readonly probe: 'sent' | 'not sent';
  readonly timing?: Partial<DoctorTiming>;
};

export type DoctorTiming = {
  readonly httpTimeoutMs: number;
  readonly connectTimeoutMs: number;
  readonly replayTimeoutMs: number;
  /** How long events are waited for that nobody asked for. */
  readonly listenMs: number;
  readonly completionTimeoutMs: number;
  readonly eventTimeoutMs: number;
};

const TIMING: DoctorTiming = {
  httpTimeoutMs: 5_000,
  connectTimeoutMs: 5_000,
  replayTimeoutMs: 3_000,
  listenMs: 1_000,
  completionTimeoutMs: 60_000,
  eventTimeoutMs: 5_000,
};
/** Endpoints examined at once. */
const MAX_AT_ONCE = 16;
/** Metrics pages of engines are up to a few hundred KB. */
const PAGE_MAX_BYTES = 8 << 20;
const NO_TOKENS: ProbeTokens = { chat: null, completions: null };

export async function examineFleet(
  deps: DoctorDeps,
  endpoints: readonly EndpointSpec[],
  options: DoctorOptions,
): Promise<readonly Report[]> {
  const timing = { ...TIMING, ...options.timing };
  const { get, close } = createHttpGet(deps.clock, { timeoutMs: timing.httpTimeoutMs, maxBytes: PAGE_MAX_BYTES });
  const zmtp = createZmtp(deps.clock);
  const tools: Tools = { ...deps, get, zmtp, options, timing };
  let nDone = 0;
  try {
    const examined = await inTurn(endpoints, MAX_AT_ONCE, async (endpoint) => {
      const one = await examineEndpoint(tools, endpoint);
      deps.onProgress(++nDone, endpoints.length);
      return one;
    });
    const models = [...new Set(endpoints.map(({ models: [model] }) => model!))];
    const dedicated = await inTurn(models, MAX_AT_ONCE, (model) => examineDedicated(tools, model));
    return [...fleetReports(options), ...agreed(models, examined, dedicated.flat())];
  } finally {
    close();
  }
}

type Tools = DoctorDeps & {
  readonly get: Get;
  readonly zmtp: Zmtp;
  readonly options: DoctorOptions;
  readonly timing: DoctorTiming;
};

type Examined = {
  readonly subject: NonNullable<Subject>;
  readonly findings: readonly Finding[];
  readonly tokens: ProbeTokens;
};

function fleetReports({ kvEvents, tokenizer }: DoctorOptions): Report[] {
  const findings: Finding[] = [];
  if (kvEvents === 'off') {
    const text = 'kvEvents.enabled is false: endpoints are chosen by what was sent to them';
    findings.push(warning('events', text, 'set it to true where engines publish KV events'));
  }
  if (tokenizer === 'none') {
    const text = 'tokenizer.api is none: no request is decided with exact tokens';
    findings.push(warning('tokenizer', text, 'set it to auto, or to local with tokenizer.file'));
  }
  return findings.length === 0 ? [] : [{ subject: null, findings }];
}

async function examineEndpoint(tools: Tools, endpoint: EndpointSpec): Promise<Examined> {
  const subject = { name: endpoint.name, address: endpoint.address, models: endpoint.models };
  const watches =
    tools.options.kvEvents === 'off' ? [] : endpoint.kvEvents.map((source) => watchSource(tools, source, tools.timing));
  try {
    const http = await checkHttp(tools, endpoint);
    // Where it serves other models, every further question would fail for that alone.
    const isAsked = tools.options.tokenizer !== 'none' && http.servesModel;
    // Dedicated tokenizers are compared with what the engines themselves read.
    const asked = isAsked
      ? await tokensOf(tools, endpoint.models[0]!, { kind: 'engine', url: `http://${endpoint.address}` })
      : null;
    const tokenizer = asked === null ? [] : asked.findings.filter((finding) => isItsTask(tools.options, finding));
    const events = tools.options.kvEvents === 'off' ? [] : await examineEvents(tools, endpoint, watches, http);
    return { subject, findings: [...http.findings, ...tokenizer, ...events], tokens: asked?.tokens ?? NO_TOKENS };
  } finally {
    for (const watch of watches) watch.close();
  }
}

/** Where others tokenize, an engine that does not is no trouble: it is only asked for comparison. */
function isItsTask({ tokenizer }: DoctorOptions, { status }: Finding): boolean {
  return tokenizer === 'endpoints' || status === 'ok';
}

async function examineEvents(
  tools: Tools,
  endpoint: EndpointSpec,
  watches: readonly SourceWatch[],
  { servesModel, announced, blockSizeTokens }: HttpFindings,
): Promise<Finding[]> {
  const { timing, options, clock } = tools;
  const none = noSourceFinding(endpoint, announced);
  const sources = await Promise.all(watches.map((watch, rank) => examineSource(tools, watch, rank, announced)));
  const findings = [...(none === null ? [] : [none]), ...sources.flatMap((one) => one.findings)];
  const connected = watches.filter((_, rank) => sources[rank]!.isConnected);
  if (options.probe === 'sent' && servesModel) {
    const salt = `warmpath-doctor-${randomBytes(8).toString('hex')}`;
    findings.push(...(await probeEndpoint({ clock, headers: tools.engineHeaders, salt }, endpoint, connected, timing)));
  } else if (options.replay === 'not asked') {
    await Promise.all(connected.map((watch) => watch.until(({ nStored }) => nStored > 0, timing.listenMs)));
  }
  const heard = watches.filter((watch, rank) => sources[rank]!.isConnected || watch.observed.nBatches > 0);
  return [...findings, ...heard.flatMap(({ observed }) => observedFindings(observed, blockSizeTokens))];
}

async function examineSource(
  { options }: Tools,
  watch: SourceWatch,
  rank: number,
  announced: AnnouncedSources,
): Promise<{ readonly findings: readonly Finding[]; readonly isConnected: boolean }> {
  const { source } = watch;
  const isConnected = await watch.connected();
  const reached = isTopic(source.endpoint)
    ? listenedFinding(source)
    : connectionFinding(source, rank, isConnected, announced);
  // Where nobody publishes, nobody replays; of a publisher that connects to us that is not known.
  const isAsked = source.replayEndpoint !== null && (isConnected || isTopic(source.endpoint));
  const answer = isAsked ? await watch.replay(options.replay === 'asked' ? 'oldest' : 'nothing') : null;
  const elsewhere = answer === null || answer.kind === 'ended' ? null : announcedReplayFinding(source, rank, announced);
  const replay = elsewhere ?? replayFinding(source, answer);
  return { findings: replay === null ? [reached] : [reached, replay], isConnected };
}

async function tokensOf(
  tools: Tools,
  model: string,
  asked: AskedTokenizer,
): Promise<Pick<Examined, 'findings' | 'tokens'>> {
  try {
    return await checkTokenizer({
      create: (onCall) => tools.createTokenizer(asked, onCall),
      model,
      budgetMs: tools.options.tokenizerBudgetMs,
      nowMs: () => tools.clock.nowMs(),
    });
  } catch (error) {
    const text = errorText(error);
    return { findings: [problem('tokenizer', text, 'see tokenizer.* in the configuration')], tokens: NO_TOKENS };
  }
}

/** Tokenizers that are no endpoints. */
async function examineDedicated(tools: Tools, model: string): Promise<(Examined & { readonly model: string })[]> {
  const { tokenizer } = tools.options;
  if (tokenizer === 'none' || tokenizer === 'endpoints') return [];
  const all: readonly AskedTokenizer[] =
    tokenizer === 'local' ? [{ kind: 'local' }] : tokenizer.map((url) => ({ kind: 'dedicated', url }));
  return inTurn(all, MAX_AT_ONCE, async (asked) => {
    const name = asked.kind === 'local' ? 'tokenizer.file' : withoutCredentials(asked.url);
    return { subject: { name, address: null, models: [model] }, model, ...(await tokensOf(tools, model, asked)) };
  });
}

/** What was found of each, with what differs between those that answer for one model. */
function agreed(
  models: readonly string[],
  endpoints: readonly Examined[],
  dedicated: readonly (Examined & { readonly model: string })[],
): Report[] {
  const different = new Map<Examined, Finding>();
  for (const model of models) {
    // Engines first: of two that differ the tokenizer is wrong.
    const of = [
      ...endpoints.filter(({ subject }) => subject.models[0] === model),
      ...dedicated.filter((one) => one.model === model),
    ];
    const named: NamedTokens[] = of.map(({ subject, tokens }) => ({ name: subject.name, tokens }));
    const findings = compareTokens(named);
    for (const one of of) {
      const finding = findings.get(one.subject.name);
      if (finding !== undefined) different.set(one, finding);
    }
  }
  return [...endpoints, ...dedicated].map((one) => {
    const finding = different.get(one);
    return { subject: one.subject, findings: finding === undefined ? one.findings : [...one.findings, finding] };
  });
}

/** Results in the order of the items, so many at once. */
async function inTurn<T, R>(items: readonly T[], nAtOnce: number, work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = new Array<R>(items.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) {
      const at = next++;
      results[at] = await work(items[at]!);
    }
  };
  await Promise.all(Array.from({ length: Math.min(nAtOnce, items.length) }, worker));
  return results;
}
