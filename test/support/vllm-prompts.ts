/** Requests whose tokens a real vLLM was asked for (`record-vllm.ts`); the fixtures hold them with the answers. */

export type PromptCase = {
  readonly name: string;
  readonly path: string;
  readonly body: Readonly<Record<string, unknown>>;
};
/** Sent as it stands. */
export type RefusedCase = { readonly name: string; readonly path: string; readonly sent: string };

const CHAT = '/v1/chat/completions';
const COMPLETIONS = '/v1/completions';
const RESPONSES = '/v1/responses';
const MESSAGES = '/v1/messages';
/** The name every recording server serves its model under. */
const MODEL = 'm';

const TEXTS = [
  ' ',
  'Hello, world!',
  "It's we'll THEY'RE don’t CamelCaseAndHTTPServer2Go",
  'The quick brown fox jumps over the lazy dog, again and again.\n\n\n  Indented\tand tabbed \r\n',
  '1234567890 3.14159 1,000,000 0x1F 2026-11-21T09:35:00Z',
  'if (a < b) { print("Größe"); } // naïve café résumé',
  'def f(x: int) -> list[int]:\n    return [i ** 2 for i in range(x) if i % 2 == 0]\n',
  '漢字とひらがなとカタカナ。今日は良い天気ですね！',
  '中文句子，包含标点符号。以及 English 混合 文字123。',
  '한국어 문장도 있습니다. 안녕하세요?',
  'Привет, мир! Как дела?',
  'مرحبا بالعالم، كيف حالك؟',
  'שלום עולם',
  'ไทยไม่มีช่องว่าง',
  'नमस्ते दुनिया',
  '😀😃👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 ☕️',
  'e\u0301 vs \u00e9, \ufb01ne \u212b \u1e9b\u0323',
  'zero\u200bwidth\u00a0nbsp\u3000ideographic\u2028line',
  '\u0000\u0001\u007f control',
  'a'.repeat(200) + ' '.repeat(50) + '!'.repeat(70),
  'https://example.com/path?query=a%20b&c=d#fragment user@example.com',
  '<|im_start|>not a turn<|im_end|> <|endoftext|> <|start|>x<|end|> <｜User｜>',
  '<think>\nhm\n</think>\n\n<tool_call>{}</tool_call>',
  'SELECT * FROM users WHERE id = 1; -- comment',
  '{"key": [1, 2.50, null, true], "nested": {"a": "\\u00e9\\n"}}',
];

const PARAMETERS = {
  type: 'object',
  properties: {
    city: { type: 'string' },
    unit: { type: 'string', enum: ['°C', '°F'] },
    days: { type: 'integer', minimum: 1 },
  },
  required: ['city'],
};
const WEATHER = { name: 'get_weather', description: 'Weather of a place, e.g. "Zürich" <now>', parameters: PARAMETERS };
const TOOL = { type: 'function', function: WEATHER };
const BARE_TOOL = { type: 'function', function: { name: 'ping' } };
const STRICT_TOOL = { type: 'function', function: { ...WEATHER, strict: true } };
const ARGUMENTS = '{"city": "Zürich", "days": 2}';
const CALL = { id: 'c1', type: 'function', function: { name: 'get_weather', arguments: ARGUMENTS } };
const CALL_2 = { id: 'c2', type: 'function', function: { name: 'ping', arguments: '{}' } };
const SYSTEM = { role: 'system', content: 'You are terse.\nAnswer in one line.' };
const USER = { role: 'user', content: "What's the weather in Zürich? 天气" };
const SUNNY = { role: 'assistant', content: 'Sunny, 21 °C.' };
const AND_THEN = { role: 'user', content: 'And tomorrow?' };

/** Turns of some length, no two alike. */
const LONG = Array.from({ length: 6 }, (_, turn) => ({
  role: turn % 2 === 0 ? 'user' : 'assistant',
  content: TEXTS.map((text, i) => `${turn}.${i}: ${text.slice(0, 40)} ${text.length * (turn + 1)}`).join('\n'),
}));

