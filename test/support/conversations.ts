/** Conversations and templates that turn them into tokens: what a memo of tokens is held against. */
import type { InferenceRequest } from '../../src/openai/request.ts';
import { createBlockHasher, createHashSeed, type BlockHashes } from '../../src/prefix/block-hash.ts';
import { createPromptKeyer, type PromptKeys } from '../../src/tokenizer/prompt-keys.ts';
import type { ExactAnswer } from '../../src/tokenizer/token-memo.ts';
import { aChatRequest } from './requests.ts';

export type Turn = { readonly role: 'system' | 'user' | 'assistant'; readonly content: string };

/** What a model makes of a conversation, as text; every three bytes of it are a token. */
export type Template = (turns: readonly Turn[], tools: readonly string[]) => string;

const ofTurn = ({ role, content }: Turn): string => `<|${role}|>${content}<|end|>`;

export const TEMPLATES = {
  /** Grows at its end only. */
  appending: (turns, tools) => `${tools.join()}${turns.map(ofTurn).join('')}<|assistant|>`,
  /** Opens an answer with a thought that history does not have. */
  thinking: (turns, tools) => `${tools.join()}${turns.map(ofTurn).join('')}<|assistant|><think>\n\n</think>\n\n`,
  /** Puts tools before the last message, so that all of history moves. */
  toolsLast: (turns, tools) =>
    `${turns.slice(0, -1).map(ofTurn).join('')}${tools.join()}${turns.slice(-1).map(ofTurn).join('')}<|assistant|>`,
  /** Says first how long the conversation is. */
  counting: (turns, tools) => `${turns.length}${tools.join()}${turns.map(ofTurn).join('')}<|assistant|>`,
} satisfies Record<string, Template>;

export const BLOCK = 4;

export function createConversations() {
  const hasher = createBlockHasher(createHashSeed((words) => words.fill(7)));
  const keyer = createPromptKeyer(hasher);
  const root = hasher.root('m', null, BLOCK);
  return {
    request: (turns: readonly Turn[], tools: readonly string[] = []): InferenceRequest =>
      aChatRequest({ model: 'm', messages: turns, ...(tools.length > 0 ? { tools } : {}) }),
    keys(turns: readonly Turn[], tools: readonly string[] = []): PromptKeys {
      return keyer.keysOf(this.request(turns, tools), 'm', null)[0]!;
    },
    answer(template: Template, turns: readonly Turn[], tools: readonly string[] = []): ExactAnswer {
      const text = Buffer.from(template(turns, tools));
      const tokenIds = new Uint32Array(Math.ceil(text.length / 3));
      text.forEach((byte, at) => (tokenIds[Math.floor(at / 3)]! |= byte << (8 * (at % 3))));
      return { nTokens: tokenIds.length, hashes: hasher.blocks(tokenIds, root, BLOCK) };
    },
  };
}

/** Blocks that both chains begin with, the plain way. */
export function commonBlocks(a: BlockHashes, b: BlockHashes): number {
  let n = 0;
  while (2 * n < Math.min(a.length, b.length) && a[2 * n] === b[2 * n] && a[2 * n + 1] === b[2 * n + 1]) n++;
  return n;
}
