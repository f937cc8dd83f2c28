/** `warmpath serve`: the external processor, from configuration to a clean end. */
import { readFileSync } from 'node:fs';
import { createApp, type App } from '../app.ts';
import { systemClock } from '../clock.ts';
import type { Config } from '../config.ts';
import { errorText, faultText } from '../errors.ts';
import { createFileFollower, type FileFollower } from '../file-follower.ts';
import { createLog, type Log } from '../log.ts';
import { loadOptions, type LoadedOptions } from './options.ts';
import { aborted } from './arguments.ts';

const HELP = `usage: warmpath serve [--config FILE] [--set key=value]…

Runs the external processor until SIGTERM or SIGINT: not ready at once, streams finish, exit 0.
A second signal ends at once. The file is followed: what docs/configuration.md calls "at once" takes effect while it
runs, a broken file changes nothing. warmpath check validates a configuration without starting anything.

Exit codes: 0 stopped as asked, 1 could not start or was hurried, 2 wrong usage or configuration.`;

export type ServeIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal: AbortSignal;
  readonly hurry: AbortSignal;
  surviveRejections(onRejection: (reason: unknown) => void): void;
};

/** @returns exit code: 0 stopped as asked, 1 could not start or was hurried, 2 wrong usage or configuration */
export async function runServe(args: readonly string[], io: ServeIo): Promise<number> {
  const options = loadOptions('serve', HELP, args, io, (path) => readFileSync(path, 'utf8'));
  if (options.kind === 'exit') return options.code;
  const { config, notices } = options;
  let level = config.log.level;
  const log = createLog(() => level, io.stdout);
  for (const notice of notices) log.info('configuration notice', { notice });
  // A bug met by one request costs that request: answers of all the others depend on this process.
  io.surviveRejections((reason) => log.error('a bug: nobody handled this failure', { error: faultText(reason) }));
  const app = createApp(config, { log, clock: systemClock });
  try {
    // The first list of endpoints may be long in coming; who asks to stop does not wait for it.
    const addresses = await Promise.race([app.start(), aborted(io.signal)]);
    if (addresses !== undefined) log.info('serving', addresses);
  } catch (error) {
    io.stderr(`warmpath serve: ${errorText(error)}`);
    return 1;
  }
  const follower = followConfig(options, app, log, (next) => (level = next.log.level));
  await aborted(io.signal);
  log.info('stopping');
  await follower?.stop();
  const hurried = aborted(io.hurry).then(() => 'hurried' as const);
  const ended = await Promise.race([app.stop().then(() => 'stopped' as const), hurried]);
  log.info(ended);
  return ended === 'stopped' ? 0 : 1;
}

type Options = Extract<LoadedOptions, { kind: 'options' }>;

function followConfig(options: Options, app: App, log: Log, onConfig: (next: Config) => void): FileFollower | null {
  const { file, text } = options;
  if (file === null) return null;
  const follower = createFileFollower(
    {
      log,
      onText(read) {
        const valid = options.reload(read);
        if (valid.kind === 'mistakes') {
          log.warn('configuration file not used, the last good one stays in effect', {
            file,
            mistakes: valid.mistakes,
          });
          app.refuseConfig(valid.mistakes);
          return;
        }
        const { live, atStart } = app.reconfigure(valid.config);
        onConfig(valid.config);
        log.info('configuration file read', { file, inEffect: live, needRestart: atStart });
      },
    },
    { file, what: 'configuration file' },
  );
  // The start may have taken long: what was written meanwhile counts.
  follower.follow({ kind: 'text', text });
  return follower;
}
