/** What the parts of the KV bench measure with, and the table they fill. */

/** CPU time of this thread: the machine may be shared, and what others do must not count. */
export function threadCpuUs(): number {
  const { user, system } = process.threadCpuUsage();
  return user + system;
}

/**
 * What a call cost this thread, in µs. The clock of CPU time moves in steps of up to 4 ms, so what is shorter than many of
 * them is told by the wall clock, and the best of several rounds is one that nobody interrupted.
 */
export function costUs(call: () => void): number {
  const startCpuUs = threadCpuUs();
  const startMs = performance.now();
  call();
  const tookUs = (performance.now() - startMs) * 1000;
  return tookUs < 100_000 ? tookUs : Math.min(tookUs, threadCpuUs() - startCpuUs);
}

/** Of all threads but this one. */
export function otherThreadsCpuUs(): number {
  const { user, system } = process.cpuUsage();
  return user + system - threadCpuUs();
}

/** @returns part 0…1 of a sorted list */
export function percentile(sorted: ArrayLike<number>, part: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? NaN;
}

export const sortedOf = (values: readonly number[]): Float64Array => Float64Array.from(values).sort();

/** Another machine's neighbours only ever make things slower. */
export function best(nRounds: number, round: () => number): number {
  let least = Infinity;
  for (let i = 0; i < nRounds; i++) least = Math.min(least, round());
  return least;
}

export type Row = {
  readonly what: string;
  readonly ours: string;
  /** The same done the usual way, in the same run. */
  readonly usual?: string;
  readonly target?: string;
  readonly isMet?: boolean;
};

export function printTable(rows: readonly Row[]): void {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |\n`;
  const verdict = (row: Row): string => (row.isMet === undefined ? '' : row.isMet ? 'yes' : 'no');
  process.stdout.write(line(['', 'Warmpath', 'the usual way', 'target', 'met']) + line(Array<string>(5).fill('---')));
  for (const row of rows) {
    process.stdout.write(line([row.what, row.ours, row.usual ?? '–', row.target ?? '–', verdict(row)]));
  }
}

/** Blocks per second of CPU, from nanoseconds per block. */
export const rate = (nsPerBlock: number): string => `${(1000 / nsPerBlock).toFixed(2)} M/s`;
