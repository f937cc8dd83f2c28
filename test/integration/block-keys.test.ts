/**
 * What makes blocks differ beside their tokens, seen from both sides: a simulated pod announces the blocks of a request, and
 * what Warmpath expects of the next one is what the pod then says it found in its cache. Images, salts and adapters.
 */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { createApp } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import {
  endpointEntry,
  eventually,
  MODEL,
  stageConfig,
  startPods,
  whenTrusted,
  type RunningPod,
} from '../e2e/stage.ts';

type Candidate = { readonly endpoint: string; readonly matchedTokens: number };
type Explained = { readonly rung: string; readonly promptTokens: number; readonly candidates: readonly Candidate[] };

const CHAT = '/v1/chat/completions';
const ends: (() => Promise<unknown>)[] = [];
let admin = '';
let pod: RunningPod;

beforeAll(async () => {
  const pods = await startPods({ nPods: 1, pod: { adapters: ['lora-a'], render: 'on' } });
  pod = pods[0]!;
  ends.push(() => pod.pod.stop());
  const config = stageConfig([], {
    discovery: { endpoints: [{ ...endpointEntry(pod), adapters: ['lora-a'] }] },
    // Exact tokens only, however busy the machine is.
    tokenizer: { budgetMs: 10_000, timeoutMs: 10_000, memoMaxBytes: 0 },
  });
  const app = createApp(config, { log: silentLog, clock: systemClock });
  ends.push(() => app.stop());
  admin = (await app.start()).admin;
  await whenTrusted(admin, 1);
}, 60_000);

afterAll(async () => {
  for (const end of ends.reverse()) await end();
});

async function post(address: string, path: string, body: object): Promise<Record<string, unknown>> {
  const headers = { 'content-type': 'application/json' };
  const response = await fetch(`http://${address}${path}`, { method: 'POST', headers, body: JSON.stringify(body) });
  const answer = (await response.json()) as Record<string, unknown>;
  if (response.status !== 200) throw new Error(`${path}: ${response.status} ${JSON.stringify(answer)}`);
  return answer;
}

async function expectedTokens(path: string, body: object): Promise<number> {
  const explained = (await post(admin, '/api/v1/explain', { path, headers: {}, body })) as Explained;
  expect(explained.rung).toBe('exact');
  return explained.candidates[0]!.matchedTokens;
}

async function servedFromCache(body: object): Promise<number> {
  const { usage } = (await post(pod.addresses.httpAddress, CHAT, body)) as {
    usage: { prompt_tokens_details: { cached_tokens: number } | null };
  };
  return usage.prompt_tokens_details?.cached_tokens ?? 0;
}

/** Until the blocks of a request that was served are known here. */
async function whenKnown(body: object): Promise<void> {
  await eventually(async () => ((await expectedTokens(CHAT, body)) > 0 ? 'done' : 'nothing is announced'));
}

const image = (name: string): object => ({ type: 'image_url', image_url: { url: `http://images/${name}.png` } });
const text = (words: string): object => ({ type: 'text', text: words });
let nTopics = 0;
/** A conversation nobody had before: text, an image, text. */
function aChat(content: (topic: string) => readonly object[], more: object = {}): object {
  const topic = `${'abcdefghijklmnopqrstuvwxyz'[nTopics++ % 26]} topic of its own `.repeat(20);
  return { model: MODEL, max_tokens: 1, messages: [{ role: 'user', content: content(topic) }], ...more };
}
const withImage = (name: string) => (topic: string) => [text(topic), image(name), text(topic)];

describe('what is expected of a pod is what it then finds', () => {
  test.each<[string, (first: object) => object, 'most' | 'some' | 'none']>([
    ['the same again', (first) => first, 'most'],
    ['another image in the same place', (first) => replaced(first, 'http://images/one', 'http://images/two'), 'some'],
    ['no image', (first) => replaced(first, JSON.stringify(image('one')), JSON.stringify(text(''))), 'some'],
    ['another salt', (first) => ({ ...first, cache_salt: 'b' }), 'none'],
    ['an adapter', (first) => ({ ...first, model: 'lora-a' }), 'none'],
  ])('after a chat with an image: %s', async (_, next, share) => {
    const first = aChat(withImage('one'));
    expect(await servedFromCache(first)).toBe(0);
    await whenKnown(first);
    const second = next(first);
    const expected = await expectedTokens(CHAT, second);
    expect(await servedFromCache(second)).toBe(expected);
    const most = await expectedTokens(CHAT, first);
    if (share === 'none') expect(expected).toBe(0);
    if (share === 'some') expect(expected > 0 && expected < most).toBe(true);
    if (share === 'most') expect(expected).toBe(most);
  });

  test.each<[string, object]>([
    ['a salt', { cache_salt: 'a' }],
    ['an adapter', { model: 'lora-a' }],
  ])('and %s has blocks of its own that are found again', async (_, more) => {
    const first = aChat(withImage('one'), more);
    await servedFromCache(first);
    await whenKnown(first);
    const expected = await expectedTokens(CHAT, first);
    expect(expected).toBeGreaterThan(100);
    expect(await servedFromCache(first)).toBe(expected);
  });

  test('also where images lie side by side, across the borders of blocks', async () => {
    const first = aChat((topic) => [image('a'), image('b'), text('x'), image('a'), text(topic)]);
    await servedFromCache(first);
    await whenKnown(first);
    const swapped = replaced(replaced(first, 'images/b', 'images/c'), 'images/a', 'images/b');
    for (const next of [first, swapped]) {
      const expected = await expectedTokens(CHAT, next);
      expect(await servedFromCache(next)).toBe(expected);
    }
  });
});

describe('one prompt, asked for in several ways, is the same blocks', () => {
  test('as tokens with the images the engine found in it', async () => {
    const first = aChat(withImage('one'), { cache_salt: 's' });
    await servedFromCache(first);
    await whenKnown(first);
    const rendered = await post(pod.addresses.httpAddress, `${CHAT}/render`, first);
    const asTokens = {
      model: MODEL,
      token_ids: rendered['token_ids'],
      features: rendered['features'],
      cache_salt: 's',
    };
    const most = await expectedTokens(CHAT, first);
    expect(await expectedTokens('/inference/v1/generate', asTokens)).toBe(most);
    expect(await expectedTokens('/inference/v1/generate', { ...asTokens, features: null })).toBeLessThan(most);
    expect(await expectedTokens('/v1/completions', { model: MODEL, prompt: rendered['token_ids'] })).toBe(0);
  });

  test('through the messages and the responses API', async () => {
    const system = 'You answer in one line. '.repeat(10);
    const question = 'What is a word of its own? '.repeat(10);
    const messages = [{ role: 'user', content: question }];
    const first = { model: MODEL, max_tokens: 1, messages: [{ role: 'system', content: system }, ...messages] };
    await servedFromCache(first);
    await whenKnown(first);
    const most = await expectedTokens(CHAT, first);
    const asked = { model: MODEL, max_tokens: 1, system: [{ type: 'text', text: system }], messages };
    expect(await expectedTokens('/v1/messages', asked)).toBe(most);
    expect(await expectedTokens('/v1/responses', { model: MODEL, instructions: system, input: question })).toBe(most);
  });
});

function replaced(body: object, from: string, to: string): object {
  const before = JSON.stringify(body);
  expect(before).toContain(from);
  return JSON.parse(before.replaceAll(from, to)) as object;
}
