/** Simulated pods over real HTTP and real ZMQ, and the command that runs them. */
import { describe, expect, test } from '@jest/globals';
import { unpack } from 'msgpackr';
import { runSimulateVllm } from '../../src/cli/simulate-vllm.ts';
import { createUsageReader, type Usage } from '../../src/openai/usage.ts';
import {
  createSimulatedPod,
  type SimulatedPod,
  type SimulatedPodAddresses,
} from '../../src/simulator/simulated-pod.ts';
import { endAfterEach } from '../support/endings.ts';
import { askReplay, openLiveStream, replayRequest, until, type LiveStream } from '../support/kv-wire.ts';

type Completion = {
  choices: { text: string; message: { content: string }; finish_reason: string; index: number }[];
  usage: { prompt_tokens: number; completion_tokens: number; prompt_tokens_details: { cached_tokens: number } | null };
};
type WireEvent = { type: string; block_hashes: unknown[]; parent_block_hash: unknown; token_ids: number[] };

type RunningPod = SimulatedPod & SimulatedPodAddresses;

const atEnd = endAfterEach();

/** Fast, unless the test is about time. */
async function aPod(options: Parameters<typeof createSimulatedPod>[0] = {}): Promise<RunningPod> {
  const pod = createSimulatedPod({ prefillTokensPerSecond: 100_000, decodeStepMs: 1, ...options });
  atEnd(() => pod.stop());
  return { ...pod, ...(await pod.start()) };
}

async function aLiveStream(pod: RunningPod): Promise<LiveStream> {
  const stream = await openLiveStream(pod.kvEventsEndpoint);
  atEnd(() => stream.close());
  return stream;
}

async function post(pod: RunningPod, path: string, body: object, signal?: AbortSignal): Promise<Response> {
  const headers = { 'content-type': 'application/json' };
  const init = { method: 'POST', headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) };
  return fetch(`http://${pod.httpAddress}${path}`, init);
}

async function complete(pod: RunningPod, prompt: unknown, more: object = {}): Promise<Completion> {
  const response = await post(pod, '/v1/completions', { prompt, max_tokens: 1, ...more });
  expect(response.status).toBe(200);
  return (await response.json()) as Completion;
}

/** Data of a whole event stream; the last one is `[DONE]`. */
async function serverSentEvents(response: Response): Promise<string[]> {
  const text = await response.text();
  return text
    .split('\n\n')
    .filter((event) => event !== '')
    .map((event) => event.slice('data: '.length));
}

function tokens(first: number, n: number): number[] {
  return Array.from({ length: n }, (_, i) => first + i);
}

function eventsOf(message: readonly Buffer[]): WireEvent[] {
  return (unpack(message[2]!) as [number, WireEvent[], number])[1];
}

function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(':') + 1));
}

