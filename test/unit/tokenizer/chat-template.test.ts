import { describe, expect, test } from '@jest/globals';
import { createChatTemplate } from '../../../src/tokenizer/chat-template.ts';

const EACH = '{% for message in messages %}';
const PRINTED = '{{ message.role }}:{{ message.content }};{% endfor %}';

test.each([
  ['takes them anywhere', `${EACH}${PRINTED}`, 'in place'],
  [
    'raises where one is not the first',
    `${EACH}{% if message.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}${PRINTED}`,
    'first',
  ],
])('where system messages may stand is found out by trying: a template that %s', (_, source, expected) => {
  expect(createChatTemplate(source, {}).inlineSystem).toBe(expected);
});

/** As vLLM 0.32 has it, told by the tokens it gives for such requests. */
describe('a template', () => {
  const TEXTS = `${EACH}${PRINTED}`;
  const PARTS =
    `${EACH}{{ message.role }}:{% if message.content is string %}{{ message.content }}{% else %}` +
    `{% for part in message.content %}[{{ part.text }}]{% endfor %}{% endif %};{% endfor %}`;
  const rendered = (source: string, messages: readonly object[]): string | null =>
    createChatTemplate(source, {}).render({ messages });
  const text = (of: string): object => ({ type: 'text', text: of });

  test.each([
    ['a text that is empty is left out', [{ role: 'user', content: ['a', text(''), '', text('b')] }], 'user:a\nb;'],
    ['a part that is not a text is the engine’s', [{ role: 'user', content: [{ type: 'image' }] }], null],
    ['content of another kind is the engine’s', [{ role: 'user', content: 5 }], null],
    ['no content is an empty text', [{ role: 'assistant', content: null }], 'assistant:;'],
    [
      'a client does not name itself in a system message',
      [
        { role: 'system', content: 'x-anthropic-billing-header: 1\nBe terse.' },
        { role: 'user', content: 'x-anthropic-billing-header: 1' },
      ],
      'system:Be terse.;user:x-anthropic-billing-header: 1;',
    ],
    ['nor in nothing else', [{ role: 'system', content: ['x-anthropic-billing-header', 'a'] }], 'system:a;'],
    [
      'a developer speaks for the system',
      [
        { role: 'developer', content: 'a' },
        { role: 'user', content: 'b' },
      ],
      'system:a;user:b;',
    ],
    [
      'and all of the system speaks first then',
      [
        { role: 'system', content: 'a' },
        { role: 'user', content: 'b' },
        { role: 'developer', content: ['c', 'd'] },
        { role: 'system', content: '' },
      ],
      'system:a\n\nc\nd;user:b;',
    ],
    [
      'else it stays where it is',
      [
        { role: 'user', content: 'b' },
        { role: 'system', content: 'a' },
      ],
      'user:b;system:a;',
    ],
  ])('of texts: %s', (_, messages, expected) => {
    expect(rendered(TEXTS, messages)).toBe(expected);
  });

  test('that knows developers hears them', () => {
    const source = `{% if messages[0].role == "developer" %}!{% endif %}${TEXTS}`;
    expect(rendered(source, [{ role: 'developer', content: 'a' }])).toBe('!developer:a;');
  });

  test('of parts gets them as they are, and what a tool says as a text', () => {
    const messages = [
      { role: 'user', content: ['a', text('')] },
      { role: 'tool', content: ['b', text(''), 'c'] },
      { role: 'tool', content: 'd' },
    ];
    expect(rendered(PARTS, messages)).toBe('user:[a][];tool:b\n\nc;tool:d;');
  });

  test.each([
    ["{{ messages[0].content.strip('\\n') }}", ' a\n '],
    ["{{ messages[0].content.lstrip('\\n') }}", ' a\n \n'],
    ["{{ messages[0].content.rstrip('\\n ') }}", '\n\n a'],
    ["{{ messages[0].content.split('a')[-1].lstrip('\\n').rstrip('\\n') }}", ' '],
    ['{{ messages[0].content.strip() }}', 'a'],
    ["{{ messages[0].content.strip('\\n ') | upper }}", 'A'],
  ])('strips what it says: %s', (source, expected) => {
    expect(rendered(source, [{ role: 'user', content: '\n\n a\n \n' }])).toBe(expected);
  });
});
