/** The tokenizer client against real HTTP servers, well-behaved and not. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from '@jest/globals';
import { systemClock, type Clock } from '../../src/clock.ts';
import { createLog } from '../../src/log.ts';
import { parseRequest, type Api, type InferenceRequest } from '../../src/openai/request.ts';
import { createUsageReader, type Usage } from '../../src/openai/usage.ts';
import type { RenderMode } from '../../src/simulator/http.ts';
import { createSimulatedPod } from '../../src/simulator/simulated-pod.ts';
import type { TokenizeRequest, TokenizeResult } from '../../src/tokenizer/tokenizer.ts';
import type { StartableTokenizer } from '../../src/tokenizer/sharing-tokenizer.ts';
import { createVllmTokenizer, type VllmTokenizerOptions } from '../../src/tokenizer/vllm-tokenizer.ts';
import { startAnswering } from '../support/vllm-recording.ts';
import { endAfterEach } from '../support/endings.ts';
import {
  CLIENT_OPTIONS,
  fakeTemplate,
  fakeTokens,
  startFakeTokenizer,
  type Behaviour,
  type FakeTokenizer,
} from '../support/fake-tokenizer.ts';
import { aChatRequest, aCompletionsRequest, aRequest } from '../support/requests.ts';

type Harness = {
  readonly tokenizer: StartableTokenizer;
  /** `api result`, as metrics count them. */
  readonly counted: string[];
  readonly logged: Record<string, unknown>[];
  /** Lets time pass at once, for everything that looks at the clock. */
  skip(ms: number): void;
  /** Waits no longer than `budgetMs` for the tokens of a request. */
  ask(request: TokenizeRequest, budgetMs?: number): Promise<TokenizeResult>;
};

const atEnd = endAfterEach();
async function aServer(): Promise<FakeTokenizer> {
  const fake = await startFakeTokenizer();
  atEnd(() => fake.stop());
  return fake;
}

function aTokenizer(
  urls: readonly string[],
  options: Partial<VllmTokenizerOptions> = {},
  random: () => number = Math.random,
): Harness {
  const counted: string[] = [];
  const logged: Record<string, unknown>[] = [];
  let skippedMs = 0;
  const clock: Clock = { ...systemClock, nowMs: () => systemClock.nowMs() + skippedMs };
  const tokenizer = createVllmTokenizer(
    {
      log: createLog('info', (line) => logged.push(JSON.parse(line) as Record<string, unknown>)),
      clock,
      random,
      onCall: (api, result) => counted.push(`${api} ${result}`),
    },
    { ...CLIENT_OPTIONS, ...options },
  );
  atEnd(() => tokenizer.close());
  return {
    tokenizer,
    counted,
    logged,
    skip: (ms) => void (skippedMs += ms),
    ask: (request, budgetMs = 5000) => tokenizer.tokenize(request, urls, AbortSignal.timeout(budgetMs)),
  };
}

async function until(condition: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 20_000; !condition();) {
    if (performance.now() > deadline) throw new Error('condition not met within 20 s');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

function chainsOf(result: TokenizeResult): readonly (readonly number[])[] {
  if (result.kind === 'none') throw new Error(`no tokens: ${result.reason}`);
  return result.chains.map(({ tokenIds }) => [...tokenIds]);
}

const chatTokens = (request: InferenceRequest): readonly number[] => [
  ...fakeTokens(fakeTemplate(JSON.parse(Buffer.from(request.body).toString()) as Record<string, unknown>)),
];

describe('the render endpoint', () => {
  test('gets the body byte by byte as it came, and gives tokens and images', async () => {
    const fake = await aServer();
    fake.features = {
      mm_hashes: { image: ['abc'] },
      mm_placeholders: { image: [{ offset: 2, length: 3 }] },
      kwargs_data: null,
    };
    const { ask, counted } = aTokenizer([fake.url]);
    const request = aChatRequest({ temperature: 0.5 });
    const result = await ask(request);
    expect(result).toMatchObject({ chains: [{ features: [{ identifier: 'abc', offset: 2, length: 3 }] }] });
    expect(chainsOf(result)).toEqual([chatTokens(request)]);
    expect(fake.calls).toMatchObject([
      { path: '/v1/chat/completions/render', headers: { 'content-type': 'application/json' } },
    ]);
    expect(Buffer.compare(fake.calls[0]!.body, request.body)).toBe(0);
    expect(counted).toEqual(['render ok']);
  });

  test('gives one chain for each text of a completions request in one call', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    expect(chainsOf(await ask(aCompletionsRequest(['ab', 'é'])))).toEqual([
      [97, 98],
      [0xc3, 0xa9],
    ]);
    expect(fake.calls.map(({ path }) => path)).toEqual(['/v1/completions/render']);
  });

  test.each([403, 404, 405])(
    'answering %d is replaced by /tokenize at once, said once, and asked again much later',
    async (status) => {
      const fake = await aServer();
      fake.status.render = status;
      const { ask, counted, logged, skip } = aTokenizer([fake.url]);
      const request = aChatRequest({ tools: [{ type: 'function' }] });
      expect(chainsOf(await ask(request))).toEqual([chatTokens(request)]);
      expect(chainsOf(await ask(aCompletionsRequest('x')))).toEqual([[120]]);
      expect(counted).toEqual(['render not_served', 'tokenize ok', 'tokenize ok']);
      expect(logged).toMatchObject([
        { level: 'info', msg: 'render endpoint not served, using /tokenize', status, url: fake.url },
      ]);
      fake.status.render = 200;
      skip(700_000);
      await ask(request);
      expect(fake.calls[fake.calls.length - 1]!.path).toBe('/v1/chat/completions/render');
      expect(logged).toHaveLength(1);
    },
  );

  test('that does not know a model is not taken for one that is missing', async () => {
    const fake = await aServer();
    const { ask, counted, logged } = aTokenizer([fake.url]);
    expect(await ask(aChatRequest({ model: 'nobody' }))).toEqual({ kind: 'none', reason: 'error' });
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
    expect(counted).toEqual(['render error', 'render ok']);
    expect(logged).toEqual([]);
  });
});

