/**
 * One simulated engine in virtual time: passes over running requests first, then waiting ones first come first served,
 * chunked prefill, one token per pass for every request whose prompt is computed; when no block is free the youngest
 * running request starts again. Engines do not see each other, so each is advanced on its own up to the next arrival.
 */
import type { BlockChanges } from './block-cache.ts';
import { BlockCache } from './block-cache.ts';
import type { TimingModel } from './timing.ts';

export type EngineRequest = {
  readonly index: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Named as the engine's timing model says. */
  readonly blocks: Int32Array;
};

/** What became visible at the end of a pass. */
export type EngineNotice =
  | {
      readonly kind: 'first token';
      readonly timeMs: number;
      readonly request: EngineRequest;
      readonly cachedTokens: number;
    }
  | { readonly kind: 'finished'; readonly timeMs: number; readonly request: EngineRequest }
  | { readonly kind: 'blocks'; readonly timeMs: number; readonly changes: BlockChanges };

export type EngineCounters = {
  /** Prompt tokens of admitted requests, a preempted one counted again, and how many of them were cached. */
  queriedTokens: number;
  cachedTokens: number;
  computedPromptTokens: number;
  generatedTokens: number;
  preemptions: number;
  passes: number;
  busyMs: number;
};

type Sequence = {
  readonly request: EngineRequest;
  readonly submittedMs: number;
  /** Tokens whose KV exists. */
  computed: number;
  generated: number;
  /** Prompt tokens found in the cache when first admitted, -1 before. */
  cachedTokens: number;
  /** Blocks held: the first of `request.blocks`, then ones without a name. */
  named: number;
  anonymous: number;
  /** Of the pass under way: no prompt tokens of it are computed. */
  isDecoding: boolean;
};

export type EngineOptions = {
  readonly timing: TimingModel;
  readonly cacheBlocks: number;
  /** Above 1: that many times as fast as the timing model says. */
  readonly speed: number;
  readonly notify: (notice: EngineNotice) => void;
};

export class SimulatedEngine {
  readonly cache: BlockCache;
  readonly counters: EngineCounters = {
    queriedTokens: 0,
    cachedTokens: 0,
    computedPromptTokens: 0,
    generatedTokens: 0,
    preemptions: 0,
    passes: 0,
    busyMs: 0,
  };
  readonly speed: number;
  private readonly timing: TimingModel;
  private readonly notify: (notice: EngineNotice) => void;
  private readonly waitingQueue: Sequence[] = [];
  private waitingHead = 0;
  private running: Sequence[] = [];
  /** End of the pass under way or of the last one. */
  private freeAtMs = 0;
  /** Requests that get a token at the end of the pass under way. */
  private readonly ready: Sequence[] = [];
  private passRuns = false;

  constructor({ timing, cacheBlocks, speed, notify }: EngineOptions) {
    this.cache = new BlockCache(cacheBlocks);
    this.timing = timing;
    this.speed = speed;
    this.notify = notify;
  }

  get nRunning(): number {
    return this.running.length;
  }

  get nWaiting(): number {
    return this.waitingQueue.length - this.waitingHead;
  }

  /** Time must have been advanced to `nowMs`. */
  submit(request: EngineRequest, nowMs: number): void {
    this.waitingQueue.push({
      request,
      submittedMs: nowMs,
      computed: 0,
      generated: 0,
      cachedTokens: -1,
      named: 0,
      anonymous: 0,
      isDecoding: false,
    });
  }

  /** Ends passes up to and including `timeMs` and starts those before it: what arrives at `timeMs` reaches the pass that starts there. */
  advanceTo(timeMs: number): void {
    for (;;) {
      if (this.passRuns) {
        if (this.freeAtMs > timeMs) return;
        this.endPass();
      }
      if (this.running.length === 0 && this.nWaiting === 0) return;
      const startMs =
        this.running.length > 0
          ? this.freeAtMs
          : Math.max(this.freeAtMs, this.waitingQueue[this.waitingHead]!.submittedMs);
      if (startMs >= timeMs) return;
      if (!this.startPass(startMs)) return;
    }
  }

