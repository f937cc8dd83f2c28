/**
 * What is already known of a prompt's tokens: chained block hashes, found again by the keys of its text. A chat grows by
 * appending, so the part that can be in any cache has nearly always been tokenized before.
 *
 * For every key the memo holds the longest block chain that all exact answers seen through it had in common. That chain is
 * a claim about the next request with that key. Every exact answer is compared with what was claimed for it; per model the
 * share of claimed blocks that were right is the published accuracy, and below a threshold the memo is not believed until
 * it has been right again. So templates that rewrite history, tokenizers that merge over a border and a date in the system
 * prompt need no list of their own: the comparison shortens the claim or takes the belief away.
 *
 * Hashes and counts only: no text, no token. Synchronous; callers record what it returns.
 */
import { createLruMap } from '../lru-map.ts';
import type { BlockHashes } from '../prefix/block-hash.ts';
import { createModelAccuracy, textDensity, type ModelAccuracy, type Verdict } from './memo-accuracy.ts';
import type { PromptKeys } from './prompt-keys.ts';

export type MemoClaim = {
  /** The prompt's first blocks, as far as known. */
  readonly hashes: BlockHashes;
  readonly coveredTokens: number;
  /** Tokens of the whole prompt: known ones, and the rest estimated from its bytes. */
  readonly promptTokens: number;
  /** False while the model's accuracy is below the threshold: to be compared, not to be used. */
  readonly believed: boolean;
  /** `end`: the whole of an earlier prompt, seen to go on nowhere else yet. */
  readonly basis: 'end' | 'beginning';
};

export type ExactAnswer = { readonly nTokens: number; readonly hashes: BlockHashes };

export type TokenMemo = {
  /** The longest chain known for a beginning of the prompt, null when nothing is. */
  claim(model: string, keys: PromptKeys, blockSizeTokens: number): MemoClaim | null;
  /** Learns an exact answer, and judges what was claimed for it. */
  learn(
    model: string,
    keys: PromptKeys,
    blockSizeTokens: number,
    answer: ExactAnswer,
    claimed: MemoClaim | null,
  ): Verdict;
  /** Tokens per byte of prompt, learnt from exact answers. */
  tokensPerByte(model: string): number;
  accuracy(): ReadonlyMap<string, ModelAccuracy>;
  stats(): { readonly nEntries: number; readonly nBytes: number; readonly nEvicted: number };
};

export type TokenMemoOptions = {
  /** Entries and chains; the least recently used go first. 0: nothing is kept. */
  readonly maxBytes: number;
  /** Share of claimed blocks that must be right. */
  readonly minAccuracy?: number;
};

/** Followers of a key: another key, or one of these. */
const ENDS_HERE = -1;
/** Answers that went on differently have been compared: their common beginning is what the key stands for. */
const COMPARED = -2;

type Chain = { readonly hashes: BlockHashes; nUsers: number };

type Entry = {
  /** Its low word as a signed integer, which a Map finds without a number on the heap, and its high word for the comparison. */
  readonly key: number;
  readonly check: number;
  chain: Chain;
  /** First blocks of `chain` that every answer seen here had. */
  nBlocks: number;
  follower: number;
  /** As long as there is one follower only, where the key's own tokens end is an estimate; this errs on the short side. */
  readonly cautiousBlocks: number;
  /** Tokens up to the key's end, as estimated. */
  readonly tokensAtEnd: number;
  /** Of what may follow. */
  readonly tokensPerByte: number;
};

/** Measured on V8: an entry with its numbers and its place in the map; an array and its header. */
const ENTRY_BYTES = 300;
const CHAIN_BYTES = 160;
/** What follows a key may be this much denser in tokens than its prompt as a whole, plus the tokens of a template. */
const DENSITY_MARGIN = 1.5;
const TEMPLATE_TOKENS = 16;
/** How far behind the longest known key a better claim is looked for. */
const MAX_STEPS_BACK = 8;

