import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createWorkload, idealOf, plannedChats, type Message, type SentChat } from '../../../src/demo/workload.ts';
import { applyChatTemplate, encodeText } from '../../../src/simulator/tokenizer.ts';

const OPTIONS = { seed: 1, model: 'm', nRequests: 200, durationMs: 10_000 };

function aChat(contents: readonly string[], answer = 'abc'): SentChat {
  const messages = contents.map((content, i): Message => ({ role: i % 2 === 0 ? 'user' : 'assistant', content }));
  return { messages, answer };
}

function promptLength({ messages }: SentChat): number {
  return tokensOf(messages).length;
}

function tokensOf(messages: readonly Message[]): number[] {
  const template = messages.map(({ role, content }) => ({ role, content, toolCalls: null }));
  return applyChatTemplate({ messages: template, preamble: null, ending: 'generation_prompt' }).tokenIds;
}

describe('the workload', () => {
  test('is the same for the same seed and another one for another', () => {
    expect(createWorkload(OPTIONS)).toEqual(createWorkload(OPTIONS));
    expect(createWorkload({ ...OPTIONS, seed: 2 })).not.toEqual(createWorkload(OPTIONS));
  });

  test('has exactly as many requests as asked for, each conversation in order and inside the run', () => {
    const { conversations, nRequests } = createWorkload(OPTIONS);
    expect(nRequests).toBe(200);
    expect(conversations.flatMap(({ turns }) => turns)).toHaveLength(200);
    for (const { turns } of conversations) {
      const times = turns.map(({ atMs }) => atMs);
      expect(times).toEqual(times.toSorted((a, b) => a - b));
      expect(Math.min(...times)).toBeGreaterThanOrEqual(0);
      expect(Math.max(...times)).toBeLessThanOrEqual(10_000);
    }
  });

  test('has prompts of roughly one to six thousand tokens over shared system prompts', () => {
    const workload = createWorkload(OPTIONS);
    const lengths = plannedChats(workload).map(promptLength);
    expect(Math.min(...lengths)).toBeGreaterThan(800);
    expect(Math.max(...lengths)).toBeLessThan(8000);
    expect(new Set(workload.conversations.map(({ systemPrompt }) => systemPrompt)).size).toBeLessThan(
      workload.conversations.length,
    );
  });

  test('appends each turn to what was said before', () => {
    const longest = plannedChats(createWorkload(OPTIONS)).reduce((a, b) =>
      b.messages.length > a.messages.length ? b : a,
    );
    expect(longest.messages.map(({ role }) => role).slice(0, 4)).toEqual(['system', 'user', 'assistant', 'user']);
  });
});

describe('the ideal hit rate', () => {
  const text = Array.from({ length: 40 }, (_, i) => `word${i}`).join(' ');

  test('of prompts that share nothing but the first tokens of the template is zero', () => {
    expect(idealOf([aChat([`a${text}`]), aChat([`b${text}`])], 16).hitRate).toBe(0);
  });

  test('of a repeated prompt is every whole block but what holds the last token', () => {
    const chat = aChat([text]);
    const n = promptLength(chat);
    const { hitRate, promptTokens } = idealOf([chat, chat], 16);
    expect(promptTokens).toBe(2 * n);
    expect(hitRate * promptTokens).toBeCloseTo(16 * Math.floor((n - 1) / 16));
  });

  test('counts the answer of the turn before as cached', () => {
    const answer = Array.from({ length: 32 }, () => 'bab').join(' ');
    const first = aChat([text], answer);
    const second = aChat([text, answer, 'and then?']);
    const { hitRate, promptTokens } = idealOf([first, second], 4);
    const shared = promptLength(first) + encodeText(answer).length - 1;
    expect(hitRate * promptTokens).toBeCloseTo(4 * Math.floor(shared / 4));
  });

  test('of nothing is zero', () => {
    expect(idealOf([], 16)).toEqual({ hitRate: 0, promptTokens: 0, nBlocks: 0 });
  });

  test('agrees with a set of all prefixes ever stored', () => {
    const word = fc.constantFrom('aa', 'bb', 'cc dd');
    const chats = fc.array(fc.record({ contents: fc.array(word, { minLength: 1, maxLength: 5 }), answer: word }));
    fc.assert(
      fc.property(chats, fc.constantFrom(1, 2, 4), (given, blockSize) => {
        const sent = given.map(({ contents, answer }) => aChat(contents, answer));
        const stored = new Set<string>();
        let cached = 0;
        let total = 0;
        for (const { messages, answer } of sent) {
          const prompt = tokensOf(messages);
          const all = [...prompt, ...encodeText(answer).slice(0, -1)];
          total += prompt.length;
          for (let end = blockSize; end < prompt.length && stored.has(prompt.slice(0, end).join()); end += blockSize) {
            cached += blockSize;
          }
          for (let end = blockSize; end <= all.length; end += blockSize) stored.add(all.slice(0, end).join());
        }
        const ideal = idealOf(sent, blockSize);
        expect(ideal.hitRate * ideal.promptTokens).toBeCloseTo(cached);
        expect(ideal).toMatchObject({ promptTokens: total, nBlocks: stored.size });
      }),
    );
  });
});
