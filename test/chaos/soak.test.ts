/**
 * One long run through a real Envoy with everything a day brings mixed together, then the books: nothing unexpected was
 * answered, and nothing is left over. `make soak` runs it with 50,000 requests.
 */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Agent, request } from 'undici';
import { createApp } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import type { EnvoyProcess } from '../../src/demo/envoy-process.ts';
import { silentLog } from '../../src/log.ts';
import { aChat, eventually, longText, MODEL, stageConfig } from '../e2e/stage.ts';
import { startNullUpstream, startTestEnvoy } from '../support/envoy.ts';

// The one number a caller may choose: how long is long.
const N_REQUESTS = Number(process.env['WARMPATH_SOAK_REQUESTS'] ?? 1_500);
const PARALLEL = 48;

type Kind = { readonly name: string; readonly expected: string; send(address: string, agent: Agent): Promise<string> };

const post = (body: string, more: { path?: string; signal?: AbortSignal } = {}) => {
  return async (address: string, agent: Agent): Promise<string> => {
    const response = await request(`http://${address}${more.path ?? '/v1/chat/completions'}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
      dispatcher: agent,
    });
    await response.body.dump();
    return String(response.statusCode);
  };
};

const KINDS: readonly Kind[] = [
  { name: 'short chat', expected: '200', send: post(JSON.stringify(aChat('hello'))) },
  { name: 'chat of 4 KB', expected: '200', send: post(JSON.stringify(aChat(longText('soak', 600)))) },
  { name: 'chat of 100 KB', expected: '200', send: post(JSON.stringify(aChat(longText('long', 12_000)))) },
  { name: 'not JSON', expected: '400', send: post('{"model": ') },
  { name: 'unknown model', expected: '404', send: post(JSON.stringify({ ...aChat('hello'), model: 'nobody' })) },
  { name: 'other path', expected: '200', send: post('{}', { path: '/v1/something' }) },
  {
    name: 'no body',
    expected: '200',
    async send(address, agent) {
      const response = await request(`http://${address}/v1/models`, { dispatcher: agent });
      await response.body.dump();
      return String(response.statusCode);
    },
  },
  {
    name: 'client that goes away',
    expected: 'gone',
    async send(address, agent) {
      const gone = new AbortController();
      const sent = request(`http://${address}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(aChat(longText('gone', 2_000))),
        dispatcher: agent,
        signal: gone.signal,
      }).then(
        // The answer may have been quicker than the change of mind.
        ({ body }) =>
          body.dump().then(
            () => 'gone',
            () => 'gone',
          ),
        () => 'gone',
      );
      setImmediate(() => gone.abort());
      return sent;
    },
  },
];

describe.each(['buffered', 'full-duplex'] as const)(`${N_REQUESTS} requests through %s`, (template) => {
  let upstream: EnvoyProcess;
  let app: ReturnType<typeof createApp>;
  let envoy: EnvoyProcess;
  let admin: string;
  beforeAll(async () => {
    upstream = await startNullUpstream();
    const endpoints = [{ name: 'null', address: upstream.listenerAddress, model: MODEL, kvEvents: 'none' }];
    const config = stageConfig([], { discovery: { endpoints }, tokenizer: { api: 'none' } });
    app = createApp(config, { log: silentLog, clock: systemClock });
    const addresses = await app.start();
    admin = addresses.admin;
    envoy = await startTestEnvoy({
      template,
      withExtProc: 'yes',
      extProcAddress: addresses.grpc,
      pods: [upstream.listenerAddress],
    });
  });
  afterAll(async () => {
    await envoy.stop();
    await app.stop();
    await upstream.stop();
  });

  test(
    'nothing unexpected is answered, and nothing is left over',
    async () => {
      const agent = new Agent({ connections: PARALLEL });
      const unexpected = new Map<string, number>();
      let n = 0;
      const worker = async (): Promise<void> => {
        while (n < N_REQUESTS) {
          const kind = KINDS[n++ % KINDS.length]!;
          const got = await kind.send(envoy.listenerAddress, agent).catch((error: unknown) => String(error));
          if (got !== kind.expected) {
            const what = `${kind.name}: ${got}`;
            unexpected.set(what, (unexpected.get(what) ?? 0) + 1);
          }
        }
      };
      await Promise.all(Array.from({ length: PARALLEL }, worker));
      await agent.close();
      expect(unexpected).toEqual(new Map());

      const metrics = async (): Promise<string> => (await fetch(`http://${admin}/metrics`)).text();
      await eventually(async () => {
        const text = await metrics();
        const left = /^warmpath_(?:extproc_streams|endpoint_in_flight_\w+)(?:\{.*\})? [^0].*$/m.exec(text);
        return left === null ? 'done' : `left over: ${left[0]}`;
      });
      const text = await metrics();
      expect(text).toMatch(/^warmpath_extproc_streams 0$/m);
      expect(text).toMatch(/^warmpath_endpoint_in_flight_requests\{.*\} 0$/m);
      // Every fault of ours would have a cause here; only the client's own may.
      const reasons = [...text.matchAll(/^warmpath_request_reasons_total\{.*reason="(\w+)"/gm)].map(
        ([, reason]) => reason,
      );
      expect(new Set(reasons)).toEqual(new Set(['bad_request', 'unknown_model']));
      const stats = await envoy.stats(
        'ext_proc.warmpath.(failure_mode_allowed|message_timeouts|spurious_msgs_received)',
      );
      expect(new Set(stats.values())).toEqual(new Set([0]));
    },
    30_000 + N_REQUESTS * 20,
  );
});