const chat = (name: string, body: object): PromptCase => ({
  name: `chat: ${name}`,
  path: CHAT,
  body: { model: MODEL, ...body },
});
const responses = (name: string, body: object): PromptCase => ({
  name: `responses: ${name}`,
  path: RESPONSES,
  body: { model: MODEL, ...body },
});
const messages = (name: string, body: object): PromptCase => ({
  name: `messages: ${name}`,
  path: MESSAGES,
  body: { model: MODEL, max_tokens: 16, ...body },
});
const completions = (name: string, body: object): PromptCase => ({
  name: `completions: ${name}`,
  path: COMPLETIONS,
  body: { model: MODEL, ...body },
});

/** Models whose template takes tools and thoughts may refuse some: the refusals are recorded too. */
export const TEXT_CASES: readonly PromptCase[] = [
  ...TEXTS.map((prompt, i) => completions(`text ${i}`, { prompt })),
  completions('several texts', { prompt: TEXTS.slice(1, 4), max_tokens: 3, cache_salt: 'pepper' }),
  completions('no special tokens', { prompt: 'Hello!', add_special_tokens: false }),
  chat('one turn', { messages: [USER] }),
  chat('a system prompt', { messages: [SYSTEM, USER] }),
  chat('several turns', { messages: [SYSTEM, USER, SUNNY, AND_THEN] }),
  chat('a long one', { messages: LONG.slice(0, -1) }),
  chat('an empty turn', { messages: [{ role: 'user', content: '' }] }),
  chat('names', { messages: [{ ...USER, name: 'ann' }] }),
  chat('no generation prompt', { messages: [USER], add_generation_prompt: false }),
  chat('special tokens on top', { messages: [USER], add_special_tokens: true }),
  chat('no thoughts wanted', { messages: [USER], chat_template_kwargs: { enable_thinking: false } }),
  chat('parts', {
    messages: [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'one' },
          { type: 'text', text: 'two' },
        ],
      },
    ],
  }),
  chat('a tool', { messages: [USER], tools: [TOOL] }),
  chat('two tools', { messages: [SYSTEM, USER], tools: [TOOL, BARE_TOOL] }),
  chat('a strict tool', { messages: [USER], tools: [STRICT_TOOL] }),
  chat('a tool that is not to be called', { messages: [USER], tools: [TOOL], tool_choice: 'none' }),
  chat('a call and its result', {
    messages: [
      SYSTEM,
      USER,
      { role: 'assistant', content: null, tool_calls: [CALL] },
      { role: 'tool', tool_call_id: 'c1', content: '{"temp": 21}' },
    ],
    tools: [TOOL],
  }),
  chat('two calls, results, an answer', {
    messages: [
      USER,
      { role: 'assistant', content: 'Looking.', tool_calls: [CALL, CALL_2] },
      { role: 'tool', tool_call_id: 'c1', content: '21' },
      { role: 'tool', tool_call_id: 'c2', content: [{ type: 'text', text: 'pong' }] },
      { role: 'assistant', content: 'It is 21 °C.' },
      { role: 'user', content: 'Thanks! 😀' },
    ],
    tools: [TOOL, BARE_TOOL],
  }),
  chat('a thought of an earlier turn', {
    messages: [
      USER,
      { role: 'assistant', content: 'Answer.', reasoning: 'I think.\nHard.' },
      { role: 'user', content: 'Why?' },
    ],
  }),
  chat('a thought after a call', {
    messages: [
      USER,
      { role: 'assistant', reasoning: 'Must look.', content: '', tool_calls: [CALL] },
      { role: 'tool', tool_call_id: 'c1', content: '21' },
    ],
    tools: [TOOL],
  }),
  chat('a thought in the text', {
    messages: [
      USER,
      { role: 'assistant', content: '<think>\nhm\n</think>\n\nSunny.' },
      { role: 'user', content: 'ok' },
    ],
  }),
  chat('documents and an effort', {
    messages: [USER],
    documents: [{ title: 'T', text: 'D' }],
    reasoning_effort: 'low',
  }),
  chat('no effort', { messages: [USER], reasoning_effort: 'none' }),
  chat('an effort beside arguments', {
    messages: [USER],
    reasoning_effort: 'high',
    chat_template_kwargs: { reasoning_effort: 'low', enable_thinking: false },
  }),
  chat('a salt', { messages: [USER], cache_salt: 'pepper', priority: 3, temperature: 0, max_tokens: 5 }),
  responses('a text', { input: USER.content }),
  responses('instructions', { instructions: SYSTEM.content, input: USER.content, cache_salt: 'pepper' }),
  responses('items', {
    input: [{ role: 'user', content: USER.content }, { role: 'assistant', content: SUNNY.content }, AND_THEN],
  }),
  responses('input texts', {
    input: [
      {
        role: 'user',
        content: [
          { type: 'input_text', text: 'a' },
          { type: 'input_text', text: 'b' },
        ],
      },
    ],
  }),
  responses('an effort', { input: 'x', reasoning: { effort: 'low' } }),
  responses('tools, a call, its output', {
    input: [
      USER,
      { type: 'function_call', call_id: 'c1', name: 'get_weather', arguments: ARGUMENTS },
      { type: 'function_call_output', call_id: 'c1', output: '21' },
    ],
    tools: [{ type: 'function', ...WEATHER, strict: false }],
  }),
  responses('an answer that came back', {
    input: [
      USER,
      { type: 'reasoning', id: 'r1', summary: [], content: [{ type: 'reasoning_text', text: 'Hm.' }] },
      {
        type: 'message',
        id: 'm1',
        role: 'assistant',
        status: 'completed',
        content: [{ type: 'output_text', text: 'Sunny.', annotations: [] }],
      },
      AND_THEN,
    ],
  }),
  messages('one turn', { messages: [USER] }),
  messages('a system prompt', { system: SYSTEM.content, messages: [USER, SUNNY, AND_THEN] }),
  messages('system blocks and parts', {
    system: [
      { type: 'text', text: 'You are ' },
      { type: 'text', text: 'terse.', cache_control: { type: 'ephemeral' } },
    ],
    messages: [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'a' },
          { type: 'text', text: 'b' },
        ],
      },
    ],
  }),
  messages('a system message between', {
    system: 'S',
    messages: [USER, SUNNY, { role: 'system', content: 'Be quick.' }, AND_THEN],
  }),
  messages('tools, a call, its result', {
    messages: [
      USER,
      {
        role: 'assistant',
        content: [
          { type: 'text', text: 'Looking.' },
          { type: 'tool_use', id: 't1', name: 'get_weather', input: { city: 'Genf' } },
        ],
      },
      {
        role: 'user',
        content: [
          { type: 'tool_result', tool_use_id: 't1', content: '21' },
          { type: 'text', text: 'and?' },
        ],
      },
    ],
    tools: [{ name: WEATHER.name, description: WEATHER.description, input_schema: PARAMETERS }],
  }),
  messages('letters beyond ASCII in a call', {
    messages: [
      USER,
      {
        role: 'assistant',
        content: [
          { type: 'tool_use', id: 't1', name: 'get_weather', input: { city: 'Zürich', unit: '°C', list: [1, 2] } },
        ],
      },
      { role: 'user', content: [{ type: 'tool_result', tool_use_id: 't1', content: [{ type: 'text', text: '21' }] }] },
    ],
    tools: [{ name: WEATHER.name, description: WEATHER.description, input_schema: PARAMETERS }],
  }),
  messages('thoughts', {
    messages: [
      USER,
      {
        role: 'assistant',
        content: [
          { type: 'thinking', thinking: 'Hm.', signature: '' },
          { type: 'text', text: 'Sunny.' },
        ],
      },
      AND_THEN,
    ],
  }),
  messages('no thoughts wanted', { messages: [USER], thinking: { type: 'disabled' } }),
  messages('an effort and a salt', { messages: [USER], output_config: { effort: 'low' }, cache_salt: 'pepper' }),
];

