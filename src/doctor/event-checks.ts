/**
 * Whether one publisher's KV events arrive: the ZMQ handshake, the replay socket, and what the batches seen say about
 * blocks and salts. Listens as `serve` does; asks for old batches only where told to.
 */
import type { Clock } from '../clock.ts';
import type { KvEventSource } from '../endpoints/endpoint.ts';
import { errorText } from '../errors.ts';
import { createKvEventDecoder } from '../kvevents/decode.ts';
import { createEventConnection } from '../kvevents/event-connection.ts';
import type { ApplyOutcome } from '../kvevents/event-stream.ts';
import { createRedials } from '../kvevents/redials.ts';
import { createReplayClient } from '../kvevents/replay-client.ts';
import { createReplayPermits } from '../kvevents/replay-permits.ts';
import { isTopic } from '../kvevents/topic-listeners.ts';
import { wireFormOf } from '../kvevents/wire-form.ts';
import type { BlockStored } from '../kvevents/kv-event.ts';
import type { Zmtp } from '../kvevents/zmtp.ts';

export type ReplayAnswer =
  | { readonly kind: 'ended'; readonly nBatches: number }
  /** Nothing more came before the end marker. */
  | { readonly kind: 'silent'; readonly nBatches: number }
  | { readonly kind: 'failed'; readonly message: string };

/** What the batches of one publisher have shown so far. */
export type Observed = {
  readonly nBatches: number;
  readonly nLive: number;
  readonly nStored: number;
  /** Payloads and events that were not understood, by reason. */
  readonly refused: ReadonlyMap<string, number>;
  /** By how often they were seen. */
  readonly blockSizes: ReadonlySet<number>;
  readonly forms: ReadonlySet<string>;
  /** Kinds of KV-cache groups besides full attention. */
  readonly otherGroups: ReadonlySet<string>;
  /** Whether any stored blocks came without a word on extra keys. */
  readonly extraKeys: 'told' | 'not told' | 'unknown';
  /** Whether blocks of adapters came with a number in place of a name. */
  readonly hasNamelessAdapters: boolean;
  hasSalt(salt: string): boolean;
};

export type SourceWatch = {
  readonly source: KvEventSource;
  readonly observed: Observed;
  /** Resolves with whether a publisher answers there; false for one that connects to us. */
  connected(): Promise<boolean>;
  /** @param from `nothing`: only whether it answers; `oldest`: everything it still holds */
  replay(from: 'nothing' | 'oldest'): Promise<ReplayAnswer>;
  /** Resolves when the condition holds, or after the time. */
  until(condition: (observed: Observed) => boolean, ms: number): Promise<boolean>;
  close(): void;
};

export type SourceWatchDeps = { readonly clock: Clock; readonly zmtp: Zmtp };

export type SourceWatchOptions = {
  readonly connectTimeoutMs: number;
  /** Longest silence inside a replay. */
  readonly replayTimeoutMs: number;
};

const TICK_MS = 20;
/** Above every number a publisher gives: of such a replay only the end marker comes. */
const BEYOND_ALL = 2n ** 63n - 1n;
/** Enough to know a publisher by; the rest of a long replay is not waited for. */
const MAX_REPLAYED = 2_000;

