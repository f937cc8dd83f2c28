/** How far the index may be believed for one event source: the only place where this is decided. */
import type { Trust } from '../endpoints/endpoint.ts';
import type { StreamStatus } from './event-stream.ts';

export type TrustEvidence = {
  readonly stream: StreamStatus;
  /** False: residency cannot be told from this engine's events. */
  readonly indexable: boolean;
  /** Blocks are missing in the index that the engine may hold. */
  readonly partial: boolean;
};

/**
 * exact: live, complete, and a loss would be found. degraded: what the index says is true, but blocks may be missing, or a
 * loss would stay unseen. fallback: there is a doubt, or nothing to believe.
 */
export function deriveTrust({ stream, indexable, partial }: TrustEvidence): Trust {
  if (stream.state !== 'live' || !stream.connected || !indexable) return 'fallback';
  return partial || stream.partial || stream.replay !== 'works' ? 'degraded' : 'exact';
}
