/** Fields of a JSON body, checked as they are read, and what is said of wrong ones. */

export type Fields = Readonly<Record<string, unknown>>;

export type ApiError = {
  readonly kind: 'error';
  readonly status: 400 | 404;
  readonly type: 'BadRequestError' | 'NotFoundError';
  readonly message: string;
  readonly param: string | null;
};

/** Carries a rejection out of nested readers; `guarded` makes an error of it. */
export class Rejection extends Error {
  readonly status: 400 | 404;
  readonly param: string | null;
  constructor(status: 400 | 404, message: string, param: string | null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export function guarded<T>(read: () => T): T | ApiError {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof Rejection)) throw error;
    const { status, message, param } = error;
    return { kind: 'error', status, type: status === 404 ? 'NotFoundError' : 'BadRequestError', message, param };
  }
}

export function isApiError(value: object): value is ApiError {
  return 'kind' in value && value.kind === 'error';
}

export function isPresent(value: unknown): boolean {
  return value !== undefined && value !== null;
}

export function object(value: unknown, param: string | null = null): Fields {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Fields;
  throw new Rejection(400, `${param ?? 'The body'} must be an object`, param);
}

/** @returns the list, empty where there is none */
export function list(value: unknown, param: string): readonly unknown[] {
  if (!isPresent(value)) return [];
  if (Array.isArray(value)) return value;
  throw new Rejection(400, `${param} must be a list`, param);
}

export function optionalString(fields: Fields, name: string): string | null {
  const value = fields[name];
  if (!isPresent(value)) return null;
  if (typeof value !== 'string') throw new Rejection(400, `${name} must be a string`, name);
  return value === '' ? null : value;
}

export function optionalCount(fields: Fields, name: string, least: number): number | null {
  const value = fields[name];
  if (!isPresent(value)) return null;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least) {
    throw new Rejection(400, `${name} must be an integer of at least ${least}, got ${JSON.stringify(value)}`, name);
  }
  return value;
}
