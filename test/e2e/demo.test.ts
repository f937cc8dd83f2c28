import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from '@jest/globals';
import type { DemoReport } from '../../src/demo/report.ts';
import { envoyBinary } from '../support/envoy.ts';
import { eventually } from './stage.ts';

const MAIN = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
const RATE = expect.any(Number) as unknown as number;
const TIMES = { p50: RATE, p95: RATE, p99: RATE };

type Demo = {
  readonly child: ChildProcess;
  /** Processes it started that are alive. */
  running(): readonly { readonly pid: number; readonly command: string }[];
  readonly ended: Promise<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }>;
  /** What it left in its temporary folder. */
  leftFolders(): readonly string[];
};

function startDemo(args: readonly string[]): Demo {
  // A folder of its own for what it leaves behind: other tests run an Envoy at the same time.
  const folder = mkdtempSync(join(tmpdir(), 'demo-test-'));
  const child = spawn(process.execPath, [MAIN, 'demo', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, TMPDIR: folder },
  });
  const known = new Map<number, string>();
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const running = (): { pid: number; command: string }[] => {
    const alive = processes();
    for (const { pid, parent, command } of alive) if (parent === child.pid) known.set(pid, command);
    return alive.filter(({ pid, command }) => known.get(pid) === command);
  };
  const ended = new Promise<{ code: number | null; stdout: string; stderr: string }>((resolve) => {
    child.once('close', (code) => resolve({ code, stdout, stderr }));
  });
  return { child, running, ended, leftFolders: () => readdirSync(folder) };
}

/** Every process of this machine that is not a zombie, from /proc. */
function processes(): { pid: number; parent: number; command: string }[] {
  return readdirSync('/proc').flatMap((name) => {
    try {
      const [, state, parent] = /\) (\S) (\d+)/.exec(readFileSync(`/proc/${name}/stat`, 'utf8'))!;
      const command = readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ');
      return state === 'Z' ? [] : [{ pid: Number(name), parent: Number(parent), command }];
    } catch {
      // Not a process, or one that has just ended.
      return [];
    }
  });
}

async function whenRunning(demo: Demo, ...words: readonly string[]): Promise<void> {
  await eventually(() => {
    const commands = demo.running().map(({ command }) => command);
    const missing = words.filter((word) => !commands.some((command) => command.includes(word)));
    return missing.length === 0 ? 'done' : `not running: ${missing.join(', ')}`;
  }, 60_000);
}

describe('warmpath demo', () => {
  test('prints one line of JSON as promised, fails no request, and leaves nothing behind', async () => {
    await envoyBinary();
    const demo = startDemo(['--seconds', '5', '--json']);
    await whenRunning(demo, 'simulate-vllm', '/envoy ');
    await whenRunning(demo, 'simulate-vllm', 'serve', '/envoy ');
    const { code, stdout, stderr } = await demo.ended;
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const report = JSON.parse(stdout) as DemoReport;
    expect(report).toEqual({
      envoy: '1.40.0',
      workload: { requests: 65, idealHitRate: RATE },
      roundRobin: { failed: 0, hitRate: RATE, ttftMs: TIMES, perEndpoint: [RATE, RATE, RATE, RATE] },
      warmpath: {
        failed: 0,
        hitRate: RATE,
        ttftMs: TIMES,
        perEndpoint: [RATE, RATE, RATE, RATE],
        predictedHitRate: RATE,
      },
    });
    const sum = (counts: readonly number[]): number => counts.reduce((a, b) => a + b, 0);
    expect(sum(report.roundRobin.perEndpoint)).toBe(65);
    expect(sum(report.warmpath.perEndpoint)).toBe(65);
    // Not the promised figures of a whole run, but none of them by chance either.
    expect(report.warmpath.hitRate).toBeGreaterThan(0.9 * report.workload.idealHitRate);
    expect(report.warmpath.hitRate).toBeLessThanOrEqual(report.workload.idealHitRate + 0.0001);
    expect(report.warmpath.hitRate).toBeGreaterThan(1.3 * report.roundRobin.hitRate);
    expect(Math.abs(report.warmpath.predictedHitRate - report.warmpath.hitRate)).toBeLessThan(0.03);
    expect(demo.running()).toEqual([]);
    expect(demo.leftFolders()).toEqual([]);
  }, 60_000);

  test('without Envoy says so in one line and uses the built-in driver', async () => {
    const demo = startDemo(['--seconds', '2', '--envoy', 'none', '--pods', '2']);
    const { code, stdout, stderr } = await demo.ended;
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: 'Without Envoy: requests go through the built-in ext_proc driver\n',
    });
    expect(stdout).toContain('through the built-in ext_proc driver (no Envoy)');
    expect(stdout).toMatch(/^failed +0 +0$/m);
  }, 60_000);

  test('ends everything it started on Ctrl-C', async () => {
    const demo = startDemo(['--envoy', await envoyBinary(), '--seconds', '2']);
    await whenRunning(demo, 'serve', '/envoy ');
    demo.child.kill('SIGINT');
    const { code, stdout, stderr } = await demo.ended;
    expect({ code, stdout, stderr }).toEqual({ code: 1, stdout: '', stderr: 'warmpath demo: interrupted\n' });
    expect(demo.running()).toEqual([]);
    expect(demo.leftFolders()).toEqual([]);
  }, 60_000);

  test('says which of its parts died, and ends the others', async () => {
    const demo = startDemo(['--seconds', '2']);
    await whenRunning(demo, 'simulate-vllm', '/envoy ');
    process.kill(demo.running().find(({ command }) => command.includes('simulate-vllm'))!.pid, 'SIGKILL');
    const { code, stderr } = await demo.ended;
    expect(code).toBe(1);
    expect(stderr).toMatch(/^warmpath demo: warmpath simulate-vllm ended with SIGKILL/);
    expect(demo.running()).toEqual([]);
  }, 60_000);

  test('with --keep stays, with everything reachable, until it is told to end', async () => {
    const demo = startDemo(['--seconds', '2', '--keep', '--json', '--pods', '2']);
    let said = '';
    demo.child.stderr!.on('data', (text: string) => (said += text));
    await eventually(() => (said.includes('Ctrl-C') ? 'done' : `said: ${said}`), 45_000);
    const [envoy, admin] = [...said.matchAll(/http:\/\/\S+/g)].map(([url]) => url);
    const body = JSON.stringify({ model: 'demo-model', messages: [{ role: 'user', content: 'hi' }], max_tokens: 2 });
    const headers = { 'content-type': 'application/json' };
    expect((await fetch(envoy!, { method: 'POST', headers, body })).status).toBe(200);
    expect((await fetch(new URL('/readyz', admin))).status).toBe(200);
    expect(demo.running().length).toBeGreaterThan(0);
    demo.child.kill('SIGTERM');
    const { code, stdout } = await demo.ended;
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ warmpath: { failed: 0 } });
    expect(demo.running()).toEqual([]);
  }, 60_000);
});
