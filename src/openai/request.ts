/**
 * What is asked: body bytes → InferenceRequest, in one pass that notes where the few fields needed are. The bytes travel on
 * unchanged. Types here are shared with the tokenizer.
 *
 * Deliberately not here: what the engine will refuse anyway. Only what makes routing impossible to understand is a
 * `BadRequest`; everything unknown is routed by load.
 */
import { isUtf8 } from 'node:buffer';
import { apiOf, type Api, type KnownApi } from './api.ts';
import { bad, type BadRequest } from './bad-request.ts';
import { scanBody, type FieldName, type Scan } from './body-scan.ts';
import { describe, integerOf, isFlag, isTrue, type FieldValue } from './field-values.ts';
import { JsonScanner, kindText, textOfString, type ByteRange, type JsonProblem } from './json-scan.ts';
import { modelOfMultipart } from './multipart.ts';
import { promptOf, type Prompt } from './request-prompt.ts';

export type { Api, BadRequest, FieldName, Prompt };

export type InferenceRequest = {
  readonly api: Api;
  /** As the client wrote it: a served name, an alias or an adapter. */
  readonly model: string;
  readonly stream: boolean;
  readonly prompt: Prompt;
  /** vLLM's `cache_salt`: part of the first block's key. */
  readonly cacheSalt: string | null;
  /** Under whichever name the API has for it, null when absent. */
  readonly maxTokens: number | null;
  /** Answers asked for to each prompt. */
  readonly nAnswers: number;
  /** Body exactly as received; never modified, not even after the decision: a late tokenizer call may still send it. */
  readonly body: Uint8Array;
  /** Where the value of a field that is present and not null stands in `body`; the last one of several. */
  readonly fields: ReadonlyMap<FieldName, ByteRange>;
};

export type ParsedRequest = { readonly kind: 'request'; readonly request: InferenceRequest } | BadRequest;

export type ParseOptions = {
  /** `yes`: only the first part of the body is there, so its end proves nothing. */
  readonly truncated: 'yes' | 'no';
};

const MAX_TOKENS_NAMES = ['max_completion_tokens', 'max_output_tokens', 'max_tokens'] as const;
const OPEN_BRACE = 0x7b;
const BYTE_ORDER_MARK = Uint8Array.of(0xef, 0xbb, 0xbf);

/** @param path `:path` with query string; a prefix and trailing slashes are tolerated */
export function parseRequest(
  method: string,
  path: string,
  contentType: string | undefined,
  body: Uint8Array | null,
  { truncated }: ParseOptions,
): ParsedRequest {
  const api = method === 'POST' ? apiOf(path) : 'other';
  if (body === null || (body.length === 0 && (api === 'other' || truncated === 'yes'))) return unread(body);
  if (api === 'other') return parseOther(contentType, body);
  if (body.length === 0) return bad('The request body is empty, expected a JSON object', null);

  const scan = scanBody(api, body);
  if (scan.problem !== null) {
    const isOurDoing = truncated === 'yes' && scan.problem.cut;
    if (!isOurDoing) return notJson(body, scan.problem);
  }
  if (!isUtf8(truncated === 'yes' ? withoutCutCharacter(body) : body)) {
    return bad('The request body is not valid UTF-8, expected a JSON object in UTF-8', null);
  }
  return understand(api, body, scan, truncated === 'yes' && scan.problem !== null ? 'yes' : 'no');
}

