/**
 * What engines have shown of themselves while serving: how long an answer and a token of it take, how much they serve.
 * Learnt from requests whose end was seen, and from the totals that engines report. The speed of prompts is
 * prefill-model.ts. No I/O; the clock is injected.
 */
import type { Clock } from '../clock.ts';
import type { EngineSeed } from './engine-seeds.ts';
import type { EngineReading, Total } from './metrics-page.ts';

export type EngineProfile = {
  /** Mean time from the choice to the end of an answer of late, milliseconds; null = not seen yet. */
  readonly answerMs: number | null;
  /** Mean time from one token of an answer to the next, milliseconds. */
  readonly decodeMsPerToken: number | null;
  /** Prompt and answer tokens of requests that ended of late. */
  readonly tokensPerSecond: number;
  /** Capacity of the KV cache in tokens, as the engine says. */
  readonly capacityTokens: number | null;
};

export type ServedRequest = {
  readonly answerMs: number;
  /** From the first byte to the end, null where the first byte was not seen or the answer came in one piece. */
  readonly decodeMs: number | null;
  readonly promptTokens: number;
  /** Null where the answer did not show it. */
  readonly completionTokens: number | null;
};

export type EngineProfiles = {
  of(slot: number): EngineProfile;
  /** When the last answer was seen, or reported, that is in `answerMs`: milliseconds of the clock, null = none was. */
  answerSeenMs(slot: number): number | null;
  served(slot: number, request: ServedRequest): void;
  read(slot: number, reading: Pick<EngineReading, 'answers' | 'decode' | 'nBlocks' | 'blockSizeTokens'>): void;
  /** Another process is behind the slot. */
  forget(slot: number): void;
};

type Mean = { value: number; weight: number };
type State = {
  answer: Mean;
  answerSeenMs: number | null;
  decode: Mean;
  reportedAnswer: Reported;
  reportedDecode: Reported;
  tokens: number;
  tokensMs: number;
  capacityTokens: number | null;
};
type Reported = { base: Total | null; ms: number | null };

/** "Of late", in requests: a sample weighs 1/e after so many further ones. */
const MEMORY = 32;
/** "Of late", in time. */
const TOKENS_MEMORY_MS = 60_000;
/** Fewer new ones than that in an engine's totals say little about their mean. */
const LEAST_ANSWERS = 4;
const LEAST_TOKENS = 50;
const NOTHING: EngineProfile = { answerMs: null, decodeMsPerToken: null, tokensPerSecond: 0, capacityTokens: null };

/**
 * @param learning `off`: no rate is learnt; capacity, and what answers and traffic of late were, are known all the same
 * @param seedOf what somebody has measured before: it counts until the engine has shown or said something itself
 */
export function createEngineProfiles(
  clock: Clock,
  learning: 'on' | 'off' = 'on',
  seedOf: (slot: number) => EngineSeed | null = () => null,
): EngineProfiles {
  const bySlot = new Map<number, State>();

  function stateOf(slot: number): State {
    let state = bySlot.get(slot);
    if (state === undefined) {
      state = {
        answer: { value: 0, weight: 0 },
        answerSeenMs: null,
        decode: { value: 0, weight: 0 },
        reportedAnswer: { base: null, ms: null },
        reportedDecode: { base: null, ms: null },
        tokens: 0,
        tokensMs: clock.nowMs(),
        capacityTokens: null,
      };
      bySlot.set(slot, state);
    }
    return state;
  }

  const fading = (state: State): number => Math.exp((state.tokensMs - clock.nowMs()) / TOKENS_MEMORY_MS);

  return {
    of(slot) {
      const state = bySlot.get(slot);
      const seed = seedOf(slot);
      const seeded = seed === null ? NOTHING : { ...NOTHING, ...profileOf(seed) };
      if (state === undefined) return seeded;
      return {
        // The own requests first: the engine's totals are of everybody's, and as old as the reading.
        answerMs: state.answer.weight > 0 ? state.answer.value : state.reportedAnswer.ms,
        decodeMsPerToken:
          state.decode.weight > 0 ? state.decode.value : (state.reportedDecode.ms ?? seeded.decodeMsPerToken),
        tokensPerSecond: (1000 * state.tokens * fading(state)) / TOKENS_MEMORY_MS,
        capacityTokens: state.capacityTokens ?? seeded.capacityTokens,
      };
    },
    answerSeenMs: (slot) => bySlot.get(slot)?.answerSeenMs ?? null,
    served(slot, { answerMs, decodeMs, promptTokens, completionTokens }) {
      const state = stateOf(slot);
      state.tokens = state.tokens * fading(state) + promptTokens + (completionTokens ?? 0);
      state.tokensMs = clock.nowMs();
      learn(state.answer, answerMs);
      state.answerSeenMs = clock.nowMs();
      if (learning === 'off') return;
      if (decodeMs !== null && completionTokens !== null && completionTokens > 1) {
        learn(state.decode, decodeMs / (completionTokens - 1));
      }
    },
    read(slot, { answers, decode, nBlocks, blockSizeTokens }) {
      const state = stateOf(slot);
      if (nBlocks !== null && blockSizeTokens !== null) state.capacityTokens = nBlocks * blockSizeTokens;
      if (follow(state.reportedAnswer, answers, LEAST_ANSWERS)) state.answerSeenMs = clock.nowMs();
      if (learning === 'off') return;
      follow(state.reportedDecode, decode, LEAST_TOKENS);
    },
    forget: (slot) => void bySlot.delete(slot),
  };
}

function profileOf({
  decodeTokensPerSecond: rate,
  capacityTokens,
}: EngineSeed): Pick<EngineProfile, 'decodeMsPerToken' | 'capacityTokens'> {
  return { decodeMsPerToken: rate === null ? null : 1000 / rate, capacityTokens };
}

function learn(mean: Mean, sample: number): void {
  if (!Number.isFinite(sample) || sample < 0) return;
  mean.weight = mean.weight * (1 - 1 / MEMORY) + 1;
  mean.value += (sample - mean.value) / mean.weight;
}

/**
 * Mean of what was added to a total since it was last looked at; a total that fell belongs to a process begun anew.
 * @returns whether enough was added to tell
 */
function follow(reported: Reported, total: Total | null, least: number): boolean {
  if (total === null) return false;
  const { base } = reported;
  if (base === null || total.count < base.count || total.seconds < base.seconds) {
    reported.base = total;
    return false;
  }
  const nNew = total.count - base.count;
  if (nNew < least) return false;
  reported.ms = (1000 * (total.seconds - base.seconds)) / nNew;
  reported.base = total;
  return true;
}
