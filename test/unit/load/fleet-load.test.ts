import { describe, expect, test } from '@jest/globals';
import type { EndpointSlot } from '../../../src/endpoints/endpoint.ts';
import { createFleetLoad, type EndedRequest } from '../../../src/load/fleet-load.ts';
import { createLog } from '../../../src/log.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const endpoint = { slot: 0 as EndpointSlot };

function aFleetLoad() {
  return createFleetLoad(
    {
      log: createLog('error', () => undefined),
      clock: createFakeClock(),
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
