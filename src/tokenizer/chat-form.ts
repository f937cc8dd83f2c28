/**
 * Requests of the responses API and of Anthropic's messages API as the chat request that vLLM makes of them, since only
 * chats can be rendered and tokenized. The rules are those of vLLM's `entrypoints/anthropic/serving.py` and
 * `entrypoints/openai/responses/utils.py`; only what changes tokens is carried over.
 *
 * Only for servers that do not render these APIs themselves (vLLM before 0.32) and for local tokenizers. A wrong guess costs
 * matches, never truth: blocks are compared by their tokens.
 */
import { JsonScanner } from '../openai/json-scan.ts';
import { parseRequest, type InferenceRequest } from '../openai/request.ts';

/** What is written here again is walked through by recursion. Python's parser ends at about a thousand. */
const MAX_DEPTH = 500;
/** And built as objects, on the thread that serves: as many take some ten milliseconds, a hundred times those of a long chat. */
const MAX_VALUES = 50_000;

type Fields = Readonly<Record<string, unknown>>;
type Message = Record<string, unknown>;

/**
 * Where system messages go that stand among the others of a `/v1/messages` request. vLLM keeps them in their places if the
 * model's template takes them there, and joins them to the first one if it does not.
 */
export type InlineSystem = 'in place' | 'first';

/**
 * The request itself if it is a chat or a completion; null where no chat request has the same tokens.
 * @param inlineSystem what the model's template takes; `first` where nobody knows it, as vLLM without a template does
 */
export function asChat(request: InferenceRequest, inlineSystem: InlineSystem = 'first'): InferenceRequest | null {
  if (request.api === 'chat' || request.api === 'completions') return request;
  if (request.api !== 'responses' && request.api !== 'messages') return null;
  const scanner = new JsonScanner(request.body);
  scanner.skipValue();
  if (scanner.deepest > MAX_DEPTH || scanner.nValues > MAX_VALUES) return null;
  const fields = JSON.parse(Buffer.from(request.body).toString('utf8')) as Fields;
  const messages = request.api === 'messages' ? ofMessagesApi(fields, inlineSystem) : ofResponsesApi(fields);
  if (messages === null) return null;
  const body = {
    model: request.model,
    messages,
    tools: request.api === 'messages' ? anthropicTools(fields['tools']) : responsesTools(fields['tools']),
    tool_choice: toolChoice(fields['tool_choice']),
    reasoning_effort:
      (request.api === 'messages' ? effortOfMessages(fields) : recordOf(fields['reasoning'])['effort']) ?? undefined,
    chat_template_kwargs: fields['chat_template_kwargs'],
    mm_processor_kwargs: fields['mm_processor_kwargs'],
    cache_salt: request.cacheSalt ?? undefined,
  };
  const bytes = Buffer.from(JSON.stringify(body));
  const parsed = parseRequest('POST', '/v1/chat/completions', undefined, bytes, { truncated: 'no' });
  return parsed.kind === 'request' ? parsed.request : null;
}

function ofMessagesApi(fields: Fields, inlineSystem: InlineSystem): Message[] | null {
  const given = listOf(fields['messages']).map(recordOf);
  const messages: Message[] = [];
  const system = [...textsOf(fields['system'])];
  if (inlineSystem === 'first') {
    for (const { role, content } of given) if (role === 'system') system.push(...textsOf(content));
  }
  if (system.length > 0) messages.push({ role: 'system', content: system.join('') });
  for (const { role, content } of given) {
    if (typeof role !== 'string') return null;
    if (role === 'system') {
      const text = inlineSystem === 'first' ? '' : textsOf(content).join('');
      if (text !== '') messages.push({ role, content: text });
    } else if (typeof content === 'string') messages.push({ role, content });
    else messages.push(...anthropicTurn(role, listOf(content).map(recordOf)));
  }
  return messages;
}

/** Thoughts that are switched off outweigh the effort they would be worth. */
function effortOfMessages(fields: Fields): unknown {
  return recordOf(fields['thinking'])['type'] === 'disabled' ? 'none' : recordOf(fields['output_config'])['effort'];
}

/** Texts of a system prompt, without the one by which a client names itself. */
function textsOf(value: unknown): readonly string[] {
  if (typeof value === 'string') return value === '' ? [] : [value];
  return listOf(value)
    .map((block) => recordOf(block)['text'])
    .filter((text): text is string => typeof text === 'string' && text !== '')
    .filter((text) => !text.startsWith('x-anthropic-billing-header'));
}

/** Results of tools come before the turn that brings them. */
function anthropicTurn(role: string, blocks: readonly Fields[]): Message[] {
  const before: Message[] = [];
  const parts: Message[] = [];
  const toolCalls: Message[] = [];
  const thoughts: string[] = [];
  for (const block of blocks) {
    if (block['type'] === 'text' && typeof block['text'] === 'string' && block['text'] !== '') {
      parts.push({ type: 'text', text: block['text'] });
    } else if (block['type'] === 'image') {
      parts.push(imagePart(block['source']));
    } else if (block['type'] === 'thinking' && typeof block['thinking'] === 'string') {
      thoughts.push(block['thinking']);
    } else if (block['type'] === 'tool_use') {
      const called = { name: block['name'] ?? '', arguments: asPython(block['input'] ?? {}) };
      toolCalls.push({ id: block['id'], type: 'function', function: called });
    } else if (block['type'] === 'tool_result' && role === 'user') {
      before.push(...toolResult(block));
    }
  }
  const turn: Message = { role };
  if (thoughts.length > 0) turn['reasoning'] = thoughts.join('');
  if (toolCalls.length > 0) turn['tool_calls'] = toolCalls;
  const [only] = parts;
  if (parts.length > 0) turn['content'] = parts.length === 1 && only!['type'] === 'text' ? only!['text'] : parts;
  return role === 'user' && parts.length === 0 ? before : [...before, turn];
}

