/**
 * Exact answers of a while ago, found again by the whole body they were made for, so that a prompt that comes again costs
 * no call. Byte-bounded, the least recently used go first. Answers age: what is behind a name may be replaced.
 *
 * Deliberately not here: prompts that only begin alike; those are the memo's.
 */
import { hash } from 'node:crypto';
import type { Clock } from '../clock.ts';
import { createLruMap } from '../lru-map.ts';
import type { InferenceRequest } from '../openai/request.ts';
import type { TokenizeResult } from './tokenizer.ts';

export type TokenAnswer = Extract<TokenizeResult, { kind: 'tokens' }>;

export type AnswerCache = {
  get(key: string): TokenAnswer | null;
  put(key: string, answer: TokenAnswer): void;
  readonly nBytes: number;
};

type Entry = { readonly answer: TokenAnswer; readonly nBytes: number; readonly freshUntilMs: number };

/** Within it a changed template or vocabulary goes unnoticed for prompts that are repeated byte by byte. */
const FRESH_MS = 300_000;
/** Measured on V8: the key, the entry and its place in the map. */
const ENTRY_BYTES = 400;
/** A chain and its array; a request may have a thousand of one token. */
const CHAIN_BYTES = 288;
const FEATURE_BYTES = 160;

/** @param maxBytes 0: nothing is kept */
export function createAnswerCache(clock: Clock, maxBytes: number): AnswerCache {
  const entries = createLruMap<string, Entry>();
  let nBytes = 0;

  function remove(key: string, entry: Entry): void {
    entries.delete(key);
    nBytes -= entry.nBytes;
  }

  return {
    get(key) {
      const entry = entries.get(key);
      if (entry === undefined) return null;
      if (clock.nowMs() >= entry.freshUntilMs) {
        remove(key, entry);
        return null;
      }
      entries.set(key, entry);
      return entry.answer;
    },
    put(key, answer) {
      const old = entries.get(key);
      if (old !== undefined) remove(key, old);
      const entry = { answer, nBytes: bytesOf(answer), freshUntilMs: clock.nowMs() + FRESH_MS };
      if (entry.nBytes > maxBytes) return;
      entries.set(key, entry);
      nBytes += entry.nBytes;
      for (let oldest = entries.oldest(); oldest !== null && nBytes > maxBytes; oldest = entries.oldest()) {
        remove(oldest.key, oldest.value);
      }
    },
    get nBytes() {
      return nBytes;
    },
  };
}

/** A digest of API and body: equal keys mean equal requests. */
export function requestKey({ api, body }: InferenceRequest): string {
  return `${api} ${hash('sha256', body, 'base64')}`;
}

function bytesOf({ chains }: TokenAnswer): number {
  return chains.reduce(
    (sum, { tokenIds, features }) => sum + CHAIN_BYTES + tokenIds.buffer.byteLength + features.length * FEATURE_BYTES,
    ENTRY_BYTES,
  );
}
