import { describe, expect, test } from '@jest/globals';
import type { InferenceRequest } from '../../../src/openai/request.ts';
import { createBlockHasher, createHashSeed } from '../../../src/prefix/block-hash.ts';
import { createTokenizerLadder, type LadderOptions } from '../../../src/tokenizer/tokenizer-ladder.ts';
import { BLOCK, createConversations, TEMPLATES, type Turn } from '../../support/conversations.ts';
import { createFakeClock } from '../../support/fake-clock.ts';
import { aChatRequest, aCompletionsRequest } from '../../support/requests.ts';

function aLadder(options: Partial<LadderOptions> = {}) {
  const clock = createFakeClock();
  const hasher = createBlockHasher(createHashSeed((words) => words.fill(7)));
  const ladder = createTokenizerLadder({ hasher, clock }, { memoMaxBytes: 1 << 20, budgetMs: 50, ...options });
  const view = (request: InferenceRequest) => ladder.view(request, 'm', null);
  return { clock, ladder, view };
}

const user = (content: string): Turn => ({ role: 'user', content });
const chat = (...turns: readonly Turn[]): InferenceRequest => aChatRequest({ messages: turns });
const words = (word: string, n: number): string => `${word} `.repeat(n);

describe('the memo rung', () => {
  test('claims of the next turn what an exact answer said of the last one', () => {
    const { ladder, view } = aLadder();
    const conversations = createConversations();
    const turns = [user(words('first', 100)), { role: 'assistant', content: 'yes' } as const];
    expect(ladder.claims(view(chat(...turns)), BLOCK)).toEqual([null]);
    const answer = conversations.answer(TEMPLATES.appending, turns);
    expect(ladder.learn(view(chat(...turns)), BLOCK, [answer], [null])).toEqual({ claimedBlocks: 0, wrongBlocks: 0 });
    const next = [...turns, user('and then?')];
    const [claim] = ladder.claims(view(chat(...next)), BLOCK);
    expect(claim).toMatchObject({ believed: true, basis: 'end' });
    const exact = conversations.answer(TEMPLATES.appending, next);
    const { claimedBlocks, wrongBlocks } = ladder.learn(view(chat(...next)), BLOCK, [exact], [claim!]);
    expect(claimedBlocks).toBeGreaterThan(30);
    // What a template writes behind the last turn is no part of history; that is learnt from the comparison.
    expect(wrongBlocks).toBeLessThanOrEqual(2);
    const last = [...next, { role: 'assistant', content: 'no' } as const, user('why?')];
    const [better] = ladder.claims(view(chat(...last)), BLOCK);
    const answered = conversations.answer(TEMPLATES.appending, last);
    expect(ladder.learn(view(chat(...last)), BLOCK, [answered], [better!])).toMatchObject({ wrongBlocks: 0 });
  });

  test('knows a prompt with an image up to the message that holds the first one', () => {
    const { ladder, view } = aLadder();
    const turns = [user(words('first', 100)), { role: 'assistant', content: 'yes' } as const];
    const answer = createConversations().answer(TEMPLATES.appending, turns);
    ladder.learn(view(chat(...turns)), BLOCK, [answer], [null]);
    const image = { type: 'image_url', image_url: { url: `data:image/png;base64,${'A'.repeat(100_000)}` } };
    const withImage = view(aChatRequest({ messages: [...turns, { role: 'user', content: [image] }] }));
    const [claim] = ladder.claims(withImage, BLOCK);
    expect(claim!.coveredTokens).toBeGreaterThan(0);
    expect(claim!.coveredTokens).toBeLessThanOrEqual(answer.nTokens);
    // The image is worth a picture's tokens, not those of a hundred thousand letters.
    expect(claim!.promptTokens).toBeLessThan(answer.nTokens + 5000);
  });

  test('is not there without memory', () => {
    const { ladder, view } = aLadder({ memoMaxBytes: 0 });
    const turns = [user(words('first', 100))];
    ladder.learn(view(chat(...turns)), BLOCK, [createConversations().answer(TEMPLATES.appending, turns)], [null]);
    expect(ladder.claims(view(chat(...turns)), BLOCK)).toEqual([null]);
    expect(ladder.stats()).toMatchObject({ memoEntries: 0, memoBytes: 0 });
  });
});