describe('the OpenAI API of a simulated pod', () => {
  test("counts cached tokens exactly: all blocks but the last token's, per salt and per adapter", async () => {
    const pod = await aPod({ adapters: ['sql'] });
    const cached = async (prompt: number[], more: object = {}): Promise<number> =>
      (await complete(pod, prompt, more)).usage.prompt_tokens_details!.cached_tokens;
    expect(await cached(tokens(1000, 48))).toBe(0);
    expect(await cached(tokens(1000, 48))).toBe(32);
    expect(await cached(tokens(1000, 49))).toBe(48);
    expect(await cached([...tokens(1000, 30), 7, 7, ...tokens(1000, 10)])).toBe(16);
    expect(await cached(tokens(1000, 49), { cache_salt: 'tenant' })).toBe(0);
    expect(await cached(tokens(1000, 49), { model: 'sql' })).toBe(0);
    expect(await cached(tokens(1000, 49), { model: 'sql' })).toBe(48);
    expect(await cached(tokens(1000, 49), { prompt_logprobs: 0 })).toBe(0);
  });

  test('a hit really shortens the time to the first token', async () => {
    const pod = await aPod({ prefillTokensPerSecond: 10_000 });
    const timed = async (): Promise<number> => {
      const startMs = performance.now();
      await complete(pod, tokens(1000, 2001));
      return performance.now() - startMs;
    };
    const coldMs = await timed();
    const warmMs = await timed();
    expect(coldMs).toBeGreaterThanOrEqual(199);
    expect(warmMs).toBeLessThan(coldMs / 2);
  });

  test('a conversation finds the blocks of its own answers again', async () => {
    const pod = await aPod();
    const messages = [{ role: 'user', content: 'tell me a long story about a small house' }];
    const first = (await (await post(pod, '/v1/chat/completions', { messages, max_tokens: 60 })).json()) as Completion;
    const { message } = first.choices[0]!;
    const next = [...messages, message, { role: 'user', content: 'and then?' }];
    const second = (await (
      await post(pod, '/v1/chat/completions', { messages: next, max_tokens: 1 })
    ).json()) as Completion;
    const sharedTokens = first.usage.prompt_tokens + 60 - 1;
    expect(second.usage.prompt_tokens_details!.cached_tokens).toBe(Math.floor(sharedTokens / 16) * 16);
  });

  test.each(['chat', 'completions'] as const)(
    'streams %s with the same text and usage as the whole answer',
    async (api) => {
      const pod = await aPod();
      const [path, input] =
        api === 'chat'
          ? ['/v1/chat/completions', { messages: [{ role: 'user', content: 'hello' }] }]
          : ['/v1/completions', { prompt: 'hello' }];
      const whole = (await (await post(pod, path!, { ...input, max_tokens: 5 })).json()) as Completion;
      const stream = { stream: true, stream_options: { include_usage: true } };
      const events = await serverSentEvents(await post(pod, path!, { ...input, max_tokens: 5, ...stream }));
      expect(events.at(-1)).toBe('[DONE]');
      type StreamChoice = { delta?: { content?: string }; text?: string; finish_reason: string | null };
      type Chunk = { choices: StreamChoice[]; usage?: Completion['usage'] };
      const chunks = events.slice(0, -1).map((event) => JSON.parse(event) as Chunk);
      const text = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta?.content ?? choice.text ?? ''));
      expect(text.join('')).toBe(api === 'chat' ? whole.choices[0]!.message.content : whole.choices[0]!.text);
      expect(chunks.at(-1)!.choices).toEqual([]);
      expect(chunks.at(-1)!.usage).toMatchObject({ prompt_tokens: whole.usage.prompt_tokens, completion_tokens: 5 });
      expect(chunks.slice(0, -1).every((chunk) => chunk.usage === undefined)).toBe(true);
      const reasons = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.finish_reason));
      expect(reasons.filter((reason) => reason !== null)).toEqual(['length']);
    },
  );

  test('takes every form of a completion prompt, one answer per prompt and sample', async () => {
    const pod = await aPod();
    const shape = async (prompt: unknown, more: object = {}): Promise<[number, number]> => {
      const { choices, usage } = await complete(pod, prompt, more);
      expect(choices.map((choice) => choice.index)).toEqual(choices.map((_, i) => i));
      return [choices.length, usage.prompt_tokens];
    };
    expect(await shape('hello world')).toEqual([1, 5]);
    expect(await shape('hello world', { add_special_tokens: false })).toEqual([1, 4]);
    expect(await shape(['hello world', 'hello'])).toEqual([2, 8]);
    expect(await shape([1, 2, 3])).toEqual([1, 3]);
    expect(await shape([[1, 2, 3], [4]])).toEqual([2, 4]);
    expect(await shape([1, 2, 3], { n: 3 })).toEqual([3, 3]);
    const echoed = await complete(pod, 'hello world', { echo: true });
    expect(echoed.choices[0]!.text).toMatch(/^hello world[a-z]{3}$/);
  });

  test('equal requests are answered equally by different pods, samples of one request differ', async () => {
    const [a, b] = [await aPod({ seed: 1 }), await aPod({ seed: 2 })];
    const texts = async (pod: RunningPod) =>
      (await complete(pod, 'hi', { n: 2, max_tokens: 8 })).choices.map((c) => c.text);
    const fromA = await texts(a);
    expect(await texts(b)).toEqual(fromA);
    expect(new Set(fromA).size).toBe(2);
  });

  test.each([
    [{ model: 'nobody', prompt: 'a' }, 404, 'NotFoundError', 'model'],
    [{ prompt: 'a', cache_salt: '' }, 400, 'BadRequestError', 'cache_salt'],
    [{ prompt: [] }, 400, 'BadRequestError', 'prompt'],
    [{ prompt: [1, 200_000] }, 400, 'BadRequestError', 'prompt'],
    [{ prompt: 'a', max_tokens: 0 }, 400, 'BadRequestError', 'max_tokens'],
    [{ prompt: 'a', max_tokens: 1_000_000 }, 400, 'BadRequestError', 'input_tokens'],
    [{ prompt: 'a', stream_options: {} }, 400, 'BadRequestError', 'stream_options'],
    [{}, 400, 'BadRequestError', 'prompt'],
    [[], 400, 'BadRequestError', null],
  ])('refuses %j with %d', async (body, status, type, param) => {
    const pod = await aPod();
    const response = await post(pod, '/v1/completions', body);
    expect(response.status).toBe(status);
    const { error } = (await response.json()) as { error: { message: string } };
    expect(error).toEqual({ message: error.message, type, param, code: status });
    expect(error.message).not.toBe('');
  });

  test('refuses what is not JSON, by its bytes or its content type, and what is no route', async () => {
    const pod = await aPod();
    const send = async (path: string, init: RequestInit) =>
      (await fetch(`http://${pod.httpAddress}${path}`, init)).status;
    const json = { 'content-type': 'application/json' };
    expect(await send('/v1/completions', { method: 'POST', headers: json, body: '{' })).toBe(400);
    expect(await send('/tokenize', { method: 'POST', body: '{"prompt":"a"}' })).toBe(400);
    expect(await send('/v1/completions', { method: 'GET' })).toBe(405);
    expect(await send('/v1/nothing', { method: 'POST', headers: json, body: '{}' })).toBe(404);
  });

  test('a client that goes away frees its request', async () => {
    const pod = await aPod({ decodeStepMs: 5 });
    const controller = new AbortController();
    const body = { prompt: tokens(1000, 40), max_tokens: 5000, stream: true };
    const response = await post(pod, '/v1/completions', body, controller.signal);
    await response.body!.getReader().read();
    expect(pod.stats()).toMatchObject({ running: 1 });
    controller.abort();
    await until(() => pod.stats().running === 0, 'the request to be freed');
    expect(pod.stats()).toMatchObject({ abortedRequests: 1, finishedRequests: 0, kvCacheUsage: 0 });
  });

  test('adapters come and go', async () => {
    const pod = await aPod();
    const status = async (path: string, body: object) => (await post(pod, path, body)).status;
    expect(await status('/v1/completions', { model: 'sql', prompt: 'a' })).toBe(404);
    expect(await status('/v1/load_lora_adapter', { lora_name: 'sql', lora_path: '/a' })).toBe(200);
    expect(await status('/v1/load_lora_adapter', { lora_name: 'sql', lora_path: '/a' })).toBe(400);
    const list = (await (await fetch(`http://${pod.httpAddress}/v1/models`)).json()) as { data: object[] };
    expect(list.data).toMatchObject([
      { id: 'demo-model', parent: null },
      { id: 'sql', parent: 'demo-model' },
    ]);
    expect(await status('/v1/completions', { model: 'sql', prompt: 'a' })).toBe(200);
    expect(await status('/tokenize', { model: 'sql', prompt: 'a' })).toBe(200);
    expect(await status('/v1/completions/render', { model: 'sql', prompt: 'a' })).toBe(404);
    expect(await status('/v1/unload_lora_adapter', { lora_name: 'sql' })).toBe(200);
    expect(await status('/v1/unload_lora_adapter', { lora_name: 'sql' })).toBe(404);
    expect(await status('/v1/completions', { model: 'sql', prompt: 'a' })).toBe(404);
  });

  test("details of prompt tokens look as in the engine's time, or are off", async () => {
    const details = async (pod: RunningPod) => {
      await complete(pod, tokens(1000, 20));
      const cold = (await complete(pod, tokens(5000, 20))).usage.prompt_tokens_details;
      return [cold, (await complete(pod, tokens(1000, 20))).usage.prompt_tokens_details];
    };
    const of = (n: number) => ({ cached_tokens: n, created_cache_tokens: null, multimodal_tokens: null });
    expect(await details(await aPod())).toEqual([of(0), of(16)]);
    expect(await details(await aPod({ wire: { events: 'arrays' } }))).toEqual([null, { cached_tokens: 16 }]);
    expect(await details(await aPod({ promptTokensDetails: 'off' }))).toEqual([null, null]);
  });
});

