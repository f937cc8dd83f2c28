/**
 * One POST of JSON over a pool of kept-alive connections, with a limit on its time and on the size of its answer. Never
 * rejects, follows no redirect, repeats nothing. Knows nothing of tokens.
 */
import type { Dispatcher } from 'undici';
import type { Clock } from '../clock.ts';
import { WarmpathError, errorText } from '../errors.ts';

export type HttpAnswer =
  | { readonly kind: 'answer'; readonly status: number; readonly body: Buffer }
  | { readonly kind: 'timeout' }
  /** The caller's signal aborted. */
  | { readonly kind: 'given_up' }
  /** No connection, a broken one, not HTTP, or more bytes than allowed. */
  | { readonly kind: 'failed'; readonly message: string };

export type PostLimits = {
  readonly timeoutMs: number;
  readonly responseMaxBytes: number;
  readonly signal?: AbortSignal | null;
};

/** @param dispatcher of the origin; its dispatch method is used directly, as a stream per answer would cost more than the answer */
export function post(
  { dispatcher, clock }: { readonly dispatcher: Pick<Dispatcher, 'dispatch'>; readonly clock: Clock },
  path: string,
  headers: Readonly<Record<string, string>>,
  body: Uint8Array,
  { timeoutMs, responseMaxBytes, signal }: PostLimits,
): Promise<HttpAnswer> {
  return new Promise((resolve) => {
    let settled = false;
    let request: Dispatcher.DispatchController | null = null;
    let status = 0;
    let nBytes = 0;
    let chunks: Buffer[] = [];

    const settle = (answer: HttpAnswer): void => {
      if (settled) return;
      settled = true;
      timer.cancel();
      signal?.removeEventListener('abort', onAbort);
      chunks = [];
      resolve(answer);
    };
    const giveUp = (answer: HttpAnswer): void => {
      settle(answer);
      // Without a connection yet there is nothing to abort; `onRequestStart` does it then.
      request?.abort(new WarmpathError('tokenizer_failed', `call given up: ${answer.kind}`));
    };
    const tooLarge = (n: number | string): void =>
      giveUp({ kind: 'failed', message: `answer too large: ${n} bytes, limit ${responseMaxBytes}` });
    const onAbort = (): void => giveUp({ kind: 'given_up' });
    const timer = clock.after(timeoutMs, () => giveUp({ kind: 'timeout' }));

    const handler: Dispatcher.DispatchHandler = {
      onRequestStart(controller) {
        request = controller;
        if (settled) controller.abort(new WarmpathError('tokenizer_failed', 'call given up before it was sent'));
      },
      onResponseStart(_controller, statusCode, responseHeaders) {
        status = statusCode;
        const length = responseHeaders['content-length'];
        if (typeof length === 'string' && Number(length) > responseMaxBytes) tooLarge(length);
      },
      onResponseData(_controller, chunk) {
        if (settled) return;
        nBytes += chunk.length;
        if (nBytes > responseMaxBytes) return tooLarge(nBytes);
        chunks.push(chunk);
      },
      onResponseEnd() {
        settle({ kind: 'answer', status, body: chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks) });
      },
      onResponseError(_controller, error) {
        settle({ kind: 'failed', message: errorText(error) });
      },
    };
    if (signal?.aborted === true) return settle({ kind: 'given_up' });
    signal?.addEventListener('abort', onAbort, { once: true });
    try {
      dispatcher.dispatch({ path, method: 'POST', headers, body, headersTimeout: 0, bodyTimeout: 0 }, handler);
    } catch (error) {
      settle({ kind: 'failed', message: errorText(error) });
    }
  });
}
