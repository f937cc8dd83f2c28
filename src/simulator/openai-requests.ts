/**
 * Bodies of the OpenAI API and of vLLM's tokenizer endpoints → what the engine is to compute. Validates as far as clients
 * depend on it; fields that change nothing here (sampling, stop strings, response formats) are accepted and ignored.
 */
import { createHash } from 'node:crypto';
import type { MultimodalFeature } from '../tokenizer/tokenizer.ts';
import { chatOfMessages, chatOfResponses } from './api-forms.ts';
import type { LoraAdapter } from './block-chain.ts';
import {
  guarded,
  isPresent,
  list,
  object,
  optionalCount,
  optionalString,
  Rejection,
  type ApiError,
  type Fields,
} from './body-fields.ts';
import type { ServedModel, ServedModels } from './served-models.ts';
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

export type { ApiError };

export type GenerationApi = 'chat' | 'completions' | 'responses' | 'messages' | 'generate';

export type GenerationRequest = {
  readonly api: GenerationApi;
  /** As answers name it. */
  readonly model: string;
  readonly lora: LoraAdapter | null;
  /** At least one. */
  readonly prompts: readonly TokenizedInput[];
  readonly nSamples: number;
  readonly maxTokens: number;
  /** Why answers end: at a limit the client set, or because the model has said all. */
  readonly finishReason: 'length' | 'stop';
  readonly delivery: 'stream' | 'whole';
  readonly streamUsage: 'none' | 'final' | 'continuous';
  readonly cacheSalt: string | null;
  readonly cacheReads: 'allowed' | 'skipped';
  readonly echo: 'prompt' | 'none';
  readonly tokenIdsInAnswer: 'yes' | 'no';
  /** What the answer depends on beside the prompt. */
  readonly answerSeed: string;
};

export type RequestLimits = {
  readonly maxModelLen: number;
  /** Length of a chat answer when the client sets no limit. */
  readonly defaultAnswerTokens: number;
};

export type RequestReader = {
  chat(body: unknown): GenerationRequest | ApiError;
  completions(body: unknown): GenerationRequest | ApiError;
  /** Without state: what refers to an earlier response is not found. */
  responses(body: unknown): GenerationRequest | ApiError;
  /** Anthropic's. */
  messages(body: unknown): GenerationRequest | ApiError;
  /** vLLM's token-in token-out API. */
  generate(body: unknown): GenerationRequest | ApiError;
  /** vLLM's /tokenize: completion form or chat form. */
  tokenize(body: unknown): TokenizedInput | ApiError;
  /** vLLM's /detokenize. */
  detokenize(body: unknown): readonly number[] | ApiError;
};

/** Length of a completion when the client sets no limit: OpenAI's and vLLM's default. */
const DEFAULT_COMPLETION_TOKENS = 16;
const MAX_SAMPLES = 64;

