/** Replay summaries as one SVG: time to first token (p50 to p99, mean marked) and hit rate per policy. No dependencies. */
import type { Summary } from './summary.ts';

export type PlotRow = { readonly policy: string; readonly summary: Summary };

const WIDTH = 900;
const ROW = 30;
const TOP = 70;
const NAMES = 190;
const HIT_WIDTH = 170;
const GAP = 40;
const OWN = '#c2410c';
const OTHER = '#475569';

/** @param title first line of the picture; may hold anything */
export function svgPlot(title: string, rows: readonly PlotRow[], pooledLruHitRate: number, ownPolicy: string): string {
  const height = TOP + ROW * rows.length + 40;
  const left = NAMES + HIT_WIDTH + GAP;
  const width = WIDTH - left - 30;
  const positive = rows.flatMap(({ summary }) => [summary.ttftMs.p50, summary.ttftMs.p99]).filter((ms) => ms > 0);
  const least = Math.floor(Math.log10(Math.min(1000, ...positive)));
  const most = Math.max(least + 1, Math.ceil(Math.log10(Math.max(1, ...positive))));
  const x = (ms: number): number => left + (width * (Math.log10(Math.max(ms, 10 ** least)) - least)) / (most - least);
  const bestHit = Math.max(0.01, pooledLruHitRate, ...rows.map(({ summary }) => summary.hitRate));
  const hitX = (rate: number): number => NAMES + (HIT_WIDTH * rate) / bestHit;
  const bottom = TOP + ROW * rows.length;
  const parts: string[] = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="system-ui, sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${height}" fill="#fff"/>`,
    text(20, 24, title, 'font-size="14" font-weight="600"'),
    text(NAMES, 52, 'hit rate (line: one pooled LRU cache)', 'fill="#475569"'),
    text(left, 52, 'time to first token: p50 to p99, dot = mean, bar = p90', 'fill="#475569"'),
  ];
  for (let decade = least; decade <= most; decade++) {
    const at = x(10 ** decade);
    parts.push(line(at, TOP - 8, at, bottom, '#e2e8f0', 1));
    parts.push(text(at, bottom + 18, duration(10 ** decade), 'text-anchor="middle" fill="#475569"'));
  }
  rows.forEach(({ policy, summary }, row) => {
    const y = TOP + ROW * row + ROW / 2;
    const colour = policy === ownPolicy ? OWN : OTHER;
    const { p50, p90, p99, mean } = summary.ttftMs;
    parts.push(
      text(NAMES - 12, y + 4, policy, `text-anchor="end" fill="${colour}"`),
      `<rect x="${NAMES}" y="${y - 7}" width="${fixed(hitX(summary.hitRate) - NAMES)}" height="14" fill="${colour}" opacity="0.75"/>`,
      text(
        hitX(summary.hitRate) + 5,
        y + 4,
        `${(100 * summary.hitRate).toFixed(1)} %`,
        'font-size="10" fill="#334155"',
      ),
      line(x(p50), y, x(p99), y, colour, 3),
      line(x(p90), y - 7, x(p90), y + 7, colour, 3),
      `<circle cx="${fixed(x(mean))}" cy="${y}" r="5" fill="${colour}"><title>mean ${duration(mean)}</title></circle>`,
    );
  });
  parts.push(line(hitX(pooledLruHitRate), TOP - 8, hitX(pooledLruHitRate), bottom, '#0f172a', 1), '</svg>');
  return `${parts.join('\n')}\n`;
}

function text(x: number, y: number, content: string, attributes: string): string {
  return `<text x="${fixed(x)}" y="${fixed(y)}" ${attributes}>${escaped(content)}</text>`;
}

function line(x1: number, y1: number, x2: number, y2: number, colour: string, width: number): string {
  return `<line x1="${fixed(x1)}" y1="${fixed(y1)}" x2="${fixed(x2)}" y2="${fixed(y2)}" stroke="${colour}" stroke-width="${width}"/>`;
}

function duration(ms: number): string {
  return ms >= 1000 ? `${Number((ms / 1000).toPrecision(3))} s` : `${Number(ms.toPrecision(3))} ms`;
}

const fixed = (value: number): string => String(Math.round(value * 10) / 10);

function escaped(value: string): string {
  return value.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');
}