  /** Milliseconds that `nTokens` prompt tokens take beside what is running now. */
  prefillMs(nTokens: number): number {
    const { timing } = this;
    const capacityTokens = this.cache.capacity * timing.blockTokens;
    let contextTokens = 0;
    let nDecodes = 0;
    for (const { request, computed, generated } of this.running) {
      if (computed < request.promptTokens) continue;
      nDecodes += 1;
      contextTokens += request.promptTokens + generated;
    }
    const nFull = Math.floor(nTokens / timing.maxPrefillTokens);
    const rest = nTokens - nFull * timing.maxPrefillTokens;
    const fullMs = timing.passMs(timing.maxPrefillTokens, nDecodes, contextTokens, capacityTokens);
    return (
      (nFull * fullMs + (rest > 0 ? timing.passMs(rest, nDecodes, contextTokens, capacityTokens) : 0)) / this.speed
    );
  }

  /** The process dies: cache, queue and running requests are gone. @returns the requests that were on it */
  crash(): EngineRequest[] {
    const lost = [...this.running, ...this.waitingQueue.slice(this.waitingHead)].map(({ request }) => request);
    this.running = [];
    this.waitingQueue.length = 0;
    this.waitingHead = 0;
    this.passRuns = false;
    return lost;
  }

  private startPass(startMs: number): boolean {
    const { timing } = this;
    let budget = timing.maxPrefillTokens;
    let nPrefill = 0;
    const preemptionsBefore = this.counters.preemptions;
    for (let i = 0; i < this.running.length && budget > 0; i++) {
      const sequence = this.running[i]!;
      const length = sequence.request.promptTokens + sequence.generated;
      const isDecode = sequence.computed >= sequence.request.promptTokens && length - sequence.computed === 1;
      const nTokens = isDecode ? 1 : Math.min(length - sequence.computed, budget);
      if (!this.compute(sequence, nTokens)) break;
      sequence.isDecoding = isDecode;
      if (!isDecode) nPrefill += nTokens;
      if (!isDecode || timing.decodeTokens === 'in budget') budget -= nTokens;
    }
    // A pass that had to preempt has no room for newcomers.
    while (this.counters.preemptions === preemptionsBefore && this.nWaiting > 0 && budget > 0) {
      if (this.running.length >= timing.maxSequences) break;
      const sequence = this.waitingQueue[this.waitingHead]!;
      if (sequence.submittedMs > startMs) break;
      const nTokens = this.admit(sequence, budget);
      if (nTokens === 0) break;
      nPrefill += nTokens;
      budget -= nTokens;
    }
    let nDecodes = 0;
    let contextTokens = 0;
    this.ready.length = 0;
    for (const sequence of this.running) {
      const length = sequence.request.promptTokens + sequence.generated;
      if (sequence.computed < length) continue;
      this.ready.push(sequence);
      if (!sequence.isDecoding && timing.firstToken === 'with its prompt') continue;
      nDecodes += 1;
      contextTokens += length;
    }
    const capacityTokens = this.cache.capacity * timing.blockTokens;
    const passMs = timing.passMs(nPrefill, nDecodes, contextTokens, capacityTokens) / this.speed;
    if (passMs === 0) return false;
    this.counters.passes += 1;
    this.counters.busyMs += passMs;
    this.counters.computedPromptTokens += nPrefill;
    this.freeAtMs = startMs + passMs;
    this.passRuns = true;
    return true;
  }

  private endPass(): void {
    this.passRuns = false;
    const timeMs = this.freeAtMs;
    // As in vLLM: a step's events leave before its tokens.
    const changes = this.cache.takeChanges();
    if (changes.length > 0) this.notify({ kind: 'blocks', timeMs, changes });
    let nFinished = 0;
    for (const sequence of this.ready) {
      const { request } = sequence;
      sequence.generated += 1;
      this.counters.generatedTokens += 1;
      if (sequence.generated === 1) {
        if (this.timing.holds === 'prefill') this.letGo(sequence);
        this.notify({ kind: 'first token', timeMs, request, cachedTokens: sequence.cachedTokens });
      }
      if (sequence.generated < request.outputTokens) continue;
      this.letGo(sequence);
      nFinished += 1;
      this.notify({ kind: 'finished', timeMs, request });
    }
    if (nFinished === 0) return;
    this.running = this.running.filter(({ generated, request }) => generated < request.outputTokens);
  }

