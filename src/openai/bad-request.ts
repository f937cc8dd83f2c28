/** What makes a request impossible to understand. */

/** Something the client did wrong: becomes a 400 with an OpenAI-shaped body. */
export type BadRequest = {
  readonly kind: 'bad_request';
  readonly message: string;
  readonly param: string | null;
};

/** @param message without its full stop; what, got, expected, and the place where it is known */
export function bad(message: string, param: string | null): BadRequest {
  return { kind: 'bad_request', message: `${message}.`, param };
}
