/**
 * What an exact call costs this process: the same chat of about a thousand tokens decided with tokens from a server in
 * another process, and without, in alternating rounds; CPU time of the whole process, the cheapest round counts.
 */
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import type { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { createVllmTokenizer } from '../../src/tokenizer/vllm-tokenizer.ts';
import { CLIENT_OPTIONS } from '../support/fake-tokenizer.ts';
import { anIdlePicker, chatRequest, NEVER, tell } from './tokens-parts.ts';
import { startServerProcess } from './tokens-server-process.ts';

const AT_ONCE = 16;
const PER_ROUND = 2000;
/** Every decision with a call is to have its tokens, however busy the machine is. */
const PATIENT_MS = 10_000;
/** The fake's tokens are bytes of the text. */
const TEXT = 'The quick brown fox jumps over the lazy dog. '.repeat(21);

export async function callCost(rounds: number): Promise<void> {
  const server = await startServerProcess();
  const deps = { log: silentLog, clock: systemClock, onCall: () => undefined };
  const calling = createVllmTokenizer(deps, { ...CLIENT_OPTIONS, urls: [server.url], cacheMaxBytes: 16 << 20 });
  const silent: Tokenizer = {
    tokenize: () => Promise.resolve({ kind: 'none', reason: 'disabled' }),
    close: () => Promise.resolve(),
  };
  const rungs = new Map<string, number>();
  const pickers = [silent, calling].map((tokenizer) =>
    anIdlePicker(systemClock, tokenizer, (record) => {
      if (record.kind === 'routed') rungs.set(record.evaluation.rung, (rungs.get(record.evaluation.rung) ?? 0) + 1);
    }),
  );
  let nBodies = 0;
  const least = [Infinity, Infinity];
  let nWithCall = 0;
  for (let round = 0; round < rounds; round++) {
    for (const [which, picker] of pickers.entries()) {
      const bodies = Array.from({ length: PER_ROUND }, () =>
        Buffer.from(JSON.stringify({ model: 'm', messages: [{ role: 'user', content: `${nBodies++} ${TEXT}` }] })),
      );
      const start = process.cpuUsage();
      let next = 0;
      const client = async (): Promise<void> => {
        while (next < PER_ROUND) {
          const decision = await picker.pick(chatRequest(bodies[next++]!), NEVER);
          if (decision.kind === 'routed') decision.reservation.release('completed');
        }
      };
      await Promise.all(Array.from({ length: AT_ONCE }, client));
      const { user, system } = process.cpuUsage(start);
      least[which] = Math.min(least[which]!, (user + system) / PER_ROUND);
      if (which === 1) nWithCall += PER_ROUND;
    }
  }
  await calling.close();
  await server.stop();
  const exactShare = (rungs.get('exact') ?? 0) / nWithCall;
  const [without, withCall] = least as [number, number];
  tell({ what: 'CPU of a decision, chat of 1k tokens, without tokens', measured: `${without.toFixed(0)} µs` });
  tell({
    what: '  with an exact call over HTTP',
    measured: `${withCall.toFixed(0)} µs, ${(withCall - without).toFixed(0)} above (${(withCall / without).toFixed(1)}×), ${(100 * exactShare).toFixed(0)} % exact`,
    must: '≤ 60 µs above',
    met: withCall - without <= 60 && exactShare === 1,
  });
}
