/**
 * Random histories of one publisher and the lines between it and us (loss, cut replays, garbage, restarts, lost
 * connections) against a model that knows everything. Whatever happens, a live view never holds a block the publisher did
 * not hold, and once it is quiet the view is what the publisher holds. Views taken over from a sibling, bit by bit while all
 * of that goes on, are no exception.
 */
import { describe, expect, test } from '@jest/globals';
import * as fc from 'fast-check';
import {
  createEventStream,
  type ApplyOutcome,
  type EventStream,
  type ReplayPurpose,
  type StreamMark,
} from '../../src/kvevents/event-stream.ts';

type Op = { readonly op: '+' | '-' | 'x'; readonly block: number };
type Batch = { readonly life: number; readonly seq: number; readonly ops: readonly Op[] };
/** What a sibling had at a mark: all that the publisher held then. */
type Told = { readonly mark: StreamMark; readonly life: number; readonly copies: ReadonlyMap<number, number> };
type Message =
  { readonly seq: bigint; readonly payload: Uint8Array } | 'garbage' | 'end' | { readonly event: 'up' | 'down' };

const N_BLOCKS = 6;

function encode(batch: Batch): Uint8Array {
  return Buffer.from(JSON.stringify(batch));
}

/** A publisher with a replay buffer that may be too short, and two lines that lose things. */
class World {
  life = 0;
  firstSeq = 0;
  batches: Batch[] = [];
  isUp = false;
  nowMs = 0;
  readonly live: Message[] = [];
  replies: Message[] = [];
  request: bigint | null = null;
  purpose: ReplayPurpose = 'learn';
  /** What the stream has applied since the last clear, and the copies that makes. */
  applied: Batch[] = [];
  copies = new Map<number, number>();
  dropLive = 0;
  dropReplies = 0;
  /** Of every process so far. */
  readonly lives: { readonly firstSeq: number; readonly batches: Batch[] }[] = [];
  readonly told: Told[] = [];
  /** What is left to fill in. */
  installing: [number, number][] | null = null;
  viewLife = 0;
  nAdopted = 0;
  /** A stream that nothing is lost of; null once a batch came that nobody can read. */
  sibling: EventStream | null = null;
  readonly bufferSteps: number;
  readonly stream: EventStream;

  constructor(bufferSteps: number, replay: 'works' | 'none') {
    this.bufferSteps = bufferSteps;
    this.lives.push({ firstSeq: 0, batches: this.batches });
    this.sibling = followed();
    this.stream = createEventStream(
      {
        apply: (payload) => this.apply(payload),
        isBatch: (payload) => payload[0] === 0x7b,
        clear: () => {
          this.applied = [];
          this.copies.clear();
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
          this.installing = null;
        },
        onGap: () => undefined,
        onRestart: () => undefined,
        onReplay: () => undefined,
      },
      { canReplay: replay === 'works', random: () => 0.5, maxBufferedBytes: 400 },
    );
  }

  apply(payload: Uint8Array): ApplyOutcome {
    if (payload[0] !== 0x7b) return 'refused';
    const batch = JSON.parse(Buffer.from(payload).toString()) as Batch;
    this.applied.push(batch);
    this.viewLife = batch.life;
    applyOps(this.copies, batch.ops);
    return batch.ops.some(({ op }) => op === 'x') ? 'cleared' : 'applied';
  }

  publish(ops: readonly Op[], kind: 'good' | 'broken'): void {
    const batch: Batch = { life: this.life, seq: this.firstSeq + this.batches.length, ops };
    this.batches.push(kind === 'good' ? batch : { ...batch, seq: -1 });
    const message = { seq: BigInt(batch.seq), payload: this.payload(this.batches.length - 1) };
    if (kind === 'good') this.sibling?.received(message.seq, message.payload, this.nowMs);
    else this.sibling = null;
    if (this.dropLive > 0) this.dropLive--;
    else if (this.isUp) this.live.push(message);
  }

  payload(i: number): Uint8Array {
    const batch = this.batches[i]!;
    return batch.seq < 0 ? Buffer.from(`broken ${this.life} ${i}`) : encode(batch);
  }

  /** The publisher reads the request, whoever it was meant for. */
  serveReplay(): void {
    if (this.request === null) return;
    // A new process takes longer to start than the loss of the old one's connection takes to be seen. Repairs and probes
    // do not even rest on that: they compare.
    const isOldLifeSeen = this.live.every((message) => typeof message !== 'object' || !('event' in message));
    if (this.purpose === 'learn' && !isOldLifeSeen) return;
    const from = Math.max(Number(this.request) - this.firstSeq, this.batches.length - this.bufferSteps, 0);
    for (let i = from; i < this.batches.length; i++) {
      if (this.dropReplies > 0 && i % 2 === 1) this.dropReplies--;
      else this.replies.push({ seq: BigInt(this.firstSeq + i), payload: this.payload(i) });
    }
    if (this.dropReplies > 0) this.dropReplies--;
    else this.replies.push('end');
    this.request = null;
  }