describe('other APIs of a simulated pod', () => {
  const TEXT = 'the same words again and again, '.repeat(10);
  const turns = [{ role: 'user', content: TEXT }];
  const BODIES = {
    '/v1/messages': { model: 'demo-model', messages: turns, max_tokens: 3 },
    '/v1/responses': { model: 'demo-model', input: TEXT, max_output_tokens: 3 },
    '/inference/v1/generate': {
      token_ids: Array.from({ length: 40 }, (_, i) => 400 + i),
      sampling_params: { max_tokens: 3 },
    },
  } as const;

  async function usageOf(response: Response): Promise<Usage | null> {
    expect(response.status).toBe(200);
    const reader = createUsageReader(response.headers.get('content-type') ?? undefined);
    for await (const chunk of response.body!) reader.push(chunk);
    return reader.result();
  }

  test.each(Object.entries(BODIES))(
    '%s counts prompt, answer and what was cached, whole and streamed',
    async (path, body) => {
      const pod = await aPod();
      const cold = (await usageOf(await post(pod, path, body)))!;
      expect(cold).toMatchObject({ completionTokens: 3, cachedTokens: 0 });
      const cachedTokens = 16 * Math.floor((cold.promptTokens - 1) / 16);
      expect(cachedTokens).toBeGreaterThan(0);
      expect(await usageOf(await post(pod, path, body))).toEqual({ ...cold, cachedTokens });
      const streamed = await post(pod, path, {
        ...body,
        stream: true,
        ...(path === '/inference/v1/generate' ? { stream_options: { include_usage: true } } : {}),
      });
      expect(streamed.headers.get('content-type')).toMatch('text/event-stream');
      expect(await usageOf(streamed)).toEqual({ ...cold, cachedTokens });
    },
  );

  test('/v1/messages and /v1/responses compute what the chat they become computes', async () => {
    const pod = await aPod();
    const chat = (await (
      await post(pod, '/v1/chat/completions', { messages: turns, max_tokens: 3 })
    ).json()) as Completion;
    const text = chat.choices[0]!.message.content;
    expect(await (await post(pod, '/v1/messages', BODIES['/v1/messages'])).json()).toMatchObject({
      type: 'message',
      role: 'assistant',
      content: [{ type: 'text', text }],
      stop_reason: 'max_tokens',
    });
    expect(await (await post(pod, '/v1/responses', BODIES['/v1/responses'])).json()).toMatchObject({
      object: 'response',
      status: 'incomplete',
      output: [{ type: 'message', content: [{ type: 'output_text', text }] }],
    });
    const asked = { messages: turns, max_tokens: 3 };
    const rendered = (await (await post(pod, '/v1/chat/completions/render', asked)).json()) as { token_ids: number[] };
    for (const path of ['/v1/messages', '/v1/responses'] as const) {
      expect(await (await post(pod, `${path}/render`, BODIES[path])).json()).toMatchObject({
        token_ids: rendered.token_ids,
      });
    }
  });

  test('/v1/messages streams the events of its API, /v1/responses those of its own', async () => {
    const pod = await aPod();
    const types = async (path: keyof typeof BODIES): Promise<string[]> => {
      const events = await (await post(pod, path, { ...BODIES[path], stream: true })).text();
      return [...events.matchAll(/^event: (.*)$/gm)].map(([, type]) => type!);
    };
    const delta = 'content_block_delta';
    expect(await types('/v1/messages')).toEqual([
      'message_start',
      'content_block_start',
      delta,
      delta,
      delta,
      'content_block_stop',
      'message_delta',
      'message_stop',
    ]);
    const said = 'response.output_text.delta';
    expect(await types('/v1/responses')).toEqual([
      'response.created',
      'response.in_progress',
      'response.output_item.added',
      'response.content_part.added',
      said,
      said,
      said,
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.incomplete',
    ]);
  });

  test('what render gives can be generated from, token by token', async () => {
    const pod = await aPod();
    const image = { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } };
    const messages = [{ role: 'user', content: [image, { type: 'text', text: TEXT }] }];
    const rendered = (await (
      await post(pod, '/v1/chat/completions/render', { messages, max_tokens: 2 })
    ).json()) as object;
    await post(pod, '/v1/chat/completions', { messages, max_tokens: 2 });
    const answer = (await (await post(pod, '/inference/v1/generate', rendered)).json()) as {
      choices: { token_ids: number[]; finish_reason: string }[];
      usage: Completion['usage'];
    };
    expect(answer.choices).toMatchObject([
      { token_ids: [expect.any(Number), expect.any(Number)], finish_reason: 'length' },
    ]);
    expect(answer.usage.prompt_tokens_details!.cached_tokens).toBeGreaterThan(0);
  });

  test.each<[string, object, number, object]>([
    [
      '/v1/messages',
      { ...BODIES['/v1/messages'], model: 'nobody' },
      404,
      { type: 'error', error: { type: 'NotFoundError' } },
    ],
    ['/v1/messages', { model: 'demo-model', messages: turns }, 400, { error: { code: 400, param: 'body.max_tokens' } }],
    ['/v1/responses', { ...BODIES['/v1/responses'], previous_response_id: 'resp_1' }, 404, { error: { code: 404 } }],
    ['/v1/responses', { model: 'demo-model' }, 400, { error: { param: 'body.input' } }],
    ['/inference/v1/generate', { token_ids: [1, -1], sampling_params: {} }, 400, { error: { param: 'token_ids' } }],
    ['/inference/v1/generate', { token_ids: [1] }, 400, { error: { param: 'sampling_params' } }],
    // As a pod that generates: pooling belongs to others.
    ['/v1/embeddings', { model: 'demo-model', input: 'x' }, 404, { detail: 'Not Found' }],
  ])('%s refuses %j with %d', async (path, body, status, expected) => {
    const response = await post(await aPod(), path, body);
    expect(response.status).toBe(status);
    expect(await response.json()).toMatchObject(expected);
  });
});

