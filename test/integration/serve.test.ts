import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, rename, writeFile } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from '@jest/globals';
import { stringify } from 'yaml';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;

const LISTEN = ['server.grpcListen', 'server.healthListen', 'server.adminListen'].flatMap((key) => [
  '--set',
  `${key}=127.0.0.1:0`,
]);
/** Nobody listens there: a source that is always being dialled. */
const ENDPOINTS =
  'discovery.endpoints=[{name: a, address: "127.0.0.1:9", model: m, kvEvents: "tcp://127.0.0.1:9", replay: none}]';

const warmpath = (...args: readonly string[]) => running([], args);

function running(nodeArgs: readonly string[], args: readonly string[]) {
  const child = spawn(process.execPath, [...nodeArgs, MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  const exit = once(child, 'exit').then(([code, signal]: unknown[]) => ({ code, signal, stdout, stderr }));
  const says = async (text: string): Promise<void> => {
    while (!stdout.includes(text)) await Promise.race([once(child.stdout, 'data'), exit.then(fail)]);
  };
  const fail = (): never => {
    throw new Error(`warmpath ended: ${stdout}${stderr}`);
  };
  const line = (text: string): string => stdout.split('\n').find((said) => said.includes(text))!;
  return { child, exit, says, line };
}

describe('warmpath replay as a process', () => {
  test('one signal ends it though it computes all the time', async () => {
    const { child, exit, says } = warmpath(
      ...['replay', '--workload', 'chat', '--requests', '50000', '--json', '--policies', 'random,prefix-cache,oracle'],
    );
    await says('"random"');
    child.kill('SIGTERM');
    expect(await exit).toMatchObject({ code: null, signal: 'SIGTERM', stderr: '' });
  });
});

describe('warmpath serve as a process', () => {
  test('one signal drains and ends with 0', async () => {
    const { child, exit, says } = warmpath('serve', ...LISTEN, '--set', ENDPOINTS, '--set', 'server.drainDelayMs=0');
    await says('"serving"');
    child.kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 0, signal: null, stderr: '' });
  });

  test('a second signal ends at once with 1, and does not abort', async () => {
    const { child, exit, says } = warmpath(
      'serve',
      ...LISTEN,
      '--set',
      ENDPOINTS,
      '--set',
      'server.drainDelayMs=60000',
    );
    await says('"serving"');
    child.kill('SIGTERM');
    await says('"stopping"');
    child.kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 1, signal: null, stderr: '' });
  });

  test('a failure nobody handles is told and ends nothing', async () => {
    const planted = `data:text/javascript,${encodeURIComponent(`
      process.on('SIGUSR2', () => Promise.reject(new Error('planted')));
    `)}`;
    const args = ['serve', ...LISTEN, '--set', ENDPOINTS, '--set', 'server.drainDelayMs=0'];
    const { child, exit, says, line } = running(['--import', planted], args);
    await says('"serving"');
    child.kill('SIGUSR2');
    await says('"planted"');
    const { admin } = JSON.parse(line('"serving"')) as { admin: string };
    expect((await fetch(`http://${admin}/livez`)).status).toBe(200);
    child.kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 0, signal: null, stderr: '' });
  });

  test('a reader of its log that goes away lets it end in order', async () => {
    const { child, exit, says } = warmpath('serve', ...LISTEN, '--set', ENDPOINTS, '--set', 'server.drainDelayMs=0');
    await says('"serving"');
    child.stdout.destroy();
    child.kill('SIGTERM');
    expect(await exit).toMatchObject({ code: 0, signal: null });
  });

  test('a port in use is one clear line and exit 1, with nothing left running', async () => {
    const taken = createServer().listen(0, '127.0.0.1');
    await once(taken, 'listening');
    const { port } = taken.address() as AddressInfo;
    try {
      const { exit } = warmpath('serve', ...LISTEN, '--set', ENDPOINTS, '--set', `server.grpcListen=127.0.0.1:${port}`);
      const { code, stderr } = await exit;
      expect(code).toBe(1);
      expect(stderr.trim().split('\n')).toEqual([expect.stringContaining(`127.0.0.1:${port}`)]);
    } finally {
      taken.close();
    }
  });

  test('every mistake of the configuration is named at once, exit 2', async () => {
    const { exit } = warmpath('serve', '--set', 'tokenizer.budgetMs=abc', '--set', 'routing.fallbackEndpoint=2');
    const { code, stderr } = await exit;
    expect(code).toBe(2);
    expect(stderr).toMatch(/tokenizer\.budgetMs must be .*got "abc"/);
    expect(stderr).toMatch(/routing\.fallbackEndpoints/);
  });

  test('a changed file takes effect where it can, says where it cannot, and changes nothing where it is broken', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'warmpath-serve-'));
    const file = join(folder, 'warmpath.yaml');
    const text = (more: { endpoint?: string | null; fallbacks?: number | string; drainDelayMs?: number }): string =>
      stringify({
        server: { drainDelayMs: more.drainDelayMs ?? 0 },
        routing: { fallbackEndpoints: more.fallbacks ?? 2 },
        discovery: {
          endpoints:
            more.endpoint === null
              ? []
              : [{ name: 'a', address: more.endpoint ?? '127.0.0.1:9', model: 'm', kvEvents: 'none' }],
        },
      });
    await writeFile(file, text({}));
    const { child, exit, says, line } = warmpath('serve', ...LISTEN, '--config', file);
    try {
      await says('"serving"');
      const { admin } = JSON.parse(line('"serving"')) as { admin: string };
      const get = async (path: string): Promise<string> => (await fetch(`http://${admin}${path}`)).text();
      const until = async (path: string, pattern: RegExp): Promise<void> => {
        const deadline = performance.now() + 20_000;
        for (;;) {
          const got = await get(path);
          if (pattern.test(got)) return;
          if (performance.now() > deadline) throw new Error(`${path} never says ${pattern}: ${got}`);
          await delay(20);
        }
      };
      expect(await get('/readyz')).toContain('"config":"ok"');

      // In one step: on a busy machine a file can stay empty for longer than it is waited for.
      const put = async (content: string): Promise<void> => {
        await writeFile(`${file}.new`, content);
        await rename(`${file}.new`, file);
      };
      await put(text({ endpoint: '127.0.0.1:10', fallbacks: 1, drainDelayMs: 77 }));
      await until('/api/v1/endpoints', /127\.0\.0\.1:10"/);
      await until('/readyz', /"config":"ok, but a restart is needed for server\.drainDelayMs"/);
      const config = await get('/api/v1/config');
      expect(config).toContain('"fallbackEndpoints":1');
      expect(config).toContain('"drainDelayMs":0');

      await put(text({ endpoint: '127.0.0.1:11', fallbacks: 'many' }));
      await until('/readyz', /not the newest file: routing\.fallbackEndpoints must be .*got \\"many\\"/);
      expect(await get('/api/v1/endpoints')).toContain('127.0.0.1:10"');
      expect(await get('/readyz')).toContain('"ready":true');

      await put(text({ endpoint: '127.0.0.1:11' }));
      await until('/readyz', /"config":"ok"/);
      await until('/api/v1/endpoints', /127\.0\.0\.1:11"/);

      await put(text({ endpoint: null }));
      await until('/readyz', /"ready":true,.*"endpoints":"ok, but there is no endpoint: requests get 503"/);
    } finally {
      child.kill('SIGTERM');
      expect(await exit).toMatchObject({ code: 0 });
      await rm(folder, { recursive: true });
    }
  });

  test.each([
    [['--help'], 0],
    [[], 2],
    [['no-such-command'], 2],
    [['serve', '--no-such-flag'], 2],
  ])('warmpath %j ends with %d', async (args, expected) => {
    const { exit } = warmpath(...args);
    const { code, stdout, stderr } = await exit;
    expect(code).toBe(expected);
    expect((expected === 0 ? stdout : stderr).length).toBeGreaterThan(0);
  });
});
