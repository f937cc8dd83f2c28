/**
 * `make image-check`: what the Dockerfile does, without Docker. Packs the npm tarball, installs the production
 * dependencies of the lock file beside it in an empty folder, prunes, and starts the image's entry point there; `/readyz`,
 * gRPC health and a clean end must come, and the size must leave room for the base below the limit. Deliberately not here:
 * the base image itself, which only Docker can fetch.
 */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { chmod, cp, lstat, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { createHealthClient } from './health-client.ts';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const LIMIT_MB = 250;
/** Uncompressed size of the base without Node, as Docker shows it for distroless/cc: 24 MB; with a margin. */
const BASE_MB = 30;
const START_TIMEOUT_MS = 60_000;
const PRUNE_PLATFORM = process.platform;

async function main(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'warmpath-image-'));
  try {
    const app = await installed(folder);
    const appMb = await sizeMb(app);
    const nodeMb = (await lstat(process.execPath)).size / 1e6;
    const total = appMb + nodeMb + BASE_MB;
    say(
      `size: ${mb(appMb)} application + ${mb(nodeMb)} Node + ${mb(BASE_MB)} base = ${mb(total)}, limit ${LIMIT_MB} MB`,
    );
    if (total >= LIMIT_MB) throw new Error(`the image must stay below ${LIMIT_MB} MB, got ${mb(total)}`);
    const nFiles = await writable(app, 0o555);
    say(`read-only: ${nFiles} files`);
    await serves(app);
    say('image-check: ok');
  } finally {
    await writable(folder, 0o755);
    await rm(folder, { recursive: true, force: true });
  }
}

/** As the Dockerfile's stages `build` and `production`. */
async function installed(folder: string): Promise<string> {
  const app = join(folder, 'app');
  await mkdir(app);
  await run('npm', ['run', '-s', 'build'], { cwd: ROOT });
  await run('npm', ['pack', '--silent', '--ignore-scripts', '--pack-destination', folder], { cwd: ROOT });
  const tarball = (await readdir(folder)).find((name) => name.endsWith('.tgz'));
  if (tarball === undefined) throw new Error('npm pack must leave a tarball, found none');
  await run('tar', ['-xzf', join(folder, tarball), '--strip-components=1', '-C', app]);
  await cp(join(ROOT, 'package-lock.json'), join(app, 'package-lock.json'));
  await run('npm', ['ci', '--omit=dev', '--no-audit', '--no-fund', '--ignore-scripts'], { cwd: app });
  await run('sh', [join(ROOT, 'image/prune.sh'), app, PRUNE_PLATFORM]);
  return app;
}

async function serves(app: string): Promise<void> {
  const config = join(app, '..', 'warmpath.yaml');
  await writeFile(
    config,
    `server: { grpcListen: "127.0.0.1:0", healthListen: "127.0.0.1:0", adminListen: "127.0.0.1:0", drainDelayMs: 0 }
discovery: { endpoints: [{ name: a, address: "127.0.0.1:1", model: m, kvEvents: none }] }
`,
  );
  const child = spawn(process.execPath, [join(app, 'dist/main.js'), 'serve', '--config', config], {
    cwd: app,
    // Nothing of this shell: what the image has.
    env: { NODE_ENV: 'production' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  try {
    const { admin, health } = await withTimeout(addressesOf(child), 'serve must say that it serves');
    const ready = await fetch(`http://${admin}/readyz`);
    say(`/readyz: ${ready.status} ${await ready.text()}`);
    if (ready.status !== 200) throw new Error(`/readyz must answer 200, got ${ready.status}`);
    const client = createHealthClient(health);
    for (const service of ['liveness', 'readiness', 'envoy.service.ext_proc.v3.ExternalProcessor']) {
      const status = await client.check(service);
      say(`gRPC health ${service}: ${status}`);
      if (status !== 'SERVING') throw new Error(`gRPC health ${service} must be SERVING, got ${status}`);
    }
    client.close();
    child.kill('SIGTERM');
    const code = await withTimeout(new Promise((resolve) => child.once('exit', resolve)), 'serve must end on SIGTERM');
    say(`SIGTERM: exit ${String(code)}`);
    if (code !== 0) throw new Error(`serve must exit 0 on SIGTERM, got ${String(code)}`);
  } finally {
    child.kill('SIGKILL');
  }
}

async function addressesOf(child: ChildProcess): Promise<{ admin: string; health: string }> {
  for await (const line of createInterface({ input: child.stdout! })) {
    const { msg, admin, health } = JSON.parse(line) as Record<string, string>;
    if (msg !== 'serving') continue;
    child.stdout!.resume();
    return { admin: admin!, health: health! };
  }
  throw new Error('serve ended before it served');
}

async function withTimeout<T>(promise: Promise<T>, what: string): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`${what} within ${START_TIMEOUT_MS} ms`)), START_TIMEOUT_MS);
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** @returns megabytes (10⁶), as Docker counts */
async function sizeMb(folder: string): Promise<number> {
  let bytes = 0;
  for (const path of await readdir(folder, { recursive: true })) bytes += (await lstat(join(folder, path))).size;
  return bytes / 1e6;
}

/** Root ignores these bits; for everybody else the installation is what a read-only root file system is. */
async function writable(folder: string, mode: 0o555 | 0o755): Promise<number> {
  const paths = await readdir(folder, { recursive: true, withFileTypes: true });
  for (const entry of paths) if (!entry.isSymbolicLink()) await chmod(join(entry.parentPath, entry.name), mode);
  return paths.length;
}

function mb(value: number): string {
  return `${value.toFixed(0)} MB`;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

await main();
