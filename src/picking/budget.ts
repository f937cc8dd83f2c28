/** How long a request waits for its tokens: until a time is over, or its client is gone. */
import type { Clock, Timer } from '../clock.ts';
import { LightSignal, type Signal } from '../light-signal.ts';

/** Aborts when the waiting is over. `end` must be called, whatever came first. */
export class Budget extends LightSignal {
  readonly #client: Signal;
  readonly #timer: Timer;
  readonly #onOver = (): void => this.abort();

  /** @param client aborts when it is gone */
  constructor(clock: Clock, budgetMs: number, client: Signal) {
    super();
    this.#client = client;
    this.#timer = clock.after(budgetMs, this.#onOver);
    if (client.aborted) this.abort();
    else client.addEventListener('abort', this.#onOver);
  }

  end(): void {
    this.#timer.cancel();
    this.#client.removeEventListener('abort', this.#onOver);
  }
}
