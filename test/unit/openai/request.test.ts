import { describe, expect, test } from '@jest/globals';
import { readFileSync, readdirSync } from 'node:fs';
import { MAX_ELEMENTS } from '../../../src/openai/body-scan.ts';
import { MAX_PROMPTS } from '../../../src/openai/prompt.ts';
import { apiOf } from '../../../src/openai/api.ts';
import { parseRequest, type FieldName, type InferenceRequest } from '../../../src/openai/request.ts';
import {
  CHAT_PATH,
  COMPLETIONS_PATH,
  aChatRequest,
  aCompletionsRequest,
  aRequest,
  parse,
} from '../../support/requests.ts';

function aRequestOf(path: string, body: string): InferenceRequest {
  const parsed = parse(path, body);
  if (parsed.kind !== 'request') throw new Error(parsed.message);
  return parsed.request;
}

function textOfField({ body, fields }: InferenceRequest, name: FieldName): string | undefined {
  const range = fields.get(name);
  return range && Buffer.from(body.subarray(range.start, range.end)).toString('utf8');
}

describe('the path', () => {
  test.each([
    ['/v1/chat/completions', 'chat'],
    ['/v1/chat/completions/', 'chat'],
    ['/v1/chat/completions//?a=/v1/completions', 'chat'],
    ['/team-a/llm/v1/chat/completions?api-version=1', 'chat'],
    ['/openai/deployments/m/chat/completions#x', 'chat'],
    ['/v1/completions', 'completions'],
    ['/prefix/v1/completions/?stream=1', 'completions'],
    ['/v1/chat/completions/render', 'other'],
    ['/v1/responses', 'responses'],
    ['/v1/responses/resp_1/cancel', 'other'],
    ['/a/v1/responses/?b', 'responses'],
    ['/v1/messages', 'messages'],
    ['/anthropic/v1/messages?beta=true', 'messages'],
    ['/v1/messages/count_tokens', 'other'],
    ['/threads/7/messages', 'other'],
    ['/inference/v1/generate', 'generate'],
    ['/generate', 'other'],
    ['/v1/embeddings', 'embeddings'],
    ['/embeddings/', 'embeddings'],
    ['/v2/rerank', 'rerank'],
    ['/rerank', 'rerank'],
    ['/v1/score', 'score'],
    ['/classify', 'classify'],
    ['/pooling', 'other'],
    ['/v1/models?next=/v1/chat/completions', 'other'],
    ['/v1/mycompletions', 'other'],
    ['/', 'other'],
    ['', 'other'],
  ])('%s is %s', (path, api) => {
    expect(apiOf(path)).toBe(api);
  });
});

describe('a chat request', () => {
  test('tells its model, its stream flag, its limit and its salt', () => {
    const request = aChatRequest({
      stream: true,
      n: 3,
      max_tokens: 5,
      max_completion_tokens: 7,
      cache_salt: 'a\u00e9"',
    });
    expect(request).toMatchObject({
      api: 'chat',
      model: 'demo-model',
      stream: true,
      prompt: { kind: 'messages', ranges: [expect.anything()] },
      cacheSalt: 'a\u00e9"',
      maxTokens: 7,
      nAnswers: 3,
    });
  });

  test.each([
    [4, 4],
    ['2', 2],
    [0, 1],
    [-3, 1],
    [1.5, 1],
    ['many', 1],
    [[2], 1],
    [1e300, 16_384],
  ])('that asks for n = %j is taken to ask for %i answers, whatever the engine says to it', (n, nAnswers) => {
    expect(aChatRequest({ n })).toMatchObject({ nAnswers });
  });

  test('without the optional fields, or with null in them, has their defaults', () => {
    const absent = { stream: false, cacheSalt: null, maxTokens: null, nAnswers: 1 };
    expect(aChatRequest()).toMatchObject(absent);
    const nulls = {
      stream: null,
      n: null,
      cache_salt: null,
      max_tokens: null,
      max_completion_tokens: null,
      tools: null,
    };
    const request = aChatRequest(nulls);
    expect(request).toMatchObject(absent);
    expect(request.fields.has('tools')).toBe(false);
  });

  test('keeps the bytes as they came, and knows where its fields stand in them', () => {
    const body = Buffer.from('{ "messages" : [{"content":"é\\u00e9"}] ,"tools":[ {} ], "model":"m" }');
    const parsed = parseRequest('POST', CHAT_PATH, undefined, body, { truncated: 'no' });
    if (parsed.kind !== 'request') throw new Error(parsed.message);
    expect(parsed.request.body).toBe(body);
    expect(textOfField(parsed.request, 'messages')).toBe('[{"content":"é\\u00e9"}]');
    expect(textOfField(parsed.request, 'tools')).toBe('[ {} ]');
    expect(textOfField(parsed.request, 'documents')).toBeUndefined();
  });

  test('takes the last of equal keys, whatever their spelling, and a last null as absence', () => {
    const body =
      '{"model":"a","messages":[1],"mod\\u0065l":"b","messages":[2],"\\u006dodel":"c","cache_salt":"s","cache_salt":null}';
    const request = aRequest(CHAT_PATH, body);
    expect(request).toMatchObject({ model: 'c', cacheSalt: null });
    expect(textOfField(request, 'messages')).toBe('[2]');
  });

  test('is not confused by fields of the same name inside others', () => {
    const request = aRequest(
      CHAT_PATH,
      '{"metadata":{"model":"x","messages":[]},"messages":[{"model":"y","stream":true}],"model":"m"}',
    );
    expect(request).toMatchObject({ model: 'm', stream: false });
  });

  test.each([
    [
      'content parts',
      [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'a' },
            { type: 'image_url', image_url: {} },
          ],
        },
      ],
    ],
    ['tool calls', [{ role: 'assistant', content: null, tool_calls: [{ id: '1' }] }]],
    ['shapes nobody knows yet', [{ role: 'user', content: 5 }, 'text']],
  ])('with %s is left to the engine', (_, messages) => {
    const { prompt, body } = aChatRequest({ messages });
    if (prompt.kind !== 'messages') throw new Error(`expected messages, got ${prompt.kind}`);
    expect(prompt.ranges.map(({ start, end }) => JSON.parse(Buffer.from(body).toString('utf8', start, end)))).toEqual(
      messages,
    );
  });
});

