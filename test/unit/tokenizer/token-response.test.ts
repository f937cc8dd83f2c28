import { describe, expect, test } from '@jest/globals';
import { readFileSync } from 'node:fs';
import {
  isUnknownModel,
  parseChatRenderResponse,
  parseCompletionsRenderResponse,
  parseTokenizeResponse,
  type TokenResponse,
} from '../../../src/tokenizer/token-response.ts';

const bytes = (value: unknown): Buffer => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
const chains = (...lists: readonly number[][]): TokenResponse => ({
  kind: 'chains',
  chains: lists.map((ids) => ({ tokenIds: Uint32Array.from(ids), features: [] })),
});

function captured(name: string): { request: { path: string }; status: number; response: unknown }[] {
  const url = new URL(`../../fixtures/kv-events/captured/${name}.json`, import.meta.url);
  return (JSON.parse(readFileSync(url, 'utf8')) as { steps: ReturnType<typeof captured> }).steps;
}

describe('an answer of /tokenize', () => {
  test.each([
    ['of vLLM', { count: 3, max_model_len: 4096, tokens: [1, 2, 3], token_strs: null }, chains([1, 2, 3])],
    ['of SGLang', { tokens: [9], count: 1, max_model_len: 10 }, chains([9])],
    ['of nothing', { count: 0, tokens: [] }, chains([])],
    ['spread over lines', '{\n "tokens" : [\n 1 ,\n 2\n ]\n}\n', chains([1, 2])],
    ['with token texts', { tokens: [1], token_strs: ['"tokens":[2]'] }, chains([1])],
  ])('%s is read', (_, answer, expected) => {
    expect(parseTokenizeResponse(bytes(answer))).toEqual(expected);
  });

  test('recorded from a real engine is read', () => {
    const step = captured('vllm-0.32.0-lora-int-salt-lora').find(({ request }) => request.path === '/tokenize')!;
    const { tokens } = step.response as { tokens: number[] };
    expect(parseTokenizeResponse(bytes(step.response))).toEqual(chains(tokens));
    expect(tokens.length).toBeGreaterThan(0);
  });

  test.each([
    ['no tokens', { count: 3 }, 'other_shape'],
    ['null tokens', { tokens: null }, 'other_shape'],
    ['tokens that are lists, for several prompts', { tokens: [[1], [2]] }, 'other_shape'],
    ['tokens that are words', { tokens: ['a'] }, 'other_shape'],
    ['a negative id', { tokens: [1, -1] }, 'other_shape'],
    ['an id of 2^32', { tokens: [4294967296] }, 'other_shape'],
    ['a list, as of another server', [{ id: 1 }], 'other_shape'],
    ['no JSON', '<html>', 'unreadable'],
    ['nothing', '', 'unreadable'],
    ['a cut list', '{"tokens":[1,2', 'unreadable'],
    ['a cut object', '{"tokens":[1,2]', 'unreadable'],
    ['something behind it', '{"tokens":[1,2]}{}', 'unreadable'],
    ['two commas', '{"tokens":[1,,2]}', 'unreadable'],
  ])('with %s is none', (_, answer, kind) => {
    expect(parseTokenizeResponse(bytes(answer))).toEqual({ kind });
  });
});