describe('tokenizer and render endpoints of a simulated pod', () => {
  const messages = [{ role: 'user', content: 'hello there' }];

  async function tokenIds(pod: RunningPod, path: string, body: object): Promise<number[]> {
    const answer = (await (await post(pod, path, body)).json()) as { tokens?: number[]; token_ids?: number[] };
    return (answer.tokens ?? answer.token_ids)!;
  }

  test('agree with what the engine computes: as many tokens as usage says', async () => {
    const pod = await aPod();
    const chat = (await (await post(pod, '/v1/chat/completions', { messages, max_tokens: 1 })).json()) as Completion;
    const rendered = await tokenIds(pod, '/v1/chat/completions/render', { messages });
    expect(rendered).toHaveLength(chat.usage.prompt_tokens);
    expect(await tokenIds(pod, '/tokenize', { messages })).toEqual(rendered);
    const prompt = 'hello world';
    const tokenized = await tokenIds(pod, '/tokenize', { prompt });
    expect(tokenized).toHaveLength((await complete(pod, prompt)).usage.prompt_tokens);
    const list = (await (await post(pod, '/v1/completions/render', { prompt: [prompt, [7, 8]] })).json()) as object[];
    expect(list).toMatchObject([{ token_ids: tokenized }, { token_ids: [7, 8] }]);
  });

  test('add special tokens by default to a prompt, not to messages', async () => {
    const pod = await aPod();
    const count = async (body: object) => (await tokenIds(pod, '/tokenize', body)).length;
    expect(await count({ prompt: 'a' })).toBe(2);
    expect(await count({ prompt: 'a', add_special_tokens: false })).toBe(1);
    const plain = await count({ messages });
    expect(await count({ messages, add_special_tokens: true })).toBe(plain + 1);
    expect(await count({ messages, add_generation_prompt: false })).toBe(plain - 5);
  });

  test('/tokenize knows nothing of documents and reasoning effort unless the template arguments carry them', async () => {
    const pod = await aPod();
    const documents = [{ title: 'a', text: 'b' }];
    const plain = await tokenIds(pod, '/tokenize', { messages });
    const rendered = await tokenIds(pod, '/v1/chat/completions/render', {
      messages,
      documents,
      reasoning_effort: 'low',
    });
    expect(rendered.length).toBeGreaterThan(plain.length);
    expect(await tokenIds(pod, '/tokenize', { messages, documents, reasoning_effort: 'low' })).toEqual(plain);
    const chat_template_kwargs = { documents, reasoning_effort: 'low', enable_thinking: true };
    expect(await tokenIds(pod, '/tokenize', { messages, chat_template_kwargs })).toEqual(rendered);
  });

  test.each([
    [{ messages, chat_template: '{{x}}' }, 400],
    [{ messages, add_generation_prompt: true, continue_final_message: true }, 400],
    [{ prompt: ['a'] }, 400],
    [{ prompt: 'a', model: 'nobody' }, 404],
    [{ prompt: 'a' }, 200],
  ])('/tokenize answers %j with %d', async (body, status) => {
    expect((await post(await aPod(), '/tokenize', body)).status).toBe(status);
  });

  test('/detokenize gives the text back, special tokens by name', async () => {
    const pod = await aPod();
    const ids = await tokenIds(pod, '/tokenize', { prompt: 'Hello, world' });
    expect(await (await post(pod, '/detokenize', { tokens: ids })).json()).toEqual({ prompt: '<|begin|>Hello, world' });
  });

  test('an image is the same tokens with another feature, and another cache entry', async () => {
    const pod = await aPod();
    const withImage = (url: string) => [
      {
        role: 'user',
        content: [
          { type: 'image_url', image_url: { url } },
          { type: 'text', text: 'what?' },
        ],
      },
    ];
    const render = async (url: string) =>
      (await (await post(pod, '/v1/chat/completions/render', { messages: withImage(url) })).json()) as {
        token_ids: number[];
        features: { mm_hashes: { image: string[] }; mm_placeholders: { image: object[] } };
      };
    const [cat, dog] = [await render('http://x/cat.png'), await render('http://x/dog.png')];
    expect(cat.token_ids).toEqual(dog.token_ids);
    expect(cat.features.mm_hashes.image).not.toEqual(dog.features.mm_hashes.image);
    expect(cat.features.mm_placeholders.image).toEqual([{ offset: 5, length: 24 }]);
    const cached = async (url: string) => {
      const answer = await post(pod, '/v1/chat/completions', { messages: withImage(url), max_tokens: 1 });
      return ((await answer.json()) as Completion).usage.prompt_tokens_details!.cached_tokens;
    };
    expect([
      await cached('http://x/cat.png'),
      await cached('http://x/dog.png'),
      await cached('http://x/cat.png'),
    ]).toEqual([0, 0, 32]);
  });

  test('render can be forbidden or missing while /tokenize stays', async () => {
    for (const [render, status] of [
      ['forbidden', 403],
      ['missing', 404],
    ] as const) {
      const pod = await aPod({ render });
      const response = await post(pod, '/v1/chat/completions/render', { messages });
      expect(response.status).toBe(status);
      if (status === 403) {
        expect(await response.json()).toMatchObject({ error: { type: 'PermissionDeniedError', code: 403 } });
      }
      expect((await post(pod, '/tokenize', { messages })).status).toBe(200);
    }
  });

  test('can be slow or hang, without harm to other endpoints', async () => {
    const pod = await aPod({ tokenizerDelayMs: 60 });
    const startMs = performance.now();
    await post(pod, '/tokenize', { prompt: 'a' });
    expect(performance.now() - startMs).toBeGreaterThanOrEqual(59);
    pod.faults.setTokenizerDelay('hang');
    const hanging = post(pod, '/tokenize', { prompt: 'a' }, AbortSignal.timeout(50));
    await expect(hanging).rejects.toThrow(/timeout/);
    expect((await complete(pod, 'a')).choices).toHaveLength(1);
    pod.faults.setTokenizerDelay(0);
    expect((await post(pod, '/tokenize', { prompt: 'a' })).status).toBe(200);
  });
});

