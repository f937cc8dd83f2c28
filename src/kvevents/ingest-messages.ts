/** What the serving thread and the ingest thread say to each other. */
import type { LogFields, LogLevel } from '../log.ts';
import type { HashSeed } from '../prefix/block-hash.ts';
import type { PrefixIndexMemory } from '../prefix/prefix-index.ts';
import type { EventStreamOptions } from './event-stream.ts';
import type { IngestSource, KvEventCounters, SourceStatus } from './source-status.ts';

export type IngestWorkerOptions = {
  readonly memory: PrefixIndexMemory;
  readonly seed: HashSeed;
  readonly debugLog: 'on' | 'off';
  /** Replays that run at once, over all sources. */
  readonly maxParallelReplays: number;
  /** What changed is reported this often, at most. */
  readonly reportMs: number;
  readonly stream: Partial<Omit<EventStreamOptions, 'canReplay' | 'random'>>;
};

export type ToIngestWorker =
  | { readonly kind: 'reconcile'; readonly id: number; readonly sources: readonly IngestSource[] }
  | { readonly kind: 'stop' };

export type FromIngestWorker =
  | { readonly kind: 'ready' }
  | { readonly kind: 'reconciled'; readonly id: number }
  /** Also a sign of life. */
  | {
      readonly kind: 'report';
      /** all: there are no others. changed: of sources to which something happened. */
      readonly scope: 'all' | 'changed';
      readonly statuses: readonly SourceStatus[];
      readonly counters: KvEventCounters | null;
    }
  | { readonly kind: 'log'; readonly level: LogLevel; readonly message: string; readonly fields: LogFields }
  /** A fault: the thread closes its sockets and ends. */
  | { readonly kind: 'dying'; readonly problem: string };
