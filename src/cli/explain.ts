/** `warmpath explain`: asks a running Warmpath where a request would go, and prints its answer. */
import { readFileSync } from 'node:fs';
import { errorText } from '../errors.ts';
import { showGot } from '../wording.ts';
import { parseOptions, readPlan } from './arguments.ts';

const DEFAULT_ADMIN = 'http://127.0.0.1:9090';

const HELP = `usage: warmpath explain [--admin URL] [--path PATH] BODY.json|-

Asks a running Warmpath where this request would go, and why, and prints its answer as JSON. No reservation is made.

  BODY.json     file with the body of the request; - reads it from the standard input
  --admin URL   admin address of the running Warmpath (default ${DEFAULT_ADMIN})
  --path PATH   request path (default /v1/chat/completions)

Exit codes: 0 decided, 1 refused (the answer says why) or nobody to ask, 2 wrong usage.`;

export type ExplainIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly stdin: AsyncIterable<Uint8Array>;
};

const TIMEOUT_MS = 10_000;

/** @returns exit code: 0 decided, 1 refused or unreachable, 2 wrong usage */
export async function runExplain(args: readonly string[], io: ExplainIo): Promise<number> {
  const asked = readPlan('explain', HELP, io, () => readArguments(args));
  if (asked.kind === 'exit') return asked.code;
  const { file, path, url } = asked.plan;
  const wrong = (what: string): number => {
    io.stderr(`warmpath explain: ${what}`);
    return 2;
  };
  let body: string;
  try {
    body = file === '-' ? await textOf(io.stdin) : readFileSync(file, 'utf8');
  } catch (error) {
    return wrong(`cannot read the request body: ${errorText(error)}`);
  }
  try {
    JSON.parse(body);
  } catch (error) {
    return wrong(
      `${file === '-' ? 'the standard input' : file} must hold JSON, the body of a request: ${errorText(error)}`,
    );
  }
  return ask(url, { path, headers: {}, body }, io);
}

async function ask(url: URL, question: object, io: ExplainIo): Promise<number> {
  const failed = (what: string): number => {
    io.stderr(`warmpath explain: ${what}`);
    return 1;
  };
  let answer: Response;
  let text: string;
  try {
    answer = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(question),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    text = await answer.text();
  } catch (error) {
    const cause = error instanceof Error && error.cause ? errorText(error.cause) : errorText(error);
    return failed(`no Warmpath answers at ${url.origin}: ${cause}; --admin names server.adminListen of a running one`);
  }
  try {
    io.stdout(JSON.stringify(JSON.parse(text), null, 2));
  } catch {
    return failed(`${url.origin} is not the admin port of a Warmpath: it answers ${answer.status} without JSON`);
  }
  return answer.ok ? 0 : 1;
}

type Plan = { readonly file: string; readonly path: string; readonly url: URL };

function readArguments(args: readonly string[]): Plan | 'help' {
  const { values, positionals } = parseOptions({
    args: [...args],
    allowPositionals: true,
    options: {
      admin: { type: 'string', default: DEFAULT_ADMIN },
      path: { type: 'string', default: '/v1/chat/completions' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) return 'help';
  const [file, ...more] = positionals;
  if (file === undefined || more.length > 0) {
    throw new Error(`expected one file with the request body, or - for the standard input, got ${positionals.length}`);
  }
  const { path, admin } = values;
  if (!path.startsWith('/')) throw new Error(`--path must begin with /, got ${showGot(path)}`);
  const url = adminUrl(admin);
  if (url === null) throw new Error(`--admin must be http://HOST:PORT, got ${showGot(admin)}`);
  return { file, path, url };
}

/** `HOST:PORT` stands for `http://HOST:PORT`. */
function adminUrl(text: string): URL | null {
  const whole = text.includes('://') ? text : `http://${text}`;
  if (!URL.canParse(whole)) return null;
  const url = new URL('/api/v1/explain', whole);
  return url.protocol === 'http:' || url.protocol === 'https:' ? url : null;
}

async function textOf(chunks: AsyncIterable<Uint8Array>): Promise<string> {
  const read: Uint8Array[] = [];
  for await (const chunk of chunks) read.push(chunk);
  return Buffer.concat(read).toString('utf8');
}
