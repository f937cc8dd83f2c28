import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { createEngineProfiles } from '../../../src/load/engine-profile.ts';
import { createEngineSeedFile, type EngineSeedFile } from '../../../src/load/engine-seed-file.ts';
import { parseEngineSeeds, type EngineSeed } from '../../../src/load/engine-seeds.ts';
import { createPrefillModels } from '../../../src/load/prefill-model.ts';
import { silentLog } from '../../../src/log.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const TEXT = `
profiles:
  - gpuType: H100
    prefillTokensPerSecond: 20000
    decodeTokensPerSecond: 50
    capacityBlocks: 30000
  - endpoint: 10.0.0.1:8000
    prefillTokensPerSecond: 16000
    capacityBlocks: 100
    blockSizeTokens: 64
`;

function seedsOf(text: string, label: string | null = 'gpu') {
  const parsed = parseEngineSeeds(text, 'profiles.yaml', label);
  if (parsed.kind === 'mistakes') throw new Error(parsed.mistakes.join('\n'));
  return parsed.seeds;
}

const aSeed = (prefillTokensPerSecond: number): EngineSeed => ({
  prefillTokensPerSecond,
  decodeTokensPerSecond: 50,
  capacityTokens: 1000,
});

describe('engine profiles in a file', () => {
  test('hold for every endpoint with that GPU; what is said of an endpoint itself comes first, value by value', () => {
    const seeds = seedsOf(TEXT);
    const h100 = { gpu: 'H100' };
    const common = { decodeTokensPerSecond: 50, capacityTokens: 480_000 };
    expect(seeds.of({ address: '10.0.0.2:8000', labels: h100 })).toEqual({ prefillTokensPerSecond: 20_000, ...common });
    expect(seeds.of({ address: '10.0.0.1:8000', labels: h100 })).toEqual({
      prefillTokensPerSecond: 16_000,
      decodeTokensPerSecond: 50,
      capacityTokens: 6400,
    });
    const nothing = { prefillTokensPerSecond: null, decodeTokensPerSecond: null, capacityTokens: null };
    expect(seeds.of({ address: '10.0.0.2:8000', labels: { gpu: 'A100' } })).toEqual(nothing);
  });

  test.each([
    ['profiles: 3', ['profiles must be a list of at most 10000 profiles, got 3 (p:1)']],
    ['', ['profiles must be a list of at most 10000 profiles, got null (p)']],
    ['profiles: [1]', ['profiles[0] must be a map of fields, got 1 (p:1)']],
    ['profiles:\n  - {}', ['profiles[0] must name either a gpuType or an endpoint (ip:port), got {} (p:2)']],
    [
      'profiles:\n  - gpuType: A\n    prefilTokensPerSecond: 1',
      ['profiles[0].prefilTokensPerSecond is not known, the nearest known field is prefillTokensPerSecond (p:3)'],
    ],
    [
      'profiles:\n  - gpuType: A\n    capacityBlocks: -1\n    decodeTokensPerSecond: fast',
      [
        'profiles[0].decodeTokensPerSecond must be a number above 0 and at most 1000000000, got "fast" (p:4)',
        'profiles[0].capacityBlocks must be a number above 0 and at most 1000000000, got -1 (p:3)',
      ],
    ],
    ['profiles:\n  - gpuType: A\n  - gpuType: A', ['profiles[1] names gpuType A a second time (p:3)']],
  ])('%j: every mistake with its place', (text, mistakes) => {
    expect(parseEngineSeeds(text, 'p', 'gpu')).toEqual({ kind: 'mistakes', mistakes });
  });

  test('what is no YAML, and a GPU type without a label to find it by, are mistakes', () => {
    const parsed = parseEngineSeeds('profiles: [', 'p', 'gpu');
    expect(parsed.kind === 'mistakes' && parsed.mistakes[0]).toMatch(/^p must be YAML: .* \(p:1\)$/);
    expect(parseEngineSeeds('profiles: [{ gpuType: A }]', 'p', null)).toEqual({
      kind: 'mistakes',
      mistakes: ['profiles[0].gpuType needs load.gpuTypeLabel, which says where the GPU of an endpoint is named (p:1)'],
    });
  });
});

describe('what was measured before', () => {
  test('counts until an engine has shown itself what it can do', () => {
    const models = createPrefillModels(
      0.125,
      () => null,
      (slot) => (slot === 0 ? 0.05 : null),
    );
    expect(models.of(0).msPerToken).toBeCloseTo(0.05, 6);
    expect(models.of(1).msPerToken).toBeCloseTo(0.125, 6);
    for (let i = 0; i < 300; i++) models.learn(0, 1000 + (i % 10) * 300, (1000 + (i % 10) * 300) * 0.2);
    expect(models.of(0).msPerToken).toBeGreaterThan(0.15);
    expect(models.of(0).msPerToken).toBeLessThan(0.22);
  });

  test('holds through what others of the fleet show', () => {
    const models = createPrefillModels(
      0.125,
      () => null,
      (slot) => (slot === 0 ? 0.05 : null),
    );
    for (let i = 0; i < 1000; i++) models.learn(1, 1000 + (i % 10) * 300, (1000 + (i % 10) * 300) * 0.2);
    expect(models.of(0).msPerToken).toBeGreaterThan(0.045);
    expect(models.of(0).msPerToken).toBeLessThan(0.055);
  });

  test('is all there is where learning is off; what the engine says of its capacity comes first', () => {
    const profiles = createEngineProfiles(createFakeClock(), 'off', () => aSeed(8000));
    expect(profiles.of(0)).toMatchObject({ decodeMsPerToken: 20, capacityTokens: 1000, answerMs: null });
    profiles.served(0, { answerMs: 1000, decodeMs: 900, promptTokens: 10, completionTokens: 10 });
    profiles.read(0, { answers: null, decode: null, nBlocks: 100, blockSizeTokens: 16 });
    expect(profiles.of(0)).toMatchObject({ decodeMsPerToken: 20, capacityTokens: 1600 });
  });
});

describe('the file of profiles', () => {
  /** What a change may take, watcher or polling; the machine may be busy. */
  const DEADLINE_MS = 5_000;
  let directory: string;
  let file: string;
  let running: EngineSeedFile | null = null;
  let rates: (number | null)[];
  let problems: (string | null)[];

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'warmpath-profiles-'));
    file = join(directory, 'profiles.yaml');
    [rates, problems] = [[], []];
  });

  afterEach(async () => {
    await running?.stop();
    running = null;
    await rm(directory, { recursive: true });
  });

  async function follow(): Promise<void> {
    running = createEngineSeedFile(
      {
        log: silentLog,
        onSeeds: (seeds) => rates.push(seeds.of({ address: 'x', labels: { gpu: 'A' } }).prefillTokensPerSecond),
        onProblem: (problem) => problems.push(problem),
      },
      { file, gpuTypeLabel: 'gpu', pollMs: 20 },
    );
    await running.start();
  }

  async function until(isTrue: () => boolean): Promise<void> {
    const deadline = performance.now() + DEADLINE_MS;
    while (!isTrue()) {
      if (performance.now() > deadline) throw new Error(`not in time: ${JSON.stringify({ rates, problems })}`);
      await delay(10);
    }
  }

  const aFileWith = (rate: string): string => `profiles: [{ gpuType: A, prefillTokensPerSecond: ${rate} }]\n`;

  test('a change takes effect, a broken file leaves the last good one in effect and says so', async () => {
    await writeFile(file, aFileWith('100'));
    await follow();
    expect(rates).toEqual([100]);
    await writeFile(file, aFileWith('none'));
    await until(() => problems.length === 1);
    expect(problems[0]).toContain('prefillTokensPerSecond must be a number above 0');
    expect(rates).toEqual([100]);
    await writeFile(file, aFileWith('200'));
    await until(() => rates.length === 2);
    expect(rates).toEqual([100, 200]);
    expect(problems.at(-1)).toBeNull();
    await rm(file);
    await until(() => problems.length === 3);
    expect(problems[2]).toContain('cannot read the engine profiles');
  });

  test('a file that is missing or wrong at start is a mistake of the configuration', async () => {
    await expect(follow()).rejects.toMatchObject({ code: 'config_invalid' });
    await writeFile(file, 'profiles: 1');
    await expect(follow()).rejects.toThrow('profiles must be a list of at most 10000 profiles, got 1');
  });
});
