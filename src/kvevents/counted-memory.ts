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

/** A map whose entries are counted; `clear` it before it is dropped. */
export function createCountedMap<K, V>(memory: MemoryCount): CountedMap<K, V> {
  const map = new Map<K, V>();
  return {
    size: () => map.size,
    get: (key) => map.get(key),
    set(key, value) {
      const before = map.size;
      map.set(key, value);
      memory.nBytes += (map.size - before) * BYTES_PER_ENTRY;
    },
    delete(key) {
      if (map.delete(key)) memory.nBytes -= BYTES_PER_ENTRY;
    },
    clear() {
      memory.nBytes -= map.size * BYTES_PER_ENTRY;
      map.clear();
    },
  };
}