describe('a request of an adapter or an alias', () => {
  const asked = (fields: object = {}): TokenizeRequest => ({
    ...aChatRequest({ model: 'nobody', ...fields }),
    canonicalModel: 'the "model"',
  });

  test.each<['auto' | 'tokenize', string]>([
    ['auto', '/v1/chat/completions/render'],
    ['tokenize', '/tokenize'],
  ])('has the tokens of its model where the server knows that name only (%s)', async (api, path) => {
    const fake = await aServer();
    const { ask, counted, skip } = aTokenizer([fake.url], { api });
    for (const messages of [[{ role: 'user', content: 'a' }], [{ role: 'user', content: 'b' }]]) {
      expect(chainsOf(await ask(asked({ messages })))).toEqual([chatTokens(asked({ messages }))]);
    }
    expect(fake.calls.map((call) => [call.path, call.json['model']])).toEqual([
      [path, 'nobody'],
      [path, 'the "model"'],
      [path, 'the "model"'],
    ]);
    expect(counted).toEqual(['error', 'ok', 'ok'].map((result) => `${api === 'auto' ? 'render' : api} ${result}`));
    skip(600_000);
    await ask(asked());
    expect(fake.calls.slice(3).map(({ json }) => json['model'])).toEqual(['nobody', 'the "model"']);
  });

  test('has its body otherwise as it came, and one call per text where only these are tokenized', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    const body = Buffer.from('{"model":"x", "messages" : [{"role":"user","content":"a"}],"m":1,"model":"nobody" }');
    const parsed = parseRequest('POST', '/v1/chat/completions', undefined, body, { truncated: 'no' });
    if (parsed.kind !== 'request') throw new Error(parsed.message);
    await ask({ ...parsed.request, canonicalModel: 'm' });
    expect(fake.calls[1]!.body.toString()).toBe(body.toString().replace('"nobody"', '"m"'));
    fake.status.render = 404;
    const texts = { ...aCompletionsRequest(['a', 'b'], { model: 'nobody' }), canonicalModel: 'm' };
    expect(chainsOf(await ask(texts))).toEqual([[97], [98]]);
  });

  test('of a model that is unknown too has none', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    const request = { ...asked(), canonicalModel: 'nobody' };
    expect(await ask(request)).toEqual({ kind: 'none', reason: 'error' });
    expect(await ask(request)).toEqual({ kind: 'none', reason: 'error' });
    expect(fake.calls).toHaveLength(3);
  });
});

describe('the tokenize endpoint', () => {
  test('gets the fields it knows, and a call per text', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url], { api: 'tokenize' });
    await ask(aChatRequest({ stream: true, tools: [], reasoning_effort: 'low', chat_template_kwargs: { a: 1 } }));
    expect(fake.calls[0]!.path).toBe('/tokenize');
    expect(fake.calls[0]!.json).toEqual({
      model: 'demo-model',
      messages: [{ role: 'user', content: 'Hello!' }],
      tools: [],
      chat_template_kwargs: { enable_thinking: true, a: 1, reasoning_effort: 'low' },
      add_special_tokens: false,
    });
    expect(chainsOf(await ask(aCompletionsRequest(['a', 'bc'], { max_tokens: 1 })))).toEqual([[97], [98, 99]]);
    const texts = fake.calls.slice(1).map(({ json }) => json);
    expect(texts).toContainEqual({ model: 'demo-model', prompt: 'a', add_special_tokens: true });
    expect(texts).toContainEqual({ model: 'demo-model', prompt: 'bc', add_special_tokens: true });
  });

  test('is not asked where its tokens would not be those of the engine', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url], { api: 'tokenize' });
    const image = [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'http://x/' } }] }];
    expect(await ask(aChatRequest({ messages: image }))).toEqual({ kind: 'none', reason: 'unsupported' });
    expect(await ask(aCompletionsRequest('x', { truncate_prompt_tokens: 5 }))).toEqual({
      kind: 'none',
      reason: 'unsupported',
    });
    expect(fake.calls).toEqual([]);
  });

  test('that is missing too is left alone for a while', async () => {
    const fake = await aServer();
    fake.status.render = fake.status.tokenize = 404;
    const { ask, logged, skip } = aTokenizer([fake.url]);
    for (let i = 0; i < 5; i++) expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'unsupported' });
    expect(fake.calls).toHaveLength(2);
    expect(logged.map(({ msg }) => msg)).toEqual([
      'render endpoint not served, using /tokenize',
      'tokenizer endpoint not served',
    ]);
    fake.status.tokenize = 200;
    skip(70_000);
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
  });
});

