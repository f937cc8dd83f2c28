/**
 * The simplest request of an API, under the name of a model. Servers answer some mistakes of one request in words they also
 * have for a path they do not serve; who is refused this one is refused everything.
 */
import { parseRequest, type InferenceRequest } from '../openai/request.ts';

export type TokenizedApi = 'chat' | 'completions' | 'responses' | 'messages';

const MESSAGES = [{ role: 'user', content: 'x' }];

const PLAIN: Readonly<Record<TokenizedApi, { readonly path: string; readonly fields: object }>> = {
  chat: { path: '/v1/chat/completions', fields: { messages: MESSAGES } },
  completions: { path: '/v1/completions', fields: { prompt: 'x' } },
  responses: { path: '/v1/responses', fields: { input: 'x' } },
  messages: { path: '/v1/messages', fields: { max_tokens: 1, messages: MESSAGES } },
};

/** Null where the model has no name. */
export function plainRequest(api: TokenizedApi, model: string): InferenceRequest | null {
  const { path, fields } = PLAIN[api];
  const body = Buffer.from(JSON.stringify({ model, ...fields }));
  const parsed = parseRequest('POST', path, undefined, body, { truncated: 'no' });
  return parsed.kind === 'request' ? parsed.request : null;
}
