import { describe, expect, test } from '@jest/globals';
import { createEngineProfiles, type ServedRequest } from '../../../src/load/engine-profile.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const aServed = (changes: Partial<ServedRequest> = {}): ServedRequest => ({
  answerMs: 1000,
  decodeMs: 900,
  promptTokens: 100,
  completionTokens: 101,
  ...changes,
});

const total = (seconds: number, count: number) => ({ seconds, count });

describe('what an engine has shown', () => {
  test('nothing before it served anything', () => {
    const { of } = createEngineProfiles(createFakeClock());
    expect(of(0)).toEqual({ answerMs: null, decodeMsPerToken: null, tokensPerSecond: 0, capacityTokens: null });
  });

  test('time per answer and per token of late, per endpoint', () => {
    const { of, served } = createEngineProfiles(createFakeClock());
    for (let i = 0; i < 100; i++) served(0, aServed());
    for (let i = 0; i < 400; i++) served(1, aServed({ answerMs: i < 200 ? 9000 : 500, decodeMs: 400 }));
    expect(of(0)).toMatchObject({ answerMs: 1000, decodeMsPerToken: 9 });
    expect(of(1).answerMs).toBeGreaterThanOrEqual(500);
    expect(of(1).answerMs).toBeLessThan(550);
    expect(of(1).decodeMsPerToken).toBeCloseTo(4, 9);
  });

  test('an answer whose tokens or first byte were not seen tells no time per token', () => {
    const { of, served } = createEngineProfiles(createFakeClock());
    served(0, aServed({ decodeMs: null }));
    served(0, aServed({ completionTokens: null }));
    served(0, aServed({ completionTokens: 1 }));
    served(0, aServed({ answerMs: NaN, decodeMs: -5 }));
    expect(of(0)).toMatchObject({ answerMs: 1000, decodeMsPerToken: null });
  });

  test('tokens per second fade when nothing more comes', () => {
    const clock = createFakeClock();
    const { of, served } = createEngineProfiles(clock);
    for (let i = 0; i < 600; i++) {
      served(0, aServed({ promptTokens: 900, completionTokens: 100 }));
      clock.advance(500);
    }
    expect(of(0).tokensPerSecond / 2000).toBeGreaterThan(0.95);
    expect(of(0).tokensPerSecond / 2000).toBeLessThan(1.05);
    clock.advance(600_000);
    expect(of(0).tokensPerSecond).toBeLessThan(1);
  });

  test("where no end is seen the engine's own totals tell, by what was added to them", () => {
    const { of, read } = createEngineProfiles(createFakeClock());
    read(0, { answers: total(1000, 100), decode: total(50, 5000), nBlocks: 2048, blockSizeTokens: 16 });
    expect(of(0)).toMatchObject({ answerMs: null, decodeMsPerToken: null, capacityTokens: 32_768 });
    read(0, { answers: total(1006, 103), decode: total(50.5, 5020), nBlocks: null, blockSizeTokens: null });
    expect(of(0)).toMatchObject({ answerMs: null, decodeMsPerToken: null, capacityTokens: 32_768 });
    read(0, { answers: total(1020, 110), decode: total(52, 5100), nBlocks: null, blockSizeTokens: null });
    expect(of(0)).toMatchObject({ answerMs: 2000, decodeMsPerToken: 20 });
  });

  test('totals that fell are of a process begun anew: no difference is made of them', () => {
    const { of, read } = createEngineProfiles(createFakeClock());
    read(0, { answers: total(1000, 100), decode: null, nBlocks: null, blockSizeTokens: null });
    read(0, { answers: total(5, 10), decode: null, nBlocks: null, blockSizeTokens: null });
    expect(of(0).answerMs).toBeNull();
    read(0, { answers: total(15, 20), decode: null, nBlocks: null, blockSizeTokens: null });
    expect(of(0).answerMs).toBe(1000);
  });

  test('with learning off no rate is learnt, and strategies see answers and traffic all the same', () => {
    const off = createEngineProfiles(createFakeClock(), 'off');
    off.read(0, { answers: total(1, 1), decode: total(1, 1), nBlocks: 7, blockSizeTokens: 16 });
    off.read(0, { answers: total(100, 100), decode: total(100, 100), nBlocks: 7, blockSizeTokens: 16 });
    expect(off.of(0)).toEqual({ answerMs: 1000, decodeMsPerToken: null, tokensPerSecond: 0, capacityTokens: 112 });
    off.served(0, aServed({ answerMs: 700 }));
    expect(off.of(0)).toMatchObject({ answerMs: 700, decodeMsPerToken: null, capacityTokens: 112 });
    expect(off.of(0).tokensPerSecond).toBeGreaterThan(0);
    off.forget(0);
    expect(off.of(0).capacityTokens).toBeNull();
  });
});
