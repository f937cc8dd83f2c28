import { describe, expect, test } from '@jest/globals';
import { createUnseenEnds } from '../../../src/extproc/unseen-ends.ts';
import { createHeld } from '../../support/exchange-harness.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

function setUp(maxHeld = 100) {
  const clock = createFakeClock();
  const faults: unknown[] = [];
  const ends = createUnseenEnds(clock, {
    assumedAnswerMs: 1_000,
    maxHeld,
    onFault: (error) => void faults.push(error),
  });
  const hold = (expectedAnswerMs: number | null = null) => {
    const { fate, reservation } = createHeld();
    ends.hold({ ...reservation, expectedAnswerMs });
    return fate;
  };
  return { clock, ends, hold, faults };
}

describe('reservations whose end nobody sees', () => {
  test('each is given back when its own time is over, and not before', () => {
    const { clock, ends, hold } = setUp();
    const first = hold();
    clock.advance(400);
    const second = hold();
    clock.advance(599);
    expect([first.released, second.released]).toEqual([[], []]);
    clock.advance(1);
    expect([first.released, second.released]).toEqual([['assumed'], []]);
    clock.advance(400);
    expect([first.released, second.released]).toEqual([['assumed'], ['assumed']]);
    expect([ends.size(), clock.nTimers()]).toEqual([0, 0]);
  });

  test('what is expected of an answer counts instead, up to ten times the assumption', () => {
    const { clock, hold, ends } = setUp();
    const [long, short, endless, plain] = [hold(3_000), hold(200), hold(1e9), hold()];
    const released = (): number[] => [long, short, endless, plain].map((fate) => fate.released.length);
    clock.advance(199);
    expect(released()).toEqual([0, 0, 0, 0]);
    clock.advance(1);
    expect(released()).toEqual([0, 1, 0, 0]);
    clock.advance(800);
    expect(released()).toEqual([0, 1, 0, 1]);
    clock.advance(2_000);
    expect(released()).toEqual([1, 1, 0, 1]);
    clock.advance(7_000);
    expect(released()).toEqual([1, 1, 1, 1]);
    expect([ends.size(), clock.nTimers()]).toEqual([0, 0]);
  });

  test('a full room gives back its oldest', () => {
    const { hold, ends } = setUp(2);
    const fates = [hold(), hold(), hold()];
    expect(fates.map(({ released }) => released.length)).toEqual([1, 0, 0]);
    expect(ends.size()).toBe(2);
  });

  test('at the end all are given back and no timer is left', () => {
    const { hold, ends, clock } = setUp();
    const fates = [hold(), hold()];
    ends.releaseAll();
    expect(fates.map(({ released }) => released)).toEqual([['assumed'], ['assumed']]);
    expect(clock.nTimers()).toBe(0);
    ends.releaseAll();
    expect(fates.map(({ released }) => released.length)).toEqual([1, 1]);
  });

  test('one that throws is reported and keeps no other', () => {
    const { clock, ends, hold, faults } = setUp();
    const { reservation } = createHeld();
    ends.hold({
      ...reservation,
      release() {
        throw new Error('a bug');
      },
    });
    const other = hold();
    clock.advance(1_000);
    expect(faults).toHaveLength(1);
    expect(other.released).toEqual(['assumed']);
  });
});
