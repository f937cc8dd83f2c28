import { describe, expect, test } from '@jest/globals';
import type { Endpoint, EndpointId, EndpointSlot, Trust } from '../../../src/endpoints/endpoint.ts';
import { createKnowledge, createStreamSummaries } from '../../../src/kvevents/endpoint-knowledge.ts';
import type { SourceStatus } from '../../../src/kvevents/ingest.ts';
import { aSourceStatus } from '../../support/kv-events.ts';

const ID = '10.0.0.1:8000#1' as EndpointId;
const ENDPOINT = { id: ID, slot: 4 as EndpointSlot } as Endpoint;

const aStatus = (changes: Partial<SourceStatus> = {}): SourceStatus => aSourceStatus({ endpointId: ID, ...changes });

describe('what the streams of an endpoint say together', () => {
  test('the worst rank decides, counts are added up', () => {
    const statuses = [
      aStatus(),
      aStatus({
        rank: 1,
        trust: 'fallback',
        state: 'suspect',
        gaps: 2,
        lastEventUnixMs: 9,
        lastBatchUnixMs: 8,
        lastProvenUnixMs: 2,
        lagMs: 7,
        behind: 4,
        replay: 'broken',
      }),
    ];
    expect(createStreamSummaries(() => statuses)(ID)).toMatchObject({
      trust: 'fallback',
      state: 'suspect',
      gaps: 2,
      blocks: 6,
      lastEventUnixMs: 5,
      lastBatchUnixMs: 8,
      lastProvenUnixMs: 2,
      lagMs: 7,
      behind: 4,
      replay: 'broken',
    });
  });

  test('an endpoint without streams has no summary', () => {
    expect(createStreamSummaries(() => [])(ID)).toBeUndefined();
  });
});

describe('knowledge of an endpoint', () => {
  function aKnowledge() {
    let statuses: readonly SourceStatus[] = [];
    const relearnt: number[] = [];
    const knowledge = createKnowledge(
      createStreamSummaries(() => statuses),
      (slot) => relearnt.push(slot),
    );
    return {
      knowledge,
      relearnt,
      say(trust: Trust, restarts = 0) {
        statuses = [aStatus({ trust, restarts })];
        return knowledge.of(ENDPOINT);
      },
    };
  }

  test('without a stream it is what was sent there, nothing else', () => {
    const { knowledge } = aKnowledge();
    expect(knowledge.of(ENDPOINT)).toEqual({ trust: 'fallback', blockSizeTokens: null, coverage: 'none' });
  });

  test('what was sent while a stream was not believed is forgotten once it is believed again', () => {
    const { say, relearnt } = aKnowledge();
    say('exact');
    say('fallback');
    expect(relearnt).toEqual([]);
    expect(say('exact').trust).toBe('exact');
    expect(relearnt).toEqual([4]);
    say('degraded');
    expect(relearnt).toEqual([4]);
  });

  test('a restart that was over between two requests is not missed', () => {
    const { say, relearnt } = aKnowledge();
    say('exact', 0);
    say('exact', 1);
    expect(relearnt).toEqual([4]);
  });
});
