/**
 * Own load per endpoint slot, made atomically at the choice and released exactly once. Synchronous and exact: the fast
 * signal beside the engines' slower metrics.
 *
 * Prefill is a backlog that drains: a request adds its uncached tokens, the engine works them off at its prefill rate.
 * Where the first response byte is visible the rest of that request's share goes at once; where it is not (the cheapest
 * Envoy set-up shows only the end), time drains it. Deliberately not here: what an engine says of itself.
 */
import type { Clock } from '../clock.ts';
import { MAX_ENDPOINT_SLOTS } from '../endpoints/endpoint.ts';

export type Load = {
  /** Requests routed there whose end has not been seen. */
  readonly requests: number;
  /** Uncached prompt tokens of those requests. */
  readonly tokens: number;
  /** Expected wait before a new request's prefill starts, milliseconds. */
  readonly waitMs: number;
};

export type LoadReservation = {
  firstByte(): void;
  /** True for the first call, false for every further one. */
  release(): boolean;
};

export type InFlight = {
  load(slot: number): Load;
  reserve(slot: number, uncachedTokens: number): LoadReservation;
  /** Requests in flight over all slots. */
  total(): number;
};

/** Prefill speed assumed for every engine, tokens per second: one mid-size GPU on an 8-billion-parameter model. */
export const ASSUMED_PREFILL_TOKENS_PER_SECOND = 8_000;

export function createInFlight(
  clock: Clock,
  prefillTokensPerSecond: number = ASSUMED_PREFILL_TOKENS_PER_SECOND,
): InFlight {
  const requests = new Int32Array(MAX_ENDPOINT_SLOTS);
  const tokens = new Float64Array(MAX_ENDPOINT_SLOTS);
  /** Time at which the slot's prefill backlog is worked off. */
  const busyUntilMs = new Float64Array(MAX_ENDPOINT_SLOTS);
  let nTotal = 0;

  const waitMs = (slot: number): number => Math.max(0, (busyUntilMs[slot] ?? 0) - clock.nowMs());

  return {
    load: (slot) => ({ requests: requests[slot] ?? 0, tokens: tokens[slot] ?? 0, waitMs: waitMs(slot) }),
    reserve(slot, uncachedTokens) {
      const startMs = clock.nowMs() + waitMs(slot);
      const shareMs = (uncachedTokens / prefillTokensPerSecond) * 1000;
      const endMs = startMs + shareMs;
      busyUntilMs[slot] = endMs;
      requests[slot]! += 1;
      tokens[slot]! += uncachedTokens;
      nTotal += 1;
      let prefilling = true;
      let held = true;
      /** Gives back what time has not drained of this request's own share. */
      const finishPrefill = (): void => {
        if (!prefilling) return;
        prefilling = false;
        const undrainedMs = Math.min(shareMs, Math.max(0, endMs - clock.nowMs()));
        busyUntilMs[slot] = Math.max(clock.nowMs(), busyUntilMs[slot]! - undrainedMs);
      };
      return {
        firstByte: finishPrefill,
        release() {
          if (!held) return false;
          held = false;
          finishPrefill();
          requests[slot]! -= 1;
          tokens[slot]! -= uncachedTokens;
          nTotal -= 1;
          return true;
        },
      };
    },
    total: () => nTotal,
  };
}
