import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { createMetricsReader, createRankMetricsReader, type EngineReading } from '../../../src/load/metrics-page.ts';
import { anSglangPage, aTritonPage, aTrtllmPage, aVllmPage } from '../../support/metrics-pages.ts';

function read(page: string): EngineReading | null {
  return createMetricsReader()(Buffer.from(page));
}

describe("a page of an engine's metrics", () => {
  const state = { running: 3, waiting: 7, kvUsage: 0.25 };

  test.each([
    ['vllm', aVllmPage(state, 70_000), { nBlocks: 2048, blockSizeTokens: 16 }],
    ['sglang', anSglangPage(state), { nBlocks: 4000, blockSizeTokens: 64 }],
    ['trtllm', aTrtllmPage(state), { nBlocks: 900, blockSizeTokens: 32 }],
    ['triton', aTritonPage(state), { nBlocks: 6239, blockSizeTokens: 64 }],
  ])('%s: what runs, what waits, how full and how large its cache is', (engine, page, size) => {
    expect(read(page)).toMatchObject({ engine, ...state, ...size, nIgnored: 0 });
  });

  test('totals of the latency histograms come with vLLM', () => {
    const reading = read(aVllmPage())!;
    expect(reading.decode).toEqual({ seconds: 1.2, count: 36 });
    expect(reading.answers).toEqual({ seconds: 1.2, count: 36 });
  });

  test('ranks and models of one page are summed, usage is their mean', () => {
    const page = [
      '# TYPE vllm:num_requests_running gauge',
      'vllm:num_requests_running{engine="0",model_name="a"} 1',
      'vllm:num_requests_running{engine="1",model_name="a"} 2',
      'vllm:num_requests_running{engine="0",model_name="b"} 4',
      '# TYPE vllm:kv_cache_usage_perc gauge',
      'vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.5',
      'vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.1',
      '# TYPE vllm:cache_config_info gauge',
      'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0',
      'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="120"} 1.0',
      '',
    ].join('\n');
    const reading = read(page)!;
    expect(reading).toMatchObject({ running: 7, waiting: null, nBlocks: 220, blockSizeTokens: 16 });
    expect(reading.kvUsage).toBeCloseTo(0.3, 9);
  });

  test('ranks behind one address have a reading each, in the order of their numbers', () => {
    // As behind the second of two addresses, whose ranks are counted on.
    const page = ['11', '9', '10']
      .map((rank) =>
        aVllmPage({ running: Number(rank), waiting: 1, kvUsage: Number(rank) / 100 }, 0, [rank]).replaceAll(
          '# ',
          ' # ',
        ),
      )
      .join('');
    const { whole, ranks } = createRankMetricsReader(3)(Buffer.from(page))!;
    expect(ranks.map(({ running, waiting, kvUsage, nBlocks }) => [running, waiting, kvUsage, nBlocks])).toEqual([
      [9, 1, 0.09, 2048],
      [10, 1, 0.1, 2048],
      [11, 1, 0.11, 2048],
    ]);
    expect(ranks[0]!.answers).toEqual({ seconds: 1.2, count: 36 });
    expect(whole).toEqual(createMetricsReader()(Buffer.from(page)));
    expect(whole).toMatchObject({ running: 30, nBlocks: 3 * 2048 });
  });

  test('ranks that a page does not tell apart share it evenly; one rank has all of it', () => {
    const page = Buffer.from(aVllmPage({ running: 6, waiting: 3, kvUsage: 0.5 }));
    const { whole, ranks } = createRankMetricsReader(3)(page)!;
    const share = { running: 2, waiting: 1, kvUsage: 0.5, nBlocks: 2048 / 3, blockSizeTokens: 16 };
    expect(ranks).toMatchObject([share, share, share]);
    expect(ranks[0]!.answers!.seconds / ranks[0]!.answers!.count).toBeCloseTo(1.2 / 36, 9);
    expect(whole).toMatchObject({ running: 6, waiting: 3 });
    expect(createRankMetricsReader(1)(page)!.ranks).toEqual([whole]);
    expect(createRankMetricsReader(2)(Buffer.from('hello'))).toBeNull();
    expect(createRankMetricsReader(2)(Buffer.from('vllm:num_requests_running NaN\n'))!.ranks).toMatchObject([
      { running: null, nIgnored: 1 },
      { running: null, nIgnored: 1 },
    ]);
  });

  test.each([
    [
      'name of an older version',
      'vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc{a="b"} 0.5\n',
      { kvUsage: 0.5 },
    ],
    ['no labels, a timestamp behind', 'vllm:num_requests_running 4 1750000000000\n', { running: 4 }],
    ['no newline at the end', 'vllm:num_requests_running 4', { running: 4 }],
    ['Windows line ends', 'vllm:num_requests_running 4\r\nvllm:num_requests_waiting 5\r\n', { running: 4, waiting: 5 }],
    ['exponents', 'vllm:num_requests_running 1.2e+01\n', { running: 12 }],
    [
      'braces, quotes and escapes in a label',
      'vllm:num_requests_running{model_name="a}\\"\\\\ 9{"} 6\n',
      { running: 6 },
    ],
    [
      'a longer name before',
      'vllm:num_requests_waiting_by_reason{r="x"} 9\nvllm:num_requests_waiting 2\n',
      { waiting: 2 },
    ],
    [
      'a name inside a label',
      'other{x="\nvllm:num_requests_waiting"} 9\nvllm:num_requests_waiting 2\n',
      { waiting: 2 },
    ],
  ])('%s', (_what, page, expected) => {
    expect(read(page)).toMatchObject(expected);
  });

  test.each(['NaN', '+Inf', '-1', '1e7', '', 'abc', '0x10', '--5', '1_000'])(
    'a value of "%s" is ignored and counted',
    (value) => {
      const page = aVllmPage({ running: value, waiting: 2 });
      expect(read(page)).toMatchObject({ running: null, waiting: 2, nIgnored: 1 });
    },
  );

  test.each(['1.5', '-0.1', 'NaN', '55'])('a KV cache usage of %s is ignored and counted', (value) => {
    expect(read(aVllmPage({ kvUsage: value }))).toMatchObject({ kvUsage: null, nIgnored: 1 });
  });

  test.each([
    ['nothing', ''],
    ['HTML', '<!doctype html><html><body>503</body></html>'],
    ['JSON', '{"error":{"message":"vllm:num_requests_running"}}'],
    ["another program's metrics", 'process_cpu_seconds_total 3\n# TYPE vllm:num_requests_running gauge\n'],
  ])('%s is no page', (_what, page) => {
    expect(read(page)).toBeNull();
  });

  test('an endpoint that becomes another engine is understood again', () => {
    const reader = createMetricsReader();
    expect(reader(Buffer.from(aVllmPage()))?.engine).toBe('vllm');
    expect(reader(Buffer.from(anSglangPage(state)))?.engine).toBe('sglang');
    expect(reader(Buffer.from('<html>'))).toBeNull();
    expect(reader(Buffer.from(anSglangPage(state)))?.engine).toBe('sglang');
  });

  test('a page cut or damaged anywhere gives sane numbers or none', () => {
    const page = Buffer.from(aVllmPage(state));
    fc.assert(
      fc.property(
        fc.nat(page.length),
        fc.array(fc.tuple(fc.nat(page.length - 1), fc.nat(255)), { maxLength: 200 }),
        (length, damage) => {
          const broken = Buffer.from(page);
          for (const [at, byte] of damage) broken[at] = byte;
          const reading = createMetricsReader()(broken.subarray(0, length));
          if (reading === null) return;
          for (const value of [reading.running, reading.waiting, reading.nBlocks, reading.blockSizeTokens]) {
            if (value !== null) expect(value >= 0 && value <= 1e10).toBe(true);
          }
          if (reading.kvUsage !== null) expect(reading.kvUsage >= 0 && reading.kvUsage <= 1).toBe(true);
        },
      ),
      { numRuns: 300 },
    );
  });
});
