/**
 * Answers of the responses API, of Anthropic's messages API and of vLLM's token-in token-out API, whole or as events, as
 * vLLM 0.32 shapes them. One sample each, but for token ids.
 */
import type { ServerResponse } from 'node:http';
import type { GenerationRequest } from './openai-requests.ts';
import { decodeTokens } from './tokenizer.ts';

export type AnswerHead = { readonly id: string; readonly created: number; readonly model: string };

export type AnswerWriter = {
  token(sample: SampleText, tokenId: number, finishReason: string | null): void;
  end(): void;
};

export type SampleText = { readonly index: number; readonly tokenIds: readonly number[] };

export type Counts = {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Null: not to be told. */
  readonly cachedTokens: number | null;
};

export type FormDeps = {
  readonly request: GenerationRequest;
  readonly samples: readonly SampleText[];
  readonly head: AnswerHead;
  readonly counts: () => Counts;
  /** As the chat API has it. */
  readonly usage: () => object;
  readonly response: ServerResponse;
};

export function sendWhole(response: ServerResponse, body: object): void {
  const bytes = Buffer.from(JSON.stringify(body));
  response.writeHead(200, { 'content-type': 'application/json', 'content-length': bytes.length });
  response.end(bytes);
}

export function openEvents(response: ServerResponse): void {
  if (response.headersSent) return;
  response.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8', 'cache-control': 'no-cache' });
}

function sendEvent(response: ServerResponse, event: { readonly type: string }): void {
  openEvents(response);
  response.write(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
}

const textOf = (samples: readonly SampleText[]): string => decodeTokens(samples[0]!.tokenIds);

export function messagesWriter({ request, samples, head, counts, response }: FormDeps): AnswerWriter {
  const { id, model } = head;
  const message = { id, type: 'message', role: 'assistant', model };
  const stopReason = request.finishReason === 'length' ? 'max_tokens' : 'end_turn';
  /** What was cached does not count as input. */
  const usage = (): object => {
    const { promptTokens, completionTokens, cachedTokens } = counts();
    const input = { input_tokens: promptTokens - (cachedTokens ?? 0), output_tokens: completionTokens };
    return cachedTokens === null ? input : { ...input, cache_read_input_tokens: cachedTokens };
  };
  if (request.delivery === 'whole') {
    const whole = (): object => ({
      ...message,
      content: [{ type: 'text', text: textOf(samples) }],
      stop_reason: stopReason,
      usage: usage(),
    });
    return { token: () => undefined, end: () => sendWhole(response, whole()) };
  }
  const send = (type: string, fields: object): void => sendEvent(response, { type, ...fields });
  return {
    token({ tokenIds }, tokenId) {
      if (tokenIds.length === 1) {
        const opened = { ...message, content: [], stop_reason: null, stop_sequence: null, usage: usage() };
        send('message_start', { message: opened });
        send('content_block_start', { index: 0, content_block: { type: 'text', text: '' } });
      }
      send('content_block_delta', { index: 0, delta: { type: 'text_delta', text: decodeTokens([tokenId]) } });
    },
    end() {
      send('content_block_stop', { index: 0 });
      send('message_delta', { delta: { stop_reason: stopReason, stop_sequence: null }, usage: usage() });
      send('message_stop', {});
      response.end();
    },
  };
}

export function responsesWriter({ request, samples, head, counts, response }: FormDeps): AnswerWriter {
  const status = request.finishReason === 'length' ? 'incomplete' : 'completed';
  const item = { id: `msg_${head.id}`, type: 'message', role: 'assistant' };
  const part = (text: string): object => ({ type: 'output_text', text, annotations: [] });
  const usage = (): object => {
    const { promptTokens, completionTokens, cachedTokens } = counts();
    return {
      input_tokens: promptTokens,
      input_tokens_details: { cached_tokens: cachedTokens ?? 0 },
      output_tokens: completionTokens,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: promptTokens + completionTokens,
    };
  };
  const begun = {
    id: head.id,
    object: 'response',
    created_at: head.created,
    model: head.model,
    status: 'in_progress',
    output: [] as readonly object[],
    previous_response_id: null,
  };
  const ended = (): object => ({
    ...begun,
    status,
    incomplete_details: status === 'incomplete' ? { reason: 'max_output_tokens' } : null,
    output: [{ ...item, status, content: [part(textOf(samples))] }],
    usage: usage(),
  });
  if (request.delivery === 'whole') return { token: () => undefined, end: () => sendWhole(response, ended()) };
  let sequence = 0;
  const send = (type: string, fields: object): void =>
    sendEvent(response, { type, ...{ sequence_number: sequence++ }, ...fields });
  const place = { item_id: item.id, output_index: 0, content_index: 0 };
  return {
    token({ tokenIds }, tokenId) {
      if (tokenIds.length === 1) {
        send('response.created', { response: begun });
        send('response.in_progress', { response: begun });
        send('response.output_item.added', { output_index: 0, item: { ...item, status: 'in_progress', content: [] } });
        send('response.content_part.added', { ...place, part: part('') });
      }
      send('response.output_text.delta', { ...place, delta: decodeTokens([tokenId]) });
    },
    end() {
      const text = textOf(samples);
      send('response.output_text.done', { ...place, text });
      send('response.content_part.done', { ...place, part: part(text) });
      send('response.output_item.done', { output_index: 0, item: { ...item, status, content: [part(text)] } });
      send(`response.${status}`, { response: ended() });
      response.end();
    },
  };
}

export function generateWriter({ request, samples, head, usage, response }: FormDeps): AnswerWriter {
  const form = { request_id: head.id, output_mode: 'tokens' };
  const choice = (index: number, ids: readonly number[], finishReason: string | null): object => ({
    index,
    logprobs: null,
    finish_reason: finishReason,
    stop_reason: null,
    token_ids: ids,
  });
  if (request.delivery === 'whole') {
    const whole = (): object => ({
      ...form,
      model: head.model,
      created: head.created,
      choices: samples.map(({ index, tokenIds }) => choice(index, tokenIds, request.finishReason)),
      usage: usage(),
      prompt_logprobs: null,
      kv_transfer_params: null,
    });
    return { token: () => undefined, end: () => sendWhole(response, whole()) };
  }
  const send = (choices: readonly object[], given: object | null): void => {
    openEvents(response);
    response.write(`data: ${JSON.stringify({ ...form, choices, usage: given })}\n\n`);
  };
  return {
    token: ({ index }, tokenId, finishReason) => send([choice(index, [tokenId], finishReason)], null),
    end() {
      if (request.streamUsage !== 'none') send([], usage());
      response.end('data: [DONE]\n\n');
    },
  };
}
