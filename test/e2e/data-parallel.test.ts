/** Data-parallel ranks behind one address, through a real Envoy: the header reaches the engine, and a client's does not. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { aChat, eventually, longText, setStage, type Stage } from './stage.ts';

const RANK = 'x-data-parallel-rank';
/** Ranks count on from given ports, so these are on an address that no other test process has. */
const HOST = `127.76.${(process.pid >> 8) & 255}.${process.pid & 255 || 1}`;

describe.each(['buffered', 'full-duplex'] as const)('%s', (template) => {
  let stage: Stage;
  beforeAll(async () => {
    const ports = { kvEventsPort: 5557, replayPort: 5657 };
    stage = await setStage({
      nPods: 1,
      pod: { host: HOST, dataParallelSize: 2, ...ports },
      envoy: { template },
    });
  });
  afterAll(() => stage?.end());

  test.each([0, 1])('what is warm on rank %i is found there, whatever rank the client names', async (rank) => {
    const [{ pod, addresses }] = stage.pods as [Stage['pods'][number]];
    const body = JSON.stringify(aChat(longText(`${template}${rank}x`, 300)));
    const ask = async (at: string, named: number): Promise<number> => {
      const headers = { 'content-type': 'application/json', [RANK]: String(named) };
      const response = await fetch(`http://${at}/v1/chat/completions`, { method: 'POST', headers, body });
      expect(response.status).toBe(200);
      const { usage } = (await response.json()) as { usage: { prompt_tokens_details: { cached_tokens: number } } };
      return usage.prompt_tokens_details.cached_tokens;
    };
    expect(await ask(addresses.httpAddress, rank)).toBe(0);
    await eventually(async () => {
      const explain = { path: '/v1/chat/completions', headers: {}, body };
      const url = `http://${stage.warmpath.admin}/api/v1/explain`;
      const answer = await (await fetch(url, { method: 'POST', body: JSON.stringify(explain) })).json();
      const { candidates } = answer as { candidates: { rank: number; matchedTokens: number }[] };
      return candidates[0]!.rank === rank && candidates[0]!.matchedTokens > 0 ? 'done' : 'not announced';
    });
    const before = [0, 1].map((one) => pod.stats(one).finishedRequests);
    expect(await ask(stage.envoy.listenerAddress, 1 - rank)).toBeGreaterThan(250);
    expect([0, 1].map((one) => pod.stats(one).finishedRequests - before[one]!)).toEqual(rank === 0 ? [1, 0] : [0, 1]);
  });
});