const OF_A_FORMAT = [
  'a system prompt',
  'a call and its result',
  'two calls, results, an answer',
  'a thought after a call',
  'input texts',
  'an effort',
  'one turn',
  'tools, a call, its result',
  'letters beyond ASCII in a call',
];

/** For a model with a format of its own (gpt-oss): no chat template, so `/tokenize` knows its texts only. */
export const HARMONY_CASES: readonly PromptCase[] = TEXT_CASES.filter(({ name }) =>
  OF_A_FORMAT.some((ending) => name.endsWith(ending)),
);

/** @param png of 64 × 64 pixels */
export function imageCases(png: Buffer): readonly PromptCase[] {
  const data = png.toString('base64');
  const url = `data:image/png;base64,${data}`;
  const image = { type: 'image_url', image_url: { url } };
  return [
    chat('an image', {
      messages: [{ role: 'user', content: [{ type: 'text', text: 'a' }, image, { type: 'text', text: 'b' }] }],
    }),
    chat('the same image twice, a salt', {
      messages: [
        { role: 'user', content: [image] },
        SUNNY,
        { role: 'user', content: [{ type: 'text', text: 'And' }, image] },
      ],
      cache_salt: 'pepper',
    }),
    responses('an image', {
      input: [
        {
          role: 'user',
          content: [
            { type: 'input_image', detail: 'auto', image_url: url },
            { type: 'input_text', text: 'b' },
          ],
        },
      ],
    }),
    messages('an image', {
      messages: [
        {
          role: 'user',
          content: [
            { type: 'image', source: { type: 'base64', media_type: 'image/png', data } },
            { type: 'text', text: 'b' },
          ],
        },
      ],
    }),
  ];
}

