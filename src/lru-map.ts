/**
 * A map that knows which of its entries was set least recently, for what has a bound and forgets the longest unused first.
 *
 * A Map alone keeps that order too, where every use deletes an entry and sets it again. But each removal leaves a hole, and the
 * way to the first entry leads over all of them: of many entries, tens of thousands of steps per removal.
 */

export type LruMap<Key, Value> = {
  readonly size: number;
  /** Does not count as a use. */
  get(key: Key): Value | undefined;
  /** Counts as a use, whether or not the key is new. */
  set(key: Key, value: Value): void;
  delete(key: Key): void;
  /** The entry set least recently; null when there is none. */
  oldest(): LruEntry<Key, Value> | null;
};

export type LruEntry<Key, Value> = {
  readonly key: Key;
  readonly value: Value;
  /** The one set next; null behind the newest. */
  readonly newer: LruEntry<Key, Value> | null;
};

type Entry<Key, Value> = {
  readonly key: Key;
  value: Value;
  older: Entry<Key, Value> | null;
  newer: Entry<Key, Value> | null;
};

export function createLruMap<Key, Value>(): LruMap<Key, Value> {
  const entries = new Map<Key, Entry<Key, Value>>();
  let oldest: Entry<Key, Value> | null = null;
  let newest: Entry<Key, Value> | null = null;

  function append(entry: Entry<Key, Value>): void {
    entry.older = newest;
    if (newest === null) oldest = entry;
    else newest.newer = entry;
    newest = entry;
  }

  function unlink(entry: Entry<Key, Value>): void {
    const { older, newer } = entry;
    if (older === null) oldest = newer;
    else older.newer = newer;
    if (newer === null) newest = older;
    else newer.older = older;
    entry.older = null;
    entry.newer = null;
  }

  return {
    get size() {
      return entries.size;
    },
    get: (key) => entries.get(key)?.value,
    set(key, value) {
      const known = entries.get(key);
      if (known === undefined) {
        const entry = { key, value, older: null, newer: null };
        entries.set(key, entry);
        append(entry);
        return;
      }
      known.value = value;
      if (known === newest) return;
      unlink(known);
      append(known);
    },
    delete(key) {
      const entry = entries.get(key);
      if (entry === undefined) return;
      entries.delete(key);
      unlink(entry);
    },
    oldest: () => oldest,
  };
}
