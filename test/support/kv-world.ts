/**
 * Engines that publish what they hold, as bytes, over lines that lose things, and the product behind them from decoder to
 * index: everything but sockets and threads. What an engine holds is kept in plain maps, for every batch it ever sent.
 */
import { Packr } from 'msgpackr';
import { createBatchApplier } from '../../src/kvevents/batch-applier.ts';
import { createKvEventDecoder } from '../../src/kvevents/decode.ts';
import type { EngineBlocksSource } from '../../src/kvevents/engine-blocks.ts';
import { createEventStream, type EventStream, type ReplayPurpose } from '../../src/kvevents/event-stream.ts';
import { createIndexBench } from './kv-events.ts';

export type Random = (n: number) => number;

/** A prompt. Block ids below `IMAGE` are texts of their own; from it on they have the tokens of a text, and an image. */
export type Prompt = {
  readonly adapter: string | null;
  readonly salt: string | null;
  readonly size: number;
  readonly blocks: readonly number[];
};

/** How an engine writes. sglang: salts and adapters beside hashes that do not cover adapters, images are not told. */
export type Dialect = 'arrays' | 'maps' | 'sglang';

/** Copies per medium, by all that a block's key covers. */
type Holding = ReadonlyMap<string, readonly number[]>;
type Batch = { readonly seq: number; readonly life: number; readonly payload: Buffer; readonly after: Holding };
type Message = { readonly kind: 'batch'; readonly batch: Batch } | { readonly kind: 'raw'; readonly seq: number; readonly payload: Buffer } | { readonly kind: 'garbage' | 'up' | 'down' | 'end' }; // prettier-ignore

export const IMAGE = 2;
export const N_BLOCK_IDS = 3;
const MEDIA_WORDS = ['GPU', 'CPU', 'DISK'];
const N_MEDIA = MEDIA_WORDS.length;
const packr = new Packr({ useRecords: false });

const decoder = createKvEventDecoder({}, 'joined');

/** What a block's key covers: everything from the start of its prompt on. */
export function pathsOf(prompt: Prompt): string[] {
  const head = `${prompt.adapter}|${prompt.salt}|${prompt.size}`;
  return prompt.blocks.map((_, i) => `${head}|${prompt.blocks.slice(0, i + 1).join(',')}`);
}

export function tokensOf(id: number, size: number): number[] {
  const text = id >= IMAGE ? id - IMAGE : id;
  return Array.from({ length: size }, (_, i) => text * 1000 + i);
}

export class Pod {
  readonly slot: number;
  readonly stream: EventStream;
  nowMs = 0;
  size: number;
  life = 0;
  firstSeq = 0;
  batches: Batch[] = [];
  isUp = false;
  dropLive = 0;
  dropReplies = 0;
  nSkipped = 0;
  /** Batches that the product has applied since it last forgot, and whether all were of one life, in turn. */
  private applied: Batch | null = null;
  inOrder = true;
  private holding = new Map<string, number[]>();
  private readonly live: Message[] = [];
  private replies: Message[] = [];
  private request: bigint | null = null;
  private purpose: ReplayPurpose = 'learn';
  private readonly random: Random;
  private readonly dialect: Dialect;
  private readonly hashSeed: string;
  private readonly bufferSteps: number;

  constructor(
    blocks: EngineBlocksSource,
    random: Random,
    options: { slot: number; dialect: Dialect; hashSeed: string; bufferSteps: number; size: number; replay: 'works' | 'none' },
  ) {
    this.random = random;
    this.slot = options.slot;
    this.dialect = options.dialect;
    this.hashSeed = options.hashSeed;
    this.bufferSteps = options.bufferSteps;
    this.size = options.size;
    const applier = createBatchApplier({ decoder, blocks, onEvents: () => undefined, onError: () => void this.nSkipped++ });
    this.stream = createEventStream(
      {
        apply: (payload) => {
          const outcome = applier.apply(payload);
          if (outcome !== 'refused') this.noteApplied(payload);
          return outcome;
        },
        isBatch: applier.isBatch,
        clear: () => {
          blocks.clear();
          this.applied = null;
        },
        requestReplay: (from, purpose) => {
          this.replies = [];
          this.request = from;
          this.purpose = purpose;
          this.stream.replayStarted(this.nowMs);
        },
        cancelReplay: () => {
          this.replies = [];
          this.request = null;
        },
        onGap: () => undefined,
        onRestart: () => undefined,
        onReplay: () => undefined,
      },
      { canReplay: options.replay === 'works', random: () => 0.5, maxBufferedBytes: 4000 },
    );
  } // prettier-ignore

  /** By their bytes: what is applied may be a copy. No two are alike, since each has its number. */
  private readonly byPayload = new Map<string, Batch>();

  private noteApplied(payload: Uint8Array): void {
    const batch = this.byPayload.get(bytesOf(payload));
    if (batch === undefined) throw new Error('applied what was never published');
    const before = this.applied;
    if (before !== null) this.inOrder &&= batch.life === before.life && batch.seq === before.seq + 1;
    this.applied = batch;
  }

