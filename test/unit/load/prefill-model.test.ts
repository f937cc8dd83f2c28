import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createPrefillModels } from '../../../src/load/prefill-model.ts';

describe('what a prompt costs an engine', () => {
  test('before anything is learnt it is the assumption', () => {
    const { setupMs, msPerToken } = createPrefillModels(0.125).of(3);
    expect(setupMs).toBeCloseTo(0, 6);
    expect(msPerToken).toBeCloseTo(0.125, 9);
  });

  test('a fixed part and a part per token are told apart', () => {
    const models = createPrefillModels(0.125);
    for (let i = 0; i < 2000; i++) models.learn(0, 100 + (i % 40) * 200, 16 + (100 + (i % 40) * 200) * 0.02);
    const { setupMs, msPerToken } = models.of(0);
    expect(setupMs).toBeCloseTo(16, 0);
    expect(msPerToken).toBeCloseTo(0.02, 3);
  });

  test('a new endpoint takes over what the fleet has shown', () => {
    const models = createPrefillModels(1);
    for (let i = 0; i < 5000; i++) models.learn(i % 4, 1000 + (i % 7) * 500, (1000 + (i % 7) * 500) * 0.1);
    expect(models.of(9).msPerToken).toBeCloseTo(0.1, 2);
  });

  test('an endpoint half as fast as the others is known within a hundred prompts', () => {
    const models = createPrefillModels(0.125);
    for (let i = 0; i < 400; i++) {
      const tokens = 500 + (i % 20) * 400;
      models.learn(1 + (i % 7), tokens, tokens * 0.125);
      if (i % 4 === 0) models.learn(0, tokens, tokens * 0.25);
    }
    expect(models.of(0).msPerToken / models.of(1).msPerToken).toBeGreaterThan(1.7);
    expect(models.of(0).msPerToken / models.of(1).msPerToken).toBeLessThan(2.2);
  });

  test('where others send prompts too, samples that hold theirs do not make an engine look slow', () => {
    const alone = createPrefillModels(0.125);
    const withOthers = createPrefillModels(0.125);
    for (let i = 0; i < 400; i++) {
      const tokens = 500 + (i % 20) * 400;
      const serviceMs = tokens * 0.125 + (i % 3 === 0 ? 2000 : 0);
      alone.learn(0, tokens, serviceMs);
      withOthers.learn(0, tokens, serviceMs, 'with others');
    }
    const timeOf = ({ setupMs, msPerToken }: { setupMs: number; msPerToken: number }): number =>
      setupMs + 4000 * msPerToken;
    expect(timeOf(alone.of(0))).toBeGreaterThan(900);
    expect(timeOf(withOthers.of(0))).toBeLessThan(550);
  });

  test('a new endpoint takes over what others of its kind have shown, before what the fleet has', () => {
    const kinds = ['slow', 'fast', 'fast', 'slow'];
    const models = createPrefillModels(1, (slot) => kinds[slot] ?? null);
    for (let i = 0; i < 3000; i++) {
      const tokens = 1000 + (i % 7) * 500;
      models.learn(0, tokens, tokens * 0.4);
      models.learn(1, tokens, tokens * 0.05);
    }
    expect(models.of(3).msPerToken).toBeCloseTo(0.4, 2);
    expect(models.of(2).msPerToken).toBeCloseTo(0.05, 2);
    expect(models.of(9).msPerToken).toBeGreaterThan(0.1);
    expect(models.of(9).msPerToken).toBeLessThan(0.35);
    models.forget(0);
    expect(models.of(0).msPerToken).toBeCloseTo(0.4, 2);
  });

  test('whatever the samples, garbage included, costs stay finite and grow with the prompt', () => {
    const sample = fc.record({
      slot: fc.nat(2),
      tokens: fc.oneof(fc.nat(100_000), fc.constantFrom(NaN, -5, Infinity)),
      ms: fc.oneof(fc.double({ min: 0, max: 1e6, noNaN: true }), fc.constantFrom(NaN, -1, Infinity)),
    });
    fc.assert(
      fc.property(fc.array(sample, { maxLength: 300 }), (samples) => {
        const models = createPrefillModels(0.125);
        for (const { slot, tokens, ms } of samples) models.learn(slot, tokens, ms);
        for (let slot = 0; slot < 4; slot++) {
          const { setupMs, msPerToken } = models.of(slot);
          expect(Number.isFinite(setupMs) && setupMs >= 0).toBe(true);
          expect(Number.isFinite(msPerToken) && msPerToken > 0).toBe(true);
        }
      }),
    );
  });
});
