/**
 * The wire shape of one KV event, as array or as map. What is not understood becomes a reason, never an exception; only a
 * payload that ends early or is no MessagePack is thrown out by the reader below.
 */
import type { ExtraKey } from '../tokenizer/tokenizer.ts';
import type { BlockRemoved, BlockStored, KvEvent } from './kv-event.ts';
import { keyTable, readKey, readWord, UNKNOWN_KEY } from './map-keys.ts';
import type { MsgpackReader } from './msgpack-reader.ts';

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

export type EventReader = {
  begin(): void;
  /** Reads the next event; after a reason the position is anywhere inside it. */
  read(): KvEvent | SkipReason;
  /**
   * Reads on while the next events, at most `atMost`, are the last one again but for their one hash.
   * @param start where the last event began
   * @returns the last one and those in one, with `nEvents`
   */
  joinRemovals(removed: BlockRemoved, start: number, atMost: number): BlockRemoved;
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
const STORED = 0;
const REMOVED = 1;
const CLEARED = 2;
const EVENT_TYPES = keyTable([
  ['BlockStored', STORED],
  ['BlockRemoved', REMOVED],
  ['AllBlocksCleared', CLEARED],
]);
const OTHER_TYPE = UNKNOWN_KEY;
const NO_TYPE = -2;

/** Words kept between batches; a larger batch gets memory of its own. */
const KEPT_WORDS = 1 << 18;
const NO_WORDS = new Uint32Array(0);
const ALL_BLOCKS_CLEARED = { type: 'AllBlocksCleared' } as const;

export function createEventReader(reader: MsgpackReader, bounds: DecodeLimits): EventReader {
  const kept = new Uint32Array(KEPT_WORDS);
  let words: Uint32Array = kept;
  let nWords = 0;
  const hashWords = new Uint32Array(2);
  const texts = createTextReader(reader, bounds.maxTextBytes);
  let type = NO_TYPE;
  let form: 'array' | 'map' = 'map';
  /** Bit per field that was there, null or not. */
  let seen = 0;
  let blockHashes: Uint32Array = NO_WORDS;
  /** Where the only hash of the event lies, as 8 bytes; −1 when there are more or they are written otherwise. */
  let loneHashAt = -1;
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
    loneHashAt = n === 1 && reader.isLong() ? reader.pos + 1 : -1;
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

  /** A field that decides nothing is not worth an event. */
  const readAside = (field: number): null => {
    const start = reader.pos;
    const reason = field === SPEC_WINDOW ? readInteger(field) : readText(field);
    if (reason === null) return null;
    reader.pos = start;
    reader.skip();
    seen &= ~(1 << field);
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
    strings[LORA_NAME] = null;
    const nPairs = reader.mapHeader();
    let nKnown = 0;
    for (let i = 0; i < nPairs; i++) {
      const key = readKey(reader, EVENT_KEYS);
      if (key !== CACHE_SALT && key !== LORA_NAME && key !== SESSION_ID) {
        reader.skip();
        continue;
      }
      nKnown++;
      seen |= 1 << key;
      const reason = key === SESSION_ID ? readAside(key) : readText(key);
      if (reason !== null) return reason;
    }
    // Something else about the adapter: taken for nothing it would make the block one of the base model.
    return nKnown > 0 ? null : 'bad_field';
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
        return readInteger(field);
      case SPEC_WINDOW:
      case OWNERSHIP:
      case SESSION_ID:
        return readAside(field);
      case LORA_NAME:
        return form === 'array' && isMap(reader.peek()) ? readMetadata() : readText(field);
      case TYPE:
        reader.skip();
        return null;
      default:
        return readText(field);
    }
  };

  const readArrayEvent = (nElements: number): KvEvent | SkipReason => {
    form = 'array';
    if (nElements === 0) return 'no_event';
    type = readEventType(reader);
    if (type === NO_TYPE) return 'no_event';
    if (type === OTHER_TYPE) return 'unknown_type';
    if (type === STORED && nElements < MIN_STORED_ELEMENTS) return 'missing_field';
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
    form = 'map';
    const start = reader.pos;
    type = findType(reader, nPairs);
    if (type === NO_TYPE) return 'no_event';
    if (type === OTHER_TYPE) return 'unknown_type';
    reader.pos = start;
    for (let i = 0; i < nPairs; i++) {
      const key = readKey(reader, EVENT_KEYS);
      // Whatever a clear may come to say besides: it clears.
      if (key < 0 || type === CLEARED) reader.skip();
      else {
        const reason = readField(key);
        if (reason !== null) return reason;
      }
    }
    return build();
  };

  const has = (field: number): boolean => (seen & (1 << field)) !== 0;
  const int = (field: number): number | null => (has(field) ? ints[field]! : null);
  const text = (field: number): string | null => (has(field) ? strings[field]! : null);

  const build = (): KvEvent | SkipReason => {
    if (type === CLEARED) return ALL_BLOCKS_CLEARED;
    if (!has(HASHES)) return 'missing_field';
    return type === STORED ? buildStored() : buildRemoved();
  };

  const buildRemoved = (): BlockRemoved => {
    const event = { type: 'BlockRemoved', blockHashes, medium: text(MEDIUM), groupIdx: int(GROUP_IDX) } as const;
    return has(LOCALITY) || has(OWNERSHIP) ? { ...event, locality: text(LOCALITY), ownership: text(OWNERSHIP) } : event;
  };

  const buildStored = (): BlockStored | SkipReason => {
    const blockSizeTokens = int(BLOCK_SIZE) ?? 0;
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
      loraId: int(LORA_ID),
      loraName: text(LORA_NAME),
      medium: text(MEDIUM),
      extraKeys,
      groupIdx: int(GROUP_IDX),
      kvCacheSpecKind: text(SPEC_KIND),
      kvCacheSpecSlidingWindow: int(SPEC_WINDOW),
      cacheSalt: text(CACHE_SALT),
      locality: text(LOCALITY),
      ownership: text(OWNERSHIP),
      sessionId: text(SESSION_ID),
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
      loneHashAt = -1;
      const nElements = reader.arrayHeader();
      if (nElements >= 0) return readArrayEvent(nElements);
      const nPairs = reader.mapHeader();
      return nPairs >= 0 ? readMapEvent(nPairs) : 'no_event';
    },
    joinRemovals(removed, start, atMost) {
      // An engine that evicts writes one event per block; all of a step follow each other.
      const n = loneHashAt < 0 ? 0 : reader.countAlike(start, loneHashAt, atMost);
      if (n === 0) return removed;
      const joined = take(2 * (1 + n));
      joined.set(removed.blockHashes);
      reader.alikeHashes(joined.subarray(2), reader.pos - start, loneHashAt - start, n);
      return { ...removed, blockHashes: joined, nEvents: 1 + n };
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
  const nElements = reader.arrayHeader();
  if (nElements >= 0) {
    if (nElements !== 2) return null;
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
  const lastBytes: DataView[] = [];
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
  return n < 0 ? NO_TYPE : readWord(reader, n, EVENT_TYPES);
}

function isMap(tag: number): boolean {
  return (tag >= 0x80 && tag <= 0x8f) || tag === 0xde || tag === 0xdf;
}
