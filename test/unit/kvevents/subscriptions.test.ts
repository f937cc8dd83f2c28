import { describe, expect, test } from '@jest/globals';
import type { EndpointId, EndpointSlot } from '../../../src/endpoints/endpoint.ts';
import { createRedials } from '../../../src/kvevents/redials.ts';
import { createFakeClock } from '../../support/fake-clock.ts';
import { createReplayPermits } from '../../../src/kvevents/replay-permits.ts';
import { createCounterSink, MAX_LAG_SAMPLES } from '../../../src/kvevents/source-status.ts';
import { createSubscriptions, type PlacedSource } from '../../../src/kvevents/subscriptions.ts';
import { deriveTrust, type TrustEvidence } from '../../../src/kvevents/trust.ts';

function aSource(name: string, more: Partial<PlacedSource> = {}): PlacedSource {
  return {
    place: 0,
    endpointId: name as EndpointId,
    slot: 0 as EndpointSlot,
    rank: 0,
    model: 'm',
    kvEvents: { endpoint: `tcp://${name}:5557`, replayEndpoint: null },
    incarnation: '1',
    ...more,
  };
}

/** Subscriptions whose subscribers write down what happens to them. */
function someSubscriptions() {
  const done: string[] = [];
  const changes = new Map<string, () => void>();
  const sleeping = new Map<string, number>();
  const subscriptions = createSubscriptions((source, onChange) => {
    const name = source.endpointId;
    done.push(`open ${name}`);
    changes.set(name, onChange);
    return {
      start: () => done.push(`start ${name}`),
      stop: () => done.push(`stop ${name}`),
      tick() {
        done.push(`tick ${name}`);
        return sleeping.get(name) ?? 0;
      },
      restarted: () => done.push(`restarted ${name}`),
      snapshot: () => null,
      adopt: () => undefined,
      status: () => ({ endpointId: name }) as never,
    };
  });
  return { subscriptions, sleeping, changed: (name: string) => changes.get(name)!(), did: () => done.splice(0) };
}

describe('ticking', () => {
  test.each([
    [3, 3],
    [250, 250],
    [1000, 250],
    [4000, 1000],
  ])('of %i sources looks after %i at once, and after all within four calls', (nSources, atOnce) => {
    const it = someSubscriptions();
    it.subscriptions.reconcile(Array.from({ length: nSources }, (_, i) => aSource(`s${i}`)));
    it.did();
    it.subscriptions.tick(0);
    const ticked = it.did();
    expect(ticked).toHaveLength(atOnce);
    for (let i = 1; i < 4; i++) it.subscriptions.tick(0);
    expect(new Set([...ticked, ...it.did()]).size).toBe(nSources);
  });
});

test('a source with nothing to do before some time is left alone until then, or until it is told of a restart', () => {
  const it = someSubscriptions();
  it.sleeping.set('a', 500);
  const sources = [aSource('a'), aSource('b')];
  it.subscriptions.reconcile(sources);
  it.did();
  const ticked = [0, 499, 500, 501].map((nowMs) => {
    it.subscriptions.tick(nowMs);
    return it.did();
  });
  expect(ticked).toEqual([['tick a', 'tick b'], ['tick b'], ['tick a', 'tick b'], ['tick a', 'tick b']]);
  it.sleeping.set('a', 9000);
  it.subscriptions.tick(600);
  it.subscriptions.reconcile([aSource('a', { incarnation: '2' }), aSource('b')]);
  it.did();
  it.subscriptions.tick(601);
  expect(it.did()).toEqual(['tick a', 'tick b']);
});

test('tells once of a source with something new, and of none that left', () => {
  const it = someSubscriptions();
  const told = (): string[] => {
    const names: string[] = [];
    it.subscriptions.report(({ endpointId }) => names.push(endpointId));
    return names;
  };
  it.subscriptions.reconcile([aSource('a'), aSource('b')]);
  expect([told(), told()]).toEqual([['a', 'b'], []]);
  it.changed('b');
  it.changed('b');
  expect([told(), told()]).toEqual([['b'], []]);
  it.changed('a');
  it.subscriptions.reconcile([aSource('b')]);
  expect(told()).toEqual([]);
});

describe('reconciling', () => {
  test('opens what is new, keeps what stays, closes what left first: its slot may be taken again', () => {
    const it = someSubscriptions();
    it.subscriptions.reconcile([aSource('a'), aSource('b')]);
    expect(it.did()).toEqual(['open a', 'start a', 'open b', 'start b']);
    it.subscriptions.reconcile([aSource('b'), aSource('a')]);
    expect(it.did()).toEqual([]);
    it.subscriptions.reconcile([aSource('b'), aSource('c')]);
    expect(it.did()).toEqual(['stop a', 'open c', 'start c']);
    it.subscriptions.reconcile([]);
    expect(it.did()).toEqual(['stop b', 'stop c']);
  });

  test('another incarnation is the same source, told of its restart; any other difference is another source', () => {
    const it = someSubscriptions();
    it.subscriptions.reconcile([aSource('a')]);
    it.did();
    it.subscriptions.reconcile([aSource('a', { incarnation: '2' })]);
    it.subscriptions.reconcile([aSource('a', { incarnation: '2' })]);
    expect(it.did()).toEqual(['restarted a']);
    for (const change of [
      { slot: 1 as EndpointSlot },
      { model: 'n' },
      { rank: 1 },
      { kvEvents: { endpoint: 'tcp://a:5557', replayEndpoint: 'tcp://a:5558' } },
    ]) {
      it.subscriptions.reconcile([aSource('a', change)]);
      expect(it.did()).toEqual(['stop a', 'open a', 'start a']);
    }
  });
});

