/**
 * A KV event publisher over real ZMQ sockets that does exactly what it is told, faults included. As strict as vLLM's: three
 * frames live, replay requests of any other form dropped without a word, an end marker, a buffer that ends.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { Packr } from 'msgpackr';
import { Publisher, Router } from 'zeromq';

export type FakePublisherOptions = {
  /** 3: delimiter, sequence, payload. 4: a topic before the sequence (vLLM 0.26 and later). */
  readonly replayFrames?: 3 | 4;
  /** Batches kept for replay. */
  readonly bufferSteps?: number;
  readonly firstSeq?: number;
  readonly topic?: string;
  /** Connects there instead of binding. */
  readonly dials?: string;
  /** Addresses to bind again after a restart. */
  readonly at?: { readonly endpoint: string; readonly replayEndpoint: string };
};

const END = Buffer.alloc(8, 0xff);
const EMPTY = Buffer.alloc(0);
const packr = new Packr({ useRecords: false });

export class FakePublisher {
  readonly endpoint: string;
  readonly replayEndpoint: string;
  /** Start sequences of the replays asked for. */
  readonly requests: bigint[] = [];
  /** Called for every reply; false loses it. The end marker has no sequence number. */
  sendsReply: (seq: number | null) => boolean = () => true;
  answersReplays = true;
  /** Its clock. */
  unixMs: () => number = Date.now;
  /** Called before every reply: frames to send in between. */
  replyNoise: () => Buffer[] | null = () => null;
  nextSeq: number;
  private readonly kept: { seq: number; payload: Buffer }[] = [];
  private readonly pub: Publisher;
  private readonly router: Router;
  private readonly options: FakePublisherOptions;
  private sending: Promise<void> = Promise.resolve();

  private constructor(pub: Publisher, router: Router, options: FakePublisherOptions) {
    this.pub = pub;
    this.router = router;
    this.options = options;
    this.endpoint = pub.lastEndpoint ?? options.dials!;
    this.replayEndpoint = router.lastEndpoint!;
    this.nextSeq = options.firstSeq ?? 0;
    void this.serve();
  }

  static async start(options: FakePublisherOptions = {}): Promise<FakePublisher> {
    const pub = new Publisher({ sendHighWaterMark: 0, linger: 0 });
    const router = new Router({ sendHighWaterMark: 0, linger: 0 });
    if (options.dials === undefined) await bind(pub, options.at?.endpoint ?? 'tcp://127.0.0.1:*');
    else pub.connect(options.dials);
    await bind(router, options.at?.replayEndpoint ?? 'tcp://127.0.0.1:*');
    return new FakePublisher(pub, router, options);
  }

  /** The next process at the same addresses. */
  async restart(options: FakePublisherOptions = {}): Promise<FakePublisher> {
    await this.stop();
    return FakePublisher.start({ ...options, at: this });
  }

  async publish(...events: unknown[]): Promise<void> {
    await this.send(this.number(this.pack(events)));
  }

  /** Numbered and kept for replay, but lost on its way. */
  lose(...events: unknown[]): void {
    this.number(this.pack(events));
  }

  /** A payload of any kind under the next number. */
  async publishRaw(payload: Buffer): Promise<void> {
    await this.send(this.number(payload));
  }

  /** Frames of any kind; numbered and kept they are not. */
  async sendFrames(...frames: Buffer[]): Promise<void> {
    await this.queue(() => this.pub.send(frames));
  }

  async stop(): Promise<void> {
    this.pub.close();
    this.router.close();
    await this.sending.catch(() => undefined);
  }

  private pack(events: unknown[]): Buffer {
    return packr.pack([this.unixMs() / 1000, events, 0]);
  }

  private number(payload: Buffer): { seq: number; payload: Buffer } {
    const batch = { seq: this.nextSeq++, payload };
    this.kept.push(batch);
    if (this.kept.length > (this.options.bufferSteps ?? 10_000)) this.kept.shift();
    return batch;
  }

  private send({ seq, payload }: { seq: number; payload: Buffer }): Promise<void> {
    return this.queue(() => this.pub.send([this.options.topic ?? 'kv@test', seqFrame(seq), payload]));
  }

  private queue(work: () => Promise<void>): Promise<void> {
    this.sending = this.sending.then(work);
    return this.sending;
  }

  private async serve(): Promise<void> {
    try {
      for await (const frames of this.router) {
        const [identity, delimiter, start] = frames;
        if (frames.length !== 3 || delimiter!.byteLength > 0 || start!.byteLength !== 8) continue;
        this.requests.push(start!.readBigUInt64BE());
        if (this.answersReplays) await this.replay(identity!, start!.readBigUInt64BE());
      }
    } catch (error) {
      // The socket is closed while a reply is on its way.
      if (!this.router.closed) throw error;
    }
  }

  private async replay(identity: Buffer, start: bigint): Promise<void> {
    const topic = (text: string): Buffer[] => (this.options.replayFrames === 4 ? [Buffer.from(text)] : []);
    for (const { seq, payload } of [...this.kept]) {
      if (BigInt(seq) < start || !this.sendsReply(seq)) continue;
      const noise = this.replyNoise();
      if (noise !== null) await this.router.send([identity, ...noise]);
      await this.router.send([identity, EMPTY, ...topic('kv@test'), seqFrame(seq), payload]);
    }
    if (this.sendsReply(null)) await this.router.send([identity, EMPTY, ...topic(''), END, EMPTY]);
  }
}

/** A port just given up may be taken for a moment yet. */
async function bind(socket: Publisher | Router, endpoint: string): Promise<void> {
  const deadline = performance.now() + 2000;
  for (;;) {
    try {
      await socket.bind(endpoint);
      return;
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await nextTurn();
    }
  }
}

function seqFrame(seq: number): Buffer {
  const frame = Buffer.alloc(8);
  frame.writeBigUInt64BE(BigInt(seq));
  return frame;
}

/** BlockStored of consecutive blocks in map form. */
export function stored(hashes: readonly number[], parent: number | null, tokenIds: readonly number[]): object {
  return {
    type: 'BlockStored',
    block_hashes: hashes,
    parent_block_hash: parent,
    token_ids: tokenIds,
    block_size: tokenIds.length / hashes.length,
    lora_id: null,
    medium: 'GPU',
    lora_name: null,
    extra_keys: hashes.map(() => null),
    group_idx: 0,
    kv_cache_spec_kind: 'full_attention',
  };
}

export function removed(...hashes: number[]): object {
  return { type: 'BlockRemoved', block_hashes: hashes, medium: 'GPU', group_idx: 0 };
}
