/** What it takes to be let in by tokenizer servers: a secret header and a CA, both from files. Values are never logged or shown. */
import { readFile } from 'node:fs/promises';
import type { Clock } from '../clock.ts';
import { WarmpathError, errorText } from '../errors.ts';
import type { Log } from '../log.ts';

export type ServerAccessOptions = {
  readonly auth: {
    /** Name of the header, lower case. */
    readonly header: string;
    /** Holds the value of the header, a trailing line break aside; null = no header. */
    readonly file: string | null;
  };
  readonly tls: {
    /** CA in PEM for https URLs; null = the system's. */
    readonly caFile: string | null;
  };
};

export type ServerAccess = {
  /** Reads the files; rejects with what is wrong about them. */
  start(): Promise<void>;
  headers(): Readonly<Record<string, string>>;
  readonly ca: string | null;
  /** A server did not accept the header: the secret may have been replaced. */
  refused(): void;
};

const REREAD_MS = 10_000;

export function createServerAccess(
  { clock, log }: { readonly clock: Clock; readonly log: Log },
  { auth, tls }: ServerAccessOptions,
): ServerAccess {
  const base = { 'content-type': 'application/json', accept: 'application/json' };
  let headers: Readonly<Record<string, string>> = base;
  let ca: string | null = null;
  let readAtMs = -Infinity;

  async function readSecret(file: string): Promise<void> {
    readAtMs = clock.nowMs();
    const value = (await read('tokenizer.auth.file', file)).trim();
    if (!/^[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?$/.test(value)) {
      throw new WarmpathError(
        'config_invalid',
        `tokenizer.auth.file must hold one line of printable ASCII, the value of a header, got something else (${file})`,
      );
    }
    headers = { ...base, [auth.header]: value };
  }

  return {
    async start() {
      if (tls.caFile !== null) ca = await read('tokenizer.tls.caFile', tls.caFile);
      if (auth.file !== null) await readSecret(auth.file);
    },
    headers: () => headers,
    get ca() {
      return ca;
    },
    refused() {
      if (auth.file === null || clock.nowMs() - readAtMs < REREAD_MS) return;
      readSecret(auth.file).catch((error: unknown) =>
        log.warn('tokenizer secret not read again', { error: errorText(error) }),
      );
    },
  };
}

async function read(key: string, file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw new WarmpathError('io_failed', `${key} cannot be read: ${errorText(cause)}`, { cause });
  }
}
