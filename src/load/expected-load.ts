/**
 * Load as a choice sees it: the own reservations, which are exact and at once, and on top what the engine has beyond them
 * by its own word: requests of other routers, or of clients that come without one. The older a reading, the less of that
 * is believed; without one, or when nothing was read for long, the own reservations stand alone.
 *
 * What others send between two readings nobody sees. It is expected where most of theirs went of late, as much as the own
 * requests around this moment come to: routers that avoid each other's endpoints by that end up with endpoints of their
 * own, without a word exchanged.
 */
import type { Clock } from '../clock.ts';
import type { Endpoint, EndpointSlot } from '../endpoints/endpoint.ts';
import type { InFlight, Load } from './in-flight.ts';
import type { EngineReading } from './metrics-page.ts';

export type ExpectedLoad = {
  of(endpoint: Pick<Endpoint, 'slot'>): Load;
  /** Requests of everybody ÷ own ones, at least 1. */
  allPerOwn(): number;
  /** A page is being asked for: what is in flight now may be in it though it ends before the answer. */
  asked(slot: EndpointSlot): void;
  read(slot: EndpointSlot, reading: Pick<EngineReading, 'running' | 'waiting'>): void;
  forget(slot: EndpointSlot): void;
};

type Foreign = {
  ownRequests: number;
  ownWaiting: number;
  requests: number;
  readMs: number;
  /** Milliseconds of computing the engine had before it when it was read, and all that was ever sent there by then. */
  pendingMs: number;
  sentMs: number;
  /** Whether it was at a prompt of somebody else then, before the own ones there. */
  isAhead: boolean;
  /** Requests of others and own ones, on average over the last readings. */
  meanRequests: number;
  meanOwn: number;
};

type Pending = Pick<Foreign, 'pendingMs' | 'isAhead'>;

/** Before the first reading. */
const NOTHING = {
  requests: 0,
  readMs: -Infinity,
  pendingMs: 0,
  sentMs: 0,
  isAhead: false,
  meanRequests: 0,
  meanOwn: 0,
} as const;

/** Readings up to so many intervals old count in full; from there what they say fades. */
const FRESH_INTERVALS = 3;
/** A prompt of somebody else, where nothing was sent yet to tell how long prompts are. */
const ASSUMED_PROMPT_TOKENS = 1_000;
/** What a reading said weighs 1/e in the means after that time, however often engines are read. */
const READINGS_MEMORY_MS = 120_000;
/** Part of requests that may be others' by the errors of readings: below it one is alone. */
const ALONE_PART = 0.05;
/** Below it a mean of requests is what rounding left of nothing. */
const LEAST_MEAN = 1e-6;

