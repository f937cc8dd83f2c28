import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { describe, expect, test } from '@jest/globals';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;

const LISTEN = ['server.grpcListen', 'server.healthListen', 'server.adminListen'].flatMap((key) => [
  '--set',
  `${key}=127.0.0.1:0`,
]);
/** Nobody listens there: a source that is always being dialled. */
const ENDPOINTS =
  'discovery.endpoints=[{name: a, address: "127.0.0.1:9", model: m, kvEvents: "tcp://127.0.0.1:9", replay: none}]';

function warmpath(...args: readonly string[]) {
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
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
  return { child, exit, says };
}

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
