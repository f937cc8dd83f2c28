import { expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createBodyBudget, type BodyBudget, type BodyShare } from '../../../src/extproc/body-budget.ts';

type Body = { readonly share: BodyShare; nBytes: number; dropped: boolean };

function aBody(budget: BodyBudget): Body {
  const share: BodyShare = budget.open(() => {
    body.dropped = true;
    share.end();
  });
  const body: Body = { share, nBytes: 0, dropped: false };
  return body;
}

test('exactly the budget is held, and a byte more is taken from the largest', () => {
  const budget = createBodyBudget(100);
  const bodies = [30, 50, 20].map((nBytes) => {
    const body = aBody(budget);
    body.share.add(nBytes);
    return body;
  });
  expect([budget.heldBytes(), bodies.map(({ dropped }) => dropped)]).toEqual([100, [false, false, false]]);
  bodies[2]!.share.add(1);
  expect([budget.heldBytes(), bodies.map(({ dropped }) => dropped)]).toEqual([51, [false, true, false]]);
});

test('whoever makes itself the largest goes itself, and holds nothing afterwards', () => {
  const budget = createBodyBudget(100);
  const [small, large] = [aBody(budget), aBody(budget)];
  small.share.add(40);
  large.share.add(61);
  large.share.add(1000);
  expect([small.dropped, large.dropped, budget.heldBytes()]).toEqual([false, true, 40]);
});

test('no history holds more than the budget, counts wrongly, or drops one that is not the largest', () => {
  const steps = fc.array(fc.tuple(fc.constantFrom('open', 'add', 'add', 'end'), fc.nat(9), fc.nat(60)), {
    maxLength: 60,
  });
  fc.assert(
    fc.property(steps, (plan) => {
      const budget = createBodyBudget(100);
      const bodies: Body[] = [];
      const open = (): Body[] => bodies.filter(({ dropped, nBytes }) => !dropped && nBytes > 0);
      for (const [step, which, nBytes] of plan) {
        const body = bodies[which % bodies.length];
        if (step === 'open') bodies.push(aBody(budget));
        else if (body === undefined || body.dropped) continue;
        else if (step === 'end') {
          body.share.end();
          bodies.splice(bodies.indexOf(body), 1);
        } else {
          const largest = Math.max(body.nBytes + nBytes, ...bodies.filter((b) => !b.dropped).map((b) => b.nBytes));
          const before = open();
          body.nBytes += nBytes;
          body.share.add(nBytes);
          const gone = before.filter(({ dropped }) => dropped);
          if (gone.length > 0) expect(Math.max(...gone.map((b) => b.nBytes))).toBe(largest);
        }
        const held = open().reduce((sum, b) => sum + b.nBytes, 0);
        expect(budget.heldBytes()).toBe(held);
        expect(held).toBeLessThanOrEqual(100);
      }
    }),
  );
});
