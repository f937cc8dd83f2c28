/**
 * One POST of JSON over a pool of kept-alive connections, with a limit on its time and on the size of its answer. Never
 * rejects, follows no redirect, repeats nothing. Knows nothing of tokens.
 */
import type { Dispatcher } from 'undici';
import type { Clock, Timer } from '../clock.ts';
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
  limits: PostLimits,
): Promise<HttpAnswer> {
  return new Promise((resolve) => {
    const call = new PostCall(clock, limits, resolve);
    if (call.isSettled) return;
    try {
      dispatcher.dispatch({ path, method: 'POST', headers, body, headersTimeout: 0, bodyTimeout: 0 }, call);
    } catch (error) {
      call.settle({ kind: 'failed', message: errorText(error) });
    }
  });
}

/** A class, as many calls wait for their answers at a time: one object instead of a function for each of its events. */
class PostCall implements Dispatcher.DispatchHandler {
  readonly #limits: PostLimits;
  readonly #resolve: (answer: HttpAnswer) => void;
  readonly #timer: Timer;
  isSettled = false;
  #request: Dispatcher.DispatchController | null = null;
  #status = 0;
  #nBytes = 0;
  #chunks: Buffer[] = [];

  constructor(clock: Clock, limits: PostLimits, resolve: (answer: HttpAnswer) => void) {
    this.#limits = limits;
    this.#resolve = resolve;
    this.#timer = clock.after(limits.timeoutMs, () => this.#giveUp({ kind: 'timeout' }));
    if (limits.signal?.aborted === true) this.settle({ kind: 'given_up' });
    else limits.signal?.addEventListener('abort', this);
  }

  /** The signal aborted. */
  handleEvent(): void {
    this.#giveUp({ kind: 'given_up' });
  }

  settle(answer: HttpAnswer): void {
    if (this.isSettled) return;
    this.isSettled = true;
    this.#timer.cancel();
    this.#limits.signal?.removeEventListener('abort', this);
    this.#chunks = [];
    this.#resolve(answer);
  }

  #giveUp(answer: HttpAnswer): void {
    this.settle(answer);
    // Without a connection yet there is nothing to abort; `onRequestStart` does it then.
    this.#request?.abort(new WarmpathError('tokenizer_failed', `call given up: ${answer.kind}`));
  }

  #tooLarge(n: number | string): void {
    this.#giveUp({ kind: 'failed', message: `answer too large: ${n} bytes, limit ${this.#limits.responseMaxBytes}` });
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#request = controller;
    if (this.isSettled) controller.abort(new WarmpathError('tokenizer_failed', 'call given up before it was sent'));
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: Readonly<Record<string, string | string[] | undefined>>,
  ): void {
    this.#status = status;
    const length = headers['content-length'];
    if (typeof length === 'string' && Number(length) > this.#limits.responseMaxBytes) this.#tooLarge(length);
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    if (this.isSettled) return;
    this.#nBytes += chunk.length;
    if (this.#nBytes > this.#limits.responseMaxBytes) return this.#tooLarge(this.#nBytes);
    this.#chunks.push(chunk);
  }

  onResponseEnd(): void {
    const chunks = this.#chunks;
    this.settle({
      kind: 'answer',
      status: this.#status,
      body: chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks),
    });
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.settle({ kind: 'failed', message: errorText(error) });
  }
}
