import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createOutputPredictor } from '../../../src/load/output-predictor.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

function aPredictor() {
  const clock = createFakeClock();
  return { clock, ...createOutputPredictor(clock, { windowMs: 10_000 }) };
}

describe('how long an answer will be', () => {
  test('nothing is said of a model before its first answer', () => {
    const { observe, predict } = aPredictor();
    observe('a', 100, 50);
    expect(predict('b', 100)).toBeNull();
    expect(predict('a', 100)).toBe(50);
  });

  test('prompts of different lengths have answers of their own, once there are enough', () => {
    const { observe, predict } = aPredictor();
    for (let i = 0; i < 200; i++) {
      observe('m', 100 + (i % 20), 20);
      observe('m', 9000 + i, 800);
    }
    expect(predict('m', 110)! / 20).toBeLessThan(1.6);
    expect(predict('m', 9100)! / 800).toBeGreaterThan(0.95);
  });

  test('a length never seen gets the mean of the model, one with a single answer leans on it', () => {
    const { observe, predict } = aPredictor();
    for (let i = 0; i < 100; i++) observe('m', 100, 100);
    expect(predict('m', 1_000_000)).toBeCloseTo(100, 6);
    observe('m', 1_000_000, 2000);
    const leaning = predict('m', 1_000_000)!;
    expect(leaning).toBeGreaterThan(200);
    expect(leaning).toBeLessThan(1000);
  });

  test('old answers are forgotten, step by step and after any pause', () => {
    const { clock, observe, predict } = aPredictor();
    for (let i = 0; i < 100; i++) observe('m', 100, 1000);
    clock.advance(6_000);
    for (let i = 0; i < 100; i++) observe('m', 100, 10);
    expect(predict('m', 100)).toBeCloseTo(505, 0);
    clock.advance(6_000);
    expect(predict('m', 100)).toBe(10);
    clock.advance(1e9);
    expect(predict('m', 100)).toBeNull();
  });

  test('what is no number is not learnt, and models cannot fill the memory', () => {
    const { observe, predict } = aPredictor();
    for (const [prompt, output] of [
      [NaN, 5],
      [5, NaN],
      [-1, 5],
      [5, -1],
      [Infinity, 5],
    ] as const)
      observe('m', prompt, output);
    expect(predict('m', 5)).toBeNull();
    for (let i = 0; i < 1000; i++) observe(`model ${i}`, 5, 5);
    expect(predict('model 999', 5)).toBeNull();
  });

  test('a prediction lies within what was observed', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(2_000_000), fc.nat(100_000), fc.nat(3_000)), { minLength: 1, maxLength: 100 }),
        fc.nat(2_000_000),
        (answers, prompt) => {
          const { clock, observe, predict } = aPredictor();
          for (const [promptTokens, outputTokens, pauseMs] of answers) {
            clock.advance(pauseMs);
            observe('m', promptTokens, outputTokens);
          }
          const outputs = answers.map(([, output]) => output);
          expect(predict('m', prompt)).toBeGreaterThanOrEqual(Math.min(...outputs) - 1e-6);
          expect(predict('m', prompt)).toBeLessThanOrEqual(Math.max(...outputs) + 1e-6);
        },
      ),
    );
  });
});
