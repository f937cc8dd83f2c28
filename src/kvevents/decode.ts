/**
 * The wire shape of KV events, and the only file that knows it: one payload in, one batch out. vLLM (positional arrays of
 * every length up to 0.23, maps since 0.24), SGLang, TensorRT-LLM, Mooncake and llm-d's storage publisher, told apart by
 * looking at the value and never at a configured version.
 *
 * A payload that is no batch is refused as a whole. An event that is not understood is skipped and named in `skipped`, and
 * its neighbours stand. What an event means for the index is not decided here.
 */
import { WarmpathError } from '../errors.ts';
import type { ExtraKey } from '../tokenizer/tokenizer.ts';
import type { BlockRemoved, BlockStored, KvEvent, KvEventBatch } from './kv-event.ts';
import { MsgpackReader } from './msgpack-reader.ts';

export type DecodeLimits = {
  readonly maxPayloadBytes: number;
  readonly maxEventsPerBatch: number;
  readonly maxBlocksPerEvent: number;
  readonly maxTokensPerEvent: number;
  readonly maxBlockSizeTokens: number;
  /** Of one text: adapter name, salt, medium, multimodal identifier. */
  readonly maxTextBytes: number;
  readonly maxExtraKeysPerBlock: number;
};

export const DEFAULT_DECODE_LIMITS: DecodeLimits = {
  maxPayloadBytes: 64 * 1024 * 1024,
  // One removal event per evicted block: a step that fills a whole cache stays far below.
  maxEventsPerBatch: 1 << 18,
  maxBlocksPerEvent: 1 << 18,
  maxTokensPerEvent: 1 << 22,
  // Mamba-aligned blocks reach thousands of tokens.
  maxBlockSizeTokens: 65_536,
  // A salt has up to 1,024 characters.
  maxTextBytes: 8192,
  maxExtraKeysPerBlock: 1024,
};

/** Why an event was skipped. `unknown_type` is harmless; the others mean that something of this source is missing. */
export const SKIP_REASONS = [
  'unknown_type',
  'no_event',
  'missing_field',
  'bad_field',
  'bad_hash',
  'bad_token',
  'bad_block_size',
  'bad_extra_keys',
  'too_large',
] as const;
export type SkipReason = (typeof SKIP_REASONS)[number];

export type KvEventDecoder = {
  /**
   * Arrays of the batch are valid until the next call.
   * @throws WarmpathError `kv_payload_invalid` when the payload as a whole must be refused
   */
  decode(payload: Uint8Array): KvEventBatch;
};

export function createKvEventDecoder(limits: Partial<DecodeLimits> = {}): KvEventDecoder {
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
        const batch = readBatch(reader, events, bounds);
        if (reader.remaining() > 0)
          throw refused(`KV payload goes on after the batch: ${reader.remaining()} bytes left`);
        return batch;
      } finally {
        reader.release();
      }
    },
  };
}

type MutableBatch = { -readonly [K in keyof KvEventBatch]: KvEventBatch[K] };
type Skipped = { reasons: SkipReason[]; doubt: { nEventsBefore: number } | null };