describe('the KV events of a simulated pod', () => {
  test('three frames per batch: topic, sequence from 0, payload', async () => {
    const pod = await aPod();
    const live = await aLiveStream(pod);
    await complete(pod, tokens(1000, 40));
    await complete(pod, tokens(1000, 60));
    await live.untilCount(2);
    expect(live.messages.map((frames) => frames.length)).toEqual([3, 3]);
    expect(live.messages[0]![0]!.toString()).toBe(`kv@${pod.httpAddress}@demo-model`);
    expect(live.messages.map((frames) => frames[1]!.readBigUInt64BE())).toEqual([0n, 1n]);
    const [first, second] = live.messages.map(eventsOf);
    expect(first).toMatchObject([{ type: 'BlockStored', parent_block_hash: null, token_ids: tokens(1000, 32) }]);
    expect(second).toMatchObject([
      { type: 'BlockStored', parent_block_hash: first![0]!.block_hashes[1], token_ids: tokens(1032, 16) },
    ]);
  });

  test('the batch is out before the answer is', async () => {
    const pod = await aPod();
    const live = await aLiveStream(pod);
    for (let i = 1; i <= 20; i++) {
      await complete(pod, tokens(1000 * i, 16));
      await live.untilCount(i);
    }
    expect(pod.stats().nextSeq).toBe(20);
  });

  test.each([
    [{ events: 'arrays', hashes: 'int', replayFrames: 3 }],
    [{ events: 'arrays', hashes: 'bytes', replayFrames: 4 }],
    [{ events: 'maps', hashes: 'int', replayFrames: 4 }],
    [{ events: 'maps', hashes: 'bytes', replayFrames: 3 }],
  ] as const)('speak %j', async (wire) => {
    const pod = await aPod({ wire });
    const live = await aLiveStream(pod);
    await complete(pod, tokens(1000, 32));
    await live.untilCount(1);
    const event = eventsOf(live.messages[0]!)[0] as unknown;
    expect(Array.isArray(event) ? event.length : 'map').toBe(wire.events === 'arrays' ? 12 : 'map');
    const hashes = (Array.isArray(event) ? event[1] : (event as WireEvent).block_hashes) as unknown[];
    expect(hashes.map((hash) => (Buffer.isBuffer(hash) ? hash.length : typeof hash))).toEqual(
      wire.hashes === 'bytes' ? [32, 32] : ['bigint', 'bigint'],
    );
    const replies = await askReplay(pod.replayEndpoint, replayRequest(0n));
    const topic = wire.replayFrames === 4 ? [live.messages[0]![0]!.toString('hex')] : [];
    const payload = live.messages[0]![2]!.toString('hex');
    expect(replies.map((frames) => frames.map((frame) => frame.toString('hex')))).toEqual([
      ['', ...topic, '0000000000000000', payload],
      ['', ...(wire.replayFrames === 4 ? [''] : []), 'ffffffffffffffff', ''],
    ]);
  });

  test('replay begins where it is asked to, or at the oldest batch held', async () => {
    const pod = await aPod({ bufferSteps: 5, wire: { replayFrames: 3 } });
    for (let i = 1; i <= 8; i++) await complete(pod, tokens(1000 * i, 16));
    const seqs = async (request: Buffer[]) =>
      (await askReplay(pod.replayEndpoint, request)).map((frames) => frames[1]!.readBigInt64BE());
    expect(await seqs(replayRequest(6n))).toEqual([6n, 7n, -1n]);
    expect(await seqs(replayRequest(0n))).toEqual([3n, 4n, 5n, 6n, 7n, -1n]);
    expect(await seqs(replayRequest(8n))).toEqual([-1n]);
    expect(await seqs(replayRequest(1_000_000n))).toEqual([-1n]);
    expect(await seqs(replayRequest(2n ** 64n - 1n))).toEqual([-1n]);
    expect(await seqs([Buffer.alloc(0), Buffer.from('00000007', 'hex')])).toEqual([7n, -1n]);
  });

  test('a replay request with another number of frames is dropped in silence', async () => {
    const pod = await aPod();
    await complete(pod, tokens(1000, 16));
    const [empty, seq] = replayRequest(0n) as [Buffer, Buffer];
    expect(await askReplay(pod.replayEndpoint, [seq], 100)).toEqual([]);
    expect(await askReplay(pod.replayEndpoint, [empty, empty, seq], 100)).toEqual([]);
    expect(await askReplay(pod.replayEndpoint, [empty, seq])).toHaveLength(2);
  });

  test('folding live and replayed events gives the resident blocks', async () => {
    const pod = await aPod({ nBlocks: 24 });
    const live = await aLiveStream(pod);
    for (let i = 0; i < 30; i++) await complete(pod, tokens(1000 * (i % 5), 20 + ((i * 37) % 200)));
    await live.untilCount(pod.stats().nextSeq);
    const resident = new Map(pod.residentBlocks().map((block) => [block.digest.readBigUInt64BE(24), block.nCopies]));
    expect(fold(live.messages.map(eventsOf))).toEqual(resident);
    const replies = (await askReplay(pod.replayEndpoint, replayRequest(0n))).slice(0, -1);
    expect(fold(replies.map((frames) => eventsOf(frames.slice(1))))).toEqual(resident);
    expect(resident.size).toBeGreaterThan(5);
  });

  test('faults: lost batches are in the replay, raw frames are not, replays can go unanswered', async () => {
    const pod = await aPod({ wire: { replayFrames: 3 } });
    const live = await aLiveStream(pod);
    pod.faults.dropLiveBatches(2);
    for (let i = 1; i <= 3; i++) await complete(pod, tokens(1000 * i, 16));
    pod.faults.sendRaw([Buffer.from('garbage')]);
    await live.untilCount(2);
    expect(live.messages.map((frames) => frames.length)).toEqual([3, 1]);
    expect(live.messages[0]![1]!.readBigUInt64BE()).toBe(2n);
    expect(await askReplay(pod.replayEndpoint, replayRequest(0n))).toHaveLength(4);
    pod.faults.loseInReplays((seq) => seq === 1 || seq === -1);
    const seqs = (await askReplay(pod.replayEndpoint, replayRequest(0n), 100)).map((frames) =>
      frames[1]!.readBigInt64BE(),
    );
    expect(seqs).toEqual([0n, 2n]);
    pod.faults.loseInReplays(() => false);
    pod.faults.ignoreReplays();
    expect(await askReplay(pod.replayEndpoint, replayRequest(0n), 100)).toEqual([]);
    pod.faults.answerReplays();
    expect(await askReplay(pod.replayEndpoint, replayRequest(0n))).toHaveLength(4);
  });

  test('a stalled pod announces nothing and answers nothing until it resumes', async () => {
    const pod = await aPod();
    pod.faults.stall();
    const answer = complete(pod, tokens(1000, 16));
    await until(() => pod.stats().waiting === 1, 'the request to wait');
    expect(pod.stats().nextSeq).toBe(0);
    pod.faults.resume();
    await answer;
    expect(pod.stats().nextSeq).toBe(1);
  });

  test('a reset over HTTP empties the cache and is announced with the next step', async () => {
    const pod = await aPod();
    const live = await aLiveStream(pod);
    await complete(pod, tokens(1000, 16));
    expect(await (await post(pod, '/reset_prefix_cache', {})).json()).toEqual({ success: true });
    expect(pod.residentBlocks()).toEqual([]);
    await complete(pod, tokens(1000, 16));
    await live.untilCount(2);
    expect(eventsOf(live.messages[1]!).map((event) => event.type)).toEqual(['AllBlocksCleared', 'BlockStored']);
  });

  test('/kv_event_sources names the sockets, on engines that have it', async () => {
    const pod = await aPod();
    const get = async (from: RunningPod) => fetch(`http://${from.httpAddress}/kv_event_sources`);
    expect(await (await get(pod)).json()).toMatchObject({
      0: {
        publisher: 'zmq',
        endpoint: pod.kvEventsEndpoint,
        replay_endpoint: pod.replayEndpoint,
        buffer_steps: 10_000,
      },
    });
    expect((await get(await aPod({ wire: { events: 'arrays' } }))).status).toBe(404);
  });
});

