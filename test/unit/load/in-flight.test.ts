import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createInFlight } from '../../../src/load/in-flight.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

describe('own load per endpoint', () => {
  test('a reservation counts until it is released, and releasing twice changes nothing', () => {
    const inFlight = createInFlight(createFakeClock(), 1000);
    const reservation = inFlight.reserve(3, 500);
    expect(inFlight.load(3)).toEqual({ requests: 1, tokens: 500, waitMs: 500 });
    expect(inFlight.load(4)).toEqual({ requests: 0, tokens: 0, waitMs: 0 });
    expect(reservation.release()).toBe(true);
    expect(reservation.release()).toBe(false);
    expect(inFlight.load(3)).toEqual({ requests: 0, tokens: 0, waitMs: 0 });
    expect(inFlight.total()).toBe(0);
  });

  test('the prefill backlog of several requests adds up and drains with time', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    inFlight.reserve(0, 300);
    inFlight.reserve(0, 200);
    expect(inFlight.load(0).waitMs).toBe(500);
    clock.advance(400);
    expect(inFlight.load(0).waitMs).toBe(100);
    clock.advance(400);
    expect(inFlight.load(0)).toEqual({ requests: 2, tokens: 500, waitMs: 0 });
  });

  test('the first response byte ends the prefill share early, once', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    const first = inFlight.reserve(0, 300);
    inFlight.reserve(0, 200);
    clock.advance(100);
    first.firstByte();
    first.firstByte();
    expect(inFlight.load(0).waitMs).toBe(200);
    expect(inFlight.load(0).requests).toBe(2);
  });

  test('any lifecycle of any number of requests ends at zero', () => {
    const action = fc.record({
      slot: fc.nat(5),
      tokens: fc.nat(20_000),
      firstByte: fc.boolean(),
      releases: fc.integer({ min: 1, max: 3 }),
      waitMs: fc.nat(3000),
    });
    fc.assert(
      fc.property(fc.array(action, { maxLength: 200 }), (actions) => {
        const clock = createFakeClock();
        const inFlight = createInFlight(clock);
        const held = actions.map(({ slot, tokens, waitMs }) => {
          clock.advance(waitMs);
          return inFlight.reserve(slot, tokens);
        });
        actions.forEach(({ firstByte, releases }, index) => {
          if (firstByte) held[index]!.firstByte();
          for (let i = 0; i < releases; i++) expect(held[index]!.release()).toBe(i === 0);
        });
        expect(inFlight.total()).toBe(0);
        for (let slot = 0; slot <= 5; slot++) {
          const load = inFlight.load(slot);
          expect([load.requests, load.tokens]).toEqual([0, 0]);
          expect(load.waitMs).toBeCloseTo(0, 6);
        }
      }),
      { numRuns: 200 },
    );
  });
});
