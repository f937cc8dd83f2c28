import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { Agent } from 'undici';
import { systemClock } from '../../src/clock.ts';
import { sendChat, type ChatOutcome } from '../../src/demo/chat-client.ts';
import { createExtProcDriver } from '../../src/demo/ext-proc-driver.ts';
import type { Gateway } from '../../src/demo/gateway.ts';
import type { Decision, PickRequest } from '../../src/extproc/picker.ts';
import { createExtProcServer, type ExtProcServer } from '../../src/extproc/server.ts';
import { silentLog } from '../../src/log.ts';
import { createUsageReader } from '../../src/openai/usage.ts';
import { SERVER_OPTIONS } from '../support/exchange-harness.ts';

const REFUSAL: Decision = {
  kind: 'error',
  status: 503,
  type: 'server_error',
  code: null,
  param: null,
  message: 'No endpoint is ready.',
  reason: 'no_ready_endpoint',
  retryAfterSeconds: 1,
};

describe('the built-in ext_proc driver', () => {
  let server: ExtProcServer;
  let driver: Gateway;
  let pod: Server;
  let podAddress: string;
  let agent: Agent;
  let asked: PickRequest[];
  let released: string[];
  let decide: () => Promise<Decision>;

  beforeEach(async () => {
    agent = new Agent();
    asked = [];
    released = [];
    pod = createServer((request, response) => {
      request.resume();
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      const chunk = (body: object): string => `data: ${JSON.stringify(body)}\n\n`;
      response.write(chunk({ choices: [{ delta: { content: '' } }] }));
      response.write(chunk({ choices: [{ delta: { content: 'hel' } }] }).slice(0, 20));
      response.write(chunk({ choices: [{ delta: { content: 'hel' } }] }).slice(20));
      response.write(chunk({ choices: [{ delta: { content: 'lo' } }] }));
      const seen = String(request.headers['x-gateway-destination-endpoint']).split(',').length;
      response.write(
        chunk({ choices: [], usage: { prompt_tokens: seen, prompt_tokens_details: { cached_tokens: 7 } } }),
      );
      response.end('data: [DONE]\n\n');
    });
    await new Promise<void>((resolve) => pod.listen(0, '127.0.0.1', resolve));
    podAddress = `127.0.0.1:${(pod.address() as AddressInfo).port}`;
    decide = () =>
      Promise.resolve({
        kind: 'routed',
        endpoints: [podAddress, '127.0.0.1:1'],
        reservation: {
          firstByte: () => undefined,
          observe: () => undefined,
          release: (outcome) => released.push(outcome),
        },
      });
    server = createExtProcServer(
      {
        picker: {
          pick(request) {
            asked.push(request);
            return decide();
          },
        },
        log: silentLog,
        clock: systemClock,
        createUsageReader,
        onStream: () => undefined,
      },
      { ...SERVER_OPTIONS, failureMode: 'open', deadlineMs: 5000, drainTimeoutMs: 500 },
    );
    driver = createExtProcDriver((await server.start()).grpcAddress);
  });
  afterEach(async () => {
    await driver.close();
    await server.stop();
    await agent.destroy();
    pod.closeAllConnections();
    pod.close();
  });

  const send = (): Promise<ChatOutcome> =>
    sendChat(
      driver,
      agent,
      { model: 'm', messages: [{ role: 'user', content: 'hi' }], maxTokens: 2 },
      new AbortController().signal,
    );

  test('shows Warmpath the request, sends it to the endpoint it names, and ends the stream after the answer', async () => {
    const outcome = await send();
    expect(outcome).toEqual({
      kind: 'answered',
      ttftMs: expect.any(Number),
      promptTokens: 2,
      cachedTokens: 7,
      answer: 'hello',
    });
    expect(asked).toHaveLength(1);
    expect(asked[0]).toMatchObject({ method: 'POST', path: '/v1/chat/completions' });
    expect(asked[0]!.header('content-type')).toBe('application/json');
    expect(JSON.parse(Buffer.from(asked[0]!.body!).toString())).toMatchObject({ model: 'm', stream: true });
    await until(() => released.length > 0);
    expect(released).toEqual(['completed']);
  });

  test('a refusal is a failure with the reason Warmpath gave', async () => {
    decide = () => Promise.resolve(REFUSAL);
    const outcome = await send();
    expect(outcome).toEqual({ kind: 'failed', reason: expect.stringContaining('No endpoint is ready.') });
    expect(outcome).toEqual({ kind: 'failed', reason: expect.stringContaining('ServiceUnavailable') });
  });

  test('silence is a failure after the time Envoy would wait', async () => {
    decide = () => new Promise(() => undefined);
    expect(await send()).toEqual({ kind: 'failed', reason: 'no answer from Warmpath within 500 ms' });
  });

  test('without Warmpath there is a failure, not an exception', async () => {
    await server.stop();
    expect(await send()).toMatchObject({ kind: 'failed' });
  });
});

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 15_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('not within 15 s');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
