/** `POST /api/v1/explain`: where would this request go, and why. Makes no reservation and leaves no trace. */
import type { Picker } from '../endpoint-picker.ts';
import type { Evaluation } from '../picking/decision-record.ts';
import type { PickRequest } from '../extproc/picker.ts';
import { SUBSET_ALL } from '../extproc/picker.ts';

export type ExplainAnswer = { readonly status: number; readonly body: unknown };

/** @param input `{path, headers?, body?}`; a body that is not a string is sent as JSON. */
export async function explain(picker: Picker, input: unknown): Promise<ExplainAnswer> {
  const request = parseExplainRequest(input);
  if (typeof request === 'string') return { status: 400, body: { error: request } };
  const evaluation = await picker.evaluate(request, new AbortController().signal);
  if (evaluation.kind === 'error') {
    const { status, message, type, code, param, reason } = evaluation;
    return { status, body: { error: { message, type, code, param }, reason } };
  }
  return { status: 200, body: explanation(evaluation, await tokenizerWord(evaluation)) };
}

/** `remembered` where exact tokens are known and nobody was asked: the tokenizer may be dead all the same. */
async function tokenizerWord({ rung, tokenizeFailure, exact }: Evaluation): Promise<string> {
  if (tokenizeFailure !== null) return tokenizeFailure;
  // The answer that made it exact has come.
  const answer = rung === 'exact' ? await exact : null;
  return answer?.kind === 'tokens' && answer.remembered === true ? 'remembered' : 'ok';
}

function parseExplainRequest(input: unknown): PickRequest | string {
  if (typeof input !== 'object' || input === null || Array.isArray(input))
    return `expected an object {path, headers, body}, got ${Array.isArray(input) ? 'a list' : typeof input}`;
  const { path = '/v1/chat/completions', headers = {}, body } = input as Record<string, unknown>;
  if (typeof path !== 'string' || !path.startsWith('/')) return 'path must be a string that starts with "/"';
  if (typeof headers !== 'object' || headers === null || Array.isArray(headers))
    return 'headers must be an object of strings';
  const lowerCase = new Map<string, string>();
  for (const [name, value] of Object.entries(headers)) {
    if (typeof value !== 'string')
      return `headers must be an object of strings, got ${typeof value} for ${JSON.stringify(name)}`;
    lowerCase.set(name.toLowerCase(), value);
  }
  const text = bodyText(body);
  if (text === undefined) return 'body is nested too deep to be printed: send it as a string';
  return {
    method: text === null ? 'GET' : 'POST',
    path,
    header: (name) => lowerCase.get(name) ?? (name === 'content-type' ? 'application/json' : undefined),
    body: text === null ? null : Buffer.from(text),
    bodyTruncated: false,
    subset: SUBSET_ALL,
  };
}

/** Undefined where the body cannot be printed: a parser nests deeper than a printer. */
function bodyText(body: unknown): string | null | undefined {
  if (body === undefined) return null;
  if (typeof body === 'string') return body;
  try {
    return JSON.stringify(body);
  } catch {
    return undefined;
  }
}

function explanation(evaluation: Evaluation, tokenizer: string): object {
  const { candidates, order, named } = evaluation;
  return {
    model: evaluation.model,
    adapter: evaluation.adapter,
    rung: evaluation.rung,
    tokenizer,
    promptTokens: evaluation.promptTokens,
    blockSizeTokens: evaluation.blockSizeTokens,
    strategy: evaluation.strategy,
    endpoint: named[0],
    rank: candidates[order[0]!]!.endpoint.rank,
    fallbacks: named.slice(1),
    reason: evaluation.reason,
    candidates: order.map((index) => {
      const candidate = candidates[index]!;
      return {
        endpoint: candidate.endpoint.address,
        rank: candidate.endpoint.rank,
        trust: candidate.trust,
        reachable: candidate.reachable,
        matchedBlocks: candidate.matchedBlocks,
        matchedTokens: candidate.matchedTokens,
        creditedTokens: round(candidate.creditedTokens),
        uncachedTokens: round(candidate.uncachedTokens),
        inFlightRequests: candidate.load.requests,
        waitMs: round(candidate.load.waitMs),
        costMs: round(candidate.costMs),
      };
    }),
  };
}

function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}
