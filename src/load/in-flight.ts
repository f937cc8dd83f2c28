/**
 * Own load per endpoint slot, made atomically at the choice and released exactly once. Synchronous and exact: the fast
 * signal beside the engines' slower metrics.
 *
 * Prefill is a queue: an engine computes prompts one after the other in the order they were sent. A prompt leaves the
 * queue when its first token is seen, or when the engine's events say that it is computed, and what it took teaches how
 * fast the engine is. Where neither can be seen (an answer that comes in one piece, an Envoy that reports only the end, no
 * events) the prompt leaves when by that speed it is due.
 * Deliberately not here: what an engine says of itself.
 */
import type { Clock } from '../clock.ts';
import { addToPass, joinedPass, learntBudget, NO_PASS, passAt, type JoinedPass, type Pass } from './engine-passes.ts';
import { createPrefillModels, type Company, type PrefillModel } from './prefill-model.ts';

export type Load = JoinedPass & {
  /** Requests routed there whose end has not been seen. */
  readonly requests: number;
  /** Uncached prompt tokens of those requests. */
  readonly tokens: number;
  /** Tokens that their answers are expected to have, where anything is known to expect. */
  readonly outputTokens: number;
  /** All prompt tokens of those requests: what their decoding reads at every step. */
  readonly contextTokens: number;
  /** Of the requests, those whose prompt is not computed yet. */
  readonly waiting: number;
  /** Requests sent there of late. */
  readonly arrivalsPerSecond: number;
  /** Part of the time of late that computing their prompts takes; above 1 more comes than can be served. */
  readonly utilization: number;
  /** What of it went into tokens, which a cache could have saved: without what any prompt takes. */
  readonly savableUtilization: number;
  /** Expected wait before a new request's prefill starts, milliseconds. */
  readonly waitMs: number;
  /** Prompts of others that come there about now without being seen, milliseconds of computing: 0 where one router sends. */
  readonly unseenMs: number;
  /** How many prompts that is. */
  readonly unseenPrompts: number;
  /** What computing a prompt takes there: a fixed part, and one per uncached token. */
  readonly prefillSetupMs: number;
  readonly prefillMsPerToken: number;
};

export type LoadReservation = {
  /** The first token of a streamed answer was seen; later calls change nothing. */
  firstByte(): void;
  /**
   * @param computedTokens prompt tokens the engine computed, where it said so: better to learn from than the prediction
   * @param end `cut`: it failed or its client left, so that no first token was seen says nothing of what this set-up shows;
   *   `served` unless said
   * @returns true for the first call, false for every further one
   */
  release(computedTokens?: number, end?: 'served' | 'cut'): boolean;
};

/** Whether the first byte of the answer comes with the first token, or with the last one. */
export type AnswerForm = 'streamed' | 'whole';

export type ReservationDetails = {
  /** `streamed` unless said. */
  readonly answer?: AnswerForm;
  /** Expected tokens of the answer, 0 = nothing to go by. */
  readonly outputTokens?: number;
  /** Cached ones included; as many as uncached ones unless said. */
  readonly promptTokens?: number;
  /** How many of the uncached tokens are computed, as far as events say; asked now and then while it waits. */
  readonly computedTokens?: () => number;
};

export type InFlight = {
  load(slot: number): Load;
  reserve(slot: number, uncachedTokens: number, more?: ReservationDetails): LoadReservation;
  /**
   * Another process is behind the slot, or none: what was learnt of its speed and what was sent to it is void. Requests
   * that went to the old one still end exactly once, and change nothing at the new one.
   */
  forget(slot: number): void;
  /** Whether first tokens may have waited for prompts sent by others. */
  keepCompany(company: Company): void;
  /** Own prompts there that are not computed. */
  queue(slot: number): OwnQueue;
  /** Milliseconds of computing sent there since the first request. */
  sentMs(slot: number): number;
  /** What was sent of late. */
  typical(): Typical;
  /** Requests in flight over all slots. */
  total(): number;
};

export type OwnQueue = {
  readonly prompts: number;
  /** Whether events show that the engine is at the first of them. */
  readonly isBegun: boolean;
  /** Uncached tokens of them without those computed by now. */
  readonly tokens: number;
};

export type Typical = {
  /** Uncached tokens of a prompt; 0 before the first. */
  readonly promptTokens: number;
  /** What is left of a prompt at any moment of its being computed: more than half of the mean, since long ones take longer. */
  readonly residualTokens: number;
  /** Milliseconds of computing sent to all endpoints within a second before and after a request, itself included. */
  readonly burstMs: number;
};

