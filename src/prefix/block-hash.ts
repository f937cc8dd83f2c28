/**
 * Own keys of prompt blocks: a seeded, chained 64-bit hash, the only place that knows how it is computed.
 * An engine's hashes never enter it, so no hash algorithm, seed or version of an engine matters; equal keys mean equal
 * tokens, model, adapter, block size and extra keys from the start of the prompt on, up to a 64-bit collision.
 *
 * Definition. Tokens are taken in pieces of 16 (the last piece of a block padded with zeros). A piece gives two sums
 *   S1 = Σ token[i] · key[i] mod 2^64    S2 = Σ token[i] · key[16 + i] mod 2^64    (keys: 32 bits each, secret)
 * For two different pieces each sum is equal with probability ≤ 2^-32, whoever chose the tokens. S1 and S2 are then
 * absorbed into the 64-bit state by xor, each followed by a bijective round of 32-bit operations; the state after the
 * last piece of a block is the block's key. Extra keys of a block are absorbed the same way before its tokens.
 *
 * The arithmetic of pieces is in hash-pieces.ts, and once more, faster and with the same results, in hash-pieces-wasm.ts.
 */
import { hash, randomFillSync } from 'node:crypto';
import type { ExtraKey, MultimodalFeature } from '../tokenizer/tokenizer.ts';
import { createPlainPieces, PIECE } from './hash-pieces.ts';
import { createFastPieces, MAX_FAST_BLOCK_TOKENS } from './hash-pieces-wasm.ts';

/** 8 random words. Replicas that exchange snapshots share one. */
export type HashSeed = Uint32Array;
/** Key before the first block of a chain: [hi, lo]. */
export type RootHash = readonly [hi: number, lo: number] & { readonly brand: 'RootHash' };
/** Keys of full blocks, 2 words [hi, lo] each. */
export type BlockHashes = Uint32Array & { readonly brand: 'BlockHashes' };
/** One entry per block; null where a block has none. */
export type BlockExtraKeys = readonly (readonly ExtraKey[] | null)[];

export type BlockHasher = {
  /** @param adapter LoRA name, null for the base model */
  root(model: string, adapter: string | null, blockSizeTokens: number): RootHash;
  /**
   * Chained key of every full block; a trailing partial block is dropped.
   * @param extraKeys canonical keys (see `canonicalExtraKeys`), entry i belongs to block i
   * @returns 2·⌊n / blockSizeTokens⌋ words
   */
  blocks(
    tokenIds: Uint32Array,
    root: RootHash,
    blockSizeTokens: number,
    extraKeys?: BlockExtraKeys | null,
  ): BlockHashes;
  /**
   * The same for blocks that continue after any key, into memory of the caller.
   * @param out receives 2·nBlocks words
   */
  continueBlocks(
    parentHi: number,
    parentLo: number,
    tokenIds: Uint32Array,
    nBlocks: number,
    blockSizeTokens: number,
    extraKeys: BlockExtraKeys | null,
    out: Uint32Array,
  ): void;
};

export const HASH_SEED_WORDS = 8;
/** Below this the way into WebAssembly costs more than it saves. */
const MIN_FAST_TOKENS = 80;
const TAG_ROOT = 1;
const TAG_EXTRA_KEYS = 2;
const KEY_IS_STRING = 1;
const KEY_IS_PAIR = 2;
/** Characters absorbed one by one: names, digests and most salts. */
const MAX_PLAIN_TEXT = 512;

/** @param random fills the words; the system's random source unless a test needs repeatable keys */
export function createHashSeed(random: (words: Uint32Array) => void = randomFillSync): HashSeed {
  const seed = new Uint32Array(HASH_SEED_WORDS);
  random(seed);
  return seed;
}

/**
 * @param arithmetic `wasm` gives the same keys in a third of the time where WebAssembly is to be had. Not what `serve` uses:
 *   V8 aborts the process now and then where WebAssembly comes and goes beside other threads (ARCHITECTURE.md)
 */
