import { describe, expect, test } from '@jest/globals';
import { createLog } from '../../src/log.ts';
import { createOutageWatch } from '../../src/outage-watch.ts';

function aWatch() {
  const lines: string[] = [];
  let nowMs = 0;
  const log = createLog('info', (line) => {
    const { level, msg, of } = JSON.parse(line) as { level: string; msg: string; of: number };
    lines.push(`${level} ${msg} ${of}`);
  });
  const watch = createOutageWatch({ log, nowMs: () => nowMs });
  /** Looks every half second. */
  const look = (ms: number, nAll: number, nAway: number): string[] => {
    for (const endMs = nowMs + ms; nowMs < endMs; nowMs += 500) watch.check('all pods away', nAll, nAway);
    return lines.splice(0);
  };
  return look;
}

describe('an outage of everything', () => {
  test('is told once, and once that it is over', () => {
    const look = aWatch();
    expect(look(5_000, 3, 3)).toEqual([]);
    expect(look(60_000, 3, 3)).toEqual(['warn all pods away 3']);
    expect(look(60_000, 4, 3)).toEqual(['info all pods away: over 4']);
  });

  test('shorter than the patience, or of some only, is not told', () => {
    const look = aWatch();
    expect([look(4_000, 3, 3), look(500, 3, 2), look(4_000, 3, 3), look(500, 3, 2)].flat()).toEqual([]);
    expect(look(60_000, 3, 2)).toEqual([]);
  });

  test('needs somebody who could be away', () => {
    expect(aWatch()(60_000, 0, 0)).toEqual([]);
  });
});
