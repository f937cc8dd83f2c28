import { describe, expect, test } from '@jest/globals';
import type { BlockHashes } from '../../../src/prefix/block-hash.ts';
import { createTokenMemo, type MemoClaim, type TokenMemo } from '../../../src/tokenizer/token-memo.ts';
import {
  BLOCK,
  commonBlocks,
  createConversations,
  TEMPLATES,
  type Template,
  type Turn,
} from '../../support/conversations.ts';

const conversations = createConversations();
const user = (content: string): Turn => ({ role: 'user', content });
const assistant = (content: string): Turn => ({ role: 'assistant', content });
const system: Turn = {
  role: 'system',
  content: 'You are a helpful assistant, and you answer in one sentence only. '.repeat(4),
};

function ask(memo: TokenMemo, template: Template, turns: readonly Turn[], tools: readonly string[] = []) {
  const keys = conversations.keys(turns, tools);
  const answer = conversations.answer(template, turns, tools);
  const claim = memo.claim('m', keys, BLOCK);
  const verdict = memo.learn('m', keys, BLOCK, answer, claim);
  return { claim, answer, verdict, nClaimed: (claim?.hashes.length ?? 0) / 2, nBlocks: answer.hashes.length / 2 };
}

/** A conversation of so many turns of the user, asked turn by turn. */
function converse(memo: TokenMemo, template: Template, name: string, nTurns: number, tools: readonly string[] = []) {
  const turns: Turn[] = [system];
  const asked: ReturnType<typeof ask>[] = [];
  for (let i = 0; i < nTurns; i++) {
    turns.push(user(`question ${i} of ${name}: ${'why is that so, and what follows? '.repeat(3)}`));
    asked.push(ask(memo, template, turns, tools));
    turns.push(assistant(`answer ${i} to ${name}: ${'because it is. '.repeat(5)}`));
  }
  return asked;
}

describe('the memo', () => {
  test('knows nothing of what it has not seen', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    expect(memo.claim('m', conversations.keys([user('a')]), BLOCK)).toBe(null);
  });

  test('knows the same prompt whole, and says how long it is', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    const turns = [system, user('a question')];
    const { answer } = ask(memo, TEMPLATES.appending, turns);
    expect(ask(memo, TEMPLATES.appending, turns).claim).toMatchObject({
      hashes: answer.hashes,
      promptTokens: answer.nTokens,
      believed: true,
    });
  });

  test('knows of the next turn all that the last one was', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    const asked = converse(memo, TEMPLATES.appending, 'one', 4);
    // A token may reach over the end of a prompt, so its last block may be another in the next turn.
    for (let turn = 1; turn < 4; turn++) {
      expect(asked[turn]!.nClaimed).toBeGreaterThanOrEqual(asked[turn - 1]!.nBlocks - 1);
      expect(asked[turn]!.verdict.wrongBlocks).toBeLessThanOrEqual(1);
    }
    expect(memo.accuracy().get('m')!.believed).toBe(true);
    const last = asked[3]!;
    expect(Math.abs(last.claim!.promptTokens / last.answer.nTokens - 1)).toBeLessThan(0.1);
  });

  test('knows a system prompt that conversations share, and not what comes after it', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    for (const name of ['one', 'two', 'three']) ask(memo, TEMPLATES.appending, [system, user(`${name} asks`)]);
    const { nClaimed, verdict, nBlocks } = ask(memo, TEMPLATES.appending, [system, user('four asks')]);
    expect(verdict.wrongBlocks).toBe(0);
    expect(nClaimed).toBeGreaterThan(nBlocks * 0.8);
  });

  test('is cautious where a conversation forks that was seen going one way only', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    converse(memo, TEMPLATES.appending, 'one', 2);
    const fork = [
      system,
      user('question 0 of one: ' + 'why is that so, and what follows? '.repeat(3)),
      assistant('no'),
    ];
    const { verdict, claim } = ask(memo, TEMPLATES.appending, [...fork, user('really?')]);
    expect(claim).not.toBe(null);
    expect(verdict.wrongBlocks).toBe(0);
  });

  test.each<[string, Template, readonly string[]]>([
    ['opens an answer otherwise than history has it', TEMPLATES.thinking, []],
    ['puts tools before the system prompt', TEMPLATES.appending, ['a tool '.repeat(30)]],
  ])('is right nearly always with a template that %s', (_, template, tools) => {
    const memo = createTokenMemo({ maxBytes: 1 << 22 });
    for (let n = 0; n < 20; n++) converse(memo, template, `conversation ${n}`, 5, tools);
    const late = Array.from({ length: 5 }, (_one, n) => converse(memo, template, `late ${n}`, 5, tools)).flat();
    const claimed = late.filter(({ nClaimed }) => nClaimed > 0);
    expect(claimed).toHaveLength(25);
    expect(claimed.filter(({ verdict }) => verdict.wrongBlocks > 0).length).toBeLessThanOrEqual(5);
    expect(memo.accuracy().get('m')!.accuracy).toBeGreaterThan(0.97);
  });

  test('is not believed where the template rewrites what was', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 22 });
    for (let n = 0; n < 40; n++) converse(memo, TEMPLATES.counting, `conversation ${n}`, 4);
    expect(memo.accuracy().get('m')).toMatchObject({ believed: false });
    const asked = converse(memo, TEMPLATES.counting, 'another', 4);
    for (const { claim } of asked) expect(claim?.believed ?? false).toBe(false);
  });

  test('recovers when the template changes for good', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 22 });
    const dated =
      (date: string): Template =>
      (turns, tools) =>
        `${date}${TEMPLATES.appending(turns, tools)}`;
    for (let n = 0; n < 15; n++) converse(memo, dated('Monday '), `m ${n}`, 4);
    // The same conversations go on the next day: what was known of them is wrong now.
    for (let n = 0; n < 15; n++) converse(memo, dated('Tuesday'), `m ${n}`, 5);
    for (let n = 0; n < 15; n++) converse(memo, dated('Tuesday'), `t ${n}`, 4);
    const asked = converse(memo, dated('Tuesday'), 'at last', 4);
    expect(memo.accuracy().get('m')).toMatchObject({ believed: true });
    expect(asked[3]!.nClaimed).toBeGreaterThanOrEqual(asked[2]!.nBlocks - 1);
    expect(memo.accuracy().get('m')!.epoch).toBe(1);
  });

  test('keeps block sizes apart, and each of them', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    const keys = conversations.keys([system]);
    const { hashes, nTokens } = ask(memo, TEMPLATES.appending, [system]).answer;
    expect(memo.claim('m', keys, 2 * BLOCK)).toBe(null);
    const larger = { nTokens, hashes: hashes.slice(0, 2 * Math.floor(hashes.length / 4)) as BlockHashes };
    memo.learn('m', keys, 2 * BLOCK, larger, null);
    expect(memo.claim('m', keys, 2 * BLOCK)).toMatchObject({ hashes: larger.hashes, promptTokens: nTokens });
    expect(memo.claim('m', keys, BLOCK)).toMatchObject({ hashes, promptTokens: nTokens });
  });
});

