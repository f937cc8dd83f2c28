/** A Prometheus histogram: cumulative buckets, sum and count. */

export type HistogramSnapshot = {
  /** Upper bounds, ascending, without +Inf. */
  readonly bounds: readonly number[];
  /** Observations up to each bound. */
  readonly cumulative: readonly number[];
  readonly sum: number;
  readonly count: number;
};

export type Histogram = { observe(value: number): void; snapshot(): HistogramSnapshot };

export function createHistogram(bounds: readonly number[]): Histogram {
  const cumulative = bounds.map(() => 0);
  let sum = 0;
  let count = 0;
  return {
    observe(value) {
      sum += value;
      count++;
      bounds.forEach((bound, i) => {
        if (value <= bound) cumulative[i]!++;
      });
    },
    snapshot: () => ({ bounds, cumulative: [...cumulative], sum, count }),
  };
}