describe('a request that needs no call', () => {
  test('is answered without one', async () => {
    const fake = await aServer();
    const { ask, counted } = aTokenizer([fake.url]);
    expect(chainsOf(await ask(aCompletionsRequest([[1, 2], [3]])))).toEqual([[1, 2], [3]]);
    expect(fake.calls).toEqual([]);
    expect(counted).toEqual([]);
  });

  test('is none where tokenizing is switched off or nobody can be asked', async () => {
    expect(await aTokenizer(['http://127.0.0.1:1'], { api: 'none' }).ask(aChatRequest())).toEqual({
      kind: 'none',
      reason: 'disabled',
    });
    expect(await aTokenizer([]).ask(aChatRequest())).toEqual({ kind: 'none', reason: 'unsupported' });
    expect(await aTokenizer(['nonsense']).ask(aChatRequest())).toEqual({ kind: 'none', reason: 'unsupported' });
  });
});

describe('identical requests', () => {
  test('at once are one call, a thousand of them too', async () => {
    const fake = await aServer();
    fake.delayMs = 30;
    const { ask, counted } = aTokenizer([fake.url]);
    const content = 'word '.repeat(2000);
    const results = await Promise.all(Array.from({ length: 1000 }, () => ask(aChatRequest({}, content))));
    expect(fake.calls).toHaveLength(1);
    for (const result of results) expect(result).toBe(results[0]);
    expect(counted.filter((entry) => entry === 'render shared')).toHaveLength(999);
    expect(counted).toContain('render ok');
  });

  test('are told apart by a single byte, and by their API', async () => {
    const fake = await aServer();
    fake.delayMs = 20;
    const { ask } = aTokenizer([fake.url]);
    const texts = Array.from({ length: 20 }, (_, i) => `${'x'.repeat(i)}y${'x'.repeat(2000 - i)}`);
    const results = await Promise.all(texts.map((text) => ask(aCompletionsRequest(text))));
    expect(results.map(chainsOf)).toEqual(texts.map((text) => [[...fakeTokens(text)]]));
    expect(fake.calls).toHaveLength(20);
  });

  test('one after the other are asked again', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    await ask(aChatRequest());
    await ask(aChatRequest());
    expect(fake.calls).toHaveLength(2);
  });

  test('share a call that outlives the patience of the one that began it', async () => {
    const fake = await aServer();
    fake.delayMs = 50;
    const { ask, counted } = aTokenizer([fake.url]);
    const first = ask(aChatRequest(), 10);
    const second = ask(aChatRequest());
    expect(await first).toMatchObject({ kind: 'none', reason: 'late' });
    expect(chainsOf(await second)).toHaveLength(1);
    expect(counted).toEqual(['render late', 'render ok', 'render shared']);
  });
});

