/**
 * A model's chat template over a request, as vLLM applies it (`entrypoints/chat_utils.py`, and transformers'
 * `apply_chat_template`, whose environment `@huggingface/jinja` rebuilds). Gives text; ids are another matter.
 *
 * Deliberately not here: media, templates in requests, `continue_final_message`. Such requests get no text.
 */
import { Template } from '@huggingface/jinja';
import type { InlineSystem } from './chat-form.ts';

export type ChatTemplate = {
  /** @param fields of a chat request; null where only the engine knows the text. Throws what the template raises. */
  render(fields: Readonly<Record<string, unknown>>): string | null;
  /** Whether it takes system messages among the others, found out by trying, as vLLM does. */
  readonly inlineSystem: InlineSystem;
};

type Fields = Readonly<Record<string, unknown>>;
type Message = Record<string, unknown>;

/** @param specialTokens by name, such as `bos_token` */
export function createChatTemplate(source: string, specialTokens: Readonly<Record<string, string>>): ChatTemplate {
  const template = new Template(source);
  callStripsByName(template.parsed);
  const takesParts = CONTENT_LOOP.test(source);
  const knowsDevelopers = /(['"])developer\1/.test(source);

  function render(fields: Fields): string | null {
    if (fields['continue_final_message'] === true || isPresent(fields['chat_template'])) return null;
    const parsed = listOf(fields['messages']).map((message) => messageOf(recordOf(message), takesParts));
    if (parsed.includes(null)) return null;
    const messages = knowsDevelopers ? parsed : developersAsSystem(parsed as Message[]);
    const { reasoning_effort: effort, documents, chat_template_kwargs: given } = fields;
    return template.render({
      ...STRIPS,
      ...specialTokens,
      // Whoever names an effort wants thoughts, unless it is none, and unless the client says so itself.
      ...(isPresent(effort) ? { enable_thinking: effort !== 'none' } : {}),
      ...recordOf(given),
      ...(isPresent(effort) ? { reasoning_effort: effort } : {}),
      messages,
      // Defined, as transformers does, also where there are none.
      tools: toolsOf(fields['tools']),
      documents: documents ?? recordOf(given)['documents'] ?? null,
      add_generation_prompt: fields['add_generation_prompt'] !== false,
    });
  }

  function inlineSystem(): InlineSystem {
    const messages = ['system', 'user', 'system', 'user'].map((role) => ({ role, content: 't' }));
    try {
      render({ messages, add_generation_prompt: false });
      return 'in place';
    } catch {
      return 'first';
    }
  }

  return { render, inlineSystem: inlineSystem() };
}

/** A template that walks through the parts of a content is given parts, any other is given text: vLLM's "openai" and "string". */
const CONTENT_LOOP = /\bfor\s+\w+(?:\s*,\s*\w+)?\s+in\s+[\w.]+(?:\.content|\[\s*(['"])content\1\s*\])/;

/**
 * What a developer says is the system's where a template knows none, and then all of the system's is one message before the
 * others (vLLM's `_convert_developer_to_system` and `_consolidate_system_messages`).
 */
function developersAsSystem(messages: readonly Message[]): readonly Message[] {
  if (!messages.some(({ role }) => role === 'developer')) return messages;
  const converted = messages.map((one) => (one['role'] === 'developer' ? { ...one, role: 'system' } : one));
  const isOfSystem = ({ role }: Message): boolean => role === 'system';
  if (converted.findLastIndex(isOfSystem) === 0) return converted;
  const contents = converted
    .filter(isOfSystem)
    .map(({ content }) =>
      Array.isArray(content) ? content.map((part) => recordOf(part)['text']).join('\n') : String(content),
    );
  const merged = { role: 'system', content: contents.filter((text) => text !== '').join('\n\n') };
  return [merged, ...converted.filter((one) => !isOfSystem(one))];
}

/** Python's `strip` with the characters to strip, which the library's own leaves out of account. */
const STRIPS: Readonly<Record<string, (text: string, characters: string) => string>> = {
  'strip of': (text, characters) => strippedEnd(strippedStart(text, characters), characters),
  'lstrip of': strippedStart,
  'rstrip of': strippedEnd,
};

function strippedStart(text: string, characters: string): string {
  let at = 0;
  while (at < text.length && characters.includes(text[at]!)) at++;
  return text.slice(at);
}

function strippedEnd(text: string, characters: string): string {
  let end = text.length;
  while (end > 0 && characters.includes(text[end - 1]!)) end--;
  return text.slice(0, end);
}

/** `text.strip(characters)` → `strip of(text, characters)`, everywhere in a template. */
function callStripsByName(node: unknown): void {
  if (typeof node !== 'object' || node === null) return;
  const { type, callee, args } = node as { type?: unknown; callee?: Fields; args?: unknown[] };
  const method = `${String(recordOf(callee?.['property'])['value'])} of`;
  if (type === 'CallExpression' && callee?.['computed'] === false && args?.length === 1 && method in STRIPS) {
    Object.assign(node, { callee: { type: 'Identifier', value: method }, args: [callee['object'], ...args] });
  }
  for (const inner of Object.values(node)) callStripsByName(inner);
}

/** Null for a message with anything but text. */
function messageOf(message: Fields, takesParts: boolean): Message | null {
  const { content, tool_calls: toolCalls, reasoning, reasoning_content: reasoningContent } = message;
  const result: Message = { role: message['role'] };
  const thought = reasoning ?? reasoningContent;
  // Without any it is a turn of calls alone: templates test the content before they use it.
  const texts = textsOf(content, message['role'] === 'system' ? withoutAttribution : (text) => text);
  if (texts === null) return null;
  const shown = takesParts ? texts : texts.filter((text) => text !== '');
  // What a tool says is a text for every template.
  const isText = !takesParts || message['role'] === 'tool';
  result['content'] = isText ? shown.join('\n') : shown.map((text) => ({ type: 'text', text }));
  if (Array.isArray(toolCalls) && toolCalls.length > 0) result['tool_calls'] = toolCalls.map(toolCallOf);
  if (isPresent(thought)) result['reasoning'] = result['reasoning_content'] = thought;
  for (const name of ['name', 'tool_call_id'] as const) if (isPresent(message[name])) result[name] = message[name];
  return result;
}

/** Null where there is anything but text. @param cut gives null for a text that is left out */
function textsOf(content: unknown, cut: (text: string) => string | null): readonly string[] | null {
  if (isPresent(content) && typeof content !== 'string' && !Array.isArray(content)) return null;
  const parts: readonly unknown[] = typeof content === 'string' ? [content] : listOf(content);
  const texts: string[] = [];
  for (const part of parts) {
    const text = typeof part === 'string' ? part : textOfPart(recordOf(part));
    if (text === null) return null;
    const rest = cut(text);
    if (rest !== null) texts.push(rest);
  }
  return texts;
}

/** A line by which a client names itself, new with every request (vLLM's `_strip_claude_code_billing_header`). */
function withoutAttribution(text: string): string | null {
  if (!text.startsWith('x-anthropic-billing-header')) return text;
  const lineEnd = text.indexOf('\n');
  return text.slice(lineEnd < 0 ? text.length : lineEnd + 1) || null;
}

function textOfPart({ type, text, refusal }: Fields): string | null {
  if (type === 'text' || type === 'input_text' || type === 'output_text') return typeof text === 'string' ? text : null;
  return type === 'refusal' && typeof refusal === 'string' ? refusal : null;
}

/** Templates print the arguments of a call as an object, clients send them as text. */
function toolCallOf(call: unknown): unknown {
  const called = recordOf(recordOf(call)['function']);
  const { arguments: given } = called;
  if (typeof given !== 'string') return call;
  return { ...recordOf(call), function: { ...called, arguments: given === '' ? {} : (JSON.parse(given) as unknown) } };
}

/** With the fields of vLLM's own type in its order, whatever the client left out. */
function toolsOf(tools: unknown): readonly unknown[] | null {
  if (!Array.isArray(tools) || tools.length === 0) return null;
  return tools.map((tool) => {
    const { name, description, parameters, ...others } = recordOf(recordOf(tool)['function']);
    return {
      type: 'function',
      function: { name, description: description ?? null, parameters: parameters ?? null, ...others },
    };
  });
}

function isPresent(value: unknown): boolean {
  return value !== undefined && value !== null;
}

function listOf(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

function recordOf(value: unknown): Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : {};
}
