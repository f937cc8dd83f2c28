/**
 * Follows one resource of an API server: one loop of full readings and watches that never stops by itself, whatever the
 * server does. Delivers whole snapshots, never events; what was known stays in effect until something newer is complete.
 * What to ask and what an answer means is reflector-state.ts; how one request is made is api-client.ts.
 */
import { backoffMs, type Clock, type Timer } from '../clock.ts';
import { errorText } from '../errors.ts';
import type { Log } from '../log.ts';
import type { ApiClient, ApiFailure, FailureCause, Stopped } from './api-client.ts';
import { resourceName, resourcePath, type ResourceRef } from './objects.ts';
import { createReflectorState, type Applied, type NextRequest, type RelistReason } from './reflector-state.ts';

export type Trouble = {
  readonly cause: FailureCause;
  /** What is wrong, and with which verb and resource. */
  readonly text: string;
};

export type ReflectorDeps<T> = {
  readonly client: ApiClient;
  readonly clock: Clock;
  readonly log: Log;
  /** 0 ≤ random < 1; default `Math.random`. */
  readonly random?: () => number;
  /** Everything there is, at the end of every full reading and after changes; at most once per `settleMs`. */
  onSnapshot(objects: readonly T[]): void;
  /** The resource cannot be followed at present, null = it can again. Not told: what a quick retry mends. */
  onTrouble(trouble: Trouble | null): void;
  /** A full reading is complete. */
  onRelist(reason: RelistReason): void;
  /** A request failed. */
  onFailure(cause: FailureCause): void;
};

export type ReflectorOptions<T> = {
  readonly resource: ResourceRef;
  readonly labelSelector?: string;
  readonly fieldSelector?: string;
  /** What is kept of an object; total, since the server decides what comes. */
  readonly read: (object: unknown) => T;
  readonly timing?: Partial<ReflectorTiming>;
};

export type ReflectorTiming = {
  /** First and longest wait after failures, doubled in between. */
  readonly backoffMs: number;
  readonly backoffMaxMs: number;
  /** A watch that lived so long was a good one. */
  readonly goodWatchMs: number;
  /** What the server is asked to end a watch after: this to twice this, so that many clients do not return at once. */
  readonly watchMs: number;
  /** The longest wait for the mark after the first objects of a stream; without it they are read in pages. */
  readonly firstObjectsMs: number;
  /** Everything is read anew after this to twice this: versions from another history show nothing and fail nothing. */
  readonly relistMs: number;
  /** How often a resource that does not exist is asked for. */
  readonly missingMs: number;
  /** Shortest time between two snapshots; the first after a quiet time comes at once. */
  readonly settleMs: number;
};

export const REFLECTOR_TIMING: ReflectorTiming = {
  backoffMs: 250,
  backoffMaxMs: 15_000,
  goodWatchMs: 2_000,
  watchMs: 290_000,
  firstObjectsMs: 60_000,
  relistMs: 600_000,
  missingMs: 30_000,
  settleMs: 50,
};

/** Objects per page: few enough that the parsing of one does not hold up requests noticeably. */
const PAGE_OBJECTS = 200;
/** A server that does not end a watch in time is helped. */
const OVERTIME_MS = 30_000;
/** Failures in a row before somebody is told; what one retry mends is no trouble. */
const FAILURES_TOLD = 2;
/** A server that starts answers 404 for a moment to whatever a CRD defines: only then it is believed that it has gone. */
const FAILURES_MISSING = 6;

export type Reflector = {
  /** Begins; the first snapshot tells that it is usable, however long that takes. */
  start(): void;
  /** Resolves when nothing runs any more; nothing is delivered after the call. */
  stop(): Promise<void>;
  /** Milliseconds since the server was last heard on this resource, null = never. */
  ageMs(): number | null;
};

type Outcome = { readonly kind: 'ended' } | { readonly kind: 'progress' } | ApiFailure | Stopped;

