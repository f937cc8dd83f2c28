/** The external processor on a free port, with everything it does recorded. */
import type { Signal } from '../../src/light-signal.ts';
import type { Decision, EndpointPicker, PickRequest } from '../../src/extproc/picker.ts';
import { systemClock, type Clock } from '../../src/clock.ts';
import {
  createExtProcServer,
  type ExchangeResult,
  type ExtProcServer,
  type ExtProcServerOptions,
} from '../../src/extproc/server.ts';
import { createLog } from '../../src/log.ts';
import { createUsageReader } from '../../src/openai/usage.ts';
import { createHeld, SERVER_OPTIONS, type Held } from './exchange-harness.ts';

export const POD = '10.0.0.1:8000';

export type RunningServer = {
  server: ExtProcServer;
  address: string;
  healthAddress: string | null;
  results: ExchangeResult[];
  held: Held[];
  /** Response bytes the server has read. */
  nResponseBytes: number;
  requests: PickRequest[];
  lines: { level: string; msg: string; error?: string }[];
};

/** A decision that is never made. */
export const never = (): Promise<Decision> => new Promise(() => undefined);

type Pick = (request: PickRequest, signal: Signal, route: () => Promise<Decision>) => Promise<Decision>;

/** @param atEnd is told how each server that is started ends, see endings.ts */
export function createExtProcServers(atEnd: (end: () => unknown) => void): typeof startExtProc {
  return async (...args) => {
    const running = await startExtProc(...args);
    atEnd(() => running.server.stop());
    return running;
  };
}

/** @param pick may leave it to `route`, which routes to POD */
async function startExtProc(
  options: Partial<ExtProcServerOptions> = {},
  pick: Pick = (_request, _signal, route) => route(),
  clock: Clock = systemClock,
): Promise<RunningServer> {
  const setup = { results: [], held: [], nResponseBytes: 0, requests: [], lines: [] } as unknown as RunningServer;
  const route = (): Promise<Decision> => {
    const { fate, reservation } = createHeld();
    setup.held.push(fate);
    return Promise.resolve({ kind: 'routed', endpoints: [POD], reservation });
  };
  const picker: EndpointPicker = {
    pick(request, signal) {
      setup.requests.push(request);
      return pick(request, signal, route);
    },
  };
  setup.server = createExtProcServer(
    {
      picker,
      log: createLog('debug', (line) => setup.lines.push(JSON.parse(line))),
      clock,
      createUsageReader: (contentType) => {
        const reader = createUsageReader(contentType);
        return {
          push(chunk) {
            setup.nResponseBytes += chunk.length;
            reader.push(chunk);
          },
          result: reader.result,
        };
      },
      onStream: (result) => setup.results.push(result),
    },
    { ...SERVER_OPTIONS, drainTimeoutMs: 2_000, ...options },
  );
  const { grpcAddress, healthAddress } = await setup.server.start();
  setup.address = grpcAddress;
  setup.healthAddress = healthAddress;
  return setup;
}

export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const deadline = Date.now() + 15_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`gave up waiting until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