export function watchSource(
  { clock, zmtp }: SourceWatchDeps,
  source: KvEventSource,
  { connectTimeoutMs, replayTimeoutMs }: SourceWatchOptions,
): SourceWatch {
  const observer = createObserver();
  const connection = createEventConnection(
    {
      clock,
      zmtp,
      permits: createReplayPermits(1, clock),
      redials: createRedials(),
      apply: (payload, _seq, origin) => observer.note(payload, origin),
      isBatch: observer.isBatch,
      clear: () => undefined,
      onStanding: () => undefined,
      onChange: () => undefined,
      onGap: () => undefined,
      onRestart: () => undefined,
      onReplay: () => undefined,
      onGarbage: observer.refuse,
      onFailure: () => undefined,
    },
    // Replays are asked for one by one below.
    { endpoint: source.endpoint, replayEndpoint: null },
  );
  // A publisher that connects to us connects to the one that serves.
  const isDialled = !isTopic(source.endpoint);
  if (isDialled) connection.open();

  async function poll(condition: () => boolean, ms: number): Promise<boolean> {
    const endMs = clock.nowMs() + ms;
    while (!condition()) {
      if (clock.nowMs() >= endMs) return false;
      await new Promise<void>((resolve) => setTimeout(resolve, TICK_MS));
      connection.tick();
    }
    return true;
  }

  return {
    source,
    observed: observer.observed,
    async connected() {
      if (!isDialled) return false;
      await poll(() => connection.reached() !== 'trying', connectTimeoutMs);
      return connection.reached() === 'up';
    },
    async replay(from) {
      if (source.replayEndpoint === null) return { kind: 'failed', message: 'no replay socket' };
      let nBatches = 0;
      let answer: ReplayAnswer | null = null;
      let heardMs = clock.nowMs();
      const client = createReplayClient({ clock, zmtp }, source.replayEndpoint, {
        onBatch(_seq, payload) {
          nBatches += 1;
          heardMs = clock.nowMs();
          observer.note(payload, 'replay');
        },
        onEnd: () => void (answer = { kind: 'ended', nBatches }),
        onGarbage: () => observer.refuse('replay_frames'),
        onFailure: (error) => void (answer = { kind: 'failed', message: errorText(error) }),
      });
      client.request(from === 'oldest' ? 0n : BEYOND_ALL);
      const isOver = (): boolean =>
        answer !== null || nBatches >= MAX_REPLAYED || clock.nowMs() - heardMs > replayTimeoutMs;
      await poll(isOver, Infinity);
      client.close();
      if (nBatches >= MAX_REPLAYED) return { kind: 'ended', nBatches };
      return answer ?? { kind: 'silent', nBatches };
    },
    until: (condition, ms) => poll(() => condition(observer.observed), ms),
    close: () => connection.close(),
  };
}

type Observer = {
  readonly observed: Observed;
  note(payload: Uint8Array, origin: 'live' | 'replay'): ApplyOutcome;
  isBatch(payload: Uint8Array): boolean;
  refuse(reason: string): void;
};

function createObserver(): Observer {
  const decoder = createKvEventDecoder();
  const salts = new Set<string>();
  const refused = new Map<string, number>();
  const blockSizes = new Set<number>();
  const forms = new Set<string>();
  const otherGroups = new Set<string>();
  const counts = { nBatches: 0, nLive: 0, nStored: 0 };
  let extraKeys: Observed['extraKeys'] = 'unknown';
  let hasNamelessAdapters = false;

  const refuse = (reason: string): void => void refused.set(reason, (refused.get(reason) ?? 0) + 1);

  function noteStored(event: BlockStored): void {
    counts.nStored += 1;
    const { kvCacheSpecKind: kind } = event;
    if (kind !== null && kind !== 'full_attention' && kind !== 'mla') {
      otherGroups.add(kind);
      return;
    }
    blockSizes.add(event.blockSizeTokens);
    if (event.extraKeys === undefined && !event.cacheSalt) extraKeys = 'not told';
    else if (extraKeys === 'unknown') extraKeys = 'told';
    if (event.loraId !== null && !event.loraName) hasNamelessAdapters = true;
    if (event.cacheSalt) salts.add(event.cacheSalt);
    for (const key of event.extraKeys?.[0] ?? []) if (typeof key === 'string') salts.add(key);
  }

  return {
    observed: {
      get nBatches() {
        return counts.nBatches;
      },
      get nLive() {
        return counts.nLive;
      },
      get nStored() {
        return counts.nStored;
      },
      refused,
      blockSizes,
      forms,
      otherGroups,
      get extraKeys() {
        return extraKeys;
      },
      get hasNamelessAdapters() {
        return hasNamelessAdapters;
      },
      hasSalt: (salt) => salts.has(salt),
    },
    note(payload, origin) {
      try {
        const batch = decoder.decode(payload);
        counts.nBatches += 1;
        if (origin === 'live') counts.nLive += 1;
        for (const event of batch.events) if (event.type === 'BlockStored') noteStored(event);
        for (const reason of batch.skipped) refuse(reason);
        const form = wireFormOf(payload);
        if (form !== null) forms.add(`${form.events}, hashes as ${form.hashes}`);
        return 'applied';
      } catch (error) {
        refuse(errorText(error));
        return 'refused';
      }
    },
    isBatch(payload) {
      try {
        decoder.decode(payload);
        return true;
      } catch {
        return false;
      }
    },
    refuse,
  };
}
