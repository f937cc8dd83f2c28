import { describe, expect, test } from '@jest/globals';
import type { InferenceRequest } from '../../../src/openai/request.ts';
import { createBlockHasher, createHashSeed } from '../../../src/prefix/block-hash.ts';
import { CHUNK_BYTES, createPromptKeyer } from '../../../src/tokenizer/prompt-keys.ts';
import { withoutMarks } from '../../../src/tokenizer/cache-marks.ts';
import { aChatRequest, aCompletionsRequest, aRequest } from '../../support/requests.ts';

const keyer = createPromptKeyer(createBlockHasher(createHashSeed()));

function textKeys(request: InferenceRequest, model = 'm', adapter: string | null = null, prompt = 0): string[] {
  const { keys } = keyer.keysOf(request, model, adapter)[prompt]!;
  return Array.from({ length: keys.length / 2 }, (_, i) => `${keys[2 * i]}:${keys[2 * i + 1]}`);
}

const nShared = (a: readonly string[], b: readonly string[]): number => {
  const at = a.findIndex((key, i) => key !== b[i]);
  return at < 0 ? a.length : at;
};

const chat = (messages: readonly object[], fields: object = {}): InferenceRequest =>
  aChatRequest({ messages, ...fields });
const user = (content: string): object => ({ role: 'user', content });

describe('keys of a chat', () => {
  test('are one per message, and those of its next turn begin with them', () => {
    const first = textKeys(chat([user('a'), user('b')]));
    const second = textKeys(chat([user('a'), user('b'), user('c')]));
    expect(first).toHaveLength(2);
    expect(second.slice(0, 2)).toEqual(first);
    expect(new Set(second).size).toBe(3);
  });

  test('divide a long message, so that two that begin alike share the beginning', () => {
    const shared = 'x'.repeat(3 * CHUNK_BYTES);
    const one = textKeys(chat([user(`${shared}one`)]));
    const two = textKeys(chat([user(`${shared}another`)]));
    expect(one).toHaveLength(4);
    expect(nShared(one, two)).toBe(3);
  });

  test.each<[string, object]>([
    ['tools', { tools: [{ type: 'function' }] }],
    ['template arguments', { chat_template_kwargs: { enable_thinking: false } }],
    ['a salt', { cache_salt: 's' }],
    ['documents', { documents: [] }],
    ['thoughts switched off, as the messages API says it', { thinking: { type: 'disabled' } }],
  ])('have nothing in common with those of a request with %s', (_, fields) => {
    expect(nShared(textKeys(chat([user('a')])), textKeys(chat([user('a')], fields)))).toBe(0);
  });

  test.each<[string, object]>([
    ['sampling', { temperature: 0.1, max_tokens: 7 }],
    ['streaming', { stream: true }],
  ])('do not depend on %s', (_, fields) => {
    expect(textKeys(chat([user('a')], fields))).toEqual(textKeys(chat([user('a')])));
  });

  test('do not depend on marks of what is to be cached, which move to the newest message with every turn', () => {
    const mark = { cache_control: { type: 'ephemeral', ttl: '5m' } };
    const said = (text: string, marks: object = {}): object => ({
      role: 'user',
      content: [{ type: 'text', text, ...marks }],
    });
    const result = { type: 'tool_result', tool_use_id: 'c', content: 'x'.repeat(3 * CHUNK_BYTES) };
    const turn = (...messages: readonly object[]): InferenceRequest =>
      aRequest('/v1/messages', { messages, model: 'm', max_tokens: 1, system: [{ type: 'text', text: 's', ...mark }] });
    const first = turn(said('a'), said('b', mark), { role: 'user', content: [{ ...mark, ...result }] });
    const second = turn(said('a'), said('b'), { role: 'user', content: [result] }, said('c', mark));
    expect(textKeys(second).slice(0, -1)).toEqual(textKeys(first));
    expect(textKeys(second)).toEqual(
      textKeys(turn(said('a'), said('b'), { role: 'user', content: [result] }, said('c'))),
    );
  });

  test.each<[string, string, string]>([
    ['first of several', '{ "cache_control" : {"a":[1]} , "b":1}', '{  "b":1}'],
    ['between others', '{"a":1 , "cache_control":null,"b":1}', '{"a":1 ,"b":1}'],
    ['last', '{"a":1,"cache_control":{"type":"ephemeral"} }', '{"a":1 }'],
    ['alone', '{"cache_control":{}}', '{}'],
    ['twice', '{"a":1,"cache_control":{},"cache_control":{}}', '{"a":1}'],
    ['inside of itself', '{"a":1,"cache_control":{"b":1,"cache_control":2}}', '{"a":1}'],
    ['as a text', '{"a":"cache_control"}', '{"a":"cache_control"}'],
    ['in a text', '{"a":"\\"cache_control\\":1"}', '{"a":"\\"cache_control\\":1"}'],
  ])('know a mark %s', (_, marked, plain) => {
    const text = `${marked} ,${marked}`;
    const ranges = [
      { start: marked.length + 2, end: text.length },
      { start: 0, end: marked.length },
    ];
    const { body, ranges: moved } = withoutMarks({ body: Buffer.from(text), ranges });
    expect(moved.map(({ start, end }) => Buffer.from(body.subarray(start, end)).toString())).toEqual([plain, plain]);
  });

  test('belong to a model and an adapter', () => {
    const request = chat([user('a')]);
    const all = [textKeys(request), textKeys(request, 'other'), textKeys(request, 'm', 'lora')];
    expect(new Set(all.flat()).size).toBe(3);
  });

  test('tell where each ends, tools counted', () => {
    const tools = [{ name: 'f' }];
    const [keys] = keyer.keysOf(chat([user('abc')], { tools }), 'm', null);
    const nBytes = JSON.stringify(tools).length + JSON.stringify(user('abc')).length;
    expect(keys).toMatchObject({ endBytes: [nBytes], nBytes });
  });

  test('a salt cannot be moved into another field', () => {
    const one = chat([user('a')], { cache_salt: 'x', chat_template: 'y' });
    const two = chat([user('a')], { cache_salt: 'y', chat_template: 'x' });
    expect(nShared(textKeys(one), textKeys(two))).toBe(0);
  });
});