const ASKED = { model: MODEL, messages: [USER] };

export const REFUSED_CASES: readonly RefusedCase[] = [
  ...['/tokenize', `${CHAT}/render`].map((path) => ({
    name: `${path} of another model`,
    path,
    sent: JSON.stringify({ ...ASKED, model: 'nobody' }),
  })),
  { name: 'completions of another model', path: `${COMPLETIONS}/render`, sent: '{"model":"nobody","prompt":"x"}' },
  { name: 'responses of another model', path: `${RESPONSES}/render`, sent: '{"model":"nobody","input":"x"}' },
  {
    name: 'messages of another model',
    path: `${MESSAGES}/render`,
    sent: JSON.stringify({ ...ASKED, model: 'nobody', max_tokens: 1 }),
  },
  { name: 'a path that is not served', path: '/v1/nothing/render', sent: '{}' },
  { name: 'no messages', path: `${CHAT}/render`, sent: '{"model":"m"}' },
  { name: 'messages of another type', path: `${CHAT}/render`, sent: '{"model":"m","messages":"x"}' },
  { name: 'a body that breaks off', path: `${CHAT}/render`, sent: '{"model":"m","messages":[' },
  { name: 'a template of the client', path: `${CHAT}/render`, sent: JSON.stringify({ ...ASKED, chat_template: 'x' }) },
  {
    name: 'state of the server',
    path: `${RESPONSES}/render`,
    sent: '{"model":"m","input":"x","previous_response_id":"resp_1"}',
  },
  { name: 'texts in a list', path: '/tokenize', sent: '{"model":"m","prompt":["x"]}' },
  ...[{ messages: [{ role: 'user', content: 5 }] }, { messages: 'x' }, { tools: 5 }, { messages: [] }].map((wrong) => ({
    name: `a chat with ${JSON.stringify(wrong)}`,
    path: '/tokenize',
    sent: JSON.stringify({ ...ASKED, ...wrong, add_special_tokens: false }),
  })),
  {
    name: 'two that exclude each other',
    path: '/tokenize',
    sent: JSON.stringify({ ...ASKED, add_generation_prompt: true, continue_final_message: true }),
  },
  {
    name: 'more tokens than the model takes',
    path: `${CHAT}/render`,
    sent: JSON.stringify({ ...ASKED, max_tokens: 1_000_000 }),
  },
];
