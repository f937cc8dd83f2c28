/**
 * One running Envoy, on free ports, with its counters and access log at hand. Leaves nothing behind: the temporary folder
 * is gone as soon as Envoy has read it, the child goes with this process.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { errorText, WarmpathError } from '../errors.ts';
import { silentLog, type Log } from '../log.ts';
import type { EnvoyBootstrap } from './envoy-config.ts';
import { eachLine, keepLast } from './lines.ts';

export type EnvoyProcess = {
  /** `ip:port` of the first listener. */
  readonly listenerAddress: string;
  readonly adminAddress: string;
  /** Counters and gauges whose name matches the regular expression. */
  stats(filter: string): Promise<ReadonlyMap<string, number>>;
  /** The last lines of the access log. */
  accessLog(): readonly string[];
  /** Ends Envoy; idempotent. */
  stop(): Promise<void>;
};

export type EnvoyProcessOptions = {
  /** Path of the binary. */
  readonly binary: string;
  readonly log?: Log;
  readonly signal?: AbortSignal;
};

const START_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 2_000;
const POLL_MS = 25;
const KEPT_LINES = 20_000;
const SAID_LINES = 20;

export async function startEnvoy(config: EnvoyBootstrap, options: EnvoyProcessOptions): Promise<EnvoyProcess> {
  const folder = await mkdtemp(join(tmpdir(), 'warmpath-envoy-'));
  try {
    const configPath = join(folder, 'envoy.json');
    const adminPath = join(folder, 'admin.txt');
    await writeFile(configPath, JSON.stringify(config));
    const child = launch(configPath, adminPath, options);
    try {
      const adminAddress = await whenReady(child, adminPath, options.signal);
      const listenerAddress = await firstListener(adminAddress);
      return {
        listenerAddress,
        adminAddress,
        stats: (filter) => readStats(adminAddress, filter),
        accessLog: () => child.accessLog,
        stop: child.stop,
      };
    } catch (error) {
      await child.stop();
      throw error;
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

type Child = {
  readonly accessLog: readonly string[];
  /** Null while it runs, else why it does not. */
  ended(): string | null;
  stop(): Promise<void>;
};

function launch(configPath: string, adminPath: string, { binary, log = silentLog }: EnvoyProcessOptions): Child {
  const child = spawn(
    binary,
    [
      ...['--config-path', configPath, '--admin-address-path', adminPath],
      // Two workers' worth of Envoy would take both cores of a small machine from the pods.
      ...['--concurrency', '1'],
      // Without it a second Envoy on this machine exits: they would share one domain socket.
      '--disable-hot-restart',
      ...['--log-level', 'warning', '--file-flush-interval-msec', '50'],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const accessLog: string[] = [];
  const said: string[] = [];
  let ended: string | null = null;
  eachLine(child.stdout, (line) => keepLast(accessLog, line, KEPT_LINES));
  eachLine(child.stderr, (line) => {
    keepLast(said, line, SAID_LINES);
    log.warn('envoy says', { line });
  });
  const killWithUs = (): void => void child.kill('SIGKILL');
  process.once('exit', killWithUs);
  const exited = new Promise<void>((resolve) => {
    const over = (reason: string): void => {
      ended ??= reason;
      process.removeListener('exit', killWithUs);
      resolve();
    };
    child.once('error', (error) => over(errorText(error)));
    child.once('close', (code, signal) => over([`exit ${code ?? signal}`, ...said].join('\n')));
  });
  return { accessLog, ended: () => ended, stop: () => endChild(child, exited, () => ended !== null) };
}

async function endChild(child: ChildProcess, exited: Promise<void>, isOver: () => boolean): Promise<void> {
  if (isOver()) return;
  child.kill('SIGTERM');
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await exited;
  clearTimeout(timer);
}

/** @returns the admin address, once Envoy says it is live */
async function whenReady(child: Child, adminPath: string, signal: AbortSignal | undefined): Promise<string> {
  const deadline = performance.now() + START_TIMEOUT_MS;
  let lastReason = 'no admin address yet';
  while (performance.now() < deadline) {
    signal?.throwIfAborted();
    const reason = child.ended();
    if (reason !== null) throw new WarmpathError('peer_failed', `Envoy did not start: ${reason}`);
    const address = await readFile(adminPath, 'utf8').catch(() => '');
    if (address !== '') {
      try {
        const response = await fetch(`http://${address}/ready`);
        lastReason = (await response.text()).trim();
        if (response.ok) return address;
      } catch (error) {
        lastReason = errorText(error);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  throw new WarmpathError('peer_failed', `Envoy is not ready after ${START_TIMEOUT_MS} ms: ${lastReason}`);
}

async function firstListener(adminAddress: string): Promise<string> {
  const response = await fetch(`http://${adminAddress}/listeners?format=json`);
  const { listener_statuses: listeners } = (await response.json()) as {
    listener_statuses: { local_address: { socket_address: { address: string; port_value: number } } }[];
  };
  const { address, port_value: port } = listeners[0]!.local_address.socket_address;
  return `${address}:${port}`;
}

async function readStats(adminAddress: string, filter: string): Promise<ReadonlyMap<string, number>> {
  const response = await fetch(`http://${adminAddress}/stats?format=json&filter=${encodeURIComponent(filter)}`);
  const { stats } = (await response.json()) as { stats: { name?: string; value?: unknown }[] };
  const numbers = new Map<string, number>();
  for (const { name, value } of stats) {
    // Histograms come as one entry without a name.
    if (name !== undefined && typeof value === 'number') numbers.set(name, value);
  }
  return numbers;
}
