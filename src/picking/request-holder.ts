/**
 * What a routed request holds until its answer has ended: load on its endpoint, the blocks and the text it will leave
 * there. All of it is given back exactly once, and put right when exact tokens come after the choice.
 */
import type { Clock } from '../clock.ts';
import type { Endpoint } from '../endpoints/endpoint.ts';
import type { Reservation } from '../extproc/picker.ts';
import type { FleetLoad } from '../load/fleet-load.ts';
import type { InFlight } from '../load/in-flight.ts';
import type { InferenceRequest } from '../openai/request.ts';
import type { Usage } from '../openai/usage.ts';
import type { BlockHashes } from '../prefix/block-hash.ts';
import type { PrefixIndexReader } from '../prefix/prefix-index.ts';
import type { Booking, BookingEnd, RoutedPrefixes } from '../prefix/routed-prefixes.ts';
import type { TokenizerLadder } from '../tokenizer/tokenizer-ladder.ts';
import type { TokenizeResult } from '../tokenizer/tokenizer.ts';
import {
  DEFAULT_BLOCK_SIZE_TOKENS,
  type CandidateView,
  type DecisionRecord,
  type EndpointKnowledge,
  type EndRecord,
  type Evaluation,
} from './decision-record.ts';
import { chainsOf, matched, type PromptMatcher } from './prompt-matching.ts';

export type HolderDeps = {
  readonly clock: Clock;
  readonly knowledge: (endpoint: Endpoint) => EndpointKnowledge;
  readonly index: PrefixIndexReader;
  readonly routed: RoutedPrefixes;
  readonly inFlight: Pick<InFlight, 'reserve'>;
  readonly forecast: FleetLoad['forecast'];
  readonly ladder: TokenizerLadder;
  readonly matcher: PromptMatcher;
  readonly record: (record: DecisionRecord) => void;
  readonly recordEnd: (record: EndRecord) => void;
};

export type Held = {
  readonly reservation: Reservation;
  /** How long the prompt really is and what of it was matched, where the choice had no tokens. */
  counted(promptTokens: number, matchedTokens: number): void;
  /** Takes the booking made at the choice back. */
  unbook(): void;
  /** Books what the prompt really is, if the request still is on its way or was served. */
  book(chains: readonly BlockHashes[]): void;
  /** False once the engine has answered: what it caches then may be this very prompt. */
  isUnanswered(): boolean;
};

type Booked = { readonly chain: BlockHashes; readonly booking: Booking };

export type RequestHolder = {
  /** Reserves and books at the choice. */
  hold(evaluation: Evaluation, view: CandidateView, receivedMs: number): Held;
  /** What exact tokens are good for once they are there: the memo learns, and a choice made without them is booked rightly. */
  reconcile(evaluation: Evaluation, view: CandidateView, held: Held, result: TokenizeResult): void;
};

