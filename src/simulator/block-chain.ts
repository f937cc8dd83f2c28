/**
 * Names of KV blocks as an engine makes them: every full block is named by a digest over its parent's digest, its tokens
 * and its extra keys, so a digest stands for the whole prefix up to and including the block.
 * The digest is the simulator's own (a real engine hashes a Python pickle or CBOR): consumers must not recompute it.
 */
import { createHash } from 'node:crypto';
import type { ExtraKey, MultimodalFeature } from '../tokenizer/tokenizer.ts';

/** One full block of one prefix. Immutable; the same prefix may be held by several physical blocks. */
export type ChainBlock = {
  /** 32 bytes. */
  readonly digest: Buffer;
  /** The digest as a map key. */
  readonly key: string;
  readonly parent: ChainBlock | null;
  /** The tokens of this block only. */
  readonly tokenIds: Uint32Array;
  /** LoRA name, multimodal entries, salt (first block), in this order; null where there is none. */
  readonly extraKeys: readonly ExtraKey[] | null;
  readonly lora: LoraAdapter | null;
};

/**
 * `id` is local to one engine process, `name` is what clients ask for, `path` is where its weights lie: from vLLM 0.31 on
 * blocks of other weights have other digests, which events do not tell.
 */
export type LoraAdapter = { readonly id: number; readonly name: string; readonly path?: string };

/** What names blocks beside their tokens; the same for all blocks of a request. */
export type ChainRoot = {
  /** Digest in place of the parent's for first blocks: differs between engine processes. */
  readonly noneHash: Buffer;
  readonly lora: LoraAdapter | null;
  readonly cacheSalt: string | null;
  /** Ordered by offset. */
  readonly features: readonly MultimodalFeature[];
};

/** @param seed engines with different seeds name the same prefix differently, as processes without a fixed hash seed do */
export function noneHashOf(seed: number): Buffer {
  return createHash('sha256').update(`warmpath simulated engine ${seed}`).digest();
}

/**
 * Names the block of `tokenIds` that follows `parent`.
 * @param start position of the block's first token in the prompt
 */
export function chainBlock(
  root: ChainRoot,
  parent: ChainBlock | null,
  tokenIds: Uint32Array,
  start: number,
): ChainBlock {
  const extraKeys = extraKeysOf(root, start, tokenIds.length);
  const hash = createHash('sha256')
    .update(parent === null ? root.noneHash : parent.digest)
    .update(tokenIds);
  if (extraKeys !== null) hash.update(JSON.stringify(extraKeys));
  if (root.lora?.path !== undefined) hash.update(root.lora.path);
  const digest = hash.digest();
  return { digest, key: digest.toString('latin1'), parent, tokenIds, extraKeys, lora: root.lora };
}

/** All tokens of the prefix that ends with `block`. */
export function prefixTokenIds(block: ChainBlock): Uint32Array {
  const chain: ChainBlock[] = [];
  for (let at: ChainBlock | null = block; at !== null; at = at.parent) chain.push(at);
  const tokenIds = new Uint32Array(chain.reduce((sum, part) => sum + part.tokenIds.length, 0));
  let offset = 0;
  for (const part of chain.reverse()) {
    tokenIds.set(part.tokenIds, offset);
    offset += part.tokenIds.length;
  }
  return tokenIds;
}

/** vLLM's order: LoRA name, then multimodal items that overlap the block, then the salt in the first block. */
function extraKeysOf(root: ChainRoot, start: number, length: number): readonly ExtraKey[] | null {
  const keys: ExtraKey[] = [];
  if (root.lora !== null) keys.push(root.lora.name);
  for (const feature of root.features) {
    if (feature.offset < start + length && feature.offset + feature.length > start) {
      // Relative to the block, thus negative in every block but the item's first.
      keys.push([feature.identifier, feature.offset - start]);
    }
  }
  if (start === 0 && root.cacheSalt !== null) keys.push(root.cacheSalt);
  return keys.length === 0 ? null : keys;
}
