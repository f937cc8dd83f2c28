import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createInFlight } from '../../../src/load/in-flight.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

describe('own load per endpoint', () => {
  test('a reservation counts until it is released, and releasing twice changes nothing', () => {
    const inFlight = createInFlight(createFakeClock(), 1000);
    const reservation = inFlight.reserve(3, 500);
    expect(inFlight.load(3)).toMatchObject({ requests: 1, tokens: 500, waiting: 1, waitMs: 500 });
    expect(inFlight.load(4)).toMatchObject({ requests: 0, tokens: 0, waiting: 0, waitMs: 0 });
    expect(reservation.release()).toBe(true);
    expect(reservation.release()).toBe(false);
    expect(inFlight.load(3)).toMatchObject({ requests: 0, tokens: 0, waiting: 0, waitMs: 0 });
    expect(inFlight.total()).toBe(0);
  });

  test('without first tokens in sight the backlog of several requests adds up and drains with time', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    inFlight.reserve(0, 300, { answer: 'whole' });
    inFlight.reserve(0, 200, { answer: 'whole' });
    expect(inFlight.load(0).waitMs).toBe(500);
    clock.advance(400);
    expect(inFlight.load(0)).toMatchObject({ waiting: 1, waitMs: 100 });
    clock.advance(400);
    expect(inFlight.load(0)).toMatchObject({ requests: 2, tokens: 500, waiting: 0, waitMs: 0 });
  });

  test('a streamed prompt waits until its first token is seen, however long that takes', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    const first = inFlight.reserve(0, 300);
    inFlight.reserve(0, 200);
    clock.advance(5000);
    expect(inFlight.load(0)).toMatchObject({ waiting: 2, waitMs: 200 });
    first.firstByte();
    first.firstByte();
    expect(inFlight.load(0)).toMatchObject({ requests: 2, waiting: 1, waitMs: 200 });
    clock.advance(50);
    expect(inFlight.load(0).waitMs).toBe(150);
  });

  test('answers that failed or that nobody waited for say nothing of what can be seen: others still wait for their first tokens', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    for (let i = 0; i < 100; i++) inFlight.reserve(1, 300).release(undefined, 'cut');
    inFlight.reserve(0, 300);
    inFlight.reserve(0, 200);
    clock.advance(5000);
    expect(inFlight.load(0)).toMatchObject({ waiting: 2, waitMs: 200 });
    expect(inFlight.load(1)).toMatchObject({ requests: 0, waiting: 0, waitMs: 0 });
  });

  test('of the time spent on prompts only that for tokens could be saved by a cache', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    for (let i = 0; i < 3000; i++) {
      const tokens = 100 + 200 * (i % 2);
      const reservation = inFlight.reserve(0, tokens);
      clock.advance(100 + tokens);
      reservation.firstByte();
      reservation.release();
      clock.advance(100);
    }
    const { utilization, savableUtilization } = inFlight.load(0);
    expect(utilization).toBeCloseTo(0.75, 1);
    expect(savableUtilization).toBeCloseTo(0.5, 1);
  });

  test('where streamed answers end without a first token ever seen, time drains the backlog', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    inFlight.reserve(0, 300).release();
    inFlight.reserve(0, 300);
    clock.advance(301);
    expect(inFlight.load(0)).toMatchObject({ requests: 1, waiting: 0, waitMs: 0 });
  });

  test('the first byte of an answer in one piece says nothing of its prompt', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    const whole = inFlight.reserve(0, 300, { answer: 'whole' });
    clock.advance(10_000);
    whole.firstByte();
    whole.release();
    expect(inFlight.load(0).prefillMsPerToken).toBeCloseTo(1, 9);
  });

  test('an engine twice as fast as assumed is soon known to be, and forgotten with its process', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    for (let i = 0; i < 60; i++) {
      for (const [slot, tokens] of [1000, 400 + 10 * i].entries()) {
        const request = inFlight.reserve(slot, tokens);
        clock.advance(slot === 0 ? tokens / 2 : tokens);
        request.firstByte();
        request.release(tokens);
      }
    }
    const timeOf = (slot: number): number => {
      const { prefillSetupMs, prefillMsPerToken } = inFlight.load(slot);
      return prefillSetupMs + 1000 * prefillMsPerToken;
    };
    expect(timeOf(0)).toBeGreaterThan(450);
    expect(timeOf(0)).toBeLessThan(650);
    expect(timeOf(1)).toBeGreaterThan(850);
    inFlight.forget(0);
    expect(timeOf(0)).toBeGreaterThan(timeOf(1) - 400);
    expect(timeOf(0)).toBe(timeOf(7));
  });

  test('with learning off every engine stays as fast as assumed', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000, { learning: 'off' });
    for (let i = 0; i < 60; i++) {
      const request = inFlight.reserve(0, 1000);
      clock.advance(100);
      request.firstByte();
      request.release(1000);
    }
    expect(inFlight.load(0).prefillMsPerToken).toBeCloseTo(1, 9);
  });

  test('what the engine really computed corrects a wrong prediction', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    for (let i = 0; i < 100; i++) {
      const request = inFlight.reserve(0, 10);
      clock.advance(500);
      request.firstByte();
      request.release(500);
    }
    expect(inFlight.load(0).prefillMsPerToken).toBeCloseTo(1, 1);
  });

  test('a process that is gone leaves no load behind, and what was sent to it changes nothing at the next one', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    const old = [inFlight.reserve(0, 4000), inFlight.reserve(0, 4000)];
    inFlight.forget(0);
    expect(inFlight.load(0)).toMatchObject({ requests: 0, tokens: 0, waiting: 0, waitMs: 0, arrivalsPerSecond: 0 });
    const next = inFlight.reserve(0, 100);
    clock.advance(1);
    for (const reservation of old) {
      reservation.firstByte();
      expect(reservation.release(4000)).toBe(true);
      expect(reservation.release(4000)).toBe(false);
    }
    expect(inFlight.load(0)).toMatchObject({ requests: 1, tokens: 100, waiting: 1 });
    expect(inFlight.load(0).prefillMsPerToken).toBeCloseTo(1, 9);
    expect(inFlight.total()).toBe(1);
    next.release();
    expect(inFlight.total()).toBe(0);
  });

  describe('events that say a prompt is computed', () => {
    const setUp = (isComputed: () => boolean) => {
      const computedTokens = (): number => (isComputed() ? 1000 : 0);
      const clock = createFakeClock();
      const inFlight = createInFlight(clock, 1000);
      return { clock, inFlight, reserve: () => inFlight.reserve(0, 1000, { answer: 'whole', computedTokens }) };
    };

    test('take it out of the queue, though no first token was seen and it is not due', () => {
      let computed = false;
      const { clock, inFlight, reserve } = setUp(() => computed);
      reserve();
      clock.advance(100);
      expect(inFlight.load(0)).toMatchObject({ waiting: 1, waitMs: 900 });
      computed = true;
      clock.advance(100);
      expect(inFlight.load(0)).toMatchObject({ requests: 1, waiting: 0, waitMs: 0 });
    });

    test('teach the speed where nothing else can, if they were looked for often enough', () => {
      const speedAfter = (lookEveryMs: number): number => {
        let doneMs = 0;
        const { clock, inFlight, reserve } = setUp(() => clock.nowMs() >= doneMs);
        for (let i = 0; i < 80; i++) {
          doneMs = clock.nowMs() + 500;
          const request = reserve();
          for (let ms = 0; ms < 1000; ms += lookEveryMs) {
            clock.advance(lookEveryMs);
            inFlight.load(0);
          }
          request.release();
        }
        const { prefillSetupMs, prefillMsPerToken } = inFlight.load(0);
        return prefillSetupMs + 1000 * prefillMsPerToken;
      };
      expect(speedAfter(50) / 500).toBeLessThan(1.2);
      expect(speedAfter(1000)).toBeCloseTo(1000, 6);
    });

    test('and a first token that comes later corrects what they taught', () => {
      const clock = createFakeClock();
      const inFlight = createInFlight(clock, 1000);
      for (let i = 0; i < 80; i++) {
        const request = inFlight.reserve(0, 1000, { computedTokens: () => 1000 });
        for (let ms = 0; ms < 100; ms += 25) {
          inFlight.load(0);
          clock.advance(25);
        }
        clock.advance(400);
        request.firstByte();
        request.release();
      }
      const { prefillSetupMs, prefillMsPerToken } = inFlight.load(0);
      expect((prefillSetupMs + 1000 * prefillMsPerToken) / 500).toBeGreaterThan(0.95);
    });

    test('are not looked up for every request', () => {
      let nAsked = 0;
      const { clock, inFlight, reserve } = setUp(() => {
        nAsked += 1;
        return false;
      });
      reserve();
      for (let i = 0; i < 1000; i++) {
        clock.advance(0.1);
        inFlight.load(0);
      }
      expect(nAsked).toBeLessThanOrEqual(6);
    });
  });

  test('ten thousand lifecycles, cut short by processes that go, end at zero', () => {
    const step = fc.record({
      slot: fc.nat(7),
      tokens: fc.nat(20_000),
      what: fc.constantFrom('first byte', 'release', 'release twice', 'process gone', 'wait'),
      which: fc.nat(50),
    });
    fc.assert(
      fc.property(fc.array(step, { minLength: 500, maxLength: 500 }), (steps) => {
        const clock = createFakeClock();
        const inFlight = createInFlight(clock);
        const open: ReturnType<typeof inFlight.reserve>[] = [];
        for (const { slot, tokens, what, which } of steps) {
          // What is left of a prompt after a credit is a fraction.
          open.push(inFlight.reserve(slot, tokens / 7, { answer: tokens % 2 === 0 ? 'streamed' : 'whole' }));
          const at = which % open.length;
          if (what === 'first byte') open[at]!.firstByte();
          if (what === 'release' || what === 'release twice') {
            const [reservation] = open.splice(at, 1);
            expect(reservation!.release()).toBe(true);
            if (what === 'release twice') expect(reservation!.release()).toBe(false);
          }
          if (what === 'process gone') inFlight.forget(slot);
          if (what === 'wait') clock.advance(tokens);
          const load = inFlight.load(slot);
          expect(Math.min(load.requests, load.tokens, load.waiting, load.waitMs)).toBeGreaterThanOrEqual(0);
          expect(inFlight.total()).toBe(open.length);
        }
        for (const reservation of open) reservation.release();
        expect(inFlight.total()).toBe(0);
        for (let slot = 0; slot <= 7; slot++) {
          expect(inFlight.load(slot)).toMatchObject({ requests: 0, tokens: 0, waiting: 0, waitMs: 0 });
        }
      }),
      { numRuns: 20 },
    );
  });

  test('prompts computed in one pass teach what the pass took for all of them', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    for (let i = 0; i < 60; i++) {
      const requests = [300, 700].map((tokens) => inFlight.reserve(0, tokens));
      clock.advance(500);
      for (const request of requests) request.firstByte();
      for (const request of requests) request.release();
    }
    const { prefillSetupMs, prefillMsPerToken } = inFlight.load(0);
    expect((prefillSetupMs + 1000 * prefillMsPerToken) / 500).toBeGreaterThan(0.9);
    expect((prefillSetupMs + 1000 * prefillMsPerToken) / 500).toBeLessThan(1.3);
  });

  test('what is typical: the length of prompts, and how much is sent within a second of each other', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    expect(inFlight.typical()).toEqual({ promptTokens: 0, residualTokens: 0, burstMs: 0 });
    for (let i = 0; i < 1000; i++) {
      for (let slot = 0; slot < 4; slot++) inFlight.reserve(slot, 200, { answer: 'whole' }).release();
      clock.advance(3000);
    }
    expect(inFlight.typical().promptTokens).toBeCloseTo(200, 6);
    // Four at once of 200 ms each: itself, and 300 ms before and after it on average.
    expect(inFlight.typical().burstMs / 800).toBeGreaterThan(0.9);
    expect(inFlight.typical().burstMs / 800).toBeLessThan(1.1);
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
