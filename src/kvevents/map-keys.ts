/** Keys of maps, and other words of the wire, recognised without making strings of them. */
import type { MsgpackReader } from './msgpack-reader.ts';

/** Ids of the keys, by the keys' length. */
export type KeyTable = readonly (readonly { readonly bytes: DataView; readonly id: number }[] | undefined)[];

export const UNKNOWN_KEY = -1;

/** @param keys ASCII words and their ids from 0 */
export function keyTable(keys: readonly (readonly [string, number])[]): KeyTable {
  const table: { bytes: DataView; id: number }[][] = [];
  for (const [name, id] of keys) {
    const bytes = new DataView(Uint8Array.from(Buffer.from(name)).buffer);
    (table[name.length] ??= []).push({ bytes, id });
  }
  return table;
}

/** Reads a map key of any kind. */
export function readKey(reader: MsgpackReader, table: KeyTable): number {
  const n = reader.stringHeader();
  if (n >= 0) return readWord(reader, n, table);
  reader.skip();
  return UNKNOWN_KEY;
}

/** Reads the `n` bytes of a string whose header has been read. */
export function readWord(reader: MsgpackReader, n: number, table: KeyTable): number {
  const candidates = table[n];
  if (candidates !== undefined) {
    for (const { bytes, id } of candidates) {
      if (!reader.bytesAre(bytes, n)) continue;
      reader.pos += n;
      return id;
    }
  }
  reader.pos += n;
  return UNKNOWN_KEY;
}
