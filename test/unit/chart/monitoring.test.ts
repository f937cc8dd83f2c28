import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { createMetrics } from '../../../src/metrics.ts';
import { alerts } from '../../support/docs.ts';

const ROOT = new URL('../../../', import.meta.url);
const read = (path: string): string => readFileSync(new URL(path, ROOT), 'utf8');
const PAGES = [
  'README.md',
  'charts/warmpath/README.md',
  'charts/warmpath/files/alerts.yaml',
  'charts/warmpath/files/dashboard.json',
  'envoy/README.md',
  'envoy/gateway/README.md',
  ...readdirSync(new URL('docs/', ROOT))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

/** Every series of Warmpath, those of histograms included. */
async function seriesNames(): Promise<ReadonlySet<string>> {
  const text = await createMetrics().text();
  const names = [...text.matchAll(/^# TYPE (warmpath_\w+) (\w+)$/gm)];
  return new Set(
    names.flatMap(([, name, type]) =>
      type === 'histogram' ? [`${name}_bucket`, `${name}_sum`, `${name}_count`, name!] : [name!],
    ),
  );
}

type Panel = { title: string; gridPos: { x: number; y: number; w: number; h: number }; targets: { expr: string }[] };
const DASHBOARD = JSON.parse(read('charts/warmpath/files/dashboard.json')) as { panels: Panel[] };

/** Brackets and quotes in pairs, as far as PromQL can be judged without its parser. */
function isBalanced(expr: string): boolean {
  let rest = expr.replaceAll(/"[^"]*"/g, '');
  for (let before = ''; before !== rest;) {
    before = rest;
    rest = rest.replaceAll(/\([^()[\]{}]*\)|\[[^()[\]{}]*\]|\{[^()[\]{}]*\}/g, '');
  }
  return !/[()[\]{}"]/.test(rest);
}

describe('metrics that somebody is told of', () => {
  test.each(PAGES)('%s names only series that exist', async (page) => {
    const known = await seriesNames();
    const named = [...read(page).matchAll(/\bwarmpath_[a-z_]*[a-z]\b/g)].map(([name]) => name);
    expect([...new Set(named)].filter((name) => !known.has(name))).toEqual([]);
  });

  test('a name that does not exist is found', async () => {
    expect((await seriesNames()).has('warmpath_requests')).toBe(false);
  });
});

describe('the alerts', () => {
  test('ask about Warmpath, in expressions that are complete', () => {
    const all = alerts();
    expect(all.length).toBeGreaterThan(8);
    expect(all.filter(({ expr }) => !/warmpath/.test(expr) || !isBalanced(expr))).toEqual([]);
    expect(new Set(all.map(({ alert }) => alert)).size).toBe(all.length);
  });
});

describe('the dashboard', () => {
  test('shows every panel in a place of its own, with expressions that are complete', () => {
    const { panels } = DASHBOARD;
    expect(panels.flatMap(({ targets }) => targets).filter(({ expr }) => !isBalanced(expr))).toEqual([]);
    const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, i) => `${x + (i % w)},${y + Math.floor(i / w)}`),
    );
    expect(new Set(cells).size).toBe(cells.length);
    expect(panels.every(({ gridPos: { x, w } }) => x + w <= 24)).toBe(true);
  });
});
