/** What the demo reads from the parts it started: their public pages, as any monitoring would. */
import { setTimeout as delay } from 'node:timers/promises';
import { WarmpathError } from '../errors.ts';

const TRUST_TIMEOUT_MS = 15_000;
const POLL_MS = 50;

/** @returns requests each pod finished */
export async function readPods(addresses: readonly string[]): Promise<number[]> {
  return Promise.all(
    addresses.map(async (address) =>
      sumOf(await readText(`http://${address}/metrics`), 'vllm:request_success_total', 'finished_reason="length"'),
    ),
  );
}

export async function readWarmpath(admin: string): Promise<{ promptTokens: number; cachedTokens: number }> {
  const page = await readText(`http://${admin}/metrics`);
  return {
    promptTokens: sumOf(page, 'warmpath_prompt_tokens_total'),
    cachedTokens: sumOf(page, 'warmpath_predicted_cached_tokens_total'),
  };
}

/** Resolves when Warmpath follows the KV events of this many endpoints. */
export async function whenTrusted(admin: string, nEndpoints: number, signal: AbortSignal): Promise<void> {
  const deadline = performance.now() + TRUST_TIMEOUT_MS;
  for (;;) {
    const endpoints = JSON.parse(await readText(`http://${admin}/api/v1/endpoints`)) as { trust: string }[];
    const nExact = endpoints.filter(({ trust }) => trust === 'exact').length;
    if (nExact >= nEndpoints) return;
    if (performance.now() > deadline) {
      throw new WarmpathError(
        'peer_failed',
        `Warmpath trusts ${nExact} endpoints after ${TRUST_TIMEOUT_MS} ms, expected ${nEndpoints}`,
      );
    }
    await delay(POLL_MS, undefined, { signal });
  }
}

/** Sum of a metric's series in Prometheus text form. @param having part of the label list a series must contain */
export function sumOf(page: string, name: string, having = ''): number {
  let sum = 0;
  for (const line of page.split('\n')) {
    const ofMetric = line.startsWith(`${name}{`) || line.startsWith(`${name} `);
    if (ofMetric && line.includes(having)) sum += Number(line.slice(line.lastIndexOf(' ') + 1));
  }
  return sum;
}

async function readText(url: string): Promise<string> {
  const response = await fetch(url);
  if (!response.ok) throw new WarmpathError('peer_failed', `${url} answered ${response.status}, expected 200`);
  return response.text();
}
