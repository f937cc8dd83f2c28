import { existsSync } from 'node:fs';
import { describe, expect, test } from '@jest/globals';
import { configTable } from '../src/config.ts';
import { createMetrics } from '../src/metrics.ts';
import { strategyTable } from '../src/scheduling/strategy-names.ts';
import { generatedDocuments, readDocument } from './support/docs.ts';

test.each(generatedDocuments().map((document) => [document.path, document] as const))(
  '%s is what the code says (make docs writes it)',
  (path, { text }) => {
    expect(readDocument(path)).toBe(text);
  },
);

const PAGES = [
  'README.md',
  'ARCHITECTURE.md',
  'charts/warmpath/README.md',
  'charts/warmpath/templates/NOTES.txt',
  'docs/configuration.md',
  'docs/design.md',
  'docs/migrating.md',
  'docs/operations.md',
  'docs/performance.md',
  'envoy/README.md',
  'envoy/gateway/README.md',
];

/** What a page names by the pattern's first group, `page: name`, where it is not among the known. */
function unknownNames(pattern: RegExp, isKnown: (name: string, page: string) => boolean): string[] {
  return PAGES.flatMap((page) =>
    [...readDocument(page).matchAll(pattern)]
      .map(([, name]) => name!)
      .filter((name) => !isKnown(name, page))
      .map((name) => `${page}: ${name}`),
  );
}

describe('what the pages name is there', () => {
  test('files of relative links', () => {
    const exists = (target: string, page: string): boolean =>
      existsSync(new URL(target, new URL(`../${page}`, import.meta.url)));
    expect(unknownNames(/\]\((?!https?:|#)([^)#]+)/g, exists)).toEqual([]);
  });

  test('headings of links inside a page', () => {
    const anchorsOf = (page: string): string[] =>
      [...readDocument(page).matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
        heading!
          .toLowerCase()
          .replaceAll(/[^\w\s-]/g, '')
          .replaceAll(' ', '-'),
      );
    expect(unknownNames(/\]\(#([^)]+)\)/g, (anchor, page) => anchorsOf(page).includes(anchor))).toEqual([]);
  });

  test('commands', () => {
    const main = readDocument('src/main.ts');
    const isCommand = (name: string): boolean => new RegExp(`^  '?${name}'?: \\{$`, 'm').test(main);
    expect(unknownNames(/`(?:npm run -s )?warmpath (?:-- )?([a-z][\w-]*)/g, isCommand)).toEqual([]);
    expect(unknownNames(/dist\/main\.js ([a-z][\w-]*)/g, isCommand)).toEqual([]);
  });

  test('make targets', () => {
    const makefile = readDocument('Makefile');
    const isTarget = (name: string): boolean => new RegExp(`^${name}:`, 'm').test(makefile);
    expect(unknownNames(/(?:`|^)make ([a-z][\w-]*)/gm, isTarget)).toEqual([]);
  });

  test('configuration keys', () => {
    const keys = [...configTable().matchAll(/^\| `([\w.]+)` \|/gm)].map(([, key]) => key!);
    const isFile = (name: string): boolean => name === 'tokenizer.json';
    const isKey = (name: string): boolean =>
      isFile(name) || keys.some((key) => key === name || key.startsWith(`${name}.`));
    const pattern = /`(?:config\.)?((?:server|discovery|kvEvents|tokenizer|routing|load|log)\.[\w.]*\w)[`:= ]/g;
    expect(keys.length).toBeGreaterThan(50);
    expect(unknownNames(pattern, isKey)).toEqual([]);
  });

  test('metrics', async () => {
    const names = [...(await createMetrics().text()).matchAll(/^# TYPE (warmpath_\w+)/gm)].map(([, name]) => name!);
    const isMetric = (name: string): boolean => names.includes(name.replace(/_(?:bucket|sum|count)$/, ''));
    expect(names.length).toBeGreaterThan(30);
    expect(unknownNames(/\b(warmpath_[a-z][a-z_]*[a-z])\b/g, isMetric)).toEqual([]);
  });
});

test('the README says what every strategy chooses', () => {
  expect(readDocument('README.md')).toContain(strategyTable());
});
