import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import {
  answerToken,
  applyChatTemplate,
  decodeTokens,
  encodeText,
  SPECIAL,
  TOKENS_PER_IMAGE,
  VOCABULARY_SIZE,
  type ChatMessage,
  type ChatTemplateInput,
} from '../../../src/simulator/tokenizer.ts';

function chat(
  messages: readonly (readonly [string, ChatMessage['content']])[],
  parts: Partial<ChatTemplateInput> = {},
) {
  return applyChatTemplate({
    messages: messages.map(([role, content]) => ({ role, content, toolCalls: null })),
    preamble: null,
    ending: 'generation_prompt',
    ...parts,
  });
}

describe('the toy tokenizer', () => {
  test('any text comes back from its tokens, all of them in the vocabulary and none special', () => {
    const aText = fc.oneof(
      fc.string({ unit: 'grapheme', maxLength: 60 }),
      fc.stringMatching(/^[a-z ]{0,60}$/),
      fc.stringMatching(/^[A-Za-z0-9 .,!\n]{0,60}$/),
    );
    fc.assert(
      fc.property(aText, (text) => {
        const ids = encodeText(text);
        expect(decodeTokens(ids)).toBe(text);
        expect(ids.every((id) => id >= 16 && id < VOCABULARY_SIZE)).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });

  test.each([
    ['hello world', ['hel', 'lo', ' wor', 'ld']],
    [' a', [' a']],
    ['  a', [' ', ' a']],
    ['Hi, you', ['H', 'i', ',', ' you']],
    ['A, 1', ['A,', ' 1']],
    ['12345', ['12', '34', '5']],
    ['', []],
  ])('%j becomes %j', (text, pieces) => {
    expect(encodeText(text).map((id) => decodeTokens([id]))).toEqual(pieces);
  });

  test('an answer sent back as text has the tokens it was generated with, trimmed or not', () => {
    fc.assert(
      fc.property(fc.string(), fc.integer({ min: 1, max: 100 }), (key, n) => {
        const ids = Array.from({ length: n }, (_, i) => answerToken(key, i));
        const text = decodeTokens(ids);
        expect(encodeText(text)).toEqual(ids);
        expect(text.trim()).toBe(text);
      }),
    );
  });

  test('answers depend on their key alone', () => {
    const words = (key: string) => Array.from({ length: 8 }, (_, i) => answerToken(key, i));
    expect(words('a')).toEqual(words('a'));
    expect(words('a')).not.toEqual(words('b'));
  });

  test('unknown ids decode to a replacement character, special ones to nothing or to their name', () => {
    expect(decodeTokens([SPECIAL.beginOfText, VOCABULARY_SIZE])).toBe('\ufffd');
    expect(decodeTokens([SPECIAL.beginOfText, 9], 'named')).toBe('<|begin|><|reserved 9|>');
  });
});

describe('the chat template', () => {
  test('tokens of a conversation are a prefix of the tokens of the longer one', () => {
    const aMessage = fc.tuple(fc.constantFrom('system', 'user', 'assistant'), fc.string());
    fc.assert(
      fc.property(fc.array(aMessage, { minLength: 1, maxLength: 6 }), aMessage, (history, next) => {
        const before = chat(history, { ending: 'none' }).tokenIds;
        expect(chat([...history, next], { ending: 'none' }).tokenIds.slice(0, before.length)).toEqual(before);
      }),
    );
  });

  test('the generation prompt and the answer after it are what the next turn begins with', () => {
    const answer = Array.from({ length: 5 }, (_, i) => answerToken('x', i));
    const first = chat([['user', 'hi']]).tokenIds;
    const second = chat([
      ['user', 'hi'],
      ['assistant', decodeTokens(answer)],
      ['user', 'more'],
    ]).tokenIds;
    expect(second.slice(0, first.length + answer.length)).toEqual([...first, ...answer]);
  });

  test('names its parts: one begin, a header per message, an end of turn where it is closed', () => {
    const text = (ending: ChatTemplateInput['ending']) =>
      decodeTokens(chat([['user', 'hi']], { ending, preamble: '{}' }).tokenIds, 'named');
    const head = '<|begin|><|header|>preamble<|/header|>{}<|eot|><|header|>user<|/header|>hi';
    expect(text('none')).toBe(`${head}<|eot|>`);
    expect(text('continue_final')).toBe(head);
    expect(text('generation_prompt')).toBe(`${head}<|eot|><|header|>assistant<|/header|>`);
  });

  test('text in parts has the tokens of the same text in one string', () => {
    expect(chat([['user', [{ type: 'text', text: 'hi there' }]]])).toEqual(chat([['user', 'hi there']]));
  });

  test('an image stands for placeholder tokens, told apart by its feature', () => {
    const { tokenIds, features } = chat([['user', [{ type: 'image', identifier: 'cat' }]]]);
    expect(features).toEqual([{ identifier: 'cat', offset: 5, length: TOKENS_PER_IMAGE }]);
    expect(tokenIds.slice(5, 5 + TOKENS_PER_IMAGE)).toEqual(Array(TOKENS_PER_IMAGE).fill(SPECIAL.image));
  });
});
