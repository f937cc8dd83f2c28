import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import { endAfterEach } from '../support/endings.ts';
import { eventually, startApp } from '../support/running-app.ts';

const atEnd = endAfterEach();
test('an engine is as fast as its profile says until it has shown more; a broken file changes nothing and is told', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'warmpath-profiles-'));
  atEnd(() => rm(directory, { recursive: true }));
  const file = join(directory, 'profiles.yaml');
  const write = (rate: number | string): Promise<void> =>
    writeFile(file, `profiles:\n  - { gpuType: H100, prefillTokensPerSecond: ${rate} }\n`);
  await write(40_000);
  const endpoints = ['H100', 'A100'].map(
    (gpu, n) => `{name: ${gpu}, address: "127.0.0.1:${n + 1}", model: m, kvEvents: none, labels: {gpu: ${gpu}}}`,
  );
  const { app, admin } = await startApp([
    'tokenizer.api=none',
    'load.gpuTypeLabel=gpu',
    `load.engineProfileFile=${file}`,
    `discovery.endpoints=[${endpoints.join(', ')}]`,
  ]);
  atEnd(() => app.stop());

  const ask = { path: '/v1/completions', body: { model: 'm', prompt: Array.from({ length: 8000 }, (_, i) => i) } };
  const explained = async (): Promise<Map<string, number>> => {
    const answer = await fetch(`${admin}/api/v1/explain`, { method: 'POST', body: JSON.stringify(ask) });
    const { candidates } = (await answer.json()) as { candidates: { endpoint: string; costMs: number }[] };
    return new Map(candidates.map(({ endpoint, costMs }) => [endpoint, costMs]));
  };
  const ratio = async (): Promise<number> => {
    const costs = await explained();
    return costs.get('127.0.0.1:2')! / costs.get('127.0.0.1:1')!;
  };
  const conditionOfConfig = async (): Promise<string> => {
    const answer = await fetch(`${admin}/readyz`);
    return ((await answer.json()) as { conditions: { config: string } }).conditions.config;
  };
  // 40,000 against the assumed 8,000 tokens per second.
  expect(await ratio()).toBeCloseTo(5, 1);
  expect(await conditionOfConfig()).toBe('ok');
  await write('fast');
  expect(await eventually(conditionOfConfig, (condition) => condition !== 'ok')).toMatch(
    /^ok, but not the newest engine profiles: profiles\[0\]\.prefillTokensPerSecond must be a number .*profiles\.yaml:2\)$/,
  );
  expect(await ratio()).toBeCloseTo(5, 1);
  await write(16_000);
  await eventually(conditionOfConfig, (condition) => condition === 'ok');
  expect(await ratio()).toBeCloseTo(2, 1);
});
