/**
 * Runs generation requests on the engine and writes their answers, whole or as server-sent events: those of the chat and
 * completions APIs here, others by answer-forms.ts. A client that goes away frees its requests.
 */
import { createHash } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import type { Clock } from '../clock.ts';
import {
  generateWriter,
  messagesWriter,
  openEvents,
  responsesWriter,
  sendWhole,
  type AnswerHead,
  type AnswerWriter,
  type Counts,
} from './answer-forms.ts';
import type { Engine } from './engine.ts';
import type { EventsForm } from './kv-event-encoding.ts';
import type { GenerationRequest } from './openai-requests.ts';
import { answerToken, decodeTokens } from './tokenizer.ts';

export type AnswerOptions = {
  /** Era of the engine: decides how `prompt_tokens_details` looks. */
  readonly era: EventsForm;
  /** 'off' leaves `prompt_tokens_details` null, as vLLM does without --enable-prompt-tokens-details. */
  readonly promptTokensDetails: 'on' | 'off';
};

type Sample = {
  readonly index: number;
  readonly promptIndex: number;
  readonly tokenIds: number[];
  cachedTokens: number;
};

type Answering = {
  readonly request: GenerationRequest;
  readonly samples: readonly Sample[];
  readonly head: AnswerHead;
  readonly options: AnswerOptions;
  readonly response: ServerResponse;
};

/** @param id of the answer; the engine's requests derive theirs from it */
export function answer(
  deps: { readonly engine: Engine; readonly clock: Clock },
  options: AnswerOptions,
  id: string,
  request: GenerationRequest,
  response: ServerResponse,
): void {
  const { engine, clock } = deps;
  const samples: Sample[] = request.prompts.flatMap((_, promptIndex) =>
    Array.from({ length: request.nSamples }, (__, n) => ({
      index: promptIndex * request.nSamples + n,
      promptIndex,
      tokenIds: [],
      cachedTokens: 0,
    })),
  );
  const head = { id, created: Math.floor(clock.unixMs() / 1000), model: request.model };
  const writer = writerOf({ request, samples, head, options, response });

  let nOpen = samples.length;
  response.once('close', () => {
    if (nOpen > 0) for (const sample of samples) engine.abort(`${id}-${sample.index}`);
  });
  engine.submit(
    samples.map((sample) => {
      const prompt = request.prompts[sample.promptIndex]!;
      const answerKey = answerKeyOf(request, prompt.tokenIds, sample.index - sample.promptIndex * request.nSamples);
      return {
        id: `${id}-${sample.index}`,
        promptTokenIds: prompt.tokenIds,
        features: prompt.features,
        lora: request.lora,
        cacheSalt: request.cacheSalt,
        cacheReads: request.cacheReads,
        maxTokens: request.maxTokens,
        finishReason: request.finishReason,
        generate: (index) => answerToken(answerKey, index),
        onToken: ({ tokenId, cachedTokens, last }) => {
          sample.tokenIds.push(tokenId);
          sample.cachedTokens = cachedTokens;
          writer.token(sample, tokenId, last ? request.finishReason : null);
          if (last && --nOpen === 0) writer.end();
        },
      };
    }),
  );
}

/** Equal requests are answered equally, by every pod; the samples of one request differ. */
function answerKeyOf(request: GenerationRequest, promptTokenIds: readonly number[], sampleIndex: number): string {
  const hash = createHash('sha256').update(request.answerSeed);
  return hash.update(Uint32Array.from(promptTokenIds)).update(`\n${sampleIndex}`).digest('hex');
}

const FORMS = { responses: responsesWriter, messages: messagesWriter, generate: generateWriter } as const;

function writerOf(answering: Answering): AnswerWriter {
  const { request, samples, head, options, response } = answering;
  if (request.api !== 'chat' && request.api !== 'completions') {
    const counts = (): Counts => countsOf(request, samples, options);
    const usage = (): object => usageOf(request, samples, options);
    return FORMS[request.api]({ request, samples, head, counts, usage, response });
  }
  return request.delivery === 'stream' ? streamWriter(answering) : wholeWriter(answering);
}