function understand(api: KnownApi, body: Uint8Array, scan: Scan, cut: 'yes' | 'no'): ParsedRequest {
  const { fields } = scan;
  const reject = (param: FieldName, expected: string): BadRequest => {
    const field = fields.get(param);
    const got = field === undefined ? 'nothing' : describe(body, field);
    return bad(`\`${param}\` must be ${expected}, got ${got}`, param);
  };

  const model = fields.get('model');
  if (model === undefined ? cut === 'no' : model.kind !== 'string') return reject('model', 'a string');
  const modelName = model === undefined ? '' : textOfString(body, model);
  if (modelName === '' && cut === 'no') return bad('`model` must be the name of a model, got an empty string', 'model');

  const stream = fields.get('stream');
  if (stream !== undefined && !isFlag(body, stream)) return reject('stream', 'true or false');
  const salt = fields.get('cache_salt');
  if (salt !== undefined && salt.kind !== 'string') return reject('cache_salt', 'a string');
  const maxTokensName = MAX_TOKENS_NAMES.find((name) => fields.has(name)) ?? 'max_tokens';
  const maxTokens = fields.get(maxTokensName);
  const maxTokensValue = maxTokens === undefined ? null : integerOf(body, maxTokens);
  if (maxTokens !== undefined && maxTokensValue === null) return reject(maxTokensName, 'an integer');

  const prompt = promptOf(api, body, scan, cut);
  if (prompt.kind === 'bad_request') return prompt;
  return {
    kind: 'request',
    request: {
      api,
      model: modelName,
      stream: stream !== undefined && isTrue(body, stream),
      prompt,
      cacheSalt: salt === undefined ? null : textOfString(body, salt) || null,
      maxTokens: maxTokensValue,
      nAnswers: answersAskedFor(body, fields.get('n')),
      body,
      fields,
    },
  };
}

/** vLLM takes no more (`VLLM_MAX_N_SEQUENCES`). */
const MAX_ANSWERS = 16_384;

/** What is no number of answers the engine will refuse. */
function answersAskedFor(body: Uint8Array, n: FieldValue | undefined): number {
  return n === undefined ? 1 : Math.min(MAX_ANSWERS, Math.max(1, integerOf(body, n) ?? 1));
}

/** Nothing is known of this path, so nothing in it can be wrong: at most a model is found. */
function parseOther(contentType: string | undefined, body: Uint8Array): ParsedRequest {
  if (contentType !== undefined && /^\s*multipart\/form-data\b/i.test(contentType)) {
    return unread(body, modelOfMultipart(contentType, body) ?? '');
  }
  if (firstByte(body) !== OPEN_BRACE) return unread(body);
  const { fields } = scanBody('other', body);
  const model = fields.get('model');
  return unread(body, model?.kind === 'string' ? textOfString(body, model) : '');
}

function unread(body: Uint8Array | null, model = ''): ParsedRequest {
  return {
    kind: 'request',
    request: {
      api: 'other',
      model,
      stream: false,
      prompt: { kind: 'none' },
      cacheSalt: null,
      maxTokens: null,
      nAnswers: 1,
      body: body ?? new Uint8Array(0),
      fields: new Map(),
    },
  };
}

function notJson(body: Uint8Array, problem: JsonProblem): BadRequest {
  if (body.length >= 3 && BYTE_ORDER_MARK.every((byte, i) => body[i] === byte)) {
    return bad('The request body begins with a byte order mark, expected a JSON object without one', null);
  }
  const scanner = new JsonScanner(body);
  const kind = scanner.peekKind();
  if (kind !== 'object' && scanner.skipValue() && scanner.atEnd()) {
    return bad(`The request body must be a JSON object, got ${kindText(kind)}`, null);
  }
  const { got, expected, position } = problem;
  return bad(`The request body is not valid JSON: got ${got} at byte ${position}, expected ${expected}`, null);
}

function firstByte(body: Uint8Array): number | undefined {
  return body.find((byte) => byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09);
}

/** A cut may fall inside a character: its lead byte and what follows it are left out. */
function withoutCutCharacter(body: Uint8Array): Uint8Array {
  for (let back = 1; back <= 3 && back <= body.length; back++) {
    const byte = body[body.length - back]!;
    if ((byte & 0xc0) === 0x80) continue;
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return length > back ? body.subarray(0, body.length - back) : body;
  }
  return body;
}
