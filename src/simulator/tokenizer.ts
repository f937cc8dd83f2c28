/**
 * A toy tokenizer in place of a model's: deterministic, reversible, about three characters per token for English, with a
 * chat template whose tokens only ever grow at the end when a conversation grows. No model's real vocabulary.
 *
 * Vocabulary: 16 special tokens · 256 bytes · 65 536 pairs of bytes · runs of one to three lower-case letters, each with
 * and without a space before it.
 */
import { createHash } from 'node:crypto';
import type { MultimodalFeature } from '../tokenizer/tokenizer.ts';

export const SPECIAL = {
  beginOfText: 0,
  endOfText: 1,
  endOfTurn: 2,
  startHeader: 3,
  endHeader: 4,
  image: 5,
} as const;

const SPECIAL_NAMES = ['<|begin|>', '<|end|>', '<|eot|>', '<|header|>', '<|/header|>', '<|image|>'];

/** Placeholder tokens one image stands for. */
export const TOKENS_PER_IMAGE = 24;

const FIRST_BYTE = 16;
const FIRST_PAIR = FIRST_BYTE + 256;
const FIRST_RUN = FIRST_PAIR + 65_536;
const RUN_OFFSETS = [0, 26, 26 + 26 * 26] as const;
const N_RUNS = 26 + 26 * 26 + 26 * 26 * 26;
export const VOCABULARY_SIZE = FIRST_RUN + 2 * N_RUNS;

const SPACE = 0x20;
const LETTER_A = 0x61;

/** A message as the chat template takes it. */
export type ChatMessage = {
  readonly role: string;
  readonly content: string | readonly ContentPart[];
  /** Tool calls of an assistant, as they came. */
  readonly toolCalls: unknown;
};

export type ContentPart =
  | { readonly type: 'text'; readonly text: string }
  /** `identifier` tells one image from another. */
  | { readonly type: 'image'; readonly identifier: string };

export type ChatTemplateInput = {
  readonly messages: readonly ChatMessage[];
  /** Stands before the messages: tools, documents, template arguments. Null where the request has none of them. */
  readonly preamble: string | null;
  /** 'generation_prompt': the header of an answer follows; 'continue_final': the last message stays open; 'none'. */
  readonly ending: 'generation_prompt' | 'continue_final' | 'none';
};

export type TokenizedText = { readonly tokenIds: number[]; readonly features: MultimodalFeature[] };

/** Text without special tokens → ids. */
export function encodeText(text: string): number[] {
  const ids: number[] = [];
  const bytes = Buffer.from(text, 'utf8');
  let at = 0;
  while (at < bytes.length) {
    const spaced = bytes[at] === SPACE && isLetter(bytes[at + 1]);
    const from = spaced ? at + 1 : at;
    let to = from;
    while (to < from + 3 && isLetter(bytes[to])) to++;
    if (to > from) {
      ids.push(runId(bytes, from, to, spaced ? N_RUNS : 0));
      at = to;
    } else if (at + 1 < bytes.length && !startsRun(bytes, at + 1)) {
      ids.push(FIRST_PAIR + bytes[at]! * 256 + bytes[at + 1]!);
      at += 2;
    } else {
      ids.push(FIRST_BYTE + bytes[at]!);
      at++;
    }
  }
  return ids;
}

/** The inverse of `encodeText`; special tokens are left out or written by name, ids outside the vocabulary as U+FFFD. */
export function decodeTokens(ids: Iterable<number>, specials: 'skipped' | 'named' = 'skipped'): string {
  const parts: Buffer[] = [];
  for (const id of ids) parts.push(tokenBytes(id, specials));
  return Buffer.concat(parts).toString('utf8');
}

