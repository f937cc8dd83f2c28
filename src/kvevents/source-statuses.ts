/**
 * The serving thread's list of sources with their latest state, read from the board when asked. A source is known from the
 * moment it is wanted, and no longer from the moment it is not.
 */
import type { Log } from '../log.ts';
import type { IngestSource, SourceStatus } from './source-status.ts';
import { MAX_SOURCES, type StatusBoardReader } from './status-board.ts';
import { keyOf, type PlacedSource } from './subscriptions.ts';

export type SourceStatuses = {
  /** The same array until something changes. */
  all(): readonly SourceStatus[];
  sources(): readonly PlacedSource[];
  /** @param id of this wish; @returns the sources with their places on the board */
  replace(wanted: readonly IngestSource[], id: number): readonly PlacedSource[];
  /** Wishes up to this one are carried out: places of sources that left are free. */
  settled(id: number): void;
  /** Null: nothing is known of any of them. */
  readFrom(board: StatusBoardReader | null): void;
};

const NOTHING_KNOWN: Omit<SourceStatus, 'endpointId' | 'rank'> = {
  state: 'unknown',
  trust: 'fallback',
  connection: 'trying',
  lastSeq: null,
  gaps: 0,
  replays: 0,
  restarts: 0,
  errors: 0,
  nBlocks: 0,
  blockSizeTokens: null,
  reportsExtraKeys: 'unknown',
  lastEventUnixMs: null,
  lastBatchUnixMs: null,
  lastProvenUnixMs: null,
  lagMs: null,
  behind: 0,
  replay: 'none',
  partial: false,
};

export function createSourceStatuses(log: Log): SourceStatuses {
  let board: StatusBoardReader | null = null;
  let sources: readonly PlacedSource[] = [];
  let known: readonly SourceStatus[] = [];
  /** Of `known`. */
  const versions: number[] = [];
  let readRevision: number | null = null;
  let lastPlace = 0;
  /** Records in use, and until which wish is carried out. */
  const taken = new Map<number, number>();

  const nextPlace = (): number => {
    do lastPlace++;
    while (taken.has(lastPlace % MAX_SOURCES));
    taken.set(lastPlace % MAX_SOURCES, Infinity);
    return lastPlace;
  };

  const read = (source: PlacedSource): SourceStatus => {
    const { endpointId, rank, place } = source;
    return board?.read(place, source) ?? { ...NOTHING_KNOWN, endpointId, rank };
  };

  return {
    all() {
      const revision = board?.revision() ?? -1;
      if (revision === readRevision) return known;
      const isAnew = readRevision === null;
      readRevision = revision;
      // With a thousand sources most of them are as they were.
      known = sources.map((source, i) => {
        const version = board?.version(source.place) ?? 0;
        if (!isAnew && versions[i] === version) return known[i]!;
        versions[i] = version;
        return read(source);
      });
      return known;
    },
    sources: () => sources,
    replace(wanted, id) {
      const before = new Map(sources.map((source) => [keyOf(source), source.place]));
      const next = new Map<string, PlacedSource>();
      for (const source of wanted) {
        const key = keyOf(source);
        const place = before.get(key) ?? next.get(key)?.place;
        before.delete(key);
        if (place === undefined && taken.size === MAX_SOURCES) {
          log.error('too many kv event sources', { endpointId: source.endpointId, limit: MAX_SOURCES });
          continue;
        }
        next.set(key, { ...source, place: place ?? nextPlace() });
      }
      for (const place of before.values()) taken.set(place % MAX_SOURCES, id);
      sources = [...next.values()];
      readRevision = null;
      return sources;
    },
    settled(id) {
      for (const [record, until] of taken) if (until <= id) taken.delete(record);
    },
    readFrom(newBoard) {
      board = newBoard;
      readRevision = null;
    },
  };
}
