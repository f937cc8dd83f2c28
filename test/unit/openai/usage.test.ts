import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { readFileSync, readdirSync } from 'node:fs';
import { createUsageReader, type Usage } from '../../../src/openai/usage.ts';

const JSON_TYPE = 'application/json';
const SSE_TYPE = 'text/event-stream; charset=utf-8';

function read(contentType: string | undefined, text: string | Uint8Array, cuts: readonly number[] = []): Usage | null {
  const bytes = Buffer.from(text);
  const reader = createUsageReader(contentType);
  const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  let start = 0;
  for (const cut of [...at, bytes.length]) {
    reader.push(bytes.subarray(start, cut));
    start = cut;
  }
  return reader.result();
}

const events = (...payloads: unknown[]): string =>
  payloads.map((payload) => `data: ${typeof payload === 'string' ? payload : JSON.stringify(payload)}\n\n`).join('');

const usage = {
  prompt_tokens: 66,
  completion_tokens: 3,
  total_tokens: 69,
  prompt_tokens_details: { cached_tokens: 64 },
};
const expected: Usage = { promptTokens: 66, completionTokens: 3, cachedTokens: 64 };

const chunk = (content: string): object => ({ id: 'x', choices: [{ index: 0, delta: { content } }], usage: null });
const STREAM = events(chunk('"usage":{"prompt_tokens":1}é😀'), chunk('data: {\n\n'), { choices: [], usage }, '[DONE]');
const BODY = JSON.stringify({
  id: 'é',
  choices: [{ message: { content: '{"usage":' }, usage: { prompt_tokens: 9 } }],
  usage,
});