  restart(firstSeq: number): void {
    this.disconnect();
    this.life++;
    this.firstSeq = firstSeq;
    this.batches = [];
    this.lives.push({ firstSeq, batches: this.batches });
    this.sibling = followed();
  }

  /** A sibling that has missed nothing writes down what it knows. */
  tell(): void {
    const mark = this.sibling?.mark() ?? null;
    if (mark !== null) this.told.push({ mark, life: this.life, copies: this.truth() });
  }

  adopt(i: number): void {
    const told = this.told[i % Math.max(1, this.told.length)];
    if (told === undefined || !this.stream.adopt(told.mark)) return;
    this.viewLife = told.life;
    this.installing = [...told.copies];
  }

  install(): void {
    if (this.installing === null) return;
    const next = this.installing.shift();
    if (next !== undefined) this.copies.set(...next);
    else {
      this.installing = null;
      this.nAdopted++;
      this.stream.adopted('whole');
    }
  }

  disconnect(): void {
    if (!this.isUp) return;
    this.isUp = false;
    this.live.push({ event: 'down' });
  }

  connect(): void {
    if (this.isUp) return;
    this.isUp = true;
    this.live.push({ event: 'up' });
  }

  deliverLive(): void {
    const message = this.live.shift();
    if (message === undefined || message === 'end') return;
    if (message === 'garbage') this.stream.garbage(this.nowMs);
    else if ('event' in message) {
      if (message.event === 'up') this.stream.connected(this.nowMs);
      else this.stream.disconnected(this.nowMs);
    } else this.stream.received(message.seq, message.payload, this.nowMs);
  }

  deliverReply(): void {
    const message = this.replies.shift();
    if (message === 'end') this.stream.replayEnded(this.nowMs);
    else if (message !== undefined && message !== 'garbage' && 'seq' in message) {
      this.stream.replayReceived(message.seq, message.payload, this.nowMs);
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
    for (let round = 0; round < 2000; round++) {
      while (this.live.length > 0) this.deliverLive();
      this.serveReplay();
      while (this.replies.length > 0) this.deliverReply();
      this.install();
      this.pass(50);
    }
  }

  truth(): Map<number, number> {
    return this.truthAt(this.life, BigInt(this.firstSeq + this.batches.length - 1));
  }

  truthAt(life: number, lastSeq: bigint): Map<number, number> {
    const copies = new Map<number, number>();
    const { firstSeq, batches } = this.lives[life]!;
    for (const { ops } of batches.slice(0, Number(lastSeq) - firstSeq + 1)) applyOps(copies, ops);
    return copies;
  }
}

/** A stream of a publisher that has sent nothing yet, live. */
function followed(): EventStream {
  const nothing = (): undefined => undefined;
  const stream = createEventStream({
    apply: () => 'applied',
    isBatch: () => true,
    clear: nothing,
    requestReplay: nothing,
    cancelReplay: nothing,
    onGap: nothing,
    onRestart: nothing,
    onReplay: nothing,
  });
  stream.connected(0);
  stream.replayStarted(0);
  stream.replayEnded(0);
  return stream;
}

function applyOps(copies: Map<number, number>, ops: readonly Op[]): void {
  for (const { op, block } of ops) {
    if (op === 'x') copies.clear();
    else {
      const n = (copies.get(block) ?? 0) + (op === '+' ? 1 : -1);
      if (n > 0) copies.set(block, n);
      else copies.delete(block);
    }
  }
}

/** Consecutive batches of one publisher: then removals that were missed cannot exist behind the first of them. */
function checkNothingInvented(world: World): void {
  const { state, lastSeq } = world.stream.status();
  if (state !== 'live') return;
  world.applied.forEach((batch, i) => {
    const before = world.applied[i - 1];
    if (before === undefined) return;
    expect({ life: batch.life, seq: batch.seq }).toEqual({ life: before.life, seq: before.seq + 1 });
  });
  const last = world.applied.at(-1);
  if (last !== undefined && lastSeq !== null) expect(BigInt(last.seq)).toBe(lastSeq);
  if (lastSeq === null) return;
  const truth = world.truthAt(world.viewLife, lastSeq);
  for (const [block, n] of world.copies) expect(truth.get(block) ?? 0).toBeGreaterThanOrEqual(n);
}

const opArbitrary = fc.oneof(
  { weight: 6, arbitrary: fc.record({ op: fc.constant('+' as const), block: fc.nat(N_BLOCKS - 1) }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('-' as const), block: fc.nat(N_BLOCKS - 1) }) },
  { weight: 1, arbitrary: fc.constant({ op: 'x' as const, block: 0 }) },
);

type Step = { readonly name: string; run(world: World): void };

