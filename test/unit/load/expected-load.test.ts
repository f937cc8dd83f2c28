import { describe, expect, test } from '@jest/globals';
import type { EndpointSlot } from '../../../src/endpoints/endpoint.ts';
import { createExpectedLoad } from '../../../src/load/expected-load.ts';
import { createInFlight } from '../../../src/load/in-flight.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const SLOT = 3 as EndpointSlot;

function aLoad() {
  const clock = createFakeClock();
  const inFlight = createInFlight(clock, 1000);
  const expected = createExpectedLoad({ inFlight, clock }, { intervalMs: 1000 });
  return {
    clock,
    inFlight,
    expected,
    read(reading: { running: number | null; waiting: number | null }): void {
      expected.asked(SLOT);
      expected.read(SLOT, reading);
    },
    of: () => expected.of({ slot: SLOT }),
  };
}

describe('load as a choice sees it', () => {
  test('without a reading it is the own reservations', () => {
    const { inFlight, of } = aLoad();
    inFlight.reserve(SLOT, 500);
    expect(of()).toEqual(inFlight.load(SLOT));
  });

  test('own requests that the engine reports too are not counted twice', () => {
    const { inFlight, of, read } = aLoad();
    for (let i = 0; i < 5; i++) inFlight.reserve(SLOT, 500);
    read({ running: 2, waiting: 3 });
    expect(of()).toEqual(inFlight.load(SLOT));
  });

  test('own requests that ended while the page was under way are not taken for those of others', () => {
    const { inFlight, expected, of } = aLoad();
    const own = [1, 2, 3].map(() => inFlight.reserve(SLOT, 500));
    expected.asked(SLOT);
    for (const reservation of own) reservation.release();
    expected.read(SLOT, { running: 3, waiting: 0 });
    expect(of().requests).toBe(0);
  });

  test("others' requests count as load, their waiting prompts as wait of the length of the own ones", () => {
    const { inFlight, of, read, clock } = aLoad();
    for (let i = 0; i < 4; i++) {
      inFlight.reserve(SLOT, 500).release(500);
      clock.advance(1000);
    }
    read({ running: 4, waiting: 6 });
    const load = of();
    expect(load.requests).toBe(10);
    expect(load.waitMs / 6).toBeGreaterThan(400);
    expect(load.waitMs / 6).toBeLessThan(600);
  });

  describe('while an engine computes', () => {
    /** Prompts of 500 tokens, half a second each. */
    const anEngine = (computedTokens: () => number) => {
      const load = aLoad();
      for (let i = 0; i < 100; i++) load.inFlight.reserve(SLOT, 500).release(500);
      load.inFlight.reserve(SLOT, 500, { computedTokens });
      return load;
    };
    const waitMs = ({ of }: ReturnType<typeof aLoad>): number => Math.round(of().waitMs);

    test('the first own prompt, one of others waits behind it', () => {
      const engine = anEngine(() => 100);
      engine.read({ running: 1, waiting: 1 });
      expect(waitMs(engine)).toBe(400 + 500);
    });

    test('one of somebody else, half of it is left, and the own one waits', () => {
      const engine = anEngine(() => 0);
      engine.read({ running: 1, waiting: 1 });
      expect(waitMs(engine)).toBe(250 + 500);
    });

    test('the first own prompt, if fewer wait than are known', () => {
      const engine = anEngine(() => 0);
      engine.read({ running: 2, waiting: 0 });
      expect(waitMs(engine)).toBe(500);
    });

    test('what is sent after the reading comes behind all that', () => {
      const engine = anEngine(() => 100);
      engine.read({ running: 1, waiting: 1 });
      engine.inFlight.reserve(SLOT, 2000);
      engine.clock.advance(300);
      expect(waitMs(engine)).toBe(400 + 500 + 2000 - 300);
    });
  });

  test('what a reading says of others fades when no newer one comes, down to nothing', () => {
    const { of, read, clock } = aLoad();
    read({ running: 10, waiting: 10 });
    const atFirst = of();
    clock.advance(2000);
    expect(of().requests).toBe(atFirst.requests);
    expect(of().waitMs).toBe(atFirst.waitMs - 2000);
    clock.advance(4000);
    expect(of().requests).toBeLessThan(atFirst.requests / 2);
    clock.advance(60_000);
    expect(of().requests).toBeLessThan(0.01);
    expect(of().waitMs).toBe(0);
  });

  test("as long as the first own prompt is not begun, somebody else's is under way before it, however long it takes", () => {
    const { inFlight, of, read, clock } = aLoad();
    for (let i = 0; i < 4; i++) {
      const reservation = inFlight.reserve(SLOT, 500);
      clock.advance(500);
      reservation.firstByte();
      reservation.release();
    }
    let computedTokens = 0;
    inFlight.reserve(SLOT, 500, { computedTokens: () => computedTokens });
    read({ running: 1, waiting: 1 });
    clock.advance(1500);
    // Its own 500 ms, and half of a prompt of the usual length.
    expect(of().waitMs).toBeCloseTo(750, -1);
    computedTokens = 100;
    expect(of().waitMs).toBe(0);
  });

  test('a page that leaves out what waits, or what runs, is no reason to expect any', () => {
    const { of, read } = aLoad();
    read({ running: null, waiting: null });
    expect(of().requests).toBe(0);
    read({ running: 3, waiting: null });
    expect(of()).toMatchObject({ requests: 3, waitMs: 0 });
  });

  test('what another process said is forgotten with it', () => {
    const { of, read, expected } = aLoad();
    read({ running: 10, waiting: 10 });
    expected.forget(SLOT);
    expect(of().requests).toBe(0);
  });

  test('two routers that read each other from the engines alone expect the other where it mostly sends', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    const expected = createExpectedLoad({ inFlight, clock }, { intervalMs: 1000 });
    const [ours, theirs] = [1, 2] as EndpointSlot[];
    for (let i = 0; i < 200; i++) {
      const reservation = inFlight.reserve(ours!, 500);
      for (const [slot, foreign] of [
        [ours!, 0],
        [theirs!, 1],
      ] as const) {
        expected.asked(slot);
        expected.read(slot, { running: inFlight.load(slot).requests + foreign, waiting: 0 });
      }
      clock.advance(500);
      reservation.firstByte();
      reservation.release();
      clock.advance(500);
    }
    const own = inFlight.load(ours!);
    expect(expected.of({ slot: ours! }).unseenMs).toBe(0);
    expect(expected.of({ slot: theirs! }).unseenMs).toBeGreaterThan(300);
    const { unseenMs, unseenPrompts, prefillSetupMs, prefillMsPerToken } = expected.of({ slot: theirs! });
    expect(unseenPrompts * (prefillSetupMs + 500 * prefillMsPerToken)).toBeCloseTo(unseenMs, 3);
    // Half of the requests are the other's.
    expect(expected.of({ slot: ours! }).arrivalsPerSecond / own.arrivalsPerSecond).toBeCloseTo(2, 1);
    expect(expected.of({ slot: ours! }).utilization / own.utilization).toBeCloseTo(2, 1);
    expect(expected.of({ slot: ours! }).savableUtilization / own.savableUtilization).toBeCloseTo(2, 1);
    expected.forget(theirs!);
    expect(expected.of({ slot: ours! })).toEqual(inFlight.load(ours!));
  });

  test('where others mostly send is remembered equally long however often engines are read', () => {
    const [earlier, later] = [1, 2] as EndpointSlot[];
    const shareOfEarlier = (intervalMs: number): number => {
      const clock = createFakeClock();
      const inFlight = createInFlight(clock, 1000);
      const expected = createExpectedLoad({ inFlight, clock }, { intervalMs });
      inFlight.reserve(earlier!, 500);
      for (let atMs = 0; atMs < 60_000; atMs += intervalMs) {
        for (const slot of [earlier!, later!]) {
          const isThere = atMs < 30_000 === (slot === earlier);
          expected.asked(slot);
          expected.read(slot, { running: inFlight.load(slot).requests + (isThere ? 2 : 0), waiting: 0 });
        }
        clock.advance(intervalMs);
      }
      const unseen = [earlier!, later!].map((slot) => expected.of({ slot }).unseenMs);
      return unseen[0]! / (unseen[0]! + unseen[1]!);
    };
    expect(shareOfEarlier(1000)).toBeGreaterThan(0.3);
    expect(shareOfEarlier(50)).toBeCloseTo(shareOfEarlier(1000), 1);
  });

  test('a router that stands by does not take all that is sent for what comes beside its own requests', () => {
    const { clock, inFlight, expected, read } = aLoad();
    const readFor = (seconds: number, others: number): void => {
      for (let i = 0; i < seconds; i++) {
        clock.advance(1000);
        read({ running: others + inFlight.load(SLOT).requests, waiting: 0 });
      }
    };
    readFor(600, 10);
    expect(expected.allPerOwn()).toBe(1);
    // It takes over: what the other one sent ends, and then there is nobody else.
    const own = [1, 2, 3, 4].map(() => inFlight.reserve(SLOT, 500));
    readFor(10, 10);
    readFor(90, 0);
    expect(expected.allPerOwn()).toBeGreaterThan(1);
    expect(expected.allPerOwn()).toBeLessThan(1.4);
    // It stands by again, for long enough to forget.
    for (const reservation of own) reservation.release();
    readFor(200, 4);
    expect(expected.allPerOwn()).toBe(1);
    // Where somebody sends beside it all the time it learns so, as ever.
    inFlight.reserve(SLOT, 500);
    readFor(300, 2);
    expect(expected.allPerOwn()).toBeCloseTo(3, 1);
  });

  test('a few requests too many, as readings come late, do not make others', () => {
    const { inFlight, of, read, clock } = aLoad();
    for (let i = 0; i < 100; i++) {
      const reservations = Array.from({ length: 10 }, () => inFlight.reserve(SLOT, 50));
      read({ running: i % 4 === 0 ? 11 : 10, waiting: 0 });
      clock.advance(1000);
      for (const reservation of reservations) reservation.release();
    }
    read({ running: 0, waiting: 0 });
    expect(of()).toEqual(inFlight.load(SLOT));
  });
});
