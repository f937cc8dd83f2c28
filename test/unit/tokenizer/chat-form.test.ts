/** The cases follow vLLM's entrypoints/anthropic/serving.py and entrypoints/openai/responses/utils.py. */
import { describe, expect, test } from '@jest/globals';
import { parseRequest } from '../../../src/openai/request.ts';
import { asChat } from '../../../src/tokenizer/chat-form.ts';
import { aChatRequest, aCompletionsRequest, aRequest } from '../../support/requests.ts';

function chatOf(path: string, fields: object): Record<string, unknown> {
  const chat = asChat(aRequest(path, { model: 'm', ...fields }));
  if (chat === null) throw new Error('no chat request');
  expect(chat.api).toBe('chat');
  return JSON.parse(Buffer.from(chat.body).toString()) as Record<string, unknown>;
}

test('chats and completions are left as they are', () => {
  for (const request of [aChatRequest(), aCompletionsRequest('x')]) expect(asChat(request)).toBe(request);
});

test.each<[string, string, (deep: string) => string]>([
  ['/v1/responses', 'a part', (deep) => `"input":[{"role":"user","content":[${deep}]}]`],
  ['/v1/responses', 'a tool', (deep) => `"input":"x","tools":[{"type":"function","parameters":${deep}}]`],
  [
    '/v1/messages',
    'a call',
    (deep) => `"messages":[{"role":"assistant","content":[{"type":"tool_use","input":${deep}}]}]`,
  ],
  [
    '/v1/messages',
    'an argument',
    (deep) => `"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"a":${deep}}`,
  ],
])('what no engine would read to its end has no chat (%s with %s)', (path, _, fields) => {
  const nested = (depth: number) => {
    const body = Buffer.from(`{"model":"m",${fields('['.repeat(depth) + ']'.repeat(depth))}}`);
    const parsed = parseRequest('POST', path, undefined, body, { truncated: 'no' });
    return parsed.kind === 'request' ? asChat(parsed.request) : parsed;
  };
  expect(nested(200_000)).toBe(null);
  expect(nested(200)).toMatchObject({ api: 'chat' });
});

test('what computes no answer has no chat', () => {
  expect(asChat(aRequest('/v1/embeddings', { model: 'm', input: 'x' }))).toBe(null);
});

