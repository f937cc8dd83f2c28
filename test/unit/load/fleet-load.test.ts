import { describe, expect, test } from '@jest/globals';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createEndpointStore } from '../../../src/endpoints/endpoint-store.ts';
import type { EndpointSlot } from '../../../src/endpoints/endpoint.ts';
import { createFleetLoad, type EndedRequest } from '../../../src/load/fleet-load.ts';
import { createLog } from '../../../src/log.ts';
import { aSpec } from '../../support/endpoints.ts';
import { createFakeClock, type FakeClock } from '../../support/fake-clock.ts';
import { eventually } from '../../support/running-app.ts';

const endpoint = { slot: 0 as EndpointSlot };

function aFleetLoad(clock: FakeClock = createFakeClock()) {
  return createFleetLoad(
    {
      log: createLog('error', () => undefined),
      clock,
      onScrape: () => undefined,
      onAdapters: () => undefined,
      onReplaced: () => undefined,
    },
    { metricsIntervalMs: 1000, adapterIntervalMs: 0, engineProfileCaching: true, gpuTypeLabel: null },
  );
}

function anEnd(changes: Partial<EndedRequest> = {}): EndedRequest {
  return {
    model: 'demo',
    endpoint,
    outcome: 'completed',
    promptTokens: 100,
    promisedTokens: 0,
    nAnswers: 1,
    usage: { completionTokens: 101, cachedTokens: null },
    decidedMs: 0,
    firstByteMs: 100,
    endMs: 2100,
    answer: 'streamed',
    ...changes,
  };
}

describe('the time from token to token', () => {
  test.each<[string, Partial<EndedRequest>, number | null]>([
    ['is learnt from an answer that was seen growing', {}, 20],
    ['is not learnt from several that grew side by side', { nAnswers: 4 }, null],
    ['is not learnt from one that came in one piece', { answer: 'whole' }, null],
    ['is not learnt from one whose beginning was not seen', { firstByteMs: null }, null],
    ['is not learnt from one that failed', { outcome: 'failed' }, null],
  ])('%s', (_, changes, decodeMsPerToken) => {
    const load = aFleetLoad();
    load.ended(anEnd(changes));
    expect(load.profiles.of(endpoint.slot).decodeMsPerToken).toBe(decodeMsPerToken);
  });
});

test('answers that grow side by side are as long as one of them, and as many tokens as all', () => {
  const load = aFleetLoad();
  load.ended(anEnd());
  load.ended(anEnd({ nAnswers: 4, usage: { completionTokens: 404, cachedTokens: null } }));
  const forecast = (nAnswers: number): object =>
    load.forecast(endpoint, {
      model: 'demo',
      promptTokens: 100,
      uncachedTokens: 0,
      nAnswers,
      load: load.inFlight.load(0),
    });
  expect(forecast(1)).toEqual({ outputTokens: 101, answerMs: 2020 });
  expect(forecast(4)).toEqual({ outputTokens: 404, answerMs: 2020 });
});

describe('what strategies look at', () => {
  test('is not known any more when the last answer is long ago', () => {
    const clock = createFakeClock();
    const load = aFleetLoad(clock);
    const [one] = someEndpoints('10.0.0.1:8000');
    expect(load.signals(one!).answerMs).toBeNull();
    load.ended(anEnd({ endpoint: one! }));
    expect(load.signals(one!).answerMs).toBe(2100);
    clock.advance(299_000);
    expect(load.signals(one!).answerMs).toBe(2100);
    clock.advance(2000);
    expect(load.signals(one!).answerMs).toBeNull();
    load.ended(anEnd({ endpoint: one! }));
    expect(load.signals(one!).answerMs).toBe(2100);
  });

  test('is not known any more when the page that said it is not answered', async () => {
    const server: Server = createServer((_, response) => {
      response.end('vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.25\n');
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const clock = createFakeClock();
    const load = aFleetLoad(clock);
    try {
      const all = someEndpoints(`127.0.0.1:${(server.address() as AddressInfo).port}`);
      load.reconcile(all);
      load.start();
      clock.advance(1000);
      const kvUsage = (): Promise<number | null> => Promise.resolve(load.signals(all[0]!).kvUsage);
      await eventually(kvUsage, (usage) => usage === 0.25);
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      clock.stall(9000);
      expect(load.signals(all[0]!).kvUsage).toBe(0.25);
      clock.stall(2000);
      expect(load.signals(all[0]!).kvUsage).toBeNull();
    } finally {
      await load.stop();
      server.close();
    }
  });
});

function someEndpoints(...addresses: string[]) {
  const store = createEndpointStore();
  store.replace(addresses.map((address) => aSpec({ name: address, address })));
  return store.all();
}
