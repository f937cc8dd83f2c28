/**
 * The most recent requests with their times and counts, in a bounded ring, to be exported as JSON lines: what a replay or a
 * look at a bad minute needs. Counts and names only: no prompt, no token, no answer, no client.
 */

export type TraceEntry = {
  /** When the request was complete, milliseconds since the Unix epoch. */
  readonly unixMs: number;
  readonly model: string;
  readonly strategy: string;
  /** With how much knowledge it was decided. */
  readonly rung: string;
  readonly endpoint: string;
  /** `assumed`: nobody saw the end, the time for it has passed. */
  readonly outcome: 'completed' | 'cancelled' | 'failed' | 'assumed';
  readonly promptTokens: number;
  readonly predictedCachedTokens: number;
  /** As the engine said; null = the answer was not seen, or did not say. */
  readonly observedCachedTokens: number | null;
  readonly predictedOutputTokens: number | null;
  readonly outputTokens: number | null;
  /** Milliseconds from `unixMs` on: choice made, first byte of the answer (null = not seen), end. */
  readonly decidedMs: number;
  readonly firstByteMs: number | null;
  readonly endMs: number;
};

export type RequestTrace = {
  add(entry: TraceEntry): void;
  /** Oldest first, at most the newest `limit`, one JSON object per line. */
  jsonLines(limit: number): string;
};

export function createRequestTrace(capacity: number): RequestTrace {
  const ring: TraceEntry[] = [];
  let next = 0;
  return {
    add(entry) {
      ring[next % capacity] = entry;
      next += 1;
    },
    jsonLines(limit) {
      const nEntries = Math.min(limit, ring.length);
      let text = '';
      for (let back = nEntries; back > 0; back--) text += `${JSON.stringify(ring[(next - back) % capacity])}\n`;
      return text;
    },
  };
}
