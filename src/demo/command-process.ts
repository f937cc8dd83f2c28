/**
 * Another `warmpath` command as a child process, started the way a user starts it. Its environment is empty, so that
 * variables of this machine change nothing; it goes when this process goes.
 */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { errorText, WarmpathError } from '../errors.ts';
import { eachLine, keepLast } from './lines.ts';

export type CommandProcess = {
  /** The lines that told it was ready. */
  readonly readyLines: readonly string[];
  /** Resolves with the reason when it ends without being stopped. */
  readonly died: Promise<string>;
  /** SIGTERM, and SIGKILL when that takes too long; idempotent. @returns exit code, null when it was killed */
  stop(): Promise<number | null>;
};

export type CommandOptions = {
  readonly args: readonly string[];
  /** Picks the lines of standard output that count for readiness. */
  readonly isReadyLine: (line: string) => boolean;
  /** How many of them make it ready; default 1. */
  readonly nReadyLines?: number;
  readonly signal?: AbortSignal;
};

type Exit = { readonly code: number | null; /** `code 1` or `SIGKILL` */ readonly how: string };

const START_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 5_000;
const SAID_LINES = 10;

export async function startCommand(options: CommandOptions): Promise<CommandProcess> {
  const { args, signal, nReadyLines = 1 } = options;
  signal?.throwIfAborted();
  const child = spawn(process.execPath, [entryPath(), ...args], { stdio: ['ignore', 'pipe', 'pipe'], env: {} });
  const killWithUs = (): void => void child.kill('SIGKILL');
  process.once('exit', killWithUs);
  const readyLines: string[] = [];
  const said: string[] = [];
  let stopping: Promise<number | null> | null = null;
  const exited = new Promise<Exit>((resolve) => {
    const over = (code: number | null, how: string): void => {
      process.removeListener('exit', killWithUs);
      resolve({ code, how });
    };
    child.once('error', (error) => over(null, errorText(error)));
    child.once('close', (code, by) => over(code, by ?? `code ${code}`));
  });
  const stop = (): Promise<number | null> => {
    stopping ??= (async () => {
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
      const { code } = await exited;
      clearTimeout(timer);
      return code;
    })();
    return stopping;
  };
  const name = `warmpath ${args[0]}`;
  const reasonOfEnd = ({ how }: Exit): string => [`${name} ended with ${how}`, ...said].join('\n');
  eachLine(child.stderr, (line) => keepLast(said, line, SAID_LINES));
  const ready = (): Promise<void> =>
    new Promise<void>((resolve, reject) => {
      const settle = (error: Error | null): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        if (error === null) resolve();
        else reject(error);
      };
      const fail = (message: string): void => settle(new WarmpathError('peer_failed', message));
      const onAbort = (): void => settle(signal?.reason as Error);
      const timer = setTimeout(() => fail(`${name} is not ready after ${START_TIMEOUT_MS} ms`), START_TIMEOUT_MS);
      signal?.addEventListener('abort', onAbort, { once: true });
      eachLine(child.stdout, (line) => {
        if (readyLines.length >= nReadyLines || !options.isReadyLine(line)) return;
        readyLines.push(line);
        if (readyLines.length === nReadyLines) settle(null);
      });
      void exited.then((exit) => fail(reasonOfEnd(exit)));
    });
  try {
    await ready();
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    readyLines,
    stop,
    died: new Promise((resolve) => {
      void exited.then((exit) => {
        if (stopping === null) resolve(reasonOfEnd(exit));
      });
    }),
  };
}

/** Node starts the sources as they are; the built package has the same layout. */
function entryPath(): string {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  return fileURLToPath(new URL(`../main.${extension}`, import.meta.url));
}
