/**
 * Replays a workload over simulated engines under one policy, in virtual time and without network. Engines run on their
 * own between arrivals; what became visible by then is told to the policy in the order of time, then it chooses.
 * Deterministic: equal input gives equal output.
 */
import { SimulatedEngine, type EngineNotice, type EngineRequest } from './engine.ts';
import { createLeastRequest } from './policies/simple-policies.ts';
import {
  METRICS_INTERVAL_MS,
  type CreatePolicy,
  type EngineProbe,
  type EventBatch,
  type Policy,
} from './policies/policy.ts';
import { createRandom } from './random.ts';
import { engineBlocks, type TimingModel } from './timing.ts';
import { createVirtualClock, type VirtualClock } from './virtual-clock.ts';
import type { Workload } from './workload.ts';

export type Crash = { readonly engine: number; readonly atMs: number; readonly restartAtMs: number | null };
export type ScaleOut = { readonly engines: number; readonly atMs: number };
/**
 * The first router dies. The others share its requests: they have followed events and metrics all the time, and know nothing
 * of what was sent by it.
 */
export type RouterDeath = {
  readonly atMs: number;
  /** Until the data plane knows; meanwhile it sends the share of the first one where it has sent least itself. */
  readonly unnoticedMs: number;
  /** It is back, having learnt what engines hold and nothing else; null = never. */
  readonly backAtMs: number | null;
};

export type Scenario = {
  readonly timing: TimingModel;
  /** Speed of every engine at the start: 1 = as the timing model says. */
  readonly engineSpeeds: readonly number[];
  /** Arrival times are divided by it. */
  readonly speed: number;
  readonly cacheBlocks: number;
  readonly eventDelayMs: number;
  /** Part of the event batches that never arrive, 0…1; 1 = engines publish none. */
  readonly eventLoss: number;
  /** Times in milliseconds of the replay. */
  readonly crashes: readonly Crash[];
  readonly scaleOuts: readonly ScaleOut[];
  /** Routers that do not talk to each other. */
  readonly replicas: number;
  /** `all` share the requests in turn; `first` decides while it lives, and the others stand by. */
  readonly deciding: 'all' | 'first';
  /** One after the other. At least two replicas. */
  readonly routerDeaths: readonly RouterDeath[];
  readonly seed: number;
};

export type RequestOutcome = {
  arrivalMs: number;
  promptTokens: number;
  cachedTokens: number;
  /** From arrival; -1 = never. */
  ttftMs: number;
  e2eMs: number;
  /** Engine that answered last. */
  engine: number;
};

export type ReplayOutcome = {
  readonly requests: readonly RequestOutcome[];
  readonly requestsPerEngine: readonly number[];
  readonly busyMsPerEngine: readonly number[];
  readonly computedTokensPerEngine: readonly number[];
  readonly queriedTokens: number;
  readonly cachedTokens: number;
  readonly preemptions: number;
  readonly durationMs: number;
};

type EngineSlot = {
  engine: SimulatedEngine;
  readonly probe: EngineProbe;
  readonly speed: number;
  alive: boolean;
  nRequests: number;
  /** A batch of its events was lost behind the last one that was not. */
  missesEvents: boolean;
};

type Router = { readonly policy: Policy; readonly clock: VirtualClock };
type LateEvent = {
  readonly dueMs: number;
  readonly slot: EngineSlot;
  readonly notice: EngineNotice & { kind: 'blocks' };
  readonly comes: EventBatch['comes'];
};
/** A router reads an engine's metrics. */
type Reading = { dueMs: number; readonly router: Router; readonly slot: EngineSlot };
type Fault = { readonly atMs: number; apply(): void };

