/**
 * One payload in, one batch out: vLLM (positional arrays of every length up to 0.23, maps since 0.24), SGLang,
 * TensorRT-LLM, Mooncake and llm-d's storage publisher, told apart by looking at the value and never at a configured
 * version. The batch is read here, its events in decode-event.ts; nobody else knows the wire shape.
 *
 * A payload that is no batch is refused as a whole. An event that is not understood is skipped and named in `skipped`, and
 * its neighbours stand. What an event means for the index is not decided here.
 */
import { WarmpathError } from '../errors.ts';
import {
  createEventReader,
  DEFAULT_DECODE_LIMITS,
  type DecodeLimits,
  type EventReader,
  type SkipReason,
} from './decode-event.ts';
import type { KvEvent, KvEventBatch } from './kv-event.ts';
import { keyTable, readKey } from './map-keys.ts';
import { MsgpackReader } from './msgpack-reader.ts';

export type { DecodeLimits, SkipReason } from './decode-event.ts';
export { DEFAULT_DECODE_LIMITS, SKIP_REASONS } from './decode-event.ts';

export type KvEventDecoder = {
  /**
   * Arrays of the batch are valid until the next call.
   * @throws WarmpathError `kv_payload_invalid` when the payload as a whole must be refused
   */
  decode(payload: Uint8Array): KvEventBatch;
};

/** apart: one event per event. joined: removals that follow each other and differ in their hash only are one event. */
export type RemovalForm = 'apart' | 'joined';

export function createKvEventDecoder(
  limits: Partial<DecodeLimits> = {},
  removals: RemovalForm = 'apart',
): KvEventDecoder {
  const bounds = { ...DEFAULT_DECODE_LIMITS, ...limits };
  const reader = new MsgpackReader();
  const events = createEventReader(reader, bounds);
  return {
    decode(payload) {
      if (payload.byteLength > bounds.maxPayloadBytes) {
        throw refused(`KV payload too large: ${payload.byteLength} bytes, limit ${bounds.maxPayloadBytes}`);
      }
      reader.reset(payload);
      try {
        const batch = readBatch(reader, events, bounds, removals);
        if (reader.remaining() > 0)
          throw refused(`KV payload goes on after the batch: ${reader.remaining()} bytes left`);
        return batch;
      } finally {
        reader.release();
      }
    },
  };
}

const KEY_TS = 0;
const KEY_EVENTS = 1;
const KEY_RANK = 2;
const BATCH_KEYS = keyTable([
  ['ts', KEY_TS],
  ['events', KEY_EVENTS],
  ['data_parallel_rank', KEY_RANK],
  // SGLang's name of the same.
  ['attn_dp_rank', KEY_RANK],
]);

type MutableBatch = { -readonly [K in keyof KvEventBatch]: KvEventBatch[K] };
type Skipped = { reasons: SkipReason[]; doubt: { nEventsBefore: number } | null };

/** `[ts, events(, data_parallel_rank(, …))]`, or a map with these keys. */
function readBatch(
  reader: MsgpackReader,
  events: EventReader,
  bounds: DecodeLimits,
  removals: RemovalForm,
): KvEventBatch {
  const batch: MutableBatch = { ts: NaN, events: [], dataParallelRank: null, skipped: [], doubt: null };
  const nElements = reader.arrayHeader();
  if (nElements >= 0) {
    if (nElements < 2) throw refused(`KV batch too short: ${nElements} elements, expected at least 2`);
    batch.ts = readTimestamp(reader);
    readEvents(reader, events, bounds, removals, batch);
    if (nElements > 2) batch.dataParallelRank = readRank(reader);
    for (let i = 3; i < nElements; i++) reader.skip();
    return batch;
  }
  const nPairs = reader.mapHeader();
  if (nPairs < 0)
    throw refused(`KV payload is no batch: first byte 0x${hexByte(reader.peek())}, expected array or map`);
  let seen = 0;
  for (let i = 0; i < nPairs; i++) {
    const key = readKey(reader, BATCH_KEYS);
    if (key === KEY_TS) batch.ts = readTimestamp(reader);
    else if (key === KEY_EVENTS) readEvents(reader, events, bounds, removals, batch);
    else if (key === KEY_RANK) batch.dataParallelRank = readRank(reader);
    else reader.skip();
    if (key === KEY_TS || key === KEY_EVENTS) seen |= 1 << key;
  }
  if (seen !== ((1 << KEY_TS) | (1 << KEY_EVENTS)))
    throw refused('KV batch incomplete: expected the keys ts and events');
  return batch;
}

function readTimestamp(reader: MsgpackReader): number {
  const ts = reader.number();
  if (ts === null) throw refused(`KV batch timestamp is no number: first byte 0x${hexByte(reader.peek())}`);
  return ts;
}

function readRank(reader: MsgpackReader): number | null {
  if (reader.nils(1) === 1) return null;
  const rank = reader.integer();
  if (!(rank >= 0)) throw refused('data_parallel_rank of a KV batch must be an integer from 0 or null');
  return rank;
}

function readEvents(
  reader: MsgpackReader,
  events: EventReader,
  bounds: DecodeLimits,
  removals: RemovalForm,
  batch: MutableBatch,
): void {
  const nEvents = reader.arrayHeader();
  if (nEvents < 0) throw refused(`events of a KV batch are no array: first byte 0x${hexByte(reader.peek())}`);
  if (nEvents > bounds.maxEventsPerBatch) {
    throw refused(`KV batch too large: ${nEvents} events, limit ${bounds.maxEventsPerBatch}`);
  }
  const understood: KvEvent[] = [];
  const skipped: Skipped = { reasons: [], doubt: null };
  events.begin();
  for (let i = 0; i < nEvents; i++) {
    const start = reader.pos;
    const event = events.read();
    if (typeof event !== 'string') {
      if (event.type !== 'BlockRemoved' || removals === 'apart') understood.push(event);
      else {
        const joined = events.joinRemovals(event, start, nEvents - 1 - i);
        understood.push(joined);
        i += (joined.nEvents ?? 1) - 1;
      }
      continue;
    }
    reader.pos = start;
    reader.skip();
    skipped.reasons.push(event);
    // A store that was not understood only costs hits; anything else may have taken blocks away.
    if (event !== 'unknown_type' && !events.wasStore()) skipped.doubt = { nEventsBefore: understood.length };
  }
  batch.events = understood;
  batch.skipped = skipped.reasons;
  batch.doubt = skipped.doubt;
}

function hexByte(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}

function refused(message: string): WarmpathError {
  return new WarmpathError('kv_payload_invalid', message);
}