export function createExpectedLoad(
  {
    inFlight,
    clock,
  }: {
    readonly inFlight: Pick<InFlight, 'load' | 'queue' | 'sentMs' | 'keepCompany' | 'typical'>;
    readonly clock: Clock;
  },
  { intervalMs }: { readonly intervalMs: number },
): ExpectedLoad {
  const bySlot = new Map<EndpointSlot, Foreign>();
  /** Sums of the means over all slots. */
  let meanRequests = 0;
  let meanOwn = 0;
  /** When a reading last found that something was sent. */
  let sendingMs = -Infinity;

  /** Requests of others ÷ own ones. */
  function othersRatio(): number {
    const ratio = meanOwn > LEAST_MEAN ? meanRequests / meanOwn : 0;
    return ratio > ALONE_PART ? ratio : 0;
  }

  /** Of a router that sends nothing, as one that stands by, others' requests say nothing about what comes beside own ones. */
  function learn(foreign: Foreign, own: number, sinceMs: number): void {
    const isSending = clock.nowMs() - sendingMs < READINGS_MEMORY_MS;
    const gain = isSending ? 1 - Math.exp(-sinceMs / READINGS_MEMORY_MS) : 1;
    const more = gain * ((isSending ? foreign.requests : 0) - foreign.meanRequests);
    const moreOwn = gain * ((isSending ? own : 0) - foreign.meanOwn);
    foreign.meanRequests += more;
    foreign.meanOwn += moreOwn;
    meanRequests += more;
    meanOwn += moreOwn;
    inFlight.keepCompany(othersRatio() > 0 ? 'with others' : 'alone');
  }

  function promptMs({ prefillSetupMs, prefillMsPerToken }: Load): number {
    return prefillSetupMs + (inFlight.typical().promptTokens || ASSUMED_PROMPT_TOKENS) * prefillMsPerToken;
  }

  /**
   * What an engine has yet to compute. It takes prompts in order, one at a time, and counts the one it is at as running:
   * while any waits it is at one, and when that is not the first of the own ones, it is somebody else's.
   */
  function pending(slot: EndpointSlot, own: Load, ownPrompts: number, waiting: number): Pending {
    const { tokens, isBegun } = inFlight.queue(slot);
    const atOwn = isBegun || waiting < ownPrompts;
    const isAhead = !atOwn && waiting > 0;
    const others = Math.max(0, waiting - (atOwn ? ownPrompts - 1 : ownPrompts));
    const underWayTokens = isAhead ? inFlight.typical().residualTokens : 0;
    return { pendingMs: (tokens + underWayTokens) * own.prefillMsPerToken + others * promptMs(own), isAhead };
  }

  /** As long as the first of the own prompts is not begun, what was before it still is: at any moment as much of it is left. */
  function behindMs(slot: EndpointSlot, own: Load): number {
    const { prompts, isBegun, tokens } = inFlight.queue(slot);
    return prompts > 0 && !isBegun ? (tokens + inFlight.typical().residualTokens) * own.prefillMsPerToken : 0;
  }

  return {
    allPerOwn: () => 1 + othersRatio(),
    of({ slot }) {
      const own = inFlight.load(slot);
      const ratio = othersRatio();
      const foreign = bySlot.get(slot);
      if (ratio === 0 && (foreign === undefined || foreign.requests === 0)) return own;
      let { requests, waitMs, unseenMs, unseenPrompts } = own;
      if (foreign !== undefined) {
        const ageMs = clock.nowMs() - foreign.readMs;
        const belief = Math.min(1, Math.exp(FRESH_INTERVALS - ageMs / intervalMs));
        requests += belief * foreign.requests;
        const sinceMs = inFlight.sentMs(slot) - foreign.sentMs - ageMs;
        if (foreign.requests > 0) {
          const leastMs = foreign.isAhead ? behindMs(slot, own) : 0;
          waitMs = Math.max(waitMs, belief * Math.max(leastMs, foreign.pendingMs + sinceMs));
        }
        const share = meanRequests > 0 ? foreign.meanRequests / meanRequests : 0;
        unseenMs += belief * ratio * inFlight.typical().burstMs * share;
        unseenPrompts += unseenMs / promptMs(own);
      }
      const all = 1 + ratio;
      const arrivalsPerSecond = own.arrivalsPerSecond * all;
      const utilization = own.utilization * all;
      const savableUtilization = own.savableUtilization * all;
      const traffic = { arrivalsPerSecond, utilization, savableUtilization };
      return { ...own, requests, waitMs, unseenMs, unseenPrompts, ...traffic };
    },
    asked(slot) {
      const { requests, waiting } = inFlight.load(slot);
      const foreign = bySlot.get(slot);
      if (foreign === undefined) {
        bySlot.set(slot, { ownRequests: requests, ownWaiting: waiting, ...NOTHING });
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
      foreign.requests = Math.max(0, (running ?? 0) + (waiting ?? 0) - ownRequests);
      const nowMs = clock.nowMs();
      const sinceMs = Number.isFinite(foreign.readMs) ? nowMs - foreign.readMs : intervalMs;
      foreign.readMs = nowMs;
      const sentMs = inFlight.sentMs(slot);
      if (sentMs > foreign.sentMs || ownRequests > 0) sendingMs = nowMs;
      foreign.sentMs = sentMs;
      const ownPrompts = Math.max(own.waiting, foreign.ownWaiting);
      Object.assign(foreign, pending(slot, own, ownPrompts, waiting ?? 0));
      learn(foreign, ownRequests, sinceMs);
    },
    forget(slot) {
      const foreign = bySlot.get(slot);
      if (foreign === undefined) return;
      meanRequests -= foreign.meanRequests;
      meanOwn -= foreign.meanOwn;
      bySlot.delete(slot);
    },
  };
}
