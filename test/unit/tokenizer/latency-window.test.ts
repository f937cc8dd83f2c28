import { expect, test } from '@jest/globals';
import { createLatencyWindow } from '../../../src/tokenizer/latency-window.ts';

test('tells nothing of few answers, then what 95 of 100 stay below, of the latest only', () => {
  const window = createLatencyWindow();
  for (let i = 0; i < 19; i++) window.note(1000);
  expect(window.p95Ms()).toBe(null);
  for (let i = 0; i < 200; i++) window.note(i % 10 === 0 ? 40 : 5);
  expect(window.p95Ms()).toBe(40);
  for (let i = 0; i < 200; i++) window.note(i % 100 === 0 ? 40 : 5);
  expect(window.p95Ms()).toBe(5);
});