/** `[ts, events(, data_parallel_rank(, …))]`, or a map with these keys. */
function readBatch(reader: MsgpackReader, events: EventReader, bounds: DecodeLimits): KvEventBatch {
  const batch: MutableBatch = { ts: NaN, events: [], dataParallelRank: null, skipped: [], doubt: null };
  const nElements = reader.arrayHeader();
  if (nElements >= 0) {
    if (nElements < 2) throw refused(`KV batch too short: ${nElements} elements, expected at least 2`);
    batch.ts = readTimestamp(reader);
    readEvents(reader, events, bounds, batch);
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
    else if (key === KEY_EVENTS) readEvents(reader, events, bounds, batch);
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

function readEvents(reader: MsgpackReader, events: EventReader, bounds: DecodeLimits, batch: MutableBatch): void {
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
      understood.push(event);
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

type EventReader = {
  begin(): void;
  /** Reads the next event; after a reason the position is anywhere inside it. */
  read(): KvEvent | SkipReason;
  /** Whether the event of the last `read` said that it is a BlockStored. */
  wasStore(): boolean;
};

/*
 * Fields of events, in the order of the arrays; `M` = in maps only.
 *   BlockStored:  block_hashes list of int or bytes · parent_block_hash hash or null · token_ids list of int ·
 *                 block_size int · lora_id int or null · medium str or null (vLLM 0.10.2) · lora_name str or null (0.14;
 *                 in SGLang's arrays a map with cache_salt) · extra_keys list or null (0.17) · group_idx int or null (0.20) ·
 *                 kv_cache_spec_kind str or null, kv_cache_spec_sliding_window int or null (0.22) ·
 *                 M locality, ownership (0.26, 0.29), session_id (0.30), cache_salt (SGLang)
 *   BlockRemoved: block_hashes · medium (0.10.2) · group_idx (0.20) · M locality, ownership
 *   AllBlocksCleared: none
 */
const HASHES = 0;
const PARENT = 1;
const TOKENS = 2;
const BLOCK_SIZE = 3;
const LORA_ID = 4;
const MEDIUM = 5;
const LORA_NAME = 6;
const EXTRA_KEYS = 7;
const GROUP_IDX = 8;
const SPEC_KIND = 9;
const SPEC_WINDOW = 10;
const LOCALITY = 11;
const OWNERSHIP = 12;
const SESSION_ID = 13;
const CACHE_SALT = 14;
const TYPE = 15;

const STORED_FIELDS = [
  HASHES,
  PARENT,
  TOKENS,
  BLOCK_SIZE,
  LORA_ID,
  MEDIUM,
  LORA_NAME,
  EXTRA_KEYS,
  GROUP_IDX,
  SPEC_KIND,
  SPEC_WINDOW,
];
const REMOVED_FIELDS = [HASHES, MEDIUM, GROUP_IDX];
/** Tag, hashes, parent, tokens, block size: what no version leaves out. */
const MIN_STORED_ELEMENTS = 5;

const EVENT_KEYS = keyTable([
  ['type', TYPE],
  ['block_hashes', HASHES],
  ['parent_block_hash', PARENT],
  ['token_ids', TOKENS],
  ['block_size', BLOCK_SIZE],
  ['lora_id', LORA_ID],
  ['medium', MEDIUM],
  ['lora_name', LORA_NAME],
  ['extra_keys', EXTRA_KEYS],
  ['group_idx', GROUP_IDX],
  ['kv_cache_spec_kind', SPEC_KIND],
  ['kv_cache_spec_sliding_window', SPEC_WINDOW],
  ['locality', LOCALITY],
  ['ownership', OWNERSHIP],
  ['session_id', SESSION_ID],
  ['cache_salt', CACHE_SALT],
]);
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

const STORED = 0;
const REMOVED = 1;
const CLEARED = 2;
const EVENT_TYPES = keyTable([
  ['BlockStored', STORED],
  ['BlockRemoved', REMOVED],
  ['AllBlocksCleared', CLEARED],
]);
const OTHER_TYPE = -1;
const NO_TYPE = -2;

/** Words kept between batches; a larger batch gets memory of its own. */
const KEPT_WORDS = 1 << 18;
const NO_WORDS = new Uint32Array(0);
const ALL_BLOCKS_CLEARED = { type: 'AllBlocksCleared' } as const;

function createEventReader(reader: MsgpackReader, bounds: DecodeLimits): EventReader {
  const kept = new Uint32Array(KEPT_WORDS);
  let words: Uint32Array = kept;
  let nWords = 0;
  const hashWords = new Uint32Array(2);
  const texts = createTextReader(reader, bounds.maxTextBytes);
  let type = NO_TYPE;
  /** Bit per field that was there, null or not. */
  let seen = 0;
  let blockHashes: Uint32Array = NO_WORDS;
  let parent: readonly [number, number] | null = null;
  let tokenIds: Uint32Array = NO_WORDS;
  let extraKeys: BlockStored['extraKeys'] = undefined;
  let nExtraKeys = -1;
  const ints = new Array<number | null>(CACHE_SALT + 1).fill(null);
  const strings = new Array<string | null>(CACHE_SALT + 1).fill(null);

  /** A view of `n` words that no other event of this batch has. */
  const take = (n: number): Uint32Array => {
    if (nWords + n > words.length) {
      // Views of the memory left behind stay valid. Bounded: every word came from a byte of the payload.
      words = new Uint32Array(Math.max(n, 2 * words.length));
      nWords = 0;
    }
    nWords += n;
    return words.subarray(nWords - n, nWords);
  };

  const readHashes = (): SkipReason | null => {
    const n = reader.arrayHeader();
    if (n < 0) return 'bad_hash';
    if (n > bounds.maxBlocksPerEvent) return 'too_large';
    blockHashes = take(2 * n);
    for (let i = 0; i < n; i++) if (!reader.hash(blockHashes, 2 * i)) return 'bad_hash';
    return null;
  };

  const readParent = (): SkipReason | null => {
    parent = null;
    if (reader.nils(1) === 1) return null;
    if (!reader.hash(hashWords, 0)) return 'bad_hash';
    parent = [hashWords[0]!, hashWords[1]!];
    return null;
  };

  const readTokens = (): SkipReason | null => {
    tokenIds = NO_WORDS;
    if (reader.nils(1) === 1) return null;
    const n = reader.arrayHeader();
    if (n < 0) return 'bad_token';
    if (n > bounds.maxTokensPerEvent) return 'too_large';
    tokenIds = take(n);
    return reader.uint32s(tokenIds, 0, n) ? null : 'bad_token';
  };

  const readInteger = (field: number): SkipReason | null => {
    const value = reader.nils(1) === 1 ? null : reader.integer();
    if (Number.isNaN(value)) return field === BLOCK_SIZE ? 'bad_block_size' : 'bad_field';
    ints[field] = value;
    return null;
  };

  const readText = (field: number): SkipReason | null => {
    const text = texts.read(field);
    if (text === undefined) return 'bad_field';
    strings[field] = text;
    return null;
  };

  const readExtraKeys = (): SkipReason | null => {
    extraKeys = undefined;
    if (reader.nils(1) === 1) return null;
    const n = reader.arrayHeader();
    if (n < 0) return 'bad_extra_keys';
    if (n > bounds.maxBlocksPerEvent) return 'too_large';
    nExtraKeys = n;
    extraKeys = null;
    let i = reader.nils(n);
    if (i === n) return null;
    const entries = new Array<readonly ExtraKey[] | null>(i).fill(null);
    for (; i < n; i++) {
      const entry = readExtraKeyEntry(reader, bounds);
      if (typeof entry === 'string') return entry;
      entries.push(entry);
    }
    extraKeys = entries;
    return null;
  };

  /** SGLang's arrays carry a metadata map where vLLM's have the adapter's name. */
  const readMetadata = (): SkipReason | null => {
    const nPairs = reader.mapHeader();
    for (let i = 0; i < nPairs; i++) {
      const key = readKey(reader, EVENT_KEYS);
      const reason =
        key === CACHE_SALT || key === LORA_NAME || key === SESSION_ID ? readText(key) : (reader.skip(), null);
      if (reason !== null) return reason;
    }
    return null;
  };

  const readField = (field: number): SkipReason | null => {
    seen |= 1 << field;
    switch (field) {
      case HASHES:
        return readHashes();
      case PARENT:
        return readParent();
      case TOKENS:
        return readTokens();
      case EXTRA_KEYS:
        return readExtraKeys();
      case BLOCK_SIZE:
      case LORA_ID:
      case GROUP_IDX:
      case SPEC_WINDOW:
        return readInteger(field);
      case LORA_NAME:
        return isMap(reader.peek()) ? readMetadata() : readText(field);
      case TYPE:
        reader.skip();
        return null;
      default:
        return readText(field);
    }
  };

  const readArrayEvent = (nElements: number): KvEvent | SkipReason => {
    if (nElements === 0) return 'no_event';
    type = readEventType(reader);
    if (type === NO_TYPE) return 'no_event';
    if (type === OTHER_TYPE) return 'unknown_type';
    if (nElements < (type === STORED ? MIN_STORED_ELEMENTS : type === REMOVED ? 2 : 1)) return 'missing_field';
    const fields = type === STORED ? STORED_FIELDS : type === REMOVED ? REMOVED_FIELDS : [];
    for (let i = 1; i < nElements; i++) {
      const field = fields[i - 1];
      if (field === undefined) reader.skip();
      else {
        const reason = readField(field);
        if (reason !== null) return reason;
      }
    }
    return build();
  };

  const readMapEvent = (nPairs: number): KvEvent | SkipReason => {
    const start = reader.pos;
    type = findType(reader, nPairs);
    if (type === NO_TYPE) return 'no_event';
    if (type === OTHER_TYPE) return 'unknown_type';
    reader.pos = start;
    for (let i = 0; i < nPairs; i++) {
      const key = readKey(reader, EVENT_KEYS);
      if (key < 0) reader.skip();
      else {
        const reason = readField(key);
        if (reason !== null) return reason;
      }
    }
    return build();
  };

  const has = (field: number): boolean => (seen & (1 << field)) !== 0;

  const build = (): KvEvent | SkipReason => {
    if (type === CLEARED) return ALL_BLOCKS_CLEARED;
    if (!has(HASHES)) return 'missing_field';
    return type === STORED ? buildStored() : buildRemoved();
  };

  const buildRemoved = (): BlockRemoved => {
    const event = { type: 'BlockRemoved', blockHashes, medium: strings[MEDIUM]!, groupIdx: ints[GROUP_IDX]! } as const;
    return has(LOCALITY) || has(OWNERSHIP)
      ? { ...event, locality: strings[LOCALITY]!, ownership: strings[OWNERSHIP]! }
      : event;
  };

  const buildStored = (): BlockStored | SkipReason => {
    const blockSizeTokens = ints[BLOCK_SIZE] ?? 0;
    if (blockSizeTokens < 0 || blockSizeTokens > bounds.maxBlockSizeTokens) return 'bad_block_size';
    if (tokenIds.length > 0) {
      if (blockSizeTokens === 0) return 'bad_block_size';
      // Without its parent the event would look like the start of a prompt.
      if (!has(PARENT)) return 'missing_field';
      const nHashes = blockHashes.length / 2;
      const dense = tokenIds.length === nHashes * blockSizeTokens;
      if (dense && nExtraKeys >= 0 && nExtraKeys !== nHashes) return 'bad_extra_keys';
    }
    const event: BlockStored = {
      type: 'BlockStored',
      blockHashes,
      parentBlockHash: parent,
      tokenIds,
      blockSizeTokens,
      loraId: ints[LORA_ID]!,
      loraName: strings[LORA_NAME]!,
      medium: strings[MEDIUM]!,
      extraKeys,
      groupIdx: ints[GROUP_IDX]!,
      kvCacheSpecKind: strings[SPEC_KIND]!,
      kvCacheSpecSlidingWindow: ints[SPEC_WINDOW]!,
      cacheSalt: strings[CACHE_SALT]!,
      locality: strings[LOCALITY]!,
      ownership: strings[OWNERSHIP]!,
      sessionId: strings[SESSION_ID]!,
    };
    return event;
  };

  return {
    begin() {
      words = kept;
      nWords = 0;
    },
    read() {
      type = NO_TYPE;
      seen = 0;
      blockHashes = tokenIds = NO_WORDS;
      parent = null;
      extraKeys = undefined;
      nExtraKeys = -1;
      ints.fill(null);
      strings.fill(null);
      const nElements = reader.arrayHeader();
      if (nElements >= 0) return readArrayEvent(nElements);
      const nPairs = reader.mapHeader();
      return nPairs >= 0 ? readMapEvent(nPairs) : 'no_event';
    },
    wasStore: () => type === STORED,
  };
}

/** One block's extra keys; null = none. */
function readExtraKeyEntry(reader: MsgpackReader, bounds: DecodeLimits): readonly ExtraKey[] | null | SkipReason {
  if (reader.nils(1) === 1) return null;
  const n = reader.arrayHeader();
  if (n < 0) return 'bad_extra_keys';
  if (n > bounds.maxExtraKeysPerBlock) return 'too_large';
  const keys: ExtraKey[] = [];
  for (let i = 0; i < n; i++) {
    const start = reader.pos;
    const key = readPlainExtraKey(reader, bounds.maxTextBytes);
    if (key !== null) keys.push(key);
    else {
      // Digests of prompt embeddings and forms to come: another text for other bytes, and none a request can name.
      reader.pos = start;
      reader.skip();
      if (reader.pos - start > bounds.maxTextBytes) return 'too_large';
      keys.push(`\0${reader.hex(start, reader.pos)}`);
    }
  }
  return n === 0 ? null : keys;
}

function readPlainExtraKey(reader: MsgpackReader, maxTextBytes: number): ExtraKey | null {
  if (reader.arrayHeader() === 2) {
    const identifier = readShortText(reader, maxTextBytes);
    const offset = identifier === null ? NaN : reader.integer();
    return identifier === null || Number.isNaN(offset) ? null : [identifier, offset];
  }
  return readShortText(reader, maxTextBytes);
}

function readShortText(reader: MsgpackReader, maxTextBytes: number): string | null {
  const n = reader.stringHeader();
  return n < 0 || n > maxTextBytes ? null : reader.utf8(n);
}

/**
 * Texts repeat from event to event (`GPU`, `full_attention`, one adapter's name): the last one of each field is compared by
 * its bytes before a new string is made.
 */
function createTextReader(
  reader: MsgpackReader,
  maxTextBytes: number,
): { read(field: number): string | null | undefined } {
  const lastBytes: Uint8Array[] = [];
  const lastText: string[] = [];
  return {
    /** @returns undefined when the next value is neither null nor a text of bounded length */
    read(field) {
      if (reader.nils(1) === 1) return null;
      const n = reader.stringHeader();
      if (n < 0 || n > maxTextBytes) return undefined;
      const known = lastBytes[field];
      if (known !== undefined && reader.bytesAre(known, n)) {
        reader.pos += n;
        return lastText[field]!;
      }
      const text = reader.utf8(n);
      lastBytes[field] = reader.copy(reader.pos - n, reader.pos);
      lastText[field] = text;
      return text;
    },
  };
}

function findType(reader: MsgpackReader, nPairs: number): number {
  for (let i = 0; i < nPairs; i++) {
    if (readKey(reader, EVENT_KEYS) === TYPE) return readEventType(reader);
    reader.skip();
  }
  return NO_TYPE;
}

function readEventType(reader: MsgpackReader): number {
  const n = reader.stringHeader();
  if (n < 0) return NO_TYPE;
  const type = matchKey(reader, n, EVENT_TYPES);
  reader.pos += n;
  return type;
}

type KeyTable = readonly (readonly { readonly bytes: Uint8Array; readonly id: number }[] | undefined)[];

/** Keys by their length. */
function keyTable(keys: readonly (readonly [string, number])[]): KeyTable {
  const table: { bytes: Uint8Array; id: number }[][] = [];
  for (const [name, id] of keys) (table[name.length] ??= []).push({ bytes: Buffer.from(name), id });
  return table;
}

/** Reads a map key of any kind; −1 = not in the table. */
function readKey(reader: MsgpackReader, table: KeyTable): number {
  const n = reader.stringHeader();
  if (n < 0) {
    reader.skip();
    return -1;
  }
  const id = matchKey(reader, n, table);
  reader.pos += n;
  return id;
}

function matchKey(reader: MsgpackReader, n: number, table: KeyTable): number {
  for (const { bytes, id } of table[n] ?? []) if (reader.bytesAre(bytes, n)) return id;
  return OTHER_TYPE;
}

function isMap(tag: number): boolean {
  return (tag >= 0x80 && tag <= 0x8f) || tag === 0xde || tag === 0xdf;
}

function hexByte(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}

function refused(message: string): WarmpathError {
  return new WarmpathError('kv_payload_invalid', message);
}
