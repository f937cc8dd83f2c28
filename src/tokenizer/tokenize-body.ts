/**
 * Bodies for vLLM's render endpoints and `/tokenize`, spliced from the byte ranges of the client's request: nothing is parsed
 * and printed again. Fields and defaults: vllm `entrypoints/serve/tokenize`; SGLang takes the same.
 */
import { JsonScanner, type ByteRange } from '../openai/json-scan.ts';
import type { FieldName, InferenceRequest } from '../openai/request.ts';

/** Fields the chat form knows under the same name. */
const CHAT_FIELDS = [
  'model',
  'messages',
  'tools',
  'chat_template',
  'mm_processor_kwargs',
  'media_io_kwargs',
  'add_generation_prompt',
  'continue_final_message',
] as const satisfies readonly FieldName[];

/** Fields of the chat API that reach the template as arguments, which is the only way the chat form takes them. */
const TEMPLATE_ARGUMENTS = ['documents', 'reasoning_effort'] as const satisfies readonly FieldName[];

/** What a part of a multimodal message is called, as key or type: without identifiers its tokens say nothing. */
const MEDIA_WORDS = ['"image', '"video', '"audio', '"input_audio', '"input_image'];
/** What may follow up to the closing quote. A text that begins with the word, or a function named after it, is none. */
const MEDIA_SUFFIX = /^_(?:url|pil|embeds)"/;

/** Without it an image comes back as the numbers the model sees, half a megabyte and more; the second is its older name. */
const NO_PIXELS = Buffer.from('{"mm_payload":"none","return_mm_kwargs":false,');

const OLD_THOUGHTS = '"reasoning_content"';

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const UNDERSCORE = 0x5f;
const OPEN_BRACE = 0x7b;

/** The request as it came, except that of images only hashes and places are asked back. */
export function renderBody(request: InferenceRequest): Uint8Array {
  const { body } = request;
  return holdsMedia(request) ? Buffer.concat([NO_PIXELS, body.subarray(body.indexOf(OPEN_BRACE) + 1)]) : body;
}

/** One body per prompt, or null where this form can not give the engine's tokens. */
export function tokenizeBodies(request: InferenceRequest): readonly Uint8Array[] | null {
  // Truncation happens in the engine, after tokenizing.
  if (request.fields.has('truncate_prompt_tokens')) return null;
  const { prompt } = request;
  if (prompt.kind === 'messages') return holdsMedia(request) ? null : [chatBody(request)];
  return prompt.kind === 'texts' ? prompt.ranges.map((range) => textBody(request, range)) : null;
}

function chatBody(request: InferenceRequest): Uint8Array {
  const parts = CHAT_FIELDS.flatMap((name) => (name === 'messages' ? messagesMember(request) : member(request, name)));
  parts.push(...templateArguments(request), ...specialTokens(request, 'false'));
  return object(parts);
}

function textBody(request: InferenceRequest, text: ByteRange): Uint8Array {
  return object([...member(request, 'model'), ['prompt', slice(request, text)], ...specialTokens(request, 'true')]);
}

/**
 * Thoughts have an older name, `reasoning_content`, by which the chat API knows them and `/tokenize` does not (vLLM's
 * `_normalize_messages_before`): they are given under both.
 */
function messagesMember(request: InferenceRequest): readonly Member[] {
  const { prompt, fields } = request;
  const given = fields.get('messages');
  if (prompt.kind !== 'messages' || given === undefined || !isIn(request, given, OLD_THOUGHTS)) {
    return member(request, 'messages');
  }
  const messages = prompt.ranges.flatMap((range) => [Buffer.from(','), ...withThoughts(request, range)]);
  return [['messages', Buffer.from('['), ...messages.slice(1), Buffer.from(']')]];
}

