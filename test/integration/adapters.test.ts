/** Adapters that come and go on an engine, seen through the whole product without Envoy. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { createApp, type App, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import { endpointViews, eventually, MODEL, stageConfig, startPods, type RunningPod } from '../e2e/stage.ts';

let pods: RunningPod[];
let app: App;
let addresses: AppAddresses;
beforeAll(async () => {
  pods = await startPods({ nPods: 2 });
  const endpoints = pods.map(({ name, addresses: { httpAddress } }) => ({
    name,
    address: httpAddress,
    model: MODEL,
    kvEvents: 'none',
  }));
  const config = stageConfig([], { discovery: { endpoints, adapterIntervalMs: 50 } });
  app = createApp(config, { log: silentLog, clock: systemClock });
  addresses = await app.start();
});
afterAll(async () => {
  await app.stop();
  await Promise.all(pods.map(({ pod }) => pod.stop()));
});

test('an adapter loaded into one pod takes its requests there, until it is unloaded', async () => {
  const [pod] = pods as [RunningPod];
  const change = async (what: 'load' | 'unload'): Promise<void> => {
    const response = await fetch(`http://${pod.addresses.httpAddress}/v1/${what}_lora_adapter`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ lora_name: 'sql', lora_path: '/adapters/sql' }),
    });
    expect(response.status).toBe(200);
  };
  const adapters = async (): Promise<string> => {
    const views = (await endpointViews(addresses.admin)) as { name: string; adapters?: string[] }[];
    return views.map((view) => view.adapters?.join('+') ?? '').join(',');
  };
  const ask = async (): Promise<Response> =>
    fetch(`http://${addresses.admin}/api/v1/explain`, {
      method: 'POST',
      body: JSON.stringify({
        path: '/v1/chat/completions',
        headers: {},
        body: { model: 'sql', messages: [{ role: 'user', content: 'select' }] },
      }),
    });

  expect(await (await ask()).text()).toContain('does not exist');
  await change('load');
  await eventually(async () => ((await adapters()) === 'sql,' ? 'done' : await adapters()));
  const explained = (await (await ask()).json()) as { adapter: string; candidates: { endpoint: string }[] };
  expect(explained.adapter).toBe('sql');
  expect(explained.candidates.map(({ endpoint }) => endpoint)).toEqual([pod.addresses.httpAddress]);
  await change('unload');
  await eventually(async () => ((await adapters()) === ',' ? 'done' : await adapters()));
  expect(await (await ask()).text()).toContain('does not exist');
});
