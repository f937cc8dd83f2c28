/**
 * Prompts of request bodies → token ids and multimodal features, as vLLM computes them: messages, texts, token ids. Whose
 * request it is and what else it asks for is openai-requests.ts.
 */
import { createHash } from 'node:crypto';
import type { MultimodalFeature } from '../tokenizer/tokenizer.ts';
import { isPresent, list, object, optionalCount, Rejection, type Fields } from './body-fields.ts';
import {
  applyChatTemplate,
  encodeText,
  SPECIAL,
  VOCABULARY_SIZE,
  type ChatMessage,
  type ChatTemplateInput,
  type ContentPart,
} from './tokenizer.ts';

export type TokenizedInput = { readonly tokenIds: readonly number[]; readonly features: readonly MultimodalFeature[] };

/**
 * @param reads 'all': what chat serving hands to the template. 'tokenize': what /tokenize knows of, thus without
 * `documents` and `reasoning_effort`, which reach the template through `chat_template_kwargs` only.
 */
export function chatPrompt(fields: Fields, reads: 'all' | 'tokenize'): TokenizedInput {
  if (isPresent(fields['chat_template'])) {
    throw new Rejection(
      400,
      'Chat template is passed with request, but request templates are not trusted',
      'chat_template',
    );
  }
  const messages = fields['messages'];
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new Rejection(400, 'messages must be a non-empty list', 'messages');
  }
  const continued = fields['continue_final_message'] === true;
  const prompted = fields['add_generation_prompt'] !== false;
  // The default of add_generation_prompt gives way; only an explicit true conflicts.
  if (continued && fields['add_generation_prompt'] === true) {
    throw new Rejection(
      400,
      'Cannot set both `continue_final_message` and `add_generation_prompt` to True.',
      'continue_final_message',
    );
  }
  const ending: ChatTemplateInput['ending'] = continued ? 'continue_final' : prompted ? 'generation_prompt' : 'none';
  const { tokenIds, features } = applyChatTemplate({
    messages: messages.map(chatMessage),
    preamble: preambleOf(fields, reads),
    ending,
  });
  // The template writes the first special token itself; this one comes on top, as with real tokenizers.
  if (fields['add_special_tokens'] !== true) return { tokenIds, features };
  const shifted = features.map((feature) => ({ ...feature, offset: feature.offset + 1 }));
  return { tokenIds: [SPECIAL.beginOfText, ...tokenIds], features: shifted };
}

export function completionPrompts(fields: Fields): TokenizedInput[] {
  const prompt = fields['prompt'];
  if (typeof prompt === 'string') return [{ tokenIds: completionTokens(prompt, fields), features: [] }];
  if (!Array.isArray(prompt) || prompt.length === 0) {
    throw new Rejection(400, 'prompt must be a string, a list of strings, token ids or lists of token ids', 'prompt');
  }
  const items: readonly unknown[] = prompt;
  if (typeof items[0] === 'number') return [{ tokenIds: tokenIdsOf(items, 'prompt'), features: [] }];
  return items.map((item) => ({
    tokenIds: typeof item === 'string' ? completionTokens(item, fields) : tokenIdsOf(item, 'prompt'),
    features: [],
  }));
}

export function completionTokens(text: string, fields: Fields): number[] {
  const tokenIds = encodeText(text);
  if (fields['add_special_tokens'] !== false) tokenIds.unshift(SPECIAL.beginOfText);
  if (tokenIds.length === 0) throw new Rejection(400, 'The prompt is empty', 'prompt');
  return tokenIds;
}

export function tokenIdsOf(value: unknown, param: string): number[] {
  if (!Array.isArray(value) || value.length === 0) {
    throw new Rejection(400, `${param} must be a non-empty list of token ids`, param);
  }
  return value.map((id: unknown) => {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= VOCABULARY_SIZE) {
      throw new Rejection(400, `Token id ${String(id)} is out of vocabulary (0 to ${VOCABULARY_SIZE - 1})`, param);
    }
    return id;
  });
}

/** `mm_hashes` and `mm_placeholders` as render gives them. */
export function featuresOf(given: unknown): MultimodalFeature[] {
  if (!isPresent(given)) return [];
  const { mm_hashes: hashes, mm_placeholders: places } = object(given, 'features');
  const placesOf = object(places, 'features.mm_placeholders');
  const features = Object.entries(object(hashes, 'features.mm_hashes')).flatMap(([modality, identifiers]) =>
    list(identifiers, 'features.mm_hashes').map((identifier, i) => {
      const { offset, length } = object(
        list(placesOf[modality], 'features.mm_placeholders')[i],
        'features.mm_placeholders',
      );
      return { identifier: String(identifier), offset: Number(offset), length: Number(length) };
    }),
  );
  return features.sort((a, b) => a.offset - b.offset);
}

/** `truncate_prompt_tokens`: the last n tokens stay; −1 means as many as the model takes. */
export function truncated(fields: Fields, prompt: TokenizedInput, maxModelLen: number): TokenizedInput {
  const given = optionalCount(fields, 'truncate_prompt_tokens', -1);
  if (given === null || given === 0) return prompt;
  const nKept = given === -1 ? maxModelLen : given;
  return { tokenIds: prompt.tokenIds.slice(-nKept), features: prompt.features };
}

function preambleOf(fields: Fields, reads: 'all' | 'tokenize'): string | null {
  const given = fields['chat_template_kwargs'];
  const kwargs: Fields = isPresent(given) ? object(given, 'chat_template_kwargs') : {};
  const effort = (reads === 'all' ? fields['reasoning_effort'] : undefined) ?? undefined;
  const parts = {
    tools: fields['tools'] ?? undefined,
    documents: (reads === 'all' ? fields['documents'] : undefined) ?? kwargs['documents'],
    reasoning_effort: effort ?? kwargs['reasoning_effort'],
    // Whoever names an effort wants thoughts, unless it is none.
    enable_thinking: kwargs['enable_thinking'] ?? (effort === undefined ? undefined : effort !== 'none'),
  };
  const text = JSON.stringify(parts);
  return text === '{}' ? null : text;
}

function chatMessage(value: unknown): ChatMessage {
  const fields = object(value, 'messages');
  const role = fields['role'];
  if (typeof role !== 'string' || role === '') throw new Rejection(400, 'Every message needs a role', 'messages');
  const content = fields['content'] ?? '';
  const toolCalls = fields['tool_calls'] ?? null;
  if (typeof content === 'string') return { role, content, toolCalls };
  if (!Array.isArray(content)) throw new Rejection(400, 'content must be a string or a list of parts', 'messages');
  return { role, content: content.map(contentPart), toolCalls };
}

function contentPart(value: unknown): ContentPart {
  const fields = object(value, 'messages');
  if (typeof fields['text'] === 'string') return { type: 'text', text: fields['text'] };
  const image = fields['image_url'];
  const url = typeof image === 'object' && image !== null && 'url' in image ? image.url : image;
  if (typeof url === 'string') {
    // Named by what the client wrote; nothing is fetched.
    return { type: 'image', identifier: createHash('sha256').update(url).digest('hex') };
  }
  throw new Rejection(400, `Unknown part type: ${String(fields['type'])}`, 'messages');
}
