import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Agent, request } from 'undici';
import { createApp } from '../../src/app.ts';
import { systemClock } from '../../src/clock.ts';
import type { EnvoyBootstrap } from '../../src/demo/envoy-config.ts';
import type { EnvoyProcess } from '../../src/demo/envoy-process.ts';
import { silentLog } from '../../src/log.ts';
import { startNullUpstream, startTestEnvoy } from '../support/envoy.ts';
import { aChat, MODEL, stageConfig } from './stage.ts';

const REQUESTS_PER_SECOND = 500;

/** Envoy as somebody may have configured it who never read about Node: no remedy on its side, and no forgiveness. */
function withoutRemedies(bootstrap: EnvoyBootstrap): void {
  const { static_resources: resources } = bootstrap as {
    static_resources: {
      clusters: { name: string; typed_extension_protocol_options: Record<string, object> }[];
      listeners: {
        filter_chains: { filters: { typed_config: { http_filters: { typed_config: FilterConfig }[] } }[] }[];
      }[];
    };
  };
  type FilterConfig = { grpc_service: { retry_policy?: object }; failure_mode_allow: boolean };
  delete (bootstrap as { layered_runtime?: object }).layered_runtime;
  for (const { typed_extension_protocol_options: options } of resources.clusters) {
    for (const option of Object.values(options)) {
      delete (option as { common_http_protocol_options?: object }).common_http_protocol_options;
    }
  }
  const filter = resources.listeners[0]!.filter_chains[0]!.filters[0]!.typed_config.http_filters[0]!.typed_config;
  delete filter.grpc_service.retry_policy;
  filter.failure_mode_allow = false;
}

describe('thousands of side streams, every one reset by Envoy', () => {
  let upstream: EnvoyProcess;
  let app: ReturnType<typeof createApp>;
  let extProcAddress: string;
  beforeAll(async () => {
    upstream = await startNullUpstream();
    const endpoints = [{ name: 'null', address: upstream.listenerAddress, model: MODEL, kvEvents: 'none' }];
    const config = stageConfig([], { discovery: { endpoints }, tokenizer: { api: 'none' } });
    app = createApp(config, { log: silentLog, clock: systemClock });
    extProcAddress = (await app.start()).grpc;
  });
  afterAll(async () => {
    await app.stop();
    await upstream.stop();
  });

  const cases = [
    {
      name: 'without any remedy in Envoy',
      nRequests: 2500,
      change: withoutRemedies,
      least: { resets: 2500, connections: 1 },
    },
    { name: 'as recommended', nRequests: 2000, change: () => undefined, least: { resets: 0, connections: 3 } },
  ];
  test.each(cases)('$name: $nRequests requests, none fails', async ({ nRequests, change, least }) => {
    const envoy = await startTestEnvoy(
      { template: 'buffered', withExtProc: 'yes', extProcAddress, pods: [upstream.listenerAddress] },
      change,
    );
    try {
      expect(await sendMany(envoy.listenerAddress, nRequests)).toEqual(new Map([['200', nRequests]]));
      const stats = await envoy.stats('cluster.warmpath.upstream_(rq_tx_reset|cx_total)$|failure_mode_allowed');
      // Proof that the trap was really there, or that connections were really retired before it.
      expect(stats.get('cluster.warmpath.upstream_rq_tx_reset')).toBeGreaterThanOrEqual(least.resets);
      expect(stats.get('cluster.warmpath.upstream_cx_total')).toBeGreaterThanOrEqual(least.connections);
      expect(stats.get('http.ingress.ext_proc.warmpath.failure_mode_allowed')).toBe(0);
    } finally {
      await envoy.stop();
    }
  });
});

/** Open loop. @returns how often each status or error was met */
async function sendMany(address: string, nRequests: number): Promise<Map<string, number>> {
  const met = new Map<string, number>();
  const count = (what: string): void => void met.set(what, (met.get(what) ?? 0) + 1);
  const body = JSON.stringify(aChat('x'.repeat(500)));
  const agent = new Agent({ connections: 32 });
  const send = async (): Promise<void> => {
    try {
      const response = await request(`http://${address}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body,
        dispatcher: agent,
      });
      await response.body.dump();
      count(String(response.statusCode));
    } catch (error) {
      count(String(error));
    }
  };
  const startMs = performance.now();
  const sent: Promise<void>[] = [];
  while (sent.length < nRequests) {
    const due = Math.floor(((performance.now() - startMs) * REQUESTS_PER_SECOND) / 1000) + 1;
    while (sent.length < Math.min(due, nRequests)) sent.push(send());
    await delay(4);
  }
  await Promise.all(sent);
  await agent.close();
  return met;
}
