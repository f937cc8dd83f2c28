/** Requests as clients send them. */
import {
  parseRequest,
  type InferenceRequest,
  type ParsedRequest,
  type ParseOptions,
} from '../../src/openai/request.ts';

export const CHAT_PATH = '/v1/chat/completions';
export const COMPLETIONS_PATH = '/v1/completions';

/** @param body an object is printed as JSON, anything else is sent as it is */
export function parse(path: string, body: object | string, truncated: ParseOptions['truncated'] = 'no'): ParsedRequest {
  const bytes = Buffer.from(typeof body === 'string' ? body : JSON.stringify(body));
  return parseRequest('POST', path, 'application/json', bytes, { truncated });
}

export function aRequest(path: string, body: object | string): InferenceRequest {
  const parsed = parse(path, body);
  if (parsed.kind !== 'request') throw new Error(`not a request: ${parsed.message}`);
  return parsed.request;
}

export function aChatRequest(fields: object = {}, content = 'Hello!'): InferenceRequest {
  return aRequest(CHAT_PATH, { model: 'demo-model', messages: [{ role: 'user', content }], ...fields });
}

export function aCompletionsRequest(prompt: unknown, fields: object = {}): InferenceRequest {
  return aRequest(COMPLETIONS_PATH, { model: 'demo-model', prompt, ...fields });
}