describe('a server in trouble', () => {
  test.each<Behaviour>(['hang', 'stall'])('(%s) costs a request no more than its budget', async (behaviour) => {
    const fake = await aServer();
    fake.behaviour = behaviour;
    const { tokenizer, counted } = aTokenizer([fake.url], { timeoutMs: 800 });
    const budget = new AbortController();
    const requests = Array.from({ length: 20 }, (_, i) => aChatRequest({}, `${i}`));
    const results = Promise.all(requests.map((request) => tokenizer.tokenize(request, [fake.url], budget.signal)));
    await until(() => fake.calls.length === 20);
    const turn = new Promise<'next turn'>((resolve) => setImmediate(resolve, 'next turn'));
    budget.abort();
    const settled = await Promise.race([results, turn]);
    expect(settled).toMatchObject(requests.map(() => ({ kind: 'none', reason: 'late' })));
    // The calls themselves go on until they are given up, and are not left to the server then.
    await until(() => counted.filter((entry) => entry === 'render timeout').length === 20);
    await until(() => fake.nAbandoned() === 20);
  });

  test.each<Behaviour>(['garbage', 'huge', 'endless', 'fail', 'busy', 'reset', 'redirect'])(
    '(%s) is an error, not an exception',
    async (behaviour) => {
      const fake = await aServer();
      fake.behaviour = behaviour;
      const { ask, counted } = aTokenizer([fake.url], { responseMaxBytes: 1 << 20 });
      expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'error' });
      expect(fake.calls).toHaveLength(1);
      expect(counted).toHaveLength(1);
      if (behaviour === 'endless') {
        const written = fake.nBytesWritten();
        // What kernel buffers hold beyond the limit, not what the server would have sent.
        expect(written).toBeLessThan(32 << 20);
        await until(() => fake.nAbandoned() === 1);
      }
    },
  );

  test('that is not there is an error at once', async () => {
    const fake = await aServer();
    await fake.stop();
    const { ask } = aTokenizer([fake.url]);
    const startMs = performance.now();
    expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'error' });
    // The call's own limit is 5 s; a busy machine may take part of it.
    expect(performance.now() - startMs).toBeLessThan(4500);
  });

  test('is left alone after failures, probed once, and used again when it answers', async () => {
    const fake = await aServer();
    fake.behaviour = 'fail';
    const { ask, counted, logged, skip } = aTokenizer([fake.url]);
    for (let i = 0; i < 5; i++) await ask(aChatRequest());
    expect(fake.calls).toHaveLength(5);
    expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'open' });
    expect(fake.calls).toHaveLength(5);

    skip(1001);
    const probes = await Promise.all([1, 2, 3, 4].map((i) => ask(aChatRequest({}, `${i}`))));
    expect(fake.calls).toHaveLength(6);
    expect(probes.filter((result) => result.kind === 'none' && result.reason === 'open')).toHaveLength(3);

    fake.behaviour = 'answer';
    skip(2001);
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
    expect(counted.filter((entry) => entry === 'render open')).toHaveLength(4);
    expect(logged.map(({ msg }) => msg)).toEqual([
      'tokenizer paused after failures',
      'tokenizer paused after failures',
      'tokenizer answers again',
    ]);
  });

  test('that only times out is left alone too', async () => {
    const fake = await aServer();
    fake.behaviour = 'hang';
    const { ask } = aTokenizer([fake.url], { timeoutMs: 30 });
    const first = await Promise.all(Array.from({ length: 5 }, (_, i) => ask(aChatRequest({}, `${i}`))));
    for (const result of first) expect(result).toEqual({ kind: 'none', reason: 'timeout' });
    expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'open' });
  });

  test('that refuses requests of clients is not blamed for them', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    for (let i = 0; i < 10; i++) await ask(aChatRequest({ model: 'nobody' }));
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
  });

  /** Words of vLLM 0.32 about a content that is none, of the client's own kind or with its field missing. */
  const NO_PART =
    '8 validation errors for ValidatorIterator\n0.ChatCompletionContentPartTextParam.text\n  Field required ' +
    "[type=missing, input_value={'type': 'text', 'content': 'Write a prompt'}, input_type=dict]";
  const NOT_CONTINUED =
    'continue_final_message is set but the final message does not appear in the chat after applying the chat template! ' +
    'Final message to continue: you must provide a chat template';

  test.each([
    ['render', 501, 'Only base64 data URLs are supported for now.'],
    ['tokenize', 501, 'Only base64 data URLs are supported for now.'],
    ['tokenize', 400, NO_PART],
    ['tokenize', 400, NOT_CONTINUED],
  ] as const)('does nothing to others when one request is refused at /%s (%d)', async (api, status, message) => {
    const fake = await aServer();
    if (api === 'tokenize') fake.status.render = 403;
    fake.refuse = (path, body) => (body.includes('odd') && path.endsWith(api) ? { status, message } : null);
    const { ask, counted, logged } = aTokenizer([fake.url]);
    for (const content of ['odd', 'odd', 'fine', 'odd', 'fine, too']) {
      const request = aChatRequest({}, content);
      const expected = { kind: 'tokens', chains: [{ tokenIds: Uint32Array.from(chatTokens(request)) }] };
      const refused = { kind: 'none', reason: 'unsupported' };
      expect(await ask(request)).toMatchObject(content === 'odd' ? refused : expected);
    }
    expect(counted.filter((one) => one === `${api} ok`)).toHaveLength(5);
    expect(logged.map(({ msg }) => msg)).toEqual(
      api === 'render' ? [] : ['render endpoint not served, using /tokenize'],
    );
  });

  test('is asked for nothing it refuses to all, whatever its words (501)', async () => {
    const fake = await aServer();
    fake.status.render = 501;
    const { ask, counted } = aTokenizer([fake.url]);
    for (let i = 0; i < 3; i++) expect(chainsOf(await ask(aChatRequest({}, `${i}`)))).toHaveLength(1);
    expect(counted).toEqual([...Array(2).fill('render not_served'), ...Array(3).fill('tokenize ok')]);
  });

  test('is not blamed for images it can not get', async () => {
    const fake = await aServer();
    const message = 'Cannot connect to host 10.0.0.1:80';
    fake.refuse = (_, body) => (body.includes('http://10.0.0.1') ? { status: 500, message } : null);
    const { ask } = aTokenizer([fake.url]);
    const imageAt = (url: string) => [{ role: 'user', content: [{ type: 'image_url', image_url: { url } }] }];
    for (let i = 0; i < 20; i++) {
      const request = aChatRequest({ messages: imageAt(`http://10.0.0.1/${i}.png`) });
      expect(await ask(request)).toEqual({ kind: 'none', reason: 'error' });
    }
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
  });

  test('is not blamed for the names a client gives its images', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    fake.features = {
      mm_hashes: { image: ['https://x/?signature='.padEnd(2000, 'a')] },
      mm_placeholders: { image: [{ offset: 0, length: 4 }] },
    };
    for (let i = 0; i < 20; i++) {
      expect(await ask(aChatRequest({}, `${i}`))).toEqual({ kind: 'none', reason: 'unsupported' });
    }
    fake.features = null;
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
  });

  test('is not asked for what another one has refused', async () => {
    const servers = [await aServer(), await aServer()];
    for (const fake of servers) fake.refuse = () => ({ status: 400, message: 'maximum context length' });
    const { ask } = aTokenizer(servers.map(({ url }) => url));
    expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'unsupported' });
    expect(servers.flatMap(({ calls }) => calls)).toHaveLength(1);
  });

  test('is asked for what something else behind the URL of one refuses', async () => {
    const proxy = await startAnswering(() => ({
      status: 400,
      answer: '<html>plain HTTP was sent to an HTTPS port</html>',
    }));
    atEnd(() => proxy.stop());
    const { ask } = aTokenizer([proxy.url, (await aServer()).url]);
    for (let i = 0; i < 10; i++) expect(chainsOf(await ask(aChatRequest({}, `${i}`)))).toHaveLength(1);
  });

  test('that is full refuses more at once instead of making it wait', async () => {
    const fake = await aServer();
    fake.delayMs = 50;
    const { ask, counted } = aTokenizer([fake.url], { maxInFlight: 3, maxQueued: 0 });
    const results = await Promise.all(Array.from({ length: 8 }, (_, i) => ask(aChatRequest({}, `${i}`))));
    expect(results.filter(({ kind }) => kind === 'tokens')).toHaveLength(3);
    expect(results.filter((result) => result.kind === 'none' && result.reason === 'rejected')).toHaveLength(5);
    expect(fake.calls).toHaveLength(3);
    // Refusals are counted before the first answer is there.
    expect(counted.slice(0, 5)).toEqual(Array.from({ length: 5 }, () => 'render rejected'));
  });
});

