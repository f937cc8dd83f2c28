/** `warmpath check`: validates the configuration and prints what takes effect. Starts nothing, connects to nothing. */
import { readFileSync } from 'node:fs';
import { configToYaml } from '../config.ts';
import { loadOptions, type OptionsIo } from './options.ts';

const HELP = `usage: warmpath check [--config FILE] [--set key=value]…

Validates the configuration, and the files it names: endpoints, engine profiles, TLS. Prints the effective configuration as YAML,
or every mistake at once.

Later wins: default < file < environment (WARMPATH_A_B) < --set.
Exit codes: 0 right, 2 wrong.`;

/** @returns exit code: 0 right, 2 wrong usage or configuration */
export async function runCheck(args: readonly string[], io: OptionsIo): Promise<number> {
  const options = loadOptions('check', HELP, args, io, (path) => readFileSync(path, 'utf8'));
  if (options.kind === 'exit') return options.code;
  for (const notice of options.notices) io.stderr(`warmpath check: ${notice}`);
  io.stdout(configToYaml(options.config).trimEnd());
  return 0;
}
