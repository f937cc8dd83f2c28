/** Tokens from a model's own files, in threads. Whether they are the engine's is `vllm-recordings.test.ts`'s. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from '@jest/globals';
import { systemClock, type Clock } from '../../src/clock.ts';
import { createLog } from '../../src/log.ts';
import type { InferenceRequest } from '../../src/openai/request.ts';
import { createLocalTokenizer, type LocalTokenizerOptions } from '../../src/tokenizer/local-tokenizer.ts';
import type { TokenizeResult } from '../../src/tokenizer/tokenizer.ts';
import { endAfterEach } from '../support/endings.ts';
import { createFakeClock } from '../support/fake-clock.ts';
import { aChatRequest, aCompletionsRequest, aRequest } from '../support/requests.ts';
import { eventually } from '../support/running-app.ts';

const FIXTURES = fileURLToPath(new URL('../fixtures/tokenizers/', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'warmpath-local-'));
const atEnd = endAfterEach();
afterAll(() => rmSync(folder, { recursive: true }));

function aTokenizer(options: Partial<LocalTokenizerOptions> = {}, clock: Clock = systemClock) {
  const counted: string[] = [];
  const logged: string[] = [];
  const tokenizer = createLocalTokenizer(
    {
      clock,
      log: createLog('info', (line) => logged.push(line)),
      onCall: (api, result) => counted.push(`${api} ${result}`),
    },
    {
      file: join(FIXTURES, 'qwen3', 'tokenizer.json'),
      chatTemplateFile: null,
      threads: 1,
      budgetMs: 60_000,
      timeoutMs: 60_000,
      maxQueued: 1000,
      cacheMaxBytes: 0,
      ...options,
    },
  );
  atEnd(() => tokenizer.close());
  const ask = (request: InferenceRequest): Promise<TokenizeResult> =>
    tokenizer.tokenize(request, [], AbortSignal.timeout(60_000));
  return { tokenizer, counted, logged, ask };
}

function idsOf(result: TokenizeResult): readonly (readonly number[])[] {
  if (result.kind === 'none') throw new Error(`no tokens: ${result.reason}`);
  return result.chains.map(({ tokenIds }) => [...tokenIds]);
}

function aFile(name: string, text: string): string {
  const file = join(folder, name);
  writeFileSync(file, text);
  return file;
}

describe('a tokenizer of this process', () => {
  test('shares calls, counts them, and takes a template from a file', async () => {
    const chatTemplateFile = aFile('t.jinja', '{% for m in messages %}{{ m.content }}{% endfor %}');
    const { tokenizer, ask, counted } = aTokenizer({ chatTemplateFile });
    await tokenizer.start();
    const both = await Promise.all([ask(aChatRequest()), ask(aChatRequest())]);
    expect(both[0]).toBe(both[1]);
    expect(idsOf(both[0])).toEqual(idsOf(await ask(aCompletionsRequest('Hello!'))));
    expect(counted).toEqual(['local ok', 'local shared', 'local ok']);
  });

  test('understands the other APIs as the chats they become', async () => {
    const { tokenizer, ask } = aTokenizer();
    await tokenizer.start();
    const asked = { model: 'm', max_tokens: 1, messages: [{ role: 'user', content: 'hi' }] };
    expect(await ask(aRequest('/v1/messages', asked))).toEqual(await ask(aChatRequest({}, 'hi')));
  });

  test.each<[string, InferenceRequest]>([
    [
      'images',
      aChatRequest({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] }),
    ],
    ['a template of its own', aChatRequest({ chat_template: '{{ messages }}' })],
    ['a last message that goes on', aChatRequest({ continue_final_message: true, add_generation_prompt: false })],
    ['a prompt the engine cuts', aCompletionsRequest('x', { truncate_prompt_tokens: 1 })],
  ])('leaves a request with %s to the engine', async (_, request) => {
    const { tokenizer, ask } = aTokenizer();
    await tokenizer.start();
    expect(await ask(request)).toEqual({ kind: 'none', reason: 'unsupported' });
  });

  test('survives what a template raises, and tells nothing of the prompt', async () => {
    const chatTemplateFile = aFile('raises.jinja', '{{ raise_exception(messages[0].content) }}');
    const { tokenizer, ask, counted, logged } = aTokenizer({ chatTemplateFile });
    await tokenizer.start();
    expect(await ask(aChatRequest({}, 'secret'))).toEqual({ kind: 'none', reason: 'error' });
    expect(idsOf(await ask(aCompletionsRequest('Hello!')))).toHaveLength(1);
    expect(counted).toEqual(['local error', 'local ok']);
    expect(logged.join()).not.toContain('secret');
  });

  test('gives up on a prompt that takes too long, and takes the next ones when the thread is done with it', async () => {
    const clock = createFakeClock();
    const { tokenizer, ask, counted } = aTokenizer({ timeoutMs: 1000, maxQueued: 0 }, clock);
    await tokenizer.start();
    const given = ['0', '1', '2'].map((text) => ask(aCompletionsRequest(text)));
    clock.advance(1000);
    expect(await Promise.all(given)).toEqual([
      { kind: 'none', reason: 'timeout' },
      { kind: 'none', reason: 'timeout' },
      { kind: 'none', reason: 'rejected' },
    ]);
    // Still the same turn of the event loop, so no thread can have answered: both prompts lie before it.
    expect(await ask(aCompletionsRequest('3'))).toEqual({ kind: 'none', reason: 'rejected' });
    expect(counted.sort()).toEqual(['local rejected', 'local rejected', 'local timeout', 'local timeout']);
    await eventually(
      () => ask(aCompletionsRequest('4')),
      ({ kind }) => kind === 'tokens',
    );
  });

  test('does not begin what no thread would end in time', async () => {
    const { tokenizer, ask, counted } = aTokenizer({ timeoutMs: 100 }, createFakeClock());
    await tokenizer.start();
    expect(await ask(aCompletionsRequest('lazy dog'.repeat(20_000)))).toEqual({ kind: 'none', reason: 'rejected' });
    expect(idsOf(await ask(aCompletionsRequest('lazy dog'.repeat(1000))))).toHaveLength(1);
    expect(counted).toEqual(['local rejected', 'local ok']);
  });

  test.each<[string, Partial<LocalTokenizerOptions>, string]>([
    ['a missing file', { file: '/nowhere/tokenizer.json' }, 'tokenizer.file is not usable: ENOENT'],
    ['a file that is no JSON', { file: 'broken' }, 'tokenizer.file is not usable'],
    ['a template that is none', { chatTemplateFile: 'broken' }, 'tokenizer.chatTemplateFile is not usable'],
  ])('does not start with %s', async (_, options, message) => {
    const broken = aFile('broken', '{% if %');
    const given = Object.fromEntries(
      Object.entries(options).map(([key, value]) => [key, value === 'broken' ? broken : value]),
    );
    await expect(aTokenizer(given).tokenizer.start()).rejects.toThrow(message);
  });

  test('closed, answers nothing more', async () => {
    const { tokenizer, ask } = aTokenizer();
    await tokenizer.start();
    const pending = ask(aCompletionsRequest('lazy dog'.repeat(20_000)));
    await tokenizer.close();
    expect(await pending).toEqual({ kind: 'none', reason: 'error' });
    expect(await ask(aChatRequest())).toEqual({ kind: 'none', reason: 'disabled' });
  });
});
