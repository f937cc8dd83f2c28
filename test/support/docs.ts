/**
 * Documents that are made from the code. `node test/support/docs.ts` writes them, test/docs.test.ts fails when one is
 * out of date.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';
import { configTable } from '../../src/config.ts';
import { chartLiveKeys, chartReadme, chartSchema } from './chart-docs.ts';

const ROOT = new URL('../../', import.meta.url);

export type GeneratedDocument = { readonly path: string; readonly text: string };

export function generatedDocuments(): readonly GeneratedDocument[] {
  return [
    { path: 'docs/configuration.md', text: configurationPage() },
    { path: 'docs/operations.md', text: withAlerts(readDocument('docs/operations.md')) },
    { path: 'charts/warmpath/README.md', text: chartReadme() },
    { path: 'charts/warmpath/values.schema.json', text: chartSchema() },
    { path: 'charts/warmpath/files/live-keys.txt', text: chartLiveKeys() },
  ];
}

export function readDocument(path: string): string {
  return readFileSync(new URL(path, ROOT), 'utf8');
}

type Alert = {
  readonly alert: string;
  readonly expr: string;
  readonly for: string;
  readonly annotations: { readonly summary: string };
};

/** The alerts of the chart, with what each one means. */
export function alerts(): readonly Alert[] {
  const { groups } = parse(readDocument('charts/warmpath/files/alerts.yaml')) as { groups: { rules: Alert[] }[] };
  return groups.flatMap(({ rules }) => rules);
}

/** A page written by hand, with the list of alerts between its two marks. */
function withAlerts(page: string): string {
  const rows = alerts().map(({ alert, expr, for: held, annotations }) => {
    const promql = expr.replaceAll('|', '\\|');
    return `| \`${alert}\` | ${annotations.summary.replaceAll(/\{\{ \$labels\.(\w+) \}\}/g, '`$1`')} | \`${promql}\` for ${held} |`;
  });
  const table = ['| alert | means | PromQL |', '|---|---|---|', ...rows].join('\n');
  return page.replace(/<!-- alerts -->[^]*<!-- \/alerts -->/, `<!-- alerts -->\n${table}\n<!-- /alerts -->`);
}

function configurationPage(): string {
  return `# Configuration

One YAML file (\`warmpath serve --config warmpath.yaml\`); every key also as \`--set a.b=c\` and as an environment variable
(\`WARMPATH_A_B\`, camelCase split by \`_\`). Later wins: default, file, environment, \`--set\`. Unknown keys are mistakes.
\`warmpath check\` names every mistake at once, with its place, and prints what takes effect.

This page is made from \`src/config.ts\` by \`make docs\`.

${configTable().trim()}
`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const { path, text } of generatedDocuments()) writeFileSync(new URL(path, ROOT), text);
}
