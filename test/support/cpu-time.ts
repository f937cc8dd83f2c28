/** Processor time of work in this thread, for tests of growth: what other processes take meanwhile is not in it. */

/** Some kernels count in ticks of several milliseconds: the work is repeated until it took many of them. */
const LEAST_MS = 60;

/** @returns milliseconds of processor time that one repetition of the work takes on average */
export function cpuMs(work: () => void): number {
  const start = process.threadCpuUsage();
  for (let n = 1; ; n++) {
    work();
    const { user, system } = process.threadCpuUsage(start);
    const ms = (user + system) / 1000;
    if (ms >= LEAST_MS) return ms / n;
  }
}

/** Of work that can be done once only. */
export function cpuMsOnce(work: () => void): number {
  const start = process.threadCpuUsage();
  work();
  const { user, system } = process.threadCpuUsage(start);
  return (user + system) / 1000;
}
