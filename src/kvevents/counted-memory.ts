/** What engines' mirrors keep on the heap beside the index, counted so that the byte budget covers it. */

/** Shared by all mirrors of one index. */
export type MemoryCount = { nBytes: number };

export type CountedMap<K, V> = {
  size(): number;
  get(key: K): V | undefined;
  set(key: K, value: V): void;
  delete(key: K): void;
  clear(): void;
};

/** A key and a value of some bytes each, and what V8's maps take for finding them. */
const BYTES_PER_ENTRY = 56;

/**
 * A map whose entries are counted; `clear` it before it is dropped.
 * @param valueBytes what a value takes beside its entry
 */
export function createCountedMap<K, V>(memory: MemoryCount, valueBytes = 0): CountedMap<K, V> {
  const entryBytes = BYTES_PER_ENTRY + valueBytes;
  const map = new Map<K, V>();
  return {
    size: () => map.size,
    get: (key) => map.get(key),
    set(key, value) {
      const before = map.size;
      map.set(key, value);
      memory.nBytes += (map.size - before) * entryBytes;
    },
    delete(key) {
      if (map.delete(key)) memory.nBytes -= entryBytes;
    },
    clear() {
      memory.nBytes -= map.size * entryBytes;
      map.clear();
    },
  };
}
