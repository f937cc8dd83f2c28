/**
 * Sends one chat completion and times its answer the way a user feels it: from the wish to the first piece of content.
 * Never throws for what a server does; every failure is an outcome with its reason.
 */
import type { Dispatcher } from 'undici';
import { request } from 'undici';
import { errorText } from '../errors.ts';
import type { Gateway } from './gateway.ts';

export type ChatOutcome =
  | {
      readonly kind: 'answered';
      /** From the call to the first content. */
      readonly ttftMs: number;
      readonly promptTokens: number;
      readonly cachedTokens: number;
      readonly answer: string;
    }
  | { readonly kind: 'failed'; readonly reason: string };

export type ChatBody = {
  readonly model: string;
  readonly messages: readonly object[];
  readonly maxTokens: number;
};

export const CHAT_PATH = '/v1/chat/completions';
/** Longest silence of an answer. */
const SILENCE_TIMEOUT_MS = 30_000;

export async function sendChat(
  gateway: Gateway,
  dispatcher: Dispatcher,
  body: ChatBody,
  signal: AbortSignal,
): Promise<ChatOutcome> {
  const startMs = performance.now();
  const bytes = Buffer.from(
    JSON.stringify({
      model: body.model,
      messages: body.messages,
      max_tokens: body.maxTokens,
      stream: true,
      stream_options: { include_usage: true },
    }),
  );
  const headers = { 'content-type': 'application/json', 'content-length': String(bytes.length) };
  try {
    const way = await gateway.open(CHAT_PATH, headers, bytes);
    if (way.kind === 'refused') return { kind: 'failed', reason: way.reason };
    try {
      const response = await request(`http://${way.address}${CHAT_PATH}`, {
        method: 'POST',
        headers: { ...headers, ...way.headers },
        body: bytes,
        dispatcher,
        signal,
        headersTimeout: SILENCE_TIMEOUT_MS,
        bodyTimeout: SILENCE_TIMEOUT_MS,
      });
      if (response.statusCode !== 200) {
        return {
          kind: 'failed',
          reason: `status ${response.statusCode}: ${(await response.body.text()).slice(0, 200)}`,
        };
      }
      return await readAnswer(response.body, startMs);
    } finally {
      way.end();
    }
  } catch (error) {
    return { kind: 'failed', reason: errorText(error) };
  }
}

type Chunk = {
  choices?: { delta?: { content?: string } }[];
  usage?: { prompt_tokens: number; prompt_tokens_details?: { cached_tokens?: number } | null } | null;
};

async function readAnswer(stream: AsyncIterable<Buffer>, startMs: number): Promise<ChatOutcome> {
  let ttftMs: number | null = null;
  let usage: Chunk['usage'] = null;
  let answer = '';
  let done = false;
  let rest = '';
  const decoder = new TextDecoder();
  for await (const bytes of stream) {
    const events = (rest + decoder.decode(bytes, { stream: true })).split('\n\n');
    rest = events.pop()!;
    for (const event of events) {
      if (!event.startsWith('data: ')) continue;
      const text = event.slice('data: '.length);
      if (text === '[DONE]') {
        done = true;
        continue;
      }
      const chunk = JSON.parse(text) as Chunk;
      const content = chunk.choices?.[0]?.delta?.content ?? '';
      if (content !== '') ttftMs ??= performance.now() - startMs;
      answer += content;
      usage = chunk.usage ?? usage;
    }
  }
  if (!done) return { kind: 'failed', reason: 'the answer was cut' };
  if (ttftMs === null || usage === null || usage === undefined) {
    return { kind: 'failed', reason: 'the answer has no content or no usage' };
  }
  return {
    kind: 'answered',
    ttftMs,
    promptTokens: usage.prompt_tokens,
    // Older engines leave the details out where nothing was cached.
    cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
    answer,
  };
}
