/**
 * Bodies of the responses API and of Anthropic's messages API as fields of the chat API, since an engine knows chats only: as
 * vLLM 0.32 converts them, as far as it shows in tokens. System messages between others stay where they are.
 */
import { isPresent, list, object, optionalCount, optionalString, Rejection, type Fields } from './body-fields.ts';

type Message = Record<string, unknown>;

/** Fields that mean the same in all three APIs. */
function shared({ model, stream, chat_template_kwargs, cache_salt }: Fields): Fields {
  return { model, stream, chat_template_kwargs, cache_salt };
}

export function chatOfMessages(fields: Fields): Fields {
  for (const name of ['model', 'messages', 'max_tokens']) {
    if (!isPresent(fields[name])) throw new Rejection(400, `Field required: ${name}`, `body.${name}`);
  }
  const messages: Message[] = [];
  const system = textsOf(fields['system'], 'system');
  if (system !== '') messages.push({ role: 'system', content: system });
  for (const one of list(fields['messages'], 'messages')) messages.push(...turn(object(one, 'messages')));
  const thinking = isPresent(fields['thinking']) ? object(fields['thinking'], 'thinking')['type'] : undefined;
  const effort = isPresent(fields['output_config'])
    ? object(fields['output_config'], 'output_config')['effort']
    : undefined;
  const tools = list(fields['tools'], 'tools').map((tool) => {
    const { name, description, input_schema: parameters } = object(tool, 'tools');
    return { type: 'function', function: { name, description, parameters } };
  });
  return {
    ...shared(fields),
    messages,
    tools: tools.length > 0 ? tools : undefined,
    reasoning_effort: thinking === 'disabled' ? 'none' : effort,
    max_tokens: optionalCount(fields, 'max_tokens', 1),
  };
}

export function chatOfResponses(fields: Fields): Fields {
  const earlier = optionalString(fields, 'previous_response_id');
  if (earlier !== null) throw new Rejection(404, `Response with id '${earlier}' not found.`, 'response_id');
  const messages: Message[] = [];
  const instructions = optionalString(fields, 'instructions');
  if (instructions !== null) messages.push({ role: 'system', content: instructions });
  const { input } = fields;
  if (!isPresent(input)) throw new Rejection(400, 'Field required: input', 'body.input');
  if (typeof input === 'string') messages.push({ role: 'user', content: input });
  else for (const one of list(input, 'input')) messages.push(ofItem(object(one, 'input')));
  const tools = list(fields['tools'], 'tools').map((tool) => {
    const { type, ...definition } = object(tool, 'tools');
    return { type, function: definition };
  });
  return {
    ...shared(fields),
    messages,
    tools: tools.length > 0 ? tools : undefined,
    reasoning_effort: isPresent(fields['reasoning']) ? object(fields['reasoning'], 'reasoning')['effort'] : undefined,
    max_tokens: optionalCount(fields, 'max_output_tokens', 1),
  };
}

function ofItem(item: Fields): Message {
  const { type, role, content } = item;
  if (type === 'function_call') {
    const called = { name: item['name'], arguments: item['arguments'] };
    return { role: 'assistant', tool_calls: [{ id: item['call_id'], type: 'function', function: called }] };
  }
  if (type === 'function_call_output') return { role: 'tool', content: item['output'] };
  if (typeof role !== 'string') throw new Rejection(400, `Unsupported input item type: ${String(type)}`, 'input');
  return { role, content };
}

/** Results of tools come before the turn that brings them. */
function turn({ role, content }: Fields): Message[] {
  if (typeof content === 'string') return [{ role, content }];
  const before: Message[] = [];
  const parts: Message[] = [];
  const calls: Message[] = [];
  for (const one of list(content, 'messages')) {
    const block = object(one, 'messages');
    if (block['type'] === 'text') parts.push({ type: 'text', text: block['text'] });
    else if (block['type'] === 'image')
      parts.push({ type: 'image_url', image_url: { url: urlOf(object(block['source'], 'messages')) } });
    else if (block['type'] === 'tool_use') {
      const called = { name: block['name'], arguments: JSON.stringify(block['input'] ?? {}) };
      calls.push({ id: block['id'], type: 'function', function: called });
    } else if (block['type'] === 'tool_result') {
      before.push({ role: 'tool', content: textsOf(block['content'], 'messages', '\n') });
    }
  }
  if (role === 'user' && parts.length === 0) return before;
  const [only] = parts;
  const said = parts.length === 1 && only!['type'] === 'text' ? only!['text'] : parts;
  return [...before, { role, content: said, ...(calls.length > 0 ? { tool_calls: calls } : {}) }];
}

function urlOf({ type, url, media_type: mediaType, data }: Fields): unknown {
  return type === 'url' ? url : `data:${String(mediaType)};base64,${String(data)}`;
}

/** A text, or the texts of blocks; without the block in which clients name themselves. */
function textsOf(value: unknown, param: string, separator = ''): string {
  if (typeof value === 'string') return value;
  return list(value, param)
    .map((block) => object(block, param)['text'])
    .filter((text) => typeof text === 'string' && !text.startsWith('x-anthropic-billing-header'))
    .join(separator);
}
