/**
 * What is asked: body bytes → InferenceRequest, in one pass that notes where the few fields needed are. The bytes travel on
 * unchanged. Types here are shared with the tokenizer.
 *
 * Deliberately not here: what the engine will refuse anyway. Only what makes routing impossible to understand is a
 * `BadRequest`; everything unknown is routed by load.
 */
import { isUtf8 } from 'node:buffer';
import { JsonScanner, kindText, textOfString, type ByteRange, type JsonProblem } from './json-scan.ts';
import { modelOfMultipart } from './multipart.ts';
import { readPrompt, type PromptReading } from './prompt.ts';
import { describe, integerOf, isFlag, isTrue, type FieldValue } from './field-values.ts';

export type Api = 'chat' | 'completions' | 'other';

/** Prompt of a request, as far as it matters for the KV cache. */
export type Prompt =
  /** Chat: the template turns it into tokens, only the engine's tokenizer knows how. `ranges` are the messages in the body. */
  | { readonly kind: 'messages'; readonly ranges: readonly ByteRange[] }
  /** One chain per text; `ranges` are the JSON strings in the body, quotes included. */
  | { readonly kind: 'texts'; readonly texts: readonly string[]; readonly ranges: readonly ByteRange[] }
  /** Already tokens: one chain per list, ids in 0…2³²−1. */
  | { readonly kind: 'tokens'; readonly tokenIds: readonly Uint32Array[] }
  /** Nothing that could be cached, or nothing understood: routed by load. */
  | { readonly kind: 'none' };

/** Top-level fields that decide about tokens, in a body of the chat or completions API. */
export type FieldName = (typeof FIELD_NAMES)[number];

const FIELD_NAMES = [
  'model',
  'messages',
  'prompt',
  'prompt_embeds',
  'tools',
  'documents',
  'reasoning_effort',
  'chat_template',
  'chat_template_kwargs',
  'mm_processor_kwargs',
  'media_io_kwargs',
  'add_generation_prompt',
  'continue_final_message',
  'add_special_tokens',
  'truncate_prompt_tokens',
  'cache_salt',
  'stream',
  'max_tokens',
  'max_completion_tokens',
  'priority',
] as const;

export type InferenceRequest = {
  readonly api: Api;
  /** As the client wrote it: a served name, an alias or an adapter. */
  readonly model: string;
  readonly stream: boolean;
  readonly prompt: Prompt;
  /** vLLM's `cache_salt`: part of the first block's key. */
  readonly cacheSalt: string | null;
  /** max_completion_tokens ?? max_tokens, null when absent. */
  readonly maxTokens: number | null;
  /** Body exactly as received; never modified, not even after the decision: a late tokenizer call may still send it. */
  readonly body: Uint8Array;
  /** Where the value of a field that is present and not null stands in `body`; the last one of several. */
  readonly fields: ReadonlyMap<FieldName, ByteRange>;
};

/** Something the client did wrong: becomes a 400 with an OpenAI-shaped body. */
export type BadRequest = {
  readonly kind: 'bad_request';
  readonly message: string;
  readonly param: string | null;
};

export type ParsedRequest = { readonly kind: 'request'; readonly request: InferenceRequest } | BadRequest;

export type ParseOptions = {
  /** `yes`: only the first part of the body is there, so its end proves nothing. */
  readonly truncated: 'yes' | 'no';
};

const KNOWN_FIELDS: ReadonlySet<string> = new Set(FIELD_NAMES);
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

