/** Data-parallel ranks behind one address: a simulated pod with several engines, the whole product, and no Envoy between. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { createApp, type App, type AppAddresses } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { createExtProcDriver } from '../../src/demo/ext-proc-driver.ts';
import { silentLog } from '../../src/log.ts';
import {
  aChat,
  endpointViews,
  eventually,
  longText,
  MODEL,
  stageConfig,
  startPods,
  whenTrusted,
  type RunningPod,
} from '../e2e/stage.ts';

const RANK = 'x-data-parallel-rank';
const SIZE = 3;
/** Ranks count on from given ports, so these are on an address that no other test process has. */
const HOST = `127.77.${(process.pid >> 8) & 255}.${process.pid & 255 || 1}`;

let pod: RunningPod;
let app: App;
let addresses: AppAddresses;

async function start(config: Readonly<Record<string, object>>): Promise<void> {
  const load = { metricsIntervalMs: 50 };
  app = createApp(stageConfig([pod], { load, ...config }), { log: silentLog, clock: systemClock });
  addresses = await app.start();
}

beforeAll(async () => {
  [pod] = (await startPods({
    nPods: 1,
    pod: { host: HOST, kvEventsPort: 5557, replayPort: 5657, dataParallelSize: SIZE },
  })) as [RunningPod];
  await start({});
  await whenTrusted(addresses.admin, SIZE);
});
afterAll(async () => {
  await app.stop();
  await pod.pod.stop();
});

type Usage = { readonly prompt_tokens: number; readonly prompt_tokens_details: { readonly cached_tokens: number } };

async function ask(body: object, headers: Readonly<Record<string, string>>): Promise<Usage> {
  const response = await fetch(`http://${pod.addresses.httpAddress}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
  expect(response.status).toBe(200);
  return ((await response.json()) as { usage: Usage }).usage;
}

/** As Envoy does: asks, then sends the request with what the answer set. */
async function routed(
  body: object,
  given: Readonly<Record<string, string>> = {},
): Promise<[string | undefined, Usage]> {
  const driver = createExtProcDriver(addresses.grpc);
  try {
    const sent = { 'content-type': 'application/json', ...given };
    const way = await driver.open('/v1/chat/completions', sent, Buffer.from(JSON.stringify(body)));
    if (way.kind !== 'forward') throw new Error('refused');
    expect(way.address).toBe(pod.addresses.httpAddress);
    const usage = await ask(body, way.headers);
    way.end();
    return [way.headers[RANK], usage];
  } finally {
    await driver.close();
  }
}

type Explanation = {
  readonly endpoint: string;
  readonly rank: number | null;
  readonly candidates: readonly { readonly rank: number | null; readonly matchedTokens: number }[];
};

async function explained(body: object): Promise<Explanation> {
  const response = await fetch(`http://${addresses.admin}/api/v1/explain`, {
    method: 'POST',
    body: JSON.stringify({ path: '/v1/chat/completions', headers: {}, body }),
  });
  return (await response.json()) as Explanation;
}

const matchedOf = (rank: number | null, { candidates }: Explanation): number =>
  candidates.find((one) => one.rank === rank)?.matchedTokens ?? -1;

test.each([1, 2, 0])('a prompt that is warm on rank %i goes there, and finds what was promised', async (rank) => {
  const body = aChat(longText(`rank${rank}topic`, 300));
  expect((await ask(body, { [RANK]: String(rank) })).prompt_tokens_details.cached_tokens).toBe(0);
  await eventually(async () => (matchedOf(rank, await explained(body)) > 0 ? 'done' : 'not announced'));
  const explanation = await explained(body);
  expect(explanation).toMatchObject({ endpoint: pod.addresses.httpAddress, rank });
  for (const other of [0, 1, 2]) if (other !== rank) expect(matchedOf(other, explanation)).toBe(0);
  // What the client wrote does not count.
  const [header, usage] = await routed(body, { [RANK]: String((rank + 1) % SIZE) });
  expect(header).toBe(String(rank));
  expect(usage.prompt_tokens_details.cached_tokens).toBe(matchedOf(rank, explanation));
  expect(usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens).toBeLessThanOrEqual(16);
});

test('every rank is a row of the endpoints, a label of the metrics, and known by its own engine', async () => {
  type View = {
    name: string;
    address: string;
    rank: number;
    engine: { kvBlocks: number | null };
    kvEvents: { blocks: number };
  };
  const views = async (): Promise<View[]> => (await endpointViews(addresses.admin)) as unknown as View[];
  await eventually(async () =>
    (await views()).every(({ engine }) => engine.kvBlocks === pod.pod.options.nBlocks) ? 'done' : 'not read yet',
  );
  const { httpAddress: address } = pod.addresses;
  expect(await views()).toMatchObject([0, 1, 2].map((rank) => ({ name: `pod-0/${rank}`, address, rank })));
  await eventually(async () => {
    const announced = (await views()).map(({ kvEvents }) => kvEvents.blocks);
    const held = [0, 1, 2].map((rank) => pod.pod.residentBlocks(rank).length);
    return String(announced) === String(held) ? 'done' : `announced ${String(announced)}, held ${String(held)}`;
  });
  const page = await (await fetch(`http://${addresses.admin}/metrics`)).text();
  for (const rank of [0, 1, 2]) {
    expect(page).toContain(`warmpath_endpoint_in_flight_requests{endpoint="${address}/${rank}"} 0`);
  }
});

test('unpinned, the ranks are one endpoint and no header is set', async () => {
  await app.stop();
  await start({ routing: { pinDataParallelRank: false } });
  await whenTrusted(addresses.admin, 1);
  const body = aChat(longText('rank1topic', 300), { model: MODEL });
  await eventually(async () => (matchedOf(null, await explained(body)) > 0 ? 'done' : 'not learnt'));
  expect((await routed(body))[0]).toBeUndefined();
});