describe('a list of more messages than any chat has', () => {
  test.each([
    ['/v1/chat/completions', 'messages'],
    ['/v1/messages', 'messages'],
    ['/v1/messages', 'system'],
    ['/v1/responses', 'input'],
  ])('costs no memory for each of them (%s, %s)', (path, field) => {
    const nAtLeast = 20_000;
    const others = field === 'system' ? '"messages":[{}],' : '';
    const body = `{"model":"m",${others}"${field}":[${'{} ,'.repeat(nAtLeast)} {"last":1} ]}`;
    const { prompt } = aRequestOf(path, body);
    const { ranges } = prompt as InferenceRequest['prompt'] & { kind: 'messages' };
    expect(ranges.length).toBeLessThanOrEqual(MAX_ELEMENTS + 1);
    // All of them are there: the last that is told apart goes on to their end.
    const { start, end } = ranges[MAX_ELEMENTS - 1]!;
    expect(body.slice(start, end)).toMatch(/^\{\} ,\{\} ,.*,\{\} , \{"last":1\}$/s);
    expect(body.slice(ranges[MAX_ELEMENTS - 2]!.start, start)).toBe('{} ,');
  });
});

describe('a completions request', () => {
  test.each<[string, unknown, readonly string[]]>([
    ['a string', 'Once upon', ['Once upon']],
    ['an empty string', '', ['']],
    ['a string with escapes', 'a"\\\n\u0001é😀\u2028', ['a"\\\n\u0001é😀\u2028']],
    ['a list of strings', ['a', '', 'é'], ['a', '', 'é']],
  ])('with %s has one text per prompt', (_, prompt, texts) => {
    const request = aCompletionsRequest(prompt);
    if (request.prompt.kind !== 'texts') throw new Error(request.prompt.kind);
    const raw = request.prompt.ranges.map(({ start, end }) =>
      Buffer.from(request.body.subarray(start, end)).toString(),
    );
    expect(raw.map((text) => JSON.parse(text) as string)).toEqual(texts);
  });

  test.each<[string, unknown, readonly number[][]]>([
    ['token ids', [1, 2, 4294967295, 0], [[1, 2, 4294967295, 0]]],
    ['lists of token ids', [[1, 2], [], [3]], [[1, 2], [], [3]]],
    ['one empty list of ids', [[]], [[]]],
  ])('with %s has one chain per list', (_, prompt, chains) => {
    const expected = chains.map((ids) => Uint32Array.from(ids));
    expect(aCompletionsRequest(prompt).prompt).toEqual({ kind: 'tokens', tokenIds: expected, features: [] });
  });

  test('takes the last of several prompts, and judges no other', () => {
    expect(aRequest(COMPLETIONS_PATH, '{"prompt":[-1],"prompt":{},"model":"m","prompt":[ 7 ]}').prompt).toEqual({
      kind: 'tokens',
      tokenIds: [Uint32Array.of(7)],
      features: [],
    });
    expect(parse(COMPLETIONS_PATH, '{"prompt":[1],"model":"m","prompt":[true]}')).toMatchObject({ param: 'prompt' });
    expect(parse(COMPLETIONS_PATH, '{"prompt":"a","model":"m","prompt":null}')).toMatchObject({ param: 'prompt' });
  });

  test.each([
    ['embeddings instead of a prompt', { prompt_embeds: 'QUJD' }],
    ['embeddings and a null prompt', { prompt: null, prompt_embeds: 'QUJD' }],
    ['more texts than routing looks at', { prompt: Array.from({ length: MAX_PROMPTS + 1 }, () => '') }],
    ['more lists than routing looks at', { prompt: Array.from({ length: MAX_PROMPTS + 1 }, () => [1]) }],
  ])('with %s is routed without knowledge of its prompt', (_, fields) => {
    expect(aRequest(COMPLETIONS_PATH, { model: 'm', ...fields })).toMatchObject({
      model: 'm',
      prompt: { kind: 'none' },
    });
  });

  test('with as many prompts as routing looks at has all of them', () => {
    const { prompt } = aCompletionsRequest(Array.from({ length: MAX_PROMPTS }, (_, i) => [i]));
    expect(prompt).toMatchObject({ kind: 'tokens', tokenIds: { length: MAX_PROMPTS } });
  });

  test.each(['basic', 'salt-lora'])('of a recorded session is understood (%s)', (scenario) => {
    const folder = new URL('../../fixtures/kv-events/captured/', import.meta.url);
    let nRequests = 0;
    for (const name of readdirSync(folder).filter((file) => file.endsWith(`-${scenario}.json`))) {
      const { steps } = JSON.parse(readFileSync(new URL(name, folder), 'utf8')) as {
        steps: {
          status: number;
          request: { path: string; body: { model: string; prompt: number[]; cache_salt?: string } };
        }[];
      };
      for (const { request, status } of steps.filter((step) => step.request.path === COMPLETIONS_PATH)) {
        nRequests++;
        const { model, prompt, cache_salt: salt } = request.body;
        const lists = typeof prompt[0] === 'number' ? [prompt] : (prompt as unknown as number[][]);
        expect(aRequest(COMPLETIONS_PATH, request.body)).toMatchObject({
          model,
          prompt: { kind: 'tokens', tokenIds: lists.map((ids) => Uint32Array.from(ids)) },
          cacheSalt: status === 200 && salt ? salt : null,
        });
      }
    }
    expect(nRequests).toBeGreaterThan(10);
  });
});

