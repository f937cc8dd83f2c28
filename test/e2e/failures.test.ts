import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from '@jest/globals';
import { stringify } from 'yaml';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startCommand } from '../../src/demo/command-process.ts';
import { startTestEnvoy } from '../support/envoy.ts';
import {
  aChat,
  chat,
  endpointEntry,
  endpointViews,
  eventually,
  finishedRequests,
  longText,
  setStage,
  startPods,
  whenTrusted,
  type Stage,
} from './stage.ts';

describe('a pod that dies', () => {
  test('takes only what was in flight on it, and is trusted again soon after its return, without its old blocks', async () => {
    const stage = await setStage();
    try {
      const victim = stage.pods[1]!;
      const warm = await warmPromptOf(stage, victim.name);
      const sent: { readonly startMs: number; readonly status: Promise<number> }[] = [];
      const sendFor = async (ms: number): Promise<void> => {
        const endMs = performance.now() + ms;
        while (performance.now() < endMs) {
          const body = aChat(longText(`n${sent.length}x`, 60), { max_tokens: 100 });
          const startMs = performance.now();
          sent.push({ startMs, status: chat(stage.envoy.listenerAddress, body).then(({ status }) => status) });
          await delay(15);
        }
      };
      const arrived = (): number =>
        stage.pods.reduce((sum, { pod }) => sum + pod.stats().running + pod.stats().waiting, 0) +
        finishedRequests(stage.pods).reduce((sum, n) => sum + n, 0);
      const arrivedBefore = arrived();
      await sendFor(400);
      // None is under way any more: whatever fails from here on was on the pod that died.
      await eventually(() => (arrived() - arrivedBefore === sent.length ? 'done' : `${arrived()} requests arrived`));
      const inFlight = victim.pod.stats().running + victim.pod.stats().waiting;
      expect(inFlight).toBeGreaterThan(0);
      const beforeMs = performance.now();
      await stage.kill(victim);
      const deadMs = performance.now();
      await sendFor(600);
      const statuses = await Promise.all(sent.map(({ status }) => status));
      const failed = sent.filter((_, i) => statuses[i] !== 200);
      expect(failed.filter(({ startMs }) => startMs > deadMs)).toEqual([]);
      expect(failed.filter(({ startMs }) => startMs <= beforeMs).length).toBeLessThanOrEqual(inFlight);

      await stage.restart(victim);
      await eventually(async () => {
        const view = (await endpointViews(stage.warmpath.admin)).find(({ name }) => name === victim.name);
        return view?.trust === 'exact' ? 'done' : `trust of ${victim.name} is ${view?.trust}`;
      }, 2000);
      expect(await announcedBlocks(stage, warm, victim.addresses.httpAddress)).toBe(0);
    } finally {
      await stage.end();
    }
  });
});

describe('a tokenizer that hangs', () => {
  test('costs no request more than the budget', async () => {
    const budgetMs = 150;
    const stage = await setStage({ config: { tokenizer: { budgetMs, timeoutMs: 60_000 } } });
    try {
      const normal = await chat(stage.envoy.listenerAddress, aChat(longText('normal', 50)));
      expect(normal.status).toBe(200);
      for (const { pod } of stage.pods) pod.faults.setTokenizerDelay('hang');
      const answers = await Promise.all(
        Array.from({ length: 20 }, (_, i) => chat(stage.envoy.listenerAddress, aChat(longText(`hang${i}x`, 50)))),
      );
      expect(answers.map(({ status }) => status)).toEqual(Array(20).fill(200));
      // Without a budget the tokenizer's own timeout of a minute would be the wait.
      const slowest = Math.max(...answers.map(({ durationMs }) => durationMs));
      expect(slowest).toBeLessThan(10_000);
      // Warmpath answered all of them itself: Envoy's message timeout did not have to help.
      const stats = await stage.envoy.stats('ext_proc.warmpath.(message_timeouts|failure_mode_allowed)');
      expect([...stats.values()]).toEqual([0, 0]);
    } finally {
      await stage.end();
    }
  });
});

