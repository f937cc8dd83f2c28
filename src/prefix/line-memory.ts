/** Shared memory that begins on a page, so that what is laid out in lines of 64 bytes lies in cache lines. */

/**
 * Zeroed, and only taken from the system where it is written to. Buffers of a fixed size begin 16 bytes behind a page in
 * Node 24, growable ones on it; this one has no room to grow.
 */
export function createLineMemory(nBytes: number): SharedArrayBuffer {
  return new SharedArrayBuffer(nBytes, { maxByteLength: nBytes });
}
