/** Adapters that come and go on an engine, seen through the whole product without Envoy. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { createApp, type App, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import {
  aChat,
  chat,
  endpointEntry,
  endpointViews,
  eventually,
  longText,
  stageConfig,
  startPods,
  whenTrusted,
  type RunningPod,
} from '../e2e/stage.ts';

let pods: RunningPod[];
let app: App;
let addresses: AppAddresses;
beforeAll(async () => {
  pods = await startPods({ nPods: 2 });
  const discovery = { endpoints: pods.map(endpointEntry), adapterIntervalMs: 50 };
  const config = stageConfig(pods, { discovery });
  app = createApp(config, { log: silentLog, clock: systemClock });
  addresses = await app.start();
  await whenTrusted(addresses.admin, pods.length);
});
afterAll(async () => {
  await app.stop();
  await Promise.all(pods.map(({ pod }) => pod.stop()));
});

async function change(pod: RunningPod, what: 'load' | 'unload', name: string, path: string): Promise<void> {
  const response = await fetch(`http://${pod.addresses.httpAddress}/v1/${what}_lora_adapter`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ lora_name: name, lora_path: path }),
  });
  expect(response.status).toBe(200);
}

async function explained(body: object): Promise<Response> {
  return fetch(`http://${addresses.admin}/api/v1/explain`, {
    method: 'POST',
    body: JSON.stringify({ path: '/v1/chat/completions', headers: {}, body }),
  });
}

test('an adapter loaded into one pod takes its requests there, until it is unloaded', async () => {
  const [pod] = pods as [RunningPod];
  const adapters = async (): Promise<string> => {
    const views = (await endpointViews(addresses.admin)) as { name: string; adapters?: string[] }[];
    return views.map((view) => view.adapters?.join('+') ?? '').join(',');
  };
  const ask = (): Promise<Response> => explained(aChat('select', { model: 'sql' }));

  expect(await (await ask()).text()).toContain('does not exist');
  await change(pod, 'load', 'sql', '/adapters/sql');
  await eventually(async () => ((await adapters()) === 'sql,' ? 'done' : await adapters()));
  const answer = (await (await ask()).json()) as { adapter: string; candidates: { endpoint: string }[] };
  expect(answer.adapter).toBe('sql');
  expect(answer.candidates.map(({ endpoint }) => endpoint)).toEqual([pod.addresses.httpAddress]);
  await change(pod, 'unload', 'sql', '/adapters/sql');
  await eventually(async () => ((await adapters()) === ',' ? 'done' : await adapters()));
  expect(await (await ask()).text()).toContain('does not exist');
});

test('the engine is told by its own metrics', async () => {
  await eventually(async () => {
    const views = (await endpointViews(addresses.admin)) as { engine?: { kind: string | null } }[];
    return views.every(({ engine }) => engine?.kind === 'vllm')
      ? 'done'
      : JSON.stringify(views.map(({ engine }) => engine));
  });
});

test('other weights under the same name: nothing announced before is promised again, what comes after is', async () => {
  const [, pod] = pods as [RunningPod, RunningPod];
  const prompt = (topic: string): object => aChat(longText(topic, 200), { model: 'bard' });
  const matched = async (topic: string): Promise<number> => {
    const { candidates } = (await (await explained(prompt(topic))).json()) as {
      candidates?: { endpoint: string; matchedBlocks: { gpu: number } }[];
    };
    return candidates?.find(({ endpoint }) => endpoint === pod.addresses.httpAddress)?.matchedBlocks.gpu ?? 0;
  };
  await change(pod, 'load', 'bard', '/adapters/v1');
  expect((await chat(pod.addresses.httpAddress, prompt('sonnet'))).status).toBe(200);
  await eventually(async () => ((await matched('sonnet')) > 5 ? 'done' : 'not announced'));
  await change(pod, 'unload', 'bard', '/adapters/v1');
  await change(pod, 'load', 'bard', '/adapters/v2');
  await eventually(async () => ((await matched('sonnet')) === 0 ? 'done' : 'still promised'));
  await eventually(async () => {
    expect((await chat(pod.addresses.httpAddress, prompt(`ode${performance.now()}x`))).status).toBe(200);
    expect((await chat(pod.addresses.httpAddress, prompt('ballad'))).status).toBe(200);
    return (await matched('ballad')) > 5 ? 'done' : 'not announced';
  });
  expect(await matched('sonnet')).toBe(0);
});
