/** Of an AbortSignal what one request needs, which is little: a whole one, made per request, costs microseconds. */

/** Any AbortSignal is one. */
export type Signal = {
  readonly aborted: boolean;
  addEventListener(type: 'abort', listener: () => void): void;
  removeEventListener(type: 'abort', listener: () => void): void;
};

/** One listener at a time. */
export class LightSignal implements Signal {
  aborted = false;
  #listener: (() => void) | null = null;

  /** Throws what the listener throws. */
  abort(): void {
    if (this.aborted) return;
    this.aborted = true;
    this.#listener?.();
  }

  addEventListener(_type: 'abort', listener: () => void): void {
    if (this.#listener !== null) throw new Error('a light signal has one listener, got another one');
    this.#listener = listener;
  }

  removeEventListener(_type: 'abort', listener: () => void): void {
    if (this.#listener === listener) this.#listener = null;
  }
}