/** The conversation as the model sees it. */
export function applyChatTemplate(input: ChatTemplateInput): TokenizedText {
  const tokenIds: number[] = [SPECIAL.beginOfText];
  const features: MultimodalFeature[] = [];
  const turn = (role: string, write: () => void, end: 'closed' | 'open'): void => {
    tokenIds.push(SPECIAL.startHeader, ...encodeText(role), SPECIAL.endHeader);
    write();
    if (end === 'closed') tokenIds.push(SPECIAL.endOfTurn);
  };
  const { preamble, messages, ending } = input;
  if (preamble !== null) turn('preamble', () => pushAll(tokenIds, encodeText(preamble)), 'closed');
  messages.forEach((message, i) => {
    const open = ending === 'continue_final' && i === messages.length - 1;
    turn(message.role, () => writeContent(message, tokenIds, features), open ? 'open' : 'closed');
  });
  if (ending === 'generation_prompt') turn('assistant', () => undefined, 'open');
  return { tokenIds, features };
}

/**
 * One token of a simulated answer: a word of three letters that `encodeText` finds again as the same single token, so
 * that an answer sent back as history meets the blocks that were stored while it was generated.
 * @param key what the answer depends on: equal keys give equal answers, on every pod
 */
export function answerToken(key: string, index: number): number {
  const word = createHash('sha256').update(`${key}\n${index}`).digest().readUInt32LE(0) % (26 * 26 * 26);
  // The first word has no space before it, so that clients that trim answers find the same tokens.
  return FIRST_RUN + (index === 0 ? 0 : N_RUNS) + RUN_OFFSETS[2] + word;
}

function writeContent(message: ChatMessage, tokenIds: number[], features: MultimodalFeature[]): void {
  const parts =
    typeof message.content === 'string' ? [{ type: 'text', text: message.content } as const] : message.content;
  for (const part of parts) {
    if (part.type === 'text') {
      pushAll(tokenIds, encodeText(part.text));
    } else {
      features.push({ identifier: part.identifier, offset: tokenIds.length, length: TOKENS_PER_IMAGE });
      for (let i = 0; i < TOKENS_PER_IMAGE; i++) tokenIds.push(SPECIAL.image);
    }
  }
  if (message.toolCalls !== undefined && message.toolCalls !== null) {
    pushAll(tokenIds, encodeText(JSON.stringify(message.toolCalls)));
  }
}

function pushAll(target: number[], ids: readonly number[]): void {
  for (const id of ids) target.push(id);
}

function isLetter(byte: number | undefined): boolean {
  return byte !== undefined && byte >= LETTER_A && byte < LETTER_A + 26;
}

function startsRun(bytes: Buffer, at: number): boolean {
  return isLetter(bytes[at]) || (bytes[at] === SPACE && isLetter(bytes[at + 1]));
}

function runId(bytes: Buffer, from: number, to: number, offset: number): number {
  let value = 0;
  for (let i = from; i < to; i++) value = value * 26 + bytes[i]! - LETTER_A;
  return FIRST_RUN + offset + RUN_OFFSETS[to - from - 1]! + value;
}

function tokenBytes(id: number, specials: 'skipped' | 'named'): Buffer {
  if (id < FIRST_BYTE) return Buffer.from(specials === 'named' ? (SPECIAL_NAMES[id] ?? `<|reserved ${id}|>`) : '');
  if (id < FIRST_PAIR) return Buffer.from([id - FIRST_BYTE]);
  if (id < FIRST_RUN) return Buffer.from([(id - FIRST_PAIR) >> 8, (id - FIRST_PAIR) & 0xff]);
  if (id >= VOCABULARY_SIZE) return Buffer.from('\ufffd');
  const spaced = id - FIRST_RUN >= N_RUNS;
  const run = (id - FIRST_RUN) % N_RUNS;
  const length = run < RUN_OFFSETS[1] ? 1 : run < RUN_OFFSETS[2] ? 2 : 3;
  const letters: number[] = [];
  let value = run - RUN_OFFSETS[length - 1]!;
  for (let i = 0; i < length; i++) {
    letters.unshift(LETTER_A + (value % 26));
    value = Math.floor(value / 26);
  }
  return Buffer.from(spaced ? [SPACE, ...letters] : letters);
}