/** Prefill speed assumed before anything is learnt, tokens per second: one mid-size GPU on an 8-billion-parameter model. */
export const ASSUMED_PREFILL_TOKENS_PER_SECOND = 8_000;

export type InFlightOptions = {
  /** Names engines that are alike, by GPU; null = not known. */
  readonly kindOf?: (slot: number) => string | null;
  /** What somebody has measured before, milliseconds per prompt token; null = nothing. */
  readonly seedMsPerTokenOf?: (slot: number) => number | null;
  /** `off`: every engine is taken to be as fast as measured before, or as assumed. */
  readonly learning?: 'on' | 'off';
};

type Prompt = {
  readonly uncachedTokens: number;
  readonly sentMs: number;
  readonly answer: AnswerForm;
  readonly computedTokens: (() => number) | null;
  computed: boolean;
  /** When the engine was free for it; known once it is computed. */
  startMs: number;
  /** What computing it took, null = not seen. */
  serviceMs: number | null;
};

type SlotState = {
  requests: number;
  tokens: number;
  outputTokens: number;
  contextTokens: number;
  /** Prompts in the order they were sent, from `head` on; computed ones are passed over. */
  queue: Prompt[];
  head: number;
  nWaiting: number;
  waitingTokens: number;
  /** When the last prompt was done: from then on the engine was free for the next one. */
  freeSinceMs: number;
  /** When the first of the queue was last asked for. */
  askedMs: number;
  /** Requests sent, each weighing less the longer ago it was, as of `arrivalsMs`. */
  arrivals: number;
  arrivalsMs: number;
  /** Milliseconds of computing those requests ask for, weighed likewise. */
  workMs: number;
  /** The part of it that is for tokens. */
  tokensMs: number;
  /** Milliseconds of computing sent there, unweighed. */
  sentMs: number;
  lastPass: Pass | null;
};

/** "Of late": a request weighs 1/e after that time. Results hardly change between 20 s and 3 min. */
const ARRIVALS_MEMORY_MS = 60_000;
/** The first requests are not taken for a rate of their own. */
const ARRIVALS_LEAST_MS = 1000;
/** So many answers of the other kind change the mind about what this set-up shows. */
const SIGHTINGS_KEPT = 16;
/** Events are looked up in the index: not for every request. */
const ASK_EVERY_MS = 20;
/** A time known to within this part of itself is worth learning from. */
const EVENT_PRECISION = 0.25;
/** A burst: what is sent this close. As long as others' requests stay unseen, an interval of the engines' metrics. */
const BURST_MS = 1000;
/** Weight of the newest request in what is typical. */
const TYPICAL_GAIN = 0.01;
const IDLE = {
  requests: 0,
  tokens: 0,
  outputTokens: 0,
  contextTokens: 0,
  waiting: 0,
  arrivalsPerSecond: 0,
  utilization: 0,
  savableUtilization: 0,
  waitMs: 0,
  ...NO_PASS,
  unseenMs: 0,
  unseenPrompts: 0,
};