describe('a request whose patience is over', () => {
  test('before it began asks nobody', async () => {
    const fake = await aServer();
    const { tokenizer } = aTokenizer([fake.url]);
    expect(await tokenizer.tokenize(aChatRequest(), [fake.url], AbortSignal.abort())).toEqual({
      kind: 'none',
      reason: 'late',
    });
    expect(fake.calls).toEqual([]);
  });

  test('leaves no listener on its signal when it was answered', async () => {
    const fake = await aServer();
    const { tokenizer } = aTokenizer([fake.url]);
    let nListeners = 0;
    const { signal } = new AbortController();
    const add = signal.addEventListener.bind(signal);
    const remove = signal.removeEventListener.bind(signal);
    signal.addEventListener = (...args: Parameters<typeof add>) => (nListeners++, add(...args));
    signal.removeEventListener = (...args: Parameters<typeof remove>) => (nListeners--, remove(...args));
    await tokenizer.tokenize(aChatRequest(), [fake.url], signal);
    expect(nListeners).toBe(0);
  });
});

describe('several servers', () => {
  test('are used by how busy they are: of two picked at random the one with fewer calls out', async () => {
    const [stuck, quick] = [await aServer(), await aServer()];
    stuck.behaviour = 'hang';
    let nPicks = 0;
    // Picks the first, then the second of them, for every request.
    const { ask } = aTokenizer([stuck.url, quick.url], {}, () => (nPicks++ % 2) * 0.5);
    void ask(aChatRequest({}, 'stuck'));
    await until(() => stuck.calls.length === 1);
    for (let i = 0; i < 20; i++) await ask(aChatRequest({}, `${i}`));
    expect(quick.calls).toHaveLength(20);
    expect(stuck.calls).toHaveLength(1);
  });

  test('of which both picks are the same are still used', async () => {
    const [first, second] = [await aServer(), await aServer()];
    const { ask } = aTokenizer([first.url, second.url], {}, () => 0.99);
    await ask(aChatRequest());
    expect([first.calls.length, second.calls.length]).toEqual([0, 1]);
  });

  test('stand in for one that is down, and each is remembered for what it serves', async () => {
    const [down, old] = [await aServer(), await aServer()];
    old.status.render = 404;
    await down.stop();
    const { ask } = aTokenizer([down.url, old.url]);
    for (let i = 0; i < 60; i++) await ask(aChatRequest());
    for (let i = 0; i < 20; i++) expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
    expect(old.calls.filter(({ path }) => path.endsWith('/render'))).toHaveLength(1);
  });

  test('configured as tokenizers are asked instead of the endpoints', async () => {
    const [dedicated, endpoint] = [await aServer(), await aServer()];
    const { ask } = aTokenizer([endpoint.url], { urls: [`${dedicated.url}/prefix/`] });
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
    expect(dedicated.calls).toMatchObject([{ path: '/prefix/v1/chat/completions/render' }]);
    expect(dedicated.calls[0]!.headers.authorization).toBeUndefined();
    expect(endpoint.calls).toEqual([]);
  });

  test('must be configured by URLs', () => {
    expect(() => aTokenizer([], { urls: ['tokenizer:'.slice(0, 9)] })).toThrow(
      'tokenizer URL must be http(s)://host:port, got "tokenizer"',
    );
  });
});

describe('a server that is unusually late', () => {
  /** Both are known to answer quickly; the first of the list is asked first. */
  async function twoQuickServers() {
    const [first, second] = [await aServer(), await aServer()];
    const harness = aTokenizer([first.url, second.url], {}, () => 0);
    // Nobody waits for these, so they get no help.
    for (let i = 0; i < 40; i++)
      await harness.tokenizer.tokenize(aChatRequest({}, `${i}`), [first.url, second.url], null);
    expect(first.calls).toHaveLength(40);
    return { ...harness, first, second };
  }

  test('is helped by another one, whose answer counts, and is not blamed', async () => {
    const { first, second, ask, counted, logged } = await twoQuickServers();
    first.behaviour = 'hang';
    for (let i = 0; i < 8; i++) expect(chainsOf(await ask(aChatRequest({}, `late ${i}`)))).toHaveLength(1);
    expect(second.calls).toHaveLength(8);
    expect(counted.filter((entry) => entry === 'render hedged')).toHaveLength(8);
    await until(() => first.nAbandoned() === 8);
    expect(counted).not.toContain('render timeout');
    expect(logged).toEqual([]);
  });

  test('is not helped again and again: a saturated fleet is not asked everything twice', async () => {
    const { first, second, ask } = await twoQuickServers();
    first.behaviour = 'hang';
    second.behaviour = 'hang';
    const asked = Array.from({ length: 50 }, (_, i) => ask(aChatRequest({}, `late ${i}`), 300));
    for (const result of await Promise.all(asked)) expect(result).toMatchObject({ kind: 'none', reason: 'late' });
    // Of fifty calls, wherever they began: what was saved up, and one in ten.
    expect(first.calls.length - 40 + second.calls.length).toBeLessThanOrEqual(50 + 10 + 5);
  });

  test('is left alone where nobody waits', async () => {
    const { first, second, tokenizer } = await twoQuickServers();
    first.delayMs = 60;
    expect(chainsOf(await tokenizer.tokenize(aChatRequest(), [first.url, second.url], null))).toHaveLength(1);
    expect(second.calls).toEqual([]);
  });
});

