import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { runDoctor } from '../../src/cli/doctor.ts';
import type { Finding } from '../../src/doctor/finding.ts';
import { createSimulatedPod, type SimulatedPod } from '../../src/simulator/simulated-pod.ts';
import { endAfterEach } from '../support/endings.ts';
import { aFreePort } from '../support/free-port.ts';
import { FakeApiServer } from '../support/fake-api-server.ts';
import { aPod as aKubernetesPod, kubeconfigOf } from '../support/kubernetes.ts';
import { startFakeTokenizer } from '../support/fake-tokenizer.ts';

type PodOptions = Parameters<typeof createSimulatedPod>[0];
type Listed = {
  name: string;
  address: string;
  model: string;
  kvEvents?: string | undefined;
  replay?: string;
  adapters?: string[];
};
type Line = Finding & { readonly name: string | null; readonly address: string | null };

const atEnd = endAfterEach();

async function aPod(name: string, options: PodOptions = {}): Promise<Listed & { readonly pod: SimulatedPod }> {
  const pod = createSimulatedPod(options);
  const { httpAddress, kvEventsEndpoint, replayEndpoint } = await pod.start();
  atEnd(() => pod.stop());
  return { name, address: httpAddress, model: 'demo-model', kvEvents: kvEventsEndpoint, replay: replayEndpoint, pod };
}

async function aFakeEngine(name: string): Promise<Listed> {
  const fake = await startFakeTokenizer();
  atEnd(() => fake.stop());
  return { name, address: new URL(fake.url).host, model: 'demo-model', kvEvents: 'none' };
}

/** `ip:port` where nobody listens. */
const aDeadAddress = async (): Promise<string> => `127.0.0.1:${await aFreePort()}`;

/** Nothing here is about speed: waits for tokens are as long as they may be, waits for nothing are short. */
const PATIENT = ['--set', 'tokenizer.budgetMs=10000', '--set', 'tokenizer.timeoutMs=30000'];
const TIMING = { listenMs: 50, replayTimeoutMs: 20_000, connectTimeoutMs: 20_000, eventTimeoutMs: 20_000 };

async function run(args: readonly string[], timing = {}) {
  const out: string[] = [];
  const err: string[] = [];
  const io = {
    stdout: (line: string) => void out.push(line),
    stderr: (line: string) => void err.push(line),
    env: {},
    isTerminal: false,
    signal: new AbortController().signal,
  };
  return { code: await runDoctor(args, io, { ...TIMING, ...timing }), out, err };
}

/** What is not in order, as `name check status: text`, and the exit code. */
async function diagnose(endpoints: readonly Listed[], args: readonly string[] = [], timing = {}) {
  const list = JSON.stringify(
    endpoints.map(({ name, address, model, kvEvents, replay, adapters }) => ({
      name,
      address,
      model,
      kvEvents,
      replay,
      adapters,
    })),
  );
  const { code, out, err } = await run(['--set', `discovery.endpoints=${list}`, ...PATIENT, '--json', ...args], timing);
  expect(err).toEqual([]);
  const lines = out.map((line) => JSON.parse(line) as Line);
  const found = lines.slice(0, -1);
  for (const { status, advice } of found) expect(advice === null).toBe(status === 'ok');
  const complaints = found
    .filter(({ status }) => status !== 'ok')
    .map(({ name, check, status, text }) => `${name} ${check} ${status}: ${text}`);
  return { code, found, complaints, counts: lines.at(-1) as unknown };
}