export function createRequestReader(models: ServedModels, limits: RequestLimits): RequestReader {
  const modelOf = (fields: Fields): ServedModel => {
    const name = optionalString(fields, 'model');
    const model = models.resolve(name);
    if (model === undefined) throw new Rejection(404, `The model \`${name}\` does not exist.`, 'model');
    return model;
  };

  const generation = (fields: Fields, api: GenerationRequest['api'], prompts: TokenizedInput[]): GenerationRequest => {
    const model = modelOf(fields);
    const asked =
      optionalCount(fields, 'max_completion_tokens', 1) ?? optionalCount(fields, 'max_tokens', 1) ?? undefined;
    const talks = api === 'chat' || api === 'responses';
    const byDefault = talks ? limits.defaultAnswerTokens : DEFAULT_COMPLETION_TOKENS;
    const nPromptTokens = Math.max(...prompts.map((prompt) => prompt.tokenIds.length));
    const room = limits.maxModelLen - nPromptTokens;
    if (room < (asked ?? 1)) {
      const wanted = asked === undefined ? '' : ` and ${asked} output tokens`;
      throw new Rejection(
        400,
        `This model's maximum context length is ${limits.maxModelLen} tokens. However, your request has ${nPromptTokens} input tokens${wanted}.`,
        'input_tokens',
      );
    }
    const samples = optionalCount(fields, 'n', 1) ?? 1;
    if (samples > MAX_SAMPLES) throw new Rejection(400, `n must be at most ${MAX_SAMPLES}, got ${samples}`, 'n');
    return {
      api,
      model: model.name,
      lora: model.lora,
      prompts,
      nSamples: samples,
      maxTokens: Math.min(asked ?? byDefault, room),
      finishReason: asked === undefined && talks ? 'stop' : 'length',
      delivery: fields['stream'] === true ? 'stream' : 'whole',
      streamUsage: streamUsageOf(fields),
      cacheSalt: cacheSaltOf(fields),
      cacheReads: isPresent(fields['prompt_logprobs']) ? 'skipped' : 'allowed',
      echo: fields['echo'] === true ? 'prompt' : 'none',
      tokenIdsInAnswer: fields['return_token_ids'] === true ? 'yes' : 'no',
      answerSeed: `${model.name}\n${String(fields['seed'] ?? '')}`,
    };
  };

  return {
    chat: (body) =>
      guarded(() => {
        const fields = object(body);
        modelOf(fields);
        return generation(fields, 'chat', [truncated(fields, chatPrompt(fields, 'all'), limits)]);
      }),

    completions: (body) =>
      guarded(() => {
        const fields = object(body);
        modelOf(fields);
        const prompts = completionPrompts(fields).map((prompt) => truncated(fields, prompt, limits));
        return generation(fields, 'completions', prompts);
      }),

    responses: (body) =>
      guarded(() => {
        const fields = object(body);
        modelOf(fields);
        const chat = chatOfResponses(fields);
        return generation(chat, 'responses', [chatPrompt(chat, 'all')]);
      }),

    messages: (body) =>
      guarded(() => {
        const fields = object(body);
        const chat = chatOfMessages(fields);
        modelOf(fields);
        return generation(chat, 'messages', [chatPrompt(chat, 'all')]);
      }),

    generate: (body) =>
      guarded(() => {
        const fields = object(body);
        modelOf(fields);
        const tokenIds = tokenIdsOf(fields['token_ids'], 'token_ids');
        const sampling = object(fields['sampling_params'], 'sampling_params');
        const { stream, stream_options, model, cache_salt } = fields;
        const asked = { ...sampling, model, stream, stream_options, cache_salt };
        return generation(asked, 'generate', [{ tokenIds, features: featuresOf(fields['features']) }]);
      }),

    tokenize: (body) =>
      guarded(() => {
        const fields = object(body);
        modelOf(fields);
        if ('messages' in fields) return chatPrompt(fields, 'tokenize');
        if (typeof fields['prompt'] !== 'string') throw new Rejection(400, 'prompt must be a string', 'prompt');
        return { tokenIds: completionTokens(fields['prompt'], fields), features: [] };
      }),

    detokenize: (body) =>
      guarded(() => {
        const fields = object(body);
        modelOf(fields);
        return tokenIdsOf(fields['tokens'], 'tokens');
      }),
  };
}

export function isApiError(value: object): value is ApiError {
  return 'kind' in value && value.kind === 'error';
}

/**
 * @param reads 'all': what chat serving hands to the template. 'tokenize': what /tokenize knows of, thus without
 * `documents` and `reasoning_effort`, which reach the template through `chat_template_kwargs` only.
 */
function chatPrompt(fields: Fields, reads: 'all' | 'tokenize'): TokenizedInput {
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

function completionPrompts(fields: Fields): TokenizedInput[] {
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

function completionTokens(text: string, fields: Fields): number[] {
  const tokenIds = encodeText(text);
  if (fields['add_special_tokens'] !== false) tokenIds.unshift(SPECIAL.beginOfText);
  if (tokenIds.length === 0) throw new Rejection(400, 'The prompt is empty', 'prompt');
  return tokenIds;
}

function tokenIdsOf(value: unknown, param: string): number[] {
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
function featuresOf(given: unknown): MultimodalFeature[] {
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
function truncated(fields: Fields, prompt: TokenizedInput, limits: RequestLimits): TokenizedInput {
  const given = optionalCount(fields, 'truncate_prompt_tokens', -1);
  if (given === null || given === 0) return prompt;
  const nKept = given === -1 ? limits.maxModelLen : given;
  return { tokenIds: prompt.tokenIds.slice(-nKept), features: prompt.features };
}

function streamUsageOf(fields: Fields): GenerationRequest['streamUsage'] {
  const given = fields['stream_options'];
  if (!isPresent(given)) return 'none';
  if (fields['stream'] !== true) {
    throw new Rejection(400, 'Stream options can only be defined when `stream=True`.', 'stream_options');
  }
  const options = object(given, 'stream_options');
  if (options['include_usage'] !== true) return 'none';
  return options['continuous_usage_stats'] === true ? 'continuous' : 'final';
}

function cacheSaltOf(fields: Fields): string | null {
  const salt = fields['cache_salt'];
  if (!isPresent(salt)) return null;
  if (typeof salt !== 'string' || salt === '') {
    throw new Rejection(400, "Parameter 'cache_salt' must be a non-empty string if provided.", 'cache_salt');
  }
  return salt;
}
