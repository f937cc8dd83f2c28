/**
 * Whether a tokenizer answers, how fast, and whether all that answer for a model agree: a router that reads other tokens
 * than the engine predicts hits that do not come. Asks with the clients `serve` asks with.
 */
import { parseRequest, type InferenceRequest } from '../openai/request.ts';
import type { OnTokenizerCall, StartableTokenizer, TokenizerCallResult } from '../tokenizer/sharing-tokenizer.ts';
import { ok, problem, warning, type Finding } from './finding.ts';

export type ProbeApi = 'chat' | 'completions';

/** Tokens of the probe prompts by API, null where there are none. */
export type ProbeTokens = Readonly<Record<ProbeApi, Uint32Array | null>>;

export type TokenizerFindings = { readonly findings: readonly Finding[]; readonly tokens: ProbeTokens };

export type TokenizerProbe = {
  /** A tokenizer that asks nobody else than who is examined. */
  create(onCall: OnTokenizerCall): StartableTokenizer;
  readonly model: string;
  readonly budgetMs: number;
  nowMs(): number;
};

/** Words, digits, other scripts and blanks in a row, which vocabularies cut differently. */
const PROBE_TEXT =
  'Warmpath asks: how are "tokenizers" told apart?  By 1234567.89, naïve café, 東京, Привет, 🙂 and\n\ttabs.';
/** Tries per API: the first one also opens the connection. */
const N_TRIES = 2;

const PROMPTS: Readonly<Record<ProbeApi, string>> = { chat: 'chats', completions: 'texts' };

/** Results of a call in words, where it has failed. */
const FAILURES: Readonly<Partial<Record<TokenizerCallResult, string>>> = {
  timeout: 'does not answer within tokenizer.timeoutMs',
  error: 'answers with an error',
  not_served: 'is not served',
};

export async function checkTokenizer(probe: TokenizerProbe): Promise<TokenizerFindings> {
  let ended: { api: string; result: TokenizerCallResult }[] = [];
  const tokenizer = probe.create((api, result) => void ended.push({ api, result }));
  const tokens: Record<ProbeApi, Uint32Array | null> = { chat: null, completions: null };
  const findings: Finding[] = [];
  let fastestMs = Infinity;
  try {
    await tokenizer.start();
    for (const api of ['chat', 'completions'] as const) {
      for (let i = 0; i < N_TRIES; i++) {
        ended = [];
        const startMs = probe.nowMs();
        const answer = await tokenizer.tokenize(probeRequest(api, probe.model), [], null);
        if (answer.kind === 'tokens') {
          fastestMs = Math.min(fastestMs, probe.nowMs() - startMs);
          tokens[api] = answer.chains[0]!.tokenIds;
        } else if (i === 0) {
          findings.push(failureFinding(api, ended, answer.reason));
          break;
        }
      }
      const by = ended.at(-1)?.api;
      if (tokens[api] !== null) findings.push(ok('tokenizer', `${PROMPTS[api]} tokenized${by ? ` by ${by}` : ''}`));
    }
  } finally {
    await tokenizer.close();
  }
  if (fastestMs > probe.budgetMs && fastestMs !== Infinity) {
    findings.push(
      warning(
        'tokenizer',
        `tokens take ${Math.round(fastestMs)} ms, requests wait for ${probe.budgetMs} ms at most`,
        "raise tokenizer.budgetMs (and Envoy's message timeout), or name faster tokenizer.urls",
      ),
    );
  }
  return { findings, tokens };
}

function failureFinding(
  api: ProbeApi,
  ended: readonly { readonly api: string; readonly result: TokenizerCallResult }[],
  reason: string,
): Finding {
  const calls = ended.flatMap(({ api: asked, result }) => {
    const failure = FAILURES[result];
    return failure === undefined ? [] : [`${asked} ${failure}`];
  });
  return problem(
    'tokenizer',
    `no tokens of ${PROMPTS[api]}: ${calls.length === 0 ? reason : [...new Set(calls)].join(', ')}`,
    'without tokens requests are routed by what was sent where; set tokenizer.api, tokenizer.urls or tokenizer.auth.file',
  );
}

function probeRequest(api: ProbeApi, model: string): InferenceRequest {
  const content =
    api === 'chat'
      ? { messages: [{ role: 'user', content: PROBE_TEXT }] }
      : { prompt: `The answer to the question ${PROBE_TEXT}` };
  const path = api === 'chat' ? '/v1/chat/completions' : '/v1/completions';
  const body = Buffer.from(JSON.stringify({ model, ...content }));
  const parsed = parseRequest('POST', path, 'application/json', body, { truncated: 'no' });
  if (parsed.kind !== 'request') throw new Error(`the probe is no request: ${parsed.message}`);
  return parsed.request;
}

export type NamedTokens = { readonly name: string; readonly tokens: ProbeTokens };

/** One finding per tokenizer that differs from what most say; of two that differ, the second one. */
export function compareTokens(all: readonly NamedTokens[]): ReadonlyMap<string, Finding> {
  const findings = new Map<string, Finding>();
  for (const api of ['chat', 'completions'] as const) {
    const known = all.filter(({ tokens }) => tokens[api] !== null);
    const most = mostSaid(known.map(({ name, tokens }) => ({ name, ids: tokens[api]! })));
    for (const { name, tokens } of most === null ? [] : known) {
      const ids = tokens[api]!;
      if (sameIds(ids, most!.ids)) continue;
      findings.set(
        name,
        problem(
          'tokenizer',
          `reads ${PROMPTS[api]} as other tokens than ${most!.name}: ${difference(ids, most!.ids)}`,
          'let all that serve or tokenize for a model have the same tokenizer and chat template',
        ),
      );
    }
  }
  return findings;
}

function mostSaid(
  all: readonly { readonly name: string; readonly ids: Uint32Array }[],
): { readonly name: string; readonly ids: Uint32Array } | null {
  let best: { readonly name: string; readonly ids: Uint32Array; readonly n: number } | null = null;
  for (const { name, ids } of all) {
    const n = all.filter((other) => sameIds(other.ids, ids)).length;
    if (best === null || n > best.n) best = { name, ids, n };
  }
  return best;
}

function sameIds(a: Uint32Array, b: Uint32Array): boolean {
  return a.length === b.length && a.every((id, i) => id === b[i]);
}

/** Counts and positions, no ids. */
function difference(a: Uint32Array, b: Uint32Array): string {
  const at = a.findIndex((id, i) => id !== b[i]);
  const from = at < 0 ? Math.min(a.length, b.length) : at;
  return `${a.length} for ${b.length}, the first other one at ${from}`;
}
