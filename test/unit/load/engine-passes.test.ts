import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { addToPass, joinedPass, learntBudget, passAt, type PassMember } from '../../../src/load/engine-passes.ts';
import { createInFlight } from '../../../src/load/in-flight.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const msOf = (tokens: number): number => 10 + tokens;
const waitingPrompt = (sentMs: number, uncachedTokens: number) => ({ sentMs, uncachedTokens, computed: false });

function budgetAfter(passes: readonly (readonly PassMember[])[]): number {
  let budget = 0;
  for (const members of passes) {
    const pass = passAt(null, 0, 1);
    for (const member of members) addToPass(pass, member);
    budget = learntBudget(budget, pass);
  }
  return budget;
}

describe('the pass a new prompt would begin in', () => {
  test('takes all that were sent while the one before is under way', () => {
    const waiting = [waitingPrompt(0, 5000), waitingPrompt(1000, 2000), waitingPrompt(1500, 3000)];
    expect(joinedPass(waiting, 0, 10000, 0, 2000, msOf)).toEqual({ passPrompts: 2, passRoomTokens: 5000 });
  });

  test('is one after the pass under way, though all in that one were sent together', () => {
    const waiting = [waitingPrompt(0, 5000), waitingPrompt(0, 2000)];
    expect(joinedPass(waiting, 0, 10000, 0, 10, msOf)).toEqual({ passPrompts: 0, passRoomTokens: 10000 });
  });

  test('ends the prompt that did not fit into the pass before, and those after it', () => {
    const waiting = [waitingPrompt(0, 9000), waitingPrompt(50, 7000), waitingPrompt(60, 6000), waitingPrompt(70, 1000)];
    expect(joinedPass(waiting, 0, 10000, 0, 100, msOf)).toEqual({ passPrompts: 2, passRoomTokens: 6000 });
  });

  test('shares the end of a prompt longer than a pass, as long as that is to come', () => {
    const waiting = [waitingPrompt(0, 25000)];
    expect(joinedPass(waiting, 0, 10000, 0, 5000, msOf)).toEqual({ passPrompts: 1, passRoomTokens: 5000 });
    expect(joinedPass(waiting, 0, 10000, 0, 24000, msOf)).toEqual({ passPrompts: 0, passRoomTokens: 10000 });
  });

  test('passes over computed prompts, and is nobody else’s where no pass has shown what it takes', () => {
    const waiting = [waitingPrompt(0, 5000), { ...waitingPrompt(500, 3000), computed: true }, waitingPrompt(600, 1000)];
    expect(joinedPass(waiting, 0, 10000, 0, 1000, msOf)).toEqual({ passPrompts: 1, passRoomTokens: 9000 });
    expect(joinedPass(waiting, 0, 1000, 0, 1000, msOf)).toEqual({ passPrompts: 0, passRoomTokens: 0 });
  });

  test('leaves out what comes before the head', () => {
    const waiting = [waitingPrompt(0, 9000), waitingPrompt(0, 3000)];
    expect(joinedPass(waiting, 1, 10000, 0, 0, msOf)).toEqual({ passPrompts: 1, passRoomTokens: 7000 });
  });

  test('costs no more behind a hundred thousand prompts than behind a few hundred', () => {
    let nRead = 0;
    const counted = {
      ...waitingPrompt(0, 1000),
      get computed() {
        nRead += 1;
        return false;
      },
    };
    joinedPass(new Array(100_000).fill(counted), 0, 10000, 0, 0, msOf);
    expect(nRead).toBeLessThanOrEqual(256);
  });
});

describe('what a pass takes', () => {
  test('is shown by prompts that come with another; the first one may have begun before', () => {
    const alone = [{ nth: 0, tokens: 5000 }];
    const members = [
      { nth: 3, tokens: 200 },
      { nth: 1, tokens: 9000 },
      { nth: 2, tokens: 400 },
    ];
    expect(budgetAfter([alone])).toBe(0);
    expect(budgetAfter([alone, members])).toBe(600);
  });

  test('is never more than passes in order, in chunks, have taken', () => {
    const prompts = fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 60 });
    fc.assert(
      fc.property(prompts, fc.integer({ min: 10, max: 2000 }), (lengths, budget) => {
        const passes: PassMember[][] = [];
        let sent = 0;
        lengths.forEach((tokens, nth) => {
          sent += tokens;
          (passes[Math.ceil(sent / budget)] ??= []).push({ nth, tokens });
        });
        expect(budgetAfter(passes.filter((members) => members !== undefined))).toBeLessThanOrEqual(budget);
      }),
    );
  });

  test('is learnt from first tokens that come together, and says who waits for the same pass', () => {
    const clock = createFakeClock();
    const inFlight = createInFlight(clock, 1000);
    const together = [inFlight.reserve(0, 100), inFlight.reserve(0, 4000), inFlight.reserve(0, 3000)];
    clock.advance(7100);
    for (const request of together) request.firstByte();
    for (const request of together) request.release();
    expect(inFlight.load(1)).toMatchObject({ passPrompts: 0 });
    inFlight.reserve(1, 500);
    clock.advance(10);
    inFlight.reserve(1, 200);
    inFlight.reserve(1, 100);
    expect(inFlight.load(1)).toMatchObject({ passPrompts: 2, passRoomTokens: 6700 });
  });
});