describe('a request of the messages API', () => {
  const messagesOf = (fields: object): unknown => chatOf('/v1/messages', fields)['messages'];
  const call = { type: 'tool_use', id: 't1', name: 'f', input: { a: 1, ü: ['😀', null] } };
  // As Python prints it.
  const printed = '{"a": 1, "\\u00fc": ["\\ud83d\\ude00", null]}';
  const chatCall = { id: 't1', type: 'function', function: { name: 'f', arguments: printed } };

  test('keeps system messages among the others in their places where the template takes them there', () => {
    const request = aRequest('/v1/messages', {
      model: 'm',
      system: 'S',
      messages: [
        { role: 'user', content: 'a' },
        { role: 'system', content: [{ type: 'text', text: 'T' }] },
        { role: 'system', content: [{ type: 'text', text: 'x-anthropic-billing-header: 1' }] },
        { role: 'user', content: 'b' },
      ],
    });
    const { messages } = JSON.parse(Buffer.from(asChat(request, 'in place')!.body).toString()) as { messages: unknown };
    expect(messages).toEqual([
      { role: 'system', content: 'S' },
      { role: 'user', content: 'a' },
      { role: 'system', content: 'T' },
      { role: 'user', content: 'b' },
    ]);
  });

  test.each<[string, object, unknown]>([
    [
      'a system prompt',
      { system: 'S', messages: [{ role: 'user', content: 'a' }] },
      [
        { role: 'system', content: 'S' },
        { role: 'user', content: 'a' },
      ],
    ],
    [
      'system blocks, and system messages among the others',
      {
        system: [
          { type: 'text', text: 'x-anthropic-billing-header: 1' },
          { type: 'text', text: 'S' },
        ],
        messages: [
          { role: 'user', content: 'a' },
          { role: 'system', content: [{ type: 'text', text: 'T' }] },
        ],
      },
      [
        { role: 'system', content: 'ST' },
        { role: 'user', content: 'a' },
      ],
    ],
    [
      'one text and several',
      {
        messages: [
          { role: 'user', content: [{ type: 'text', text: 'a', cache_control: { type: 'ephemeral' } }] },
          {
            role: 'assistant',
            content: [
              { type: 'text', text: 'b' },
              { type: 'text', text: 'c' },
            ],
          },
        ],
      },
      [
        { role: 'user', content: 'a' },
        {
          role: 'assistant',
          content: [
            { type: 'text', text: 'b' },
            { type: 'text', text: 'c' },
          ],
        },
      ],
    ],
    [
      'thoughts, a call and its result',
      {
        messages: [
          {
            role: 'assistant',
            content: [{ type: 'thinking', thinking: 'hm' }, { type: 'redacted_thinking', data: 'x' }, call],
          },
          {
            role: 'user',
            content: [
              { type: 'tool_result', tool_use_id: 't1', content: [{ type: 'text', text: 'r' }] },
              { type: 'text', text: 'go on' },
            ],
          },
        ],
      },
      [
        { role: 'assistant', reasoning: 'hm', tool_calls: [chatCall] },
        { role: 'tool', tool_call_id: 't1', content: 'r' },
        { role: 'user', content: 'go on' },
      ],
    ],
    [
      'a result alone',
      { messages: [{ role: 'user', content: [{ type: 'tool_result', tool_use_id: 't1', content: 'r' }] }] },
      [{ role: 'tool', tool_call_id: 't1', content: 'r' }],
    ],
    [
      'images, also in results',
      {
        messages: [
          {
            role: 'user',
            content: [
              { type: 'image', source: { type: 'base64', media_type: 'image/png', data: 'QUJD' } },
              {
                type: 'tool_result',
                tool_use_id: 't',
                content: [{ type: 'image', source: { type: 'url', url: 'http://x/' } }],
              },
            ],
          },
        ],
      },
      [
        { role: 'tool', tool_call_id: 't', content: '' },
        { role: 'user', content: [{ type: 'image_url', image_url: { url: 'http://x/' } }] },
        { role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:image/png;base64,QUJD' } }] },
      ],
    ],
  ])('with %s', (_, fields, expected) => {
    expect(messagesOf(fields)).toEqual(expected);
  });

  test('brings its tools, its choice among them and its effort', () => {
    const fields = {
      messages: [{ role: 'user', content: 'a' }],
      tools: [{ name: 'f', description: 'd', input_schema: { type: 'object' } }],
      tool_choice: { type: 'any' },
      output_config: { effort: 'low' },
      max_tokens: 5,
    };
    const disabled = chatOf('/v1/messages', { ...fields, thinking: { type: 'disabled' } });
    expect(disabled).toMatchObject({ reasoning_effort: 'none' });
    expect(chatOf('/v1/messages', fields)).toEqual({
      model: 'm',
      messages: fields.messages,
      tools: [{ type: 'function', function: { name: 'f', description: 'd', parameters: { type: 'object' } } }],
      tool_choice: 'required',
      reasoning_effort: 'low',
    });
  });
});

describe('a request of the responses API', () => {
  const messagesOf = (fields: object): unknown => chatOf('/v1/responses', fields)['messages'];
  const call = (id: string): object => ({ type: 'function_call', call_id: id, name: 'f', arguments: '{}' });
  const chatCall = (id: string): object => ({ id, type: 'function', function: { name: 'f', arguments: '{}' } });

  test.each<[string, object, unknown]>([
    [
      'instructions and a text',
      { instructions: 'S', input: 'a' },
      [
        { role: 'system', content: 'S' },
        { role: 'user', content: 'a' },
      ],
    ],
    [
      'parts',
      { input: [{ type: 'message', role: 'user', content: [{ type: 'input_text', text: 'a' }] }] },
      [{ role: 'user', content: [{ type: 'text', text: 'a' }] }],
    ],
    [
      'a thought, an answer and calls, which are one turn, and a result',
      {
        input: [
          { role: 'user', content: 'a' },
          { type: 'reasoning', summary: [], content: [{ type: 'reasoning_text', text: 'hm' }] },
          { type: 'message', role: 'assistant', content: [{ type: 'output_text', text: 'b' }] },
          call('1'),
          call('2'),
          { type: 'function_call_output', call_id: '1', output: 'r' },
        ],
      },
      [
        { role: 'user', content: 'a' },
        { role: 'assistant', reasoning: 'hm', content: 'b', tool_calls: [chatCall('1'), chatCall('2')] },
        { role: 'tool', tool_call_id: '1', content: 'r' },
      ],
    ],
    [
      'two answers after another',
      {
        input: [
          { role: 'assistant', content: 'b' },
          { role: 'assistant', content: 'c' },
        ],
      },
      [
        { role: 'assistant', content: 'b' },
        { role: 'assistant', content: 'c' },
      ],
    ],
  ])('with %s', (_, fields, expected) => {
    expect(messagesOf(fields)).toEqual(expected);
  });

  test('brings its functions, its effort and its salt', () => {
    const tools = [{ type: 'function', name: 'f', parameters: {}, strict: true }, { type: 'web_search' }];
    expect(
      chatOf('/v1/responses', {
        input: 'a',
        tools,
        tool_choice: 'auto',
        reasoning: { effort: 'high' },
        cache_salt: 's',
      }),
    ).toEqual({
      model: 'm',
      messages: [{ role: 'user', content: 'a' }],
      tools: [{ type: 'function', function: { name: 'f', parameters: {}, strict: true } }],
      tool_choice: 'auto',
      reasoning_effort: 'high',
      cache_salt: 's',
    });
  });

  test('with thousands of calls in one turn has all of them, and of more values than any chat nothing is built', () => {
    const input = (n: number): object[] => [
      { role: 'assistant', content: 'a' },
      ...Array.from({ length: n }, (_, i) => ({ type: 'function_call', call_id: `${i}`, name: 'f', arguments: '{}' })),
    ];
    const [turn, ...others] = messagesOf({ input: input(8000) }) as { tool_calls: { id: string }[] }[];
    expect(others).toEqual([]);
    expect(turn!.tool_calls.map(({ id }) => id)).toEqual(Array.from({ length: 8000 }, (_, i) => `${i}`));
    expect(asChat(aRequest('/v1/responses', { model: 'm', input: input(20_000) }))).toBe(null);
  });

  test('with an item nobody knows is not guessed at', () => {
    const request = aRequest('/v1/responses', { model: 'm', input: [{ type: 'item_reference', id: 'x' }] });
    expect(asChat(request)).toBe(null);
  });
});
