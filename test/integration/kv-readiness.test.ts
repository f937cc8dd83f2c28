/** When `serve` says it is ready with regard to KV events, what it says of a view with holes, and that it stops in any case. */
import { once } from 'node:events';
import { connect } from 'node:net';
import { expect, test } from '@jest/globals';
import { createApp, type App, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { silentLog, type Log } from '../../src/log.ts';
import { eventually, stageConfig } from '../e2e/stage.ts';
import { endAfterEach } from '../support/endings.ts';
import { FakePublisher, stored } from '../support/fake-publisher.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

const atEnd = endAfterEach();

async function aPublisher(options: Parameters<typeof FakePublisher.start>[0] = {}): Promise<FakePublisher> {
  const publisher = await FakePublisher.start(options);
  atEnd(() => publisher.stop());
  for (let i = 0; i < 5; i++) await publisher.publish(stored([i], null, [i]));
  return publisher;
}

type Running = { readonly app: App } & AppAddresses;

async function anApp(
  sources: readonly { readonly endpoint: string; readonly replayEndpoint: string }[],
  kvEvents: object,
  log: Log = silentLog,
): Promise<Running> {
  const list = sources.map(({ endpoint, replayEndpoint }, i) => ({
    name: `pod-${i}`,
    address: `127.0.0.1:${i + 1}`,
    model: 'm',
    kvEvents: endpoint,
    replay: replayEndpoint,
  }));
  const config = stageConfig([], { discovery: { endpoints: list }, kvEvents, tokenizer: { api: 'none' } });
  const app = createApp(config, { log, clock: systemClock });
  atEnd(() => app.stop());
  return { app, ...(await app.start()) };
}

async function kvEventsCondition(admin: string): Promise<string> {
  const response = await fetch(`http://${admin}/readyz`);
  return ((await response.json()) as { conditions: { kvEvents: string } }).conditions.kvEvents;
}

const says = (admin: string, expected: string): Promise<void> =>
  eventually(async () => {
    const said = await kvEventsCondition(admin);
    return said === expected ? 'done' : `it says ${said}`;
  }, 15_000);

async function coverage(admin: string): Promise<(string | undefined)[]> {
  const response = await fetch(`http://${admin}/api/v1/endpoints`);
  return ((await response.json()) as { kvEvents: { coverage: string } | null }[]).map(
    (view) => view.kvEvents?.coverage,
  );
}

const DEAD = { endpoint: 'tcp://127.0.0.1:9', replayEndpoint: 'tcp://127.0.0.1:7' };

test('connected: a replay that takes long, and a pod that is gone, keep nobody waiting', async () => {
  const publisher = await aPublisher();
  const replay = await TcpProxy.to(publisher.replayEndpoint);
  atEnd(() => replay.stop());
  replay.stall();
  const slow = { endpoint: publisher.endpoint, replayEndpoint: `tcp://${replay.address}` };
  const { admin } = await anApp([slow, DEAD], {});
  await eventually(async () => ((await fetch(`http://${admin}/readyz`)).status === 200 ? 'done' : 'not ready'), 15_000);
  expect(await kvEventsCondition(admin)).toMatch(/^ok, but of 2 sources 1 not connected/);
});

test('replayed: waits for the replay, and says what the pod no longer knew', async () => {
  const [whole, short] = [await aPublisher(), await aPublisher({ bufferSteps: 2 })];
  whole.answersReplays = false;
  const { admin } = await anApp([whole, short], { readyWhen: 'replayed', readyTimeoutMs: 600_000 });
  await says(admin, '1 of 2 sources not replayed yet');
  expect((await fetch(`http://${admin}/readyz`)).status).toBe(503);
  whole.answersReplays = true;
  await says(admin, 'ok, but of 2 sources 1 partial');
  expect((await fetch(`http://${admin}/readyz`)).status).toBe(200);
  expect(await coverage(admin)).toEqual(['whole', 'partial']);
});

test('replayed: a pod that is gone for good is waited for no longer than configured', async () => {
  const { admin } = await anApp([await aPublisher(), DEAD], { readyWhen: 'replayed', readyTimeoutMs: 1500 });
  expect(await kvEventsCondition(admin)).toMatch(/^\d of 2 sources not replayed yet$/);
  await says(admin, 'ok, but of 2 sources 1 not connected');
  expect(await coverage(admin)).toEqual(['whole', 'none']);
});

test('a part that fails to stop is reported, and the others are stopped all the same', async () => {
  const reported: unknown[] = [];
  const log: Log = {
    ...silentLog,
    with: () => log,
    info(message) {
      if (message === 'ext_proc stopped') throw new Error('no space left on device');
    },
    error: (message, fields) => void reported.push([message, fields?.['error']]),
  };
  const { app, admin, grpc, health } = await anApp([await aPublisher()], {}, log);
  await app.stop();
  expect(reported).toEqual([['a part did not stop in order', 'no space left on device']]);
  for (const address of [admin, grpc, health!]) {
    const [host, port] = address.split(':') as [string, string];
    await expect(once(connect(Number(port), host), 'connect')).rejects.toThrow(/ECONNREFUSED/);
  }
});
