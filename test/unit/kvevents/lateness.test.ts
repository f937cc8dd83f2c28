import { describe, expect, test } from '@jest/globals';
import { createLateness } from '../../../src/kvevents/lateness.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const MINUTE = 60_000;

/** A publisher whose clock is ahead of ours by so much sends a batch every second; `delayMs` says how long each travels. */
function aStream(aheadMs: number) {
  const clock = createFakeClock();
  const latenessOf = createLateness(clock);
  let setMs = 0;
  return {
    /** The publisher's clock is set. */
    set: (byMs: number) => (setMs += byMs),
    /** @returns lateness of every batch of so many seconds */
    send(seconds: number, delayMs: (second: number) => number): number[] {
      return Array.from({ length: seconds }, (_, second) => {
        clock.advance(1000);
        return latenessOf(clock.nowMs() - delayMs(second) + aheadMs + setMs);
      });
    },
    pause: (ms: number) => clock.advance(ms),
  };
}

describe.each([
  ['right', 0],
  ['an hour behind', -60 * MINUTE],
  ['a day ahead', 24 * 60 * MINUTE],
  ['counted from the start of the machine', -1_700_000_000_000],
])('a publisher whose clock is %s', (_, aheadMs) => {
  test('is not late for that', () => {
    expect(aStream(aheadMs).send(1000, () => 3)).toEqual(Array.from({ length: 1000 }, () => 0));
  });

  test('is late when its batches come later than before', () => {
    const stream = aStream(aheadMs);
    stream.send(10, () => 3);
    expect(stream.send(60, (second) => 3 + 100 * second).at(-1)).toBe(5900);
    expect(stream.send(1, () => 3)).toEqual([0]);
  });
});

test('a clock that was set looks late for some minutes at most', () => {
  const stream = aStream(0);
  stream.send(100, () => 3);
  stream.set(-60 * MINUTE);
  expect(stream.send(60, () => 3).at(-1)).toBe(60 * MINUTE);
  expect(stream.send(600, () => 3).at(-1)).toBe(0);
});

test('one that is set ahead is no earlier than on time', () => {
  const stream = aStream(0);
  stream.send(100, () => 3);
  stream.set(60 * MINUTE);
  expect(stream.send(100, () => 3).every((lateMs) => lateMs === 0)).toBe(true);
});

test('after a long silence nothing is known of before', () => {
  const stream = aStream(0);
  stream.send(100, () => 3);
  stream.pause(11 * MINUTE);
  expect(stream.send(1, () => 5000)).toEqual([0]);
});
