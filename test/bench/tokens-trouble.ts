/**
 * A tokenizer in trouble, asked for prompts never seen before, so that nothing but it could help. In real time over real
 * sockets, the tokenizer in a process of its own.
 */
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import { createVllmTokenizer } from '../../src/tokenizer/vllm-tokenizer.ts';
import { CLIENT_OPTIONS, type Behaviour } from '../support/fake-tokenizer.ts';
import { anIdlePicker, BUDGET_MS, chatRequest, never, percentile, tell } from './tokens-parts.ts';
import { startServerProcess } from './tokens-server-process.ts';

type Trouble = { readonly behaviour: Behaviour | 'dead'; readonly delayMs: number; readonly perSecond: number };

/** 16 calls at once of 160 ms each are 100 a second. */
export const TROUBLES: Readonly<Record<string, Trouble>> = {
  'healthy, 10 ms': { behaviour: 'answer', delayMs: 10, perSecond: 100 },
  'at 2× saturation': { behaviour: 'answer', delayMs: 160, perSecond: 200 },
  dead: { behaviour: 'dead', delayMs: 0, perSecond: 100 },
  resetting: { behaviour: 'reset', delayMs: 0, perSecond: 100 },
  hanging: { behaviour: 'hang', delayMs: 0, perSecond: 100 },
  garbage: { behaviour: 'garbage', delayMs: 0, perSecond: 100 },
  '16 MiB': { behaviour: 'huge', delayMs: 0, perSecond: 100 },
};

const MAX_IN_FLIGHT = 16;
/** First pause of the breaker, and its jitter; a probe that fails meanwhile doubles it. */
const PROBE_MS = 2000;

export async function trouble(name: string, seconds: number): Promise<void> {
  const { behaviour, delayMs, perSecond } = TROUBLES[name]!;
  const server = await startServerProcess();
  const tokenizer = createVllmTokenizer(
    { log: silentLog, clock: systemClock, onCall: () => undefined },
    { ...CLIENT_OPTIONS, urls: [server.url], timeoutMs: 500, maxInFlight: MAX_IN_FLIGHT, cacheMaxBytes: 16 << 20 },
  );
  const rungs = new Map<string, number>();
  let lastRung = '';
  const picker = anIdlePicker(systemClock, tokenizer, (record) => {
    if (record.kind !== 'routed') return;
    lastRung = record.evaluation.rung;
    rungs.set(lastRung, (rungs.get(lastRung) ?? 0) + 1);
  });
  let nAsked = 0;
  let nFailed = 0;
  const ask = async (): Promise<number> => {
    const content = `${nAsked++} ${'never seen before '.repeat(40)}`;
    const body = Buffer.from(JSON.stringify({ model: 'm', messages: [{ role: 'user', content }] }));
    const startMs = performance.now();
    const decision = await picker.pick(chatRequest(body), never());
    const durationMs = performance.now() - startMs;
    if (decision.kind === 'error') nFailed += 1;
    else decision.reservation.release('completed');
    return durationMs;
  };
  const run = async (forSeconds: number): Promise<{ latencies: readonly number[]; stallMs: number }> => {
    const startMs = performance.now();
    const pending: Promise<number>[] = [];
    let stallMs = 0;
    let before = startMs;
    for (let n = 0; performance.now() < startMs + 1000 * forSeconds; n++) {
      const dueMs = startMs + (1000 * n) / perSecond;
      while (performance.now() < dueMs) {
        await new Promise((resolve) => setTimeout(resolve, 1));
        // What the machine keeps the loop from is no doing of ours.
        stallMs = Math.max(stallMs, performance.now() - before - 1);
        before = performance.now();
      }
      pending.push(ask());
    }
    return { latencies: (await Promise.all(pending)).sort((a, b) => a - b), stallMs };
  };
  await run(1);
  rungs.clear();
  if (behaviour === 'dead') await server.kill();
  else await server.order({ behaviour, delayMs });
  // Garbage is collected in steps: memory is compared between the first half of the trouble and its end.
  await run(seconds / 2);
  const memoryBefore = process.memoryUsage().rss;
  const { latencies, stallMs } = await run(seconds / 2);
  const grownMiB = (process.memoryUsage().rss - memoryBefore) / 2 ** 20;
  const p99 = percentile(latencies, 0.99);
  const max = percentile(latencies, 1);
  tell({
    what: `tokenizer ${name}: added latency`,
    measured: `p50 ${percentile(latencies, 0.5).toFixed(1)}, p99 ${p99.toFixed(1)}, max ${max.toFixed(1)} ms (the loop stood still for up to ${stallMs.toFixed(0)} ms)`,
    must: `≤ ${BUDGET_MS + 5} ms`,
    met: max - stallMs <= BUDGET_MS + 5,
  });
  const counts = [...rungs].map(([rung, n]) => `${rung} ${n}`).join(', ');
  tell({
    what: '  failed; rungs; memory meanwhile',
    measured: `${nFailed}; ${counts}; ${grownMiB >= 0 ? '+' : ''}${grownMiB.toFixed(0)} MiB`,
    must: '0; –; flat',
    met: nFailed === 0 && grownMiB < 32,
  });
  if (behaviour !== 'answer' && behaviour !== 'dead') {
    await server.order({ behaviour: 'answer', delayMs: 0 });
    const wellMs = performance.now();
    lastRung = '';
    while (lastRung !== 'exact' && performance.now() < wellMs + 40_000) {
      await ask();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const recoveredMs = performance.now() - wellMs;
    const allowedMs = PROBE_MS * 2 ** Math.ceil(Math.log2(1 + seconds));
    tell({
      what: '  exact again, once it is well',
      measured: lastRung === 'exact' ? `after ${recoveredMs.toFixed(0)} ms` : 'never',
      must: `≤ ${allowedMs} ms, the breaker's pause by then`,
      met: lastRung === 'exact' && recoveredMs <= allowedMs,
    });
  }
  await tokenizer.close();
  if (behaviour !== 'dead') await server.stop();
}