export function createInFlight(
  clock: Clock,
  assumedPrefillTokensPerSecond: number = ASSUMED_PREFILL_TOKENS_PER_SECOND,
  { kindOf, seedMsPerTokenOf, learning = 'on' }: InFlightOptions = {},
): InFlight {
  const models = createPrefillModels(1000 / assumedPrefillTokensPerSecond, kindOf, seedMsPerTokenOf);
  const slots = new Map<number, SlotState>();
  let nTotal = 0;
  let nSent = 0;
  /** Of one pass, of any engine. */
  let budgetTokens = 0;
  let firstMs: number | null = null;
  /** Streamed answers whose first token was seen, minus those that ended unseen: below 0 this set-up shows none. */
  let sightings = 0;
  let company: Company = 'alone';
  const burst = createBurst();
  let promptTokensMean = 0;
  let promptSquaresMean = 0;

  function stateOf(slot: number): SlotState {
    let state = slots.get(slot);
    if (!state) {
      state = {
        requests: 0,
        tokens: 0,
        outputTokens: 0,
        contextTokens: 0,
        queue: [],
        head: 0,
        nWaiting: 0,
        waitingTokens: 0,
        freeSinceMs: -Infinity,
        askedMs: -Infinity,
        arrivals: 0,
        arrivalsMs: 0,
        workMs: 0,
        tokensMs: 0,
        sentMs: 0,
        lastPass: null,
      };
      slots.set(slot, state);
    }
    return state;
  }

  /** What the weighed sums of a slot are to be multiplied with, for what came per millisecond of late. */
  function perMsOf({ arrivalsMs }: SlotState, nowMs: number): number {
    const seenMs = nowMs - (firstMs ?? nowMs) + ARRIVALS_LEAST_MS;
    const weightMs = ARRIVALS_MEMORY_MS * (1 - Math.exp(-seenMs / ARRIVALS_MEMORY_MS));
    return faded(nowMs - arrivalsMs) / weightMs;
  }

  function leaveQueue(state: SlotState, prompt: Prompt, doneMs: number): void {
    prompt.computed = true;
    prompt.startMs = Math.max(prompt.sentMs, state.freeSinceMs);
    state.nWaiting -= 1;
    state.waitingTokens -= prompt.uncachedTokens;
    state.freeSinceMs = Math.max(state.freeSinceMs, doneMs);
    while (state.head < state.queue.length && state.queue[state.head]!.computed) state.head += 1;
    if (state.head < 64 || 2 * state.head < state.queue.length) return;
    state.queue.splice(0, state.head);
    state.head = 0;
  }

  /** Takes out what events say is computed. */
  function heedEvents(state: SlotState, nowMs: number): void {
    const sinceMs = nowMs - state.askedMs;
    if (sinceMs < ASK_EVERY_MS) return;
    state.askedMs = nowMs;
    while (state.nWaiting > 0) {
      const first = state.queue[state.head]!;
      if (first.computedTokens === null || first.computedTokens() < first.uncachedTokens) return;
      leaveQueue(state, first, nowMs);
      const serviceMs = nowMs - first.startMs;
      // Computed at some time since it was last asked for: if that is long ago, this tells nothing of the speed.
      if (sinceMs <= EVENT_PRECISION * serviceMs) first.serviceMs = serviceMs;
    }
  }

  /** Milliseconds until everything sent is computed; takes out what nobody will report. */
  function backlogMs(state: SlotState, { setupMs, msPerToken }: PrefillModel, nowMs: number): number {
    if (state.nWaiting > 0) heedEvents(state, nowMs);
    while (state.nWaiting > 0) {
      const first = state.queue[state.head]!;
      const dueMs = Math.max(state.freeSinceMs, first.sentMs) + setupMs + first.uncachedTokens * msPerToken;
      if (dueMs <= nowMs && (first.answer === 'whole' || sightings < 0)) {
        leaveQueue(state, first, dueMs);
        continue;
      }
      // Those that wait share passes: the fixed part is paid by the one under way, and by the one that asks.
      return Math.max(0, dueMs - nowMs) + Math.max(0, state.waitingTokens - first.uncachedTokens) * msPerToken;
    }
    return 0;
  }

  function passToJoin(
    { queue, head, nWaiting, freeSinceMs }: SlotState,
    { setupMs, msPerToken }: PrefillModel,
    nowMs: number,
  ): JoinedPass {
    if (nWaiting === 0) return NO_PASS;
    const beganMs = Math.max(freeSinceMs, queue[head]!.sentMs);
    return joinedPass(queue, head, budgetTokens, beganMs, nowMs, (tokens) => setupMs + tokens * msPerToken);
  }

  return {
    // Once per candidate and decision: one object, without any on the way to it.
    load(slot) {
      const model = models.of(slot);
      const state = slots.get(slot);
      if (!state) return { ...IDLE, prefillSetupMs: model.setupMs, prefillMsPerToken: model.msPerToken };
      const nowMs = clock.nowMs();
      // First, since it takes prompts out of the queue.
      const waitMs = backlogMs(state, model, nowMs);
      const { passPrompts, passRoomTokens } = passToJoin(state, model, nowMs);
      const perMs = perMsOf(state, nowMs);
      return {
        requests: state.requests,
        tokens: state.tokens,
        outputTokens: state.outputTokens,
        contextTokens: state.contextTokens,
        waiting: state.nWaiting,
        arrivalsPerSecond: 1000 * state.arrivals * perMs,
        utilization: state.workMs * perMs,
        savableUtilization: state.tokensMs * perMs,
        waitMs,
        passPrompts,
        passRoomTokens,
        unseenMs: 0,
        unseenPrompts: 0,
        prefillSetupMs: model.setupMs,
        prefillMsPerToken: model.msPerToken,
      };
    },
    reserve(slot, uncachedTokens, details = {}) {
      const { answer = 'streamed', outputTokens = 0, promptTokens = uncachedTokens, computedTokens } = details;
      const state = stateOf(slot);
      const nowMs = clock.nowMs();
      firstMs ??= nowMs;
      const fading = faded(nowMs - state.arrivalsMs);
      const { setupMs, msPerToken } = models.of(slot);
      state.arrivals = state.arrivals * fading + 1;
      const tokensMs = uncachedTokens * msPerToken;
      const workMs = setupMs + tokensMs;
      state.workMs = state.workMs * fading + workMs;
      state.tokensMs = state.tokensMs * fading + tokensMs;
      state.sentMs += workMs;
      burst.add(workMs, nowMs);
      const gain = promptTokensMean === 0 ? 1 : TYPICAL_GAIN;
      promptTokensMean += gain * (uncachedTokens - promptTokensMean);
      promptSquaresMean += gain * (uncachedTokens ** 2 - promptSquaresMean);
      state.arrivalsMs = nowMs;
      const prompt: Prompt = {
        uncachedTokens,
        sentMs: nowMs,
        answer,
        computedTokens: computedTokens ?? null,
        computed: false,
        startMs: nowMs,
        serviceMs: null,
      };
      state.queue.push(prompt);
      state.nWaiting += 1;
      state.waitingTokens += uncachedTokens;
      state.requests += 1;
      state.tokens += uncachedTokens;
      state.outputTokens += outputTokens;
      state.contextTokens += promptTokens;
      nTotal += 1;
      const nth = nSent++;
      let held = true;
      let pass: Pass | null = null;
      return {
        firstByte() {
          if (!held || answer === 'whole' || pass !== null) return;
          sightings = Math.min(SIGHTINGS_KEPT, sightings + 1);
          const nowMs = clock.nowMs();
          if (!prompt.computed) leaveQueue(state, prompt, nowMs);
          pass = state.lastPass = passAt(state.lastPass, nowMs, nowMs - prompt.startMs);
          pass.nOpen += 1;
        },
        release(computedTokens, end = 'served') {
          if (!held) return false;
          held = false;
          const teaches = learning === 'on' && slots.get(slot) === state;
          if (pass !== null) {
            addToPass(pass, { nth, tokens: computedTokens ?? uncachedTokens });
            pass.nOpen -= 1;
            if (teaches && pass.nOpen === 0) {
              models.learn(slot, pass.tokens, pass.serviceMs, company);
              budgetTokens = learntBudget(budgetTokens, pass);
            }
          } else {
            const { serviceMs } = prompt;
            if (serviceMs !== null && teaches) {
              models.learn(slot, computedTokens ?? uncachedTokens, serviceMs, company);
            }
            if (answer === 'streamed' && end === 'served') sightings = Math.max(-SIGHTINGS_KEPT, sightings - 1);
          }
          if (!prompt.computed) leaveQueue(state, prompt, state.freeSinceMs);
          state.requests -= 1;
          // Fractions: what is added and taken away need not cancel out to the last bit.
          state.tokens = state.requests === 0 ? 0 : Math.max(0, state.tokens - uncachedTokens);
          state.outputTokens = state.requests === 0 ? 0 : Math.max(0, state.outputTokens - outputTokens);
          state.contextTokens -= promptTokens;
          nTotal -= 1;
          return true;
        },
      };
    },
    forget(slot) {
      models.forget(slot);
      slots.delete(slot);
    },
    keepCompany(kind) {
      company = kind;
    },
    queue(slot) {
      const state = slots.get(slot);
      if (state === undefined || state.nWaiting === 0) return { prompts: 0, isBegun: false, tokens: 0 };
      const first = state.queue[state.head]!;
      const computed = Math.min(first.uncachedTokens, Math.max(0, first.computedTokens?.() ?? 0));
      return { prompts: state.nWaiting, isBegun: computed > 0, tokens: state.waitingTokens - computed };
    },
    sentMs: (slot) => slots.get(slot)?.sentMs ?? 0,
    typical: () => ({
      promptTokens: promptTokensMean,
      residualTokens: promptTokensMean > 0 ? promptSquaresMean / promptTokensMean / 2 : 0,
      burstMs: burst.meanMs(),
    }),
    total: () => nTotal,
  };
}

/** How much is sent around a request, on average over requests. */
function createBurst() {
  let sent: { readonly workMs: number; readonly sentMs: number }[] = [];
  let head = 0;
  let sumMs = 0;
  let meanMs = 0;
  return {
    add(workMs: number, nowMs: number): void {
      while (head < sent.length && sent[head]!.sentMs < nowMs - BURST_MS) sumMs -= sent[head++]!.workMs;
      if (head === sent.length) sumMs = 0;
      if (2 * head >= sent.length) {
        sent = sent.slice(head);
        head = 0;
      }
      // As much follows on average as has gone before.
      meanMs += TYPICAL_GAIN * (2 * sumMs + workMs - meanMs);
      sent.push({ workMs, sentMs: nowMs });
      sumMs += workMs;
    },
    meanMs: () => meanMs,
  };
}

function faded(ageMs: number): number {
  return Math.exp(-ageMs / ARRIVALS_MEMORY_MS);
}