describe('a bad request', () => {
  const messages = [{ role: 'user', content: 'x' }];
  const FORMS = 'a string, a list of strings, a list of token ids or a list of lists of token ids';
  const ID = 'must be an integer from 0 to 4294967295';

  test.each<[string, string | object, string | null, string]>([
    [
      'no JSON at all',
      'no healthy upstream',
      null,
      'The request body is not valid JSON: got "n" at byte 0, expected "{".',
    ],
    ['an empty body', '', null, 'The request body is empty, expected a JSON object.'],
    [
      'white space only',
      ' \n',
      null,
      'The request body is not valid JSON: got the end of the text at byte 2, expected "{".',
    ],
    ['a list', '[1]', null, 'The request body must be a JSON object, got an array.'],
    ['a string', '"x"', null, 'The request body must be a JSON object, got a string.'],
    ['null', 'null', null, 'The request body must be a JSON object, got null.'],
    [
      'a cut body',
      '{"model":"m","messages":[{"ro',
      null,
      'The request body is not valid JSON: got the end of the text at byte 29, expected the end of a string.',
    ],
    [
      'a trailing comma',
      '{"model":"m",}',
      null,
      'The request body is not valid JSON: got "}" at byte 13, expected a string.',
    ],
    [
      'text behind the object',
      '{"model":"m"} x',
      null,
      'The request body is not valid JSON: got "x" at byte 14, expected the end of the text.',
    ],
    [
      'a line break in a string',
      '{"model":"a\nb"}',
      null,
      'The request body is not valid JSON: got byte 0x0a at byte 11, expected no control character inside a string.',
    ],
    [
      'a byte order mark',
      '\ufeff{"model":"m"}',
      null,
      'The request body begins with a byte order mark, expected a JSON object without one.',
    ],
    ['no model', { messages }, 'model', '`model` must be a string, got nothing.'],
    ['a null model', { model: null, messages }, 'model', '`model` must be a string, got nothing.'],
    ['a model of another type', '{"model":5}', 'model', '`model` must be a string, got 5 at byte 9.'],
    ['an empty model', { model: '', messages }, 'model', '`model` must be the name of a model, got an empty string.'],
    [
      'a stream flag that is none',
      { model: 'm', messages, stream: {} },
      'stream',
      '`stream` must be true or false, got an object at byte 65.',
    ],
    [
      'a salt that is no string',
      { model: 'm', cache_salt: 1, messages },
      'cache_salt',
      '`cache_salt` must be a string, got 1 at byte 26.',
    ],
    [
      'a limit that is none',
      { model: 'm', max_tokens: 1.5, messages },
      'max_tokens',
      '`max_tokens` must be an integer, got 1.5 at byte 26.',
    ],
    [
      'a limit of words',
      { model: 'm', max_completion_tokens: 'many' },
      'max_completion_tokens',
      '`max_completion_tokens` must be an integer, got a string at byte 37.',
    ],
    ['no messages', { model: 'm', prompt: 'x' }, 'messages', '`messages` must be a list of messages, got nothing.'],
    [
      'messages of another type',
      { model: 'm', messages: 'hi' },
      'messages',
      '`messages` must be a list of messages, got a string at byte 24.',
    ],
    [
      'no message',
      '{"model":"m","messages":[ ]}',
      'messages',
      '`messages` must hold at least one message, got an empty list.',
    ],
  ])('of chat with %s says what, got and expected', (_, body, param, message) => {
    expect(parse(CHAT_PATH, body)).toEqual({ kind: 'bad_request', param, message });
  });

  test.each<[string, string, string]>([
    ['no prompt', '', '`prompt` must be a string, a list of strings or token ids, got nothing.'],
    ['a number', ',"prompt":5', `\`prompt\` must be ${FORMS}, got a number at byte 22.`],
    ['an object', ',"prompt":{}', `\`prompt\` must be ${FORMS}, got an object at byte 22.`],
    ['an empty list', ',"prompt":[]', `\`prompt\` must be ${FORMS}, got an empty list at byte 22.`],
    [
      'a list of flags',
      ',"prompt":[true]',
      `\`prompt\` must be ${FORMS}, got a list that begins with a boolean at byte 22.`,
    ],
    [
      'ids among texts',
      ',"prompt":["a",1]',
      '`prompt[1]` must be a string as `prompt[0]` is, got a number at byte 27.',
    ],
    ['texts among ids', ',"prompt":[1,"a"]', `\`prompt[1]\` ${ID}, got a string at byte 25.`],
    ['a negative id', ',"prompt":[1, -1]', `\`prompt[1]\` ${ID}, got -1 at byte 26.`],
    ['an id of 2^32', ',"prompt":[4294967296]', `\`prompt[0]\` ${ID}, got 4294967296 at byte 23.`],
    ['a fraction', ',"prompt":[1.5]', `\`prompt[0]\` ${ID}, got 1.5 at byte 23.`],
    [
      'an endless id',
      `,"prompt":[${'9'.repeat(99)}]`,
      `\`prompt[0]\` ${ID}, got a number of 99 characters at byte 23.`,
    ],
    [
      'a text among lists',
      ',"prompt":[[1],"a"]',
      '`prompt[1]` must be a list of token ids as `prompt[0]` is, got a string at byte 27.',
    ],
    ['a bad id in a list', ',"prompt":[[1],[2,null]]', `\`prompt[1][1]\` ${ID}, got null at byte 30.`],
    ['lists in lists', ',"prompt":[[[1]]]', `\`prompt[0][0]\` ${ID}, got an array at byte 24.`],
  ])('of completions with %s says what, got and expected', (_, prompt, message) => {
    expect(parse(COMPLETIONS_PATH, `{"model":"m"${prompt}}`)).toEqual({
      kind: 'bad_request',
      param: 'prompt',
      message,
    });
  });

  test('that is not UTF-8 is refused, as every engine would', () => {
    const body = Buffer.concat([Buffer.from('{"model":"m","prompt":"'), Buffer.of(0xc3, 0x28), Buffer.from('"}')]);
    expect(parseRequest('POST', COMPLETIONS_PATH, undefined, body, { truncated: 'no' })).toMatchObject({
      kind: 'bad_request',
      message: 'The request body is not valid UTF-8, expected a JSON object in UTF-8.',
    });
  });

  test('that is not JSON is that first, whatever else is wrong', () => {
    expect(parse(COMPLETIONS_PATH, '{"prompt":[true],"model":1,')).toMatchObject({ param: null });
  });

  test.each([true, 'true', 'YES', 1, '1', 'on'])('is not made of a stream flag engines read as true: %p', (stream) => {
    expect(aChatRequest({ stream })).toMatchObject({ stream: true });
  });

  test.each([false, 'false', 'No', 0, '0', 'off'])(
    'is not made of a stream flag engines read as false: %p',
    (stream) => {
      expect(aChatRequest({ stream })).toMatchObject({ stream: false });
    },
  );
});

