import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { runReplay } from '../../../src/cli/replay.ts';
import { POLICIES } from '../../../src/replay/policies/policies.ts';

let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'warmpath-replay-'));
});

afterEach(() => rm(directory, { recursive: true }));

async function replayed(...args: string[]): Promise<{ code: number; stdout: string[]; stderr: string[] }> {
  const [stdout, stderr]: [string[], string[]] = [[], []];
  const io = {
    stdout: (line: string) => void stdout.push(line),
    stderr: (line: string) => void stderr.push(line),
    isTerminal: false,
  };
  return { code: await runReplay(args, io), stdout, stderr };
}

async function aTrace(...lines: string[]): Promise<string> {
  const file = join(directory, 'trace.jsonl');
  await writeFile(file, `${lines.join('\n')}\n`);
  return file;
}

const LINE = '{"timestamp": 0, "input_length": 600, "output_length": 10, "hash_ids": [1, 2]}';

describe('what bad input gets', () => {
  test.each([
    ['{"timestamp": 0', /:2: not JSON: \{"timestamp": 0, expected \{"timestamp", "input_length"/],
    ['[]', /:2: got \[\], expected an object with timestamp/],
    [LINE.replace('600', '"many"'), /:2: input_length must be an integer from 1 to \d+, got many$/],
    [
      LINE.replace('[1, 2]', '[1, 2, 3]'),
      /:2: hash_ids has 3 blocks, expected at most 2: 600 tokens in blocks of 512$/,
    ],
  ])('a trace with the line %s: file, line, what was expected, exit 2', async (line, message) => {
    const file = await aTrace(LINE, line, LINE);
    const { code, stdout, stderr } = await replayed(file, '--policies', 'random');
    expect([code, stdout]).toEqual([2, []]);
    expect(stderr).toHaveLength(1);
    expect(stderr[0]).toMatch(message);
    expect(stderr[0]).toContain(`warmpath replay: ${file}:2: `);
  });

  test('an unknown policy gets the list', async () => {
    const { code, stderr } = await replayed(await aTrace(LINE), '--policies', 'random,fastest');
    const known = Object.keys(POLICIES).join(', ');
    expect([code, stderr]).toEqual([2, [`warmpath replay: unknown policy "fastest", expected some of ${known}`]]);
  });

  test.each([
    [[], /expected a trace file or --workload NAME/],
    [['a', 'b'], /got 2 traces, expected one/],
    [['a', '--workload', 'chat'], /expected either a trace or --workload, got both/],
    [['--workload', 'chats'], /--workload must be one of .*chat.*, got "chats"/],
    [['--workload', 'chat', '--speed', '0'], /--speed must be a number above 0, got "0"/],
    [['--workload', 'chat', '--prefill-rate', '1e-300'], /--prefill-rate must be a number from 1 to 1000000000, got/],
    [['--workload', 'chat', '--engine-speeds', '1,0'], /--engine-speeds must be a number from 0.001 to 1000, got "0"/],
    [['--workload', 'chat', '--event-loss', '2'], /--event-loss must be a number from 0 to 1, got "2"/],
    [['--workload', 'chat', '--standby'], /--standby needs another router: expected --replicas 2 or more, got 1/],
    [
      ['--workload', 'chat', '--router-death', '9'],
      /--router-death needs another router: expected --replicas 2 or more/,
    ],
    [
      ['--workload', 'chat', '--replicas', '2', '--router-death', 'soon'],
      /--router-death must be SECOND or SECOND-SECOND, got "soon"/,
    ],
    [
      ['--workload', 'chat', '--replicas', '2', '--router-death', '9-30', '--router-death', '20'],
      /--router-death must be in order, each after the router is back, got "20"/,
    ],
    [
      ['--workload', 'chat', '--replicas', '2', '--router-death', '9-10'],
      /--router-death must last at least 3 s, until it is noticed, got "9-10"/,
    ],
    [['--workload', 'chat', '--crash', '9@5'], /--crash names engine 9, expected 0 to 7/],
    [
      ['--workload', 'chat', '--crash', '1@5-9', '--crash', '1@6-8'],
      /--crash of an engine must be in order, each after it is back, got "1@6-8"/,
    ],
    [
      ['--workload', 'chat', '--engines', '1', '--crash', '0@5-9'],
      /--crash must leave an engine, got none from second 5 on/,
    ],
    [
      ['--workload', 'chat', '--engines', '2', '--crash', '0@5-20', '--crash', '1@8-9', '--scale-out', '1@10'],
      /--crash must leave an engine, got none from second 8 on/,
    ],
    [['--workload', 'chat', '--scale-out', '0@5'], /--scale-out ENGINES must be an integer from 1 to 1000, got "0"/],
    [['--workload', 'chat', '--speed', '1e-300'], /chat at --speed 1e-300 lasts .* days, limit 366/],
    [
      ['--workload', 'chat', '--polices', 'random'],
      /: unknown option "--polices", the nearest known one is --policies$/,
    ],
    [
      ['--workload', 'chat', '--wholly-else'],
      /: unknown option "--wholly-else", expected some of .*--policies, .*--json$/,
    ],
  ])('%j is wrong usage, exit 2', async (args, message) => {
    const { code, stderr } = await replayed(...args);
    expect(code).toBe(2);
    expect(stderr[0]).toMatch(message);
  });

  test('times since 1970 in place of times since the start, which no replay would see the end of', async () => {
    const { code, stderr } = await replayed(await aTrace(LINE.replace('0', '1700000000000')), '--policies', 'random');
    expect([code, stderr]).toEqual([
      2,
      ['warmpath replay: trace.jsonl at --speed 1 lasts 19676 days, limit 366: do its timestamps begin at 0?'],
    ]);
  });

  test('a file that is not there is no wrong usage: exit 1', async () => {
    const { code, stderr } = await replayed(join(directory, 'none.jsonl'), '--policies', 'random');
    expect(code).toBe(1);
    expect(stderr[0]).toContain('cannot read trace');
  });
});

describe('what comes out', () => {
  const SMALL = ['--workload', 'chat', '--requests', '60', '--policies', 'round-robin,prefix-cache,oracle'];

  test('a table, with what reads the future labelled as such, and a plot', async () => {
    const svg = join(directory, 'plot.svg');
    const { code, stdout, stderr } = await replayed(...SMALL, '--svg', svg);
    expect([code, stderr]).toEqual([0, []]);
    expect(stdout[0]).toBe('chat: 60 requests, speed 1, 8 engines, caches of 2000 blocks, simple timing');
    expect(stdout[3]).toMatch(/^policy +hit rate +TTFT mean +p50 +p90 +p99 +E2E mean +imbalance$/);
    expect(stdout.slice(4).map((line) => line.split(/ {2,}/)[0])).toEqual([
      'round-robin',
      'prefix-cache',
      'oracle (reads the future)',
    ]);
    expect(await readFile(svg, 'utf8')).toMatch(/^<svg[^]*prefix-cache[^]*<\/svg>\s*$/);
  });

  test('the last engine may die when others have come, and one that is back may die again', async () => {
    const faults = ['--engines', '1', '--scale-out', '1@19', '--crash', '0@20-30', '--crash', '0@30.5-40'];
    const { code, stdout, stderr } = await replayed(...SMALL, ...faults, '--json');
    expect([code, stderr]).toEqual([0, []]);
    for (const line of stdout) expect(JSON.parse(line)).toMatchObject({ unanswered: 0 });
  });

  test('the same for the same seed, faults and scale-out included', async () => {
    const faults = ['--crash', '1@20-40', '--scale-out', '2@30', '--event-delay-ms', '500', '--event-loss', '0.2'];
    faults.push('--replicas', '3', '--standby', '--router-death', '10-25', '--router-death', '35');
    const [first, second] = [
      await replayed(...SMALL, ...faults, '--json'),
      await replayed(...SMALL, ...faults, '--json'),
    ];
    expect(first).toEqual(second);
    expect(first.code).toBe(0);
    const rows = first.stdout.map((line) => JSON.parse(line) as { requestsPerEngine: number[]; unanswered: number });
    for (const { requestsPerEngine, unanswered } of rows) {
      expect(requestsPerEngine).toHaveLength(10);
      expect(unanswered).toBe(0);
    }
  });
});
