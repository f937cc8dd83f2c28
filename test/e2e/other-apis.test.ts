/** Requests of other APIs than chat, through a real Envoy: where their prompt is warm they go again. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { createUsageReader, type Usage } from '../../src/openai/usage.ts';
import { longText, MODEL, setStage, type Stage } from './stage.ts';

let stage: Stage;
beforeAll(async () => {
  stage = await setStage();
});
afterAll(() => stage.end());

async function send(path: string, body: object): Promise<{ readonly status: number; readonly usage: Usage | null }> {
  const response = await fetch(`http://${stage.envoy.listenerAddress}${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: MODEL, ...body }),
  });
  const reader = createUsageReader(response.headers.get('content-type') ?? undefined);
  for await (const chunk of response.body!) reader.push(chunk);
  return { status: response.status, usage: reader.result() };
}

const said = { role: 'assistant', content: 'Go on.' };

describe.each<[string, (text: string) => object, (text: string) => object]>([
  [
    '/v1/messages',
    (text) => ({ system: 'Be brief.', messages: [{ role: 'user', content: text }], max_tokens: 2 }),
    (text) => ({
      system: 'Be brief.',
      messages: [{ role: 'user', content: text }, said, { role: 'user', content: 'And then?' }],
      max_tokens: 2,
      stream: true,
    }),
  ],
  [
    '/v1/responses',
    (text) => ({ instructions: 'Be brief.', input: text, max_output_tokens: 2 }),
    (text) => ({
      instructions: 'Be brief.',
      input: [{ role: 'user', content: text }, said, { role: 'user', content: 'And then?' }],
      max_output_tokens: 2,
      stream: true,
    }),
  ],
  [
    '/inference/v1/generate',
    (text) => ({ token_ids: [...Buffer.from(text)], sampling_params: { max_tokens: 2 } }),
    (text) => ({ token_ids: [...Buffer.from(`${text} And then?`)], sampling_params: { max_tokens: 2 } }),
  ],
])('%s', (path, first, next) => {
  test('a second turn goes where the first is warm', async () => {
    // Three pods: six second turns that all meet their pod by chance would be one case in 729.
    for (const topic of ['ant', 'bee', 'cat', 'dog', 'elk', 'fox']) {
      const text = longText(`${path.length}${topic}`, 80);
      const cold = await send(path, first(text));
      expect(cold.status).toBe(200);
      const warm = await send(path, next(text));
      expect(warm.status).toBe(200);
      expect(warm.usage!.cachedTokens).toBeGreaterThan(0.8 * cold.usage!.promptTokens);
    }
  });
});

test('what no pod serves is its answer, not ours', async () => {
  expect((await send('/v1/embeddings', { input: 'x' })).status).toBe(404);
});