describe('a prompt that comes again', () => {
  test('is answered from memory, for a while', async () => {
    const fake = await aServer();
    const { ask, counted, skip } = aTokenizer([fake.url], { cacheMaxBytes: 1 << 20 });
    const first = await ask(aChatRequest());
    expect(await ask(aChatRequest())).toEqual({ ...first, remembered: true });
    expect(chainsOf(await ask(aCompletionsRequest('x')))).toEqual([[120]]);
    expect(counted).toEqual(['render ok', 'render cached', 'render ok']);
    skip(300_001);
    expect(await ask(aChatRequest())).toEqual(first);
    expect(fake.calls).toHaveLength(3);
  });

  test('is asked again when there was no answer', async () => {
    const fake = await aServer();
    fake.behaviour = 'fail';
    const { ask } = aTokenizer([fake.url], { cacheMaxBytes: 1 << 20 });
    expect(await ask(aChatRequest())).toMatchObject({ kind: 'none' });
    fake.behaviour = 'answer';
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
  });
});

describe('a full server', () => {
  test('makes a call wait for its turn, and refuses it after that', async () => {
    const fake = await aServer();
    fake.delayMs = 40;
    const { ask } = aTokenizer([fake.url], { maxInFlight: 2, maxQueued: 4, budgetMs: 5000 });
    const results = await Promise.all(Array.from({ length: 9 }, (_, i) => ask(aChatRequest({}, `${i}`))));
    expect(results.map(({ kind }) => kind)).toEqual([
      ...Array.from({ length: 6 }, () => 'tokens'),
      'none',
      'none',
      'none',
    ]);
    expect(fake.nConnections()).toBeLessThanOrEqual(2);

    fake.behaviour = 'hang';
    const impatient = aTokenizer([fake.url], { maxInFlight: 1, maxQueued: 4, budgetMs: 20 });
    void impatient.ask(aChatRequest());
    expect(await impatient.ask(aChatRequest({}, 'queued'))).toEqual({ kind: 'none', reason: 'rejected' });
    expect(impatient.counted).toEqual(['render rejected']);
  });

  test('keeps half of its places for requests that wait', async () => {
    const fake = await aServer();
    fake.behaviour = 'hang';
    const { tokenizer } = aTokenizer([fake.url], { maxInFlight: 4 });
    const background = Array.from({ length: 4 }, (_, i) =>
      tokenizer.tokenize(aChatRequest({}, `${i}`), [fake.url], null),
    );
    expect(await Promise.all(background.slice(2))).toEqual([
      { kind: 'none', reason: 'rejected' },
      { kind: 'none', reason: 'rejected' },
    ]);
    void tokenizer.tokenize(aChatRequest(), [fake.url], AbortSignal.timeout(1000));
    await until(() => fake.calls.length === 3);
  });
});

describe('a server that lets in who is known', () => {
  const folder = mkdtempSync(join(tmpdir(), 'warmpath-tokenizer-'));
  afterAll(() => rmSync(folder, { recursive: true }));
  const aFile = (text: string): string => {
    const file = join(folder, 'secret');
    writeFileSync(file, text);
    return file;
  };

  test('gets the header of the file, and the new one when it was replaced', async () => {
    const fake = await aServer();
    fake.secret = 'Bearer one';
    const file = aFile('Bearer one\n');
    const { ask, tokenizer, skip, logged } = aTokenizer([fake.url], { auth: { header: 'authorization', file } });
    await tokenizer.start();
    expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
    fake.secret = 'Bearer two';
    aFile('Bearer two');
    skip(10_001);
    const tries: string[] = [];
    await until(() => {
      void ask(aChatRequest()).then(({ kind }) => tries.push(kind));
      return tries.includes('tokens');
    });
    expect(JSON.stringify(logged)).not.toContain('Bearer');
  });

  test('is not asked with a header that can not be one', async () => {
    const broken = aTokenizer([], { auth: { header: 'authorization', file: aFile('a\nb') } });
    await expect(broken.tokenizer.start()).rejects.toThrow(
      'tokenizer.auth.file must hold one line of printable ASCII, the value of a header, got something else',
    );
    const missing = aTokenizer([], { auth: { header: 'authorization', file: join(folder, 'none') } });
    await expect(missing.tokenizer.start()).rejects.toThrow('tokenizer.auth.file cannot be read: ENOENT');
  });

  test('is known by its CA, and not believed without', async () => {
    const tls = new URL('../fixtures/tls/', import.meta.url);
    const [key, cert] = ['server-a.key', 'server-a.crt'].map((name) => readFileSync(new URL(name, tls)));
    const fake = await startFakeTokenizer(0, { key, cert });
    atEnd(() => fake.stop());
    expect(await aTokenizer([fake.url]).ask(aChatRequest())).toEqual({ kind: 'none', reason: 'error' });
    const known = aTokenizer([fake.url], { tls: { caFile: fileURLToPath(new URL('server-a.crt', tls)) } });
    await known.tokenizer.start();
    expect(chainsOf(await known.ask(aChatRequest()))).toHaveLength(1);
  });
});