describe('an answer of the render endpoints', () => {
  const rendered = (token_ids: number[], features: unknown = null): object => ({
    request_id: 'chatcmpl-1',
    token_ids,
    features,
    sampling_params: { stop: [], temperature: 1 },
    model: 'm',
  });

  test('for chat is one chain', () => {
    expect(parseChatRenderResponse(bytes(rendered([1, 2])))).toEqual(chains([1, 2]));
  });

  test('for chat recorded from a real engine is read', () => {
    const step = captured('vllm-0.32.0-discovery').find(({ request }) => request.path.endsWith('/render'))!;
    const { token_ids: ids } = step.response as { token_ids: number[] };
    expect(parseChatRenderResponse(bytes(step.response))).toEqual(chains(ids));
    expect(ids.length).toBeGreaterThan(0);
  });

  test('for completions is a list of as many as there were prompts', () => {
    expect(parseCompletionsRenderResponse(bytes([rendered([1]), rendered([2, 3])]), 2)).toEqual(chains([1], [2, 3]));
    expect(parseCompletionsRenderResponse(bytes([rendered([1])]), 2)).toEqual({ kind: 'other_shape' });
    expect(parseCompletionsRenderResponse(bytes([]), 1)).toEqual({ kind: 'other_shape' });
    expect(parseCompletionsRenderResponse(bytes([1]), 1)).toEqual({ kind: 'other_shape' });
    expect(parseCompletionsRenderResponse(bytes(rendered([1])), 1)).toEqual(chains([1]));
    expect(parseCompletionsRenderResponse(bytes('[{"token_ids":[1]}'), 1)).toEqual({ kind: 'unreadable' });
    expect(parseCompletionsRenderResponse(bytes('nope'), 1)).toEqual({ kind: 'unreadable' });
  });

  test('brings the images in the order of their places, their pixels left aside', () => {
    const features = {
      mm_hashes: { video: ['v'], image: ['b', 'a'] },
      mm_placeholders: {
        image: [
          { offset: 7, length: 2 },
          { offset: 1, length: 3, is_embed: null },
        ],
        video: [{ offset: 5, length: 1 }],
      },
      kwargs_data: { image: ['A'.repeat(100_000), null] },
    };
    expect(parseChatRenderResponse(bytes(rendered([0, 1, 2, 3, 4, 5, 6, 7, 8], features)))).toMatchObject({
      chains: [
        {
          features: [
            { identifier: 'a', offset: 1, length: 3 },
            { identifier: 'v', offset: 5, length: 1 },
            { identifier: 'b', offset: 7, length: 2 },
          ],
        },
      ],
    });
  });

  test.each<[string, unknown, string]>([
    [
      'a place behind the tokens',
      { mm_hashes: { image: ['a'] }, mm_placeholders: { image: [{ offset: 2, length: 2 }] } },
      'unplaced',
    ],
    [
      'fewer hashes than places',
      { mm_hashes: { image: [] }, mm_placeholders: { image: [{ offset: 0, length: 1 }] } },
      'unplaced',
    ],
    ['places without hashes', { mm_placeholders: { image: [{ offset: 0, length: 1 }] } }, 'unplaced'],
    [
      'a hash that is no text',
      { mm_hashes: { image: [1] }, mm_placeholders: { image: [{ offset: 0, length: 1 }] } },
      'unplaced',
    ],
    ['a place that is none', { mm_hashes: { image: ['a'] }, mm_placeholders: { image: [null] } }, 'unplaced'],
    [
      'a negative place',
      { mm_hashes: { image: ['a'] }, mm_placeholders: { image: [{ offset: -1, length: 1 }] } },
      'unplaced',
    ],
  ])('with %s is not believed', (_, features, kind) => {
    expect(parseChatRenderResponse(bytes(rendered([1, 2, 3], features)))).toEqual({ kind });
  });

  test('with no images at all has none', () => {
    for (const features of [
      null,
      {},
      { mm_hashes: {}, mm_placeholders: {} },
      { mm_hashes: null, mm_placeholders: null },
    ]) {
      expect(parseChatRenderResponse(bytes(rendered([1], features)))).toEqual(chains([1]));
    }
  });
});

describe('a 404', () => {
  test.each<[string, unknown, 'model' | 'path']>([
    [
      'of vLLM for a model',
      { error: { message: 'The model `x` does not exist.', type: 'NotFoundError', param: 'model', code: 404 } },
      'model',
    ],
    ['of vLLM up to 0.10', { object: 'error', message: 'The model `x` does not exist.', code: 404 }, 'model'],
    ['of a proxy for a model', { error: { message: 'model x not found' } }, 'model'],
    ['of FastAPI', { detail: 'Not Found' }, 'path'],
    [
      'of newer vLLM for a path',
      { error: { message: 'Not Found', type: 'NotFoundError', param: null, code: 404 } },
      'path',
    ],
    ['of a web server', '<h1>404</h1>', 'path'],
    ['of nothing', '', 'path'],
    ['of nested errors', '{"error":'.repeat(50_000), 'path'],
  ])('%s is about the %3$s', (_, body, about) => {
    expect(isUnknownModel(bytes(body))).toBe(about === 'model');
  });
});