const step = (name: string, run: (world: World) => void): Step => ({ name, run });
const stepArbitrary: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.array(opArbitrary, { maxLength: 4 }).map((ops) => step(`publish ${JSON.stringify(ops)}`, (w) => w.publish(ops, 'good'))) },
  { weight: 1, arbitrary: fc.constant(step('publish broken', (w) => w.publish([], 'broken'))) },
  { weight: 10, arbitrary: fc.constant(step('deliver', (w) => w.deliverLive())) },
  { weight: 4, arbitrary: fc.constant(step('serve', (w) => w.serveReplay())) },
  { weight: 10, arbitrary: fc.constant(step('reply', (w) => w.deliverReply())) },
  { weight: 4, arbitrary: fc.constantFrom(10, 300, 2500).map((ms) => step(`pass ${ms}`, (w) => w.pass(ms))) },
  { weight: 2, arbitrary: fc.integer({ min: 1, max: 3 }).map((n) => step(`lose ${n}`, (w) => (w.dropLive += n))) },
  { weight: 2, arbitrary: fc.integer({ min: 1, max: 3 }).map((n) => step(`lose ${n} replies`, (w) => (w.dropReplies += n))) },
  { weight: 1, arbitrary: fc.constant(step('garbage', (w) => w.live.push('garbage'))) },
  { weight: 1, arbitrary: fc.nat(12).map((seq) => step(`foreign ${seq}`, (w) => w.live.push({ seq: BigInt(seq), payload: Buffer.from('?') }))) },
  { weight: 2, arbitrary: fc.constant(step('connect', (w) => w.connect())) },
  { weight: 1, arbitrary: fc.constant(step('disconnect', (w) => w.disconnect())) },
  { weight: 1, arbitrary: fc.constantFrom(0, 0, 5, 20).map((seq) => step(`restart at ${seq}`, (w) => w.restart(seq))) },
  { weight: 3, arbitrary: fc.constant(step('tell', (w) => w.tell())) },
  { weight: 3, arbitrary: fc.nat(9).map((i) => step(`adopt ${i}`, (w) => w.adopt(i))) },
  { weight: 6, arbitrary: fc.constant(step('install', (w) => w.install())) },
  { weight: 1, arbitrary: fc.constant(step('told of a restart', (w) => w.stream.restarted(w.nowMs))) },
); // prettier-ignore

const historyArbitrary = fc.array(stepArbitrary, { minLength: 5, maxLength: 80 });

describe('random histories of one source', () => {
  test.each([
    ['a replay buffer that reaches far back', 1000],
    ['a replay buffer shorter than the gaps', 3],
  ])('%s: a live view never holds what the publisher does not, and is equal once quiet', (_what, bufferSteps) => {
    fc.assert(
      fc.property(historyArbitrary, (history) => {
        const world = new World(bufferSteps, 'works');
        world.connect();
        for (const { run } of history) {
          run(world);
          checkNothingInvented(world);
        }
        world.settle();
        checkNothingInvented(world);
        const { state, lastSeq, partial } = world.stream.status();
        const truth = world.truth();
        expect(state).toBe('live');
        if (world.batches.length > 0) expect(lastSeq).toBe(BigInt(world.firstSeq + world.batches.length - 1));
        for (const [block, n] of world.copies) expect(truth.get(block) ?? 0).toBeGreaterThanOrEqual(n);
        if (!partial) expect(world.copies).toEqual(truth);
      }),
      { numRuns: 1500 },
    );
  });

  test('a view with holes and a sibling that has none: what is taken over is never more than the publisher holds', () => {
    const firstBatches = fc.array(fc.array(opArbitrary, { maxLength: 4 }), { minLength: 4, maxLength: 6 });
    let nAdopted = 0;
    let nInterrupted = 0;
    let nWhole = 0;
    fc.assert(
      fc.property(firstBatches, historyArbitrary, (batches, history) => {
        const world = new World(3, 'works');
        for (const ops of batches) world.publish(ops, 'good');
        world.connect();
        world.deliverLive();
        world.serveReplay();
        while (world.replies.length > 0) world.deliverReply();
        expect(world.stream.status().state).toBe('live');
        world.tell();
        world.adopt(0);
        for (const { run } of history) {
          const wasInstalling = world.installing !== null;
          const nBefore = world.nAdopted;
          run(world);
          checkNothingInvented(world);
          if (wasInstalling && world.installing === null && world.nAdopted === nBefore) nInterrupted++;
        }
        world.settle();
        checkNothingInvented(world);
        const { state, partial } = world.stream.status();
        expect(state).toBe('live');
        if (!partial) expect(world.copies).toEqual(world.truth());
        nAdopted += world.nAdopted;
        if (!partial && world.nAdopted > 0) nWhole++;
      }),
      { numRuns: 800 },
    );
    // A test in which nothing is taken over shows nothing.
    expect(Math.min(nAdopted, nInterrupted, nWhole)).toBeGreaterThan(50);
  });

  test('a publisher that cannot replay: a live view never holds what the publisher does not', () => {
    fc.assert(
      fc.property(historyArbitrary, (history) => {
        const world = new World(1000, 'none');
        world.connect();
        for (const { run } of history) {
          run(world);
          checkNothingInvented(world);
        }
        expect(world.request).toBeNull();
      }),
      { numRuns: 1500 },
    );
  });
});