describe('SGLang', () => {
  test('tokenizes texts and chats without rendering', async () => {
    const fake = await aServer();
    fake.status.render = 404;
    const { ask } = aTokenizer([fake.url]);
    const request = aChatRequest();
    expect(chainsOf(await ask(request))).toEqual([chatTokens(request)]);
    expect(chainsOf(await ask(aCompletionsRequest('x')))).toEqual([[120]]);
  });

  test.each([400, 422])(
    'of before chats could be tokenized (%d) is asked for texts only, and chats again later',
    async (status) => {
      const fake = await aServer();
      fake.status.render = 404;
      fake.status.tokenizeChat = status;
      const { ask, logged, counted, skip } = aTokenizer([fake.url]);
      for (let i = 0; i < 4; i++) expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'unsupported' });
      expect(chainsOf(await ask(aCompletionsRequest('x')))).toEqual([[120]]);
      expect(counted).toEqual(['render not_served', 'tokenize not_served', 'tokenize not_served', 'tokenize ok']);
      expect(logged.map(({ msg, api }) => [msg, api])).toEqual([
        ['render endpoint not served, using /tokenize', undefined],
        ['tokenizer endpoint not served', 'tokenize_chat'],
      ]);
      fake.status.tokenizeChat = 200;
      skip(600_001);
      expect(chainsOf(await ask(aChatRequest()))).toHaveLength(1);
    },
  );
});

describe('a request of another API', () => {
  test('is asked for as the chat it becomes where it is not rendered itself, which is said once', async () => {
    const fake = await aServer();
    const { ask, logged } = aTokenizer([fake.url]);
    const messages = [{ role: 'user', content: [{ type: 'text', text: 'hi' }] }];
    expect(chainsOf(await ask(aRequest('/v1/messages', { model: 'm', max_tokens: 1, messages })))).toHaveLength(1);
    expect(chainsOf(await ask(aRequest('/v1/responses', { model: 'm', input: 'hi' })))).toHaveLength(1);
    expect(chainsOf(await ask(aRequest('/v1/responses', { model: 'm', input: 'hi' })))).toHaveLength(1);
    const asked = {
      path: '/v1/chat/completions/render',
      json: { model: 'm', messages: [{ role: 'user', content: 'hi' }] },
    };
    const missing = (api: string): object => ({ path: `/v1/${api}/render` });
    expect(fake.calls).toMatchObject([missing('messages'), asked, missing('responses'), asked, asked]);
    expect(logged).toMatchObject([
      { msg: 'render endpoint not served, asking for the chat it becomes', api: 'render_messages', status: 404 },
      { msg: 'render endpoint not served, asking for the chat it becomes', api: 'render_responses', status: 404 },
    ]);
  });

  test('is not asked for where no chat has the same tokens', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    expect(await ask(aRequest('/v1/responses', { model: 'm', input: [{ type: 'item_reference', id: 'x' }] }))).toEqual({
      kind: 'none',
      reason: 'unsupported',
    });
  });
});

describe('connections', () => {
  test('to a server that nobody asks for ten minutes end, and all that is known of it is forgotten', async () => {
    const [gone, asked] = [await aServer(), await aServer()];
    for (const fake of [gone, asked]) fake.status.render = 404;
    const { tokenizer, skip, logged } = aTokenizer([]);
    const ask = (url: string, text: string): Promise<TokenizeResult> =>
      tokenizer.tokenize(aChatRequest({}, text), [url], AbortSignal.timeout(5000));
    const toldOf = (fake: FakeTokenizer): number => logged.filter(({ url }) => url === fake.url).length;
    for (let hour = 0; hour < 2; hour++) {
      await ask(gone.url, `${hour}`);
      expect([toldOf(gone), toldOf(asked)]).toEqual([hour + 1, hour === 0 ? 0 : 1]);
      // A call under way is no reason to be forgotten.
      gone.delayMs = 50;
      const slow = ask(gone.url, `slow ${hour}`);
      for (let i = 0; i < 3; i++) {
        skip(300_000);
        await ask(asked.url, `${hour} ${i}`);
      }
      expect(chainsOf(await slow)).toHaveLength(1);
      gone.delayMs = 0;
      skip(60_000);
      await ask(asked.url, `after ${hour}`);
      // Connections end when they are four seconds old.
      await until(() => gone.nOpenConnections() === 0);
    }
  }, 60_000);

  test('are kept and used again', async () => {
    const fake = await aServer();
    const { ask } = aTokenizer([fake.url]);
    for (let i = 0; i < 20; i++) await ask(aChatRequest());
    // The second is opened where a call begins in the same turn in which the one before ended.
    expect(fake.nConnections()).toBeLessThanOrEqual(2);
  });

  test('end when the tokenizer is closed, and so do calls under way', async () => {
    const fake = await aServer();
    fake.behaviour = 'hang';
    const { ask, tokenizer } = aTokenizer([fake.url]);
    const pending = ask(aChatRequest());
    await until(() => fake.calls.length === 1);
    await tokenizer.close();
    expect(await pending).toEqual({ kind: 'none', reason: 'error' });
    await until(() => fake.nOpenConnections() === 0);
    expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'disabled' });
  });
});