describe('data-parallel ranks behind one port of a simulated pod', () => {
  /** Ranks count on from given ports, so these are on an address that no other test process has. */
  const host = `127.78.${(process.pid >> 8) & 255}.${process.pid & 255 || 1}`;
  const ranked = { host, kvEventsPort: 5557, replayPort: 5657, dataParallelSize: 2 };

  async function cachedTokens(pod: RunningPod, headers: Record<string, string>): Promise<number | string> {
    const response = await fetch(`http://${pod.httpAddress}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify({ prompt: tokens(1000, 40), max_tokens: 1 }),
    });
    if (response.status !== 200) return `${response.status} ${await response.text()}`;
    return ((await response.json()) as Completion).usage.prompt_tokens_details!.cached_tokens;
  }

  test('the header names one, each has a cache and a publisher of its own', async () => {
    const pod = await aPod(ranked);
    const [live0, live1] = await Promise.all([0, 1].map((rank) => openLiveStream(`tcp://${host}:${5557 + rank}`)));
    atEnd(
      () => live0!.close(),
      () => live1!.close(),
    );
    expect(await cachedTokens(pod, { 'x-data-parallel-rank': '1' })).toBe(0);
    expect(await cachedTokens(pod, { 'x-data-parallel-rank': '0' })).toBe(0);
    expect(await cachedTokens(pod, { 'x-data-parallel-rank': ' +1 ' })).toBe(32);
    await Promise.all([live0!.untilCount(1), live1!.untilCount(1)]);
    const [first, second] = [live0!, live1!].map(
      ({ messages }) => unpack(messages[0]![2]!) as [number, WireEvent[], number],
    );
    expect([first![2], second![2]]).toEqual([0, 1]);
    expect(first![1][0]!.block_hashes).not.toEqual(second![1][0]!.block_hashes);
    expect([0, 1].map((rank) => pod.stats(rank).finishedRequests)).toEqual([1, 2]);
    expect(pod.residentBlocks(0)).toHaveLength(2);
    const sources = await (await fetch(`http://${pod.httpAddress}/kv_event_sources`)).json();
    expect(sources).toMatchObject({
      0: { endpoint: `tcp://${host}:5557`, replay_endpoint: `tcp://${host}:5657` },
      1: { endpoint: `tcp://${host}:5558`, replay_endpoint: `tcp://${host}:5658` },
    });
    const page = await (await fetch(`http://${pod.httpAddress}/metrics`)).text();
    for (const rank of [0, 1]) {
      expect(page).toMatch(new RegExp(`^vllm:num_requests_running{engine="${rank}",.*} 0$`, 'm'));
      expect(page).toMatch(new RegExp(`^vllm:cache_config_info{.*engine="${rank}",num_gpu_blocks="2048".*} 1$`, 'm'));
    }
  });

  test('without a number the least busy one serves; a rank that is not there is refused', async () => {
    const pod = await aPod(ranked);
    pod.faults.stall();
    const pinned = cachedTokens(pod, { 'x-data-parallel-rank': '0' });
    await until(() => pod.stats(0).waiting === 1, 'the request waits');
    const free = [cachedTokens(pod, {}), cachedTokens(pod, { 'x-data-parallel-rank': 'one' })];
    await until(() => pod.stats(0).waiting + pod.stats(1).waiting === 3, 'all wait');
    expect(pod.stats(1).waiting).toBeGreaterThan(0);
    pod.faults.resume();
    await Promise.all([pinned, ...free]);
    for (const rank of ['2', '-1']) {
      expect(await cachedTokens(pod, { 'x-data-parallel-rank': rank })).toContain(
        `data_parallel_rank ${rank} is out of range [0, 2).`,
      );
    }
  });
});

