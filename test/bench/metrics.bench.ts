/**
 * What reading the engines' metrics costs: `node test/bench/metrics.bench.ts [seconds]`. 64 endpoints with pages of 70 KB,
 * each read once a second, the least of three rounds; the engines are a process of their own, CPU is that of the process that reads. Beside it the
 * same readings with every line of every page parsed, and with no parsing at all.
 */
import { fork } from 'node:child_process';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createEngineMetrics } from '../../src/load/engine-metrics.ts';
import { createHttpGet } from '../../src/http/http-get.ts';
import { createMetricsReader, type EngineReading, type MetricsReader } from '../../src/load/metrics-page.ts';
import { silentLog } from '../../src/log.ts';
import { aSpec } from '../support/endpoints.ts';
import { aVllmPage } from '../support/metrics-pages.ts';

const N_ENDPOINTS = 64;
const INTERVAL_MS = 1000;
const WARM_UP_MS = 1500;
const ROUNDS = 3;
const NOTHING: EngineReading = {
  engine: 'vllm',
  running: 0,
  waiting: 0,
  kvUsage: 0,
  nBlocks: 0,
  blockSizeTokens: 0,
  decode: null,
  answers: null,
  nIgnored: 0,
};

async function engines(): Promise<void> {
  const page = Buffer.from(aVllmPage({ running: 3, waiting: 7, kvUsage: 0.25 }, 46_000));
  const servers: Server[] = Array.from({ length: N_ENDPOINTS }, () =>
    createServer((_request, response) => void response.end(page)),
  );
  for (const server of servers) await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  process.send!({ ports, pageBytes: page.length });
}

/** Every series of the page into a map, as a general parser does. */
function parseEverything(page: Buffer): EngineReading {
  const series = new Map<string, { labels: Map<string, string>; value: number }[]>();
  for (const line of page.toString().split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
    if (match === null) continue;
    const [, name, text = '', value] = match;
    const labels = new Map<string, string>();
    for (const [, label, content] of text.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels.set(label!, content!);
    const known = series.get(name!);
    if (known === undefined) series.set(name!, [{ labels, value: Number(value) }]);
    else known.push({ labels, value: Number(value) });
  }
  return { ...NOTHING, running: series.get('vllm:num_requests_running')?.[0]?.value ?? null };
}

function cpuMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Of 64 pages a second. @param read instead of the product's own reader */
async function shareOfCore(ports: readonly number[], seconds: number, read: MetricsReader | null): Promise<number> {
  const http = createHttpGet(systemClock, { timeoutMs: 2000, maxBytes: 4 << 20 });
  let nOk = 0;
  const metrics = createEngineMetrics(
    {
      log: silentLog,
      clock: systemClock,
      async get(origin, path) {
        const answer = await http.get(origin, path);
        if (read === null || answer.kind !== 'page') return answer;
        read(answer.body);
        return { kind: 'page', body: SMALL_PAGE, date: null };
      },
      onScrape: (result) => void (nOk += result === 'ok' ? 1 : 0),
    },
    { intervalMs: INTERVAL_MS },
  );
  metrics.reconcile(
    ports.map((port, slot) => ({
      ...aSpec({ address: `127.0.0.1:${port}` }),
      id: `${port}` as EndpointId,
      slot: slot as EndpointSlot,
    })),
  );
  await delay(WARM_UP_MS);
  const [cpuBefore, startMs, okBefore] = [cpuMs(), performance.now(), nOk];
  await delay(seconds * 1000);
  const [cpu, wallMs] = [cpuMs() - cpuBefore, performance.now() - startMs];
  metrics.stop();
  await http.close();
  const perSecond = ((nOk - okBefore) * 1000) / wallMs;
  return ((100 * cpu) / wallMs) * (N_ENDPOINTS / perSecond);
}

const SMALL_PAGE = Buffer.from('vllm:num_requests_running 1\n');
const say = (line: string): void => void process.stdout.write(`${line}\n`);

async function main(seconds: number): Promise<void> {
  const child = fork(fileURLToPath(import.meta.url), ['engines']);
  const { ports, pageBytes } = await new Promise<{ ports: number[]; pageBytes: number }>((resolve) =>
    child.once('message', resolve),
  );
  const page = Buffer.from(aVllmPage({}, 46_000));
  const read = createMetricsReader();
  const perPage = (parse: (page: Buffer) => unknown): number => {
    let best = Infinity;
    for (let round = 0; round < 100; round++) {
      const startMs = performance.now();
      for (let i = 0; i < 10; i++) parse(page);
      best = Math.min(best, (performance.now() - startMs) / 10);
    }
    return best;
  };
  say(`${N_ENDPOINTS} endpoints, ${pageBytes} bytes per page, every ${INTERVAL_MS} ms`);
  const [found, parsed] = [perPage(read), perPage(parseEverything)];
  say(
    `one page: byte search ${found.toFixed(3)} ms, full parse ${parsed.toFixed(3)} ms (${(parsed / found).toFixed(1)} ×)`,
  );
  try {
    const variants: readonly (readonly [string, MetricsReader | null])[] = [
      ['read, not parsed', () => NOTHING],
      ['byte search', null],
      ['every line parsed', parseEverything],
    ];
    const least = variants.map(() => Infinity);
    for (let round = 0; round < ROUNDS; round++) {
      for (const [i, [, parse]] of variants.entries()) {
        least[i] = Math.min(least[i]!, await shareOfCore(ports, seconds, parse));
      }
    }
    for (const [i, [name]] of variants.entries())
      say(`${name.padEnd(20)} ${least[i]!.toFixed(1).padStart(5)} % of a core`);
  } finally {
    child.kill();
  }
}

if (process.argv[2] === 'engines') await engines();
else await main(Number(process.argv[2] ?? 5));
