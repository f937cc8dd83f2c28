import { describe, expect, test } from '@jest/globals';
import { createCallSlots } from '../../../src/tokenizer/call-slots.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const OPTIONS = { maxInFlight: 2, maxQueued: 2, queueMs: 50 };

/** Whether a call was admitted, refused, or still waits. */
function watched(entering: boolean | Promise<boolean>): () => boolean | null {
  let admitted: boolean | null = null;
  void Promise.resolve(entering).then((answer) => (admitted = answer));
  return () => admitted;
}
const turn = async (): Promise<void> => {
  for (let i = 0; i < 5; i++) await Promise.resolve();
};

describe('slots', () => {
  test('are taken at once while there are any, then in the order of coming', async () => {
    const slots = createCallSlots(createFakeClock(), OPTIONS);
    const calls = Array.from({ length: 5 }, () => watched(slots.enter('awaited')));
    await turn();
    expect(calls.map((call) => call())).toEqual([true, true, null, null, false]);
    expect(slots.nTaken).toBe(4);
    expect(slots.canEnter('awaited')).toBe(false);
    slots.leave();
    await turn();
    expect(calls[2]!()).toBe(true);
    expect(calls[3]!()).toBe(null);
    slots.leave();
    slots.leave();
    slots.leave();
    await turn();
    expect(calls[3]!()).toBe(true);
    expect(slots.nTaken).toBe(0);
  });

  test('are waited for only for a while', async () => {
    const clock = createFakeClock();
    const slots = createCallSlots(clock, OPTIONS);
    for (let i = 0; i < 2; i++) await slots.enter('awaited');
    const waiting = watched(slots.enter('awaited'));
    clock.advance(49);
    await turn();
    expect(waiting()).toBe(null);
    clock.advance(1);
    await turn();
    expect(waiting()).toBe(false);
    slots.leave();
    expect(slots.nTaken).toBe(1);
  });

  test('are only half for calls nobody waits for, and those do not queue', async () => {
    const slots = createCallSlots(createFakeClock(), OPTIONS);
    expect(await slots.enter('background')).toBe(true);
    expect(slots.canEnter('background')).toBe(false);
    expect(await slots.enter('background')).toBe(false);
    expect(await slots.enter('awaited')).toBe(true);
  });
});