describe('the life of a simulated pod', () => {
  test.each(['stop', 'kill'] as const)(
    'after %s a new pod on the same ports begins at sequence 0, cold',
    async (how) => {
      const pod = await aPod();
      await complete(pod, tokens(1000, 40));
      await complete(pod, tokens(2000, 40));
      await pod[how]();
      await pod[how]();
      const again = await aPod({
        port: portOf(pod.httpAddress),
        kvEventsPort: portOf(pod.kvEventsEndpoint),
        replayPort: portOf(pod.replayEndpoint),
      });
      expect(again.httpAddress).toBe(pod.httpAddress);
      expect((await complete(again, tokens(1000, 40))).usage.prompt_tokens_details!.cached_tokens).toBe(0);
      expect(again.stats().nextSeq).toBe(1);
    },
  );

  test('adapters in use are named in the metrics', async () => {
    const pod = await aPod({ adapters: ['sql', 'law'], maxSequences: 1, prefillTokensPerSecond: 100 });
    const controller = new AbortController();
    const ended = ['sql', 'law'].map(async (model) => {
      await post(pod, '/v1/completions', { model, prompt: tokens(1000, 100) }, controller.signal).catch(
        () => undefined,
      );
    });
    await until(() => pod.stats().waiting === 1, 'one request to wait');
    const page = await (await fetch(`http://${pod.httpAddress}/metrics`)).text();
    expect(page).toMatch(
      /vllm:lora_requests_info\{max_lora="2",running_lora_adapters="(sql|law)",waiting_lora_adapters="(?!\1)(sql|law)"\} \d+/,
    );
    controller.abort();
    await Promise.all(ended);
  });

  test('a kill fails what is in flight at once', async () => {
    const pod = await aPod({ prefillTokensPerSecond: 10 });
    const answer = complete(pod, tokens(1000, 100));
    const failed = expect(answer).rejects.toThrow();
    await until(() => pod.stats().running === 1, 'the request to run');
    await pod.kill();
    await failed;
  });

  test.each(['port', 'kvEventsPort', 'replayPort'] as const)('says which address is in use: %s', async (option) => {
    const taken = await aPod();
    const port = { port: taken.httpAddress, kvEventsPort: taken.kvEventsEndpoint, replayPort: taken.replayEndpoint };
    const second = createSimulatedPod({ [option]: portOf(port[option]) });
    atEnd(() => second.stop());
    await expect(second.start()).rejects.toMatchObject({
      code: 'address_in_use',
      message: expect.stringMatching(new RegExp(`^Address in use: (http|tcp)://127.0.0.1:${portOf(port[option])}$`)),
    });
  });

  test("metrics carry vLLM's names with the numbers of the engine", async () => {
    const pod = await aPod({ nBlocks: 100 });
    await complete(pod, tokens(1000, 40));
    await complete(pod, tokens(1000, 40));
    const page = await (await fetch(`http://${pod.httpAddress}/metrics`)).text();
    const value = (series: string) =>
      page
        .split('\n')
        .find((line) => line.startsWith(series))
        ?.split(' ')
        .at(-1);
    const labels = '{engine="0",model_name="demo-model"}';
    expect(value(`vllm:num_requests_running${labels}`)).toBe('0');
    expect(value(`vllm:num_requests_waiting${labels}`)).toBe('0');
    expect(value(`vllm:kv_cache_usage_perc${labels}`)).toBe('0');
    expect(value(`vllm:prefix_cache_queries_total${labels}`)).toBe('80');
    expect(value(`vllm:prefix_cache_hits_total${labels}`)).toBe('32');
    expect(value(`vllm:prompt_tokens_cached_total${labels}`)).toBe('32');
    expect(value(`vllm:time_to_first_token_seconds_count${labels}`)).toBe('2');
    expect(page).not.toContain('lora_requests_info');
    expect(page).toMatch(/vllm:cache_config_info\{block_size="16",.*num_gpu_blocks="100".*\} 1\n/);
    expect((await fetch(`http://${pod.httpAddress}/health`)).status).toBe(200);
  });
});

