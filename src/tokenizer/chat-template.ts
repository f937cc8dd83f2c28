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

/** @param specialTokens by name, such as `bos_token` */
export function createChatTemplate(source: string, specialTokens: Readonly<Record<string, string>>): ChatTemplate {
  const template = new Template(source);
  const takesParts = CONTENT_LOOP.test(source);

  function render(fields: Fields): string | null {
    if (fields['continue_final_message'] === true || isPresent(fields['chat_template'])) return null;
    const messages = listOf(fields['messages']).map((message) => messageOf(recordOf(message), takesParts));
    if (messages.includes(null)) return null;
    const { reasoning_effort: effort, documents, chat_template_kwargs: given } = fields;
    return template.render({
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

/** Null for a message with anything but text. */
function messageOf(message: Fields, takesParts: boolean): Record<string, unknown> | null {
  const { content, tool_calls: toolCalls, reasoning, reasoning_content: reasoningContent } = message;
  const result: Record<string, unknown> = { role: message['role'] };
  const thought = reasoning ?? reasoningContent;
  if (typeof content === 'string') {
    result['content'] = takesParts ? [{ type: 'text', text: content }] : content;
  } else if (Array.isArray(content)) {
    const texts = content.map((part) => (typeof part === 'string' ? part : textOfPart(recordOf(part))));
    if (texts.includes(null)) return null;
    result['content'] = takesParts ? texts.map((text) => ({ type: 'text', text })) : texts.join('\n');
  } else if (isPresent(content)) {
    return null;
  } else {
    // A turn of calls alone: templates test the content before they use it.
    result['content'] = takesParts ? [] : '';
  }
  if (Array.isArray(toolCalls) && toolCalls.length > 0) result['tool_calls'] = toolCalls.map(toolCallOf);
  if (isPresent(thought)) result['reasoning'] = result['reasoning_content'] = thought;
  for (const name of ['name', 'tool_call_id'] as const) if (isPresent(message[name])) result[name] = message[name];
  return result;
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
