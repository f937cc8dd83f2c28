/**
 * When a replica that starts, or that has lost its ingest thread, counts as ready with regard to KV events; and what is
 * to be said of its view afterwards. Once ready it stays so: a pod that joins or goes later makes nobody wait.
 */
import type { SourceStatus } from './source-status.ts';

/**
 * connected: every source is connected or could not be reached. replayed: every source has also told what it still knew
 * of the past. Both end after a time, or a pod that is gone for good would keep a replica from ever serving.
 */
export type ReadyWhen = 'connected' | 'replayed';

export type WarmStart = {
  /** @returns `ok`, `ok, but …`, or what is waited for */
  condition(ingest: { problem(): string | null; nLost(): number; statuses(): readonly SourceStatus[] }): string;
};

export function createWarmStart(
  nowMs: () => number,
  { readyWhen, readyTimeoutMs }: { readyWhen: ReadyWhen; readyTimeoutMs: number },
): WarmStart {
  let sinceMs: number | null = null;
  let isReady = false;
  let nLostSeen = 0;

  const isAwaited = ({ connection, state }: SourceStatus): boolean =>
    readyWhen === 'connected' ? connection === 'trying' : state !== 'live';

  return {
    condition(ingest) {
      sinceMs ??= nowMs();
      if (ingest.nLost() !== nLostSeen) {
        // What had been learnt is learnt again.
        nLostSeen = ingest.nLost();
        sinceMs = nowMs();
        isReady = false;
      }
      const problem = ingest.problem();
      if (problem !== null) return problem;
      const statuses = ingest.statuses();
      const nAwaited = isReady ? 0 : statuses.filter(isAwaited).length;
      isReady ||= nAwaited === 0 || nowMs() - sinceMs >= readyTimeoutMs;
      return isReady ? describe(statuses) : `${nAwaited} of ${statuses.length} sources not ${readyWhen} yet`;
    },
  };
}

function describe(statuses: readonly SourceStatus[]): string {
  const parts: string[] = [];
  const say = (what: string, nSources: number): void => {
    if (nSources > 0) parts.push(`${nSources} ${what}`);
  };
  say('not connected', statuses.filter(({ connection }) => connection !== 'up').length);
  say('being learnt', statuses.filter(({ connection, state }) => connection === 'up' && state !== 'live').length);
  say('partial', statuses.filter(({ state, partial }) => state === 'live' && partial).length);
  return parts.length === 0 ? 'ok' : `ok, but of ${statuses.length} sources ${parts.join(', ')}`;
}
