import { expect, test } from '@jest/globals';
import { explain } from '../../../src/admin/explain.ts';
import type { Picker } from '../../../src/endpoint-picker.ts';

const NEVER_ASKED = {
  evaluate: () => Promise.reject(new Error('asked')),
} as unknown as Picker;

/** Parsers take what printers do not. */
const DEEP: unknown = JSON.parse(`${'['.repeat(50_000)}${']'.repeat(50_000)}`);

test.each<[string, unknown, RegExp]>([
  ['a list', [], /^expected an object \{path, headers, body\}, got a list$/],
  ['a path that is none', { path: 'v1' }, /^path must be a string that starts with "\/"$/],
  ['a list of headers', { headers: ['a'] }, /^headers must be an object of strings$/],
  [
    'a header of another type',
    { headers: { a: { b: 1 } } },
    /^headers must be an object of strings, got object for "a"$/,
  ],
  ['a body too deep to print', { body: DEEP }, /^body is nested too deep/],
])('%s is 400 and says what was expected', async (_, input, error) => {
  expect(await explain(NEVER_ASKED, input)).toEqual({ status: 400, body: { error: expect.stringMatching(error) } });
});
