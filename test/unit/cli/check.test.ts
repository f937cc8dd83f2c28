import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { parse } from 'yaml';
import { runCheck } from '../../../src/cli/check.ts';
import { loadOptions } from '../../../src/cli/options.ts';

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'warmpath-check-'));
});

afterEach(() => rm(directory, { recursive: true }));

async function aFile(name: string, text: string): Promise<string> {
  const path = join(directory, name);
  await writeFile(path, text);
  return path;
}

type Ended = { readonly code: number; readonly stdout: string; readonly stderr: readonly string[] };

async function check(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Ended> {
  const stdout: string[] = [];
  const stderr: string[] = [];
  const io = {
    stdout: (line: string) => void stdout.push(line),
    stderr: (line: string) => void stderr.push(line),
    env,
  };
  const code = await runCheck(args, io);
  return { code, stdout: stdout.join('\n'), stderr };
}

test('engine profiles that are wrong are mistakes like any other', async () => {
  const profiles = await aFile('profiles.yaml', 'profiles:\n  - { gpuType: A, prefillTokensPerSecond: 0 }\n');
  const given = ['--set', `load.engineProfileFile=${profiles}`, '--set', 'log.level=loud'];
  const { code, stderr } = await check([...given, '--set', 'load.gpuTypeLabel=gpu']);
  expect([code, stderr]).toEqual([
    2,
    [
      'warmpath check: 2 mistakes in the configuration',
      '  log.level must be one of debug, info, warn, error, got "loud" (--set)',
      `  profiles[0].prefillTokensPerSecond must be a number above 0 and at most 1000000000, got 0 (${profiles}:2)`,
    ],
  ]);
});

describe('a right configuration', () => {
  test('without any argument the defaults are printed as YAML, and that they name no endpoint', async () => {
    const { code, stdout, stderr } = await check([]);
    expect([code, stderr]).toEqual([
      0,
      ['warmpath check: neither discovery.file nor discovery.endpoints names an endpoint: requests will get 503'],
    ]);
    expect(parse(stdout)).toMatchObject({ server: { grpcListen: '0.0.0.0:9002', bodyMaxBytes: 16_777_216 } });
  });

  test('what takes effect is printed, and can be loaded again', async () => {
    const endpoints = await aFile('endpoints.yaml', 'endpoints: [{ address: 10.0.0.1:80, model: m }]\n');
    const config = await aFile('warmpath.yaml', `discovery:\n  file: ${endpoints}\ntokenizer:\n  budgetMs: 10\n`);
    const env = { WARMPATH_LOG_LEVEL: 'debug', AIBRIX_USE_REMOTE_TOKENIZER: 'false' };
    const first = await check(
      ['--config', config, '--set', 'routing.fallbackEndpoints=0', '--set=tokenizer.maxInFlight=5'],
      env,
    );
    expect(first.code).toBe(0);
    expect(first.stderr).toEqual([
      'warmpath check: AIBRIX_USE_REMOTE_TOKENIZER is an alias of tokenizer.api, please set WARMPATH_TOKENIZER_API instead',
    ]);
    expect(parse(first.stdout)).toMatchObject({
      discovery: { file: endpoints },
      tokenizer: { budgetMs: 10, api: 'none', maxInFlight: 5 },
      routing: { fallbackEndpoints: 0 },
      log: { level: 'debug' },
    });
    const again = await check(['--config', await aFile('again.yaml', first.stdout)]);
    expect(again).toEqual({ code: 0, stdout: first.stdout, stderr: [] });
  });

  test('--help says what it takes, on stdout', async () => {
    const { code, stdout, stderr } = await check(['--help']);
    expect([code, stderr]).toEqual([0, []]);
    expect(stdout).toMatch(/^usage: warmpath check \[--config FILE\] \[--set key=value\]…/);
  });
});

describe('a wrong one', () => {
  test('every mistake of configuration, endpoints file and TLS files is told at once, with its place; exit 2', async () => {
    const endpoints = await aFile('endpoints.yaml', 'endpoints:\n  - address: pod-a:80\n    model: m\n');
    const config = await aFile(
      'warmpath.yaml',
      `server:\n  grpcListn: x\n  tls: { certFile: /nowhere/cert.pem, keyFile: ${endpoints} }\ndiscovery:\n  file: ${endpoints}\n`,
    );
    const { code, stdout, stderr } = await check(['--config', config, '--set', 'tokenizer.budgetMs=abc']);
    expect([code, stdout]).toEqual([2, '']);
    expect(stderr).toEqual([
      'warmpath check: 4 mistakes in the configuration',
      `  unknown key server.grpcListn, the nearest known one is server.grpcListen (${config}:2)`,
      '  tokenizer.budgetMs must be an integer from 0 to 10000, got "abc" (--set)',
      `  endpoints[0].address must be ip:port, got "pod-a:80": it must be an IP address, because Envoy compares addresses and names are not resolved (${endpoints}:2)`,
      expect.stringMatching(
        /^ {2}server\.tls\.certFile must be a readable file, got "\/nowhere\/cert\.pem": ENOENT.* \(.*warmpath\.yaml:3\)$/,
      ),
    ]);
  });

  test('an inline endpoint is told with its line in the configuration', async () => {
    const config = await aFile(
      'warmpath.yaml',
      'discovery:\n  endpoints:\n    - address: 10.0.0.1:80\n      model: m\n      kvEvents: 5557\n',
    );
    const { code, stderr } = await check(['--config', config]);
    expect(code).toBe(2);
    expect(stderr).toEqual([
      'warmpath check: 1 mistake in the configuration',
      `  discovery.endpoints[0].kvEvents must be tcp://ip:port or none, got 5557 (${config}:5)`,
    ]);
  });

  test('an endpoints file that is not there is told', async () => {
    const { code, stderr } = await check(['--set', `discovery.file=${join(directory, 'gone.yaml')}`]);
    expect(code).toBe(2);
    expect(stderr[1]).toMatch(/^ {2}cannot read the endpoints file .*gone\.yaml: ENOENT/);
  });

  test('a configuration file that is not there is told', async () => {
    const { code, stderr } = await check(['--config', join(directory, 'gone.yaml')]);
    expect(code).toBe(2);
    expect(stderr[1]).toMatch(/^ {2}cannot read the configuration file .*gone\.yaml: ENOENT/);
  });

  test.each([
    [['--bogus'], /^warmpath check: unknown option "--bogus", expected some of --config, --set, --help/],
    [['--config'], /^warmpath check: Option '--config <value>' argument missing/],
    [['file.yaml'], /^warmpath check: Unexpected argument 'file\.yaml'/],
  ])('%j is wrong usage; exit 2 and a hint', async (args, first) => {
    const { code, stdout, stderr } = await check(args);
    expect([code, stdout]).toEqual([2, '']);
    expect(stderr).toEqual([expect.stringMatching(first), 'warmpath check --help says what it takes']);
  });

  test('--set without a value is a mistake like any other', async () => {
    expect(await check(['--set', 'log.level'])).toMatchObject({
      code: 2,
      stderr: ['warmpath check: 1 mistake in the configuration', '  --set must be key=value, got "log.level"'],
    });
  });
});

test('another command shares the options under its own name', () => {
  const stderr: string[] = [];
  const io = { stdout: () => undefined, stderr: (line: string) => void stderr.push(line), env: {} };
  expect(loadOptions('serve', 'help', ['--nope'], io, () => '')).toEqual({ kind: 'exit', code: 2 });
  expect(stderr[0]).toMatch(/^warmpath serve: /);
  const args = ['--set', 'discovery.mode=kubernetes'];
  expect(loadOptions('serve', 'help', args, io, () => '')).toMatchObject({ kind: 'options', notices: [] });
});
