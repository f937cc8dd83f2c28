/**
 * Stops asking a server that fails: closed → open after enough failures among the latest answers → half open with one probe.
 * Knows nothing of HTTP; the caller says what a failure is.
 */
import { backoffMs, type Clock } from '../clock.ts';

export type BreakerOptions = {
  /** Latest answers looked at. */
  readonly window: number;
  /** Failures among them that open it, provided they are at least half. */
  readonly failures: number;
  /** Pause before the first probe, doubled after every failed one up to the maximum. */
  readonly openBaseMs: number;
  readonly openMaxMs: number;
};

export type BreakerState = 'closed' | 'open' | 'half_open';

/** How a call ended: `neutral` says nothing about the server's health. Only the first ending counts. */
export type BreakerCall = { end(outcome: 'success' | 'failure' | 'neutral'): void };

export type CircuitBreaker = {
  /** Whether `enter` would let a call pass now. */
  readonly passable: boolean;
  /** Begins a call, null while open; half open lets one call pass, and nobody else until that one ended. */
  enter(): BreakerCall | null;
};

export function createCircuitBreaker(
  deps: {
    readonly clock: Clock;
    readonly random: () => number;
    /** Changes only; `pauseMs` until the next probe when open. */
    readonly onState: (state: BreakerState, pauseMs: number) => void;
  },
  options: BreakerOptions,
): CircuitBreaker {
  const latest = new Uint8Array(options.window);
  let next = 0;
  let seen = 0;
  let failed = 0;
  let state: BreakerState = 'closed';
  let attempt = 0;
  let openUntilMs = 0;

  function note(failure: 0 | 1): void {
    failed += failure - latest[next]!;
    latest[next] = failure;
    next = (next + 1) % options.window;
    seen = Math.min(seen + 1, options.window);
  }

  function open(): void {
    const pauseMs = backoffMs(attempt++, options.openBaseMs, options.openMaxMs, deps.random);
    openUntilMs = deps.clock.nowMs() + pauseMs;
    state = 'open';
    deps.onState('open', pauseMs);
  }

  function close(): void {
    latest.fill(0);
    next = seen = failed = attempt = 0;
    state = 'closed';
    deps.onState('closed', 0);
  }

  function endProbe(outcome: 'success' | 'failure' | 'neutral'): void {
    if (outcome === 'success') return close();
    if (outcome === 'failure') return open();
    // Nothing learnt: the next call may probe at once.
    state = 'open';
  }

  function endCall(outcome: 'success' | 'failure' | 'neutral'): void {
    // Answers to calls from before it opened prove nothing about now.
    if (outcome === 'neutral' || state !== 'closed') return;
    note(outcome === 'failure' ? 1 : 0);
    if (failed >= options.failures && failed * 2 >= seen) open();
  }

  const passable = (): boolean => state === 'closed' || (state === 'open' && deps.clock.nowMs() >= openUntilMs);

  return {
    get passable() {
      return passable();
    },
    enter() {
      if (!passable()) return null;
      const isProbe = state === 'open';
      if (isProbe) {
        state = 'half_open';
        deps.onState('half_open', 0);
      }
      let ended = false;
      return {
        end(outcome) {
          if (ended) return;
          ended = true;
          if (isProbe) endProbe(outcome);
          else endCall(outcome);
        },
      };
    },
  };
}
