/** OpenAI's error shape: what clients' SDKs parse. */

export type OpenAiError = {
  readonly message: string;
  readonly type: string;
  readonly code: string | null;
  readonly param: string | null;
};

/** `{"error":{"message","type","code","param"}}` as UTF-8. */
export function errorBody({ message, type, code, param }: OpenAiError): Buffer {
  return Buffer.from(JSON.stringify({ error: { message, type, code, param } }));
}