export function createRequestHolder(deps: HolderDeps): RequestHolder {
  const { clock, inFlight, ladder, matcher, record, routed } = deps;

  /** How many of the first tokens events say are computed: all once every full block is announced. */
  function announcedTokens(chains: readonly BlockHashes[], endpoint: Endpoint, blockSizeTokens: number): number {
    if (chains.every((chain) => chain.length === 0) || deps.knowledge(endpoint).trust === 'fallback') return 0;
    const tokens = chains.map((chain) => {
      const nBlocks = deps.index.longestMatch(chain).blocks(endpoint.slot);
      return nBlocks === chain.length / 2 ? Infinity : nBlocks * blockSizeTokens;
    });
    return Math.min(...tokens);
  }

  function hold(evaluation: Evaluation, view: CandidateView, receivedMs: number): Held {
    // A reservation lives as long as the answer: of the evaluation, which holds the body, it may keep no more than words.
    const { model, strategy, rung } = evaluation;
    const { endpoint, matchedTokens } = view;
    let { promptTokens } = evaluation;
    let { uncachedTokens } = view;
    let isExact = rung === 'exact';
    const nPrompts = evaluation.request === null ? 1 : promptsOf(evaluation.request);
    const nAnswers = nPrompts * (evaluation.request?.nAnswers ?? 1);
    const decidedMs = clock.nowMs();
    let firstByteMs: number | null = null;
    const blockSizeTokens = deps.knowledge(endpoint).blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS;
    const answer = evaluation.request?.stream === true ? 'streamed' : 'whole';
    // A guess at what may be cached in part: a load, but nothing to learn the engine's speed from. Nor are several prompts, of
    // which the first to be computed gives the first token.
    const isGuess = evaluation.request?.prompt.kind === 'none' || (nPrompts > 1 && answer === 'streamed');
    const forecast = deps.forecast(endpoint, { model, promptTokens, uncachedTokens, nAnswers, load: view.load });
    const chains = chainsOf(evaluation, blockSizeTokens);
    const load = inFlight.reserve(endpoint.slot, uncachedTokens, {
      answer,
      outputTokens: forecast.outputTokens ?? 0,
      promptTokens,
      // Of a prompt known in part the rest may still be to compute.
      computedTokens: () =>
        rung === 'exact' ? announcedTokens(chains, endpoint, blockSizeTokens) + uncachedTokens - promptTokens : 0,
    });
    const bookAll = (all: readonly BlockHashes[]): Booked[] =>
      all.map((chain) => ({ chain, booking: routed.book(endpoint.slot, chain) }));
    const endAll = (how: BookingEnd): void => {
      for (const { chain, booking } of booked) {
        // What events have confirmed they will also take back: nothing needs to be remembered beside them.
        const isConfirmed = how === 'grace' && announcedTokens([chain], endpoint, blockSizeTokens) === Infinity;
        booking.end(isConfirmed ? 'drop' : how);
      }
    };
    const sentIn = routed.generation(endpoint.slot);
    let booked = bookAll(chains);
    const text = evaluation.prompt === null ? null : ladder.book(evaluation.prompt, endpoint.slot);
    let usage: Usage | null = null;
    let ended: BookingEnd | null = null;
    let unanswered = true;
    const reservation: Reservation = {
      expectedAnswerMs: forecast.answerMs,
      firstByte() {
        unanswered = false;
        firstByteMs ??= clock.nowMs();
        load.firstByte();
      },
      observe: (seen) => {
        // Of several, engines tell what the last one found (vLLM) or add up what each did (SGLang): neither was predicted.
        usage = nAnswers === 1 ? seen : { ...seen, cachedTokens: null };
      },
      release(outcome) {
        const computed = computedTokens(usage, promptTokens, isExact) ?? (isGuess ? 0 : uncachedTokens);
        const isWhole = outcome === 'completed' || outcome === 'assumed';
        if (!load.release(computed, isWhole ? 'served' : 'cut')) return;
        const { trust, coverage } = deps.knowledge(endpoint);
        // Where events do not tell all, the rest of the engine's cache is known only from what was sent there and served.
        // A client that has heard enough leaves a computed prompt behind.
        const isServed = isWhole || (outcome === 'cancelled' && !unanswered);
        const isTold = trust !== 'fallback' && coverage === 'whole';
        const keep = !isServed ? 'drop' : isTold ? 'grace' : 'keep';
        ended = keep;
        unanswered = false;
        endAll(keep);
        text?.end(keep === 'drop' ? 'drop' : 'keep');
        deps.recordEnd({
          endpoint,
          model,
          strategy,
          rung,
          outcome,
          promptTokens,
          predictedCachedTokens: matchedTokens,
          promisedTokens: rung === 'exact' ? matchedTokens : null,
          predictedOutputTokens: forecast.outputTokens,
          nAnswers,
          usage,
          receivedMs,
          decidedMs,
          firstByteMs,
          endMs: clock.nowMs(),
          answer,
        });
      },
    };
    return {
      reservation,
      isUnanswered: () => unanswered,
      counted(nTokens, nMatched) {
        // What the memo knew of it was matched at the choice: since then the engine may have begun with this very prompt.
        uncachedTokens = Math.max(0, rung === 'memo' ? uncachedTokens + nTokens - promptTokens : nTokens - nMatched);
        promptTokens = nTokens;
        isExact = true;
      },
      unbook() {
        endAll('drop');
        booked = [];
      },
      book(chains) {
        // It went to a process that is gone; the slot may be another endpoint's by now.
        if (routed.generation(endpoint.slot) !== sentIn) return;
        booked = bookAll(chains);
        if (ended !== null) endAll(ended);
      },
    };
  }

  function reconcile(evaluation: Evaluation, view: CandidateView, held: Held, result: TokenizeResult): void {
    const { request, prompt, model, adapter } = evaluation;
    if (result.kind !== 'tokens' || prompt === null || request === null) return;
    const { endpoint } = view;
    const { trust, blockSizeTokens } = deps.knowledge(endpoint);
    const ownSize = blockSizeTokens ?? DEFAULT_BLOCK_SIZE_TOKENS;
    for (const { blockSizeTokens: blockSize, hashes, claims } of evaluation.blocks) {
      const chains =
        evaluation.rung === 'exact' ? hashes : matcher.hash({ request, model, adapter }, result.chains, blockSize);
      const answers = chains.map((hashes, i) => ({ nTokens: result.chains[i]!.tokenIds.length, hashes }));
      const verdict = ladder.learn(prompt, blockSize, answers, claims);
      if (verdict.claimedBlocks > 0) record({ kind: 'judged', model, ...verdict });
      if (evaluation.rung === 'exact' || blockSize !== ownSize) continue;
      held.unbook();
      if (held.isUnanswered()) {
        const lengths = answers.map(({ nTokens }) => nTokens);
        const { matchedTokens } = matched(matcher.lookUp(chains, lengths, blockSize), endpoint.slot, trust);
        const promptTokens = lengths.reduce((sum, nTokens) => sum + nTokens, 0);
        held.counted(promptTokens, matchedTokens);
        record({ kind: 'counted', model, endpoint, promptTokens, predictedCachedTokens: matchedTokens });
      }
      held.book(chains);
    }
  }

  return { hold, reconcile };
}

function promptsOf({ prompt }: InferenceRequest): number {
  return prompt.kind === 'tokens' ? prompt.tokenIds.length : prompt.kind === 'texts' ? prompt.ranges.length : 1;
}

/** Engines may count other tokens of a template than were seen here. */
const TEMPLATE_PART = 0.1;
const TEMPLATE_TOKENS = 64;
/** A length told from bytes may be so many times too short, as where every byte is a token. */
const MOST_UNDERESTIMATED = 4;

/**
 * What the engine really computed of the prompt, where it says so. A count that cannot be of this prompt says nothing: vLLM's
 * responses API adds up all rounds with its tools, and one absurd number would be learnt as the speed of every engine.
 */
function computedTokens(usage: Usage | null, promptTokens: number, isExact: boolean): number | undefined {
  if (usage === null || usage.cachedTokens === null) return undefined;
  const isOfPrompt = isExact
    ? Math.abs(usage.promptTokens - promptTokens) <= TEMPLATE_PART * promptTokens + TEMPLATE_TOKENS
    : usage.promptTokens <= MOST_UNDERESTIMATED * promptTokens + TEMPLATE_TOKENS;
  return isOfPrompt ? usage.promptTokens - usage.cachedTokens : undefined;
}
