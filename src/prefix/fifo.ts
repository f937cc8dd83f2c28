/**
 * First in, first out, every step in constant time on average. An array's `shift` moves or copies what is left, and a Set that
 * is emptied from its beginning is walked through from there over all that has gone.
 */

export type Fifo<Item> = {
  readonly size: number;
  push(item: Item): void;
  /** The one that is in for longest; undefined when there is none. */
  first(): Item | undefined;
  /** Takes it out. */
  shift(): Item | undefined;
};

/** Below it there is nothing worth giving back. */
const LEAST_GONE = 64;

export function createFifo<Item>(): Fifo<Item> {
  let items: (Item | undefined)[] = [];
  /** Those before it have gone. */
  let head = 0;
  return {
    get size() {
      return items.length - head;
    },
    push: (item) => void items.push(item),
    first: () => items[head],
    shift() {
      if (head === items.length) return undefined;
      const item = items[head];
      items[head++] = undefined;
      if (head >= LEAST_GONE && 2 * head >= items.length) {
        items = items.slice(head);
        head = 0;
      }
      return item;
    },
  };
}