export function createTokenMemo({ maxBytes, minAccuracy }: TokenMemoOptions): TokenMemo {
  const entries = createLruMap<number, Entry>();
  const accuracy = createModelAccuracy(minAccuracy);
  let nBytes = 0;
  let nEvicted = 0;

  function find(hi: number, lo: number): Entry | undefined {
    const entry = entries.get(lo | 0);
    return entry !== undefined && entry.check === hi ? entry : undefined;
  }

  function release(chain: Chain): void {
    chain.nUsers -= 1;
    if (chain.nUsers === 0) nBytes -= CHAIN_BYTES + chain.hashes.byteLength;
  }

  function use(chain: Chain): Chain {
    if (chain.nUsers === 0) nBytes += CHAIN_BYTES + chain.hashes.byteLength;
    chain.nUsers += 1;
    return chain;
  }

  function remove(entry: Entry): void {
    entries.delete(entry.key);
    nBytes -= ENTRY_BYTES;
    release(entry.chain);
  }

  function evict(): void {
    for (let oldest = entries.oldest(); oldest !== null && nBytes > maxBytes; oldest = entries.oldest()) {
      remove(oldest.value);
      nEvicted += 1;
    }
  }

  function claimedBlocks(entry: Entry, trim: number): number {
    if (entry.follower === COMPARED) return entry.nBlocks;
    if (entry.follower === ENDS_HERE) return Math.max(0, entry.nBlocks - trim);
    return Math.min(entry.nBlocks, entry.cautiousBlocks);
  }

  return {
    claim(model, { keys, endBytes, nBytes: promptBytes }, blockSizeTokens) {
      const of = accuracy.of(model);
      const salt = saltOf(blockSizeTokens, of.epoch);
      let at = endBytes.length - 1;
      let longest: Entry | undefined;
      while (at >= 0 && (longest = find((keys[2 * at]! ^ salt) >>> 0, keys[2 * at + 1]! ^ salt)) === undefined) at--;
      if (longest === undefined) return null;
      const promptTokens = longest.tokensAtEnd + longest.tokensPerByte * (promptBytes - endBytes[at]!);
      let best = longest;
      let nBlocks = claimedBlocks(best, of.trimBlocks);
      // A key seen once is claimed cautiously; an earlier one, compared, may be known to reach further.
      for (let back = at - 1; back >= 0 && back >= at - MAX_STEPS_BACK && best.follower >= 0; back--) {
        const earlier = find((keys[2 * back]! ^ salt) >>> 0, keys[2 * back + 1]! ^ salt);
        if (earlier === undefined) break;
        const n = claimedBlocks(earlier, of.trimBlocks);
        if (n > nBlocks) [best, nBlocks] = [earlier, n];
        if (earlier.follower < 0) break;
      }
      if (nBlocks === 0) return null;
      const coveredTokens = nBlocks * blockSizeTokens;
      return {
        hashes: best.chain.hashes.subarray(0, 2 * nBlocks) as BlockHashes,
        coveredTokens,
        promptTokens: Math.max(coveredTokens, Math.ceil(promptTokens)),
        believed: of.believed,
        basis: best.follower === ENDS_HERE ? 'end' : 'beginning',
      };
    },

    learn(model, { keys, endBytes, nBytes: promptBytes }, blockSizeTokens, { nTokens, hashes }, claimed) {
      const verdict = judge(claimed, hashes);
      const tokensPerByte = nTokens / Math.max(1, promptBytes);
      accuracy.note(model, verdict, nTokens, promptBytes);
      if (claimed?.basis === 'end') accuracy.trim(model, verdict.wrongBlocks);
      const salt = saltOf(blockSizeTokens, accuracy.of(model).epoch);
      const chain: Chain = { hashes, nUsers: 0 };
      const nKeys = endBytes.length;
      // A chain with fewer keys than text does not end at its last key.
      let follower = endBytes[nKeys - 1] === promptBytes ? ENDS_HERE : keyOf(0, 0);
      // From the last key to the first, so that the beginnings, which more prompts share, are the last to go.
      for (let i = nKeys - 1; i >= 0; i--) {
        const hi = (keys[2 * i]! ^ salt) >>> 0;
        const lo = keys[2 * i + 1]! ^ salt;
        const known = find(hi, lo);
        if (known === undefined) {
          const bytesAfter = promptBytes - endBytes[i]!;
          const unsure =
            bytesAfter === 0 ? 0 : Math.ceil(DENSITY_MARGIN * tokensPerByte * bytesAfter) + TEMPLATE_TOKENS;
          const old = entries.get(lo | 0);
          if (old !== undefined) remove(old);
          entries.set(lo | 0, {
            key: lo | 0,
            check: hi,
            chain: use(chain),
            nBlocks: hashes.length / 2,
            follower,
            cautiousBlocks: Math.max(0, Math.floor((nTokens - unsure) / blockSizeTokens)),
            tokensAtEnd: nTokens - tokensPerByte * bytesAfter,
            tokensPerByte: textDensity(nTokens, promptBytes, accuracy.of(model).tokensPerByte),
          });
          nBytes += ENTRY_BYTES;
        } else {
          known.nBlocks = commonBlocks(known.chain.hashes, known.nBlocks, hashes);
          if (known.follower !== follower) known.follower = COMPARED;
          // The newest chain begins with the same blocks, and other entries of this prompt hold it too.
          const before = known.chain;
          known.chain = use(chain);
          release(before);
          entries.set(known.key, known);
        }
        follower = keyOf(hi, lo);
      }
      evict();
      return verdict;
    },

    tokensPerByte: (model) => accuracy.of(model).tokensPerByte,
    accuracy: () => accuracy.all(),
    stats: () => ({ nEntries: entries.size, nBytes, nEvicted }),
  };
}

function judge(claimed: MemoClaim | null, hashes: BlockHashes): Verdict {
  if (claimed === null) return { claimedBlocks: 0, wrongBlocks: 0 };
  const claimedBlocks = claimed.hashes.length / 2;
  return { claimedBlocks, wrongBlocks: claimedBlocks - commonBlocks(claimed.hashes, claimedBlocks, hashes) };
}

/** Blocks that both begin with; in a chain of hashes equality at one block is equality at all before it. */
function commonBlocks(a: BlockHashes, nBlocks: number, b: BlockHashes): number {
  let same = 0;
  let other = Math.min(nBlocks, b.length / 2) + 1;
  while (other - same > 1) {
    const depth = (same + other) >>> 1;
    if (a[2 * depth - 2] === b[2 * depth - 2] && a[2 * depth - 1] === b[2 * depth - 1]) same = depth;
    else other = depth;
  }
  return same;
}

/** 53 of the 64 bits, as a number that is exact. */
function keyOf(hi: number, lo: number): number {
  return (hi >>> 11) * 2 ** 32 + (lo >>> 0);
}

/** Sets chains of different block sizes apart, in both words, so that each has a place; and those from before the model was forgotten. */
function saltOf(blockSizeTokens: number, epoch: number): number {
  return Math.imul(blockSizeTokens, 0x9e3779b1) ^ Math.imul(epoch, 0x85ebca6b);
}