export function createReflector<T>(deps: ReflectorDeps<T>, options: ReflectorOptions<T>): Reflector {
  const { client, clock, log, random = Math.random } = deps;
  const timing = { ...REFLECTOR_TIMING, ...options.timing };
  const state = createReflectorState(options.read);
  const stopped = new AbortController();
  const snapshots = createSettled(clock, timing.settleMs, () =>
    guarded('snapshot not taken over', () => deps.onSnapshot(state.values())),
  );
  let loop: Promise<void> = Promise.resolve();
  let heardMs: number | null = null;
  let nFailures = 0;
  let relistAtMs = Number.POSITIVE_INFINITY;
  let trouble: string | null = null;

  /** Listeners' mistakes must not end the loop. */
  function guarded(message: string, call: () => void): void {
    try {
      call();
    } catch (error) {
      log.error(message, { resource: options.resource.plural, error: errorText(error) });
    }
  }

  function tell(next: Trouble | null): void {
    if (trouble === (next?.text ?? null)) return;
    trouble = next?.text ?? null;
    guarded('trouble not reported', () => deps.onTrouble(next));
  }

  /**
   * A watch does what it should: everything is forgiven. A full reading alone is not enough, or a server that fails every
   * watch would be read from the beginning at full speed.
   */
  function succeeded(): void {
    nFailures = 0;
    tell(null);
  }

  function onHeard(): void {
    heardMs = clock.nowMs();
  }

  function take(applied: Applied): void {
    if (applied.kind === 'changed') {
      succeeded();
      snapshots.due();
    }
    if (applied.kind !== 'synced') return;
    tell(null);
    relistAtMs = clock.nowMs() + timing.relistMs * (1 + random());
    log.debug('resource read', { resource: options.resource.plural, reason: applied.reason });
    guarded('reading not counted', () => deps.onRelist(applied.reason));
    snapshots.now();
  }

  async function list(continueToken: string | null): Promise<Outcome> {
    const path = pathOf(options, {
      limit: String(PAGE_OBJECTS),
      ...(continueToken === null ? {} : { continue: continueToken }),
    });
    const answer = await client.get(path, { signal: stopped.signal, onHeard });
    if (answer.kind !== 'json') return answer;
    const applied = state.page(answer.json);
    take(applied);
    return applied.kind === 'failed' ? applied : { kind: 'progress' };
  }

  async function watch(request: Exclude<NextRequest, { kind: 'list' }>): Promise<Outcome> {
    const seconds = Math.ceil((timing.watchMs * (1 + random())) / 1000);
    const path = pathOf(options, { ...watchParameters(request), timeoutSeconds: String(seconds) });
    const beganMs = clock.nowMs();
    let isRead = request.kind === 'watch';
    let failure: ApiFailure | null = null;
    let good: Timer | null = null;
    const begun = (): void => {
      good ??= clock.after(timing.goodWatchMs, succeeded);
    };
    const end = await client.stream(path, {
      signal: stopped.signal,
      onHeard() {
        onHeard();
        if (request.kind === 'watch') begun();
      },
      longestMs: seconds * 1000 + OVERTIME_MS,
      onLines(lines) {
        for (const line of lines) {
          const applied = state.line(line);
          if (applied.kind === 'failed') {
            failure = applied;
            return 'enough';
          }
          take(applied);
          if (applied.kind !== 'synced') continue;
          isRead = true;
          begun();
        }
        // Bookmarks alone would keep a stream alive whose server does not know the mark.
        if (isRead || clock.nowMs() - beganMs < timing.firstObjectsMs) return 'more';
        failure = withoutEnd(timing.firstObjectsMs);
        return 'enough';
      },
    });
    // Assigned in a closure, which the type checker does not see.
    (good as Timer | null)?.cancel();
    return failure ?? end;
  }

  /** @returns how long to wait before the next request */
  function settle(request: NextRequest, outcome: Outcome): number {
    switch (outcome.kind) {
      case 'stopped':
        return 0;
      case 'progress':
        return 0;
      case 'ended':
        state.ended();
        break;
      case 'failed':
        state.failed(outcome);
        guarded('failure not counted', () => deps.onFailure(outcome.cause));
        log.debug('request to the API server failed', {
          request: request.kind,
          resource: options.resource.plural,
          cause: outcome.cause,
          error: outcome.message,
        });
        break;
    }
    const wait = backoffMs(nFailures, timing.backoffMs, timing.backoffMaxMs, random);
    nFailures += 1;
    // An end by the server is the order of the day; only one that ends every watch at once must not be asked at full speed.
    if (outcome.kind !== 'failed') return wait;
    const { cause, retryAfterMs } = outcome;
    if (cause === 'not_found' && state.isSynced() && nFailures < FAILURES_MISSING) return wait;
    // A version that has expired is nobody's fault; what follows tells whether there is trouble.
    if (cause !== 'expired' && (nFailures >= FAILURES_TOLD || !state.isSynced() || NEEDS_SOMEBODY.includes(cause))) {
      tell({ cause, text: troubleText(options.resource, request, outcome) });
    }
    if (cause === 'not_found') return timing.missingMs * (0.5 + random() / 2);
    return Math.max(wait, retryAfterMs ?? 0);
  }

  async function run(): Promise<void> {
    while (!stopped.signal.aborted) {
      if (clock.nowMs() >= relistAtMs) {
        relistAtMs = Number.POSITIVE_INFINITY;
        state.expire('periodic');
      }
      const request = state.next();
      let waitMs: number;
      try {
        const outcome = request.kind === 'list' ? await list(request.continueToken) : await watch(request);
        waitMs = settle(request, outcome);
      } catch (error) {
        // A mistake of ours: whatever it left behind is read anew, and not in a hot loop.
        log.error('resource could not be followed', { resource: options.resource.plural, error: errorText(error) });
        state.expire('unreadable');
        waitMs = timing.backoffMaxMs;
      }
      if (waitMs > 0) await pause(clock, waitMs, stopped.signal);
    }
  }

  return {
    start() {
      loop = run();
    },
    async stop() {
      stopped.abort();
      snapshots.cancel();
      await loop;
    },
    ageMs: () => (heardMs === null ? null : clock.nowMs() - heardMs),
  };
}