describe('the text rung', () => {
  test('knows how much of a prompt was sent to an endpoint before', () => {
    const { ladder, view } = aLadder();
    const first = chat(user(words('first', 1000)));
    ladder.book(view(first), 3);
    const next = view(chat(user(words('first', 1000)), user('more')));
    const routed = ladder.routedTokens(next);
    expect(routed(4)).toBe(0);
    // Five letters and a space, 1000 times, at a quarter of a token each.
    expect(routed(3)).toBeGreaterThan(1400);
    expect(routed(3)).toBeLessThanOrEqual(next.promptTokens);
  });

  test('finds what two long texts share, chunk by chunk', () => {
    const { ladder, view } = aLadder();
    ladder.book(view(aCompletionsRequest(words('shared', 500) + words('one', 500))), 1);
    const routed = ladder.routedTokens(view(aCompletionsRequest(words('shared', 500) + words('two', 500))));
    expect(routed(1)).toBeGreaterThan(500);
    expect(routed(1)).toBeLessThanOrEqual((500 * 7) / 4);
  });

  test('forgets what was not served after all, and endpoints that are others now', () => {
    const { ladder, view } = aLadder();
    const prompt = view(chat(user('hello')));
    ladder.book(prompt, 1).end('drop');
    expect(ladder.routedTokens(prompt)(1)).toBe(0);
    ladder.book(prompt, 1).end('keep');
    ladder.book(prompt, 2).end('keep');
    ladder.forget(1);
    expect(ladder.routedTokens(prompt)(1)).toBe(0);
    expect(ladder.routedTokens(prompt)(2)).toBeGreaterThan(0);
  });

  test('stays bounded however many texts go by', () => {
    const { ladder, view } = aLadder();
    for (let i = 0; i < 300; i++) ladder.book(view(chat(user(words(`topic${i}`, 3000)))), 1).end('keep');
    expect(ladder.stats().textKeys).toBeLessThanOrEqual(4096);
  });
});

describe('the load rung', () => {
  test('has nothing but an estimate of length, of requests with nothing readable too', () => {
    const { view } = aLadder();
    const unreadable = view(aCompletionsRequest([1, 2, 3]));
    expect(unreadable.keys).toEqual([]);
    expect(unreadable.promptTokens).toBeGreaterThan(0);
    expect(view(chat(user(words('w', 400)))).promptTokens).toBeGreaterThan(200);
  });

  test('keeps equal texts together', () => {
    const { view } = aLadder();
    expect(view(chat(user('a'))).tieKey).toBe(view(chat(user('a'))).tieKey);
    expect(view(chat(user('a'))).tieKey).not.toBe(view(chat(user('b'))).tieKey);
  });
});

describe('a wait', () => {
  test('is worth less doubt the sooner answers come', () => {
    const { ladder } = aLadder();
    const before = ladder.waitWorthMs('m');
    for (let i = 0; i < 50; i++) ladder.noteAnswer('m', 4);
    expect(ladder.waitWorthMs('m')).toBeLessThan(before / 5);
    for (let i = 0; i < 50; i++) ladder.noteAnswer('m', 5000);
    // No request waits longer than the budget, however long answers take.
    expect(ladder.waitWorthMs('m')).toBeLessThanOrEqual(before);
  });

  test('is given up while answers hardly ever come within the budget, and taken up when they do again', () => {
    const { ladder } = aLadder();
    expect(ladder.answersInTime('m')).toBe(true);
    for (let i = 0; i < 8; i++) ladder.noteAnswer('m', 60);
    expect(ladder.answersInTime('m')).toBe(true);
    for (let i = 0; i < 20; i++) ladder.noteAnswer('m', 60);
    expect(ladder.answersInTime('m')).toBe(false);
    for (let i = 0; i < 5; i++) ladder.noteAnswer('m', 10);
    expect(ladder.answersInTime('m')).toBe(true);
  });

  test('is a matter of each model: long prompts of one cost another neither its tokens nor its patience', () => {
    const { ladder } = aLadder();
    for (let i = 0; i < 100; i++) {
      ladder.noteAnswer('slow', 60);
      if (i % 10 === 0) ladder.noteAnswer('quick', 1);
    }
    expect([ladder.answersInTime('slow'), ladder.answersInTime('quick'), ladder.answersInTime('new')]).toEqual([
      false,
      true,
      true,
    ]);
    expect(ladder.waitWorthMs('quick')).toBeLessThan(ladder.waitWorthMs('slow') / 2);
    expect(ladder.waitWorthMs('new')).toBe(ladder.waitWorthMs('slow'));
  });
});
