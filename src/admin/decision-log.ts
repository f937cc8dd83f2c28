/** The most recent decisions, in a bounded ring: hashes and counts, no text. */

export type DecisionEntry = Readonly<Record<string, string | number | null>>;

export type DecisionLog = {
  add(entry: DecisionEntry): void;
  /** Newest first, at most `limit`. */
  recent(limit: number): readonly DecisionEntry[];
};

export function createDecisionLog(capacity: number): DecisionLog {
  const ring: DecisionEntry[] = [];
  let next = 0;
  return {
    add(entry) {
      ring[next % capacity] = entry;
      next += 1;
    },
    recent(limit) {
      const nEntries = Math.min(limit, ring.length);
      return Array.from({ length: nEntries }, (_, back) => ring[(next - 1 - back) % capacity]!);
    },
  };
}
