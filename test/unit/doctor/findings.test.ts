import { describe, expect, test } from '@jest/globals';
import { readFileSync } from 'node:fs';
import type { Observed } from '../../../src/doctor/event-checks.ts';
import { observedFindings } from '../../../src/doctor/event-findings.ts';
import { compareTokens, type NamedTokens } from '../../../src/doctor/tokenizer-checks.ts';
import { createKvEventDecoder } from '../../../src/kvevents/decode.ts';
import { wireFormOf } from '../../../src/kvevents/wire-form.ts';

function reading(
  name: string,
  chat: readonly number[] | null,
  completions: readonly number[] | null = null,
): NamedTokens {
  const ids = (list: readonly number[] | null): Uint32Array | null => (list === null ? null : Uint32Array.from(list));
  return { name, tokens: { chat: ids(chat), completions: ids(completions) } };
}

describe('tokens are compared', () => {
  const differing = (all: readonly NamedTokens[]): string[] => [...compareTokens(all).keys()];

  test.each<[string, readonly NamedTokens[], readonly string[]]>([
    ['nobody', [], []],
    ['one alone', [reading('a', [1, 2])], []],
    ['all alike', [reading('a', [1, 2]), reading('b', [1, 2]), reading('c', [1, 2])], []],
    ['the first of three', [reading('a', [1, 3]), reading('b', [1, 2]), reading('c', [1, 2])], ['a']],
    ['the second of two', [reading('a', [1, 2]), reading('b', [1, 2, 3])], ['b']],
    ['one without tokens is no other', [reading('a', [1, 2]), reading('b', null)], []],
    ['texts alone', [reading('a', [1], [5]), reading('b', [1], [6]), reading('c', [1], [6])], ['a']],
  ])('%s', (_, all, names) => {
    expect(differing(all)).toEqual(names);
  });

  test('what is said names counts and the place, and no token', () => {
    const finding = compareTokens([reading('a', [101, 102, 103]), reading('b', [101, 777])]).get('b');
    expect(finding).toMatchObject({
      status: 'problem',
      text: 'reads chats as other tokens than a: 2 for 3, the first other one at 1',
    });
  });

  test('one that only stops earlier differs from there on', () => {
    expect(compareTokens([reading('a', [1, 2, 3]), reading('b', [1, 2])]).get('b')?.text).toMatch(/ at 2$/);
  });
});

describe('what was seen of a publisher', () => {
  const observed = (seen: Partial<Observed>): Observed => ({
    nBatches: 1,
    nLive: 1,
    nStored: 1,
    refused: new Map(),
    blockSizes: new Set([16]),
    forms: new Set(['maps, hashes as integers']),
    otherGroups: new Set(),
    extraKeys: 'told',
    hasNamelessAdapters: false,
    hasSalt: () => false,
    ...seen,
  });
  const complaints = (seen: Partial<Observed>, metrics: number | null = 16): string[] =>
    observedFindings(observed(seen), metrics)
      .filter(({ status }) => status !== 'ok')
      .map(({ check, text }) => `${check}: ${text}`);

  test.each<[string, Partial<Observed>, number | null, readonly string[]]>([
    ['all in order', {}, 16, []],
    ['metrics that do not say', {}, null, []],
    ['another block size than in metrics', {}, 32, ['blocks: announces blocks of 16 tokens, its metrics say 32']],
    ['two block sizes', { blockSizes: new Set([32, 16]) }, 16, ['blocks: announces blocks of 16 and 32 tokens']],
    [
      'sliding windows',
      { otherGroups: new Set(['sliding_window']) },
      16,
      ['blocks: has KV-cache groups besides full attention: sliding_window'],
    ],
    [
      'no salts',
      { extraKeys: 'not told' },
      16,
      ['salts: events do not tell salts, images and adapters (vLLM before 0.17)'],
    ],
    [
      'numbered adapters',
      { hasNamelessAdapters: true },
      16,
      ['salts: events tell adapters by number, not by name (an older vLLM)'],
    ],
    ['batches without stores', { nStored: 0, blockSizes: new Set() }, 16, []],
    ['refused events', { refused: new Map([['bad_hash', 2]]) }, 16, ['events: not all is understood: bad_hash (2)']],
  ])('%s', (_, seen, metrics, said) => {
    expect(complaints(seen, metrics)).toEqual(said);
  });
});

describe('the form of a payload', () => {
  const { vectors } = JSON.parse(
    readFileSync(new URL('../../fixtures/kv-events/vectors.json', import.meta.url), 'utf8'),
  ) as { vectors: { name: string; hex: string; expect: unknown }[] };
  test('is found, or not, in everything the decoder takes, without a throw', () => {
    const forms = vectors
      .filter((vector) => vector.expect !== null)
      .map(({ hex }) => {
        const payload = Buffer.from(hex, 'hex');
        createKvEventDecoder().decode(payload);
        const form = wireFormOf(payload);
        return form === null ? 'none' : `${form.events} ${form.hashes}`;
      });
    expect(new Set(forms)).toEqual(new Set(['none', 'arrays integers', 'arrays bytes', 'maps integers', 'maps bytes']));
  });
});