  /** What the engine held when it had sent the last batch that was applied. */
  get believed(): Holding {
    return this.applied?.after ?? new Map();
  }

  get truth(): Holding {
    return this.holding;
  }

  // ---- the engine

  private name(path: string): bigint {
    const named = this.dialect === 'sglang' ? path.replace(/^[^|]*/, '') : path;
    return hash64(`${this.hashSeed}|${named}`);
  }

  /** Consecutive blocks of a prompt; the parent may be long gone. */
  store(prompt: Prompt, from: number, to: number, medium: number): object {
    const paths = pathsOf(prompt);
    for (let at = from; at < to; at++) this.change(paths[at]!, medium, 1);
    const ids = prompt.blocks.slice(from, to);
    const fields = {
      block_hashes: paths.slice(from, to).map((path) => this.name(path)),
      parent_block_hash: from === 0 ? null : this.name(paths[from - 1]!),
      token_ids: ids.flatMap((id) => tokensOf(id, prompt.size)),
      block_size: prompt.size,
      lora_id: null,
      medium: MEDIA_WORDS[medium],
    };
    if (this.dialect === 'sglang') {
      const salt = prompt.salt === null ? {} : { cache_salt: prompt.salt };
      return { type: 'BlockStored', ...fields, ...salt, ...(prompt.adapter === null ? {} : { lora_name: prompt.adapter }) };
    }
    const extra_keys = extraKeysOf(prompt)
      .slice(from, to)
      .map((keys) => (prompt.adapter === null ? keys : [prompt.adapter, ...(keys ?? [])]));
    const all = { ...fields, lora_name: prompt.adapter, extra_keys, group_idx: 0, kv_cache_spec_kind: 'full_attention' };
    return this.dialect === 'maps' ? { type: 'BlockStored', ...all } : ['BlockStored', ...Object.values(all)];
  } // prettier-ignore

  /** @param form broken: the engine removes it all the same, and nobody can read what */
  remove(path: string, medium: number, form: 'good' | 'broken'): object {
    this.change(path, medium, -1);
    const hashes = form === 'good' ? [this.name(path)] : ['?'];
    if (this.dialect === 'arrays') return ['BlockRemoved', hashes, MEDIA_WORDS[medium], 0];
    return { type: 'BlockRemoved', block_hashes: hashes, medium: MEDIA_WORDS[medium] };
  }

  /** Only "this hash is in host memory now". */
  locate(path: string): object {
    this.change(path, 1, 1);
    return { type: 'BlockStored', block_hashes: [this.name(path)], parent_block_hash: null, token_ids: [], block_size: 0,
      lora_id: null, medium: 'CPU' }; // prettier-ignore
  }

  clear(): object {
    this.holding.clear();
    return this.dialect === 'arrays' ? ['AllBlocksCleared'] : { type: 'AllBlocksCleared' };
  }

  /** A block the engine holds, null when it holds none. */
  anyHeld(): { path: string; medium: number } | null {
    const paths = [...this.holding.keys()];
    if (paths.length === 0) return null;
    const path = paths[this.random(paths.length)]!;
    const media = this.holding.get(path)!.flatMap((n, medium) => (n > 0 ? [medium] : []));
    return { path, medium: media[this.random(media.length)]! };
  }

  holdsBlock(prompt: Prompt, at: number): boolean {
    return this.holding.has(pathsOf(prompt)[at]!);
  }

  tellsImages(): boolean {
    return this.dialect !== 'sglang';
  }

  /** Whether everything the engine holds can be known from what it tells. */
  dialectIsExact(): boolean {
    return this.dialect !== 'sglang';
  }

  /** Whether it sends hashes alone, without tokens. */
  sendsPlaceholders(): boolean {
    return this.dialect !== 'sglang';
  }

  private change(path: string, medium: number, by: number): void {
    const copies = this.holding.get(path)?.slice() ?? new Array<number>(N_MEDIA).fill(0);
    copies[medium] = Math.max(0, copies[medium]! + by);
    if (copies.some((n) => n > 0)) this.holding.set(path, copies);
    else this.holding.delete(path);
  }

  publish(events: readonly object[], form: 'good' | 'broken'): void {
    const seq = this.firstSeq + this.batches.length;
    const good = packr.pack([1000 * this.life + seq, events, 0]);
    const payload = Buffer.from(form === 'good' ? good : good.subarray(0, good.length - 1));
    const after = new Map([...this.holding].map(([path, copies]) => [path, copies.slice()]));
    const batch: Batch = { seq, life: this.life, payload, after };
    this.byPayload.set(bytesOf(payload), batch);
    this.batches.push(batch);
    if (this.dropLive > 0) this.dropLive--;
    else if (this.isUp) this.live.push({ kind: 'batch', batch });
  }

  /** The process ends; the next one holds nothing. */
  restart(firstSeq: number, size: number): void {
    this.disconnect();
    this.begin(firstSeq, size);
  }

