import { expect, test } from '@jest/globals';
import { strategyTable } from '../src/scheduling/strategy-names.ts';
import { generatedDocuments, readDocument } from './support/docs.ts';

test.each(generatedDocuments().map((document) => [document.path, document] as const))(
  '%s is what the code says (make docs writes it)',
  (path, { text }) => {
    expect(readDocument(path)).toBe(text);
  },
);

test('every relative link of the documents leads to a file', async () => {
  const { existsSync } = await import('node:fs');
  const pages = [
    'README.md',
    'ARCHITECTURE.md',
    'charts/warmpath/README.md',
    'docs/design.md',
    'docs/migrating.md',
    'docs/operations.md',
    'envoy/README.md',
    'envoy/gateway/README.md',
  ];
  for (const page of pages) {
    if (!existsSync(new URL(`../${page}`, import.meta.url))) continue;
    const links = readDocument(page).matchAll(/\]\((?!https?:|#)([^)#]+)/g);
    for (const [, target] of links) {
      const file = new URL(target!, new URL(`../${page}`, import.meta.url));
      expect([page, target, existsSync(file)]).toEqual([page, target, true]);
    }
  }
});

test('the README says what every strategy chooses', () => {
  expect(readDocument('README.md')).toContain(strategyTable());
});
