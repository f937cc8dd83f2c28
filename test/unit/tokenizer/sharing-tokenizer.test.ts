import { describe, expect, test } from '@jest/globals';
import { silentLog } from '../../../src/log.ts';
import type { InferenceRequest } from '../../../src/openai/request.ts';
import { createSharingTokenizer } from '../../../src/tokenizer/sharing-tokenizer.ts';
import type { TokenizeResult } from '../../../src/tokenizer/tokenizer.ts';
import { createFakeClock } from '../../support/fake-clock.ts';
import { aChatRequest, aCompletionsRequest } from '../../support/requests.ts';

const TOKENS: TokenizeResult = { kind: 'tokens', chains: [{ tokenIds: Uint32Array.of(1, 2), features: [] }] };
const FAILED: TokenizeResult = { kind: 'none', reason: 'error' };

/** A tokenizer whose calls end when the test says so. */
function aTokenizer(cacheMaxBytes = 0, begins: 'well' | 'by throwing' = 'well') {
  const calls: {
    readonly request: InferenceRequest;
    readonly end: (result: TokenizeResult) => void;
    readonly break: (error: Error) => void;
  }[] = [];
  const counted: string[] = [];
  const tokenizer = createSharingTokenizer(
    { log: silentLog, clock: createFakeClock(), onCall: (_api, result) => counted.push(result) },
    { cacheMaxBytes },
    {
      api: 'render',
      start: () => Promise.resolve(),
      begin(request) {
        const { promise, resolve, reject } = Promise.withResolvers<TokenizeResult>();
        calls.push({ request, end: resolve, break: reject });
        if (begins === 'by throwing') throw new RangeError('of the prompt');
        return { api: 'render', result: promise };
      },
      close: () => Promise.resolve(),
    },
  );
  const ask = (request: InferenceRequest): Promise<TokenizeResult> => tokenizer.tokenize(request, [], null);
  return { ask, calls, counted };
}

describe('a call under way', () => {
  test.each([
    ['answers', TOKENS],
    ['fails', FAILED],
  ])('serves equal requests until it %s', async (_how, result) => {
    const { ask, calls, counted } = aTokenizer();
    const asked = [ask(aChatRequest()), ask(aChatRequest()), ask(aChatRequest())];
    expect(calls).toHaveLength(1);
    calls[0]!.end(result);
    expect(await Promise.all(asked)).toEqual([result, result, result]);
    expect(counted).toEqual(['shared', 'shared']);
    void ask(aChatRequest());
    expect(calls).toHaveLength(2);
  });

  test('does not serve a request that differs in one byte, wherever it is, nor one to another API', () => {
    const { ask, calls } = aTokenizer();
    const text = 'x'.repeat(300);
    void ask(aCompletionsRequest(text));
    for (let i = 0; i < text.length; i++) void ask(aCompletionsRequest(`${text.slice(0, i)}y${text.slice(i + 1)}`));
    void ask({ ...aCompletionsRequest(text), api: 'responses' });
    expect(calls).toHaveLength(302);
  });

  test('goes on when one that looks alike ends', async () => {
    const { ask, calls } = aTokenizer();
    const first = ask(aCompletionsRequest('a'));
    void ask(aCompletionsRequest('b'));
    calls[0]!.end(TOKENS);
    await first;
    void ask(aCompletionsRequest('b'));
    expect(calls).toHaveLength(2);
    void ask(aCompletionsRequest('a'));
    expect(calls).toHaveLength(3);
  });
});

describe('a call that throws', () => {
  test('on its way costs those who wait for it their tokens, and nobody else', async () => {
    const { ask, calls, counted } = aTokenizer();
    const asked = [ask(aChatRequest()), ask(aChatRequest())];
    calls[0]!.break(new RangeError('of the prompt'));
    expect(await Promise.all(asked)).toEqual([FAILED, FAILED]);
    expect(counted).toEqual(['error', 'shared']);
    void ask(aChatRequest());
    expect(calls).toHaveLength(2);
  });

  test('before it begins is a failure too', async () => {
    const { ask, counted } = aTokenizer(0, 'by throwing');
    expect(await ask(aChatRequest())).toEqual(FAILED);
    expect(counted).toEqual(['error']);
  });
});

describe('an earlier call', () => {
  test('serves equal requests where answers are kept, a failed one does not', async () => {
    const { ask, calls, counted } = aTokenizer(1 << 20);
    for (const result of [FAILED, TOKENS]) {
      const asked = ask(aChatRequest());
      calls[calls.length - 1]!.end(result);
      await asked;
    }
    expect(await ask(aChatRequest())).toEqual({ ...TOKENS, remembered: true });
    expect([calls.length, counted]).toEqual([2, ['cached']]);
  });
});
