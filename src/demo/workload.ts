/**
 * What the demo sends: seeded multi-turn chats over a few shared system prompts, and the hit rate that one cache of
 * unlimited size for all pods together would reach on them. Plans only; sending is traffic.ts.
 */
import { applyChatTemplate, encodeText, type ChatMessage } from '../simulator/tokenizer.ts';

export type WorkloadOptions = {
  readonly seed: number;
  readonly model: string;
  readonly nRequests: number;
  /** The last turn is due this long after the first. */
  readonly durationMs: number;
};

export type Turn = {
  /** When the request is due, from the start of the run; later only while its predecessor is still being answered. */
  readonly atMs: number;
  readonly text: string;
  readonly answerTokens: number;
};

export type Conversation = { readonly systemPrompt: string; readonly turns: readonly Turn[] };

export type Workload = {
  readonly model: string;
  readonly conversations: readonly Conversation[];
  readonly nRequests: number;
};

export type Message = { readonly role: 'system' | 'user' | 'assistant'; readonly content: string };

/** One request as it was really sent and answered. */
export type SentChat = { readonly messages: readonly Message[]; readonly answer: string };

export type Ideal = {
  /** Part of all prompt tokens that had been seen before. */
  readonly hitRate: number;
  readonly promptTokens: number;
  /** Distinct blocks of everything sent and answered: the working set. */
  readonly nBlocks: number;
};

/** Some two or three conversations share each of them, as the users of one assistant do. */
const N_SYSTEM_PROMPTS = 24;
const SYSTEM_TOKENS = { least: 200, most: 500 };
const TURNS = { least: 4, most: 8 };
const FIRST_TURN_TOKENS = { least: 500, most: 1500 };
const LATER_TURN_TOKENS = { least: 200, most: 900 };
const ANSWER_TOKENS = { least: 16, most: 48 };
/** Conversations begin in this first part of the run and last to its end: the working set stays in use. */
const BEGIN_WITHIN = 0.35;

export function createWorkload(options: WorkloadOptions): Workload {
  const random = createRandom(options.seed);
  const between = ({ least, most }: { least: number; most: number }): number =>
    least + Math.floor(random() * (most - least + 1));
  const systemPrompts = Array.from({ length: N_SYSTEM_PROMPTS }, (_, i) =>
    proseOf(between(SYSTEM_TOKENS), random, `You are assistant ${i}.`),
  );
  const conversations: Conversation[] = [];
  let nRequests = 0;
  while (nRequests < options.nRequests) {
    const nTurns = Math.min(between(TURNS), options.nRequests - nRequests);
    conversations.push({
      systemPrompt: systemPrompts[Math.floor(random() * N_SYSTEM_PROMPTS)]!,
      turns: turnTimes(nTurns, options.durationMs, random).map((atMs, i) => ({
        atMs,
        text: proseOf(between(i === 0 ? FIRST_TURN_TOKENS : LATER_TURN_TOKENS), random, ''),
        answerTokens: between(ANSWER_TOKENS),
      })),
    });
    nRequests += nTurns;
  }
  return { model: options.model, conversations, nRequests };
}

/** The chats as far as they are known beforehand, each turn when it is due, with answers of the right length. */
export function plannedChats({ conversations }: Workload): SentChat[] {
  const chats = conversations.flatMap(({ systemPrompt, turns }) => {
    const messages: Message[] = [{ role: 'system', content: systemPrompt }];
    return turns.map(({ atMs, text, answerTokens }) => {
      messages.push({ role: 'user', content: text });
      const chat = { atMs, messages: [...messages], answer: 'bab' + ' bab'.repeat(answerTokens - 1) };
      messages.push({ role: 'assistant', content: chat.answer });
      return chat;
    });
  });
  return chats.sort((a, b) => a.atMs - b.atMs);
}

/**
 * The best any routing could do: every block that was computed once, anywhere, is found again for ever. Counted as
 * engines count: whole blocks, and the last token of a prompt is always computed.
 * @param sent in the order the requests began
 */
export function idealOf(sent: readonly SentChat[], blockSizeTokens: number): Ideal {
  const root: BlockNode = new Map();
  let promptTokens = 0;
  let cachedTokens = 0;
  let nBlocks = 0;
  for (const { messages, answer } of sent) {
    const prompt = promptTokensOf(messages);
    promptTokens += prompt.length;
    // The last token of an answer is never computed, so its block is not complete yet.
    const stored = [...prompt, ...encodeText(answer).slice(0, -1)];
    const mayHit = Math.floor((prompt.length - 1) / blockSizeTokens);
    let node = root;
    for (let block = 0; (block + 1) * blockSizeTokens <= stored.length; block++) {
      const key = stored.slice(block * blockSizeTokens, (block + 1) * blockSizeTokens).join();
      let next = node.get(key);
      if (next === undefined) {
        node.set(key, (next = new Map()));
        nBlocks++;
      } else if (block < mayHit) {
        cachedTokens += blockSizeTokens;
      }
      node = next;
    }
  }
  return { hitRate: promptTokens === 0 ? 0 : cachedTokens / promptTokens, promptTokens, nBlocks };
}

/** A block's children by their tokens: the same tokens after another prefix are another block. */
type BlockNode = Map<string, BlockNode>;

function promptTokensOf(messages: readonly Message[]): readonly number[] {
  const template: ChatMessage[] = messages.map(({ role, content }) => ({ role, content, toolCalls: null }));
  return applyChatTemplate({ messages: template, preamble: null, ending: 'generation_prompt' }).tokenIds;
}

/** Spread over the run from a random beginning, each one somewhere in its own part: no two runs of turns march in step. */
function turnTimes(nTurns: number, durationMs: number, random: () => number): number[] {
  const beginMs = random() * BEGIN_WITHIN * durationMs;
  const partMs = (durationMs - beginMs) / nTurns;
  return Array.from({ length: nTurns }, (_, i) =>
    Math.round(beginMs + (i === 0 ? 0 : (i + 0.1 + 0.8 * random()) * partMs)),
  );
}

const CONSONANTS = 'bcdfghjklmnprstvwz';
const VOWELS = 'aeiou';

/** Words of the pattern consonant-vowel, as long as `nTokens` tokens of the simulated tokenizer or a little longer. */
function proseOf(nTokens: number, random: () => number, opening: string): string {
  const parts = [opening];
  let tokens = encodeText(opening).length;
  while (tokens < nTokens) {
    let word = ' ';
    const nSyllables = 1 + Math.floor(random() * 3);
    for (let i = 0; i < nSyllables; i++) {
      word += CONSONANTS[Math.floor(random() * CONSONANTS.length)]! + VOWELS[Math.floor(random() * VOWELS.length)]!;
    }
    parts.push(word);
    tokens += encodeText(word).length;
  }
  return parts.join('').trim();
}

/** xorshift32: enough for a workload, and the same numbers everywhere. @returns numbers in [0, 1) */
function createRandom(seed: number): () => number {
  let state = (seed ^ 0x9e3779b9) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state / 2 ** 32;
  };
}
