import { describe, expect, test } from '@jest/globals';
import type { EndpointId } from '../../../src/endpoints/endpoint.ts';
import { createEngineMetrics, type ScrapeResult } from '../../../src/load/engine-metrics.ts';
import type { GetAnswer } from '../../../src/http/http-get.ts';
import type { TcpProbe } from '../../../src/load/tcp-probe.ts';
import { silentLog } from '../../../src/log.ts';
import { anEndpoint } from '../../support/endpoints.ts';
import { createFakeClock } from '../../support/fake-clock.ts';
import { aVllmPage } from '../../support/metrics-pages.ts';

const page = (running: number): GetAnswer => ({ kind: 'page', body: Buffer.from(aVllmPage({ running })), date: null });

/** Engines that answer, and accept connections, when and as a test says. */
function aFleet(intervalMs = 1000) {
  const network: { state: Awaited<ReturnType<TcpProbe>>; nProbes: number } = { state: 'accepted', nProbes: 0 };
  const clock = createFakeClock();
  const open: { origin: string; answer: (answer: GetAnswer) => void }[] = [];
  const results: [ScrapeResult, number][] = [];
  let nAsked = 0;
  const metrics = createEngineMetrics(
    {
      log: silentLog,
      clock,
      random: () => 0.5,
      get: (origin) =>
        new Promise((resolve) => {
          nAsked += 1;
          open.push({ origin, answer: resolve });
        }),
      probe(address) {
        expect(address).toBe(anEndpoint(1).address);
        network.nProbes += 1;
        return Promise.resolve(network.state);
      },
      onScrape: (...result) => results.push(result),
    },
    { intervalMs },
  );
  return {
    clock,
    metrics,
    results,
    network,
    nOpen: () => open.length,
    nAsked: () => nAsked,
    async answer(answer: GetAnswer): Promise<void> {
      for (const one of open.splice(0)) one.answer(answer);
      for (let i = 0; i < 5; i++) await Promise.resolve();
    },
  };
}

