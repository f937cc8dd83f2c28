import { describe, expect, test } from '@jest/globals';
import { tokenizeBodies } from '../../../src/tokenizer/tokenize-body.ts';
import { CHAT_PATH, COMPLETIONS_PATH, aChatRequest, aCompletionsRequest, aRequest } from '../../support/requests.ts';

const textsOf = (bodies: readonly Uint8Array[] | null): string[] | null =>
  bodies && bodies.map((body) => Buffer.from(body).toString('utf8'));

const chatBody = (body: string): string => textsOf(tokenizeBodies(aRequest(CHAT_PATH, body)))![0]!;

describe('the chat form', () => {
  test('copies the bytes of what it knows and nothing else', () => {
    expect(
      chatBody(
        '{ "stream":true,"messages" : [ {"role":"user","content":"\\u00e9 é"} ],"temperature":1.50,"model":"m",' +
          '"tools":[ ],"chat_template":"{{x}}","add_generation_prompt":false,"continue_final_message":true,' +
          '"mm_processor_kwargs":{"a":1},"media_io_kwargs":{},"max_tokens":3,"tool_choice":"auto"}',
      ),
    ).toBe(
      '{"model":"m","messages":[ {"role":"user","content":"\\u00e9 é"} ],"tools":[ ],"chat_template":"{{x}}",' +
        '"mm_processor_kwargs":{"a":1},"media_io_kwargs":{},"add_generation_prompt":false,' +
        '"continue_final_message":true,"add_special_tokens":false}',
    );
  });

  test('leaves special tokens to the template unless the client said otherwise', () => {
    expect(chatBody('{"model":"m","messages":[1]}')).toContain('"add_special_tokens":false');
    expect(chatBody('{"model":"m","messages":[1],"add_special_tokens":true}')).toContain('"add_special_tokens":true');
  });

  test.each([
    ['no arguments', '', undefined],
    ['arguments of the template', ',"chat_template_kwargs":{"a":1}', { a: 1 }],
    [
      'fields that become arguments',
      ',"reasoning_effort":"low","documents":[1]',
      { enable_thinking: true, reasoning_effort: 'low', documents: [1] },
    ],
    [
      'both',
      ',"chat_template_kwargs":{"a":1},"reasoning_effort":"low"',
      { enable_thinking: true, a: 1, reasoning_effort: 'low' },
    ],
    ['both and none inside', ',"chat_template_kwargs":{ },"documents":[1]', { documents: [1] }],
    [
      'the same twice, where the field wins',
      ',"chat_template_kwargs":{"reasoning_effort":"high"},"reasoning_effort":"low"',
      { enable_thinking: true, reasoning_effort: 'low' },
    ],
    ['an effort of none', ',"reasoning_effort":"none"', { enable_thinking: false, reasoning_effort: 'none' }],
    [
      'thoughts that are wanted all the same',
      ',"chat_template_kwargs":{"enable_thinking":true},"reasoning_effort":"none"',
      { enable_thinking: true, reasoning_effort: 'none' },
    ],
    ['null as arguments', ',"chat_template_kwargs":null,"documents":[1]', { documents: [1] }],
    ['arguments of a wrong type', ',"chat_template_kwargs":7,"documents":[1]', { documents: [1] }],
  ])('passes on %s', (_, fields, kwargs) => {
    const parsed = JSON.parse(chatBody(`{"model":"m","messages":[1]${fields}}`)) as Record<string, unknown>;
    expect(parsed['chat_template_kwargs']).toEqual(kwargs);
    expect(parsed).not.toHaveProperty('reasoning_effort');
  });

  test.each([
    [
      'thoughts of the older name under both',
      '{"role":"assistant", "reasoning_content" : "h\\u006d" }',
      '{"role":"assistant", "reasoning_content" : "h\\u006d" ,"reasoning":"h\\u006d"}',
    ],
    [
      'them before a null of the newer one',
      '{"reasoning":null,"reasoning_content":"a","reasoning_content":"b"}',
      '{"reasoning":null,"reasoning_content":"a","reasoning_content":"b","reasoning":"b"}',
    ],
    ['those of the newer name alone', '{"reasoning_content":"a","reasoning":""}', null],
    ['no thought that is null', '{"reasoning_content":null}', null],
    ['nothing of a text about them', '{"content":"\\"reasoning_content\\":1"}', null],
    ['nothing of what lies deeper', '{"content":[{"reasoning_content":"a"}]}', null],
    ['nothing of what is no message', '["reasoning_content"]', null],
  ])('gives %s', (_, message, given) => {
    const user = '{"role":"user","content":"x"}';
    const sent = JSON.parse(chatBody(`{"model":"m","messages":[${user} , ${message},${user}]}`)) as object;
    const [first, second] = [JSON.parse(user), JSON.parse(given ?? message)] as unknown[];
    expect(sent).toEqual({ model: 'm', messages: [first, second, first], add_special_tokens: false });
  });

  test.each([
    'image',
    'image_url',
    'input_audio',
    'video_url',
    'audio_url',
    'audio_embeds',
    'image_pil',
    'image_embeds',
    'input_image',
  ])('gives nothing for messages with %s, as other images would have the same tokens', (type) => {
    const messages = [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'x' },
          { type, [type]: {} },
        ],
      },
    ];
    expect(tokenizeBodies(aChatRequest({ messages }))).toBeNull();
  });

  test('is not afraid of messages that only talk about images', () => {
    const content = 'Write {"type":"image_url","image_url":{}} or "image".';
    expect(tokenizeBodies(aChatRequest({}, content))).toHaveLength(1);
  });

  test.each(['video editing for beginners', 'images"', 'audio_url is a field', 'input_image'])(
    'is not afraid of a message that begins with "%s"',
    (content) => {
      expect(tokenizeBodies(aChatRequest({}, `${content} and more`))).toHaveLength(1);
    },
  );

  test('is not afraid of a function that makes images', () => {
    const called = { id: 'c', type: 'function', function: { name: 'image_generation', arguments: '{"image":1}' } };
    const messages = [
      { role: 'assistant', content: null, tool_calls: [called] },
      { role: 'tool', name: 'video_search', tool_call_id: 'c', content: 'audio: none' },
    ];
    expect(tokenizeBodies(aChatRequest({ messages }))).toHaveLength(1);
  });
});

describe('the completion form', () => {
  test('has the bytes of one text each', () => {
    const request = aRequest(COMPLETIONS_PATH, '{"prompt":[ "a\\u00e9" , "" ],"echo":true,"model":"m"}');
    expect(textsOf(tokenizeBodies(request))).toEqual([
      '{"model":"m","prompt":"a\\u00e9","add_special_tokens":true}',
      '{"model":"m","prompt":"","add_special_tokens":true}',
    ]);
  });

  test('adds special tokens unless the client said otherwise', () => {
    expect(textsOf(tokenizeBodies(aCompletionsRequest('x', { add_special_tokens: false })))).toEqual([
      '{"model":"demo-model","prompt":"x","add_special_tokens":false}',
    ]);
  });
});

test('a request whose prompt the engine truncates has no body', () => {
  expect(tokenizeBodies(aCompletionsRequest('x', { truncate_prompt_tokens: 3 }))).toBeNull();
  expect(tokenizeBodies(aChatRequest({ truncate_prompt_tokens: -1 }))).toBeNull();
  expect(tokenizeBodies(aChatRequest({ truncate_prompt_tokens: null }))).toHaveLength(1);
});
