/**
 * Lines of the index by powers of two. Freed lines are kept per size and larger ones are cut for smaller requests; they
 * are not joined again, which is why nearly everything asks for single lines and every caller can do without more.
 */
import { LINE_WORDS } from './run-layout.ts';

export type LineAllocator = {
  nUsed(): number;
  readonly nLines: number;
  /** @returns first of 2^sizeClass lines, contents undefined; 0 when there are none */
  take(sizeClass: number): number;
  give(line: number, sizeClass: number): void;
};

export const MAX_SIZE_CLASS = 14;

/** @param words line 0 is never given out */
export function createLineAllocator(words: Uint32Array): LineAllocator {
  const nLines = words.length / LINE_WORDS;
  // Free blocks of a class are linked through their first word.
  const free = new Uint32Array(MAX_SIZE_CLASS + 1);
  let next = 1;
  let nUsed = 0;
  return {
    nUsed: () => nUsed,
    nLines,
    take(sizeClass) {
      let from = sizeClass;
      while (from <= MAX_SIZE_CLASS && free[from] === 0) from++;
      const size = 2 ** sizeClass;
      let line: number;
      // Large pieces are only cut when fresh lines have run out.
      if (from <= MAX_SIZE_CLASS && (from === sizeClass || next + size > nLines)) {
        line = free[from]!;
        free[from] = words[line * LINE_WORDS]!;
        while (from > sizeClass) {
          from--;
          const half = line + 2 ** from;
          words[half * LINE_WORDS] = free[from]!;
          free[from] = half;
        }
      } else {
        if (next + size > nLines) return 0;
        line = next;
        next += size;
      }
      nUsed += size;
      return line;
    },
    give(line, sizeClass) {
      words[line * LINE_WORDS] = free[sizeClass]!;
      free[sizeClass] = line;
      nUsed -= 2 ** sizeClass;
    },
  };
}