function toolResult(block: Fields): Message[] {
  const { content } = block;
  const items = listOf(content).map(recordOf);
  const texts = items.filter(({ type }) => type === 'text').map(({ text }) => text ?? '');
  const images = items.filter(({ type }) => type === 'image').map(({ source }) => imagePart(source));
  const result = {
    role: 'tool',
    tool_call_id: block['tool_use_id'] ?? '',
    content: typeof content === 'string' ? content : texts.join('\n'),
  };
  return images.length === 0 ? [result] : [result, { role: 'user', content: images }];
}

function imagePart(source: unknown): Message {
  const { type, url, media_type: mediaType, data } = recordOf(source);
  const ofData = `data:${String(mediaType ?? 'image/jpeg')};base64,${String(data ?? '')}`;
  return { type: 'image_url', image_url: { url: type === 'url' ? url : ofData } };
}

/** As Python's `json.dumps` prints it: models with a format of their own show arguments as they are written. */
function asPython(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(asPython).join(', ')}]`;
  if (typeof value === 'object' && value !== null) {
    return `{${Object.entries(value)
      .map(([key, one]) => `${asPython(key)}: ${asPython(one)}`)
      .join(', ')}}`;
  }
  const escaped = (letter: string): string => `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`;
  return JSON.stringify(value).replace(/[\u007f-\uffff]/g, escaped);
}

function anthropicTools(tools: unknown): Message[] | undefined {
  if (!Array.isArray(tools) || tools.length === 0) return undefined;
  return tools.map(recordOf).map(({ name, description, input_schema: parameters }) => ({
    type: 'function',
    function: { name, description, parameters },
  }));
}

function responsesTools(tools: unknown): Message[] | undefined {
  const functions = listOf(tools)
    .map(recordOf)
    .filter(({ type }) => type === 'function')
    .map(({ type, ...definition }) => ({ type, function: definition }));
  return functions.length === 0 ? undefined : functions;
}

/** The words of the three APIs for the same four choices. */
function toolChoice(given: unknown): unknown {
  if (typeof given === 'string') return given;
  const { type, name } = recordOf(given);
  if (type === 'any') return 'required';
  if ((type === 'tool' || type === 'function') && typeof name === 'string') {
    return { type: 'function', function: { name } };
  }
  return type === 'auto' || type === 'none' ? type : undefined;
}

function ofResponsesApi(fields: Fields): Message[] | null {
  const { instructions, input } = fields;
  const messages: Message[] = [];
  if (typeof instructions === 'string' && instructions !== '') messages.push({ role: 'system', content: instructions });
  if (typeof input === 'string') return [...messages, { role: 'user', content: input }];
  for (const item of listOf(input).map(recordOf)) {
    const message = ofResponseItem(item);
    if (message === null) return null;
    const last = messages[messages.length - 1];
    // A thought, an answer and its calls are one turn, but several items.
    if (message['role'] !== 'assistant' || last?.['role'] !== 'assistant' || !joined(last, message)) {
      messages.push(message);
    }
  }
  return messages;
}

function ofResponseItem(item: Fields): Message | null {
  const { type, role, content } = item;
  if (type === 'function_call') {
    const called = { name: item['name'], arguments: item['arguments'] };
    return { role: 'assistant', tool_calls: [{ id: item['call_id'], type: 'function', function: called }] };
  }
  if (type === 'function_call_output') return { role: 'tool', tool_call_id: item['call_id'], content: item['output'] };
  if (type === 'reasoning')
    return { role: 'assistant', reasoning: firstText(content) ?? firstText(item['summary']) ?? '' };
  if (typeof role !== 'string') return null;
  if (role === 'assistant') return { role, content: firstText(content) ?? '' };
  return { role, content: Array.isArray(content) ? content.map(chatPart) : content };
}

/** The same part under the name that the chat API has for it. */
function chatPart(part: unknown): unknown {
  const { type, text } = recordOf(part);
  return type === 'input_text' ? { type: 'text', text } : part;
}

/** Adds to an assistant's turn what it does not have yet. */
function joined(turn: Message, { tool_calls: toolCalls, reasoning, content }: Message): boolean {
  if (Array.isArray(toolCalls)) {
    // Not a new list for every call: a body holds hundreds of thousands of them.
    const calls = turn['tool_calls'];
    if (Array.isArray(calls)) calls.push(...listOf(toolCalls));
    else turn['tool_calls'] = toolCalls;
    return true;
  }
  const [key, value] = reasoning === undefined ? ['content', content] : ['reasoning', reasoning];
  if (turn[key as string] !== undefined) return false;
  turn[key as string] = value;
  return true;
}

function firstText(content: unknown): string | null {
  if (typeof content === 'string') return content;
  const [first] = listOf(content);
  if (first === undefined) return null;
  return typeof first === 'string' ? first : String(recordOf(first)['text'] ?? '');
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function recordOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : {};
}
