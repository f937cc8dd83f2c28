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
  waiting: number;
  readMs: number;
  /** Requests of others and own ones, on average over the last readings. */
  meanRequests: number;
  meanOwn: number;
};

/** Readings up to so many intervals old count in full; from there what they say fades. */
const FRESH_INTERVALS = 3;
/** A prompt of somebody else, where nothing was sent yet to tell how long prompts are. */
const ASSUMED_PROMPT_TOKENS = 1_000;
/** Weight of a reading in the means. */
const READING_GAIN = 0.03;
/** Part of requests that may be others' by the errors of readings: below it one is alone. */
const ALONE_PART = 0.05;

export function createExpectedLoad(
  { inFlight, clock }: { readonly inFlight: Pick<InFlight, 'load' | 'keepCompany' | 'typical'>; readonly clock: Clock },
  { intervalMs }: { readonly intervalMs: number },
): ExpectedLoad {
  const bySlot = new Map<EndpointSlot, Foreign>();
  /** Sums of the means over all slots. */
  let meanRequests = 0;
  let meanOwn = 0;

  /** Requests of others ÷ own ones. */
  function othersRatio(): number {
    const ratio = meanOwn > 0 ? meanRequests / meanOwn : 0;
    return ratio > ALONE_PART ? ratio : 0;
  }

  function learn(foreign: Foreign, own: number): void {
    const more = READING_GAIN * (foreign.requests - foreign.meanRequests);
    const moreOwn = READING_GAIN * (own - foreign.meanOwn);
    foreign.meanRequests += more;
    foreign.meanOwn += moreOwn;
    meanRequests += more;
    meanOwn += moreOwn;
    inFlight.keepCompany(othersRatio() > 0 ? 'with others' : 'alone');
  }

  return {
    allPerOwn: () => 1 + othersRatio(),
    of({ slot }) {
      const own = inFlight.load(slot);
      const ratio = othersRatio();
      const foreign = bySlot.get(slot);
      if (ratio === 0 && (foreign === undefined || foreign.requests === 0)) return own;
      const { promptTokens, burstMs } = inFlight.typical();
      let { requests, waitMs, unseenMs } = own;
      if (foreign !== undefined) {
        const ageMs = clock.nowMs() - foreign.readMs;
        const belief = Math.min(1, Math.exp(FRESH_INTERVALS - ageMs / intervalMs));
        const promptMs = own.prefillSetupMs + (promptTokens || ASSUMED_PROMPT_TOKENS) * own.prefillMsPerToken;
        requests += belief * foreign.requests;
        // Their prompts are computed meanwhile, too.
        waitMs += belief * Math.max(0, foreign.waiting * promptMs - ageMs);
        if (meanRequests > 0) unseenMs += belief * ratio * burstMs * (foreign.meanRequests / meanRequests);
      }
      const all = 1 + ratio;
      const arrivalsPerSecond = own.arrivalsPerSecond * all;
      return { ...own, requests, waitMs, unseenMs, arrivalsPerSecond, utilization: own.utilization * all };
    },
    asked(slot) {
      const { requests, waiting } = inFlight.load(slot);
      const foreign = bySlot.get(slot);
      if (foreign === undefined) {
        const nothing = { requests: 0, waiting: 0, readMs: -Infinity, meanRequests: 0, meanOwn: 0 };
        bySlot.set(slot, { ownRequests: requests, ownWaiting: waiting, ...nothing });
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
      learn(foreign, ownRequests);
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
