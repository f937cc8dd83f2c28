/** The observing filter of envoy/README.md behind each of the shipped ones: what Warmpath learns of answers it is not asked about. */
import { readFileSync } from 'node:fs';
import { expect, test } from '@jest/globals';
import { parse } from 'yaml';
import type { EnvoyBootstrap } from '../../src/demo/envoy-config.ts';
import { aChat, eventually, setStage, type Stage } from './stage.ts';

const README = readFileSync(new URL('../../envoy/README.md', import.meta.url), 'utf8');
const [, FILTER] = /```yaml\n(- name: envoy\.filters\.http\.ext_proc\.usage\n[^`]*)```/.exec(README)!;

type Filters = { http_filters: object[] };
type Listeners = { static_resources: { listeners: { filter_chains: { filters: { typed_config: Filters }[] }[] }[] } };
function observe(bootstrap: EnvoyBootstrap): void {
  const { listeners } = (bootstrap as unknown as Listeners).static_resources;
  const { http_filters: filters } = listeners[0]!.filter_chains[0]!.filters[0]!.typed_config;
  filters.splice(1, 0, ...(parse(FILTER!) as object[]));
}

type Ended = { outcome: string; firstByteMs: number | null; outputTokens: number | null };
async function endedRequests(stage: Stage): Promise<Ended[]> {
  const lines = await (await fetch(`http://${stage.warmpath.admin}/api/v1/requests?limit=10`)).text();
  return lines
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Ended);
}

test.each(['buffered', 'full-duplex', 'headers-only'] as const)(
  'behind %s it tells usage, the first token and answers that break off',
  async (template) => {
    const stage = await setStage({ nPods: 1, envoy: { template }, changeBootstrap: observe });
    const client = new AbortController();
    const ask = (body: object, signal?: AbortSignal): Promise<Response> =>
      fetch(`http://${stage.envoy.listenerAddress}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
        ...(signal && { signal }),
      });
    try {
      await (await ask(aChat('whole'))).text();
      await (await ask(aChat('streamed', { stream: true, stream_options: { include_usage: true } }))).text();
      const cut = await ask(aChat('cut', { stream: true, max_tokens: 5_000 }), client.signal);
      await cut.body!.getReader().read();
      client.abort();
      await eventually(async () => ((await endedRequests(stage)).length === 3 ? 'done' : 'requests have not ended'));
      const ended = await endedRequests(stage);
      expect(ended.map(({ outcome, outputTokens }) => [outcome, outputTokens]).toSorted()).toEqual([
        ['cancelled', null],
        ['completed', 4],
        ['completed', 4],
      ]);
      for (const { firstByteMs } of ended) expect(firstByteMs).toBeGreaterThan(0);
    } finally {
      await stage.end();
    }
  },
);