const textsOf = ({ prompt, body }: InferenceRequest): unknown[] => {
  if (prompt.kind !== 'messages') throw new Error(`expected messages, got ${prompt.kind}`);
  return prompt.ranges.map(({ start, end }) => JSON.parse(Buffer.from(body).toString('utf8', start, end)) as unknown);
};

describe('a request of the responses API', () => {
  const ask = (fields: object): InferenceRequest => aRequest('/v1/responses', { model: 'm', ...fields });

  test('begins with its instructions, wherever they stand, and goes on with its input', () => {
    expect(textsOf(ask({ input: 'hi', instructions: 'be brief', max_output_tokens: 9, cache_salt: 's' }))).toEqual([
      'be brief',
      'hi',
    ]);
    const items = [
      { role: 'user', content: 'a' },
      { type: 'function_call', call_id: '1', name: 'f', arguments: '{}' },
    ];
    expect(textsOf(ask({ instructions: 'x', input: items }))).toEqual(['x', ...items]);
    expect(textsOf(ask({ input: items }))).toEqual(items);
    expect(ask({ input: 'hi', max_output_tokens: 9, cache_salt: 's' })).toMatchObject({ maxTokens: 9, cacheSalt: 's' });
  });

  test.each([
    ['previous_response_id', 'resp_1'],
    ['conversation', 'c'],
    ['prompt', { id: 'p' }],
  ])('with %s has a beginning only its engine knows', (name, value) => {
    expect(ask({ input: 'hi', [name]: value }).prompt).toEqual({ kind: 'none' });
  });

  test.each<[object, string, string]>([
    [{}, 'input', '`input` must be a string or a list of items, got nothing.'],
    [{ input: 7 }, 'input', '`input` must be a string or a list of items, got 7 at byte 21.'],
    [{ input: [] }, 'input', '`input` must hold at least one item, got an empty list.'],
    [{ input: 'x', instructions: [] }, 'instructions', '`instructions` must be a string, got an array at byte 40.'],
    [
      { input: 'x', max_output_tokens: 'many' },
      'max_output_tokens',
      '`max_output_tokens` must be an integer, got a string at byte 45.',
    ],
  ])('like %j is refused with its place', (fields, param, message) => {
    expect(parse('/v1/responses', { model: 'm', ...fields })).toEqual({ kind: 'bad_request', param, message });
  });
});

