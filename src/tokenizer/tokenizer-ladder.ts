/**
 * With how much knowledge a request is decided: exact tokens, else what the memo claims of them, else where its text went
 * before, else load alone. Never an error on any rung, and a wait only where it can pay.
 *
 * The text rung remembers, per endpoint, the keys of texts sent there. It knows nothing of what engines evict, so the
 * newest texts are kept, as many as an engine's own cache would hold. It works without any tokenizer.
 *
 * Deliberately not here: calls of a tokenizer and what a token costs. The picker waits, the scheduler weighs.
 */
import type { Clock } from '../clock.ts';
import type { InferenceRequest } from '../openai/request.ts';
import type { BlockHasher } from '../prefix/block-hash.ts';
import { createRoutedPrefixes, type Booking } from '../prefix/routed-prefixes.ts';
import type { ModelAccuracy, Verdict } from './memo-accuracy.ts';
import { createAnswerTimes } from './answer-times.ts';
import { textBytes } from './media-bytes.ts';
import { createPromptKeyer, type PromptKeys } from './prompt-keys.ts';
import { createTokenMemo, type ExactAnswer, type MemoClaim } from './token-memo.ts';

/** From the most knowledge to the least. */
export type Rung = 'exact' | 'memo' | 'text' | 'load';

/** A prompt as its text shows it, before any token is known. Holds keys, not the text. */
export type PromptView = {
  readonly model: string;
  /** One per prompt of the request; empty where there is no text. */
  readonly keys: readonly PromptKeys[];
  /** Estimated from bytes. */
  readonly promptTokens: number;
  /** Equal texts give equal keys, on whatever rung. */
  readonly tieKey: number;
};

export type TokenizerLadder = {
  view(request: InferenceRequest, model: string, adapter: string | null): PromptView;
  /** One per prompt, null where nothing is known or the memo is not believed. */
  claims(view: PromptView, blockSizeTokens: number): readonly (MemoClaim | null)[];
  /** Exact answers, one per prompt, hashed for this block size. */
  learn(
    view: PromptView,
    blockSizeTokens: number,
    answers: readonly ExactAnswer[],
    claimed: readonly (MemoClaim | null)[],
  ): Verdict;
  /** For every slot: tokens of the longest beginning of a prompt that was sent there, estimated. */
  routedTokens(view: PromptView): (slot: number) => number;
  /** Remembers that the text goes to the slot. */
  book(view: PromptView, slot: number): Booking;
  /** Another process is behind the slot. */
  forget(slot: number): void;
  /** Doubt about a choice, in milliseconds of delay, up to which it is not worth a wait for exact tokens. */
  waitWorthMs(model: string): number;
  /** See AnswerTimes. */
  answersInTime(model: string): boolean;
  noteAnswer(model: string, durationMs: number): void;
  stats(): LadderStats;
};

export type LadderStats = {
  readonly accuracy: ReadonlyMap<string, ModelAccuracy>;
  readonly memoEntries: number;
  readonly memoBytes: number;
  readonly memoEvicted: number;
  readonly textKeys: number;
};

export type LadderOptions = {
  readonly memoMaxBytes: number;
  readonly budgetMs: number;
  readonly memoMinAccuracy?: number;
};

/** Messages of half a KiB: 500 k tokens, the KV cache of an 8-billion-parameter model on a card of 80 GB. */
const TEXT_KEYS_PER_SLOT = 4096;
/**
 * A wait delays for sure, a doubt is the worst case, so even 1 loses nothing on average; with 0.25 the choice is the exact
 * one in 99 % of cases and the share of waits hardly grows (`make bench-tokens`).
 */
const DOUBT_PER_WAIT = 0.25;

export function createTokenizerLadder(
  { hasher, clock }: { readonly hasher: BlockHasher; readonly clock: Clock },
  { memoMaxBytes, memoMinAccuracy, budgetMs }: LadderOptions,
): TokenizerLadder {
  const keyer = createPromptKeyer(hasher);
  const memo = createTokenMemo({ maxBytes: memoMaxBytes, minAccuracy: memoMinAccuracy });
  const texts = createRoutedPrefixes(clock, { keptBlocksPerSlot: TEXT_KEYS_PER_SLOT });
  const times = createAnswerTimes(budgetMs);

  return {
    view(request, model, adapter) {
      const keys = keyer.keysOf(request, model, adapter);
      const nBytes =
        keys.length > 0
          ? keys.reduce((sum, one) => sum + one.nBytes, 0)
          : request.prompt.kind === 'none'
            ? textBytes(request.body)
            : request.body.length;
      const last = keys[keys.length - 1]?.keys;
      return {
        model,
        keys,
        promptTokens: Math.ceil(nBytes * memo.tokensPerByte(model)),
        tieKey: last === undefined || last.length === 0 ? 0 : last[last.length - 1]!,
      };
    },
    claims: ({ model, keys }, blockSizeTokens) => keys.map((one) => memo.claim(model, one, blockSizeTokens)),
    learn({ model, keys }, blockSizeTokens, answers, claimed) {
      let claimedBlocks = 0;
      let wrongBlocks = 0;
      for (let i = 0; i < Math.min(keys.length, answers.length); i++) {
        const verdict = memo.learn(model, keys[i]!, blockSizeTokens, answers[i]!, claimed[i] ?? null);
        claimedBlocks += verdict.claimedBlocks;
        wrongBlocks += verdict.wrongBlocks;
      }
      return { claimedBlocks, wrongBlocks };
    },
    routedTokens({ model, keys }) {
      const perByte = memo.tokensPerByte(model);
      const matches = keys.map((one) => texts.longestMatch(one.keys));
      return (slot) => {
        let nBytes = 0;
        for (let i = 0; i < matches.length; i++) {
          const nKeys = matches[i]!.blocks(slot);
          if (nKeys > 0) nBytes = Math.max(nBytes, keys[i]!.endBytes[nKeys - 1]!);
        }
        return Math.floor(nBytes * perByte);
      };
    },
    book({ keys }, slot) {
      const bookings = keys.map((one) => texts.book(slot, one.keys));
      return { end: (how) => bookings.forEach((booking) => booking.end(how)) };
    },
    forget: (slot) => texts.forget(slot),
    waitWorthMs: (model) => times.expectedWaitMs(model) * DOUBT_PER_WAIT,
    answersInTime: (model) => times.areInTime(model),
    noteAnswer: (model, durationMs) => times.note(model, durationMs),
    stats() {
      const { nEntries, nBytes, nEvicted } = memo.stats();
      return {
        accuracy: memo.accuracy(),
        memoEntries: nEntries,
        memoBytes: nBytes,
        memoEvicted: nEvicted,
        textKeys: texts.stats().nBlocks,
      };
    },
  };
}