/** Nothing that a retry mends. */
const NEEDS_SOMEBODY: readonly FailureCause[] = ['unauthorized', 'forbidden', 'not_found', 'credentials', 'tls'];

function withoutEnd(ms: number): ApiFailure {
  const message = `no end of the first objects within ${ms} ms`;
  return { kind: 'failed', cause: 'timeout', message, retryAfterMs: null };
}

function troubleText(resource: ResourceRef, request: NextRequest, { cause, message }: ApiFailure): string {
  const verb = request.kind === 'list' ? 'list' : 'watch';
  const what = `${verb} ${resourceName(resource)} in namespace ${resource.namespace}`;
  if (cause === 'forbidden') return `not allowed to ${what}: a Role must grant list and watch (${message})`;
  return `cannot ${what}: ${message}`;
}

function watchParameters(request: Exclude<NextRequest, { kind: 'list' }>): Record<string, string> {
  const always = { watch: '1', allowWatchBookmarks: 'true' };
  if (request.kind === 'watch') return { ...always, resourceVersion: request.resourceVersion };
  return { ...always, sendInitialEvents: 'true', resourceVersionMatch: 'NotOlderThan' };
}

function pathOf<T>(options: ReflectorOptions<T>, parameters: Readonly<Record<string, string>>): string {
  const { resource, labelSelector, fieldSelector } = options;
  const query = new URLSearchParams({
    ...(labelSelector === undefined ? {} : { labelSelector }),
    ...(fieldSelector === undefined ? {} : { fieldSelector }),
    ...parameters,
  });
  return `${resourcePath(resource)}?${query.toString()}`;
}

/** Of the time at most about a tenth is spent on snapshots, however big the fleet is … */
const SNAPSHOT_SHARE = 10;
/** … and none is later than that, whatever held up the last one. */
const SNAPSHOT_REST_MAX_MS = 400;

/** Calls at once when the last call is long enough ago, else once at the end of the settling time. */
function createSettled(clock: Clock, settleMs: number, call: () => void) {
  let calledMs = Number.NEGATIVE_INFINITY;
  let restMs = settleMs;
  let timer: Timer | null = null;
  const now = (): void => {
    timer?.cancel();
    timer = null;
    const beganMs = clock.nowMs();
    call();
    calledMs = clock.nowMs();
    restMs = Math.max(settleMs, Math.min((calledMs - beganMs) * SNAPSHOT_SHARE, SNAPSHOT_REST_MAX_MS));
  };
  return {
    now,
    due(): void {
      if (timer !== null) return;
      const waitMs = calledMs + restMs - clock.nowMs();
      if (waitMs <= 0) now();
      else timer = clock.after(waitMs, now);
    },
    cancel(): void {
      timer?.cancel();
      timer = null;
    },
  };
}

function pause(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      timer.cancel();
      signal.removeEventListener('abort', end);
      resolve();
    };
    const timer = clock.after(ms, end);
    signal.addEventListener('abort', end, { once: true });
    if (signal.aborted) end();
  });
}
