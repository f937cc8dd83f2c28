/** Seeded randomness: equal seeds give equal runs on every machine. */

/** Numbers in [0, 1), from a 32-bit counter mixed by murmur3's finisher. */
export function createRandom(seed: number): () => number {
  let state = Math.imul(seed ^ 0x5bd1e995, 0x9e3779b1) >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let h = state;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return ((h ^ (h >>> 16)) >>> 0) / 2 ** 32;
  };
}

/** Mean 1; times between independent arrivals. */
export function exponential(random: () => number): number {
  return -Math.log(1 - random());
}

/** Integer in [0, n). */
export function below(random: () => number, n: number): number {
  return Math.floor(random() * n);
}
