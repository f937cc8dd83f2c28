/**
 * The physical KV blocks of one engine: reference counts, a free queue in least-recently-used order and the map from
 * block name to the physical blocks that hold it. After vLLM's v1 block pool: eviction is lazy (a freed block stays
 * findable until it is taken for something else), the same name may be held by several physical blocks, and block 0 is
 * the null block that is never handed out. Knows nothing of requests, time or wire forms.
 */
import type { ChainBlock } from './block-chain.ts';

/** What happened to resident blocks, in the order it happened. */
export type PoolEvent =
  /** Consecutive blocks of one prefix became findable; `parent` is the block before the first, null at the start. */
  | { readonly type: 'BlockStored'; readonly blocks: readonly ChainBlock[]; readonly parent: ChainBlock | null }
  /** One physical copy of this block is gone; others may remain. */
  | { readonly type: 'BlockRemoved'; readonly block: ChainBlock }
  | { readonly type: 'AllBlocksCleared' };

/** Index of a physical block, 1 ≤ id < nBlocks. */
export type BlockId = number;

/**
 * Where freed blocks without findable content go in the queue. 'reused_first': to the front (newer vLLM, seen in 0.32).
 * 'in_order': to the back like all others (older vLLM, seen in 0.22).
 */
export type UncachedBlocks = 'reused_first' | 'in_order';

const NONE = -1;

export class BlockPool {
  readonly nBlocks: number;
  /** Free blocks form a doubly linked list through these; slot `nBlocks` is the list's head and tail sentinel. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #refCount: Int32Array;
  readonly #content: (ChainBlock | null)[];
  /** Physical blocks by name, oldest first: a look-up answers the oldest copy. */
  readonly #cached = new Map<string, BlockId[]>();
  readonly #uncached: UncachedBlocks;
  #nFree: number;
  #events: PoolEvent[] = [];

  /** @param nBlocks physical blocks including the null block, at least 2 */
  constructor(nBlocks: number, uncached: UncachedBlocks) {
    this.nBlocks = nBlocks;
    this.#uncached = uncached;
    this.#next = new Int32Array(nBlocks + 1).fill(NONE);
    this.#previous = new Int32Array(nBlocks + 1).fill(NONE);
    this.#refCount = new Int32Array(nBlocks);
    this.#content = Array.from({ length: nBlocks }, () => null);
    const sentinel = nBlocks;
    this.#next[sentinel] = sentinel;
    this.#previous[sentinel] = sentinel;
    this.#nFree = 0;
    for (let id = 1; id < nBlocks; id++) this.#linkFree(id, sentinel);
  }

  /** Blocks nobody uses; they may still hold findable content. */
  get nFree(): number {
    return this.#nFree;
  }

  /** Part of the usable blocks that is in use, 0…1; cached but unused blocks count as free. */
  get usage(): number {
    return 1 - this.#nFree / (this.nBlocks - 1);
  }

  /** The oldest physical block that holds `key`, undefined when none does. */
  find(key: string): BlockId | undefined {
    return this.#cached.get(key)?.[0];
  }

  isFree(id: BlockId): boolean {
    return this.#refCount[id] === 0;
  }

  /** Takes `n` blocks from the least recently used end; whatever they held is evicted. The caller checked `nFree`. */
  allocate(n: number): BlockId[] {
    const taken: BlockId[] = [];
    for (let i = 0; i < n; i++) {
      const id = this.#next[this.nBlocks]!;
      this.#unlinkFree(id);
      this.#evict(id);
      this.#refCount[id] = 1;
      taken.push(id);
    }
    return taken;
  }

  /** One more user for each block; free ones leave the free queue. */
  touch(ids: readonly BlockId[]): void {
    for (const id of ids) {
      if (this.#refCount[id] === 0) this.#unlinkFree(id);
      this.#refCount[id]!++;
    }
  }

  /** One user less for each block; those without a user join the free queue in the order given (tail of a prompt first). */
  free(ids: readonly BlockId[]): void {
    for (const id of ids) {
      if (--this.#refCount[id]! > 0) continue;
      const toFront = this.#content[id] === null && this.#uncached === 'reused_first';
      this.#linkFree(id, toFront ? this.#next[this.nBlocks]! : this.nBlocks);
    }
  }

  /**
   * Makes full blocks findable and announces them as one event.
   * @param blocks consecutive blocks of one prefix, not empty; `ids[i]` holds `blocks[i]`
   */
  register(ids: readonly BlockId[], blocks: readonly ChainBlock[]): void {
    blocks.forEach((block, i) => {
      const id = ids[i]!;
      this.#content[id] = block;
      const copies = this.#cached.get(block.key);
      if (copies === undefined) this.#cached.set(block.key, [id]);
      else copies.push(id);
    });
    this.#events.push({ type: 'BlockStored', blocks, parent: blocks[0]!.parent });
  }

  /** Forgets all content. Refused while a block is in use, as vLLM does. */
  reset(): 'done' | 'in_use' {
    if (this.#nFree !== this.nBlocks - 1) return 'in_use';
    this.#cached.clear();
    this.#content.fill(null);
    this.#events.push({ type: 'AllBlocksCleared' });
    return 'done';
  }

  /** Events since the last call. */
  takeEvents(): PoolEvent[] {
    const events = this.#events;
    this.#events = [];
    return events;
  }

  /** Every findable block with its number of physical copies. */
  *resident(): Generator<{ readonly block: ChainBlock; readonly nCopies: number }> {
    for (const ids of this.#cached.values()) yield { block: this.#content[ids[0]!]!, nCopies: ids.length };
  }

  #evict(id: BlockId): void {
    const block = this.#content[id];
    if (block === null || block === undefined) return;
    this.#content[id] = null;
    const copies = this.#cached.get(block.key)!;
    if (copies.length === 1) this.#cached.delete(block.key);
    else copies.splice(copies.indexOf(id), 1);
    this.#events.push({ type: 'BlockRemoved', block });
  }

  /** Puts `id` before `after`; before the sentinel is the end of the queue. */
  #linkFree(id: BlockId, after: number): void {
    const before = this.#previous[after]!;
    this.#next[before] = id;
    this.#previous[id] = before;
    this.#next[id] = after;
    this.#previous[after] = id;
    this.#nFree++;
  }

  #unlinkFree(id: BlockId): void {
    const before = this.#previous[id]!;
    const after = this.#next[id]!;
    this.#next[before] = after;
    this.#previous[after] = before;
    this.#nFree--;
  }
}
