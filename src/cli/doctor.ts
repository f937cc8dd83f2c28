/** `warmpath doctor`: asks every endpoint what works and what does not, and says what to change. Changes nothing. */
import { readFileSync } from 'node:fs';
import { systemClock } from '../clock.ts';
import type { Config } from '../config.ts';
import { examineFleet, type AskedTokenizer, type DoctorOptions } from '../doctor/doctor.ts';
import { count, problem, warning, type Finding, type FindingStatus, type Report } from '../doctor/finding.ts';
import type { EndpointSpec } from '../endpoints/endpoint.ts';
import { createStaticEndpoints } from '../endpoints/static-endpoints.ts';
import { errorText } from '../errors.ts';
import { createKubernetesEndpoints } from '../kubernetes/kubernetes-endpoints.ts';
import { silentLog } from '../log.ts';
import { createLocalTokenizer } from '../tokenizer/local-tokenizer.ts';
import { createServerAccess } from '../tokenizer/server-access.ts';
import type { OnTokenizerCall, StartableTokenizer } from '../tokenizer/sharing-tokenizer.ts';
import { createVllmTokenizer } from '../tokenizer/vllm-tokenizer.ts';
import { endpointDefaults, loadOptions, type OptionsIo } from './options.ts';
import { aborted } from './arguments.ts';

const HELP = `usage: warmpath doctor [--config FILE] [--set key=value]… [--replay] [--probe] [--json]

Asks every endpoint of the configuration (static or Kubernetes) what warmpath serve relies on: is it reachable, does it
serve its model, do tokenizers answer and agree, do KV events and replays arrive, are salts and adapters visible, are
its metrics known, is its clock right. Says what to change. Starts nothing and changes nothing.

  --replay   also read the events that publishers still hold: block sizes, salts, forms, without a request
  --probe    also send every endpoint a short completion, twice, and wait for its events
  --json     one JSON line per finding, and a last one with the counts

Exit codes: 0 no problem (warnings there may be), 1 a problem, 2 wrong usage or configuration.`;

export type DoctorIo = OptionsIo & {
  /** Of the standard error: where progress goes. */
  readonly isTerminal: boolean;
  readonly signal: AbortSignal;
};

/** How long the first list of a cluster is waited for. */
const DISCOVERY_TIMEOUT_MS = 20_000;

/** @returns exit code: 0 no problem, 1 a problem or interrupted, 2 wrong usage or configuration */
export async function runDoctor(
  args: readonly string[],
  io: DoctorIo,
  timing: DoctorOptions['timing'] = {},
): Promise<number> {
  const flags = ['replay', 'probe', 'json'];
  const options = loadOptions('doctor', HELP, args, io, (path) => readFileSync(path, 'utf8'), flags);
  if (options.kind === 'exit') return options.code;
  const { config, notices } = options;
  for (const notice of notices) io.stderr(`warmpath doctor: ${notice}`);
  const reports = await Promise.race([examine(config, options.flags, io, timing), aborted(io.signal)]);
  if (reports === undefined) {
    io.stderr('warmpath doctor: interrupted');
    return 1;
  }
  const lines = options.flags.has('json') ? jsonLines(reports) : textLines(reports);
  for (const line of lines) io.stdout(line);
  return countOf(reports, 'problem') > 0 ? 1 : 0;
}

async function examine(
  config: Config,
  flags: ReadonlySet<string>,
  io: DoctorIo,
  timing: DoctorOptions['timing'],
): Promise<readonly Report[]> {
  const { endpoints, findings } = await discover(config);
  const { urls, api, auth, budgetMs } = config.tokenizer;
  const whose = api === 'none' || api === 'local' ? api : urls.length > 0 ? urls : 'endpoints';
  const engineAccess = whose === 'endpoints' ? auth : { ...auth, file: null };
  const access = createServerAccess(
    { clock: systemClock, log: silentLog },
    { auth: engineAccess, tls: { caFile: null } },
  );
  try {
    await access.start();
  } catch (error) {
    findings.push(problem('tokenizer', errorText(error), 'let the file be there and readable'));
  }
  const reports = await examineFleet(
    {
      clock: systemClock,
      engineHeaders: () => access.headers(),
      createTokenizer: (asked, onCall) => createTokenizer(config, engineAccess, asked, onCall),
      onProgress: (nDone, nAll) => {
        if (io.isTerminal) io.stderr(`warmpath doctor: ${nDone} of ${count(nAll, 'endpoint')} examined`);
      },
    },
    endpoints,
    {
      kvEvents: config.kvEvents.enabled ? 'on' : 'off',
      tokenizer: whose,
      tokenizerBudgetMs: budgetMs,
      replay: flags.has('replay') ? 'asked' : 'not asked',
      probe: flags.has('probe') ? 'sent' : 'not sent',
      timing,
    },
  );
  return findings.length === 0 ? reports : [{ subject: null, findings }, ...reports];
}

