import { describe, expect, test } from '@jest/globals';
import type { SourceStatus } from '../../../src/kvevents/ingest.ts';
import { createWarmStart, type ReadyWhen } from '../../../src/kvevents/warm-start.ts';
import { aSourceStatus } from '../../support/kv-events.ts';

const NEW = aSourceStatus({ state: 'unknown', trust: 'fallback', connection: 'trying', lastSeq: null });
const GONE = aSourceStatus({ state: 'unknown', trust: 'fallback', connection: 'down', lastSeq: null });
const LEARNING = aSourceStatus({ state: 'replaying', trust: 'fallback' });
const PARTIAL = aSourceStatus({ trust: 'degraded', partial: true });
const LOST = aSourceStatus({ state: 'suspect', trust: 'fallback', connection: 'down' });

function aStart(readyWhen: ReadyWhen) {
  let nowMs = 1000;
  let nLost = 0;
  const warmStart = createWarmStart(() => nowMs, { readyWhen, readyTimeoutMs: 5000 });
  return {
    after: (ms: number) => void (nowMs += ms),
    loseThread: () => void nLost++,
    says: (statuses: readonly SourceStatus[], problem: string | null = null) =>
      warmStart.condition({ problem: () => problem, nLost: () => nLost, statuses: () => statuses }),
  };
}

describe('ready when connected', () => {
  test.each([
    ['no sources', [], 'ok'],
    ['a source not tried yet', [aSourceStatus(), NEW], '1 of 2 sources not connected yet'],
    ['one that cannot be reached', [aSourceStatus(), GONE], 'ok, but of 2 sources 1 not connected'],
    ['one that replays', [aSourceStatus(), LEARNING], 'ok, but of 2 sources 1 being learnt'],
    ['all complete', [aSourceStatus(), aSourceStatus()], 'ok'],
    ['views with holes', [PARTIAL, PARTIAL, LOST], 'ok, but of 3 sources 1 not connected, 2 partial'],
  ])('%s', (_what, statuses, said) => {
    expect(aStart('connected').says(statuses)).toBe(said);
  });
});

describe('ready when replayed', () => {
  test.each([
    ['a source that replays', [aSourceStatus(), LEARNING], '1 of 2 sources not replayed yet'],
    ['one that cannot be reached', [aSourceStatus(), GONE], '1 of 2 sources not replayed yet'],
    ['one lost in the middle of its replay', [LOST], '1 of 1 sources not replayed yet'],
    ['one whose buffer did not reach back', [PARTIAL], 'ok, but of 1 sources 1 partial'],
  ])('%s', (_what, statuses, said) => {
    expect(aStart('replayed').says(statuses)).toBe(said);
  });

  test('a source that never connects is waited for until the time is over, not longer', () => {
    const start = aStart('replayed');
    expect(start.says([GONE])).toBe('1 of 1 sources not replayed yet');
    start.after(4999);
    expect(start.says([GONE])).toBe('1 of 1 sources not replayed yet');
    start.after(1);
    expect(start.says([GONE])).toBe('ok, but of 1 sources 1 not connected');
  });
});

describe('once ready', () => {
  test('a pod that joins or goes makes nobody wait', () => {
    const start = aStart('replayed');
    expect(start.says([aSourceStatus()])).toBe('ok');
    expect(start.says([aSourceStatus(), NEW])).toBe('ok, but of 2 sources 1 not connected');
    expect(start.says([LOST])).toBe('ok, but of 1 sources 1 not connected');
  });

  test('a lost thread is the reason while it lasts, then all is learnt again', () => {
    const start = aStart('replayed');
    expect(start.says([aSourceStatus()])).toBe('ok');
    start.loseThread();
    expect(start.says([NEW], 'ingest thread is down')).toBe('ingest thread is down');
    expect(start.says([LEARNING])).toBe('1 of 1 sources not replayed yet');
    expect(start.says([aSourceStatus()])).toBe('ok');
  });
});
