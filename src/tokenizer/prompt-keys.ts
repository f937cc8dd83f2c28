/**
 * Names for the beginnings of a prompt, told from its text alone: a chain of 64-bit keys, one per message and one per KiB
 * inside of long messages and texts. Two requests share a key exactly when model, adapter, salt, everything the template
 * takes (tools, documents, arguments) and all text up to there are byte for byte the same, `cache_control` aside.
 *
 * Deliberately not here: what JSON means. A message spelt otherwise is another message; it costs a look-up, never truth.
 */
import { TOKEN_FIELDS } from '../openai/body-scan.ts';
import type { ByteRange } from '../openai/json-scan.ts';
import type { InferenceRequest } from '../openai/request.ts';
import type { BlockHasher, BlockHashes } from '../prefix/block-hash.ts';
import { withoutMarks } from './cache-marks.ts';
import { mediaRanges, surplusBytes } from './media-bytes.ts';
import { createTextPieces, TEXT_PIECE, type HashText } from './text-pieces.ts';

export type PromptKeys = {
  /** [hi, lo] per key; a key stands for everything before it too. */
  readonly keys: BlockHashes;
  /**
   * Bytes of the prompt up to the end of each key; tools and template arguments count as its first bytes, an image in
   * base64 as the text it is worth.
   */
  readonly endBytes: readonly number[];
  /** All bytes of the prompt, counted so; more than the last key's where the prompt has more keys than are made. */
  readonly nBytes: number;
};

/** Fine enough to find a shared beginning inside of a text, coarse enough to cost a look-up per 250 tokens. */
export const CHUNK_BYTES = 1024;
/** 4 MiB of text in chunks: beyond any context of today; a longer prompt has keys for its beginning only. */
const MAX_KEYS = 4096;
/** Prompts of one request beyond it are not looked at: they would be as many chains to match. */
const MAX_PROMPTS = 16;
/** No block of tokens has it: keys of text never meet those of tokens. */
const TEXT_DOMAIN = 0;
const PIECE_BYTES = 4 * TEXT_PIECE;
const TAG_BYTES = 8;

export type PromptKeyer = {
  /** One chain per prompt; empty where there is no text, or are too many. */
  keysOf(request: InferenceRequest, model: string, adapter: string | null): readonly PromptKeys[];
};

export function createPromptKeyer(hasher: BlockHasher): PromptKeyer {
  let words = new Uint32Array(1024);
  let bytes = new Uint8Array(words.buffer);
  const state = new Uint32Array(2);
  /** Keys of the prompt under work. */
  const found = new Uint32Array(2 * MAX_KEYS);
  /** Made at the first use: until then the seed may still change. */
  let hash: HashText | null = null;

  function hashText(...given: Parameters<HashText>): void {
    hash ??= createTextPieces(textSecrets(hasher));
    hash(...given);
  }

  function reserve(nBytes: number): void {
    if (bytes.length >= nBytes) return;
    words = new Uint32Array((nBytes >> 2) * 2);
    bytes = new Uint8Array(words.buffer);
  }

  /** Absorbs a tag and the bytes of one range: nothing else has the same digest. */
  function absorb(tag: number, body: Uint8Array, { start, end }: ByteRange): void {
    const nBytes = end - start;
    const nPieces = Math.ceil((TAG_BYTES + nBytes) / PIECE_BYTES);
    reserve(nPieces * PIECE_BYTES);
    words[0] = tag;
    words[1] = nBytes;
    bytes.set(body.subarray(start, end), TAG_BYTES);
    bytes.fill(0, TAG_BYTES + nBytes, nPieces * PIECE_BYTES);
    hashText(words, 1, nPieces, state, state, 0);
  }

  function keysOfSegments(
    body: Uint8Array,
    segments: readonly ByteRange[],
    headBytes: number,
    root: readonly [number, number],
  ): PromptKeys {
    const endBytes: number[] = [];
    let nBytes = headBytes;
    state[0] = root[0];
    state[1] = root[1];
    for (const segment of segments) {
      const { start, end } = segment;
      const media = mediaRanges(body, segment);
      const nChunks = Math.min(Math.floor((end - start) / CHUNK_BYTES), MAX_KEYS - endBytes.length);
      if (nChunks > 0) {
        reserve(nChunks * CHUNK_BYTES);
        bytes.set(body.subarray(start, start + nChunks * CHUNK_BYTES));
        hashText(words, nChunks, CHUNK_BYTES / PIECE_BYTES, state, found, 2 * endBytes.length);
        for (let i = 1; i <= nChunks; i++) {
          const at = i * CHUNK_BYTES;
          endBytes.push(nBytes + at - surplusBytes(media, start + at));
        }
      }
      nBytes += end - start - surplusBytes(media, end);
      if (endBytes.length >= MAX_KEYS) continue;
      absorb(end - start, body, { start: start + nChunks * CHUNK_BYTES, end });
      found.set(state, 2 * endBytes.length);
      endBytes.push(nBytes);
    }
    return { keys: found.slice(0, 2 * endBytes.length) as BlockHashes, endBytes, nBytes };
  }

  return {
    keysOf(request, model, adapter) {
      const { prompt, body, fields, api } = request;
      if (prompt.kind !== 'messages' && prompt.kind !== 'texts') return [];
      if (prompt.ranges.length > MAX_PROMPTS && prompt.kind === 'texts') return [];
      const [hi, lo] = hasher.root(`${api} ${model}`, adapter, TEXT_DOMAIN);
      state[0] = hi;
      state[1] = lo;
      let headBytes = 0;
      TOKEN_FIELDS.forEach((name, index) => {
        const range = fields.get(name);
        if (range === undefined) return;
        absorb(index + 1, body, range);
        if (name === 'tools' || name === 'documents') headBytes += range.end - range.start;
      });
      const root = [state[0], state[1]] as const;
      if (prompt.kind === 'messages') {
        const text = withoutMarks({ body, ranges: prompt.ranges });
        return [keysOfSegments(text.body, text.ranges, headBytes, root)];
      }
      // Without the quotes, so that a text and its continuation begin alike.
      return prompt.ranges.map(({ start, end }) =>
        keysOfSegments(body, [{ start: start + 1, end: end - 1 }], headBytes, root),
      );
    },
  };
}

/** As secret as the seed of the hasher, and the same on replicas that share it. */
function textSecrets(hasher: BlockHasher): Uint32Array {
  const secrets = new Uint32Array(TEXT_PIECE);
  const [hi, lo] = hasher.root('text pieces', null, TEXT_DOMAIN);
  hasher.continueBlocks(hi, lo, new Uint32Array(TEXT_PIECE / 2), TEXT_PIECE / 2, 1, null, secrets);
  return secrets;
}
