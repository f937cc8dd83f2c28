/** The whole product in this process, on free ports, for tests that look at it from the admin port. */
import { createApp, type App } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import { loadConfig } from '../../src/config.ts';
import { silentLog } from '../../src/log.ts';

/** @param sets `key=value`, as behind `--set` */
export async function startApp(sets: readonly string[]): Promise<{ app: App; admin: string }> {
  const ports = ['grpcListen', 'healthListen', 'adminListen'].map((key) => `server.${key}=127.0.0.1:0`);
  const loaded = loadConfig({
    file: null,
    readFile: () => '',
    env: {},
    sets: [...ports, 'server.drainDelayMs=0', ...sets],
  });
  if (loaded.kind === 'mistakes') throw new Error(loaded.mistakes.join('\n'));
  const app = createApp(loaded.config, { log: silentLog, clock: systemClock });
  const { admin } = await app.start();
  return { app, admin: `http://${admin}` };
}

/** Asks until it holds; long enough for a machine that is busy with other things. */
export async function eventually<T>(what: () => Promise<T>, holds: (value: T) => boolean): Promise<T> {
  for (const endMs = Date.now() + 45_000; ; await new Promise((resolve) => setTimeout(resolve, 20))) {
    const value = await what();
    if (holds(value)) return value;
    if (Date.now() > endMs) throw new Error(`not within 45 s, last: ${JSON.stringify(value)}`);
  }
}
