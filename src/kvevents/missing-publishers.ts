/**
 * Notices publishers that say nothing of the requests sent to their endpoint: events switched off, another port, a
 * publisher that connects instead of binding. Their views are empty, look complete, and are worth nothing. Told once, and
 * once more when the publisher is heard.
 */
import type { Endpoint, EndpointId } from '../endpoints/endpoint.ts';
import type { Log } from '../log.ts';
import type { StreamSummary } from './endpoint-knowledge.ts';

export type MissingPublishers = {
  /** A request was sent there. @param uncachedTokens of its prompt that the endpoint will have to compute */
  routed(id: EndpointId, uncachedTokens: number): void;
  isMissing(id: EndpointId): boolean;
  nMissing(): number;
  /** To be called now and then; cheap. */
  check(): void;
  /** Endpoints that are not among these are not remembered any longer. */
  keep(endpoints: readonly Endpoint[]): void;
};

/** A batch leaves with the end of the step that computes the blocks; the first of a long prompt within a second or two. */
const PATIENCE_MS = 10_000;
/** New tokens that must fill a block and so cause an event, where the size of a block is not known. */
const CERTAIN_TOKENS = 512;

export function createMissingPublishers(deps: {
  log: Log;
  unixMs: () => number;
  streamOf: (id: EndpointId) => StreamSummary | undefined;
}): MissingPublishers {
  const { log, unixMs, streamOf } = deps;
  /** First request that nothing was heard of. */
  const waitingSince = new Map<EndpointId, number>();
  const missing = new Set<EndpointId>();

  const heard = (id: EndpointId): void => {
    waitingSince.delete(id);
    if (missing.delete(id)) log.info('kv events heard again', { endpointId: id });
  };

  return {
    routed(id, uncachedTokens) {
      if (waitingSince.has(id)) return;
      const stream = streamOf(id);
      if (stream === undefined) return;
      // Two blocks: the first may be partly there, or the last not full.
      const certain = stream.blockSizeTokens === null ? CERTAIN_TOKENS : 2 * stream.blockSizeTokens;
      if (uncachedTokens >= certain) waitingSince.set(id, unixMs());
    },
    isMissing: (id) => missing.has(id),
    nMissing: () => missing.size,
    check() {
      for (const [id, sinceMs] of waitingSince) {
        const stream = streamOf(id);
        if (stream === undefined || (stream.lastBatchUnixMs ?? -Infinity) >= sinceMs) heard(id);
        else if (unixMs() - sinceMs >= PATIENCE_MS && !missing.has(id)) {
          missing.add(id);
          log.warn('no kv events of an endpoint that gets requests', {
            endpointId: id,
            state: stream.state,
            silentMs: Math.round(unixMs() - sinceMs),
          });
        }
      }
    },
    keep(endpoints) {
      const ids = new Set(endpoints.map(({ id }) => id));
      for (const id of waitingSince.keys()) {
        if (ids.has(id)) continue;
        waitingSince.delete(id);
        missing.delete(id);
      }
    },
  };
}