export function createBlockHasher(seed: HashSeed, arithmetic: 'plain' | 'wasm' = 'plain'): BlockHasher {
  if (seed.length !== HASH_SEED_WORDS) {
    throw new RangeError(`a hash seed has ${HASH_SEED_WORDS} words, got ${seed.length}`);
  }
  const keys = expandSeed(seed);
  const plainPieces = createPlainPieces(keys);
  const fastPieces = (arithmetic === 'wasm' ? createFastPieces(keys) : null) ?? plainPieces;
  const state = new Uint32Array(2);
  const piece = new Uint32Array(PIECE);
  let digested = new Uint32Array(64);

  const continueBlocks: BlockHasher['continueBlocks'] = (hi, lo, tokenIds, nBlocks, blockSize, extraKeys, out) => {
    if (nBlocks * blockSize > tokenIds.length || nBlocks * 2 > out.length) {
      throw new RangeError(
        `${nBlocks} blocks of ${blockSize} tokens do not fit: ${tokenIds.length} tokens, ${out.length} words`,
      );
    }
    state[0] = hi;
    state[1] = lo;
    for (let block = 0; block < nBlocks;) {
      const ofBlock = extraKeys?.[block];
      if (ofBlock !== null && ofBlock !== undefined && ofBlock.length > 0) absorbExtraKeys(ofBlock);
      const end = blockSize % PIECE === 0 ? nextWithExtraKeys(extraKeys, block + 1, nBlocks) : block + 1;
      hashBlocks(tokenIds, block, end, blockSize, out);
      block = end;
    }
  };

  function hashBlocks(tokenIds: Uint32Array, from: number, to: number, blockSize: number, out: Uint32Array): void {
    const nTokens = (to - from) * blockSize;
    if (blockSize % PIECE === 0) {
      const isWorthIt = nTokens >= MIN_FAST_TOKENS && blockSize <= MAX_FAST_BLOCK_TOKENS;
      const pieces = isWorthIt ? fastPieces : plainPieces;
      pieces(tokenIds, from * blockSize, to - from, blockSize / PIECE, state, out, 2 * from);
      return;
    }
    hashBlock(tokenIds, from * blockSize, blockSize);
    out[2 * from] = state[0]!;
    out[2 * from + 1] = state[1]!;
  }

  function hashBlock(tokenIds: Uint32Array, start: number, nTokens: number): void {
    const nWhole = Math.floor(nTokens / PIECE);
    plainPieces(tokenIds, start, 1, nWhole, state, state, 0);
    const nRest = nTokens - nWhole * PIECE;
    if (nRest === 0) return;
    piece.fill(0);
    for (let i = 0; i < nRest; i++) piece[i] = tokenIds[start + nWhole * PIECE + i]!;
    plainPieces(piece, 0, 1, 1, state, state, 0);
  }

  /** Digest of a word list that carries its own lengths, started from secret words. */
  function digest(words: readonly number[]): readonly [number, number] {
    const hi = state[0]!;
    const lo = state[1]!;
    state[0] = keys[2 * PIECE]!;
    state[1] = keys[2 * PIECE + 1]!;
    // Filled by hand: making an array of a list costs more than hashing it.
    if (digested.length < words.length) digested = new Uint32Array(2 * words.length);
    for (let i = 0; i < words.length; i++) digested[i] = words[i]!;
    hashBlock(digested, 0, words.length);
    const result = [state[0]!, state[1]!] as const;
    state[0] = hi;
    state[1] = lo;
    return result;
  }

  function absorbExtraKeys(extraKeys: readonly ExtraKey[]): void {
    const words = [TAG_EXTRA_KEYS, extraKeys.length];
    for (const key of extraKeys) {
      if (typeof key === 'string') {
        words.push(KEY_IS_STRING);
        pushText(words, key);
      } else {
        words.push(KEY_IS_PAIR, key[1] >>> 0);
        pushText(words, key[0]);
      }
    }
    const [hi, lo] = digest(words);
    state[0]! ^= hi;
    state[1]! ^= lo;
    // An empty piece adds nothing but its rounds: it separates extra keys from the tokens that follow.
    piece.fill(0);
    plainPieces(piece, 0, 1, 1, state, state, 0);
  }

  return {
    root(model, adapter, blockSizeTokens) {
      const words = [TAG_ROOT, blockSizeTokens];
      pushText(words, model);
      words.push(adapter === null ? 0 : 1);
      if (adapter !== null) pushText(words, adapter);
      return digest(words) as RootHash;
    },
    blocks(tokenIds, root, blockSizeTokens, extraKeys = null) {
      const nBlocks = Math.floor(tokenIds.length / blockSizeTokens);
      const out = new Uint32Array(2 * nBlocks);
      continueBlocks(root[0], root[1], tokenIds, nBlocks, blockSizeTokens, extraKeys, out);
      return out as BlockHashes;
    },
    continueBlocks,
  };
}

