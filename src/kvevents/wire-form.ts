/** How a payload is written, for people who look at a publisher: what the decoder levels out. */
import { keyTable, readKey } from './map-keys.ts';
import { MsgpackReader } from './msgpack-reader.ts';

export type WireForm = { readonly events: 'arrays' | 'maps'; readonly hashes: 'integers' | 'bytes' };

const BLOCK_HASHES = 0;
const KEYS = keyTable([['block_hashes', BLOCK_HASHES]]);
const BIN_8 = 0xc4;
const BIN_32 = 0xc6;

/** @param payload one that the decoder takes @returns null where its first event names no blocks, or the batch is a map */
export function wireFormOf(payload: Uint8Array): WireForm | null {
  const reader = new MsgpackReader();
  reader.reset(payload);
  try {
    if (reader.arrayHeader() < 2) return null;
    reader.skip();
    if (reader.arrayHeader() < 1) return null;
    const nElements = reader.arrayHeader();
    if (nElements >= 2) {
      reader.skip();
      return withHashes(reader, 'arrays');
    }
    const nPairs = nElements >= 0 ? 0 : reader.mapHeader();
    for (let i = 0; i < nPairs; i++) {
      if (readKey(reader, KEYS) === BLOCK_HASHES) return withHashes(reader, 'maps');
      reader.skip();
    }
    return null;
  } finally {
    reader.release();
  }
}

function withHashes(reader: MsgpackReader, events: WireForm['events']): WireForm | null {
  if (reader.arrayHeader() < 1) return null;
  const first = reader.peek();
  return { events, hashes: first >= BIN_8 && first <= BIN_32 ? 'bytes' : 'integers' };
}
