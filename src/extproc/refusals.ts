/** Refusals that are this room's own, and the word every refusal is counted under. Those of the picker are the picker's. */
import type { PickError } from './picker.ts';

/** Words of `warmpath_requests_total{outcome}` a refusal can have. */
export type RefusalOutcome = 'shed' | 'no_endpoint' | 'bad_request' | 'unknown_model' | 'too_large' | 'error';

/** Faults of ours, as `x-warmpath-reason` says them. */
export type FaultReason = 'picker_failed' | 'picker_timeout' | 'internal_fault';

export function bodyTooLarge(limitBytes: number): PickError {
  return invalidRequest(413, `request body too large: limit ${limitBytes} bytes`, 'body_too_large');
}

export function headersTooLarge(
  got: { readonly count: number; readonly bytes: number },
  limit: { readonly maxHeaders: number; readonly maxHeaderBytes: number },
): PickError {
  return invalidRequest(
    400,
    `request headers too large: ${got.count} headers with ${got.bytes} bytes, ` +
      `limit ${limit.maxHeaders} headers with ${limit.maxHeaderBytes} bytes`,
    'headers_too_large',
  );
}

/** What a client sees of a fault when the failure mode is `closed`: that it may try again, and no more. */
export function unavailable(reason: FaultReason): PickError {
  return tryAgain('no endpoint could be chosen in time, try again', reason);
}

export function tooManyStreams(): PickError {
  return tryAgain('too many requests at once, try again', 'too_many_streams');
}

export function tooManyBodies(): PickError {
  return tryAgain('too many large requests at once, try again', 'too_many_body_bytes');
}

export function refusalOutcome(error: PickError): RefusalOutcome {
  if (OWN_FAULTS.has(error.reason)) return 'error';
  return OUTCOMES[error.status];
}

const OWN_FAULTS: ReadonlySet<string> = new Set<FaultReason | 'too_many_streams' | 'too_many_body_bytes'>([
  'picker_failed',
  'picker_timeout',
  'internal_fault',
  'too_many_streams',
  'too_many_body_bytes',
]);

const OUTCOMES: Readonly<Record<PickError['status'], RefusalOutcome>> = {
  400: 'bad_request',
  404: 'unknown_model',
  413: 'too_large',
  429: 'shed',
  503: 'no_endpoint',
};

function invalidRequest(status: 400 | 413, message: string, reason: string): PickError {
  const type = 'invalid_request_error';
  return { kind: 'error', status, type, code: null, param: null, message, reason, retryAfterSeconds: null };
}

function tryAgain(message: string, reason: string): PickError {
  const type = 'service_unavailable_error';
  return { kind: 'error', status: 503, type, code: null, param: null, message, reason, retryAfterSeconds: 1 };
}
