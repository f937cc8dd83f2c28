import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import type { Reservation } from '../../../src/extproc/picker.ts';
import { createUsageJoin, type Observer } from '../../../src/extproc/usage-join.ts';
import { createHeld, type Held } from '../../support/exchange-harness.ts';

const USAGE = { promptTokens: 10, completionTokens: 2, cachedTokens: 8 };

function setup() {
  const join = createUsageJoin();
  const { fate, reservation } = createHeld();
  return { join, fate, joined: join.join('r', reservation) };
}

describe('a request with an observer', () => {
  test('hears the first byte and the usage, and is released when the response is over', () => {
    const { join, fate, joined } = setup();
    const observer = join.observe('r');
    observer.firstByte();
    observer.complete(USAGE, 'completed');
    expect(fate).toEqual({ firstBytes: 1, usages: [USAGE], released: ['completed'] });
    joined.release('completed');
    observer.gone();
    expect(fate.released).toEqual(['completed']);
  });

  test('that ends first waits for the usage', () => {
    const { join, fate, joined } = setup();
    const observer = join.observe('r');
    joined.release('completed');
    expect(fate.released).toEqual([]);
    observer.complete(USAGE, 'completed');
    expect(fate).toMatchObject({ usages: [USAGE], released: ['completed'] });
  });

  test('that ends first is a failed one when the observer sees a refusal', () => {
    const { join, fate, joined } = setup();
    const observer = join.observe('r');
    joined.release('completed');
    observer.complete(null, 'failed');
    expect(fate).toMatchObject({ usages: [], released: ['failed'] });
  });

  test('that ends first is released at the latest when the observer goes without having seen it', () => {
    const { join, fate, joined } = setup();
    const observer = join.observe('r');
    joined.release('completed');
    observer.gone();
    observer.gone();
    expect(fate).toMatchObject({ usages: [], released: ['completed'] });
  });

  test('that ends first was cancelled when the observer sees its answer break off', () => {
    const { join, fate, joined } = setup();
    const observer = join.observe('r');
    joined.release('completed');
    observer.gone('cut');
    expect(fate).toMatchObject({ usages: [], released: ['cancelled'] });
  });

  test.each(['cancelled', 'failed'] as const)('that was %s is released at once', (outcome) => {
    const { join, fate, joined } = setup();
    join.observe('r');
    joined.release(outcome);
    expect(fate.released).toEqual([outcome]);
  });
});

test('without an observer nothing waits, and an observer of an unknown request tells nobody', () => {
  const { join, fate, joined } = setup();
  join.observe('other').complete(USAGE, 'completed');
  joined.release('completed');
  joined.release('completed');
  expect(fate).toEqual({ firstBytes: 0, usages: [], released: ['completed'] });
});

test('two open requests with one id are independent, and neither is given what an observer saw', () => {
  const { join, fate, joined } = setup();
  const second = createHeld();
  const other = join.join('r', second.reservation);
  const observer = join.observe('r');
  observer.firstByte();
  observer.complete(USAGE, 'completed');
  expect([fate, second.fate].map(({ usages, released }) => [usages, released])).toEqual([
    [[], []],
    [[], []],
  ]);
  other.release('cancelled');
  expect([fate.released, second.fate.released]).toEqual([[], ['cancelled']]);
  joined.release('completed');
  expect(fate.released).toEqual(['completed']);
});

describe('an id that every request has', () => {
  test('keeps no request waiting for observers that never end', () => {
    const join = createUsageJoin();
    let observer = join.observe('r');
    let joined = join.join('r', createHeld().reservation);
    for (let i = 0; i < 100; i++) {
      const next = createHeld();
      const [nextObserver, nextJoined] = [join.observe('r'), join.join('r', next.reservation)];
      joined.release('completed');
      observer.complete(USAGE, 'completed');
      [observer, joined] = [nextObserver, nextJoined];
      joined.release('completed');
      expect(next.fate).toEqual({ firstBytes: 0, usages: [], released: ['completed'] });
    }
  });

  test('ends the wait of the first for its observer', () => {
    const { join, fate, joined } = setup();
    join.observe('r');
    joined.release('completed');
    join.join('r', createHeld().reservation);
    expect(fate.released).toEqual(['completed']);
  });

  test('gives none what an observer saw of another that is over', () => {
    const { join, joined } = setup();
    const observers = [join.observe('r'), join.observe('r')];
    join.join('r', createHeld().reservation).release('completed');
    joined.release('completed');
    const third = createHeld();
    join.join('r', third.reservation);
    for (const observer of observers) observer.complete(USAGE, 'completed');
    expect(third.fate).toEqual({ firstBytes: 0, usages: [], released: [] });
  });

  test('is one like any other once all are gone', () => {
    const { join, joined } = setup();
    const observer = join.observe('r');
    join.join('r', createHeld().reservation).release('completed');
    joined.release('completed');
    observer.gone();
    const later = createHeld();
    join.join('r', later.reservation);
    join.observe('r').complete(USAGE, 'completed');
    expect(later.fate).toMatchObject({ usages: [USAGE], released: ['completed'] });
  });
});

test('whatever comes in whatever order, each is released once, and at the latest with the last stream of its name', () => {
  const steps = fc.array(fc.tuple(fc.constantFrom('join', 'observe', 'end', 'complete', 'gone'), fc.nat(7)), {
    maxLength: 40,
  });
  fc.assert(
    fc.property(steps, (plan) => {
      const join = createUsageJoin();
      const requests: { fate: Held; joined: Reservation }[] = [];
      const observers: Observer[] = [];
      for (const [step, which] of plan) {
        const request = requests[which % requests.length];
        const observer = observers[which % observers.length];
        if (step === 'join') {
          const { fate, reservation } = createHeld();
          requests.push({ fate, joined: join.join('r', reservation) });
        } else if (step === 'observe') observers.push(join.observe('r'));
        else if (step === 'end') request?.joined.release('completed');
        else if (step === 'complete') observer?.complete(USAGE, 'completed');
        else observer?.gone();
        for (const { fate } of requests) expect(fate.released.length).toBeLessThanOrEqual(1);
      }
      for (const { joined } of requests) joined.release('completed');
      for (const observer of observers) observer.gone();
      for (const { fate } of requests) expect(fate.released).toEqual(['completed']);
    }),
  );
});

test('a request without an id is left as it is', () => {
  const { reservation } = createHeld();
  expect(createUsageJoin().join(undefined, reservation)).toBe(reservation);
});