function wholeWriter({ request, samples, head, options, response }: Answering): AnswerWriter {
  return {
    token: () => undefined,
    end() {
      const usage = usageOf(request, samples, options);
      const choices = samples.map((sample) => wholeChoice(request, sample));
      const object = request.api === 'chat' ? 'chat.completion' : 'text_completion';
      sendWhole(response, { id: head.id, object, created: head.created, model: head.model, choices, usage });
    },
  };
}

function wholeChoice(request: GenerationRequest, sample: Sample): object {
  const promptIds = request.prompts[sample.promptIndex]!.tokenIds;
  const tokenIds =
    request.tokenIdsInAnswer === 'yes' ? { token_ids: sample.tokenIds, prompt_token_ids: promptIds } : {};
  const text = decodeTokens(sample.tokenIds);
  const common = { index: sample.index, logprobs: null, finish_reason: request.finishReason, ...tokenIds };
  if (request.api === 'chat') {
    return { ...common, message: { role: 'assistant', content: text, tool_calls: [] } };
  }
  return { ...common, text: request.echo === 'prompt' ? decodeTokens(promptIds) + text : text };
}

function streamWriter({ request, samples, head, options, response }: Answering): AnswerWriter {
  const object = request.api === 'chat' ? 'chat.completion.chunk' : 'text_completion';
  const send = (choices: readonly object[], usage: object | undefined): void => {
    response.write(`data: ${JSON.stringify({ ...head, object, choices, usage })}\n\n`);
  };
  const open = (sample: Sample): void => {
    openEvents(response);
    const promptIds = request.prompts[sample.promptIndex]!.tokenIds;
    if (request.api === 'chat') {
      send([{ index: sample.index, delta: { role: 'assistant', content: '' }, finish_reason: null }], undefined);
    } else if (request.echo === 'prompt') {
      send([{ index: sample.index, text: decodeTokens(promptIds), finish_reason: null }], undefined);
    }
  };
  return {
    token(given, tokenId, finishReason) {
      const sample = samples[given.index]!;
      if (sample.tokenIds.length === 1) open(sample);
      const text = decodeTokens([tokenId]);
      const common = { index: sample.index, logprobs: null, finish_reason: finishReason };
      const choice = request.api === 'chat' ? { ...common, delta: { content: text } } : { ...common, text };
      const usage = request.streamUsage === 'continuous' ? usageOf(request, [sample], options) : undefined;
      send([request.tokenIdsInAnswer === 'yes' ? { ...choice, token_ids: [tokenId] } : choice], usage);
    },
    end() {
      if (request.streamUsage !== 'none') send([], usageOf(request, samples, options));
      response.end('data: [DONE]\n\n');
    },
  };
}

function usageOf(request: GenerationRequest, samples: readonly Sample[], options: AnswerOptions): object {
  const { promptTokens, completionTokens } = countsOf(request, samples, options);
  return {
    prompt_tokens: promptTokens,
    total_tokens: promptTokens + completionTokens,
    completion_tokens: completionTokens,
    prompt_tokens_details: promptTokensDetails(samples.at(-1)!.cachedTokens, options),
  };
}

/** A prompt counts once however many answers it got; the cached tokens are the last answer's, as vLLM reports them. */
function countsOf(request: GenerationRequest, samples: readonly Sample[], options: AnswerOptions): Counts {
  const promptIndexes = new Set(samples.map((sample) => sample.promptIndex));
  let promptTokens = 0;
  for (const promptIndex of promptIndexes) promptTokens += request.prompts[promptIndex]!.tokenIds.length;
  return {
    promptTokens,
    completionTokens: samples.reduce((sum, sample) => sum + sample.tokenIds.length, 0),
    cachedTokens: options.promptTokensDetails === 'off' ? null : samples.at(-1)!.cachedTokens,
  };
}

function promptTokensDetails(cachedTokens: number, options: AnswerOptions): object | null {
  if (options.promptTokensDetails === 'off') return null;
  if (options.era === 'maps') {
    return { cached_tokens: cachedTokens, created_cache_tokens: null, multimodal_tokens: null };
  }
  return cachedTokens === 0 ? null : { cached_tokens: cachedTokens };
}
