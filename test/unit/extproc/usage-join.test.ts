import { describe, expect, test } from '@jest/globals';
import { createUsageJoin } from '../../../src/extproc/usage-join.ts';
import { createHeld } from '../../support/exchange-harness.ts';

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

test('a request without an id is left as it is', () => {
  const { reservation } = createHeld();
  expect(createUsageJoin().join(undefined, reservation)).toBe(reservation);
});
