/** Long work in short steps, with everything else there is to do in between. */

/**
 * One step of the work per turn of the event loop.
 * @param done called once, never before this returns: with what the work returns, or null when it was given up
 * @returns gives it up
 */
export function inSlices<T>(work: Generator<void, T>, done: (result: T | null) => void): () => void {
  let next: NodeJS.Immediate | null = setImmediate(step);

  function step(): void {
    const { done: isOver, value } = work.next();
    if (isOver !== true) next = setImmediate(step);
    else {
      next = null;
      done(value);
    }
  }

  return () => {
    if (next === null) return;
    clearImmediate(next);
    next = null;
    done(null);
  };
}
