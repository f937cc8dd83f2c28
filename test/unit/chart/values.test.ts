import { readFileSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { parse } from 'yaml';
import { loadConfig, type Config } from '../../../src/config.ts';
import { chartSchema, chartValues } from '../../support/chart-docs.ts';

const VALUES = readFileSync(new URL('../../../charts/warmpath/values.yaml', import.meta.url), 'utf8');
const CHART = parse(readFileSync(new URL('../../../charts/warmpath/Chart.yaml', import.meta.url), 'utf8')) as {
  appVersion: string;
};
const PACKAGE = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

type Section = { properties?: Record<string, Section>; additionalProperties?: boolean };
const SCHEMA = JSON.parse(chartSchema()) as Section;

/** Paths of everything that is not a map, or is one without entries. */
function leavesOf(value: unknown, path: readonly string[] = []): string[] {
  const isMap = typeof value === 'object' && value !== null && !Array.isArray(value) && Object.keys(value).length > 0;
  if (!isMap) return [path.join('.')];
  return Object.entries(value as object).flatMap(([key, inner]) => leavesOf(inner, [...path, key]));
}

describe('values.yaml', () => {
  test('documents every value', () => {
    const documented = chartValues(VALUES).map(({ path }) => path);
    const isDocumented = (leaf: string): boolean =>
      documented.some((path) => leaf === path || leaf.startsWith(`${path}.`));
    expect(leavesOf(parse(VALUES)).filter((leaf) => !isDocumented(leaf))).toEqual([]);
    expect(new Set(documented).size).toBe(documented.length);
  });

  test('the chart is of the version of the package', () => {
    expect(CHART.appVersion).toBe(PACKAGE.version);
  });

  test('a value without a meaning is not taken for a documented one', () => {
    const found = chartValues('a:\n  # -- first\n  b: 1\n  c: 2\n# -- map\nd:\n  e: [x]\n');
    expect(found).toEqual([
      { path: 'a.b', meaning: 'first', default: 1 },
      { path: 'd', meaning: 'map', default: { e: ['x'] } },
    ]);
  });
});

describe('values.schema.json', () => {
  test('has exactly the keys of the configuration below `config`', () => {
    const { config } = loadConfig({ file: null, readFile: () => '', env: {}, sets: [] }) as { config: Config };
    const keysOf = (section: Section, path: readonly string[] = []): string[] =>
      section.properties === undefined
        ? [path.join('.')]
        : Object.entries(section.properties).flatMap(([key, inner]) => keysOf(inner, [...path, key]));
    expect(keysOf(SCHEMA.properties!.config!).sort()).toEqual(leavesOf(config).sort());
  });

  test('closes every section: a mistyped value is refused at any depth', () => {
    const open = (section: Section, path: string): string[] =>
      section.properties === undefined
        ? []
        : [
            ...(section.additionalProperties === false ? [] : [path]),
            ...Object.entries(section.properties).flatMap(([key, inner]) => open(inner, `${path}.${key}`)),
          ];
    expect(open(SCHEMA, 'values')).toEqual([]);
  });
});
