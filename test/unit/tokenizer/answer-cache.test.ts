import { describe, expect, test } from '@jest/globals';
import { createAnswerCache, requestKey, type TokenAnswer } from '../../../src/tokenizer/answer-cache.ts';
import { createFakeClock } from '../../support/fake-clock.ts';
import { aChatRequest, aCompletionsRequest } from '../../support/requests.ts';

const anAnswer = (nTokens: number): TokenAnswer => ({
  kind: 'tokens',
  chains: [{ tokenIds: new Uint32Array(nTokens), features: [] }],
});

describe('answers', () => {
  test('are found by equal requests, until they are old', () => {
    const clock = createFakeClock();
    const cache = createAnswerCache(clock, 1 << 20);
    const answer = anAnswer(10);
    cache.put(requestKey(aChatRequest()), answer);
    expect(cache.get(requestKey(aChatRequest()))).toBe(answer);
    expect(cache.get(requestKey(aChatRequest({}, 'another')))).toBe(null);
    expect(requestKey(aCompletionsRequest('x'))).not.toBe(requestKey(aCompletionsRequest('y')));
    clock.advance(300_001);
    expect(cache.get(requestKey(aChatRequest()))).toBe(null);
    expect(cache.nBytes).toBe(0);
  });

  test('never take more than their bytes; the one unused for longest goes first', () => {
    const clock = createFakeClock();
    const maxBytes = 20_000;
    const cache = createAnswerCache(clock, maxBytes);
    for (let i = 0; i < 3; i++) cache.put(`${i}`, anAnswer(1000));
    expect(cache.get('0')).not.toBe(null);
    for (let i = 3; i < 100; i++) {
      cache.put(`${i}`, anAnswer(1000));
      expect(cache.nBytes).toBeLessThanOrEqual(maxBytes);
      expect(cache.get('0')).not.toBe(null);
    }
    expect(cache.get('1')).toBe(null);
    expect(cache.get('99')).not.toBe(null);
    cache.put('99', anAnswer(10));
    cache.put('large', anAnswer(10_000));
    expect(cache.get('large')).toBe(null);
    expect(cache.get('99')).not.toBe(null);
  });

  test('of a thousand prompts in one request count as many chains, however short', () => {
    const cache = createAnswerCache(createFakeClock(), 1 << 20);
    const chains = (n: number): TokenAnswer => ({
      kind: 'tokens',
      chains: Array.from({ length: n }, () => anAnswer(1).chains[0]!),
    });
    cache.put('one', chains(1));
    const ofOne = cache.nBytes;
    cache.put('many', chains(1001));
    const perChain = (cache.nBytes - 2 * ofOne) / 1000;
    // What V8 takes for a chain and its typed array, whatever is in it.
    expect(perChain).toBeGreaterThan(200);
  });

  test('are not kept where there is no room', () => {
    const cache = createAnswerCache(createFakeClock(), 0);
    cache.put('a', anAnswer(1));
    expect(cache.get('a')).toBe(null);
  });
});
