import { describe, expect, test } from '@jest/globals';
import { createReflectorState, type ReflectorState } from '../../../src/kubernetes/reflector-state.ts';

const aState = (): ReflectorState<string> =>
  createReflectorState((object) => (object as { metadata: { name: string }; value?: string }).value ?? 'same');

const anObject = (name: string, version: number, given: { value?: string; uid?: string } = {}): object => ({
  metadata: { name, uid: given.uid ?? `uid-${name}`, resourceVersion: String(version) },
  value: given.value ?? `${name}@${version}`,
});
const line = (type: string, object: object): string => JSON.stringify({ type, object });
const bookmark = (version: number, annotations?: object): string =>
  line('BOOKMARK', { kind: 'Pod', metadata: { resourceVersion: String(version), annotations } });
const END = { 'k8s.io/initial-events-end': 'true' };
const aFailure = (cause: Parameters<ReflectorState<string>['failed']>[0]['cause']) =>
  ({ kind: 'failed', cause, message: '', retryAfterMs: null }) as const;

/** Knows a@1 and b@2 at version 10. */
function synced(): ReflectorState<string> {
  const state = aState();
  state.next();
  state.line(line('ADDED', anObject('a', 1)));
  state.line(line('ADDED', anObject('b', 2)));
  expect(state.line(bookmark(10, END))).toEqual({ kind: 'synced', reason: 'start' });
  return state;
}

describe('the first reading', () => {
  test('by watch-list is complete with the marked bookmark, not before', () => {
    const state = aState();
    expect(state.next()).toEqual({ kind: 'watch-list' });
    expect(state.line(line('ADDED', anObject('a', 9)))).toEqual({ kind: 'unchanged' });
    expect(state.line(line('ADDED', anObject('b', 3)))).toEqual({ kind: 'unchanged' });
    expect(state.line(bookmark(9))).toEqual({ kind: 'unchanged' });
    expect([state.isSynced(), state.values()]).toEqual([false, []]);
    expect(state.line(bookmark(10, END))).toEqual({ kind: 'synced', reason: 'start' });
    expect([state.isSynced(), state.values()]).toEqual([true, ['a@9', 'b@3']]);
    expect(state.next()).toEqual({ kind: 'watch', resourceVersion: '10' });
  });

  test('by pages, each asked for with the token of the one before', () => {
    const state = aState();
    state.next();
    state.failed(aFailure('invalid'));
    expect(state.next()).toEqual({ kind: 'list', continueToken: null });
    const page = (names: readonly string[], token?: string): object => ({
      metadata: { resourceVersion: '10', continue: token },
      items: names.map((name) => anObject(name, 1)),
    });
    expect(state.page(page(['a', 'b'], 'more'))).toEqual({ kind: 'unchanged' });
    // A page that failed is asked for again, with what came before it.
    state.failed(aFailure('server_error'));
    expect(state.next()).toEqual({ kind: 'list', continueToken: 'more' });
    expect(state.page(page(['c']))).toEqual({ kind: 'synced', reason: 'start' });
    expect(state.values()).toEqual(['a@1', 'b@1', 'c@1']);
  });

  test('begins anew when the token has expired', () => {
    const state = aState();
    state.next();
    state.failed(aFailure('invalid'));
    state.next();
    state.page({ metadata: { resourceVersion: '10', continue: 'more' }, items: [anObject('gone', 1)] });
    state.failed(aFailure('expired'));
    expect(state.next()).toEqual({ kind: 'list', continueToken: null });
    state.page({ metadata: { resourceVersion: '20' }, items: [anObject('a', 11)] });
    expect(state.values()).toEqual(['a@11']);
  });

  test.each<[string, (state: ReflectorState<string>) => void, string]>([
    ['an end without the mark', (state) => state.ended(), 'list'],
    ['silence', (state) => state.failed(aFailure('timeout')), 'list'],
    ['a reset', (state) => state.failed(aFailure('reset')), 'watch-list'],
    ['403', (state) => state.failed(aFailure('forbidden')), 'watch-list'],
  ])('after %s of the watch-list comes a %s', (_, end, kind) => {
    const state = aState();
    state.next();
    state.line(line('ADDED', anObject('half', 1)));
    end(state);
    expect(state.next()).toMatchObject({ kind });
    if (kind === 'watch-list') state.line(bookmark(5, END));
    else state.page({ metadata: { resourceVersion: '5' }, items: [] });
    // What the broken reading had is not taken for the whole.
    expect(state.values()).toEqual([]);
  });
});

