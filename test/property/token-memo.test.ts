/** The memo against random histories of conversations: what it claims, and what it says of its own accuracy. */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createTokenMemo } from '../../src/tokenizer/token-memo.ts';
import {
  BLOCK,
  commonBlocks,
  createConversations,
  TEMPLATES,
  type Template,
  type Turn,
} from '../support/conversations.ts';

const conversations = createConversations();

/** Few words, so that conversations often begin alike and then do not. */
const word = fc.constantFrom('why ', 'because ', 'the ', 'x', 'a longer word than the others ');
const content = fc.array(word, { maxLength: 12 }).map((words) => words.join(''));
const turn = fc.record({ role: fc.constantFrom('system', 'user', 'assistant'), content }) as fc.Arbitrary<Turn>;
const start = fc.array(turn, { minLength: 1, maxLength: 5 });

type Step =
  | { readonly kind: 'start'; readonly turns: readonly Turn[] }
  /** An earlier conversation goes on from one of its turns, after its whole answer or with another. */
  | { readonly kind: 'continue'; readonly of: number; readonly keep: number; readonly turns: readonly Turn[] };

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant('start' as const), turns: start }),
  fc.record({
    kind: fc.constant('continue' as const),
    of: fc.nat(),
    keep: fc.nat(8),
    turns: fc.array(turn, { minLength: 1, maxLength: 2 }),
  }),
);
const template: fc.Arbitrary<Template> = fc.constantFrom(...Object.values(TEMPLATES));

function* requests(steps: readonly Step[]): Generator<readonly Turn[]> {
  const seen: (readonly Turn[])[] = [];
  for (const one of steps) {
    const before = one.kind === 'start' ? [] : (seen[one.of % Math.max(1, seen.length)] ?? []).slice(0, one.keep);
    const turns = [...before, ...one.turns];
    seen.push(turns);
    yield turns;
  }
}

describe('over any history', () => {
  test('the published accuracy is the share of claimed blocks that the exact answers had', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), template, fc.nat(40), (steps, of, lateBy) => {
        // Nothing is believed or not here: an accuracy of 0 is enough, so that the window is never begun anew.
        const memo = createTokenMemo({ maxBytes: 1 << 20, minAccuracy: 0 });
        let nClaimed = 0;
        let nWrong = 0;
        const pending: (() => void)[] = [];
        for (const turns of requests(steps)) {
          const keys = conversations.keys(turns);
          const answer = conversations.answer(of, turns);
          const claim = memo.claim('m', keys, BLOCK);
          // Exact answers come late, and other requests in between.
          pending.push(() => {
            const blocks = (claim?.hashes.length ?? 0) / 2;
            nClaimed += blocks;
            nWrong += blocks - (claim === null ? 0 : commonBlocks(claim.hashes, answer.hashes));
            memo.learn('m', keys, BLOCK, answer, claim);
          });
          if (pending.length > lateBy % 4) pending.shift()!();
        }
        for (const learn of pending) learn();
        const published = memo.accuracy().get('m')?.accuracy ?? 1;
        expect(published).toBeCloseTo(nClaimed === 0 ? 1 : 1 - nWrong / nClaimed, 12);
      }),
      { numRuns: 200 },
    );
  });

  test('what has just been learnt of a prompt is not contradicted', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), template, (steps, of) => {
        const memo = createTokenMemo({ maxBytes: 1 << 20, minAccuracy: 0 });
        const asked = new Set<string>();
        for (const turns of requests(steps)) {
          const keys = conversations.keys(turns);
          const claim = memo.claim('m', keys, BLOCK);
          const answer = conversations.answer(of, turns);
          memo.learn('m', keys, BLOCK, answer, claim);
          // What was asked once is known, however much came in between.
          if (asked.has(JSON.stringify(turns))) expect(claim).not.toBe(null);
          asked.add(JSON.stringify(turns));
          const again = memo.claim('m', keys, BLOCK);
          if (again !== null) expect(commonBlocks(again.hashes, answer.hashes)).toBe(again.hashes.length / 2);
        }
      }),
      { numRuns: 200 },
    );
  });

  test('below the threshold nothing is claimed to be believed', () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 40, maxLength: 120 }), template, (steps, of) => {
        const memo = createTokenMemo({ maxBytes: 1 << 20, minAccuracy: 0.9 });
        const window: { claimed: number; wrong: number }[] = [];
        for (const turns of requests(steps)) {
          const keys = conversations.keys(turns);
          const claim = memo.claim('m', keys, BLOCK);
          if (window.length >= 32 && claim?.believed === true) {
            const nClaimed = window.reduce((sum, { claimed }) => sum + claimed, 0);
            const nWrong = window.reduce((sum, { wrong }) => sum + wrong, 0);
            expect(1 - nWrong / nClaimed).toBeGreaterThanOrEqual(0.9);
          }
          const epoch = memo.accuracy().get('m')?.epoch ?? 0;
          const verdict = memo.learn('m', keys, BLOCK, conversations.answer(of, turns), claim);
          if (verdict.claimedBlocks > 0) window.push({ claimed: verdict.claimedBlocks, wrong: verdict.wrongBlocks });
          if ((memo.accuracy().get('m')?.epoch ?? 0) !== epoch) window.length = 0;
        }
      }),
      { numRuns: 100 },
    );
  });
});
