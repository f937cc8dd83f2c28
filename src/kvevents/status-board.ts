/**
 * What the ingest thread knows of its sources, in shared memory: it writes, the serving thread reads whenever it likes and
 * neither waits for the other. One record per source, guarded by a version word that is odd while it is written; beside
 * them a pulse, which stands still when the ingest thread does. Only numbers: names are the reader's.
 */
import type { Trust } from '../endpoints/endpoint.ts';
import type { StreamState } from './event-stream.ts';
import type { IngestSource, SourceStatus } from './source-status.ts';

/** A number given to one source only: its record is this modulo `MAX_SOURCES`, whoever had it before. */
export type StatusPlace = number;

/** Structured-cloneable. */
export type StatusBoardMemory = SharedArrayBuffer;

export type StatusBoardWriter = {
  write(place: StatusPlace, status: SourceStatus): void;
  /** A sign of life. */
  beat(): void;
};

export type StatusBoardReader = {
  /** Another number after every `write`. */
  revision(): number;
  /** Another number after every `write` of this record. */
  version(place: StatusPlace): number;
  /** @returns null where nothing was written yet, or where it changes faster than it can be read */
  read(place: StatusPlace, source: IngestSource): SourceStatus | null;
  pulse(): number;
};

/** As many as the index has owners. */
export const MAX_SOURCES = 16_384;

const HEADER_BYTES = 64;
// Words of the header.
const PULSE = 0;
const REVISION = 1;

const RECORD_BYTES = 128;
// Words of a record. Numbers that may exceed 32 bits are doubles behind them.
const VERSION = 0;
const STATE = 1;
const TRUST = 2;
const CONNECTION = 3;
const EXTRA_KEYS = 4;
const FLAGS = 5;
const PLACE = 6;
const REPLAY = 7;
// Bytes.
const SEQ = 32;
const DOUBLES = 40;

const HAS_SEQ = 1;
const IS_PARTIAL = 2;

const STATES: readonly StreamState[] = ['unknown', 'replaying', 'live', 'suspect'];
const TRUSTS: readonly Trust[] = ['fallback', 'degraded', 'exact'];
const CONNECTIONS: readonly SourceStatus['connection'][] = ['trying', 'up', 'down'];
const EXTRA_KEYS_SAID: readonly SourceStatus['reportsExtraKeys'][] = ['unknown', 'yes', 'no'];
const REPLAYS: readonly SourceStatus['replay'][] = ['none', 'works', 'broken'];
const MAX_READS = 100;

export function createStatusBoardMemory(): StatusBoardMemory {
  return new SharedArrayBuffer(HEADER_BYTES + MAX_SOURCES * RECORD_BYTES);
}

export function openStatusBoardWriter(memory: StatusBoardMemory): StatusBoardWriter {
  const words = new Int32Array(memory);
  const view = new DataView(memory);
  return {
    write(place, status) {
      const at = recordAt(place);
      const word = at / 4;
      Atomics.add(words, word + VERSION, 1);
      words[word + PLACE] = place;
      words[word + STATE] = STATES.indexOf(status.state);
      words[word + TRUST] = TRUSTS.indexOf(status.trust);
      words[word + CONNECTION] = CONNECTIONS.indexOf(status.connection);
      words[word + EXTRA_KEYS] = EXTRA_KEYS_SAID.indexOf(status.reportsExtraKeys);
      words[word + REPLAY] = REPLAYS.indexOf(status.replay);
      words[word + FLAGS] = (status.lastSeq === null ? 0 : HAS_SEQ) | (status.partial ? IS_PARTIAL : 0);
      view.setBigUint64(at + SEQ, BigInt(status.lastSeq ?? 0));
      numbersOf(status).forEach((value, i) => view.setFloat64(at + DOUBLES + 8 * i, value ?? NaN));
      Atomics.add(words, word + VERSION, 1);
      Atomics.add(words, REVISION, 1);
    },
    beat: () => void Atomics.add(words, PULSE, 1),
  };
}

export function openStatusBoardReader(memory: StatusBoardMemory): StatusBoardReader {
  const words = new Int32Array(memory);
  const view = new DataView(memory);

  function readOnce(at: number, { endpointId, rank }: IngestSource): SourceStatus {
    const word = at / 4;
    const flags = words[word + FLAGS]!;
    const number = (i: number): number => view.getFloat64(at + DOUBLES + 8 * i);
    const orNull = (value: number): number | null => (Number.isNaN(value) ? null : value);
    return {
      endpointId,
      rank,
      state: STATES[words[word + STATE]!] ?? 'unknown',
      trust: TRUSTS[words[word + TRUST]!] ?? 'fallback',
      connection: CONNECTIONS[words[word + CONNECTION]!] ?? 'trying',
      lastSeq: (flags & HAS_SEQ) === 0 ? null : view.getBigUint64(at + SEQ).toString(),
      gaps: number(0),
      replays: number(1),
      restarts: number(2),
      errors: number(3),
      nBlocks: number(4),
      blockSizeTokens: orNull(number(5)),
      lastEventUnixMs: orNull(number(6)),
      lagMs: orNull(number(7)),
      lastBatchUnixMs: orNull(number(8)),
      lastProvenUnixMs: orNull(number(9)),
      behind: number(10),
      replay: REPLAYS[words[word + REPLAY]!] ?? 'none',
      reportsExtraKeys: EXTRA_KEYS_SAID[words[word + EXTRA_KEYS]!] ?? 'unknown',
      partial: (flags & IS_PARTIAL) !== 0,
    };
  }

  return {
    revision: () => Atomics.load(words, REVISION),
    version: (place) => Atomics.load(words, recordAt(place) / 4 + VERSION),
    read(place, source) {
      const at = recordAt(place);
      for (let tries = 0; tries < MAX_READS; tries++) {
        const version = Atomics.load(words, at / 4 + VERSION);
        if (version === 0) return null;
        if ((version & 1) === 1) continue;
        const status = words[at / 4 + PLACE] === place ? readOnce(at, source) : null;
        if (Atomics.load(words, at / 4 + VERSION) === version) return status;
      }
      return null;
    },
    pulse: () => Atomics.load(words, PULSE),
  };
}

function recordAt(place: StatusPlace): number {
  return HEADER_BYTES + (place % MAX_SOURCES) * RECORD_BYTES;
}

/** In the order `readOnce` takes them back. */
function numbersOf(status: SourceStatus): readonly (number | null)[] {
  return [
    status.gaps,
    status.replays,
    status.restarts,
    status.errors,
    status.nBlocks,
    status.blockSizeTokens,
    status.lastEventUnixMs,
    status.lagMs,
    status.lastBatchUnixMs,
    status.lastProvenUnixMs,
    status.behind,
  ];
}
