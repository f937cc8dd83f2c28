/**
 * Bodies of the OpenAI API and of vLLM's tokenizer endpoints → what the engine is to compute. Validates as far as clients
 * depend on it; fields that change nothing here (sampling, stop strings, response formats) are accepted and ignored. The
 * prompt itself is prompts.ts.
 */
import { chatOfMessages, chatOfResponses } from './api-forms.ts';
import type { LoraAdapter } from './block-chain.ts';
import {
  guarded,
  isPresent,
  object,
  optionalCount,
  optionalString,
  Rejection,
  type ApiError,
  type Fields,
} from './body-fields.ts';
import {
  chatPrompt,
  completionPrompts,
  completionTokens,
  featuresOf,
  tokenIdsOf,
  truncated,
  type TokenizedInput,
} from './prompts.ts';
import type { ServedModel, ServedModels } from './served-models.ts';

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
        return generation(fields, 'chat', [truncated(fields, chatPrompt(fields, 'all'), limits.maxModelLen)]);
      }),

    completions: (body) =>
      guarded(() => {
        const fields = object(body);
        modelOf(fields);
        const prompts = completionPrompts(fields).map((prompt) => truncated(fields, prompt, limits.maxModelLen));
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
