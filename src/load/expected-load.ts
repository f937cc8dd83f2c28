/**
 * Load as a choice sees it: the own reservations, which are exact and at once, and on top what the engine has beyond them
 * by its own word: requests of other routers, or of clients that come without one. The older a reading, the less of that
 * is believed; without one, or when nothing was read for long, the own reservations stand alone.
 */
import type { Clock } from '../clock.ts';
import type { Endpoint, EndpointSlot } from '../endpoints/endpoint.ts';
import type { InFlight, Load } from './in-flight.ts';
import type { EngineReading } from './metrics-page.ts';

export type ExpectedLoad = {
  of(endpoint: Pick<Endpoint, 'slot'>): Load;
  /** A page is being asked for: what is in flight now may be in it though it ends before the answer. */
  asked(slot: EndpointSlot): void;
  read(slot: EndpointSlot, reading: Pick<EngineReading, 'running' | 'waiting'>): void;
  forget(slot: EndpointSlot): void;
};

type Foreign = { ownRequests: number; ownWaiting: number; requests: number; waiting: number; readMs: number };

/** Readings up to so many intervals old count in full; from there what they say fades. */
const FRESH_INTERVALS = 3;
/** A prompt of somebody else, where nothing was sent there yet to tell how long prompts are. */
const ASSUMED_PROMPT_TOKENS = 1_000;

export function createExpectedLoad(
  { inFlight, clock }: { readonly inFlight: Pick<InFlight, 'load'>; readonly clock: Clock },
  { intervalMs }: { readonly intervalMs: number },
): ExpectedLoad {
  const bySlot = new Map<EndpointSlot, Foreign>();

  return {
    of({ slot }) {
      const own = inFlight.load(slot);
      const foreign = bySlot.get(slot);
      if (foreign === undefined || foreign.requests === 0) return own;
      const ageMs = clock.nowMs() - foreign.readMs;
      const belief = Math.min(1, Math.exp(FRESH_INTERVALS - ageMs / intervalMs));
      const promptMs =
        own.arrivalsPerSecond > 0 && own.utilization > 0
          ? (1000 * own.utilization) / own.arrivalsPerSecond
          : own.prefillSetupMs + ASSUMED_PROMPT_TOKENS * own.prefillMsPerToken;
      // Their prompts are computed meanwhile, too.
      const waitMs = Math.max(0, foreign.waiting * promptMs - ageMs);
      return { ...own, requests: own.requests + belief * foreign.requests, waitMs: own.waitMs + belief * waitMs };
    },
    asked(slot) {
      const { requests, waiting } = inFlight.load(slot);
      const foreign = bySlot.get(slot);
      if (foreign === undefined) {
        bySlot.set(slot, { ownRequests: requests, ownWaiting: waiting, requests: 0, waiting: 0, readMs: -Infinity });
      } else {
        foreign.ownRequests = requests;
        foreign.ownWaiting = waiting;
      }
    },
    read(slot, { running, waiting }) {
      const own = inFlight.load(slot);
      const foreign = bySlot.get(slot);
      if (foreign === undefined) return;
      const ownRequests = Math.max(own.requests, foreign.ownRequests);
      const ownWaiting = Math.max(own.waiting, foreign.ownWaiting);
      foreign.requests = Math.max(0, (running ?? 0) + (waiting ?? 0) - ownRequests);
      // An engine counts as running what it computes the prompt of: never more wait than it says.
      foreign.waiting = Math.min(foreign.requests, Math.max(0, (waiting ?? 0) - ownWaiting));
      foreign.readMs = clock.nowMs();
    },
    forget: (slot) => void bySlot.delete(slot),
  };
}
