/**
 * What an exact call costs this process: the same chat of about a thousand tokens decided with tokens from a server in
 * another process, and without, and beside both the bare call in two ways, in alternating rounds; CPU time of the whole process, the
 * cheapest round counts.
 */
import { Pool } from 'undici';
import { systemClock } from '../../src/clock.ts';
import type { Picker } from '../../src/endpoint-picker.ts';
import { createHttpClient } from '../../src/http/http-client.ts';
import { silentLog } from '../../src/log.ts';
import { parseChatRenderResponse } from '../../src/tokenizer/token-response.ts';
import type { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { createVllmTokenizer } from '../../src/tokenizer/vllm-tokenizer.ts';
import { CLIENT_OPTIONS } from '../support/fake-tokenizer.ts';
import { anIdlePicker, chatRequest, never, tell } from './tokens-parts.ts';
import { startServerProcess } from './tokens-server-process.ts';

const AT_ONCE = 16;
const PER_ROUND = 2000;
/** Every decision with a call is to have its tokens, however busy the machine is. */
const PATIENT_MS = 10_000;
/** Four bytes are a token. */
const TEXT = 'The quick brown fox jumps over the lazy dog. '.repeat(87);

export async function callCost(rounds: number): Promise<void> {
  const server = await startServerProcess();
  await server.order({ behaviour: 'answer', delayMs: 0, vocabulary: 'words' });
  const deps = { log: silentLog, clock: systemClock, onCall: () => undefined };
  const calling = createVllmTokenizer(deps, { ...CLIENT_OPTIONS, urls: [server.url], cacheMaxBytes: 16 << 20 });
  const silent: Tokenizer = {
    tokenize: () => Promise.resolve({ kind: 'none', reason: 'disabled' }),
    close: () => Promise.resolve(),
  };
  const rungs = new Map<string, number>();
  const pickers = [silent, calling].map((tokenizer) =>
    anIdlePicker(
      systemClock,
      tokenizer,
      (record) => {
        if (record.kind !== 'routed') return;
        const { rung } = record.evaluation;
        rungs.set(rung, (rungs.get(rung) ?? 0) + 1);
      },
      PATIENT_MS,
    ),
  );
  const [withoutTokens, withTokens] = pickers as [Picker, Picker];
  const decide = async (picker: Picker, body: Buffer): Promise<void> => {
    const decision = await picker.pick(chatRequest(body), never());
    if (decision.kind === 'routed') decision.reservation.release('completed');
  };
  const pool = new Pool(server.url, { connections: AT_ONCE });
  const headers = { 'content-type': 'application/json', accept: 'application/json' };
  /** The same call and the same answer, in the usual way and without a decision. */
  const callOnly = async (body: Buffer): Promise<void> => {
    const answer = await pool.request({ path: '/v1/chat/completions/render', method: 'POST', headers, body });
    Uint32Array.from(((await answer.body.json()) as { token_ids: number[] }).token_ids);
  };
  const client = createHttpClient(systemClock);
  const limits = { timeoutMs: PATIENT_MS, responseMaxBytes: 1 << 20, signal: null };
  /** The same call as decisions make it. */
  const ownCall = (body: Buffer): Promise<unknown> =>
    client.exchange(
      server.url,
      { method: 'POST', path: '/v1/chat/completions/render', headers, body },
      limits,
      (answer) => answer.kind === 'answer' && parseChatRenderResponse(answer.body),
    );
  const subjects = [
    (body: Buffer) => decide(withoutTokens, body),
    (body: Buffer) => decide(withTokens, body),
    callOnly,
    ownCall,
  ];
  const least = subjects.map(() => Infinity);
  let nBodies = 0;
  for (let round = 0; round < rounds; round++) {
    for (const [which, subject] of subjects.entries()) {
      const bodies = Array.from({ length: PER_ROUND }, () =>
        Buffer.from(JSON.stringify({ model: 'm', messages: [{ role: 'user', content: `${nBodies++} ${TEXT}` }] })),
      );
      const start = process.cpuUsage();
      let next = 0;
      const client = async (): Promise<void> => {
        while (next < PER_ROUND) await subject(bodies[next++]!);
      };
      await Promise.all(Array.from({ length: AT_ONCE }, client));
      const { user, system } = process.cpuUsage(start);
      least[which] = Math.min(least[which]!, (user + system) / PER_ROUND);
    }
  }
  await pool.close();
  client.close();
  await calling.close();
  await server.stop();
  const exactShare = (rungs.get('exact') ?? 0) / (rounds * PER_ROUND);
  const [without, withCall, call, own] = least as [number, number, number, number];
  const above = withCall - without;
  tell({ what: 'CPU of a decision, chat of 1k tokens, without tokens', measured: `${without.toFixed(0)} µs` });
  tell({
    what: '  with an exact call over HTTP',
    measured: `${withCall.toFixed(0)} µs, ${above.toFixed(0)} above (${(above / call).toFixed(2)}× the call alone), ${(100 * exactShare).toFixed(0)} % exact`,
    must: '≤ 60 µs above',
    met: above <= 60 && exactShare === 1,
  });
  tell({ what: '  the call alone, over src/http', measured: `${own.toFixed(0)} µs` });
  tell({ what: "  the call alone, with undici's request and JSON.parse", measured: `${call.toFixed(0)} µs` });
}
