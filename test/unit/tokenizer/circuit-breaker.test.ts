import { describe, expect, test } from '@jest/globals';
import {
  createCircuitBreaker,
  type BreakerState,
  type CircuitBreaker,
} from '../../../src/tokenizer/circuit-breaker.ts';
import { createFakeClock, type FakeClock } from '../../support/fake-clock.ts';

type Harness = { breaker: CircuitBreaker; clock: FakeClock; states: [BreakerState, number][] };

/** Opens after 3 failures that are at least half of the last 6; random is 1 in the limit, so pauses are the longest possible. */
function aBreaker(random = 1): Harness {
  const clock = createFakeClock();
  const states: [BreakerState, number][] = [];
  const breaker = createCircuitBreaker(
    { clock, random: () => random, onState: (state, pauseMs) => states.push([state, pauseMs]) },
    { window: 6, failures: 3, openBaseMs: 100, openMaxMs: 350 },
  );
  return { breaker, clock, states };
}

/** @param outcomes `s` success, `f` failure, `n` neutral, one call after the other */
function run({ breaker }: Harness, outcomes: string): void {
  for (const outcome of outcomes) {
    const call = breaker.enter();
    if (call === null) throw new Error('a call was refused');
    call.end(outcome === 's' ? 'success' : outcome === 'f' ? 'failure' : 'neutral');
  }
}

describe('a circuit breaker', () => {
  test.each([
    ['fff', 'open'],
    ['ff', 'closed'],
    ['ssff', 'closed'],
    ['sssfff', 'open'],
    ['sfsfsf', 'open'],
    ['fsssfsf', 'closed'],
    ['ffsssssff', 'closed'],
    ['nnnnnnnn', 'closed'],
    ['fnfnf', 'open'],
  ])('after %s is %s', (outcomes, state) => {
    const harness = aBreaker();
    run(harness, outcomes);
    expect(harness.breaker.passable).toBe(state === 'closed');
    expect(harness.breaker.enter() === null).toBe(state === 'open');
  });

  test('lets one probe pass after its pause, and everybody after its success', () => {
    const harness = aBreaker();
    const { breaker, clock } = harness;
    run(harness, 'fff');
    clock.advance(99);
    expect(breaker.enter()).toBeNull();
    clock.advance(1);
    const probe = breaker.enter();
    expect(probe).not.toBeNull();
    expect(breaker.enter()).toBeNull();
    probe!.end('success');
    run(harness, 'sff');
    expect(breaker.passable).toBe(true);
    expect(harness.states).toEqual([
      ['open', 100],
      ['half_open', 0],
      ['closed', 0],
    ]);
  });

  test('doubles its pause with every failed probe up to the limit, and forgets that after a success', () => {
    const harness = aBreaker();
    run(harness, 'fff');
    for (const pauseMs of [100, 200, 350, 350]) {
      harness.clock.advance(pauseMs - 1);
      expect(harness.breaker.passable).toBe(false);
      harness.clock.advance(1);
      run(harness, 'f');
    }
    harness.clock.advance(350);
    run(harness, 'sfff');
    expect(harness.states[harness.states.length - 1]).toEqual(['open', 100]);
  });

  test('jitters its pause between half and the whole', () => {
    const harness = aBreaker(0);
    run(harness, 'fff');
    expect(harness.states).toEqual([['open', 50]]);
  });

  test('lets the next call probe at once when a probe told nothing', () => {
    const harness = aBreaker();
    run(harness, 'fff');
    harness.clock.advance(100);
    run(harness, 'ns');
    expect(harness.breaker.passable).toBe(true);
    expect(harness.states.map(([state]) => state)).toEqual(['open', 'half_open', 'half_open', 'closed']);
  });

  test('is not moved by answers to calls from before it opened', () => {
    const harness = aBreaker();
    const { breaker, clock } = harness;
    const old = [breaker.enter()!, breaker.enter()!];
    run(harness, 'fff');
    old[0]!.end('success');
    expect(breaker.passable).toBe(false);
    clock.advance(100);
    const probe = breaker.enter()!;
    old[1]!.end('failure');
    probe.end('success');
    expect(breaker.passable).toBe(true);
  });

  test('counts the first ending of a call only', () => {
    const harness = aBreaker();
    const call = harness.breaker.enter()!;
    for (let i = 0; i < 5; i++) call.end('failure');
    expect(harness.breaker.passable).toBe(true);
  });
});
