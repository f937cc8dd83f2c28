/**
 * The prefix cache of one simulated engine: blocks by id, least recently used ones go first, blocks in use never go.
 * What it stores and drops is noted for the event stream. Knows no requests and no time.
 */

/** Changes since the last `takeChanges`, in order: `id` stored as id, removed as ~id (negative). */
export type BlockChanges = readonly number[];

const NAMELESS = -1;

/** A hot structure: arrays of slots, one linked list in the order of use. */
export class BlockCache {
  readonly capacity: number;
  private readonly slotOf = new Map<number, number>();
  private readonly idOf: Int32Array;
  private readonly users: Int32Array;
  private readonly older: Int32Array;
  private readonly newer: Int32Array;
  private readonly freeSlots: number[] = [];
  private nSlots = 0;
  private nHeld = 0;
  private nAnonymous = 0;
  private nIdle = 0;
  /** The list's two ends are linked through this slot. */
  private readonly end: number;
  private changes: number[] = [];

  constructor(capacity: number) {
    this.capacity = capacity;
    this.idOf = new Int32Array(capacity + 1);
    this.users = new Int32Array(capacity + 1);
    this.older = new Int32Array(capacity + 1).fill(capacity);
    this.newer = new Int32Array(capacity + 1).fill(capacity);
    this.end = capacity;
  }

  has(id: number): boolean {
    return this.slotOf.has(id);
  }

  /** Of all blocks that can be found. */
  blockIds(): readonly number[] {
    return [...this.slotOf.keys()];
  }

  /** How many of the first blocks are here. */
  matchLength(ids: Int32Array): number {
    let n = 0;
    while (n < ids.length && this.slotOf.has(ids[n]!)) n += 1;
    return n;
  }

  /** Blocks that could be taken into use. */
  get nAvailable(): number {
    return this.capacity - this.nHeld - this.nAnonymous + this.nIdle;
  }

  /** How many of the first `n` blocks, all of them here, nobody uses: taking them into use leaves that many fewer available. */
  countIdle(ids: Int32Array, n: number): number {
    let nIdle = 0;
    for (let i = 0; i < n; i++) if (this.users[this.slotOf.get(ids[i]!)!] === 0) nIdle += 1;
    return nIdle;
  }

  /** Takes a block into use, storing it when it is not here. @returns false when everything is in use */
  acquire(id: number): boolean {
    const slot = this.slotOf.get(id);
    if (slot !== undefined) {
      if (this.users[slot] === 0) {
        this.unlink(slot);
        this.nIdle -= 1;
      }
      this.users[slot]! += 1;
      return true;
    }
    if (!this.makeRoom()) return false;
    const free = this.takeSlot(id);
    this.slotOf.set(id, free);
    this.users[free] = 1;
    this.changes.push(id);
    return true;
  }

  /** A block out of use is the most recently used one. */
  release(id: number): void {
    const slot = this.slotOf.get(id)!;
    this.users[slot]! -= 1;
    if (this.users[slot]! > 0) return;
    this.makeNewest(slot);
  }

  /** A block nobody can find: generated tokens, a partly filled tail. */
  acquireAnonymous(): boolean {
    if (!this.makeRoom()) return false;
    this.nAnonymous += 1;
    return true;
  }

  /** @param nKept of these, blocks that stay in the cache until they are the oldest, though nobody asks for them */
  releaseAnonymous(n: number, nKept: number): void {
    this.nAnonymous -= n;
    for (let i = 0; i < nKept; i++) this.makeNewest(this.takeSlot(NAMELESS));
  }

  /** Part of the capacity in use by requests, 0…1. */
  usage(): number {
    return (this.nHeld - this.nIdle + this.nAnonymous) / this.capacity;
  }

  takeChanges(): BlockChanges {
    if (this.changes.length === 0) return this.changes;
    const taken = this.changes;
    this.changes = [];
    return taken;
  }

  private makeRoom(): boolean {
    if (this.nHeld + this.nAnonymous < this.capacity) return true;
    const oldest = this.newer[this.end]!;
    if (oldest === this.end) return false;
    this.unlink(oldest);
    this.nIdle -= 1;
    const id = this.idOf[oldest]!;
    this.freeSlots.push(oldest);
    this.nHeld -= 1;
    if (id === NAMELESS) return true;
    this.slotOf.delete(id);
    this.changes.push(~id);
    return true;
  }

  private takeSlot(id: number): number {
    const slot = this.freeSlots.pop() ?? this.nSlots++;
    this.idOf[slot] = id;
    this.nHeld += 1;
    return slot;
  }

  private makeNewest(slot: number): void {
    const { older, newer, end } = this;
    const newest = older[end]!;
    newer[newest] = slot;
    older[slot] = newest;
    newer[slot] = end;
    older[end] = slot;
    this.nIdle += 1;
  }

  private unlink(slot: number): void {
    const before = this.older[slot]!;
    const after = this.newer[slot]!;
    this.newer[before] = after;
    this.older[after] = before;
  }
}