describe('a healthy fleet', () => {
  test('has nothing to complain of with --replay, once something was stored', async () => {
    const pods = [await aPod('a', { adapters: ['sql-lora'] }), await aPod('b', { seed: 7 })];
    for (const { address } of pods) {
      const body = JSON.stringify({
        model: 'demo-model',
        prompt: 'a prompt of more than one block '.repeat(20),
        max_tokens: 1,
      });
      await fetch(`http://${address}/v1/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
      });
    }
    const { code, complaints, counts, found } = await diagnose(pods, ['--replay']);
    expect([complaints, code]).toEqual([[], 0]);
    expect(counts).toEqual({ ok: found.length, warnings: 0, problems: 0 });
    const checks = found.filter(({ name }) => name === 'a').map(({ check, text }) => `${check}: ${text}`);
    expect(checks).toEqual([
      expect.stringMatching(/^http: http:\/\/127\.0\.0\.1:\d+ answers, version 0\.32\.0$/),
      'model: serves demo-model',
      'model: adapters sql-lora',
      'metrics: metrics of vllm read',
      'clock: clocks agree',
      'tokenizer: chats tokenized by render',
      'tokenizer: texts tokenized by render',
      expect.stringMatching(/^events: tcp:\S+ is a publisher, the handshake succeeds$/),
      expect.stringMatching(/^replay: tcp:\S+ answers, \d+ batch(es)? held$/),
      'events: events arrive: maps, hashes as integers',
      'blocks: blocks of 16 tokens',
      'salts: events tell salts, images and adapters',
    ]);
  });

  test('that is idle is only doubted, and a probe clears that up', async () => {
    const pod = await aPod('a', { wire: { hashes: 'bytes' } });
    const idle = await diagnose([pod]);
    expect([idle.code, idle.complaints]).toEqual([
      0,
      ['a events warning: no event came while it was watched: idle, or off'],
    ]);
    expect(pod.pod.stats().nextSeq).toBe(0);
    const probed = await diagnose([pod], ['--probe']);
    expect([probed.code, probed.complaints]).toEqual([0, []]);
    const texts = probed.found.map(({ text }) => text);
    expect(texts).toContain('a completion brought events, its salt among them');
    expect(texts).toContain('events arrive: maps, hashes as bytes');
    expect(texts).toContainEqual(expect.stringMatching(/^the second time \d+ of \d+ tokens were cached$/));
  });

  test('is shown as a table to people', async () => {
    const pod = await aPod('pod-a');
    const list = JSON.stringify([{ name: 'pod-a', address: pod.address, model: 'demo-model', kvEvents: 'none' }]);
    const { code, out } = await run(['--set', `discovery.endpoints=${list}`, ...PATIENT]);
    expect(code).toBe(0);
    expect(out[0]).toBe(`pod-a  ${pod.address}  demo-model`);
    expect(out[2]).toBe('  ok       model      serves demo-model');
    expect(out.at(-4)).toMatch(
      /^ {2}warning {2}events {5}the engine publishes KV events at port \d+, and nobody listens/,
    );
    expect(out.at(-3)).toMatch(/^ {22}→ name them: /);
    expect(out.at(-1)).toBe('6 ok, 1 warning, 0 problems');
  });
});

describe('what is wrong is found', () => {
  test('no endpoint at all', async () => {
    const { code, out, err } = await run([]);
    expect([code, err]).toEqual([1, [expect.stringMatching(/^warmpath doctor: neither discovery\.file nor /)]]);
    expect(out.slice(0, 2)).toEqual(['fleet', '  problem  fleet      there is no endpoint']);
  });

  test('nobody listens', async () => {
    const address = await aDeadAddress();
    const { code, complaints } = await diagnose([
      { name: 'a', address, model: 'demo-model', kvEvents: `tcp://${address}`, replay: 'none' },
    ]);
    expect(code).toBe(1);
    expect(complaints).toEqual([
      `a http problem: nobody listens at http://${address}`,
      `a events problem: no publisher answers at tcp://${address}`,
      `a replay warning: no replay socket for tcp://${address}: a lost batch makes all that was learnt doubtful`,
    ]);
  });

  test('another model and a missing adapter, and nothing that only follows from that', async () => {
    const pod = await aPod('a');
    const { code, complaints } = await diagnose(
      [{ ...pod, model: 'other', kvEvents: 'none', replay: undefined, adapters: ['sql'] }],
      ['--probe'],
    );
    expect(code).toBe(1);
    expect(complaints).toEqual([
      'a model problem: does not serve other, but demo-model',
      'a model warning: adapters not loaded: sql',
      expect.stringMatching(/^a events warning: the engine publishes KV events at port \d+, and nobody listens/),
    ]);
  });

  test('the port of the publisher: the engine says which it is', async () => {
    const pod = await aPod('a');
    const dead = await aDeadAddress();
    const { complaints } = await diagnose([{ ...pod, kvEvents: `tcp://${dead}` }]);
    const port = pod.kvEvents!.split(':').at(-1);
    expect(complaints).toEqual([
      `a events problem: no publisher answers at tcp://${dead}: the engine publishes at port ${port}`,
    ]);
  });

  test('a port that speaks HTTP is no publisher', async () => {
    const pod = await aPod('a', { wire: { events: 'arrays' } });
    const { complaints } = await diagnose([{ ...pod, kvEvents: `tcp://${pod.address}` }]);
    expect(complaints).toEqual([`a events problem: no publisher answers at tcp://${pod.address}`]);
  });

  test('a replay socket that does not answer', async () => {
    const pod = await aPod('a', { wire: { events: 'arrays' } });
    pod.pod.faults.ignoreReplays();
    const { complaints } = await diagnose([pod], [], { replayTimeoutMs: 200 });
    expect(complaints[0]).toBe(`a replay problem: ${pod.replay} does not replay: no end of the replay comes`);
  });

  test('the port of the replay socket: the engine says which it is', async () => {
    const pod = await aPod('a');
    const dead = await aDeadAddress();
    const { complaints } = await diagnose([{ ...pod, replay: `tcp://${dead}` }], [], { replayTimeoutMs: 200 });
    const port = pod.replay!.split(':').at(-1);
    expect(complaints[0]).toBe(`a replay problem: tcp://${dead} is configured, the engine replays at port ${port}`);
  });

  test('an engine whose completions bring no events', async () => {
    const [a, b] = [await aPod('a'), await aPod('b')];
    // The publisher of another engine.
    const { code, complaints } = await diagnose([{ ...a, kvEvents: b.kvEvents, replay: b.replay }], ['--probe'], {
      eventTimeoutMs: 100,
    });
    expect(code).toBe(1);
    expect(complaints[0]).toMatch(/^a events problem: a completion of \d+ tokens brought no event$/);
  });

  test('answers that do not report cached tokens', async () => {
    const pod = await aPod('a', { wire: { events: 'arrays' }, promptTokensDetails: 'off' });
    const { complaints } = await diagnose([pod], ['--probe']);
    expect(complaints).toContain('a cache warning: answers do not report cached tokens');
  });

  test('tokenizers that hang, and those that are slow', async () => {
    const pod = await aPod('a', { tokenizerDelayMs: 'hang' });
    const { complaints, code } = await diagnose(
      [{ ...pod, kvEvents: 'none', replay: undefined }],
      ['--set', 'tokenizer.timeoutMs=100'],
    );
    expect(code).toBe(1);
    expect(complaints.slice(0, 2)).toEqual([
      'a tokenizer problem: no tokens of chats: render does not answer within tokenizer.timeoutMs',
      'a tokenizer problem: no tokens of texts: render does not answer within tokenizer.timeoutMs',
    ]);
    pod.pod.faults.setTokenizerDelay(20);
    const slow = await diagnose([{ ...pod, kvEvents: 'none', replay: undefined }], ['--set', 'tokenizer.budgetMs=1']);
    expect(slow.complaints[0]).toMatch(/^a tokenizer warning: tokens take \d+ ms, requests wait for 1 ms at most$/);
  });

  test('endpoints of one model that read other tokens than the rest', async () => {
    const { code, complaints } = await diagnose([await aFakeEngine('odd'), await aPod('a'), await aPod('b')]);
    expect(code).toBe(1);
    expect(complaints.filter((line) => line.includes('tokenizer'))).toEqual([
      expect.stringMatching(
        /^odd tokenizer problem: reads texts as other tokens than a: \d+ for \d+, the first other one at \d+$/,
      ),
    ]);
  });

  test('a dedicated tokenizer that reads other tokens than the engine', async () => {
    const fake = await startFakeTokenizer();
    atEnd(() => fake.stop());
    const { complaints } = await diagnose([await aPod('a')], ['--set', `tokenizer.urls=[${fake.url}]`]);
    expect(complaints.filter((line) => line.includes('tokenizer'))).toEqual([
      expect.stringMatching(/^http:\S+ tokenizer problem: reads texts as other tokens than a: /),
    ]);
  });

  test('no metrics, no list of models', async () => {
    const { code, complaints } = await diagnose([await aFakeEngine('odd')]);
    expect(code).toBe(0);
    expect(complaints).toEqual([
      expect.stringMatching(/^odd model warning: GET \/v1\/models /),
      expect.stringMatching(/^odd metrics warning: GET \/metrics /),
      'odd events warning: publishes no KV events: it is chosen by what was sent to it',
    ]);
  });

  test.each([
    [60_000, 'ahead of'],
    [-60_000, 'behind'],
  ])('a clock that is %d ms off', async (clockOffsetMs, words) => {
    const { code, complaints } = await diagnose([await aPod('a', { clockOffsetMs })], ['--probe']);
    expect(code).toBe(0);
    expect(complaints).toEqual([
      expect.stringMatching(new RegExp(`^a clock warning: its clock is \\d+ s ${words} this one$`)),
    ]);
  });
});

