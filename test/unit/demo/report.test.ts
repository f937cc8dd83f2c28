import { describe, expect, test } from '@jest/globals';
import type { ChatOutcome } from '../../../src/demo/chat-client.ts';
import { sumOf } from '../../../src/demo/observe.ts';
import {
  failureReasons,
  percentiles,
  reportJson,
  reportTable,
  runReport,
  type DemoReport,
} from '../../../src/demo/report.ts';

function anAnswer(ttftMs: number, cachedTokens: number): ChatOutcome {
  return { kind: 'answered', ttftMs, promptTokens: 100, cachedTokens, answer: 'abc' };
}

const FAILED: ChatOutcome = { kind: 'failed', reason: 'status 503' };
const REPORT: DemoReport = {
  envoy: '1.40.0',
  workload: { requests: 400, idealHitRate: 0.71 },
  roundRobin: { failed: 0, hitRate: 0.25, ttftMs: { p50: 210, p95: 480, p99: 610 }, perEndpoint: [100, 100, 100, 100] },
  warmpath: {
    failed: 0,
    hitRate: 0.70004,
    ttftMs: { p50: 60.04, p95: 190, p99: 280 },
    perEndpoint: [97, 103, 99, 101],
    predictedHitRate: 0.7,
  },
};

describe('a run', () => {
  test('weighs hit rates by tokens and times only what was answered', () => {
    const outcomes = [anAnswer(10, 0), anAnswer(30, 80), FAILED];
    expect(runReport(outcomes, [1, 1])).toEqual({
      failed: 1,
      hitRate: 0.4,
      ttftMs: { p50: 10, p95: 30, p99: 30 },
      perEndpoint: [1, 1],
    });
  });

  test('in which everything failed has zeros, not NaN', () => {
    expect(runReport([FAILED], [0])).toMatchObject({ failed: 1, hitRate: 0, ttftMs: { p50: 0, p95: 0, p99: 0 } });
  });

  test('names its failures, the most frequent first', () => {
    const rare: ChatOutcome = { kind: 'failed', reason: 'the answer was cut' };
    expect(failureReasons([rare, FAILED, anAnswer(1, 0), FAILED])).toEqual([
      ['status 503', 2],
      ['the answer was cut', 1],
    ]);
  });

  test('has percentiles by nearest rank', () => {
    const values = Array.from({ length: 100 }, (_, i) => 100 - i);
    expect(percentiles(values)).toEqual({ p50: 50, p95: 95, p99: 99 });
    expect(percentiles([7])).toEqual({ p50: 7, p95: 7, p99: 7 });
  });
});

describe('the report', () => {
  test('as JSON is one line of the promised shape', () => {
    const line = reportJson(REPORT);
    expect(line).not.toContain('\n');
    expect(JSON.parse(line)).toEqual({
      ...REPORT,
      warmpath: { ...REPORT.warmpath, hitRate: 0.7, ttftMs: { p50: 60, p95: 190, p99: 280 } },
    });
  });

  test('as a table has aligned columns', () => {
    const [through, , ...rows] = reportTable(REPORT).split('\n');
    expect(through).toBe('through Envoy 1.40.0');
    expect(new Set(rows.map((row) => row.length)).size).toBe(1);
    expect(rows.join('\n')).toContain('97 103 99 101');
    expect(reportTable({ ...REPORT, envoy: null })).toContain('built-in ext_proc driver');
  });
});

describe('a metrics page', () => {
  const page = '# TYPE a_total counter\na_total{model="x"} 3\na_total{model="y"} 4.5\na_total_created 9\nb 2\n';

  test.each([
    ['a_total', '', 7.5],
    ['a_total', 'model="x"', 3],
    ['b', '', 2],
    ['missing', '', 0],
  ])('gives %s with %s as %d', (name, having, sum) => {
    expect(sumOf(page, name, having)).toBe(sum);
  });
});