  /**
   * The next process takes over so fast that nobody sees the connection end. Its numbers are far below or above the old
   * ones, or the same again, and unheard until they have passed them: the very next number would look like the old process.
   */
  restartUnseen(size: number): void {
    // What is being learnt from one process cannot be told from what another one sends meanwhile.
    if (this.stream.state() !== 'live' || this.live.length > 0) return;
    if (this.random(2) === 0) {
      this.dropLive += this.batches.length + 2;
      this.begin(this.firstSeq, size);
    } else this.begin(this.firstSeq >= 1000 ? 0 : 100_000 * (this.life + 1), size);
  }

  private begin(firstSeq: number, size: number): void {
    this.life++;
    this.firstSeq = firstSeq;
    this.size = size;
    this.batches = [];
    this.holding = new Map();
  }

  // ---- the lines

  connect(): void {
    if (!this.isUp) this.live.push({ kind: 'up' });
    this.isUp = true;
  }

  disconnect(): void {
    if (this.isUp) this.live.push({ kind: 'down' });
    this.isUp = false;
  }

  inject(message: 'garbage' | { seq: number; payload: Buffer }): void {
    this.live.push(message === 'garbage' ? { kind: 'garbage' } : { kind: 'raw', ...message });
  }

  deliverLive(): void {
    const message = this.live.shift();
    if (message === undefined) return;
    if (message.kind === 'batch') this.stream.received(BigInt(message.batch.seq), message.batch.payload, this.nowMs);
    else if (message.kind === 'raw') this.stream.received(BigInt(message.seq), message.payload, this.nowMs);
    else if (message.kind === 'up') this.stream.connected(this.nowMs);
    else if (message.kind === 'down') this.stream.disconnected(this.nowMs);
    else this.stream.garbage(this.nowMs);
  }

  serveReplay(): void {
    if (this.request === null) return;
    // A new process takes longer to start than the loss of the old one's connection takes to be seen.
    const isSeen = this.live.every((one) =>
      one.kind === 'batch' ? one.batch.life === this.life : one.kind !== 'up' && one.kind !== 'down',
    );
    if ((this.purpose === 'learn' || this.applied === null) && !isSeen) return;
    const from = Math.max(Number(this.request) - this.firstSeq, this.batches.length - this.bufferSteps, 0);
    for (const batch of this.batches.slice(from)) {
      if (this.dropReplies > 0 && this.random(2) === 0) this.dropReplies--;
      else this.replies.push({ kind: 'batch', batch });
    }
    if (this.dropReplies > 0) this.dropReplies--;
    else this.replies.push({ kind: 'end' });
    this.request = null;
  }

  deliverReply(): void {
    const message = this.replies.shift();
    if (message?.kind === 'end') this.stream.replayEnded(this.nowMs);
    else if (message?.kind === 'batch') {
      this.stream.replayReceived(BigInt(message.batch.seq), message.batch.payload, this.nowMs);
    }
  }

  pass(ms: number): void {
    this.nowMs += ms;
    this.stream.tick(this.nowMs);
  }

  /** No faults any more, everything is delivered, some time goes by. */
  settle(): void {
    this.dropLive = this.dropReplies = 0;
    this.connect();
    // Quiet: long enough for a probe to have found what was lost last.
    for (let round = 0, nQuiet = 0; round < 400 && nQuiet < 12; round++) {
      while (this.live.length > 0) this.deliverLive();
      this.serveReplay();
      while (this.replies.length > 0) this.deliverReply();
      this.pass(250);
      const { state, replay } = this.stream.status();
      nQuiet = state === 'live' && replay === 'works' ? nQuiet + 1 : 0;
    }
  }
}

/** Per block: the image's key where it has one, the salt in the first. */
export function extraKeysOf({ blocks, salt }: Prompt): (readonly (string | readonly [string, number])[] | null)[] {
  return blocks.map((id, i) => {
    const image = id >= IMAGE ? [['img', 0] as const] : [];
    const keys = [...image, ...(i === 0 && salt !== null ? [salt] : [])];
    return keys.length === 0 ? null : keys;
  });
}

/** Blocks from the start that are held in any medium, and how many of them are fastest in each. */
export function matchOf(holding: Holding, prompt: Prompt): number[] {
  const found = new Array<number>(1 + N_MEDIA).fill(0);
  for (const path of pathsOf(prompt)) {
    const medium = holding.get(path)?.findIndex((n) => n > 0) ?? -1;
    if (medium < 0) break;
    found[0]!++;
    found[1 + medium]!++;
  }
  return found;
}

export { createIndexBench };

/** Good enough that names of one history never meet. */
function hash64(text: string): bigint {
  let hi = 0x811c9dc5;
  let lo = 0x9747b28c;
  for (let i = 0; i < text.length; i++) {
    hi = Math.imul(hi ^ text.charCodeAt(i), 0x01000193);
    lo = Math.imul(lo ^ text.charCodeAt(i), 0x85ebca6b) ^ (lo >>> 13);
  }
  return (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
}

function bytesOf(payload: Uint8Array): string {
  return Buffer.from(payload).toString('latin1');
}
