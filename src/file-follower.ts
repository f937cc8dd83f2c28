/**
 * A file that is followed: its text at first, and every settled change of it.
 *
 * The directory is watched rather than the file, because editors and ConfigMaps put another file in its place; polling
 * beside it covers file systems that tell nothing.
 */
import { watch, type FSWatcher } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { errorText } from './errors.ts';
import type { Log } from './log.ts';

export type FileText =
  { readonly kind: 'text'; readonly text: string } | { readonly kind: 'unreadable'; readonly why: string };

export type FileFollowerOptions = {
  readonly file: string;
  /** What messages call it: `endpoints file`. */
  readonly what: string;
  readonly pollMs?: number | undefined;
};

export type FileFollower = {
  /** The text as it is now; changes are told from here on. */
  first(): Promise<FileText>;
  /** @param known read before by whoever follows; a file that is another one by now is told at once. Default: `first()` */
  follow(known?: FileText): void;
  stop(): Promise<void>;
};

const POLL_MS = 500;
/** A file that is being written must read the same twice, this far apart: half a list would take endpoints away. */
const SETTLE_MS = 50;
const MAX_FILE_BYTES = 4 * 1024 * 1024;

/** Tells every settled change of a file's text, and that it cannot be read any more; each once. */
export function createFileFollower(
  { log, onText }: { log: Log; onText: (read: FileText) => void },
  { file, what, pollMs = POLL_MS }: FileFollowerOptions,
): FileFollower {
  const stopped = new AbortController();
  let told: FileText = { kind: 'unreadable', why: '' };
  let watcher: FSWatcher | null = null;
  let loop: Promise<void> = Promise.resolve();
  /** Ends the present pause, if there is one. */
  let endPause: () => void = () => undefined;
  let changed: 'maybe' | 'not that we know' = 'not that we know';

  function wake(): void {
    changed = 'maybe';
    endPause();
  }

  async function pause(): Promise<void> {
    if (changed === 'not that we know') {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, pollMs).unref();
        endPause = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    changed = 'not that we know';
  }

  async function run(): Promise<void> {
    while (!stopped.signal.aborted) {
      await pause();
      const read = await readText(file);
      if (isSame(read, told)) {
        // Other files of the directory may change all the time.
        await delay(SETTLE_MS);
        continue;
      }
      await delay(SETTLE_MS);
      if (stopped.signal.aborted) return;
      if (!isSame(read, await readText(file))) {
        wake();
        continue;
      }
      told = read;
      onText(read);
    }
  }

  return {
    async first() {
      told = await readText(file);
      return told;
    },
    follow(known) {
      if (known !== undefined) {
        told = known;
        wake();
      }
      try {
        watcher = watch(dirname(file), { persistent: false }, wake);
        watcher.on('error', (error) => log.warn(`${what} is only polled`, { file, error: errorText(error) }));
      } catch (error) {
        log.warn(`${what} is only polled`, { file, error: errorText(error) });
      }
      loop = run().catch((error: unknown) =>
        log.error(`${what} is not followed any more`, { error: errorText(error) }),
      );
    },
    async stop() {
      stopped.abort();
      watcher?.close();
      wake();
      await loop;
    },
  };
}

export async function readText(file: string): Promise<FileText> {
  try {
    const { size } = await stat(file);
    if (size > MAX_FILE_BYTES) return { kind: 'unreadable', why: `it has ${size} bytes, limit ${MAX_FILE_BYTES}` };
    return { kind: 'text', text: await readFile(file, 'utf8') };
  } catch (error) {
    return { kind: 'unreadable', why: errorText(error) };
  }
}

function isSame(a: FileText, b: FileText): boolean {
  return a.kind === 'text' ? b.kind === 'text' && a.text === b.text : b.kind === 'unreadable' && a.why === b.why;
}
