/**
 * One short completion sent twice to an engine, under a salt of its own so that it shares blocks with nobody: are its
 * blocks announced, is the salt visible, does the second one find them, does the engine report that? The only check that
 * makes an engine work.
 */
import type { Clock } from '../clock.ts';
import type { EndpointSpec } from '../endpoints/endpoint.ts';
import { createHttpClient } from '../http/http-client.ts';
import type { SourceWatch } from './event-checks.ts';
import { EVENT_ARGUMENTS } from './event-findings.ts';
import { ok, problem, warning, type Finding } from './finding.ts';

export type ProbeDeps = {
  readonly clock: Clock;
  /** What lets us in. */
  headers(): Readonly<Record<string, string>>;
  /** A name that no other probe has. */
  readonly salt: string;
};

export type ProbeOptions = { readonly completionTimeoutMs: number; readonly eventTimeoutMs: number };

/** More than two blocks of any usual size. */
const N_WORDS = 256;
const ANSWER_MAX_BYTES = 1 << 20;

/** @param watches of the publishers that answer, one per data-parallel rank */
export async function probeEndpoint(
  { clock, headers, salt }: ProbeDeps,
  endpoint: EndpointSpec,
  watches: readonly SourceWatch[],
  { completionTimeoutMs, eventTimeoutMs }: ProbeOptions,
): Promise<Finding[]> {
  const client = createHttpClient(clock);
  const body = Buffer.from(
    JSON.stringify({
      model: endpoint.models[0],
      prompt: Array.from({ length: N_WORDS }, (_, i) => `${salt.slice(-4)} ${i}`).join(' '),
      max_tokens: 1,
      temperature: 0,
      cache_salt: salt,
    }),
  );
  const complete = async (): Promise<Usage | string> => {
    const limits = { timeoutMs: completionTimeoutMs, responseMaxBytes: ANSWER_MAX_BYTES, signal: null };
    const request = { method: 'POST', path: '/v1/completions', headers: headers(), body } as const;
    return client.exchange(`http://${endpoint.address}`, request, limits, (answer) => {
      if (answer.kind !== 'answer') return 'message' in answer ? answer.message : 'no answer in time';
      return answer.status === 200 ? usageOf(answer.body) : `status ${answer.status}`;
    });
  };
  try {
    const nBefore = watches.map(({ observed }) => observed.nStored);
    const first = await complete();
    if (typeof first === 'string') {
      const advice = 'send it a completion by hand; an API key is taken from tokenizer.auth.file';
      return [problem('cache', `a completion fails: ${first}`, advice)];
    }
    const isAnnounced = (): boolean => watches.some(({ observed }, i) => observed.nStored > nBefore[i]!);
    if (watches.length > 0) await watches[0]!.until(isAnnounced, eventTimeoutMs);
    const findings = watches.length === 0 ? [] : [announcedFinding(first, isAnnounced(), watches, salt)];
    const second = await complete();
    return [...findings, ...(typeof second === 'string' ? [] : [cacheFinding(second)])];
  } finally {
    client.close();
  }
}

function announcedFinding(
  { promptTokens }: Usage,
  isAnnounced: boolean,
  watches: readonly SourceWatch[],
  salt: string,
): Finding {
  if (!isAnnounced) {
    return problem(
      'events',
      `a completion of ${promptTokens} tokens brought no event`,
      `start vLLM with ${EVENT_ARGUMENTS}; is this publisher that of another engine (check the port)?`,
    );
  }
  if (watches.some(({ observed }) => observed.hasSalt(salt))) {
    return ok('salts', 'a completion brought events, its salt among them');
  }
  return warning(
    'salts',
    'a completion brought events without its salt',
    'update the engine (vLLM 0.17 or newer), or expect prompts that differ in salts only to look alike',
  );
}

function cacheFinding({ promptTokens, cachedTokens }: Usage): Finding {
  if (cachedTokens === null) {
    return warning(
      'cache',
      'answers do not report cached tokens',
      'start vLLM with --enable-prompt-tokens-details to compare predicted with observed hits',
    );
  }
  if (cachedTokens > 0) return ok('cache', `the second time ${cachedTokens} of ${promptTokens} tokens were cached`);
  return problem(
    'cache',
    `the second time none of ${promptTokens} tokens were cached`,
    'start vLLM with --enable-prefix-caching',
  );
}

type Usage = { readonly promptTokens: number; readonly cachedTokens: number | null };

function usageOf(body: Buffer): Usage | string {
  try {
    const { usage } = JSON.parse(body.toString('utf8')) as {
      usage: { prompt_tokens: number; prompt_tokens_details?: { cached_tokens?: number } | null };
    };
    return { promptTokens: usage.prompt_tokens, cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? null };
  } catch {
    return 'an answer without usage';
  }
}