describe('changes', () => {
  test('are added, put in place and taken away', () => {
    const state = synced();
    expect(state.line(line('ADDED', anObject('c', 11)))).toEqual({ kind: 'changed' });
    expect(state.line(line('MODIFIED', anObject('a', 12)))).toEqual({ kind: 'changed' });
    expect(state.line(line('DELETED', anObject('b', 13)))).toEqual({ kind: 'changed' });
    expect(state.values()).toEqual(['a@12', 'c@11']);
    expect(state.next()).toEqual({ kind: 'watch', resourceVersion: '13' });
  });

  test('that leave what is kept as it was are none', () => {
    const state = synced();
    expect(state.line(line('MODIFIED', anObject('a', 11, { value: 'a@1' })))).toEqual({ kind: 'unchanged' });
    expect(state.next()).toEqual({ kind: 'watch', resourceVersion: '11' });
  });

  test('a new object under an old name takes its place, and a late deletion of the old one does not end it', () => {
    const state = synced();
    state.line(line('ADDED', anObject('a', 11, { uid: 'second', value: 'second' })));
    expect(state.line(line('DELETED', anObject('a', 12)))).toEqual({ kind: 'unchanged' });
    expect(state.values()).toEqual(['second', 'b@2']);
  });

  test('the version is taken from every event, bookmarks too', () => {
    const state = synced();
    state.line(bookmark(99));
    expect(state.next()).toEqual({ kind: 'watch', resourceVersion: '99' });
  });
});

describe('doubt', () => {
  test.each<[string, string, string]>([
    ['410', line('ERROR', { code: 410, message: 'too old resource version: 1 (2)' }), 'expired'],
    ['Expired', line('ERROR', { reason: 'Expired' }), 'expired'],
    ['Gone', line('ERROR', { reason: 'Gone' }), 'expired'],
    [
      'a version of the future',
      line('ERROR', { code: 504, details: { causes: [{ reason: 'ResourceVersionTooLarge' }] } }),
      'ahead',
    ],
  ])('%s in the stream: everything is read anew, and what was known stays until then', (_, text, reason) => {
    const state = synced();
    const applied = state.line(text);
    if (applied.kind !== 'failed') throw new Error(applied.kind);
    state.failed(applied);
    expect(state.next()).toEqual({ kind: 'watch-list' });
    expect(state.values()).toEqual(['a@1', 'b@2']);
    state.line(line('ADDED', anObject('b', 2)));
    expect(state.values()).toEqual(['a@1', 'b@2']);
    expect(state.line(bookmark(20, END))).toEqual({ kind: 'synced', reason });
    expect(state.values()).toEqual(['b@2']);
  });

  test('404: everything is read anew when it is back, and what was known stays until then', () => {
    const state = synced();
    state.failed(aFailure('not_found'));
    expect([state.next(), state.values()]).toEqual([{ kind: 'watch-list' }, ['a@1', 'b@2']]);
    expect(state.line(bookmark(20, END))).toEqual({ kind: 'synced', reason: 'missing' });
  });

  test('a version that goes backwards: everything is read anew', () => {
    for (const text of [bookmark(9), line('MODIFIED', anObject('a', 9))]) {
      const state = synced();
      expect(state.line(text)).toMatchObject({
        kind: 'failed',
        message: 'resource version went backwards: 9 after 10',
      });
      expect(state.next()).toEqual({ kind: 'watch-list' });
      expect(state.line(bookmark(5, END))).toEqual({ kind: 'synced', reason: 'backwards' });
    }
  });

  test.each<[string, string]>([
    ['another error', line('ERROR', { code: 500, message: 'etcd leader changed' })],
    ['no JSON', '{"type":"ADDED"'],
    ['no object', '"ADDED"'],
    ['no type', '{"object":{}}'],
    ['an unknown type', line('RENAMED', anObject('a', 11))],
    ['no uid', line('ADDED', { metadata: { name: 'c', resourceVersion: '11' } })],
    ['no version', line('BOOKMARK', { metadata: {} })],
  ])('%s: a new watch from the same version', (_, text) => {
    const state = synced();
    const applied = state.line(text);
    if (applied.kind !== 'failed') throw new Error(applied.kind);
    state.failed(applied);
    expect(state.next()).toEqual({ kind: 'watch', resourceVersion: '10' });
    expect(state.values()).toEqual(['a@1', 'b@2']);
  });

  test.each(['reset', 'unreachable', 'timeout', 'forbidden', 'unauthorized', 'server_error', 'throttled'] as const)(
    'a watch that ends with %s goes on from the same version',
    (cause) => {
      const state = synced();
      state.failed(aFailure(cause));
      expect(state.next()).toEqual({ kind: 'watch', resourceVersion: '10' });
    },
  );

  test.each([[null], [{}], [{ items: [] }], [{ metadata: { resourceVersion: '1' }, items: [{}] }]])(
    'a list that is none is refused: %j',
    (json) => {
      const state = aState();
      state.next();
      state.failed(aFailure('invalid'));
      state.next();
      expect(state.page(json)).toMatchObject({ kind: 'failed', cause: 'bad_answer' });
      expect(state.isSynced()).toBe(false);
    },
  );
});

test('equal objects stay the same ones through a new reading', () => {
  const state = createReflectorState((object) => ({ name: (object as { metadata: { name: string } }).metadata.name }));
  state.next();
  state.line(line('ADDED', anObject('a', 1)));
  state.line(bookmark(10, END));
  const [before] = state.values();
  state.expire('periodic');
  state.next();
  state.line(line('ADDED', anObject('a', 7)));
  state.line(bookmark(20, END));
  expect(state.values()[0]).toBe(before);
});