describe('what engines say of themselves', () => {
  test('an endpoint never read is unknown, a read one known with its age', async () => {
    const { clock, metrics, answer } = aFleet();
    const endpoint = anEndpoint(1);
    metrics.reconcile([endpoint]);
    expect(metrics.of(endpoint.id)).toBeNull();
    clock.advance(1000);
    await answer(page(4));
    clock.advance(300);
    expect(metrics.of(endpoint.id)).toMatchObject({ engine: 'vllm', running: 4, ageMs: 300 });
  });

  test('ranks behind one address are asked once, read each for itself, and refuse together', async () => {
    const { clock, metrics, answer, nAsked, results } = aFleet();
    const ranks = [0, 1].map((rank) => {
      const endpoint = anEndpoint(1);
      return { ...endpoint, rank, id: `${endpoint.id}/${rank}` as EndpointId };
    });
    const running = (): unknown[] => ranks.map(({ id }) => metrics.of(id)?.running);
    metrics.reconcile(ranks);
    clock.advance(1000);
    expect(nAsked()).toBe(1);
    const series = [5, 2].map((n, rank) => `vllm:num_requests_running{engine="${rank}"} ${n}\n`);
    await answer({ kind: 'page', body: Buffer.from(series.join('')), date: null });
    expect([running(), results]).toEqual([[5, 2], [['ok', 0]]]);
    // The same list with other words about it is no reason to forget.
    metrics.reconcile(ranks.map((rank) => ({ ...rank, labels: { zone: 'a' } })));
    expect(running()).toEqual([5, 2]);
    clock.advance(2000);
    await answer({ kind: 'refused' });
    expect(ranks.map(({ id }) => metrics.isDown(id))).toEqual([true, true]);
    metrics.reconcile([ranks[0]!]);
    expect(metrics.of(ranks[1]!.id)).toBeNull();
  });

  test('an engine is asked once per interval, and never twice at once', async () => {
    const { clock, metrics, answer, nAsked, nOpen } = aFleet(1000);
    metrics.reconcile([anEndpoint(1)]);
    clock.advance(10_000);
    expect([nAsked(), nOpen()]).toEqual([1, 1]);
    for (let i = 0; i < 10; i++) {
      await answer(page(0));
      clock.advance(1000);
    }
    expect(nAsked()).toBe(11);
  });

  test('the same list again changes nothing; what is not in it is asked no more and forgotten', async () => {
    const { clock, metrics, answer, nOpen } = aFleet();
    const [a, b] = [anEndpoint(1), anEndpoint(2)];
    metrics.reconcile([a, b]);
    clock.advance(1000);
    await answer(page(1));
    metrics.reconcile([a, b]);
    expect(metrics.of(b.id)).not.toBeNull();
    metrics.reconcile([a]);
    expect(metrics.of(b.id)).toBeNull();
    clock.advance(1000);
    expect(nOpen()).toBe(1);
    metrics.reconcile([]);
    await answer(page(1));
    clock.advance(100_000);
    expect([nOpen(), clock.nTimers()]).toEqual([0, 0]);
  });

  test('a refused connection means down until something answers; a timeout says nothing of that', async () => {
    const { clock, metrics, answer, results } = aFleet();
    const { id } = anEndpoint(1);
    metrics.reconcile([anEndpoint(1)]);
    const after = async (given: GetAnswer): Promise<boolean> => {
      clock.advance(60_000);
      await answer(given);
      return metrics.isDown(id);
    };
    expect(metrics.isDown(id)).toBe(false);
    expect(await after({ kind: 'timeout' })).toBe(false);
    expect(await after({ kind: 'refused' })).toBe(true);
    expect(await after({ kind: 'timeout' })).toBe(true);
    expect(await after({ kind: 'status', status: 404 })).toBe(false);
    expect(await after({ kind: 'refused' })).toBe(true);
    expect(await after(page(0))).toBe(false);
    expect(results.map(([result]) => result)).toEqual(['timeout', 'refused', 'timeout', 'status', 'refused', 'ok']);
  });

  test('a timeout means down where not even a connection comes about any more, until one does', async () => {
    const { clock, metrics, answer, network, nAsked } = aFleet();
    const { id } = anEndpoint(1);
    metrics.reconcile([anEndpoint(1)]);
    const after = async (given: GetAnswer): Promise<boolean> => {
      clock.advance(60_000);
      for (let i = 0; i < 5; i++) await Promise.resolve();
      await answer(given);
      return metrics.isDown(id);
    };
    network.state = 'not accepted';
    // Never heard of: something may be between us that Envoy does not meet.
    expect(await after({ kind: 'timeout' })).toBe(false);
    expect(network.nProbes).toBe(0);
    expect(await after(page(1))).toBe(false);
    network.state = 'accepted';
    expect(await after({ kind: 'timeout' })).toBe(false);
    network.state = 'not accepted';
    expect(await after({ kind: 'timeout' })).toBe(true);
    const nBefore = nAsked();
    for (let i = 0; i < 10; i++) expect(await after({ kind: 'timeout' })).toBe(true);
    // Only a connection is tried, which takes less time.
    expect(nAsked()).toBe(nBefore);
    network.state = 'accepted';
    expect(await after({ kind: 'timeout' })).toBe(false);
    network.state = 'not accepted';
    expect(await after({ kind: 'timeout' })).toBe(true);
    network.state = 'accepted';
    expect(await after(page(1))).toBe(false);
    expect(metrics.of(id)).toMatchObject({ running: 1, ageMs: 0 });
  });

  test('the last reading survives failures, ageing', async () => {
    const { clock, metrics, answer, results } = aFleet();
    const { id } = anEndpoint(1);
    metrics.reconcile([anEndpoint(1)]);
    clock.advance(1000);
    await answer(page(4));
    for (const body of ['<html>', '']) {
      clock.advance(60_000);
      await answer({ kind: 'page', body: Buffer.from(body), date: null });
    }
    expect(metrics.of(id)).toMatchObject({ running: 4, ageMs: 120_000 });
    expect(results.map(([result]) => result)).toEqual(['ok', 'garbage', 'garbage']);
  });

  test('failures are repeated ever more rarely, refused connections at least every two seconds', async () => {
    const countIn = async (given: GetAnswer, ms: number): Promise<number> => {
      const { clock, metrics, answer, nAsked } = aFleet();
      metrics.reconcile([anEndpoint(1)]);
      for (let i = 0; i < ms / 100; i++) {
        clock.advance(100);
        await answer(given);
      }
      return nAsked();
    };
    expect(await countIn({ kind: 'too_large' }, 600_000)).toBeLessThan(40);
    expect(await countIn({ kind: 'refused' }, 600_000)).toBeGreaterThan(300);
  });

  test('a thousand hanging engines take no more than their places; the others come as places fall free', async () => {
    const { clock, metrics, answer, nOpen, nAsked } = aFleet();
    metrics.reconcile(Array.from({ length: 1000 }, (_, n) => anEndpoint(n)));
    clock.advance(1000);
    expect(nOpen()).toBe(64);
    const nBefore = nAsked();
    await answer({ kind: 'timeout' });
    expect(nAsked() - nBefore).toBe(64);
  });

  test('after stop nothing is asked and nothing is kept', async () => {
    const { clock, metrics, answer, nAsked } = aFleet();
    metrics.reconcile([anEndpoint(1), anEndpoint(2)]);
    clock.advance(1000);
    metrics.stop();
    await answer(page(1));
    clock.advance(100_000);
    expect([nAsked(), clock.nTimers()]).toEqual([2, 0]);
    expect(metrics.of(anEndpoint(1).id)).toBeNull();
  });
});
