import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { BlockCache } from '../../../src/replay/block-cache.ts';

/** The same, written to be obviously right: a list in the order of use. */
class ListCache {
  /** Oldest first; `users` 0 = may go. */
  entries: { id: number; users: number }[] = [];
  anonymous = 0;
  readonly capacity: number;
  constructor(capacity: number) {
    this.capacity = capacity;
  }
  makeRoom(): boolean {
    if (this.entries.length + this.anonymous < this.capacity) return true;
    const at = this.entries.findIndex(({ users }) => users === 0);
    if (at < 0) return false;
    this.entries.splice(at, 1);
    return true;
  }
  acquire(id: number): boolean {
    const found = this.entries.find((entry) => entry.id === id);
    if (found) {
      found.users += 1;
      return true;
    }
    if (!this.makeRoom()) return false;
    this.entries.push({ id, users: 1 });
    return true;
  }
  release(id: number): void {
    const at = this.entries.findIndex((entry) => entry.id === id);
    const entry = this.entries[at]!;
    entry.users -= 1;
    if (entry.users > 0) return;
    this.entries.splice(at, 1);
    this.entries.push(entry);
  }
}

describe('the cache of a simulated engine', () => {
  test('drops the least recently used block first, never one in use, and says so', () => {
    const cache = new BlockCache(2);
    for (const id of [1, 2]) {
      cache.acquire(id);
      cache.release(id);
    }
    cache.acquire(1);
    expect(cache.acquire(3)).toBe(true);
    expect([cache.has(1), cache.has(2), cache.has(3)]).toEqual([true, false, true]);
    expect(cache.acquire(4)).toBe(false);
    expect(cache.takeChanges()).toEqual([1, 2, ~2, 3]);
    expect(cache.takeChanges()).toEqual([]);
    expect(cache.usage()).toBe(1);
  });

  test('kept blocks without a name take room until they are the oldest', () => {
    const cache = new BlockCache(2);
    cache.acquireAnonymous();
    cache.releaseAnonymous(1, 1);
    cache.acquire(1);
    expect(cache.nAvailable).toBe(1);
    expect(cache.acquire(2)).toBe(true);
    expect(cache.nAvailable).toBe(0);
  });

  test('does what a plain list does, on any history', () => {
    const step = fc.record({ kind: fc.constantFrom('acquire', 'release', 'anonymous', 'give back'), id: fc.nat(12) });
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 8 }), fc.array(step, { maxLength: 200 }), (capacity, steps) => {
        const cache = new BlockCache(capacity);
        const plain = new ListCache(capacity);
        const announced = new Set<number>();
        for (const { kind, id } of steps) {
          if (kind === 'acquire') expect(cache.acquire(id)).toBe(plain.acquire(id));
          else if (kind === 'release') {
            if ((plain.entries.find((entry) => entry.id === id)?.users ?? 0) === 0) continue;
            cache.release(id);
            plain.release(id);
          } else if (kind === 'anonymous') {
            const had = plain.makeRoom();
            expect(cache.acquireAnonymous()).toBe(had);
            if (had) plain.anonymous += 1;
          } else if (plain.anonymous > 0) {
            cache.releaseAnonymous(1, 0);
            plain.anonymous -= 1;
          }
          for (const change of cache.takeChanges()) {
            if (change >= 0) announced.add(change);
            else announced.delete(~change);
          }
          const held = plain.entries.map((entry) => entry.id).sort();
          expect([...announced].sort()).toEqual(held);
          const nUsed = plain.anonymous + plain.entries.filter(({ users }) => users > 0).length;
          expect(cache.nAvailable).toBe(capacity - nUsed);
        }
      }),
    );
  });
});
