/**
 * A request under the name by which a tokenizer server knows its model. vLLM's render endpoints take no adapter's name, not
 * even of one that is loaded, and a dedicated tokenizer has heard of neither adapters nor aliases; tokens are the model's.
 */
import { parseRequest, type Api, type InferenceRequest } from '../openai/request.ts';

const PATHS: Readonly<Partial<Record<Api, string>>> = {
  chat: '/v1/chat/completions',
  completions: '/v1/completions',
  responses: '/v1/responses',
  messages: '/v1/messages',
};

/** The same body but for its model; the request itself where it names none. */
export function underName(request: InferenceRequest, model: string): InferenceRequest {
  const { api, body, fields } = request;
  const range = fields.get('model');
  const path = PATHS[api];
  if (range === undefined || path === undefined) return request;
  const name = Buffer.from(JSON.stringify(model));
  const renamed = Buffer.concat([body.subarray(0, range.start), name, body.subarray(range.end)]);
  const parsed = parseRequest('POST', path, undefined, renamed, { truncated: 'no' });
  return parsed.kind === 'request' ? parsed.request : request;
}