describe('a simulated vLLM pod', () => {
  const IMAGE = [
    { type: 'text', text: 'What is it?' },
    { type: 'image_url', image_url: { url: 'http://x/1.png' } },
  ];
  const REQUESTS: [string, InferenceRequest][] = [
    ['a chat', aChatRequest({ max_tokens: 1 }, 'Hello there, how are you? Größe 漢字')],
    ['a chat with tools', aChatRequest({ max_tokens: 1, tools: [{ type: 'function', function: { name: 'f' } }] })],
    ['a chat with template arguments', aChatRequest({ max_tokens: 1, chat_template_kwargs: { a: true } })],
    [
      'a chat with documents and effort',
      aChatRequest({ max_tokens: 1, documents: [{ text: 'x' }], reasoning_effort: 'low' }),
    ],
    [
      'a chat in several turns',
      aChatRequest({
        max_tokens: 1,
        messages: ['user', 'assistant', 'user'].map((role) => ({ role, content: `I am ${role}` })),
      }),
    ],
    ['a completion', aCompletionsRequest('Once upon a time', { max_tokens: 1 })],
    ['completions', aCompletionsRequest(['Once', 'upon a', ''], { max_tokens: 1 })],
    ['token ids', aCompletionsRequest([1, 2, 3], { max_tokens: 1 })],
    [
      'messages with a call',
      aRequest('/v1/messages', {
        model: 'demo-model',
        max_tokens: 1,
        system: [{ type: 'text', text: 'Be brief.' }],
        tools: [{ name: 'f', description: 'd', input_schema: { type: 'object' } }],
        messages: [
          { role: 'user', content: 'hi' },
          { role: 'assistant', content: [{ type: 'tool_use', id: 't', name: 'f', input: {} }] },
          { role: 'user', content: [{ type: 'tool_result', tool_use_id: 't', content: '21' }] },
        ],
      }),
    ],
    [
      'a response',
      aRequest('/v1/responses', {
        model: 'demo-model',
        max_output_tokens: 1,
        instructions: 'Be brief.',
        input: [{ role: 'user', content: [{ type: 'input_text', text: 'hi' }] }],
      }),
    ],
  ];
  const PATHS: Partial<Record<Api, string>> = {
    chat: '/v1/chat/completions',
    completions: '/v1/completions',
    responses: '/v1/responses',
    messages: '/v1/messages',
  };

  async function aPod(render: RenderMode): Promise<string> {
    const pod = createSimulatedPod({ render, prefillTokensPerSecond: 1_000_000, decodeStepMs: 1 });
    atEnd(() => pod.stop());
    return `http://${(await pod.start()).httpAddress}`;
  }

  async function usageOf(url: string, request: InferenceRequest): Promise<Usage | null> {
    const response = await fetch(url + PATHS[request.api]!, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: Buffer.from(request.body),
    });
    const reader = createUsageReader(response.headers.get('content-type') ?? undefined);
    for await (const chunk of response.body!) reader.push(chunk);
    return reader.result();
  }

  test.each<RenderMode>(['on', 'forbidden', 'missing'])(
    'with render %s gives as many tokens as its engine counts',
    async (render) => {
      const url = await aPod(render);
      const { ask } = aTokenizer([url]);
      for (const [name, request] of REQUESTS) {
        const chains = chainsOf(await ask(request));
        const usage = await usageOf(url, request);
        expect([name, chains.flat().length]).toEqual([name, usage?.promptTokens]);
      }
    },
  );

  test('gives the same tokens by either endpoint', async () => {
    const [rendering, tokenizing] = [aTokenizer([await aPod('on')]), aTokenizer([await aPod('missing')])];
    for (const [name, request] of REQUESTS) {
      expect([name, chainsOf(await tokenizing.ask(request))]).toEqual([name, chainsOf(await rendering.ask(request))]);
    }
  });

  test('tells images apart when it renders, and is not asked for them otherwise', async () => {
    const request = aChatRequest({ messages: [{ role: 'user', content: IMAGE }] });
    const rendered = await aTokenizer([await aPod('on')]).ask(request);
    if (rendered.kind !== 'tokens') throw new Error(rendered.reason);
    const [feature] = rendered.chains[0]!.features;
    expect(feature).toMatchObject({ identifier: expect.any(String), length: expect.any(Number) });
    expect(feature!.offset + feature!.length).toBeLessThan(rendered.chains[0]!.tokenIds.length);
    const { ask } = aTokenizer([await aPod('forbidden')]);
    expect(await ask(request)).toEqual({ kind: 'none', reason: 'unsupported' });
  });

  test('tells its usage in a stream too, cached tokens with it', async () => {
    const url = await aPod('on');
    const fields = { max_tokens: 3, stream: true, stream_options: { include_usage: true } };
    const request = aCompletionsRequest(
      Array.from({ length: 50 }, (_, i) => i + 100),
      fields,
    );
    expect(await usageOf(url, request)).toEqual({ promptTokens: 50, completionTokens: 3, cachedTokens: 0 });
    expect(await usageOf(url, request)).toEqual({ promptTokens: 50, completionTokens: 3, cachedTokens: 48 });
  });
});

test('a dead server costs a request nothing but the try: another one answers', async () => {
  const dead = await aServer();
  const alive = await aServer();
  await dead.stop();
  const { ask, counted } = aTokenizer([dead.url, alive.url], {}, () => 0);
  expect(await ask(aChatRequest())).toMatchObject({ kind: 'tokens' });
  expect(counted).toEqual(['render error', 'render ok']);
});