/**
 * The form in which both sides hash an event's extra keys: the LoRA name, which vLLM repeats at the head of every
 * block's entry, is taken off (the root already holds it), empty entries are null, and null stands for "none at all".
 * Multimodal keys stay as reported: [identifier, offset in block], or the bare identifier of versions that have no
 * offset yet. A request always has offsets, so it never matches bare identifiers: a miss, never a wrong promise.
 */
export function canonicalExtraKeys(
  extraKeys: BlockExtraKeys | null | undefined,
  loraName: string | null,
): BlockExtraKeys | null {
  if (extraKeys === null || extraKeys === undefined) return null;
  let nKeys = 0;
  for (const ofBlock of extraKeys) nKeys += ofBlock === null ? 0 : ofBlock.length - leadsWith(ofBlock, loraName);
  if (nKeys === 0) return null;
  return extraKeys.map((ofBlock) => {
    if (ofBlock === null) return null;
    const own = ofBlock.slice(leadsWith(ofBlock, loraName));
    return own.length === 0 ? null : own;
  });
}

/**
 * The same form for a request: multimodal items that overlap a block in order of their position, each with its start
 * relative to the block (negative where it began earlier), then in the first block the salt. Of items that overlap each other,
 * as a video and its sound, a later one counts from the block on in which the earlier one ends, and none once the last has ended
 * (vLLM's `_gen_mm_extra_hash_keys`).
 * @param features ordered by offset
 */
export function requestExtraKeys(
  cacheSalt: string | null,
  features: readonly MultimodalFeature[],
  blockSizeTokens: number,
  nBlocks: number,
): BlockExtraKeys | null {
  if (nBlocks === 0 || (cacheSalt === null && features.length === 0)) return null;
  const keys: (ExtraKey[] | null)[] = new Array<ExtraKey[] | null>(nBlocks).fill(null);
  const last = features[features.length - 1];
  const endTokens = last === undefined ? 0 : last.offset + last.length;
  let next = 0;
  for (let block = 0; block < nBlocks && block * blockSizeTokens < endTokens; block++) {
    const start = block * blockSizeTokens;
    const end = start + blockSizeTokens;
    for (; next < features.length && features[next]!.offset < end; next++) {
      const { identifier, offset, length } = features[next]!;
      if (offset + length <= start) continue;
      (keys[block] ??= []).push([identifier, offset - start]);
      if (offset + length > end) break;
    }
  }
  if (cacheSalt !== null) (keys[0] ??= []).push(cacheSalt);
  return keys.every((ofBlock) => ofBlock === null) ? null : keys;
}

/** First block from `from` on that has extra keys, else `nBlocks`. */
function nextWithExtraKeys(extraKeys: BlockExtraKeys | null, from: number, nBlocks: number): number {
  if (extraKeys === null) return nBlocks;
  let block = from;
  while (block < nBlocks && (extraKeys[block] ?? null) === null) block++;
  return block;
}

function leadsWith(ofBlock: readonly ExtraKey[], loraName: string | null): 0 | 1 {
  return loraName !== null && ofBlock[0] === loraName ? 1 : 0;
}

/** Clients choose salts, megabytes if they like: a long text is known by its digest. */
function pushText(words: number[], text: string): void {
  words.push(text.length);
  if (text.length > MAX_PLAIN_TEXT) {
    const digest = hash('sha256', Buffer.from(text, 'utf16le'), 'buffer');
    for (let at = 0; at < digest.length; at += 4) words.push(digest.readUInt32LE(at));
    return;
  }
  for (let i = 0; i < text.length; i++) words.push(text.charCodeAt(i));
}

/** 2 · 16 piece keys and the two words every digest starts from, each depending on the whole seed. */
function expandSeed(seed: HashSeed): Uint32Array {
  const keys = new Uint32Array(2 * PIECE + 2);
  const s = Uint32Array.from(seed);
  for (let i = -16; i < keys.length; i++) {
    // Each step mixes one word of the seed with its neighbours; the first 16 steps only spread the seed.
    const at = i & 7;
    let x = (s[at]! + Math.imul(s[(at + 1) & 7]!, 0x9e3779b1) + (s[(at + 5) & 7]! ^ (i + 17))) | 0;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    s[at] = x ^ (x >>> 15);
    if (i >= 0) keys[i] = s[at]! ^ s[(at + 3) & 7]!;
  }
  return keys;
}