describe('a request of the messages API', () => {
  const messages = [{ role: 'user', content: 'a' }];
  const ask = (fields: object): InferenceRequest => aRequest('/v1/messages', { model: 'm', messages, ...fields });

  test('begins with its system prompt, block by block, without the one in which clients name themselves', () => {
    expect(textsOf(ask({ system: 'be brief' }))).toEqual(['be brief', ...messages]);
    const named = { type: 'text', text: 'x-anthropic-billing-header: 4f2a' };
    const block = { type: 'text', text: 'You are an x-anthropic-billing-header expert' };
    expect(textsOf(ask({ system: [named, block] }))).toEqual([block, ...messages]);
    expect(textsOf(ask({}))).toEqual(messages);
  });

  test('tells its salt and its limit', () => {
    expect(ask({ cache_salt: 's', max_tokens: 3 })).toMatchObject({ cacheSalt: 's', maxTokens: 3 });
  });

  test.each<[object, string, string]>([
    [{ messages: 'x' }, 'messages', '`messages` must be a list of messages, got a string at byte 24.'],
    [{ messages: [] }, 'messages', '`messages` must hold at least one message, got an empty list.'],
    [{ messages, system: 5 }, 'system', '`system` must be a string or a list of texts, got 5 at byte 65.'],
  ])('like %j is refused with its place', (fields, param, message) => {
    expect(parse('/v1/messages', { model: 'm', ...fields })).toEqual({ kind: 'bad_request', param, message });
  });
});