describe('publishers that connect to Warmpath', () => {
  test('are known by their replay sockets only', async () => {
    const pod = await aPod('a');
    const listen = ['--set', 'kvEvents.listen=127.0.0.1:5557'];
    const { code, complaints, found } = await diagnose([{ ...pod, kvEvents: undefined }], listen);
    expect([code, complaints]).toEqual([0, []]);
    expect(found.filter(({ check }) => check === 'events' || check === 'replay').map(({ text }) => text)).toEqual([
      `connects to kvEvents.listen as kv@${pod.address}: /api/v1/endpoints of the running Warmpath tells more`,
      `${pod.replay} answers`,
    ]);
    pod.pod.faults.ignoreReplays();
    const silent = await diagnose([{ ...pod, kvEvents: undefined }], listen, { replayTimeoutMs: 100 });
    expect(silent.complaints).toEqual([`a replay problem: ${pod.replay} does not replay: no end of the replay comes`]);
  });
});

describe('endpoints from Kubernetes', () => {
  async function aCluster(): Promise<{ readonly server: FakeApiServer; readonly args: readonly string[] }> {
    const server = await FakeApiServer.start();
    const folder = await mkdtemp(join(tmpdir(), 'warmpath-doctor-'));
    atEnd(
      () => server.stop(),
      () => rm(folder, { recursive: true }),
    );
    const file = join(folder, 'kubeconfig');
    await writeFile(file, kubeconfigOf(server));
    return { server, args: ['--set', 'discovery.mode=kubernetes', '--set', `discovery.kubernetes.kubeconfig=${file}`] };
  }

  test('are asked, and pods that get no requests are named', async () => {
    const { server, args } = await aCluster();
    const { address } = await aPod('a');
    const at = { ip: '127.0.0.1', annotations: { 'warmpath.dev/port': address.split(':')[1]! } };
    server.store.create('pods', aKubernetesPod({ name: 'good', ...at }));
    server.store.create('pods', aKubernetesPod({ name: 'early', ip: '127.0.0.2', ready: 'False' }));
    server.store.create('pods', aKubernetesPod({ name: 'lost', ip: null }));
    const { code, out } = await run([...args, ...PATIENT, '--json']);
    const lines = out.slice(0, -1).map((line) => JSON.parse(line) as Line);
    const said = lines.map(({ name, check, status, text }) => `${name} ${check} ${status}: ${text}`);
    expect(said).toContain('null fleet warning: pod lost is no endpoint: has no IP address yet');
    expect(said).toContain('null fleet warning: pod early is not ready');
    expect(said).toContain('good model ok: serves demo-model');
    expect(said.filter((line) => line.startsWith('early'))).toEqual([]);
    expect(code).toBe(0);
  });

  test('that cannot be found are a problem, with the reason', async () => {
    const { args } = await aCluster();
    const { code, out } = await run([...args, '--json']);
    expect(code).toBe(1);
    expect(JSON.parse(out[0]!)).toMatchObject({
      name: null,
      check: 'fleet',
      status: 'problem',
      text: expect.stringMatching(/^no pod matches the selector model\.aibrix\.ai\/name of namespace /),
    });
  });
});

describe('the command', () => {
  test('says what it takes', async () => {
    const { code, out } = await run(['--help']);
    expect([code, out[0]]).toEqual([0, expect.stringMatching(/^usage: warmpath doctor /)]);
  });

  test('ends with 2 on wrong usage and wrong configuration, having asked nobody', async () => {
    expect(await run(['--nonsense'])).toMatchObject({ code: 2, out: [] });
    expect(await run(['--set', 'tokenizer.budgetMs=soon'])).toMatchObject({ code: 2, out: [] });
  });
});
