/** Engines without a GPU for `memo.bench.ts`: a prefix cache, a prompt at a time, and what they tell the index. */
import type { Endpoint } from '../../src/endpoints/endpoint.ts';
import type { BlockHashes } from '../../src/prefix/block-hash.ts';
import { NO_POSITION, type BlockPosition, type PrefixIndexWriter } from '../../src/prefix/prefix-index.ts';
import type { VirtualClock } from '../../src/replay/virtual-clock.ts';

export type BenchEngine = {
  /** @param whole prompt and answer, cached when the answer is done */
  serve(prompt: BlockHashes, whole: BlockHashes, answerMs: number, onFirst: () => void, onEnd: () => void): void;
};

const PREFILL_TOKENS_PER_SECOND = 30_000;
const BLOCK_TOKENS = 16;
/** From the end of an engine step to what a look-up sees. */
const EVENT_LAG_MS = 3;

export function createBenchEngine(
  { clock, writer }: { readonly clock: VirtualClock; readonly writer: PrefixIndexWriter },
  { slot }: Endpoint,
  capacityBlocks: number,
): BenchEngine {
  const owner = writer.openOwner(slot);
  /** In order of use. */
  const held = new Map<string, BlockPosition>();
  let freeAtMs = 0;
  const nameOf = (hashes: BlockHashes, block: number): string => `${hashes[2 * block]}:${hashes[2 * block + 1]}`;

  function nCached(hashes: BlockHashes): number {
    let n = 0;
    while (n < hashes.length / 2 && held.has(nameOf(hashes, n))) n += 1;
    return n;
  }

  function store(hashes: BlockHashes): void {
    const nBlocks = hashes.length / 2;
    const positions = new Uint32Array(nBlocks);
    const nStored = writer.store(owner, 0, NO_POSITION, hashes, nBlocks, positions, new Uint8Array(nBlocks));
    // From the last to the first, so that the beginnings are the newest.
    for (let i = nStored - 1; i >= 0; i--) {
      const name = nameOf(hashes, i);
      const known = held.get(name);
      held.delete(name);
      held.set(name, known ?? (positions[i] as BlockPosition));
    }
    for (const [name, position] of held) {
      if (held.size <= capacityBlocks) break;
      held.delete(name);
      writer.remove(owner, 0, Uint32Array.of(position), 1);
    }
  }

  return {
    serve(prompt, whole, answerMs, onFirst, onEnd) {
      const startMs = Math.max(clock.nowMs(), freeAtMs);
      const uncached = (prompt.length / 2 - nCached(prompt)) * BLOCK_TOKENS;
      freeAtMs = startMs + 3 + (uncached / PREFILL_TOKENS_PER_SECOND) * 1000;
      const inMs = freeAtMs - clock.nowMs();
      clock.after(inMs, onFirst);
      clock.after(inMs + EVENT_LAG_MS, () => store(prompt));
      clock.after(inMs + answerMs, onEnd);
      clock.after(inMs + answerMs + EVENT_LAG_MS, () => store(whole));
    },
  };
}
