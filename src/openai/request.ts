/** What is asked: body bytes → InferenceRequest. Types here are shared with the tokenizer. */

export type Api = 'chat' | 'completions' | 'other';

/** Prompt of a request, as far as it matters for the KV cache. */
export type Prompt =
  /** Chat: the template turns it into tokens, only the engine's tokenizer knows how. */
  | { readonly kind: 'messages' }
  /** One chain per text. */
  | { readonly kind: 'texts'; readonly texts: readonly string[] }
  /** Already tokens: one chain per list, ids in 0…2³²−1. */
  | { readonly kind: 'tokens'; readonly tokenIds: readonly Uint32Array[] }
  /** Nothing that could be cached, or nothing understood: routed by load. */
  | { readonly kind: 'none' };

export type InferenceRequest = {
  readonly api: Api;
  /** As the client wrote it: a served name, an alias or an adapter. */
  readonly model: string;
  readonly stream: boolean;
  readonly prompt: Prompt;
  /** vLLM's `cache_salt`: part of the first block's key. */
  readonly cacheSalt: string | null;
  /** max_completion_tokens ?? max_tokens, null when absent. */
  readonly maxTokens: number | null;
  /** Body exactly as received; valid until the decision, never modified. */
  readonly body: Uint8Array;
};

/** Something the client did wrong: becomes a 400 with an OpenAI-shaped body. */
export type BadRequest = {
  readonly kind: 'bad_request';
  readonly message: string;
  readonly param: string | null;
};

export type ParsedRequest = { readonly kind: 'request'; readonly request: InferenceRequest } | BadRequest;
