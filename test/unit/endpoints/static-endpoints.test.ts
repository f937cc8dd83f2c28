import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { createStaticEndpoints, type StaticEndpoints } from '../../../src/endpoints/static-endpoints.ts';
import { createLog, silentLog } from '../../../src/log.ts';

/** What a change may take, watcher or polling; the machine may be busy. */
const DEADLINE_MS = 5_000;

let directory: string;
let file: string;
let running: StaticEndpoints | null = null;

/** What the parts behind were told, newest last. */
let lists: string[][];
let problems: (string | null)[];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'warmpath-endpoints-'));
  file = join(directory, 'endpoints.yaml');
  [lists, problems] = [[], []];
});

afterEach(async () => {
  await running?.stop();
  running = null;
  await rm(directory, { recursive: true });
});

function listOf(...addresses: string[]): string {
  return `endpoints:\n${addresses.map((address) => `  - { address: ${address}, model: m, kvEvents: none }\n`).join('')}`;
}

async function follow(given: { file?: string | null; inline?: unknown; pollMs?: number } = {}): Promise<void> {
  running = createStaticEndpoints(
    {
      log: silentLog,
      onEndpoints: (specs) => lists.push(specs.map(({ address }) => address)),
      onProblem: (problem) => problems.push(problem),
    },
    { file, inline: null, kvPort: 5557, replayPort: 5558, ...given },
  );
  await running.start();
}

async function until(isTrue: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS;
  while (!isTrue()) {
    if (performance.now() > deadline)
      throw new Error(
        `${what}: not within ${DEADLINE_MS} ms; lists ${JSON.stringify(lists)}, problems ${JSON.stringify(problems)}`,
      );
    await delay(10);
  }
}

const latest = (): string => JSON.stringify(lists.at(-1));

describe('at start', () => {
  test('an inline list is told once', async () => {
    await follow({ file: null, inline: [{ address: '10.0.0.1:80', model: 'm' }] });
    expect(lists).toEqual([['10.0.0.1:80']]);
  });

  test('neither file nor list is an empty fleet', async () => {
    await follow({ file: null });
    expect(lists).toEqual([[]]);
  });

  test('a file is told before start resolves', async () => {
    await writeFile(file, listOf('10.0.0.1:80', '10.0.0.2:80'));
    await follow();
    expect(lists).toEqual([['10.0.0.1:80', '10.0.0.2:80']]);
    expect(problems).toEqual([]);
  });

  test('a broken file fails the start with every mistake', async () => {
    await writeFile(file, listOf('pod:80', '10.0.0.1'));
    await expect(follow()).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(
        /^endpoints\[0\]\.address must be .*yaml:2\)\nendpoints\[1\]\.address must be .*yaml:3\)$/,
      ),
    });
    expect(lists).toEqual([]);
  });

  test('a missing file fails the start', async () => {
    await expect(follow()).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringMatching(/^cannot read the endpoints file .*endpoints\.yaml: ENOENT/),
    });
  });
});

describe('a change of the file takes effect', () => {
  beforeEach(() => writeFile(file, listOf('10.0.0.1:80')));

  test.each([
    ['by the watcher', 60_000],
    ['by polling where the directory is not watched', 50],
  ])('%s', async (how, pollMs) => {
    if (pollMs === 50) {
      // A link leads to another directory, whose changes the watched one does not show.
      const elsewhere = join(directory, 'elsewhere');
      await mkdir(elsewhere);
      await rename(file, join(elsewhere, 'real.yaml'));
      await symlink(join(elsewhere, 'real.yaml'), file);
    }
    await follow({ pollMs });
    await writeFile(file, listOf('10.0.0.2:80'));
    await until(() => latest() === '["10.0.0.2:80"]', how);
    expect(problems).toEqual([null]);
  });

  test('when an editor puts a new file in its place', async () => {
    await follow();
    await writeFile(`${file}~`, listOf('10.0.0.2:80'));
    await rename(`${file}~`, file);
    await until(() => latest() === '["10.0.0.2:80"]', 'renamed file');
    await writeFile(file, listOf('10.0.0.3:80'));
    await until(() => latest() === '["10.0.0.3:80"]', 'written again after the rename');
  });

  test('when a ConfigMap swaps its data directory', async () => {
    const mounted = join(directory, 'mounted');
    const version = async (name: string, text: string): Promise<void> => {
      await mkdir(join(mounted, name), { recursive: true });
      await writeFile(join(mounted, name, 'endpoints.yaml'), text);
      await symlink(name, join(mounted, '..data_tmp'));
      await rename(join(mounted, '..data_tmp'), join(mounted, '..data'));
    };
    await version('..1', listOf('10.0.0.1:80'));
    await symlink('..data/endpoints.yaml', join(mounted, 'endpoints.yaml'));
    await follow({ file: join(mounted, 'endpoints.yaml') });
    await version('..2', listOf('10.0.0.2:80'));
    await until(() => latest() === '["10.0.0.2:80"]', 'swapped directory');
  });
});

