/** One GET, and which of the few things became of it. */
import type { Clock } from '../clock.ts';
import { createHttpClient, type HttpAnswer } from './http-client.ts';

export type GetAnswer =
  /** `date`: that header as it came. */
  | { readonly kind: 'page'; readonly body: Buffer; readonly date: string | null }
  /** Another status than 200. */
  | { readonly kind: 'status'; readonly status: number }
  | { readonly kind: 'too_large' }
  | { readonly kind: 'refused' }
  | Extract<HttpAnswer, { kind: 'timeout' | 'failed' }>;

export type GetLimits = { readonly timeoutMs: number; readonly maxBytes: number };

export type Get = (origin: string, path: string) => Promise<GetAnswer>;

export type HttpGet = { readonly get: Get; close(): void };

const HEADERS = {};

export function createHttpGet(clock: Clock, { timeoutMs, maxBytes }: GetLimits): HttpGet {
  const client = createHttpClient(clock);
  const limits = { timeoutMs, responseMaxBytes: maxBytes, signal: null };
  return {
    get: (origin, path) =>
      client.exchange(origin, { method: 'GET', path, headers: HEADERS, body: null }, limits, asGetAnswer),
    close: () => client.close(),
  };
}

function asGetAnswer(answer: HttpAnswer): GetAnswer {
  switch (answer.kind) {
    case 'answer':
      if (answer.status !== 200) return { kind: 'status', status: answer.status };
      return { kind: 'page', body: Buffer.from(answer.body), date: answer.date };
    case 'too_large':
      return answer.status === 200 ? { kind: 'too_large' } : { kind: 'status', status: answer.status };
    case 'refused':
      return { kind: 'refused' };
    case 'given_up':
      return { kind: 'failed', message: 'given up' };
    default:
      return answer;
  }
}