function createTokenizer(
  { tokenizer }: Config,
  engineAccess: Config['tokenizer']['auth'],
  asked: AskedTokenizer,
  onCall: OnTokenizerCall,
): StartableTokenizer {
  const deps = { clock: systemClock, log: silentLog, onCall };
  // Nobody waits for a turn behind anybody, and nothing is remembered between two questions.
  const common = { ...tokenizer, budgetMs: tokenizer.timeoutMs, cacheMaxBytes: 0 };
  if (asked.kind === 'local') return createLocalTokenizer(deps, { ...common, file: tokenizer.file! });
  const api = tokenizer.api === 'local' || tokenizer.api === 'none' ? 'auto' : tokenizer.api;
  const auth = asked.kind === 'engine' ? engineAccess : tokenizer.auth;
  return createVllmTokenizer(deps, { ...common, api, auth, hedging: false, urls: [asked.url] });
}

type Discovered = { readonly endpoints: readonly EndpointSpec[]; readonly findings: Finding[] };

/** Whom `serve` would find, and what keeps it from finding more. */
async function discover(config: Config): Promise<Discovered> {
  const findings: Finding[] = [];
  let endpoints: readonly EndpointSpec[] = [];
  let trouble: string | null = null;
  const deps = {
    log: silentLog,
    onEndpoints: (specs: readonly EndpointSpec[]) => void (endpoints = specs),
    onProblem: (text: string | null) => void (trouble = text),
  };
  const ports = endpointDefaults(config);
  const { mode, file, endpoints: inline, kubernetes } = config.discovery;
  if (mode === 'static') {
    const list = createStaticEndpoints(deps, { file, inline, ...ports });
    await list.start();
    await list.stop();
    if (endpoints.length === 0) {
      findings.push(problem('fleet', 'there is no endpoint', 'name some in discovery.file or discovery.endpoints'));
    }
    return { endpoints, findings };
  }
  const cluster = createKubernetesEndpoints(
    {
      ...deps,
      clock: systemClock,
      onObjectives: () => undefined,
      onRelist: () => undefined,
      onFailure: () => undefined,
    },
    { ...kubernetes, inferenceObjectives: 'off', ...ports },
  );
  const late = new Promise<string>((resolve) => {
    systemClock.after(DISCOVERY_TIMEOUT_MS, () => resolve('the API server does not answer in time'));
  });
  const failed = await Promise.race([cluster.start().then(() => null, errorText), late]);
  for (const { name, reason } of cluster.excluded()) {
    findings.push(
      warning('fleet', `pod ${name} is no endpoint: ${reason}`, 'docs/operations.md says what a pod needs'),
    );
  }
  await cluster.stop();
  for (const { name } of endpoints.filter(({ ready }) => !ready)) {
    findings.push(
      warning('fleet', `pod ${name} is not ready`, 'it gets no request until it is; nothing was asked of it'),
    );
  }
  const why = trouble ?? failed;
  if (why !== null) {
    findings.push(problem('fleet', why, 'check discovery.kubernetes.*, labels and the Role of the service account'));
  } else if (endpoints.length === 0) {
    findings.push(
      problem('fleet', 'there is no endpoint', 'check discovery.kubernetes.labelSelector and labels of pods'),
    );
  }
  return { endpoints: endpoints.filter(({ ready }) => ready), findings };
}

function countOf(reports: readonly Report[], status: FindingStatus): number {
  return reports.flatMap(({ findings }) => findings).filter((finding) => finding.status === status).length;
}

function counts(reports: readonly Report[]): {
  readonly ok: number;
  readonly warnings: number;
  readonly problems: number;
} {
  return { ok: countOf(reports, 'ok'), warnings: countOf(reports, 'warning'), problems: countOf(reports, 'problem') };
}

function jsonLines(reports: readonly Report[]): string[] {
  const findings = reports.flatMap(({ subject, findings: found }) =>
    found.map((finding) =>
      JSON.stringify({ name: subject?.name ?? null, address: subject?.address ?? null, ...finding }),
    ),
  );
  return [...findings, JSON.stringify(counts(reports))];
}

function textLines(reports: readonly Report[]): string[] {
  const { ok, warnings, problems } = counts(reports);
  return [
    ...reports.flatMap(({ subject, findings }) => [heading(subject), ...findings.flatMap(findingLines), '']),
    `${ok} ok, ${count(warnings, 'warning')}, ${count(problems, 'problem')}`,
  ];
}

function heading(subject: Report['subject']): string {
  if (subject === null) return 'fleet';
  const address = subject.address === null || subject.address === subject.name ? '' : `  ${subject.address}`;
  return `${subject.name}${address}  ${subject.models.join(', ')}`;
}

function findingLines({ status, check, text, advice }: Finding): string[] {
  const indent = ' '.repeat(22);
  return [`  ${status.padEnd(8)} ${check.padEnd(10)} ${text}`, ...(advice === null ? [] : [`${indent}→ ${advice}`])];
}
