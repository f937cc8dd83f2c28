/**
 * Blocks as a fleet stores and drops them, repeatable from a seed: prompts of 64, 512 and 2048 blocks; all share their
 * first 32, groups of 8 share 60 % and an engine, a quarter of them also go to another one (about 1.55 holders per
 * block); stored in events of 64 blocks, several prompts at a time, then block by block as tokens are generated. A
 * block is named by a number; tokens, keys and engine hashes are made from it.
 */
import { createRandom } from '../support/kv-events.ts';

export type Stretch = { readonly engine: number; readonly parent: number; readonly blocks: Uint32Array };

export type Workload = {
  readonly nEngines: number;
  /** (block, engine) pairs. */
  readonly nEntries: number;
  readonly nBlocks: number;
  /** In the order of storing. */
  readonly stores: readonly Stretch[];
  /** Whole prompts, first block first, and the engines that hold them. */
  readonly prompts: readonly { readonly blocks: Uint32Array; readonly engines: readonly number[] }[];
};

const LENGTHS = [64, 512, 2048];
const SHARED_BY_ALL = 32;
const GROUP = 8;
const SHARED_BY_GROUP = 0.6;
const EVENT_BLOCKS = 64;
const GENERATED_BLOCKS = 8;
const PROMPTS_AT_ONCE = 16;
/** Per cent of prompts that a second engine holds too. */
const ELSEWHERE_TOO = 26;

type Open = { engine: number; blocks: Uint32Array; at: number; start: number; behind: Open | null };

export function createWorkload(nEngines: number, minEntries: number, seed: number): Workload {
  const random = createRandom(seed);
  let nextBlock = 1;
  const take = (n: number): number[] => Array.from({ length: n }, () => nextBlock++);
  const common = take(SHARED_BY_ALL);
  const prompts: { blocks: Uint32Array; engines: number[] }[] = [];
  const stores: Stretch[] = [];
  /** Who stores the common blocks on an engine first. */
  const firstOf = new Array<Open | undefined>(nEngines);
  let nEntries = 0;
  while (nEntries < minEntries) {
    const open: Open[] = [];
    for (let group = 0; group < PROMPTS_AT_ONCE / GROUP; group++) {
      const length = LENGTHS[random(LENGTHS.length)]!;
      const head = [...common, ...take(Math.floor(length * SHARED_BY_GROUP))].slice(0, length);
      const home = random(nEngines);
      const firstOfGroup = new Map<number, Open>();
      for (let i = 0; i < GROUP; i++) {
        const engines = [home];
        if (random(100) < ELSEWHERE_TOO && nEngines > 1) engines.push((home + 1 + random(nEngines - 1)) % nEngines);
        const blocks = Uint32Array.from([...head, ...take(length - head.length)]);
        prompts.push({ blocks, engines });
        for (const engine of engines) {
          // What an engine has already, or is about to have, is not announced again.
          const before = firstOfGroup.get(engine) ?? firstOf[engine];
          const at = firstOfGroup.has(engine) ? head.length : before === undefined ? 0 : SHARED_BY_ALL;
          const one: Open = { engine, blocks, at, behind: before ?? null, start: at };
          open.push(one);
          if (!firstOfGroup.has(engine)) firstOfGroup.set(engine, one);
          firstOf[engine] ??= one;
        }
      }
    }
    for (let isAny = true; isAny;) {
      isAny = false;
      for (const one of open) {
        const left = one.blocks.length - one.at;
        if (left === 0) continue;
        isAny = true;
        if (one.behind !== null && one.behind.at < one.start) continue;
        const n = left <= GENERATED_BLOCKS ? 1 : Math.min(EVENT_BLOCKS, left - GENERATED_BLOCKS);
        const blocks = one.blocks.subarray(one.at, one.at + n);
        stores.push({ engine: one.engine, parent: one.at === 0 ? 0 : one.blocks[one.at - 1]!, blocks });
        one.at += n;
        nEntries += n;
      }
    }
  }
  return { nEngines, nEntries, nBlocks: nextBlock - 1, stores, prompts };
}

/** Well mixed 32 bits of a number. */
export function mix32(x: number, salt: number): number {
  let h = Math.imul(x + Math.imul(salt, 0x85ebca6b), 0x9e3779b1) ^ Math.imul(salt, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 16), 0x21f0aaad);
  h = Math.imul(h ^ (h >>> 15), 0x735a2d97);
  return (h ^ (h >>> 15)) >>> 0;
}
