import { describe, expect, test } from '@jest/globals';
import type { Endpoint, EndpointId, EndpointSlot } from '../../../src/endpoints/endpoint.ts';
import { createKnowledge, type StreamSummary } from '../../../src/kvevents/endpoint-knowledge.ts';
import { createMissingPublishers } from '../../../src/kvevents/missing-publishers.ts';
import { createLog } from '../../../src/log.ts';

const ID = 'a' as EndpointId;
const ENDPOINT = { id: ID, slot: 2 as EndpointSlot } as Endpoint;

/** One endpoint whose publisher is connected and believed. */
function aWatch(blockSizeTokens: number | null = 16) {
  let nowMs = 1_000_000;
  let stream: StreamSummary | undefined = {
    trust: 'exact', blockSizeTokens, state: 'live', lastSeq: null, gaps: 0, replays: 1, restarts: 0, blocks: 0,
    lastEventUnixMs: nowMs, lastBatchUnixMs: null, lastProvenUnixMs: nowMs, lagMs: null, behind: 0, replay: 'works',
    coverage: 'whole',
  }; // prettier-ignore
  const lines: string[] = [];
  const log = createLog('info', (line) => lines.push((JSON.parse(line) as { msg: string }).msg));
  const watch = createMissingPublishers({ log, unixMs: () => nowMs, streamOf: () => stream });
  const relearnt: number[] = [];
  const knowledge = createKnowledge(() => stream, (slot) => relearnt.push(slot), watch.isMissing); // prettier-ignore
  return {
    watch,
    lines,
    relearnt,
    trust: () => knowledge.of(ENDPOINT).trust,
    pass(ms: number) {
      nowMs += ms;
      watch.check();
    },
    batch() {
      stream = { ...stream!, lastBatchUnixMs: nowMs };
      watch.check();
    },
    streamGone() {
      stream = undefined;
      watch.check();
    },
  };
}

describe('an endpoint that gets requests and tells of none', () => {
  test('is reported once after ten seconds, and is known only by what was sent there', () => {
    const it = aWatch();
    it.watch.routed(ID, 100);
    it.pass(9999);
    expect([it.watch.isMissing(ID), it.trust()]).toEqual([false, 'exact']);
    for (let i = 0; i < 20; i++) {
      it.pass(1);
      it.watch.routed(ID, 100);
    }
    expect([it.watch.isMissing(ID), it.watch.nMissing(), it.trust()]).toEqual([true, 1, 'fallback']);
    expect(it.lines).toEqual(['no kv events of an endpoint that gets requests']);
  });

  test('is believed again with its first batch; what was remembered in its place is forgotten', () => {
    const it = aWatch();
    it.watch.routed(ID, 100);
    it.pass(10_000);
    expect(it.trust()).toBe('fallback');
    it.batch();
    expect([it.watch.isMissing(ID), it.trust(), it.relearnt]).toEqual([false, 'exact', [2]]);
    expect(it.lines.at(-1)).toBe('kv events heard again');
    expect(it.trust()).toBe('exact');
    expect(it.relearnt).toEqual([2]);
  });

  test.each([
    ['a batch came after the request', 100, 16, 1],
    ['all of the prompt was cached but a part of a block', 20, 16, 0],
    ['blocks may be larger than the prompt', 400, null, 0],
  ])('nothing is missed when %s', (_, uncachedTokens, blockSize, nBatches) => {
    const it = aWatch(blockSize);
    it.watch.routed(ID, uncachedTokens);
    it.pass(3000);
    for (let i = 0; i < nBatches; i++) it.batch();
    it.pass(60_000);
    expect([it.watch.nMissing(), it.lines]).toEqual([0, []]);
  });

  test('an endpoint that leaves, or has no stream any more, is not remembered', () => {
    const it = aWatch();
    it.watch.routed(ID, 100);
    it.pass(10_000);
    it.watch.keep([]);
    expect(it.watch.nMissing()).toBe(0);
    it.watch.routed(ID, 100);
    it.pass(10_000);
    it.streamGone();
    expect(it.watch.nMissing()).toBe(0);
  });
});
