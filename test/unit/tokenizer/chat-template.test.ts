import { expect, test } from '@jest/globals';
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
