/** Failures of the world, as one type with a closed set of codes. Expected outcomes are values, bugs are asserts. */

export type ErrorCode =
  | 'config_invalid'
  | 'usage_invalid'
  | 'address_in_use'
  | 'io_failed'
  | 'envoy_unavailable'
  | 'tokenizer_failed'
  | 'kv_payload_invalid'
  | 'kv_stream_failed'
  | 'index_full'
  | 'worker_died'
  | 'peer_failed';

/** @param message what happened, what was got, what was expected: one sentence without a full stop. */
export class WarmpathError extends Error {
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'WarmpathError';
    this.code = code;
  }
}

/** The text of anything thrown, for a log field. */
export function errorText(error: unknown): string {
  // By shape: errors of native modules and of other realms are no instances of this realm's Error.
  return typeof error === 'object' && error !== null && 'message' in error ? String(error.message) : String(error);
}