describe('a request with tokens in', () => {
  const imagesNamed = (...names: string[]): object => ({
    mm_hashes: { i: names },
    mm_placeholders: { i: names.map(() => ({ offset: 0, length: 0 })) },
  });
  const kinds = (n: number): object => ({
    mm_hashes: {},
    mm_placeholders: Object.fromEntries(Array.from({ length: n }, (_, i) => [`kind ${i}`, []])),
  });
  const ask = (fields: object): InferenceRequest =>
    aRequest('/inference/v1/generate', { model: 'm', token_ids: [1, 2, 3], ...fields });

  test('takes the last of several lists of images, and a video with its sound on the same tokens', () => {
    const place = '[{"length":2,"offset":1,"is_embed":null}]';
    const body = `{"model":"m","token_ids":[1,2,3],"features":{"mm_hashes":{"i":["x"]},
      "mm_hashes":{"video":["no"],"video":["v"],"audio":["\\u0061"]},
      "mm_placeholders":{"video":${place},"audio":${place}}}}`;
    expect(parse('/inference/v1/generate', body)).toMatchObject({
      request: {
        prompt: {
          features: [
            { identifier: 'v', offset: 1, length: 2 },
            { identifier: 'a', offset: 1, length: 2 },
          ],
        },
      },
    });
  });

  test('may have as many images, named as it likes, as an engine takes', () => {
    const names = Array.from({ length: 4096 }, (_, i) => `${i}`.padStart(i === 0 ? 1000 : 64));
    expect(ask({ features: imagesNamed(...names) }).prompt).toMatchObject({ features: { length: 4096 } });
    expect(ask({ features: kinds(64) }).prompt).toMatchObject({ kind: 'tokens' });
  });

  test('is one chain, with the images its tokens stand for', () => {
    expect(ask({ cache_salt: 's' })).toMatchObject({
      api: 'generate',
      cacheSalt: 's',
      prompt: { kind: 'tokens', tokenIds: [Uint32Array.of(1, 2, 3)], features: [] },
    });
    const features = { mm_hashes: { image: ['h'] }, mm_placeholders: { image: [{ offset: 1, length: 2 }] } };
    expect(ask({ features }).prompt).toEqual({
      kind: 'tokens',
      tokenIds: [Uint32Array.of(1, 2, 3)],
      features: [{ identifier: 'h', offset: 1, length: 2 }],
    });
  });

  test.each<[string, object]>([
    ['reach beyond its tokens', { mm_hashes: { i: ['h'] }, mm_placeholders: { i: [{ offset: 2, length: 2 }] } }],
    ['have no name', { mm_hashes: {}, mm_placeholders: { i: [{ offset: 0, length: 1 }] } }],
    ['have a number for a name', { mm_hashes: { i: [1] }, mm_placeholders: { i: [{ offset: 0, length: 1 }] } }],
    [
      'are fewer than their names',
      { mm_hashes: { i: ['h', 'h'] }, mm_placeholders: { i: [{ offset: 0, length: 1 }] } },
    ],
    ['stand at a fraction', { mm_hashes: { i: ['h'] }, mm_placeholders: { i: [{ offset: 0.5, length: 1 }] } }],
    ['stand before the prompt', { mm_hashes: { i: ['h'] }, mm_placeholders: { i: [{ offset: -1, length: 1 }] } }],
    ['have no place', { mm_hashes: { i: ['h'] }, mm_placeholders: { i: [null] } }],
    ['have a name of every object', { mm_hashes: {}, mm_placeholders: { constructor: [{ offset: 0, length: 1 }] } }],
    ['have a name as long as a body', imagesNamed('h'.repeat(2000))],
    ['are more than any engine takes', imagesNamed(...Array.from({ length: 5000 }, () => 'h'))],
    ['are of more kinds than there are', kinds(100)],
    [
      'lie one on the other without end',
      {
        mm_hashes: { i: Array.from({ length: 5 }, () => 'h') },
        mm_placeholders: { i: Array.from({ length: 5 }, () => ({ offset: 0, length: 3 })) },
      },
    ],
  ])('whose images %s is routed by load, not as if it had none', (_, features) => {
    expect(ask({ features }).prompt).toEqual({ kind: 'none' });
  });

  test.each<[unknown, string]>([
    [undefined, '`token_ids` must be a list of token ids, got nothing.'],
    [[], '`token_ids` must be a list of token ids, got an empty list at byte 25.'],
    [{}, '`token_ids` must be a list of token ids, got an object at byte 25.'],
    [[null], '`token_ids` must be a list of token ids, got a list that begins with null at byte 25.'],
    ['x', '`token_ids` must be a list of token ids, got a string at byte 25.'],
    [[[1]], '`token_ids` must be a list of token ids, got an array at byte 25.'],
    [[1, 2 ** 32], '`token_ids[1]` must be an integer from 0 to 4294967295, got 4294967296 at byte 28.'],
  ])('%j is refused with its place', (ids, message) => {
    expect(parse('/inference/v1/generate', { model: 'm', token_ids: ids })).toEqual({
      kind: 'bad_request',
      param: 'token_ids',
      message,
    });
  });

  test('cut on the way is not understood, as images may have stood behind the cut', () => {
    expect(parse('/inference/v1/generate', '{"model":"m","token_ids":[11,22,3', 'yes')).toMatchObject({
      request: { prompt: { kind: 'none' } },
    });
  });
});

