/** `warmpath explain`: asks a running Warmpath where a request would go, and prints its answer. */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { errorText } from '../errors.ts';

const HELP = `usage: warmpath explain [--admin URL] [--path PATH] BODY.json

Asks a running Warmpath where this request would go, and why. No reservation is made.

  --admin URL   admin address of the running Warmpath (default http://127.0.0.1:9090)
  --path PATH   request path (default /v1/chat/completions)`;

type Io = { stdout(line: string): void; stderr(line: string): void };

/** @returns exit code: 0 decided, 1 refused or unreachable, 2 wrong usage */
export async function runExplain(args: readonly string[], io: Io): Promise<number> {
  let options;
  try {
    options = parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        admin: { type: 'string', default: 'http://127.0.0.1:9090' },
        path: { type: 'string', default: '/v1/chat/completions' },
        help: { type: 'boolean', short: 'h' },
      },
    });
  } catch (error) {
    io.stderr(`warmpath explain: ${errorText(error)}`);
    return 2;
  }
  if (options.values.help) {
    io.stdout(HELP);
    return 0;
  }
  const [file, ...more] = options.positionals;
  if (file === undefined || more.length > 0) {
    io.stderr(`warmpath explain: expected one file with the request body, got ${options.positionals.length}`);
    return 2;
  }
  try {
    const body: unknown = JSON.parse(readFileSync(file, 'utf8'));
    const answer = await fetch(new URL('/api/v1/explain', options.values.admin), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ path: options.values.path, headers: {}, body }),
      signal: AbortSignal.timeout(10_000),
    });
    io.stdout(JSON.stringify(await answer.json(), null, 2));
    return answer.ok ? 0 : 1;
  } catch (error) {
    const cause = error instanceof Error && error.cause ? `: ${errorText(error.cause)}` : '';
    io.stderr(`warmpath explain: ${errorText(error)}${cause}`);
    return 1;
  }
}
