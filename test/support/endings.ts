/** What a test starts is ended after it, whatever came of it: the last thing first. */
import { afterEach } from '@jest/globals';

/** Of a whole file: called once outside its tests. @returns what is told how to end a thing that was just started */
export function endAfterEach(): (...endings: (() => unknown)[]) => void {
  const endings: (() => unknown)[] = [];
  afterEach(async () => {
    for (let end = endings.pop(); end; end = endings.pop()) await end();
  });
  return (...more) => void endings.push(...more);
}
