/**
 * What a request adds to: a cell per series, found by its label values without building a key. Names, rules for labels and
 * the exposition are metrics.ts.
 */

export type Labels = Readonly<Record<string, string>>;

/** The cells of one metric; there are as many as combinations of labels have been seen. */
export type Cells<T> = { of(labels: Labels): T; all(): Iterable<readonly [Labels, T]> };

/** @param valueOf the value of a label after its rule, by which it is told apart and shown */
export function createCells<T>(
  labelNames: readonly string[],
  valueOf: (name: string, value: string) => string,
  create: () => T,
): Cells<T> {
  type Level = Map<string, Level | T>;
  const root: Level = new Map();
  const all: (readonly [Labels, T])[] = [];
  const names = labelNames.length === 0 ? [''] : labelNames;

  function add(level: Level, key: string, labels: Labels): T {
    const cell = create();
    level.set(key, cell);
    all.push([Object.fromEntries(labelNames.map((name) => [name, valueOf(name, labels[name]!)])), cell]);
    return cell;
  }

  return {
    of(labels) {
      let level = root;
      for (let i = 0; i < names.length; i++) {
        const name = names[i]!;
        const key = name === '' ? '' : valueOf(name, labels[name]!);
        const next = level.get(key);
        if (i === names.length - 1) return next === undefined ? add(level, key, labels) : (next as T);
        if (next !== undefined) level = next as Level;
        else level.set(key, (level = new Map()));
      }
      throw new Error('unreachable: a metric has at least one level');
    },
    all: () => all,
  };
}

/** Counts since they were last taken. */
export class CountCell {
  #sum = 0;

  add(value: number): void {
    this.#sum += value;
  }

  take(): number {
    const sum = this.#sum;
    this.#sum = 0;
    return sum;
  }
}

/** Observations by upper bound. */
export class BucketCell {
  readonly #bounds: readonly number[];
  /** One more than bounds: what is above all of them. */
  readonly #counts: number[];
  sum = 0;

  /** @param bounds ascending */
  constructor(bounds: readonly number[]) {
    this.#bounds = bounds;
    this.#counts = new Array<number>(bounds.length + 1).fill(0);
  }

  observe(value: number): void {
    let i = 0;
    while (i < this.#bounds.length && value > this.#bounds[i]!) i += 1;
    this.#counts[i]! += 1;
    this.sum += value;
  }

  /** [bound, observations up to it], the last one for all of them. */
  *cumulative(): Generator<readonly [bound: number, count: number]> {
    let count = 0;
    for (let i = 0; i < this.#counts.length; i++) {
      count += this.#counts[i]!;
      yield [this.#bounds[i] ?? Infinity, count];
    }
  }
}