describe('a request whose answer is no text', () => {
  test.each<[string, object]>([
    ['/v1/embeddings', { input: 'a' }],
    ['/v1/embeddings', { input: [[1, 2]] }],
    ['/v1/embeddings', { input: [{ content: [] }] }],
    ['/v1/embeddings', { messages: [] }],
    ['/classify', { input: ['a'] }],
    ['/v1/rerank', { query: 'a', documents: ['b'] }],
    ['/score', { text_1: 'a', text_2: ['b'] }],
    ['/v1/score', { queries: 'a', documents: ['b'] }],
  ])('(%s, %j) belongs to its model and to no prefix', (path, fields) => {
    expect(aRequest(path, { model: 'e', ...fields })).toMatchObject({
      model: 'e',
      api: apiOf(path),
      prompt: { kind: 'none' },
    });
  });

  test.each<[string, object, string, string]>([
    ['/v1/embeddings', {}, 'input', '`input` or `messages` must be given, got nothing.'],
    ['/v1/rerank', { documents: [] }, 'query', '`query` must be given, got nothing.'],
    ['/v1/embeddings', { input: 5 }, 'input', '`input` must be a string, a list or an object, got 5 at byte 21.'],
    ['/classify', { input: true }, 'input', '`input` must be a string, a list or an object, got true at byte 21.'],
    ['/v2/rerank', { query: 5 }, 'query', '`query` must be a string, a list or an object, got 5 at byte 21.'],
    ['/score', { text_1: 1.5 }, 'text_1', '`text_1` must be a string, a list or an object, got 1.5 at byte 22.'],
    [
      '/v1/embeddings',
      { input: [-1] },
      'input',
      '`input[0]` must be an integer from 0 to 4294967295, got -1 at byte 22.',
    ],
  ])('(%s, %j) is refused for what no engine takes', (path, fields, param, message) => {
    expect(parse(path, { model: 'e', ...fields })).toEqual({ kind: 'bad_request', param, message });
    expect(parse(path, { input: 'x' })).toMatchObject({ kind: 'bad_request', param: 'model' });
  });
});

describe('a body that was cut on the way', () => {
  const whole = JSON.stringify({
    model: 'm',
    stream: true,
    cache_salt: 's',
    messages: [{ role: 'user', content: 'é😀'.repeat(20) }],
    max_tokens: 1234,
  });

  test('is never refused for it, wherever the cut falls, and keeps what was complete', () => {
    const bytes = Buffer.from(whole);
    for (let length = 0; length < bytes.length; length++) {
      const parsed = parseRequest('POST', CHAT_PATH, undefined, bytes.subarray(0, length), { truncated: 'yes' });
      expect(parsed).toMatchObject({ kind: 'request', request: { prompt: { kind: 'none' } } });
      if (parsed.kind !== 'request') continue;
      expect(parsed.request.model).toBe(length >= '{"model":"m"'.length ? 'm' : '');
      expect(parsed.request.cacheSalt).toBe(
        length >= '{"model":"m","stream":true,"cache_salt":"s"'.length ? 's' : null,
      );
      expect(parsed.request.maxTokens).toBe(null);
    }
  });

  test('but not in what counts is as good as whole', () => {
    expect(parse(CHAT_PATH, whole, 'yes')).toMatchObject({
      request: { prompt: { kind: 'messages' }, maxTokens: 1234 },
    });
  });

  test('still is refused for what is wrong before the cut', () => {
    expect(parse(CHAT_PATH, '{"model":"m",,', 'yes')).toMatchObject({ kind: 'bad_request', param: null });
    expect(parse(CHAT_PATH, '{"model":5,"mess', 'yes')).toMatchObject({ kind: 'bad_request', param: 'model' });
    expect(parse(CHAT_PATH, '{"messages":"x","mo', 'yes')).toMatchObject({ kind: 'bad_request', param: 'messages' });
  });

  test('gives the token ids that were complete, as they are a prefix like any other', () => {
    expect(parse(COMPLETIONS_PATH, '{"model":"m","prompt":[11,22,3', 'yes')).toMatchObject({
      request: { prompt: { kind: 'tokens', tokenIds: [Uint32Array.of(11, 22)] } },
    });
    expect(parse(COMPLETIONS_PATH, '{"prompt":[[1,2],[3,4', 'yes')).toMatchObject({
      request: { model: '', prompt: { kind: 'tokens', tokenIds: [Uint32Array.of(1, 2), Uint32Array.of(3)] } },
    });
  });

  test.each([
    '{"model":"m","prompt":',
    '{"model":"m","prompt": ',
    '{"model":"m","prompt":[',
    '{"model":"m","prompt":[\n',
    '{"model":"m","prompt":[[',
  ])('right before its prompt (%j) is not refused for it', (body) => {
    expect(parse(COMPLETIONS_PATH, body, 'yes')).toMatchObject({ kind: 'request', request: { model: 'm' } });
    expect(parse(COMPLETIONS_PATH, body)).toMatchObject({ kind: 'bad_request', param: null });
  });

  test('gives no text, as a tokenizer would have to see all of it', () => {
    expect(parse(COMPLETIONS_PATH, '{"model":"m","prompt":"abc","us', 'yes')).toMatchObject({
      request: { model: 'm', prompt: { kind: 'none' } },
    });
  });
});