describe('connecting again', () => {
  test('backs off with jitter up to a second, and less often the more are gone', () => {
    const redials = createRedials(() => 0.5);
    redials.down();
    expect([0, 1, 2, 3, 4, 5, 9].map((attempt) => redials.delayMs(attempt))).toEqual([45, 90, 180, 360, 720, 750, 750]);
    for (let i = 1; i < 600; i++) redials.down();
    expect([redials.delayMs(0), redials.delayMs(3)]).toEqual([45, 30_000]);
    for (let i = 1; i < 600; i++) redials.up();
    expect(redials.delayMs(3)).toBe(360);
    const early = createRedials(() => 0).delayMs(4);
    const late = createRedials(() => 1).delayMs(4);
    expect(late).toBeGreaterThan(1.5 * early);
  });
});

describe('trust', () => {
  const live: TrustEvidence = {
    stream: {
      state: 'live',
      connected: true,
      lastSeq: 1n,
      partial: false,
      replay: 'works',
      lastHeardMs: 0,
      lastBatchMs: 0,
      lastProvenMs: 0,
      behind: 0,
    },
    indexable: true,
    partial: false,
  };
  const stream = (change: Partial<TrustEvidence['stream']>): TrustEvidence => ({ ...live, stream: { ...live.stream, ...change } }); // prettier-ignore
  test.each([
    ['live, complete, repairable', live, 'exact'],
    ['live but from the middle', stream({ partial: true }), 'degraded'],
    ['live without replay', stream({ replay: 'none' }), 'degraded'],
    ['live, replay does not answer', stream({ replay: 'broken' }), 'degraded'],
    ['live, index had no room', { ...live, partial: true }, 'degraded'],
    ['live, groups that cannot be indexed', { ...live, indexable: false }, 'fallback'],
    ['in doubt', stream({ state: 'suspect' }), 'fallback'],
    ['learning', stream({ state: 'replaying' }), 'fallback'],
    ['never connected', stream({ state: 'unknown', connected: false }), 'fallback'],
  ] as const)('%s', (_what, evidence, trust) => {
    expect(deriveTrust(evidence)).toBe(trust);
  });
});

describe('replay permits', () => {
  test('no more than allowed at once, in the order of asking, and a place given up is free', () => {
    const started: number[] = [];
    const permits = createReplayPermits(2, createFakeClock());
    const held = [0, 1, 2, 3, 4].map((i) => permits.ask(() => started.push(i)));
    expect(started).toEqual([0, 1]);
    held[2]!.release();
    held[0]!.release();
    held[0]!.release();
    expect(started).toEqual([0, 1, 3]);
    held[1]!.release();
    held[3]!.release();
    expect(started).toEqual([0, 1, 3, 4]);
  });

  test('replays that take very long do not make the others wait for ever', () => {
    const clock = createFakeClock();
    const started: number[] = [];
    const permits = createReplayPermits(2, clock);
    const held = [0, 1, 2, 3, 4, 5].map((i) => permits.ask(() => started.push(i)));
    clock.advance(20_000);
    held[0]!.release();
    expect(started).toEqual([0, 1, 2]);
    clock.advance(20_000);
    expect(started).toEqual([0, 1, 2, 3]);
    held[1]!.release();
    expect(started).toEqual([0, 1, 2, 3]);
    for (const permit of held) permit.release();
    expect(clock.nTimers()).toBe(0);
    const slow = Array.from({ length: 12 }, (_, i) => permits.ask(() => started.push(10 + i)));
    for (let i = 0; i < 12; i++) clock.advance(40_000);
    expect(started.slice(6)).toEqual([10, 11, 12, 13, 14, 15, 16, 17]);
    slow[3]!.release();
    expect(started.at(-1)).toBe(18);
  });
});

describe('counters', () => {
  test('are handed over once, and lag samples are bounded', () => {
    const sink = createCounterSink();
    expect(sink.take()).toBeNull();
    sink.events('BlockStored', 2, 7);
    sink.error('payload');
    sink.error('payload');
    sink.replay('ok');
    for (let i = 0; i < 2 * MAX_LAG_SAMPLES; i++) sink.lag(i);
    const counters = sink.take()!;
    expect(counters).toMatchObject({ events: { BlockStored: 2 }, blocks: { BlockStored: 7 }, errors: { payload: 2 } });
    expect(counters.replays).toEqual({ ok: 1 });
    expect(counters.lagMs).toHaveLength(MAX_LAG_SAMPLES);
    expect(sink.take()).toBeNull();
  });
});
