/**
 * What of a request's cost is this product's own: reading the messages, the state machine, the choice of an endpoint and the
 * answers, in one process without gRPC. CPU time of the process, the best of many short rounds: other work on the machine
 * lengthens a round, but hardly this number.
 */
import { systemClock } from '../../src/clock.ts';
import { createBodyBudget } from '../../src/extproc/body-budget.ts';
import { createExchange } from '../../src/extproc/exchange.ts';
import { readMessage } from '../../src/extproc/message-reader.ts';
import { createUsageReader } from '../../src/openai/usage.ts';
import { DEFAULT_EXCHANGE_OPTIONS } from '../support/exchange-harness.ts';
import { anIdlePicker } from './tokens-parts.ts';

const ROUNDS = 40;
const REQUESTS_PER_ROUND = 1_000;
const WARM_UP_REQUESTS = 20_000;

/**
 * @param requests encoded messages of whole requests in BUFFERED mode: headers, then the body
 * @returns CPU µs per request
 */
export async function exchangeCost(requests: readonly (readonly [headers: Buffer, body: Buffer])[]): Promise<number> {
  const picker = anIdlePicker(systemClock, null, () => undefined);
  const budget = createBodyBudget(Infinity);
  let nSent = 0;
  const one = (headers: Buffer, body: Buffer): Promise<unknown> =>
    new Promise((resolve) => {
      const exchange = createExchange(DEFAULT_EXCHANGE_OPTIONS, systemClock, createUsageReader, {
        send: (answer) => void (nSent += answer.length),
        pick: (request, signal) =>
          void picker.pick(request, signal).then((decision) => {
            exchange.decided(decision);
            exchange.halfClosed();
          }),
        holdBody: budget.open,
        observe: () => ({ firstByte: () => undefined, complete: () => undefined, gone: () => undefined }),
        unseen: () => undefined,
        end: () => undefined,
        fail: () => undefined,
        finished: resolve,
      });
      exchange.message(readMessage(headers));
      exchange.message(readMessage(body));
    });
  const run = async (n: number): Promise<void> => {
    for (let i = 0; i < n; i++) await one(...requests[i % requests.length]!);
  };
  await run(WARM_UP_REQUESTS);
  let bestUs = Infinity;
  for (let round = 0; round < ROUNDS; round++) {
    const before = process.cpuUsage();
    await run(REQUESTS_PER_ROUND);
    const { user, system } = process.cpuUsage(before);
    bestUs = Math.min(bestUs, (user + system) / REQUESTS_PER_ROUND);
  }
  if (nSent === 0) throw new Error('nothing was answered');
  return bestUs;
}
