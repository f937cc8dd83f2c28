import { describe, expect, test } from '@jest/globals';
import { createSharedCalls } from '../../../src/tokenizer/shared-calls.ts';
import { aChatRequest, aCompletionsRequest } from '../../support/requests.ts';

type Call = { readonly result: Promise<number>; settle(): void };

function aCall(): Call {
  const { promise, resolve } = Promise.withResolvers<number>();
  return { result: promise, settle: () => resolve(1) };
}

describe('a call under way', () => {
  test('is found by an equal request until it settles', async () => {
    const calls = createSharedCalls<Call>();
    const call = aCall();
    calls.add(aChatRequest(), call);
    expect(calls.find(aChatRequest())).toBe(call);
    call.settle();
    await call.result;
    expect(calls.find(aChatRequest())).toBeNull();
  });

  test('is forgotten when it fails too', async () => {
    const calls = createSharedCalls<Call>();
    const result = Promise.reject(new Error('no'));
    calls.add(aChatRequest(), { result, settle: () => undefined });
    await result.catch(() => undefined);
    await Promise.resolve();
    expect(calls.find(aChatRequest())).toBeNull();
  });

  test('is not found by a request that differs in one byte, wherever it is', () => {
    const calls = createSharedCalls<Call>();
    const text = 'x'.repeat(300);
    calls.add(aCompletionsRequest(text), aCall());
    for (let i = 0; i < text.length; i++) {
      expect(calls.find(aCompletionsRequest(`${text.slice(0, i)}y${text.slice(i + 1)}`))).toBeNull();
    }
    expect(calls.find(aCompletionsRequest(text))).not.toBeNull();
  });

  test('stays when another one that looks alike ends', async () => {
    // At most of these places the bytes the key is made of are the same.
    for (let place = 1000; place < 1064; place++) {
      const calls = createSharedCalls<Call>();
      const [a, b] = [aCall(), aCall()];
      const letter = (c: string): string => `${'x'.repeat(place)}${c}${'x'.repeat(2000 - place)}`;
      calls.add(aCompletionsRequest(letter('a')), a);
      calls.add(aCompletionsRequest(letter('b')), b);
      a.settle();
      await a.result;
      expect(calls.find(aCompletionsRequest(letter('a')))).toBeNull();
      expect(calls.find(aCompletionsRequest(letter('b')))).toBe(b);
    }
  });
});