describe('the length of a prompt known in part', () => {
  /** As gpt-oss has them: some hundred tokens before the first word. */
  const wordy: Template = (turns, tools) =>
    `${Array.from({ length: 120 }, (_, i) => `rule ${i}`).join('. ')}\n${TEMPLATES.appending(turns, tools)}`;

  test('is that of its text, however short the prompt was from which its beginning is known', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    const first = ask(memo, wordy, [user('hi')]);
    expect(first.answer.nTokens).toBeGreaterThan(100);
    const pasted = Array.from({ length: 3000 }, (_, i) => `line ${i} of it`).join(', ');
    const turns = [user('hi'), assistant('hello'), user(pasted)];
    const { claim, answer } = ask(memo, wordy, turns);
    expect(claim!.promptTokens / answer.nTokens).toBeGreaterThan(0.4);
    expect(claim!.promptTokens / answer.nTokens).toBeLessThan(1.5);
  });

  test('is told from its bytes as a text is dense, though most prompts are a template with a few words', () => {
    const memo = createTokenMemo({ maxBytes: 1 << 20 });
    for (let i = 0; i < 200; i++) ask(memo, wordy, [user(`hi ${i}`)]);
    expect(memo.tokensPerByte('m')).toBeLessThan(0.75);
    const pasted = [user('This is an ordinary text, as people write it. '.repeat(1000))];
    const perByte = conversations.answer(wordy, pasted).nTokens / conversations.keys(pasted).nBytes;
    for (let i = 0; i < 3; i++) ask(memo, wordy, pasted);
    expect(memo.tokensPerByte('m') / perByte).toBeGreaterThan(0.8);
    expect(memo.tokensPerByte('m') / perByte).toBeLessThan(1.25);
  });
});

describe('its memory', () => {
  test('stays within its bound, and what is used is kept', () => {
    const memo = createTokenMemo({ maxBytes: 64 * 1024 });
    const favourite = [system, user('asked again and again')];
    for (let n = 0; n < 500; n++) {
      ask(memo, TEMPLATES.appending, [system, user(`question ${n} `.repeat(20))]);
      const again = ask(memo, TEMPLATES.appending, favourite);
      if (n > 0) expect(again.nClaimed).toBe(again.nBlocks);
      expect(memo.stats().nBytes).toBeLessThanOrEqual(64 * 1024);
    }
    expect(memo.stats().nEvicted).toBeGreaterThan(100);
  });

  test('of nothing keeps nothing', () => {
    const memo = createTokenMemo({ maxBytes: 0 });
    converse(memo, TEMPLATES.appending, 'one', 3);
    expect(memo.stats()).toMatchObject({ nEntries: 0, nBytes: 0 });
  });

  test('holds the blocks of a conversation once, however many turns it has', () => {
    const bytesAfter = (nTurns: number): number => {
      const memo = createTokenMemo({ maxBytes: 1 << 24 });
      converse(memo, TEMPLATES.appending, 'one', nTurns);
      const { nBytes, nEntries } = memo.stats();
      return nBytes - 300 * nEntries;
    };
    // Linear in the length of the last prompt; a chain per turn would grow with its square.
    expect(bytesAfter(20) / bytesAfter(10)).toBeLessThan(2.2);
  });
});

test('a claim is a prefix of the exact chain, or is counted as wrong by exactly the blocks that differ', () => {
  const memo = createTokenMemo({ maxBytes: 1 << 20 });
  const check = (claim: MemoClaim | null, { answer, verdict }: ReturnType<typeof ask>): void => {
    const nClaimed = (claim?.hashes.length ?? 0) / 2;
    const nRight = claim === null ? 0 : commonBlocks(claim.hashes, answer.hashes);
    expect(verdict).toEqual({ claimedBlocks: nClaimed, wrongBlocks: nClaimed - nRight });
  };
  for (const template of [TEMPLATES.appending, TEMPLATES.counting, TEMPLATES.toolsLast]) {
    for (const asked of converse(memo, template, 'one', 5, ['tool'])) check(asked.claim, asked);
  }
});
