/**
 * One payload of one source, applied to its engine's blocks: what cannot be understood is counted and ends in less being
 * believed. When payloads come, and what follows from their order, is not decided here.
 */
import { errorText } from '../errors.ts';
import type { KvEventDecoder } from './decode.ts';
import type { ApplyResult, EngineBlocksSource } from './engine-blocks.ts';
import type { ApplyOutcome } from './event-stream.ts';
import type { KvEventBatch } from './kv-event.ts';
import type { KvEventKind } from './source-status.ts';

export type BatchApplierDeps = {
  readonly decoder: KvEventDecoder;
  readonly blocks: EngineBlocksSource;
  onEvents(kind: KvEventKind, nEvents: number, nBlocks: number): void;
  /** @param reason why an event was skipped, or the payload refused */
  onError(reason: string, problem: string | null): void;
};

export type BatchApplier = {
  /** @param onTime given the publisher's timestamp of a batch that was applied */
  apply(payload: Uint8Array, onTime?: (ts: number) => void): ApplyOutcome;
  /** Whether `apply` would not refuse it. */
  isBatch(payload: Uint8Array): boolean;
};

export function createBatchApplier({ decoder, blocks, onEvents, onError }: BatchApplierDeps): BatchApplier {
  const decode = (payload: Uint8Array): KvEventBatch | null => {
    try {
      return decoder.decode(payload);
    } catch (problem) {
      onError('payload', errorText(problem));
      return null;
    }
  };

  const applyBatch = (batch: KvEventBatch): ApplyOutcome => {
    let isComplete = true;
    for (const reason of batch.skipped) {
      if (reason === 'unknown_type') onEvents('unknown', 1, 0);
      else {
        isComplete = false;
        onError(reason, null);
      }
    }
    if (batch.doubt) {
      // An event that may have removed anything: believe what follows it.
      blocks.clear();
      count(blocks.apply({ ...batch, events: batch.events.slice(batch.doubt.nEventsBefore) }));
      return 'incomplete';
    }
    const result = blocks.apply(batch);
    count(result);
    return !isComplete ? 'incomplete' : result.nCleared > 0 ? 'cleared' : 'applied';
  };

  const count = (result: ApplyResult): void => {
    onEvents('BlockStored', result.nStored, result.blocksStored);
    onEvents('BlockRemoved', result.nRemoved, result.blocksRemoved);
    onEvents('AllBlocksCleared', result.nCleared, 0);
  };

  return {
    apply(payload, onTime) {
      const batch = decode(payload);
      if (batch === null) return 'refused';
      try {
        const outcome = applyBatch(batch);
        onTime?.(batch.ts);
        return outcome;
      } catch (problem) {
        // A fault of ours must cost this source its blocks, and nobody else anything.
        onError('internal', errorText(problem));
        return 'refused';
      }
    },
    isBatch: (payload) => decode(payload) !== null,
  };
}
