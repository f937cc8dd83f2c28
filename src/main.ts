#!/usr/bin/env -S node --max-semi-space-size=4 --no-wasm-code-gc
/** Process entry: the only file that touches arguments, environment and exit. Dispatches to one file per command. */
import { errorText } from './errors.ts';
import { nearestName } from './wording.ts';

type Io = {
  stdout(line: string): void;
  stderr(line: string): void;
  stdin: AsyncIterable<Uint8Array>;
  env: Readonly<Record<string, string | undefined>>;
  isTerminal: boolean;
  /** Aborts on the first SIGINT or SIGTERM. */
  signal: AbortSignal;
  /** Aborts on the second one. */
  hurry: AbortSignal;
  /** From now on a rejection that nobody handles is told to `onRejection` instead of ending the process. */
  surviveRejections(onRejection: (reason: unknown) => void): void;
};

type Command = {
  readonly summary: string;
  /** Loaded on demand: each command pays only for what it uses. Resolves to the exit code. */
  run(args: readonly string[], io: Io): Promise<number>;
  /** Computes all the time and would not come to hear of a signal: one ends it at once, as by default. */
  readonly isDeaf?: true;
};

const COMMANDS: Readonly<Record<string, Command>> = {
  serve: {
    summary: 'the external processor',
    run: async (args, io) => (await import('./cli/serve.ts')).runServe(args, io),
  },
  check: {
    summary: 'validate the configuration and print what takes effect',
    run: async (args, io) => (await import('./cli/check.ts')).runCheck(args, io),
  },
  demo: {
    summary: 'simulated pods, a real Envoy and Warmpath on this machine, with a table at the end',
    run: async (args, io) => (await import('./cli/demo.ts')).runDemo(args, io),
  },
  'simulate-vllm': {
    summary: 'vLLM pods without a GPU',
    run: async (args, io) => (await import('./cli/simulate-vllm.ts')).runSimulateVllm(args, io),
  },
  replay: {
    summary: 'a trace over simulated engines, several policies side by side, in virtual time',
    run: async (args, io) => (await import('./cli/replay.ts')).runReplay(args, io),
    isDeaf: true,
  },
  doctor: {
    summary: 'ask every endpoint what works and what does not, and say what to change',
    run: async (args, io) => (await import('./cli/doctor.ts')).runDoctor(args, io),
  },
  explain: {
    summary: 'where would this request go, and why',
    run: async (args, io) => (await import('./cli/explain.ts')).runExplain(args, io),
  },
  events: {
    summary: 'print KV events as JSON lines',
    run: async (args, io) => (await import('./cli/events.ts')).runEvents(args, io),
  },
};

function usage(): string {
  const lines = Object.entries(COMMANDS).map(([name, { summary }]) => `  ${name.padEnd(15)} ${summary}`);
  const more = 'warmpath COMMAND --help says more, warmpath --version which version this is.';
  return ['usage: warmpath COMMAND [options]', '', ...lines, '', more].join('\n');
}

async function main(): Promise<number> {
  const [name, ...args] = process.argv.slice(2);
  const { io, hearSignals } = processIo();
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    (name === undefined ? io.stderr : io.stdout)(usage());
    return name === undefined ? 2 : 0;
  }
  if (name === '--version') {
    io.stdout((await import('./cli/version.ts')).version());
    return 0;
  }
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!command) {
    const known = Object.keys(COMMANDS);
    const nearest = nearestName(name, known);
    const meant = nearest === null ? '' : `, the nearest known one is ${nearest}`;
    io.stderr(`warmpath: unknown command ${JSON.stringify(name)}${meant}; commands are ${known.join(', ')}`);
    return 2;
  }
  if (command.isDeaf !== true) hearSignals();
  return command.run(args, io);
}

function processIo(): { readonly io: Io; hearSignals(): void } {
  const first = new AbortController();
  const second = new AbortController();
  const onSignal = (): void => {
    if (first.signal.aborted) second.abort();
    else first.abort();
  };
  // A reader that went away (`| head`) is no failure of ours: whatever runs ends in order.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    first.abort();
  });
  const io: Io = {
    stdout: (line) => void process.stdout.write(`${line}\n`),
    stderr: (line) => void process.stderr.write(`${line}\n`),
    stdin: process.stdin,
    env: process.env,
    isTerminal: process.stderr.isTTY === true,
    signal: first.signal,
    hurry: second.signal,
    surviveRejections: (onRejection) => void process.on('unhandledRejection', onRejection),
  };
  return { io, hearSignals: () => ['SIGINT', 'SIGTERM'].forEach((name) => process.on(name, onSignal)) };
}

/** Pipes are asynchronous: leave only when everything written has gone out. */
function drainOutput(): Promise<void> {
  return new Promise((resolve) => process.stdout.write('', () => process.stderr.write('', () => resolve())));
}

main()
  .catch((error: unknown) => {
    process.stderr.write(`warmpath: ${errorText(error)}\n`);
    return 1;
  })
  .then(async (code) => {
    await drainOutput();
    process.exit(code);
  })
  .catch(() => process.exit(1));