  /** @returns prompt tokens given, 0 when there is no room */
  private admit(sequence: Sequence, budget: number): number {
    const { request } = sequence;
    const { blockTokens, partialBlocks } = this.timing;
    const matched = this.cache.matchLength(request.blocks);
    // The last token is always computed: its logits make the first token of the answer.
    const usable = partialBlocks === 'cached' ? request.promptTokens - 1 : lastFullBlock(request, this.timing);
    const cached = Math.min(matched * blockTokens, usable);
    const length = request.promptTokens + sequence.generated;
    const nTokens = Math.min(length - cached, budget);
    if (!this.hold(sequence, Math.ceil(cached / blockTokens), length)) return 0;
    sequence.isDecoding = false;
    sequence.computed = cached + nTokens;
    this.nameBlocks(sequence);
    this.counters.queriedTokens += request.promptTokens;
    this.counters.cachedTokens += cached;
    if (sequence.cachedTokens < 0) sequence.cachedTokens = cached;
    this.takeWaiting();
    this.running.push(sequence);
    return nTokens;
  }

  private takeWaiting(): void {
    this.waitingHead += 1;
    if (this.waitingHead < 1024 || this.waitingHead * 2 < this.waitingQueue.length) return;
    this.waitingQueue.splice(0, this.waitingHead);
    this.waitingHead = 0;
  }

  /** @returns false when the request itself had to go back to the queue */
  private compute(sequence: Sequence, nTokens: number): boolean {
    while (this.timing.holds === 'sequence' && !this.grow(sequence, sequence.computed + nTokens)) {
      const victim = this.running.pop()!;
      this.letGo(victim);
      victim.computed = 0;
      this.counters.preemptions += 1;
      if (this.waitingHead > 0) this.waitingQueue[--this.waitingHead] = victim;
      else this.waitingQueue.unshift(victim);
      if (victim === sequence) return false;
    }
    sequence.computed += nTokens;
    // Where blocks are held to the end only, an answer's tokens name nothing more.
    if (this.timing.holds === 'sequence' || sequence.generated === 0) this.nameBlocks(sequence);
    return true;
  }

  /**
   * Takes the cached blocks into use and room for the rest of the sequence plus a first block of the answer: a request let
   * in by halves would soon be put out again. @returns false, and nothing changed, when there is no room
   */
  private hold(sequence: Sequence, nCachedBlocks: number, length: number): boolean {
    const { blocks } = sequence.request;
    let nMore = 0;
    if (this.timing.holds === 'sequence') {
      nMore = Math.ceil(length / this.timing.blockTokens) + 1 - nCachedBlocks;
      if (nMore + this.cache.countIdle(blocks, nCachedBlocks) > this.cache.nAvailable) return false;
    }
    while (sequence.named < nCachedBlocks) this.cache.acquire(blocks[sequence.named++]!);
    for (; sequence.anonymous < nMore; sequence.anonymous++) this.cache.acquireAnonymous();
    return true;
  }

  private grow(sequence: Sequence, nTokens: number): boolean {
    const nNeeded = Math.ceil(nTokens / this.timing.blockTokens);
    while (sequence.named + sequence.anonymous < nNeeded) {
      if (!this.cache.acquireAnonymous()) return false;
      sequence.anonymous += 1;
    }
    return true;
  }

  /** Blocks computed by now can be found by others, as in vLLM from the step that fills them. */
  private nameBlocks(sequence: Sequence): void {
    const { blocks, promptTokens } = sequence.request;
    const { blockTokens, holds } = this.timing;
    const nFilled =
      sequence.computed >= promptTokens
        ? blocks.length
        : Math.min(blocks.length, Math.floor(sequence.computed / blockTokens));
    while (sequence.named < nFilled) {
      if (holds === 'sequence') {
        this.cache.releaseAnonymous(1, 0);
        sequence.anonymous -= 1;
      }
      // Where running requests hold nothing, a prompt larger than the cache keeps its first blocks.
      if (!this.cache.acquire(blocks[sequence.named]!)) return;
      sequence.named += 1;
    }
  }

  /** Tail first, so that the end of a prompt is forgotten before its start. */
  private letGo(sequence: Sequence): void {
    const { blockTokens } = this.timing;
    // Full blocks of generated tokens stay in the cache like any other, though no trace says who asks for them.
    const nFull = Math.floor(sequence.computed / blockTokens) - sequence.named;
    this.cache.releaseAnonymous(sequence.anonymous, Math.max(0, Math.min(nFull, sequence.anonymous)));
    for (let i = sequence.named - 1; i >= 0; i--) this.cache.release(sequence.request.blocks[i]!);
    sequence.named = 0;
    sequence.anonymous = 0;
  }
}

function lastFullBlock({ promptTokens }: EngineRequest, { blockTokens }: TimingModel): number {
  return Math.floor((promptTokens - 1) / blockTokens) * blockTokens;
}
