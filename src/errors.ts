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

/**
 * The text of a bug met while a request is served, for a log field. Parsers quote what they read, which may be a prompt: of
 * their errors only the place is told.
 */
export function faultText(error: unknown): string {
  const text = errorText(error);
  if (!(error instanceof Error) || error.name !== 'SyntaxError') return text;
  const stack = error.stack ?? '';
  const frames = stack
    .slice(stack.indexOf(text) + text.length)
    .trim()
    .split('\n');
  return `SyntaxError ${frames.find((frame) => !frame.includes('<anonymous>'))?.trim() ?? ''}`.trim();
}

/** The text of anything thrown, for a log field. */
export function errorText(error: unknown): string {
  // By shape: errors of native modules and of other realms are no instances of this realm's Error.
  return typeof error === 'object' && error !== null && 'message' in error ? String(error.message) : String(error);
}
