import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, expect, test } from '@jest/globals';
import { createApp } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { loadConfig } from '../../src/config.ts';
import { silentLog } from '../../src/log.ts';

const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (let last = undo.pop(); last; last = undo.pop()) await last();
});

async function until(isTrue: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 5000;
  while (!(await isTrue())) {
    if (performance.now() > deadline) throw new Error(`not within 5 s: ${isTrue.toString()}`);
    await delay(20);
  }
}

test('an engine is as fast as its profile says until it has shown more; a broken file changes nothing and is told', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'warmpath-profiles-'));
  undo.push(() => rm(directory, { recursive: true }));
  const file = join(directory, 'profiles.yaml');
  const write = (rate: number | string): Promise<void> =>
    writeFile(file, `profiles:\n  - { gpuType: H100, prefillTokensPerSecond: ${rate} }\n`);
  await write(40_000);
  const endpoints = ['H100', 'A100'].map(
    (gpu, n) => `{name: ${gpu}, address: "127.0.0.1:${n + 1}", model: m, kvEvents: none, labels: {gpu: ${gpu}}}`,
  );
  const loaded = loadConfig({
    file: null,
    readFile: () => '',
    env: {},
    sets: [
      'server.grpcListen=127.0.0.1:0',
      'server.healthListen=127.0.0.1:0',
      'server.adminListen=127.0.0.1:0',
      'server.drainDelayMs=0',
      'tokenizer.api=none',
      'load.gpuTypeLabel=gpu',
      `load.engineProfileFile=${file}`,
      `discovery.endpoints=[${endpoints.join(', ')}]`,
    ],
  });
  if (loaded.kind === 'mistakes') throw new Error(loaded.mistakes.join('\n'));
  const app = createApp(loaded.config, { log: silentLog, clock: systemClock });
  undo.push(() => app.stop());
  const { admin } = await app.start();

  const ask = { path: '/v1/completions', body: { model: 'm', prompt: Array.from({ length: 8000 }, (_, i) => i) } };
  const explained = async (): Promise<Map<string, number>> => {
    const answer = await fetch(`http://${admin}/api/v1/explain`, { method: 'POST', body: JSON.stringify(ask) });
    const { candidates } = (await answer.json()) as { candidates: { endpoint: string; costMs: number }[] };
    return new Map(candidates.map(({ endpoint, costMs }) => [endpoint, costMs]));
  };
  const ratio = async (): Promise<number> => {
    const costs = await explained();
    return costs.get('127.0.0.1:2')! / costs.get('127.0.0.1:1')!;
  };
  const conditionOfConfig = async (): Promise<string> => {
    const answer = await fetch(`http://${admin}/readyz`);
    return ((await answer.json()) as { conditions: { config: string } }).conditions.config;
  };
  // 40,000 against the assumed 8,000 tokens per second.
  expect(await ratio()).toBeCloseTo(5, 1);
  expect(await conditionOfConfig()).toBe('ok');
  await write('fast');
  await until(async () => (await conditionOfConfig()) !== 'ok');
  expect(await conditionOfConfig()).toMatch(
    /^ok, but not the newest engine profiles: profiles\[0\]\.prefillTokensPerSecond must be a number .*profiles\.yaml:2\)$/,
  );
  expect(await ratio()).toBeCloseTo(5, 1);
  await write(16_000);
  await until(async () => (await conditionOfConfig()) === 'ok');
  expect(await ratio()).toBeCloseTo(2, 1);
});