describe('a request of another kind', () => {
  const other = (method: string, path: string, type: string | undefined, body: string | null) =>
    parseRequest(method, path, type, body === null ? null : Buffer.from(body), { truncated: 'no' });

  test.each([
    ['a path nobody knows', '/v2/anything', undefined, '{"model":"m","prompt":7}', 'm'],
    ['JSON without a model', '/v1/audio/speech', 'application/json', '{"input":"x"}', ''],
    ['a model that is no string', '/pooling', 'application/json', '{"model":7}', ''],
    ['JSON that breaks off behind the model', '/pooling', 'application/json', '{"model":"m","input":', 'm'],
    ['something else', '/upload', 'application/octet-stream', '\u0000\u0001{', ''],
    ['nothing', '/upload', undefined, '', ''],
  ])('%s is routed by its model if it has one', (_, path, type, body, model) => {
    expect(other('POST', path, type, body)).toMatchObject({
      kind: 'request',
      request: { api: 'other', model, prompt: { kind: 'none' }, stream: false },
    });
  });

  test.each([
    ['GET', '/v1/models'],
    ['GET', '/v1/chat/completions'],
    ['POST', '/v1/chat/completions'],
  ])('%s %s without a visible body is routed by load', (method, path) => {
    expect(other(method, path, undefined, null)).toMatchObject({ request: { api: 'other', model: '' } });
  });

  test('a multipart form names its model in a part', () => {
    const form = (model: string): string =>
      `--b0\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\nname="model"\r\n--b0\r\n` +
      `content-disposition: form-data; name="model"\r\n\r\n${model}\r\n--b0--\r\n`;
    const type = 'multipart/form-data; boundary="b0"';
    expect(other('POST', '/v1/audio/transcriptions', type, form('whisper'))).toMatchObject({
      request: { model: 'whisper' },
    });
    expect(other('POST', '/v1/audio/transcriptions', type, form('x'.repeat(5000)))).toMatchObject({
      request: { model: '' },
    });
    expect(other('POST', '/v1/audio/transcriptions', 'multipart/form-data', form('w'))).toMatchObject({
      request: { model: '' },
    });
    expect(other('POST', '/v1/audio/transcriptions', type, form('w').slice(0, 120))).toMatchObject({
      request: { model: '' },
    });
  });
});

describe('the time a body takes', () => {
  test.each([
    ['keys', (n: number) => `{"model":"m","prompt":"a"${',"":0'.repeat(n / 5)}}`],
    ['equal prompts', (n: number) => `{"model":"m"${',"prompt":[[]]'.repeat(n / 14)}}`],
    ['short lists of ids', (n: number) => `{"model":"m","prompt":[[1]${',[1]'.repeat(n / 4)}]}`],
    ['oddly spelt ids', (n: number) => `{"model":"m","prompt":[1${',1e0'.repeat(n / 4)}]}`],
    ['open brackets', (n: number) => `{"model":"m","x":${'['.repeat(n / 2)}${']'.repeat(n / 2)},"prompt":"a"}`],
  ])('grows with its length and not faster, of many %s', (_, make) => {
    const length = 1 << 20;
    const body = Buffer.from(make(length));
    const plain = `[${'1,'.repeat(length / 2)}1]`;
    const timeOf = (work: () => unknown): number => {
      const startMs = performance.now();
      work();
      return performance.now() - startMs;
    };
    let ratio = Infinity;
    for (let round = 0; round < 5; round++) {
      const ofParse = timeOf(() => JSON.parse(plain) as unknown);
      const ours = timeOf(() => parseRequest('POST', COMPLETIONS_PATH, undefined, body, { truncated: 'no' }));
      ratio = Math.min(ratio, ours / ofParse);
    }
    // What grows with the square of a hundred thousand elements takes thousands of times as long as reading them once.
    expect(ratio).toBeLessThan(200);
    expect(parseRequest('POST', COMPLETIONS_PATH, undefined, body, { truncated: 'no' }).kind).toBe('request');
  });
});
