/** Why a request gets no endpoint, in OpenAI's words. */
import type { PickError } from '../extproc/picker.ts';

export function badRequest(message: string, param: string | null): PickError {
  return {
    kind: 'error',
    status: 400,
    type: 'invalid_request_error',
    code: null,
    param,
    message,
    reason: 'bad_request',
    retryAfterSeconds: null,
  };
}

export function unknownModel(model: string): PickError {
  return {
    kind: 'error',
    status: 404,
    type: 'invalid_request_error',
    code: 'model_not_found',
    param: 'model',
    message: `The model ${JSON.stringify(model.slice(0, 200))} does not exist.`,
    reason: 'unknown_model',
    retryAfterSeconds: null,
  };
}

export const CLIENT_GONE: PickError = {
  kind: 'error',
  status: 503,
  type: 'service_unavailable_error',
  code: null,
  param: null,
  message: 'The request was given up before it was decided.',
  reason: 'client_gone',
  retryAfterSeconds: null,
};

export function noEndpoint(reason: string, message: string, model: string | null): PickError {
  return {
    kind: 'error',
    status: 503,
    type: 'service_unavailable_error',
    code: 'no_endpoint',
    param: null,
    message,
    reason,
    model,
    retryAfterSeconds: 1,
  };
}