describe('kill -TERM', () => {
  test('readiness is gone at once, running answers finish, exit code 0 inside the drain timeout', async () => {
    const pods = await startPods({ nPods: 2, pod: { decodeStepMs: 20 } });
    const folder = await mkdtemp(join(tmpdir(), 'warmpath-e2e-'));
    const file = join(folder, 'warmpath.yaml');
    const server = {
      grpcListen: '127.0.0.1:0',
      healthListen: '127.0.0.1:0',
      adminListen: '127.0.0.1:0',
      drainDelayMs: 2000,
      drainTimeoutMs: 20_000,
    };
    await writeFile(file, stringify({ server, discovery: { endpoints: pods.map(endpointEntry) } }));
    const command = await startCommand({
      args: ['serve', '--config', file],
      isReadyLine: (line) => line.includes('"msg":"serving"'),
    });
    const { grpc, admin } = JSON.parse(command.readyLines[0]!) as { grpc: string; admin: string };
    await whenTrusted(admin, pods.length);
    const envoy = await startTestEnvoy({
      template: 'buffered',
      withExtProc: 'yes',
      extProcAddress: grpc,
      pods: pods.map(({ addresses }) => addresses.httpAddress),
    });
    try {
      // Each takes about a second: running when the signal comes, still running when new requests stop.
      const answers = Array.from({ length: 8 }, (_, i) =>
        chat(envoy.listenerAddress, aChat(longText(`drain${i}x`, 40), { max_tokens: 50 })),
      );
      await eventually(() => (pods.some(({ pod }) => pod.stats().running > 0) ? 'done' : 'no request runs'));
      const stopMs = performance.now();
      const exit = command.stop();
      await eventually(async () => {
        const response = await fetch(`http://${admin}/readyz`);
        return response.status === 503 ? 'done' : `/readyz answers ${response.status}`;
      }, 1800);
      const late = await chat(envoy.listenerAddress, aChat('while it drains'));
      expect(late.status).toBe(200);
      expect(await exit).toBe(0);
      expect(performance.now() - stopMs).toBeLessThan(2000 + 20_000);
      expect((await Promise.all(answers)).map(({ status }) => status)).toEqual(Array(8).fill(200));
      // Nobody left to ask: requests go on all the same.
      expect((await chat(envoy.listenerAddress, aChat('after it went'))).status).toBe(200);
    } finally {
      await envoy.stop();
      await command.stop();
      await Promise.all(pods.map(({ pod }) => pod.stop()));
      await rm(folder, { recursive: true, force: true });
    }
  });
});

/** A prompt this pod is warm for. */
async function warmPromptOf(stage: Stage, name: string): Promise<object> {
  const pod = stage.pods.find((candidate) => candidate.name === name)!;
  for (let i = 0; i < 50; i++) {
    const body = aChat(longText(`warm${i}x`, 100));
    const before = pod.pod.stats().finishedRequests;
    expect((await chat(stage.envoy.listenerAddress, body)).status).toBe(200);
    if (pod.pod.stats().finishedRequests === before) continue;
    expect(await announcedBlocks(stage, body, pod.addresses.httpAddress)).toBeGreaterThan(0);
    return body;
  }
  throw new Error(`none of 50 prompts went to ${name}`);
}

async function announcedBlocks(stage: Stage, body: object, address: string): Promise<number> {
  const response = await fetch(`http://${stage.warmpath.admin}/api/v1/explain`, {
    method: 'POST',
    body: JSON.stringify({ path: '/v1/chat/completions', headers: {}, body }),
  });
  const { candidates } = (await response.json()) as {
    candidates: { endpoint: string; matchedBlocks: { gpu: number } }[];
  };
  return candidates.find(({ endpoint }) => endpoint === address)!.matchedBlocks.gpu;
}
