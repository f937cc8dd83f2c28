/** How long a server's latest answers took, for the question when one is unusually late. */

export type LatencyWindow = {
  note(durationMs: number): void;
  /** Null before there are enough answers to tell. */
  p95Ms(): number | null;
};

const WINDOW = 128;
const ENOUGH = 20;
/** Sorting at every answer would cost more than the answer's place in the order is worth. */
const ANSWERS_PER_SORT = 16;

export function createLatencyWindow(): LatencyWindow {
  const latest = new Float64Array(WINDOW);
  let n = 0;
  let sortedAt = 0;
  let p95: number | null = null;
  return {
    note(durationMs) {
      latest[n++ % WINDOW] = durationMs;
    },
    p95Ms() {
      if (n < ENOUGH) return null;
      if (p95 === null || n - sortedAt >= ANSWERS_PER_SORT) {
        sortedAt = n;
        const sorted = latest.slice(0, Math.min(n, WINDOW)).sort();
        p95 = sorted[Math.floor(sorted.length * 0.95)]!;
      }
      return p95;
    },
  };
}