describe('usage', () => {
  test.each([
    ['a JSON body', JSON_TYPE, BODY],
    ['a JSON body with spaces', 'Application/JSON;charset=utf-8', JSON.stringify(JSON.parse(BODY), null, 2)],
    ['a JSON body of unknown type', undefined, `\n ${BODY}`],
    ['an empty type', '', BODY],
    ['a stream', SSE_TYPE, STREAM],
    ['a stream of unknown type', undefined, STREAM],
    ['a stream with CR LF', SSE_TYPE, STREAM.replaceAll('\n', '\r\n')],
    [
      'a stream without spaces, with other fields and comments',
      SSE_TYPE,
      `:ping\n\nevent: x\nid: 1\n${STREAM.replaceAll('data: ', 'data:')}`,
    ],
    ['a stream whose last event has no line end', SSE_TYPE, `data: ${JSON.stringify({ usage })}`],
    [
      'a stream that tells it with every chunk',
      SSE_TYPE,
      events({ usage: { prompt_tokens: 66, completion_tokens: 1 } }, { usage }),
    ],
    ['a stream with an event cut short before it', SSE_TYPE, `data: {"choices":[{"a":"\n\n${STREAM}`],
  ])('is read from %s', (_, type, text) => {
    expect(read(type, text)).toEqual(expected);
  });

  test('is the same however the bytes are cut, inside characters and lines too', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(STREAM, BODY),
        fc.array(fc.nat(), { maxLength: 30 }),
        fc.boolean(),
        (text, cuts, typed) => {
          const type = typed ? (text === STREAM ? SSE_TYPE : JSON_TYPE) : undefined;
          expect(read(type, text, cuts)).toEqual(expected);
        },
      ),
      { numRuns: 500 },
    );
    for (const text of [STREAM, BODY]) {
      expect(
        read(
          undefined,
          text,
          Array.from({ length: Buffer.byteLength(text) }, (_, i) => i),
        ),
      ).toEqual(expected);
    }
  });

  test.each<[string, object, Usage]>([
    [
      'without details',
      { prompt_tokens: 5, completion_tokens: 1 },
      { promptTokens: 5, completionTokens: 1, cachedTokens: null },
    ],
    [
      'with null details, as vLLM 0.22 where nothing was cached',
      { prompt_tokens: 5, completion_tokens: 1, prompt_tokens_details: null },
      { promptTokens: 5, completionTokens: 1, cachedTokens: null },
    ],
    [
      'with nothing cached, as vLLM 0.32',
      { prompt_tokens: 5, completion_tokens: 1, prompt_tokens_details: { cached_tokens: 0 } },
      { promptTokens: 5, completionTokens: 1, cachedTokens: 0 },
    ],
    [
      'of an embedding',
      { prompt_tokens: 5, total_tokens: 5 },
      { promptTokens: 5, completionTokens: 0, cachedTokens: null },
    ],
    [
      'of the responses API',
      { input_tokens: 30, input_tokens_details: { cached_tokens: 16 }, output_tokens: 4 },
      { promptTokens: 30, completionTokens: 4, cachedTokens: 16 },
    ],
    [
      'of the messages API, where input excludes what was cached',
      { input_tokens: 6, cache_read_input_tokens: 48, cache_creation_input_tokens: 0, output_tokens: 2 },
      { promptTokens: 54, completionTokens: 2, cachedTokens: 48 },
    ],
    [
      'of several answers with more found than there is, as SGLang adds it up',
      { prompt_tokens: 30, completion_tokens: 8, prompt_tokens_details: { cached_tokens: 64 } },
      { promptTokens: 30, completionTokens: 8, cachedTokens: 30 },
    ],
    [
      'with numbers beyond any context',
      { prompt_tokens: 30, completion_tokens: 1e300, prompt_tokens_details: { cached_tokens: 100_000_001 } },
      { promptTokens: 30, completionTokens: 0, cachedTokens: null },
    ],
  ])('%s is understood', (_, wire, result) => {
    expect(read(JSON_TYPE, JSON.stringify({ usage: wire }))).toEqual(result);
    expect(read(SSE_TYPE, events({ usage: wire }))).toEqual(result);
  });

  test('of a streamed response or message is inside of it, in parts', () => {
    const responses = events(
      { type: 'response.created', response: { usage: null } },
      {
        type: 'response.completed',
        response: { output: [{ usage: 1 }], usage: { input_tokens: 9, output_tokens: 2 } },
      },
    );
    expect(read(SSE_TYPE, responses)).toEqual({ promptTokens: 9, completionTokens: 2, cachedTokens: null });
    const messages = events(
      { type: 'message_start', message: { usage: { input_tokens: 3, cache_read_input_tokens: 16, output_tokens: 1 } } },
      { type: 'content_block_delta', delta: { text: 'usage' } },
      { type: 'message_delta', delta: {}, usage: { output_tokens: 12 } },
    );
    expect(read(SSE_TYPE, messages)).toEqual({ promptTokens: 19, completionTokens: 12, cachedTokens: 16 });
  });

  test('recorded from real engines is read', () => {
    const folder = new URL('../../fixtures/kv-events/captured/', import.meta.url);
    let nUsages = 0;
    for (const name of readdirSync(folder)) {
      const { steps } = JSON.parse(readFileSync(new URL(name, folder), 'utf8')) as {
        steps: { response?: { usage?: Record<string, unknown> } | null }[];
      };
      for (const { response } of steps) {
        const wire = response?.usage;
        if (!wire) continue;
        nUsages++;
        const details = wire['prompt_tokens_details'] as { cached_tokens: number } | null;
        expect(read(JSON_TYPE, JSON.stringify(response), [10, 20])).toEqual({
          promptTokens: wire['prompt_tokens'],
          completionTokens: wire['completion_tokens'],
          cachedTokens: details?.cached_tokens ?? null,
        });
      }
    }
    expect(nUsages).toBeGreaterThan(30);
  });

  test.each<[string, string | undefined, string | Uint8Array]>([
    ['nothing', JSON_TYPE, ''],
    ['an answer without it', JSON_TYPE, '{"choices":[]}'],
    ['a usage that is no object', JSON_TYPE, '{"usage":[1,2],"a":{"usage":{"prompt_tokens":1}}}'],
    ['a usage of words', JSON_TYPE, '{"usage":{"prompt_tokens":"many","completion_tokens":null}}'],
    ['a usage that was cut', JSON_TYPE, '{"usage":{"prompt_tokens":5'],
    ['a usage deeper down', JSON_TYPE, '{"data":{"usage":{"prompt_tokens":5}},"x":[{"usage":{"prompt_tokens":5}}]}'],
    ['a list', JSON_TYPE, '[{"usage":{"prompt_tokens":5}}]'],
    ['a text that mentions it', JSON_TYPE, '{"a":"\\"usage\\":{\\"prompt_tokens\\":5}"}'],
    ['sound', 'audio/mpeg', BODY],
    ['plain text', 'text/plain', BODY],
    ['a stream sent as JSON', JSON_TYPE, 'data: {"usage"'],
    ['compressed bytes', undefined, Uint8Array.from({ length: 2000 }, (_, i) => (i * 7919) & 255)],
    ['closing brackets', JSON_TYPE, '}}}]]]"usage":{"prompt_tokens":5}'],
  ])('is null for %s', (_, type, text) => {
    expect(read(type, text)).toBeNull();
  });

  test('of any garbage is never an exception', () => {
    const noise = fc.array(fc.constantFrom(...'{}[]":,\\usage0123456789 \r\ndata:'), { maxLength: 200 });
    fc.assert(
      fc.property(noise, fc.constantFrom(JSON_TYPE, SSE_TYPE, undefined), (characters, type) => {
        read(type, characters.join(''), [5, 50]);
      }),
      { numRuns: 2000 },
    );
  });

  test('larger than any engine writes is not kept', () => {
    const padding = 'x'.repeat(50_000);
    expect(read(JSON_TYPE, `{"usage":{"prompt_tokens":5,"padding":"${padding}"}}`, [20, 30_000])).toBeNull();
    const reader = createUsageReader(JSON_TYPE);
    const before = process.memoryUsage().arrayBuffers;
    reader.push(Buffer.from('{"usage":{"x":"'));
    const piece = Buffer.alloc(1 << 16, 'y');
    for (let i = 0; i < 256; i++) reader.push(piece);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(4 << 20);
    reader.push(Buffer.from('"}}'));
    expect(reader.result()).toBeNull();
  });
});
