/** `warmpath serve`: the external processor, from configuration to a clean end. */
import { readFileSync } from 'node:fs';
import { createApp } from '../app.ts';
import { systemClock } from '../clock.ts';
import { errorText } from '../errors.ts';
import { createLog } from '../log.ts';
import { loadOptions } from './options.ts';

const HELP = `usage: warmpath serve [--config FILE] [--set key=value]…

Runs the external processor until SIGTERM or SIGINT: not ready at once, streams finish, exit 0.
A second signal ends at once. warmpath check validates a configuration without starting anything.`;

export type ServeIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal: AbortSignal;
  readonly hurry: AbortSignal;
};

/** @returns exit code: 0 stopped as asked, 1 could not start or was hurried, 2 wrong usage or configuration */
export async function runServe(args: readonly string[], io: ServeIo): Promise<number> {
  const options = loadOptions('serve', HELP, args, io, (path) => readFileSync(path, 'utf8'));
  if (options.kind === 'exit') return options.code;
  const { config, notices } = options;
  const log = createLog(config.log.level, io.stdout);
  for (const notice of notices) log.info('configuration notice', { notice });
  const app = createApp(config, { log, clock: systemClock });
  try {
    // The first list of endpoints may be long in coming; who asks to stop does not wait for it.
    const addresses = await Promise.race([app.start(), aborted(io.signal)]);
    if (addresses !== undefined) log.info('serving', addresses);
  } catch (error) {
    io.stderr(`warmpath serve: ${errorText(error)}`);
    return 1;
  }
  await aborted(io.signal);
  log.info('stopping');
  const hurried = aborted(io.hurry).then(() => 'hurried' as const);
  const ended = await Promise.race([app.stop().then(() => 'stopped' as const), hurried]);
  if (ended === 'hurried') await app.abandon();
  log.info(ended);
  return ended === 'stopped' ? 0 : 1;
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
