/** What the serving thread and the ingest thread say to each other; states of sources go by the status board. */
import type { LogFields, LogLevel } from '../log.ts';
import type { HashSeed } from '../prefix/block-hash.ts';
import type { PrefixIndexMemory } from '../prefix/prefix-index.ts';
import type { EventStreamOptions } from './event-stream.ts';
import type { KvEventCounters, SourceSnapshot } from './source-status.ts';
import type { StatusBoardMemory, StatusPlace } from './status-board.ts';
import type { PlacedSource } from './subscriptions.ts';

export type IngestWorkerOptions = {
  readonly memory: PrefixIndexMemory;
  readonly seed: HashSeed;
  readonly board: StatusBoardMemory;
  readonly debugLog: 'on' | 'off';
  /** Replays that run at once, over all sources. */
  readonly maxParallelReplays: number;
  /** `host:port` for publishers that connect to us, rank r at port + r; null: none do. */
  readonly listen: string | null;
  /** Counts, and states that are not urgent, are reported this often, at most. */
  readonly reportMs: number;
  readonly stream: Partial<Omit<EventStreamOptions, 'canReplay' | 'random'>>;
};

export type ToIngestWorker =
  | { readonly kind: 'reconcile'; readonly id: number; readonly sources: readonly PlacedSource[] }
  | { readonly kind: 'snapshot'; readonly id: number; readonly place: StatusPlace }
  | { readonly kind: 'adopt'; readonly id: number; readonly place: StatusPlace; readonly snapshot: SourceSnapshot };

export type FromIngestWorker =
  | { readonly kind: 'ready' }
  | { readonly kind: 'reconciled'; readonly id: number }
  | { readonly kind: 'counted'; readonly counters: KvEventCounters }
  | { readonly kind: 'snapshot'; readonly id: number; readonly snapshot: SourceSnapshot | null }
  | { readonly kind: 'adopted'; readonly id: number; readonly isProving: boolean }
  | { readonly kind: 'log'; readonly level: LogLevel; readonly message: string; readonly fields: LogFields }
  /** A fault: the thread closes its sockets and ends. */
  | { readonly kind: 'dying'; readonly problem: string };
