/** What both sides of the replicas' service agree on. Reads a file: call `loadSiblings` from `start`, not on import. */
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import type { ServiceDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { HASH_SEED_WORDS, type HashSeed } from '../prefix/block-hash.ts';

export const SIBLING_VERSION = 1;
export const PIECE_BYTES = 256 * 1024;
export const MAX_WISHED_SOURCES = 16_384;

export type Greeting = { readonly version: number };
export type Welcome = { readonly version: number; readonly seed: Buffer };
export type Wish = { readonly version: number; readonly seed_digest: Buffer; readonly sources: readonly string[] };
export type Piece = {
  readonly source: number;
  /** Decimal. */
  readonly seq: string;
  readonly print: number;
  readonly words: Buffer;
  readonly is_last: boolean;
};

export function loadSiblings(): ServiceDefinition {
  const definition = loadSync('warmpath/v1/siblings.proto', {
    keepCase: true,
    longs: String,
    defaults: true,
    includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))],
  });
  return definition['warmpath.v1.Siblings'] as ServiceDefinition;
}

/** Shows that two replicas have the same seed without telling it. */
export function seedDigest(seed: HashSeed): Buffer {
  return createHash('sha256').update('warmpath seed').update(seedBytes(seed)).digest();
}

export function seedBytes(seed: HashSeed): Buffer {
  const bytes = Buffer.alloc(4 * HASH_SEED_WORDS);
  seed.forEach((word, i) => bytes.writeUInt32LE(word, 4 * i));
  return bytes;
}

/** @returns null for what is no seed */
export function seedOf(bytes: Uint8Array): HashSeed | null {
  if (bytes.byteLength !== 4 * HASH_SEED_WORDS) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Uint32Array.from({ length: HASH_SEED_WORDS }, (_, i) => view.getUint32(4 * i, true));
}
