import { expect, test } from '@jest/globals';
import { createReadiness } from '../../../src/admin/readiness.ts';

test('nothing is ready before every condition has said ok', () => {
  const readiness = createReadiness(['endpoints', 'grpc']);
  expect(readiness.snapshot()).toEqual({ ready: false, conditions: { endpoints: 'starting', grpc: 'starting' } });
  readiness.set('endpoints', 'ok');
  expect(readiness.ready()).toBe(false);
  readiness.set('grpc', 'ok');
  expect(readiness.snapshot()).toEqual({ ready: true, conditions: { endpoints: 'ok', grpc: 'ok' } });
});

test('one condition that fails takes readiness away and says why', () => {
  const readiness = createReadiness(['grpc']);
  readiness.set('grpc', 'ok');
  readiness.set('grpc', 'draining');
  expect(readiness.snapshot()).toEqual({ ready: false, conditions: { grpc: 'draining' } });
});

test('listeners hear every change of a condition, nothing twice, and no more after unsubscribing', () => {
  const readiness = createReadiness(['a', 'b']);
  const heard: boolean[] = [];
  const unsubscribe = readiness.onChange((ready) => heard.push(ready));
  readiness.set('a', 'ok');
  readiness.set('a', 'ok');
  readiness.set('b', 'ok');
  readiness.set('b', 'gone');
  expect(heard).toEqual([false, true, false]);
  unsubscribe();
  readiness.set('b', 'ok');
  expect(heard).toHaveLength(3);
});

test('a condition nobody declared is a bug and says so', () => {
  expect(() => createReadiness(['a']).set('b', 'ok')).toThrow('unknown readiness condition b, expected one of a');
});

test('what still serves with a fault is ready, and the fault is named', () => {
  const readiness = createReadiness(['endpoints']);
  readiness.set('endpoints', 'ok, but not the newest list: endpoints.yaml: expected a list');
  expect(readiness.snapshot()).toEqual({
    ready: true,
    conditions: { endpoints: 'ok, but not the newest list: endpoints.yaml: expected a list' },
  });
});