describe('warmpath simulate-vllm', () => {
  /** Runs until `nLines` lines are there, then ends it as a signal would. */
  async function run(args: readonly string[], nLines = Infinity) {
    const [out, err]: [string[], string[]] = [[], []];
    const controller = new AbortController();
    const exit = runSimulateVllm(args, {
      stdout: (line) => void out.push(line),
      stderr: (line) => void err.push(line),
      signal: controller.signal,
    });
    let hasEnded = false;
    void exit.finally(() => (hasEnded = true));
    await until(() => hasEnded || out.length >= nLines, `${nLines} lines`);
    return { out, err, end: async () => (controller.abort(), exit), exit };
  }

  test('prints an endpoint per pod that can be used, and ends with 0', async () => {
    const free = ['--port', '0', '--kv-port', '0', '--replay-port', '0'];
    const { out, err, end } = await run(['--pods', '2', ...free, '--adapters', 'sql', '--json'], 2);
    try {
      const endpoints = out.map((line) => JSON.parse(line) as Record<string, string>);
      expect(endpoints).toMatchObject([
        { name: 'pod-0', model: 'demo-model', adapters: ['sql'] },
        { name: 'pod-1', model: 'demo-model', adapters: ['sql'] },
      ]);
      for (const { address, kvEvents, replay } of endpoints) {
        expect((await fetch(`http://${address}/health`)).status).toBe(200);
        expect(kvEvents).toMatch(/^tcp:\/\/127\.0\.0\.1:\d+$/);
        expect(await askReplay(replay!, replayRequest(0n))).toHaveLength(1);
      }
    } finally {
      expect(await end()).toBe(0);
    }
    expect(err).toEqual([]);
  });

  test('ranks of a pod lie on ports that follow each other', async () => {
    const host = `127.79.${(process.pid >> 8) & 255}.${process.pid & 255 || 1}`;
    const args = ['--pods', '2', '--host', host, '--data-parallel-size', '2', '--json'];
    const { out, end } = await run(args, 2);
    expect(await end()).toBe(0);
    expect(out.map((line) => JSON.parse(line) as object)).toMatchObject([
      { address: `${host}:8000`, kvEvents: `tcp://${host}:5557`, replay: `tcp://${host}:5559`, dataParallelSize: 2 },
      { address: `${host}:8001`, kvEvents: `tcp://${host}:5561`, replay: `tcp://${host}:5563`, dataParallelSize: 2 },
    ]);
  });

  test('gives pods their own addresses with --host-per-pod', async () => {
    const free = ['--port', '0', '--kv-port', '0', '--replay-port', '0'];
    const { out, end } = await run(['--pods', '2', '--host', '127.0.0.41', '--host-per-pod', ...free], 2);
    expect(await end()).toBe(0);
    expect(out.map((line) => /http:\/\/([\d.]+):/.exec(line)?.[1])).toEqual(['127.0.0.41', '127.0.0.42']);
  });

  test('a port in use is one line and exit 1, and leaves nothing running', async () => {
    const taken = await aPod();
    const port = portOf(taken.httpAddress);
    const { out, err, exit } = await run([
      '--pods',
      '2',
      '--port',
      String(port - 1),
      '--kv-port',
      '0',
      '--replay-port',
      '0',
    ]);
    expect(await exit).toBe(1);
    expect(out).toEqual([]);
    expect(err).toEqual([expect.stringMatching(/^warmpath simulate-vllm: Address in use: http:\/\/127\.0\.0\.1:\d+$/)]);
    await expect(fetch(`http://127.0.0.1:${port - 1}/health`)).rejects.toThrow();
  });

  test.each([
    [['--pods', '0'], '--pods must be an integer from 1 to 1000, got "0"'],
    [['--port', '70000'], '--port must be an integer from 0 to 65535, got "70000"'],
    [['--pods', '3', '--port', '65534'], '--port 65534 leaves no port for pod 2: 65536 > 65535'],
    [['--host', 'localhost'], '--host must be an IP address, got "localhost"'],
    [['--host', '::1', '--host-per-pod'], '--host-per-pod needs an IPv4 --host, got "::1"'],
    [['--events', 'xml'], '--events must be one of maps, arrays, got "xml"'],
    [['--decode-ms', 'fast'], '--decode-ms must be a number above 0, got "fast"'],
    [['--data-parallel-size', '2', '--kv-port', '0'], '--data-parallel-size needs --kv-port and --replay-port'],
    [
      ['--data-parallel-size', '3', '--replay-port', '5559'],
      '--replay-port must leave 3 ports to --kv-port 5557, got 5559',
    ],
    [['--what'], 'unknown option "--what"'],
  ])('%j is wrong usage: exit 2 and what is wrong', async (args, message) => {
    const { out, err, exit } = await run(args);
    expect(await exit).toBe(2);
    expect(out).toEqual([]);
    expect(err.join('\n')).toContain(`warmpath simulate-vllm: ${message}`);
  });

  test('--help names every option', async () => {
    const { out, exit } = await run(['--help']);
    expect(await exit).toBe(0);
    for (const flag of ['--pods', '--host-per-pod', '--kv-port', '--replay-frames', '--render', '--json']) {
      expect(out.join('\n')).toContain(flag);
    }
  });
});

/** Resident copies by hash, from events alone. */
function fold(batches: readonly (readonly WireEvent[])[]): Map<unknown, number> {
  const copies = new Map<unknown, number>();
  for (const event of batches.flat()) {
    for (const hash of event.block_hashes) {
      const count = (copies.get(hash) ?? 0) + (event.type === 'BlockStored' ? 1 : -1);
      if (count === 0) copies.delete(hash);
      else copies.set(hash, count);
    }
  }
  return copies;
}