describe('a file that becomes wrong', () => {
  test.each([
    ['broken', () => writeFile(file, 'endpoints: ['), /must be YAML/],
    ['empty', () => writeFile(file, ''), /must be a map with the key endpoints/],
    ['missing', () => rm(file), /^cannot read the endpoints file .* ENOENT/],
    ['a directory', () => rm(file).then(() => mkdir(file)), /^cannot read the endpoints file .* EISDIR/],
  ])(
    'keeps the last good list when it is %s, says why once, and is used again once it is right',
    async (_how, damage, why) => {
      await writeFile(file, listOf('10.0.0.1:80'));
      await follow({ pollMs: 50 });
      await damage();
      await until(() => problems.length > 0, 'problem told');
      // Three more polls say nothing new.
      await delay(50);
      await delay(50);
      await delay(50);
      expect(problems).toEqual([expect.stringMatching(why)]);
      expect(lists).toEqual([['10.0.0.1:80']]);

      await rm(file, { recursive: true, force: true });
      await writeFile(file, listOf('10.0.0.1:80'));
      await until(() => problems.at(-1) === null, 'problem over');
      expect(lists.at(-1)).toEqual(['10.0.0.1:80']);
    },
  );

  test('is logged with every mistake and no more than once', async () => {
    const lines: string[] = [];
    await writeFile(file, listOf('10.0.0.1:80'));
    running = createStaticEndpoints(
      {
        log: createLog('warn', (line) => lines.push(line)),
        onEndpoints: () => undefined,
        onProblem: (text) => problems.push(text),
      },
      { file, inline: null, kvPort: 5557, replayPort: 5558, pollMs: 50 },
    );
    await running.start();
    await writeFile(file, listOf('pod-b:80'));
    await until(() => problems.length > 0, 'problem told');
    expect(lines.map((line) => JSON.parse(line) as object)).toEqual([
      expect.objectContaining({
        level: 'warn',
        msg: 'endpoints file not used, the last good one stays in effect',
        mistakes: [expect.stringContaining('endpoints[0].address must be ip:port, got "pod-b:80"')],
      }),
    ]);
  });
});

test('a list written in two halves never takes endpoints away', async () => {
  const [half, whole] = [listOf('10.0.0.1:80'), listOf('10.0.0.1:80', '10.0.0.2:80')];
  await writeFile(file, whole);
  await follow({ pollMs: 10 });
  let nQuickWrites = 0;
  const deadlineMs = performance.now() + 40_000;
  while (nQuickWrites < 5 && performance.now() < deadlineMs) {
    lists = [];
    const startMs = performance.now();
    await writeFile(file, half);
    await delay(20);
    await writeFile(file, whole);
    // On a busy machine the pause may last as long as a finished write would be trusted after: then nothing is shown.
    const wasQuick = performance.now() - startMs < 45;
    await delay(50);
    await delay(50);
    if (!wasQuick) continue;
    nQuickWrites += 1;
    expect(lists.filter((list) => list.length < 2)).toEqual([]);
  }
  expect(nQuickWrites).toBe(5);
});

test('after stop nothing is told any more, and stopping twice or before the start is fine', async () => {
  await writeFile(file, listOf('10.0.0.1:80'));
  await follow({ pollMs: 10 });
  await running!.stop();
  await running!.stop();
  await writeFile(file, listOf('10.0.0.2:80'));
  await delay(50);
  await delay(50);
  expect(lists).toEqual([['10.0.0.1:80']]);
  await createStaticEndpoints(
    { log: silentLog, onEndpoints: () => undefined, onProblem: () => undefined },
    { file, inline: null, kvPort: 5557, replayPort: 5558 },
  ).stop();
});
