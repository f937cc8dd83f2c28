/** What the picker asks a tokenizer, and what it may answer. */
import type { Signal } from '../light-signal.ts';
import type { MultimodalFeature } from '../openai/multimodal-features.ts';
import type { InferenceRequest } from '../openai/request.ts';

/** One entry of a block's extra keys as vLLM publishes them: a salt or identifier, or [identifier, offset in block]. */
export type ExtraKey = string | readonly [string, number];

export type { MultimodalFeature };

export type TokenChain = {
  readonly tokenIds: Uint32Array;
  /** Ordered by offset; empty for text. */
  readonly features: readonly MultimodalFeature[];
};

export type TokenizeFailure = 'timeout' | 'late' | 'error' | 'rejected' | 'open' | 'disabled' | 'unsupported';

export type TokenizeResult =
  /** One chain per prompt of the request. `remembered`: from an earlier answer to the same bytes, nobody was asked. */
  | { readonly kind: 'tokens'; readonly chains: readonly TokenChain[]; readonly remembered?: true }
  /** `later`: what the call still under way will end with. */
  | { readonly kind: 'none'; readonly reason: TokenizeFailure; readonly later?: Promise<TokenizeResult> };

export type TokenizeRequest = InferenceRequest & {
  /** Of a request that names its model by an alias or an adapter: the name of the model itself. */
  readonly canonicalModel?: string;
};

export type Tokenizer = {
  /**
   * Never rejects. Settles at the latest when `signal` aborts (`late`); without a signal nobody waits for the answer, and
   * it gives way to requests for which somebody does.
   * @param endpointUrls `http://ip:port` of the endpoints of the request's model, asked when no dedicated URL is configured
   */
  tokenize(request: TokenizeRequest, endpointUrls: readonly string[], signal: Signal | null): Promise<TokenizeResult>;
  close(): Promise<void>;
};
