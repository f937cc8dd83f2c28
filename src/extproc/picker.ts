/** The seam between Envoy and policy: what an exchange asks for one HTTP request, and every answer it may get. */

import type { Signal } from '../light-signal.ts';
import type { Usage } from '../openai/usage.ts';

/** Candidate hint of the data plane: `all`, or only these `ip:port` (possibly none). */
export type Subset = { readonly kind: 'all' } | { readonly kind: 'only'; readonly addresses: readonly string[] };

export const SUBSET_ALL: Subset = { kind: 'all' };

export type PickRequest = {
  readonly method: string;
  /** `:path` with query string. */
  readonly path: string;
  /** First value of a request header by lower-case name. */
  header(name: string): string | undefined;
  /** Whole body, empty where the headers end the request; null when the mode does not show it. */
  readonly body: Uint8Array | null;
  /** True when Envoy sent only the first part of the body (BUFFERED_PARTIAL). */
  readonly bodyTruncated: boolean;
  readonly subset: Subset;
};

/** Ends a reservation. Exactly one call has an effect, further ones are ignored. */
export type Reservation = {
  /** From the choice to the end of the answer, as far as can be told beforehand; absent or null = nothing to go by. */
  readonly expectedAnswerMs?: number | null;
  /** First response byte seen: the prefill part of the load is over. */
  firstByte(): void;
  /** Usage as the engine reported it, where the response body is visible. */
  observe(usage: Usage): void;
  /** `assumed`: nobody saw an end, the time for it has passed. */
  release(outcome: 'completed' | 'cancelled' | 'failed' | 'assumed'): void;
};

export type PickError = {
  readonly kind: 'error';
  readonly status: 400 | 404 | 413 | 429 | 503;
  /** `error.type` of the OpenAI-shaped body. */
  readonly type: string;
  /** `error.code` of the body, or null. */
  readonly code: string | null;
  readonly param: string | null;
  readonly message: string;
  /** `x-warmpath-reason`: lower-case words joined by `_`. */
  readonly reason: string;
  readonly retryAfterSeconds: number | null;
  /** Canonical name of the model asked for, where it is known. */
  readonly model?: string | null;
};

export type Decision =
  | {
      readonly kind: 'routed';
      /** `ip:port` in order of preference, the choice first, then fallbacks. */
      readonly endpoints: readonly string[];
      /** The rank meant, of several behind each of these addresses; absent or null = the engine's own choice. */
      readonly dataParallelRank?: number | null;
      readonly reservation: Reservation;
      /** Canonical name of the model asked for, where it is known. */
      readonly model?: string | null;
    }
  | PickError;

export type EndpointPicker = {
  /** Rejects only on a bug; `signal` aborts when the stream is gone. */
  pick(request: PickRequest, signal: Signal): Promise<Decision>;
};