function withThoughts(request: InferenceRequest, message: ByteRange): readonly Uint8Array[] {
  const scanner = new JsonScanner(request.body);
  scanner.pos = message.start;
  const whole = [slice(request, message)];
  if (!isIn(request, message, OLD_THOUGHTS) || scanner.peekKind() !== 'object') return whole;
  const places = new Map<string, ByteRange>();
  scanner.object((name) => {
    const isAbsent = scanner.peekKind() === 'null';
    const start = scanner.pos;
    scanner.skipValue();
    places.delete(name);
    if (!isAbsent) places.set(name, { start, end: scanner.pos });
    return scanner.problem === null;
  });
  const thoughts = places.get('reasoning_content');
  if (thoughts === undefined || places.has('reasoning') || scanner.pos !== message.end) return whole;
  // At the end, where it outweighs a null under the same name.
  const before = slice(request, { start: message.start, end: message.end - 1 });
  return [before, Buffer.from(',"reasoning":'), slice(request, thoughts), Buffer.from('}')];
}

function isIn(request: InferenceRequest, range: ByteRange, text: string): boolean {
  const bytes = slice(request, range);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).includes(text);
}

type Member = readonly [name: string, ...value: readonly Uint8Array[]];

function member(request: InferenceRequest, name: FieldName): readonly Member[] {
  const range = request.fields.get(name);
  return range === undefined ? [] : [[name, slice(request, range)]];
}

/** Said in both forms: servers differ in what they assume. */
function specialTokens(request: InferenceRequest, assumed: 'true' | 'false'): readonly Member[] {
  const given = member(request, 'add_special_tokens');
  return given.length > 0 ? given : [['add_special_tokens', Buffer.from(assumed)]];
}

/**
 * `chat_template_kwargs` with the arguments of the request behind its own members: of two under one name the last wins. Whoever
 * names an effort wants thoughts, unless it is none, and unless the client says so itself (vLLM's `build_chat_params`).
 */
function templateArguments(request: InferenceRequest): readonly Member[] {
  const added = TEMPLATE_ARGUMENTS.flatMap((name) => member(request, name));
  if (added.length === 0) return member(request, 'chat_template_kwargs');
  const effort = request.fields.get('reasoning_effort');
  const thinks = effort !== undefined && Buffer.from(slice(request, effort)).toString('latin1') !== '"none"';
  const assumed: readonly Member[] = effort === undefined ? [] : [['enable_thinking', Buffer.from(String(thinks))]];
  const members = [listed(assumed), insideOf(request, 'chat_template_kwargs'), listed(added)];
  const joined = members.filter(({ length }) => length > 0).flatMap((one) => [Buffer.from(','), one]);
  return [['chat_template_kwargs', Buffer.from('{'), ...joined.slice(1), Buffer.from('}')]];
}

/** The members of an object as they stand in the body; nothing where it has none or is no object. */
function insideOf(request: InferenceRequest, name: FieldName): Buffer {
  const range = request.fields.get(name);
  if (range === undefined || request.body[range.start] !== OPEN_BRACE) return Buffer.alloc(0);
  return Buffer.from(
    Buffer.from(slice(request, { start: range.start + 1, end: range.end - 1 }))
      .toString()
      .trim(),
  );
}

function object(members: readonly Member[]): Uint8Array {
  return Buffer.concat([Buffer.from('{'), listed(members), Buffer.from('}')]);
}

function listed(members: readonly Member[]): Buffer {
  const parts = members.flatMap(([name, ...value], i) => [Buffer.from(`${i === 0 ? '' : ','}"${name}":`), ...value]);
  return Buffer.concat(parts);
}

function slice({ body }: InferenceRequest, { start, end }: ByteRange): Uint8Array {
  return body.subarray(start, end);
}

function isWhole(bytes: Buffer, wordEnd: number): boolean {
  if (bytes[wordEnd] === QUOTE) return true;
  return bytes[wordEnd] === UNDERSCORE && MEDIA_SUFFIX.test(bytes.toString('latin1', wordEnd, wordEnd + 8));
}

/** A word right after an unescaped quote begins a JSON string; inside of texts quotes are escaped. */
export function holdsMedia(request: InferenceRequest): boolean {
  const range = request.fields.get(request.api === 'responses' ? 'input' : 'messages');
  if (range === undefined) return false;
  const { body } = request;
  const messages = Buffer.from(body.buffer, body.byteOffset + range.start, range.end - range.start);
  return MEDIA_WORDS.some((word) => {
    for (let at = messages.indexOf(word); at >= 0; at = messages.indexOf(word, at + 1)) {
      if (messages[at - 1] !== BACKSLASH && isWhole(messages, at + word.length)) return true;
    }
    return false;
  });
}