describe('keys of a text', () => {
  test('begin alike for a text and its continuation', () => {
    const text = 'once upon a time '.repeat(200);
    const one = textKeys(aCompletionsRequest(text));
    const two = textKeys(aCompletionsRequest(`${text}there was`));
    expect(nShared(one, two)).toBe(Math.floor(text.length / CHUNK_BYTES));
  });

  test('are the same wherever the text stands among several', () => {
    const several = aCompletionsRequest(['other', 'text']);
    expect(textKeys(several, 'm', null, 1)).toEqual(textKeys(aCompletionsRequest('text')));
  });

  test('of different length never meet, whatever pads them', () => {
    const texts = ['', 'a', 'aa', 'a'.repeat(61), 'a'.repeat(64), 'a'.repeat(CHUNK_BYTES), 'a'.repeat(CHUNK_BYTES + 1)];
    const last = texts.map((text) => textKeys(aCompletionsRequest(text)).at(-1));
    expect(new Set(last).size).toBe(texts.length);
  });
});

test('what has no text has no keys', () => {
  expect(keyer.keysOf(aCompletionsRequest([1, 2, 3]), 'm', null)).toEqual([]);
  expect(keyer.keysOf(aCompletionsRequest(Array.from({ length: 17 }, () => 'x')), 'm', null)).toEqual([]);
});

test('a prompt of more text than keys are made for has keys of its beginning', () => {
  const request = aCompletionsRequest('x'.repeat(5000 * CHUNK_BYTES));
  const [keys] = keyer.keysOf(request, 'm', null);
  expect(keys!.endBytes).toHaveLength(4096);
  expect(keys!.endBytes.at(-1)).toBeLessThan(keys!.nBytes);
});

describe('images in a body', () => {
  const base64 = (letter: string): string => letter.repeat(300_000);
  const chatWith = (part: object): InferenceRequest =>
    chat([
      { role: 'user', content: [{ type: 'text', text: 'before' }, part, { type: 'text', text: 'after' }] },
      user('b'),
    ]);
  const nBytes = (request: InferenceRequest): number => keyer.keysOf(request, 'm', null)[0]!.nBytes;

  test.each<[string, (data: string) => object]>([
    ['a data URL', (data) => ({ type: 'image_url', image_url: { url: `data:image/png;base64,${data}` } })],
    ['a sound', (data) => ({ type: 'input_audio', input_audio: { format: 'wav', data } })],
    ["Anthropic's form", (data) => ({ type: 'image', source: { type: 'base64', media_type: 'image/png', data } })],
  ])('(%s) tell prompts apart by all of their bytes, and count as a few thousand', (_, part) => {
    const request = chatWith(part(base64('A')));
    expect(nBytes(request)).toBeLessThan(6000);
    expect(nBytes(request)).toBeGreaterThan(4000);
    const other = chatWith(part(`${base64('A').slice(0, -1)}B`));
    const shared = nShared(textKeys(request), textKeys(other));
    expect(shared).toBeGreaterThan(250);
    expect(shared).toBeLessThan(textKeys(request).length - 1);
    const { endBytes } = keyer.keysOf(request, 'm', null)[0]!;
    expect(endBytes.every((end, i) => i === 0 || end >= endBytes[i - 1]!)).toBe(true);
  });

  test('are not what a text says of them', () => {
    const said = JSON.stringify({ url: `data:image/png;base64,${base64('A')}` });
    expect(nBytes(chat([user(said)]))).toBeGreaterThan(300_000);
    expect(nBytes(chat([user(`"data" ${base64('A')}`)]))).toBeGreaterThan(300_000);
  });
});
