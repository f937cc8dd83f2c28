import { describe, expect, test } from '@jest/globals';
import { LightSignal } from '../../src/light-signal.ts';
import { Budget } from '../../src/picking/budget.ts';
import { createFakeClock } from '../support/fake-clock.ts';

describe('a light signal', () => {
  test('tells its listener once, and none that left', () => {
    const signal = new LightSignal();
    let nTold = 0;
    const listener = (): void => void (nTold += 1);
    signal.addEventListener('abort', listener);
    signal.abort();
    signal.abort();
    expect([signal.aborted, nTold]).toEqual([true, 1]);
    const left = new LightSignal();
    left.addEventListener('abort', listener);
    left.removeEventListener('abort', () => undefined);
    left.removeEventListener('abort', listener);
    left.abort();
    expect([left.aborted, nTold]).toEqual([true, 1]);
  });

  test('has room for one listener at a time, and says so', () => {
    const signal = new LightSignal();
    signal.addEventListener('abort', () => undefined);
    expect(() => signal.addEventListener('abort', () => undefined)).toThrow('has one listener');
  });
});

describe('a budget', () => {
  test.each(['time', 'client'] as const)('is over by its %s, whichever comes first', (by) => {
    const clock = createFakeClock();
    const client = new LightSignal();
    const budget = new Budget(clock, 20, client);
    let toldAtMs = NaN;
    budget.addEventListener('abort', () => (toldAtMs = clock.nowMs()));
    clock.advance(19);
    expect(budget.aborted).toBe(false);
    if (by === 'client') client.abort();
    else clock.advance(1);
    expect([budget.aborted, toldAtMs]).toEqual([true, by === 'client' ? 19 : 20]);
    budget.end();
    expect(clock.nTimers()).toBe(0);
  });

  test('of a client that is gone is over at once; one that ended leaves nothing behind', () => {
    const clock = createFakeClock();
    const gone = new LightSignal();
    gone.abort();
    const over = new Budget(clock, 20, gone);
    expect(over.aborted).toBe(true);
    over.end();
    const client = new LightSignal();
    const ended = new Budget(clock, 20, client);
    ended.end();
    client.abort();
    clock.advance(30);
    expect([ended.aborted, clock.nTimers()]).toEqual([false, 0]);
  });
});
