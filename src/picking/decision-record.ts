/** Words of flow (a): what was weighed, what was decided, how it ended. No behaviour. */
import type { Endpoint, Trust } from '../endpoints/endpoint.ts';
import type { PickError } from '../extproc/picker.ts';
import type { AnswerForm, Load } from '../load/in-flight.ts';
import type { InferenceRequest } from '../openai/request.ts';
import type { Usage } from '../openai/usage.ts';
import type { BlockHashes } from '../prefix/block-hash.ts';
import type { ForkKey } from '../prefix/prefix-forks.ts';
import type { Medium } from '../prefix/prefix-match.ts';
import type { Ranking } from '../scheduling/strategies.ts';
import type { MemoClaim } from '../tokenizer/token-memo.ts';
import type { PromptView, Rung } from '../tokenizer/tokenizer-ladder.ts';
import type { TokenizeFailure, TokenizeResult } from '../tokenizer/tokenizer.ts';

/** With how much knowledge a request was decided; `random` where a strategy wants to know nothing. */
export type DecisionRung = Rung | 'random';

/** Block size assumed for endpoints that have not announced a block yet: vLLM's default. */
export const DEFAULT_BLOCK_SIZE_TOKENS = 16;

/** What the event streams say about an endpoint; where it stands for several ranks, together. */
export type EndpointKnowledge = {
  readonly trust: Trust;
  readonly blockSizeTokens: number | null;
  /** whole: everything the engine holds is announced. partial: some of it. none: nothing is known. */
  readonly coverage: 'whole' | 'partial' | 'none';
};

export type CandidateView = {
  readonly endpoint: Endpoint;
  readonly trust: Trust;
  /** False: it refuses connections, and comes behind all others. */
  readonly reachable: boolean;
  /** Blocks announced by events, by medium. */
  readonly matchedBlocks: Readonly<Record<Medium, number>>;
  /** Tokens said to be resident when the request starts: announced, or routed there before. */
  readonly matchedTokens: number;
  /** What they are worth by trust and medium, at most `matchedTokens`. */
  readonly creditedTokens: number;
  /** Prompt − credited. */
  readonly uncachedTokens: number;
  readonly load: Load;
  readonly costMs: number;
};

/** The prompts of a request in blocks of one size. */
export type PromptBlocks = {
  readonly blockSizeTokens: number;
  /** One chain per prompt: the whole of it, or what the memo knows; empty where nothing is known. A reservation books them. */
  readonly hashes: readonly BlockHashes[];
  /** What the memo claimed of them, to be judged by the exact answer. */
  readonly claims: readonly (MemoClaim | null)[];
};

export type Evaluation = {
  readonly kind: 'evaluation';
  readonly request: InferenceRequest | null;
  /** Canonical model; '' where the request names none. */
  readonly model: string;
  readonly adapter: string | null;
  readonly rung: DecisionRung;
  readonly tokenizeFailure: TokenizeFailure | null;
  readonly promptTokens: number;
  readonly blockSizeTokens: number;
  readonly candidates: readonly CandidateView[];
  readonly order: readonly number[];
  /** `ip:port` as the data plane gets them: the choice, then its fallbacks. */
  readonly named: readonly string[];
  /** As it is written in the configuration or the header. */
  readonly strategy: string;
  readonly reason: Ranking['reason'];
  /** What exact tokens could still save, in the scheduler's milliseconds: 0 where they are known, infinite where nothing is. */
  readonly doubtMs: number;
  /** One entry per block size among the candidates: nearly always one. */
  readonly blocks: readonly PromptBlocks[];
  /** Where what is cached of the prompt ends. */
  readonly fork: ForkKey | null;
  readonly prompt: PromptView | null;
  /** The answer of the tokenizer, perhaps still to come; null where none was asked. */
  readonly exact: Promise<TokenizeResult> | null;
};

/** One finished decision, for metrics and the decision log. */
export type DecisionRecord =
  | {
      readonly kind: 'routed';
      readonly evaluation: Evaluation;
      readonly endpoint: Endpoint;
      readonly predictedCachedTokens: number;
      readonly traceId: string | null;
      readonly durationMs: number;
    }
  /** Exact tokens of a request that was routed before they came, while its answer had not begun. */
  | {
      readonly kind: 'counted';
      readonly model: string;
      readonly endpoint: Endpoint;
      readonly promptTokens: number;
      readonly predictedCachedTokens: number;
    }
  /** An exact answer has judged what the memo claimed. */
  | { readonly kind: 'judged'; readonly model: string; readonly claimedBlocks: number; readonly wrongBlocks: number }
  | {
      readonly kind: 'refused';
      readonly error: PickError;
      readonly model: string | null;
      readonly traceId: string | null;
      readonly durationMs: number;
    };

/** The end of a routed request. */
export type EndRecord = {
  readonly endpoint: Endpoint;
  readonly model: string;
  readonly strategy: string;
  readonly rung: DecisionRung;
  /** `assumed`: nobody saw the end, the time for it has passed. */
  readonly outcome: 'completed' | 'cancelled' | 'failed' | 'assumed';
  readonly promptTokens: number;
  readonly predictedCachedTokens: number;
  /** The same where the whole prompt was known, else null. */
  readonly promisedTokens: number | null;
  readonly predictedOutputTokens: number | null;
  /** Answers to all prompts of the request, generated side by side. */
  readonly nAnswers: number;
  /** Cached tokens are null also where the engine says those of one of several answers. */
  readonly usage: Usage | null;
  /** Milliseconds of the clock: request complete, decided, first byte of the answer (null = not seen), end. */
  readonly receivedMs: number;
  readonly decidedMs: number;
  readonly firstByteMs: number | null;
  readonly endMs: number;
  /** Whether the first byte came with the first token. */
  readonly answer: AnswerForm;
};
