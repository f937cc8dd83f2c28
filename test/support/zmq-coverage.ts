/**
 * Which lines of the ingest thread run when only real sockets drive it: `make test-zmq-coverage`. Jest's own coverage sees the
 * main thread only, so V8 writes it for every thread and the lines are counted here. A line counts when it lies in a
 * function, and is covered when all of its code ran in some thread of some test.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

type Range = { readonly startOffset: number; readonly endOffset: number; readonly count: number };
type Script = { readonly url: string; readonly functions: readonly { readonly ranges: readonly Range[] }[] };

const ROOT = new URL('../../', import.meta.url);
const TESTS = ['test/integration/kv'];
/**
 * Percent of lines, for what decides about sockets, sequences and states. What is left are failures of the machine
 * (sockets that cannot be made, sends that fail) and states that are tried out without sockets in test/unit/kvevents.
 */
const LIMITS: Readonly<Record<string, number>> = {
  'event-connection.ts': 92,
  'event-stream.ts': 83,
  'ingest-worker.ts': 92,
  'redials.ts': 95,
  'replayed-stream.ts': 93,
  'replay-client.ts': 85,
  'replay-permits.ts': 80,
  'subscriber.ts': 92,
  'subscriptions.ts': 95,
  'topic-connection.ts': 95,
  'topic-listeners.ts': 94,
  'engine-records.ts': 85,
  'slices.ts': 80,
  'source-snapshot.ts': 65,
  'zmtp.ts': 91,
  'zmtp-reader.ts': 96,
};

await main();

async function main(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'warmpath-coverage-'));
  try {
    const jest = spawn('npm', ['run', '-s', 'jest', '--', ...TESTS], {
      cwd: fileURLToPath(ROOT),
      env: { ...process.env, NODE_V8_COVERAGE: folder },
      stdio: 'inherit',
    });
    const [code] = (await once(jest, 'exit')) as [number | null];
    if (code !== 0) {
      process.exitCode = 1;
      return;
    }
    await report(await readScripts(folder));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** By file name below src/kvevents; one entry per thread that loaded it. */
async function readScripts(folder: string): Promise<Map<string, Script[]>> {
  const scripts = new Map<string, Script[]>();
  const prefix = new URL('src/kvevents/', ROOT).href;
  for (const file of await readdir(folder)) {
    const { result } = JSON.parse(await readFile(join(folder, file), 'utf8')) as { result: readonly Script[] };
    for (const script of result) {
      if (!script.url.startsWith(prefix)) continue;
      const name = script.url.slice(prefix.length);
      scripts.set(name, [...(scripts.get(name) ?? []), script]);
    }
  }
  return scripts;
}

async function report(scripts: ReadonlyMap<string, readonly Script[]>): Promise<void> {
  const missing = Object.keys(LIMITS).filter((name) => !scripts.has(name));
  if (missing.length > 0) throw new Error(`no thread loaded ${missing.join(', ')}`);
  const names = [...scripts.keys()].sort();
  process.stdout.write('\nfile                    lines  covered  limit  not covered\n');
  for (const name of names) {
    const text = await readFile(new URL(`src/kvevents/${name}`, ROOT), 'utf8');
    const { nLines, uncovered } = coverageOf(text, scripts.get(name)!);
    const percent = nLines === 0 ? 100 : (100 * (nLines - uncovered.length)) / nLines;
    const limit = LIMITS[name];
    const isLow = limit !== undefined && percent < limit;
    if (isLow) process.exitCode = 1;
    const columns = [
      name.padEnd(22),
      String(nLines).padStart(6),
      `${percent.toFixed(1)} %`.padStart(8),
      (limit === undefined ? '' : `${limit} %`).padStart(6),
      limit === undefined ? '' : uncovered.join(' '),
      isLow ? 'TOO LOW' : '',
    ];
    process.stdout.write(`${columns.join(' ').trimEnd()}\n`);
  }
}

function coverageOf(text: string, scripts: readonly Script[]): { nLines: number; uncovered: number[] } {
  const inFunction = new Uint8Array(text.length);
  const ran = new Uint8Array(text.length);
  for (const { functions } of scripts) {
    const counts = new Int32Array(text.length).fill(-1);
    // Outer functions come first and outer ranges before inner ones: the last one that has a character decides.
    for (const { ranges } of functions) {
      const isModule = ranges[0]!.startOffset === 0;
      for (const { startOffset, endOffset, count } of ranges) {
        counts.fill(count, startOffset, endOffset);
        if (!isModule) inFunction.fill(1, startOffset, endOffset);
      }
    }
    for (let i = 0; i < counts.length; i++) if (counts[i]! > 0) ran[i] = 1;
  }
  const uncovered: number[] = [];
  let nLines = 0;
  let offset = 0;
  text.split('\n').forEach((line, i) => {
    const start = offset;
    offset += line.length + 1;
    const code = line.trim();
    if (code === '' || /^(?:\/\/|\/?\*|[\])}]+[;,]*$)/.test(code) || inFunction[start + line.indexOf(code)] === 0)
      return;
    nLines++;
    for (let at = start; at < start + line.length; at++) {
      if (text[at] === ' ' || ran[at] === 1) continue;
      uncovered.push(i + 1);
      return;
    }
  });
  return { nLines, uncovered };
}
