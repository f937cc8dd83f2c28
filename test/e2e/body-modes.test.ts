import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import {
  aChat,
  chat,
  endpointViews,
  eventually,
  finishedRequests,
  longText,
  MODEL,
  setStage,
  type Stage,
  type StageOptions,
} from './stage.ts';

const MODES: readonly { readonly name: string; readonly envoy: StageOptions['envoy'] }[] = [
  { name: 'BUFFERED', envoy: { template: 'buffered' } },
  { name: 'BUFFERED_PARTIAL', envoy: { template: 'buffered', requestBodyMode: 'BUFFERED_PARTIAL' } },
  { name: 'FULL_DUPLEX_STREAMED', envoy: { template: 'full-duplex' } },
];

describe.each(MODES)('with $name', ({ envoy }) => {
  let stage: Stage;
  beforeAll(async () => {
    stage = await setStage({ envoy });
  });
  afterAll(() => stage.end());
  const send = (body: object | string): ReturnType<typeof chat> => chat(stage.envoy.listenerAddress, body);

  test('a miss is routed, and the same prompt again goes where it is warm', async () => {
    // Three pods: six repeated prompts that all meet their pod by chance would be one case in 729.
    for (const topic of ['ant', 'bee', 'cat', 'dog', 'elk', 'fox']) {
      const body = aChat(longText(topic, 100));
      const cold = await send(body);
      expect({ status: cold.status, cachedTokens: cold.cachedTokens }).toEqual({ status: 200, cachedTokens: 0 });
      const before = finishedRequests(stage.pods);
      const warm = await send(body);
      expect(warm.status).toBe(200);
      const promptTokens = warm.json.usage!.prompt_tokens;
      expect(warm.cachedTokens).toBe(16 * Math.floor((promptTokens - 1) / 16));
      expect(finishedRequests(stage.pods).filter((n, i) => n !== before[i])).toHaveLength(1);
    }
  });

  test('misses are spread over the pods', async () => {
    const before = finishedRequests(stage.pods);
    await Promise.all(Array.from({ length: 12 }, (_, i) => send(aChat(longText(`spread${i}x`, 60)))));
    finishedRequests(stage.pods).forEach((n, i) => expect(n).toBeGreaterThan(before[i]!));
  });

  test('a streamed answer arrives whole', async () => {
    const response = await fetch(`http://${stage.envoy.listenerAddress}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(aChat('tell me', { stream: true, max_tokens: 20 })),
    });
    const events = (await response.text()).split('\n\n').filter((event) => event.startsWith('data: '));
    expect(response.status).toBe(200);
    expect(events.at(-1)).toBe('data: [DONE]');
    expect(events.filter((event) => /"content":"[^"]/.test(event))).toHaveLength(20);
  });

  test('a body longer than one network chunk arrives unchanged', async () => {
    const answer = await send(aChat(longText('long', 5000), { max_tokens: 1 }));
    expect(answer.status).toBe(200);
    expect(answer.json.usage!.prompt_tokens).toBeGreaterThan(5000);
  });

  test('a request without a body goes to a pod', async () => {
    const response = await fetch(`http://${stage.envoy.listenerAddress}/v1/models`);
    const { data } = (await response.json()) as { data: { id: string }[] };
    expect(data.map(({ id }) => id)).toContain(MODEL);
  });

  test('a body that is not JSON gets 400', async () => {
    const answer = await send('{"model": "demo-model", "messages": [');
    expect(answer.status).toBe(400);
    expect(answer.headers.get('content-type')).toContain('application/json');
    expect(answer.headers.get('x-warmpath-reason')).toMatch(/^[a-z_]+$/);
    expect(answer.json.error).toMatchObject({ type: 'invalid_request_error', message: expect.any(String) });
  });

  test('an unknown model gets 404', async () => {
    const answer = await send({ ...aChat('hello'), model: 'no-such-model' });
    expect(answer.status).toBe(404);
    expect(answer.json.error).toMatchObject({ code: 'model_not_found' });
    expect(answer.json.error!.message).toContain('no-such-model');
  });

  test('a client that names a pod is not heard', async () => {
    const [pod] = stage.pods;
    const body = aChat(longText('named', 100));
    await send(body);
    const before = finishedRequests(stage.pods);
    const responses = await Promise.all(
      stage.pods.map(({ addresses }) =>
        fetch(`http://${stage.envoy.listenerAddress}/v1/chat/completions`, {
          method: 'POST',
          headers: {
            'content-type': 'application/json',
            'x-gateway-destination-endpoint': addresses.httpAddress,
            'target-pod': pod!.addresses.httpAddress,
          },
          body: JSON.stringify(body),
        }).then((response) => response.json()),
      ),
    );
    expect(responses).toHaveLength(3);
    // All of them went to the one pod that is warm for this prompt.
    expect(finishedRequests(stage.pods).filter((n, i) => n !== before[i])).toHaveLength(1);
  });

  test('a request has as many headers as Envoy lets in', async () => {
    const statusWith = async (headers: Record<string, string>): Promise<number> => {
      const response = await fetch(`http://${stage.envoy.listenerAddress}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: JSON.stringify(aChat('hello')),
      });
      await response.arrayBuffer();
      return response.status;
    };
    const some = (n: number): Record<string, string> =>
      Object.fromEntries(Array.from({ length: n }, (_, i) => [`x-filler-${i}`, '']));
    const statuses = new Set<number>();
    for (let n = 78; n <= 100; n += 1) {
      statuses.add(await statusWith(some(n)));
      statuses.add(await statusWith({ ...some(n), 'target-pod': '10.6.6.6:80' }));
    }
    // Refused by Envoy itself when it reads them, or served.
    expect([...statuses].sort()).toEqual([200, 431]);
    // Beyond what the pods take, which say so.
    for (let nBytes = 60_900; nBytes <= 61_400; nBytes += 20) {
      expect(await statusWith({ cookie: 'c'.repeat(nBytes) })).toBe(431);
    }
  });

  test('load is handed back: nothing is in flight when nothing runs', async () => {
    await eventually(async () => {
      const views = (await endpointViews(stage.warmpath.admin)) as unknown as { load: { inFlightRequests: number } }[];
      const inFlight = views.map(({ load }) => load.inFlightRequests);
      return inFlight.every((n) => n === 0) ? 'done' : `in flight: ${inFlight.join(' ')}`;
    });
  });
});

describe('with headers only', () => {
  test('every request is routed by load, and bodies reach the pods', async () => {
    const stage = await setStage({ envoy: { template: 'headers-only' } });
    try {
      const answers = await Promise.all(
        Array.from({ length: 12 }, (_, i) => chat(stage.envoy.listenerAddress, aChat(longText(`free${i}x`, 60)))),
      );
      expect(answers.map(({ status }) => status)).toEqual(Array(12).fill(200));
      finishedRequests(stage.pods).forEach((n) => expect(n).toBeGreaterThan(0));
      await eventually(() => {
        const picked = stage.envoy.accessLog().filter((line) => /picked=127\.0\.0\.1:/.test(line));
        return picked.length === 12 ? 'done' : `${picked.length} of 12 requests were picked by Warmpath`;
      });
    } finally {
      await stage.end();
    }
  });
});

describe('without any endpoint', () => {
  test('a request gets 503 and is told to come back', async () => {
    const stage = await setStage({ nPods: 0 });
    try {
      const answer = await chat(stage.envoy.listenerAddress, aChat('hello'));
      expect(answer.status).toBe(503);
      expect(Number(answer.headers.get('retry-after'))).toBeGreaterThan(0);
      expect(answer.headers.get('x-warmpath-reason')).toBe('no_ready_endpoint');
      expect(answer.json.error).toMatchObject({ message: expect.stringContaining('endpoint') });
    } finally {
      await stage.end();
    }
  });
});