export function apiOf(path: string): Api {
  const query = path.search(/[?#]/);
  let end = query < 0 ? path.length : query;
  while (end > 0 && path[end - 1] === '/') end--;
  const plain = path.slice(0, end);
  if (plain.endsWith('/chat/completions')) return 'chat';
  return plain.endsWith('/completions') ? 'completions' : 'other';
}

type Scan = {
  readonly fields: ReadonlyMap<FieldName, FieldValue>;
  readonly prompt: PromptReading | null;
  /** Elements of `messages`, of the last one of several. */
  readonly messages: readonly ByteRange[];
  readonly problem: JsonProblem | null;
};

/** The fields complete before `problem`; of a prompt list that was cut also its beginning. */
function scanBody(api: Api, body: Uint8Array): Scan {
  const scanner = new JsonScanner(body);
  const fields = new Map<FieldName, FieldValue>();
  let prompt: PromptReading | null = null;
  let nPrompts = 0;
  let lastPrompt = 0;
  let messages: ByteRange[] = [];
  const visit = (key: string): boolean => {
    if (!KNOWN_FIELDS.has(key)) return scanner.skipValue();
    const start = scanner.pos;
    const kind = scanner.peekKind();
    if (key === 'prompt' && api === 'completions') {
      // Read on the way the first time; of several only the last, and that afterwards.
      prompt = nPrompts++ === 0 ? readPrompt(scanner) : { kind: 'absent' };
      lastPrompt = start;
      if (nPrompts > 1) scanner.skipValue();
    } else if (key === 'messages' && api === 'chat' && kind === 'array') {
      messages = readElements(scanner);
    } else {
      scanner.skipValue();
    }
    if (scanner.problem !== null || kind === null) return false;
    // A number that touches the end of the text may have been cut.
    if (kind === 'number' && scanner.pos === scanner.end) return scanner.fail('"," or "}"');
    // The last of several counts, and null means absent: so a later null takes an earlier value back.
    if (kind === 'null') fields.delete(key as FieldName);
    else fields.set(key as FieldName, { kind, start, end: scanner.pos });
    return true;
  };
  const complete = scanner.object(visit) && scanner.atEnd();
  if (complete && nPrompts > 1) {
    const again = new JsonScanner(body);
    again.pos = lastPrompt;
    prompt = readPrompt(again);
  }
  return { fields, prompt, messages, problem: complete ? null : scanner.problem };
}

/** Where the elements of a list stand. */
function readElements(scanner: JsonScanner): ByteRange[] {
  const ranges: ByteRange[] = [];
  scanner.array(() => {
    const start = scanner.pos;
    const complete = scanner.skipValue();
    ranges.push({ start, end: scanner.pos });
    return complete;
  });
  return ranges;
}

function understand(api: 'chat' | 'completions', body: Uint8Array, scan: Scan, cut: 'yes' | 'no'): ParsedRequest {
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
  const maxTokensName = fields.has('max_completion_tokens') ? 'max_completion_tokens' : 'max_tokens';
  const maxTokens = fields.get(maxTokensName);
  const maxTokensValue = maxTokens === undefined ? null : integerOf(body, maxTokens);
  if (maxTokens !== undefined && maxTokensValue === null) return reject(maxTokensName, 'an integer');

  const prompt = api === 'chat' ? chatPrompt(body, scan, cut) : completionsPrompt(scan, cut);
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
      body,
      fields,
    },
  };
}

function chatPrompt(body: Uint8Array, { fields, messages: ranges }: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  const messages = fields.get('messages');
  if (messages !== undefined && messages.kind !== 'array') {
    return bad(`\`messages\` must be a list of messages, got ${describe(body, messages)}`, 'messages');
  }
  // Tools and template arguments behind the cut change the tokens, so messages alone are worth nothing.
  if (cut === 'yes') return { kind: 'none' };
  if (messages === undefined) return bad('`messages` must be a list of messages, got nothing', 'messages');
  if (ranges.length === 0) return bad('`messages` must hold at least one message, got an empty list', 'messages');
  return { kind: 'messages', ranges };
}

function completionsPrompt({ prompt, fields }: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  if (prompt?.kind === 'wrong') return bad(prompt.message, 'prompt');
  if (prompt === null || prompt.kind === 'absent') {
    if (cut === 'yes' || fields.has('prompt_embeds')) return { kind: 'none' };
    return bad('`prompt` must be a string, a list of strings or token ids, got nothing', 'prompt');
  }
  if (prompt.kind === 'many') return { kind: 'none' };
  if (cut === 'no') return prompt;
  // Ids need no tokenizer, and the first of them are a prefix like any other.
  return prompt.kind === 'tokens' ? prompt : { kind: 'none' };
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

function bad(message: string, param: string | null): BadRequest {
  return { kind: 'bad_request', message: `${message}.`, param };
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
