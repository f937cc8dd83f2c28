/** One run of load against one server process: its CPU, and how long requests took. */
import { fork, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { openLoadConnection, type Exchange, type LoadConnection } from './grpc-load.ts';

export type ServerProcess = {
  readonly connections: readonly LoadConnection[];
  cpuUs(): Promise<number>;
  stop(): Promise<void>;
};

/** So many requests per second, started on time whatever the server does; or so many always in flight. */
export type Pace = { readonly perSecond: number } | { readonly parallel: number };

export type Run = {
  readonly perSecond: number;
  /** Of the server process, all threads, per request. */
  readonly cpuUs: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
};

const N_CONNECTIONS = 2;

/** @param profile directory for a CPU profile, null for none */
export async function startServer(
  kind: string,
  sections: object,
  profile: string | null = null,
): Promise<ServerProcess> {
  const child: ChildProcess = fork(
    fileURLToPath(new URL('extproc-server.ts', import.meta.url)),
    [kind, JSON.stringify(sections)],
    {
      // As Warmpath is started; the floor gains by it as well.
      execArgv: [
        '--max-semi-space-size=4',
        ...(profile === null ? [] : ['--cpu-prof', '--cpu-prof-interval=250', `--cpu-prof-dir=${profile}`]),
      ],
    },
  );
  const next = <T>(): Promise<T> => new Promise((resolve) => child.once('message', (message) => resolve(message as T)));
  const { address } = await next<{ address: string }>();
  const connections = await Promise.all(Array.from({ length: N_CONNECTIONS }, () => openLoadConnection(address)));
  return {
    connections,
    async cpuUs() {
      const answer = next<{ cpuUs: number }>();
      child.send('cpu');
      return (await answer).cpuUs;
    },
    stop() {
      for (const connection of connections) connection.close();
      return new Promise<void>((resolve) => {
        child.once('exit', () => resolve());
        child.disconnect();
      });
    },
  };
}

export async function run(server: ServerProcess, next: () => Exchange, pace: Pace, seconds: number): Promise<Run> {
  const latencies: number[] = [];
  const endings: Promise<void>[] = [];
  let n = 0;
  const send = async (dueMs: number): Promise<void> => {
    const answeredAtMs = await server.connections[n++ % N_CONNECTIONS]!.request(next());
    latencies.push(answeredAtMs - dueMs);
  };
  const cpuBefore = await server.cpuUs();
  const startMs = performance.now();
  const endMs = startMs + seconds * 1000;
  if ('parallel' in pace) {
    const loop = async (): Promise<void> => {
      while (performance.now() < endMs) await send(performance.now());
    };
    await Promise.all(Array.from({ length: pace.parallel }, loop));
  } else {
    for (let due = startMs; due < endMs; due = startMs + (n * 1000) / pace.perSecond) {
      while (performance.now() < due) await new Promise((resolve) => setTimeout(resolve, 1));
      endings.push(send(due));
    }
    await Promise.all(endings);
  }
  const tookMs = performance.now() - startMs;
  const cpuUs = ((await server.cpuUs()) - cpuBefore) / latencies.length;
  latencies.sort((a, b) => a - b);
  const at = (share: number): number =>
    latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))]!;
  return {
    perSecond: (latencies.length * 1000) / tookMs,
    cpuUs,
    p50Ms: at(0.5),
    p99Ms: at(0.99),
  };
}