export function replay(workload: Workload, createPolicy: CreatePolicy, scenario: Scenario): ReplayOutcome {
  const { timing, speed, seed } = scenario;
  const eventRandom = createRandom(seed + 1);
  let nRouters = 0;
  /** All that live: they follow events and metrics, deciding or not. */
  let routers: Router[] = [];
  const addRouter = (create: CreatePolicy, nowMs: number): Router => {
    const clock = createVirtualClock();
    clock.advanceTo(nowMs);
    const policy = create({
      clock,
      random: createRandom(seed + 1000 + nRouters++),
      blockTokens: timing.blockTokens,
      cacheBlocks: scenario.cacheBlocks,
      events: scenario.eventLoss >= 1 ? 'none' : scenario.eventLoss > 0 ? 'gaps' : 'whole',
    });
    const router = { policy, clock };
    routers.push(router);
    return router;
  };
  const [first, ...others] = Array.from({ length: scenario.replicas }, () => addRouter(createPolicy, 0));
  const decidingWith = (first: Router): Router[] => (scenario.deciding === 'all' ? [first, ...others] : [first]);
  /** They share the requests. */
  let deciders = decidingWith(first!);
  const choosers: Router[] = [];
  const requests: EngineRequest[] = workload.requests.map(({ index, promptTokens, outputTokens, blocks }) => ({
    index,
    promptTokens,
    outputTokens,
    blocks: engineBlocks(blocks, workload.blockTokens, promptTokens, timing),
  }));
  const outcomes: RequestOutcome[] = workload.requests.map(({ arrivalMs, promptTokens }) => ({
    arrivalMs: arrivalMs / speed,
    promptTokens,
    cachedTokens: 0,
    ttftMs: -1,
    e2eMs: -1,
    engine: -1,
  }));
  let fresh: { slot: EngineSlot; notice: EngineNotice }[] = [];
  const late: LateEvent[] = [];
  let lateHead = 0;
  let endMs = 0;

  const startEngine = (slot: () => EngineSlot, engineSpeed: number): SimulatedEngine =>
    new SimulatedEngine({
      timing,
      cacheBlocks: scenario.cacheBlocks,
      speed: engineSpeed,
      notify: (notice) => void fresh.push({ slot: slot(), notice }),
    });

  const slots: EngineSlot[] = [];
  const readingRandom = createRandom(seed + 2);
  /** By time: all have the same interval, so taking the first and putting it last keeps the order. */
  let readings: Reading[] = [];
  const addEngine = (engineSpeed: number, nowMs: number): void => {
    const id = slots.length;
    const slot: EngineSlot = {
      engine: startEngine(() => slot, engineSpeed),
      probe: {
        id,
        address: `10.0.${id >> 8}.${id & 255}:8000`,
        nRunning: () => slot.engine.nRunning,
        nWaiting: () => slot.engine.nWaiting,
        kvUsage: () => slot.engine.cache.usage(),
        secrets: {
          has: (blockId) => slot.engine.cache.has(blockId),
          computedTokens: () => slot.engine.counters.computedPromptTokens,
          prefillMs: (nTokens) => slot.engine.prefillMs(nTokens),
        },
      },
      speed: engineSpeed,
      alive: true,
      nRequests: 0,
      missesEvents: false,
    };
    slots.push(slot);
    for (const router of routers) readFrom(slot, router, nowMs);
    readings.sort((a, b) => a.dueMs - b.dueMs);
  };
  function readFrom(slot: EngineSlot, router: Router, nowMs: number): void {
    if (router.policy.onMetrics === undefined) return;
    readings.push({ dueMs: nowMs + METRICS_INTERVAL_MS * readingRandom(), router, slot });
  }
  for (const engineSpeed of scenario.engineSpeeds) addEngine(engineSpeed, 0);
  let alive = slots.map(({ probe }) => probe);
  const fleetChanged = (): void => {
    alive = slots.filter((slot) => slot.alive).map(({ probe }) => probe);
  };

  function route(request: EngineRequest, nowMs: number): void {
    const router = deciders[request.index % deciders.length]!;
    choosers[request.index] = router;
    const slot = slots[router.policy.choose(request, alive).id]!;
    slot.nRequests += 1;
    outcomes[request.index]!.engine = slot.probe.id;
    slot.engine.submit(request, nowMs);
  }

  function tellEvents({ slot, notice, comes }: Omit<LateEvent, 'dueMs'>): void {
    const batch = { sentMs: notice.timeMs, comes };
    for (const { policy } of routers) policy.onBlocks?.(slot.probe, notice.changes, batch);
  }

  function tell(slot: EngineSlot, notice: Exclude<EngineNotice, { kind: 'blocks' }>): void {
    const { request, timeMs } = notice;
    const outcome = outcomes[request.index]!;
    const { policy } = choosers[request.index]!;
    endMs = Math.max(endMs, timeMs);
    if (notice.kind === 'first token') {
      // A request that lost its engine half-way has shown its first token before.
      if (outcome.ttftMs < 0) {
        outcome.ttftMs = timeMs - outcome.arrivalMs;
        outcome.cachedTokens = notice.cachedTokens;
      }
      policy.onFirstToken?.(request, slot.probe, notice.cachedTokens);
    } else {
      outcome.e2eMs = timeMs - outcome.arrivalMs;
      policy.onEnd?.(request, slot.probe, 'completed');
    }
  }

  /** Engines, then everything that became visible by `timeMs`, in order of time. */
  function advanceTo(timeMs: number): void {
    fresh = [];
    for (const slot of slots) if (slot.alive) slot.engine.advanceTo(timeMs);
    const notices = fresh.sort((a, b) => a.notice.timeMs - b.notice.timeMs || a.slot.probe.id - b.slot.probe.id);
    for (const { slot, notice } of notices) {
      tellLateEvents(notice.timeMs);
      if (notice.kind === 'blocks') {
        const isLost = scenario.eventLoss > 0 && eventRandom() < scenario.eventLoss;
        const event = { slot, notice, comes: slot.missesEvents ? 'after a gap' : 'next' } as const;
        slot.missesEvents = isLost;
        if (isLost) continue;
        if (scenario.eventDelayMs > 0) {
          late.push({ dueMs: notice.timeMs + scenario.eventDelayMs, ...event });
          continue;
        }
        for (const { clock } of routers) clock.advanceTo(notice.timeMs);
        tellEvents(event);
        continue;
      }
      for (const { clock } of routers) clock.advanceTo(notice.timeMs);
      tell(slot, notice);
    }
    if (!Number.isFinite(timeMs)) return;
    tellLateEvents(timeMs);
    for (const { clock } of routers) clock.advanceTo(timeMs);
  }

  function tellLateEvents(timeMs: number): void {
    for (; lateHead < late.length && late[lateHead]!.dueMs <= timeMs; lateHead++) {
      const event = late[lateHead]!;
      for (const { clock } of routers) clock.advanceTo(event.dueMs);
      tellEvents(event);
    }
  }

  /** Engines' metrics are read on the way. */
  function passTo(timeMs: number): void {
    let nRead = 0;
    for (; readings.length > 0 && readings[nRead % readings.length]!.dueMs <= timeMs; nRead++) {
      const reading = readings[nRead % readings.length]!;
      const { dueMs, router, slot } = reading;
      reading.dueMs += METRICS_INTERVAL_MS;
      if (!slot.alive) continue;
      advanceTo(dueMs);
      const { nRunning: running, nWaiting: waiting } = slot.engine;
      router.policy.onMetrics!(slot.probe, { running, waiting });
    }
    const first = nRead % Math.max(1, readings.length);
    readings = [...readings.slice(first), ...readings.slice(0, first)];
    advanceTo(timeMs);
  }

  function crash(slot: EngineSlot, nowMs: number): void {
    if (!slot.alive) return;
    const lost = slot.engine.crash();
    slot.alive = false;
    fleetChanged();
    for (const { policy } of routers) policy.onGone?.(slot.probe);
    for (const request of lost) choosers[request.index]!.policy.onEnd?.(request, slot.probe, 'failed');
    // Events of the dead process still on their way belong to nobody.
    const pending = late.slice(lateHead).filter((event) => event.slot !== slot);
    late.splice(lateHead, late.length, ...pending);
    // Clients try again at once.
    for (const request of lost) route(request, nowMs);
  }

  function restart(slot: EngineSlot): void {
    dead.push(slot.engine);
    slot.engine = startEngine(() => slot, slot.speed);
    slot.alive = true;
    slot.missesEvents = false;
    fleetChanged();
  }
  const dead: SimulatedEngine[] = [];

  /** What it routed is answered all the same, and nobody hears of it. */
  function killRouter(nowMs: number): void {
    const [gone] = deciders;
    routers = routers.filter((router) => router !== gone);
    readings = readings.filter(({ router }) => router !== gone);
    deciders = decidingWith(addRouter(createLeastRequest, nowMs));
  }

  function bringBackRouter(nowMs: number): void {
    const router = addRouter(createPolicy, nowMs);
    for (const slot of slots) {
      readFrom(slot, router, nowMs);
      if (!slot.alive || scenario.eventLoss >= 1) continue;
      router.policy.onBlocks?.(slot.probe, slot.engine.cache.blockIds(), { sentMs: nowMs, comes: 'next' });
    }
    readings.sort((a, b) => a.dueMs - b.dueMs);
    deciders = decidingWith(router);
  }

  const faults: Fault[] = [];
  for (const { engine, atMs, restartAtMs } of scenario.crashes) {
    faults.push({ atMs, apply: () => crash(slots[engine]!, atMs) });
    if (restartAtMs !== null) faults.push({ atMs: restartAtMs, apply: () => restart(slots[engine]!) });
  }
  for (const { engines, atMs } of scenario.scaleOuts) {
    faults.push({
      atMs,
      apply: () => {
        for (let i = 0; i < engines; i++) addEngine(1, atMs);
        fleetChanged();
      },
    });
  }
  for (const { atMs, unnoticedMs, backAtMs } of scenario.routerDeaths) {
    faults.push({ atMs, apply: () => killRouter(atMs) });
    faults.push({ atMs: atMs + unnoticedMs, apply: () => void (deciders = others) });
    if (backAtMs !== null) faults.push({ atMs: backAtMs, apply: () => bringBackRouter(backAtMs) });
  }
  faults.sort((a, b) => a.atMs - b.atMs);

  let nextFault = 0;
  let nowMs = -1;
  for (const request of requests) {
    const { arrivalMs } = outcomes[request.index]!;
    for (; nextFault < faults.length && faults[nextFault]!.atMs <= arrivalMs; nextFault++) {
      passTo((nowMs = faults[nextFault]!.atMs));
      faults[nextFault]!.apply();
    }
    if (arrivalMs > nowMs) passTo((nowMs = arrivalMs));
    route(request, nowMs);
  }
  advanceTo(Infinity);

  const engines = [...dead, ...slots.map(({ engine }) => engine)];
  const sum = (value: (engine: SimulatedEngine) => number): number =>
    engines.reduce((n, engine) => n + value(engine), 0);
  return {
    requests: outcomes,
    requestsPerEngine: slots.map(({ nRequests }) => nRequests),
    busyMsPerEngine: slots.map(({ engine }) => engine.counters.busyMs),
    computedTokensPerEngine: slots.map(({ engine }) => engine.counters.computedPromptTokens),
    queriedTokens: sum(({ counters }) => counters.queriedTokens),
    cachedTokens: sum(({ counters }) => counters.cachedTokens),
    preemptions: sum(({ counters }) => counters.preemptions),
    durationMs: endMs,
  };
}
