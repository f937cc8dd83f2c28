/** What an engine says it used, read from response bytes. */

export type Usage = {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** `prompt_tokens_details.cached_tokens`; null when the engine does not say. */
  readonly cachedTokens: number | null;
};
