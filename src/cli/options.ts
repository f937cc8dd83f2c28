/** `--config FILE --set key=value --help`, the same for every command that needs the whole configuration. */
import { loadConfig, type Config, type ConfigInput, type ConfigKey, type Where } from '../config.ts';
import type { ParsedList } from '../endpoints/endpoint-list.ts';
import { parseFile, parseInline } from '../endpoints/static-endpoints.ts';
import { errorText } from '../errors.ts';
import type { FileText } from '../file-follower.ts';
import { parseSeedFile } from '../load/engine-seed-file.ts';
import { showGot } from '../wording.ts';
import { parseOptions } from './arguments.ts';

export type OptionsIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
};

export type LoadedOptions =
  | {
      readonly kind: 'options';
      readonly config: Config;
      readonly notices: readonly string[];
      readonly file: string | null;
      /** Of that file, '' without one. */
      readonly text: string;
      /** Those of `flags` that were given. */
      readonly flags: ReadonlySet<string>;
      /** The same arguments and environment with another text of the file. */
      reload(read: FileText): ValidConfig;
    }
  /** Everything there is to say has been said. */
  | { readonly kind: 'exit'; readonly code: 0 | 2 };

export type ValidConfig =
  | { readonly kind: 'config'; readonly config: Config; readonly notices: readonly string[] }
  | { readonly kind: 'mistakes'; readonly mistakes: readonly string[] };

/**
 * Parses the arguments, loads the configuration and looks into the files it names; tells every mistake at once.
 * @param readFile whole text of a file; throws when it cannot be read
 * @param flags names of further options without a value, `json` for `--json`
 */
export function loadOptions(
  command: string,
  help: string,
  args: readonly string[],
  io: OptionsIo,
  readFile: (path: string) => string,
  flags: readonly string[] = [],
): LoadedOptions {
  let values: { config?: string; set?: string[]; help?: boolean };
  let given: ReadonlySet<string>;
  try {
    const parsed = parseOptions({
      args: [...args],
      options: {
        config: { type: 'string' },
        set: { type: 'string', multiple: true },
        help: { type: 'boolean', short: 'h' },
        ...Object.fromEntries(flags.map((flag) => [flag, { type: 'boolean' as const }])),
      },
    });
    values = parsed.values as typeof values;
    given = new Set(Object.keys(parsed.values));
  } catch (error) {
    io.stderr(`warmpath ${command}: ${errorText(error)}`);
    io.stderr(`warmpath ${command} --help says what it takes`);
    return { kind: 'exit', code: 2 };
  }
  if (values.help === true) {
    io.stdout(help);
    return { kind: 'exit', code: 0 };
  }
  const { config: file = null, set: sets = [] } = values;
  let text = '';
  const readAndKeep = (path: string): string => {
    const read = readFile(path);
    if (path === file) text = read;
    return read;
  };
  const valid = validate({ file, readFile: readAndKeep, env: io.env, sets });
  if (valid.kind === 'config') {
    return {
      kind: 'options',
      config: valid.config,
      notices: valid.notices,
      file,
      text,
      flags: given,
      reload: (read) =>
        validate({
          file,
          env: io.env,
          sets,
          readFile(path) {
            if (path !== file) return readFile(path);
            if (read.kind === 'text') return read.text;
            throw new Error(read.why);
          },
        }),
    };
  }
  const { mistakes } = valid;
  io.stderr(
    `warmpath ${command}: ${mistakes.length} ${mistakes.length === 1 ? 'mistake' : 'mistakes'} in the configuration`,
  );
  for (const mistake of mistakes) io.stderr(`  ${mistake}`);
  return { kind: 'exit', code: 2 };
}

function validate(input: ConfigInput): ValidConfig {
  const { readFile } = input;
  const loaded = loadConfig(input);
  const known = loaded.kind === 'config' ? loaded.config : loaded.rest;
  const list = endpointList(known, loaded.where, readFile);
  const mistakes = [
    ...(loaded.kind === 'mistakes' ? loaded.mistakes : []),
    ...(list.kind === 'mistakes' ? list.mistakes : []),
    ...tlsMistakes(known, loaded.where, readFile),
    ...seedMistakes(known, readFile),
  ];
  if (loaded.kind !== 'config' || list.kind !== 'endpoints' || mistakes.length > 0)
    return { kind: 'mistakes', mistakes };
  const { config, notices } = loaded;
  const isEmpty = config.discovery.mode === 'static' && list.specs.length === 0;
  return { kind: 'config', config, notices: isEmpty ? [...notices, NO_ENDPOINT] : notices };
}

const NO_ENDPOINT = 'neither discovery.file nor discovery.endpoints names an endpoint: requests will get 503';

function endpointList(config: Config, where: Where, readFile: (path: string) => string): ParsedList {
  const { file, endpoints } = config.discovery;
  return file === null
    ? parseInline(endpoints, endpointDefaults(config), (path) => where('discovery.endpoints', path))
    : parseFile(readOrWhy(file, readFile), file, endpointDefaults(config));
}

/** What an endpoint publishes that does not say it. */
export function endpointDefaults({ kvEvents }: Config): { kvPort: number | 'listen' | null; replayPort: number } {
  return {
    kvPort: !kvEvents.enabled ? null : kvEvents.listen === null ? kvEvents.port : 'listen',
    replayPort: kvEvents.replayPort,
  };
}

function tlsMistakes(config: Config, where: Where, readFile: (path: string) => string): readonly string[] {
  const files: readonly [ConfigKey, string | null][] = [
    ['server.tls.certFile', config.server.tls.certFile],
    ['server.tls.keyFile', config.server.tls.keyFile],
    ['server.tls.clientCaFile', config.server.tls.clientCaFile],
  ];
  return files.flatMap(([key, path]) => {
    if (path === null) return [];
    const read = readOrWhy(path, readFile);
    if (read.kind === 'text') return [];
    return [`${key} must be a readable file, got ${showGot(path)}: ${read.why} (${where(key)})`];
  });
}

function seedMistakes({ load }: Config, readFile: (path: string) => string): readonly string[] {
  const { engineProfileFile: file, gpuTypeLabel } = load;
  if (file === null) return [];
  const parsed = parseSeedFile(readOrWhy(file, readFile), file, gpuTypeLabel);
  return parsed.kind === 'mistakes' ? parsed.mistakes : [];
}

function readOrWhy(path: string, readFile: (path: string) => string): FileText {
  try {
    return { kind: 'text', text: readFile(path) };
  } catch (error) {
    return { kind: 'unreadable', why: errorText(error) };
  }
}
