/**
 * Engines that hold more than the index has room for: whatever has to go, and whatever was parked, located or copied
 * meanwhile, no match is longer than what the engine holds, and what is given back at the end is all that was taken. The
 * latter holds for engines too that call different blocks by one name.
 */
import { describe, expect, test } from '@jest/globals';
import type { EngineBlocksSource } from '../../src/kvevents/engine-blocks.ts';
import type { KvEvent } from '../../src/kvevents/kv-event.ts';
import { createPrefixIndexMemory } from '../../src/prefix/prefix-index.ts';
import { batchOf, cleared, createIndexBench, createRandom, promptOf, removed, stored } from '../support/kv-events.ts';

const N_HISTORIES = 60;
const MEDIA = ['GPU', 'CPU', 'DISK'] as const;

type Random = (n: number) => number;
type Prompt = readonly number[];

/** Copies per medium, by the block's path from the start of its prompt. */
class Engine {
  readonly slot: number;
  readonly source: EngineBlocksSource;
  private readonly held = new Map<string, number[]>();
  private readonly names = new Map<string, number>();

  constructor(slot: number, source: EngineBlocksSource) {
    this.slot = slot;
    this.source = source;
  }

  nHeld(prompt: Prompt): number {
    const end = prompt.findIndex((_, i) => !this.held.has(pathOf(prompt, i)));
    return end < 0 ? prompt.length : end;
  }

  event(random: Random, prompt: Prompt): KvEvent {
    const chosen = random(20);
    const paths = [...this.held.keys()];
    if (chosen < 12 || paths.length === 0) return this.store(random, prompt);
    if (chosen < 14) {
      const path = pathOf(prompt, random(prompt.length));
      this.change(path, 1, 1);
      return stored([this.name(path)], null, new Uint32Array(0), { medium: 'CPU', blockSizeTokens: 0 });
    }
    if (chosen === 19 && random(3) === 0) {
      this.held.clear();
      return cleared;
    }
    const path = paths[random(paths.length)]!;
    const media = this.held.get(path)!.flatMap((n, medium) => (n > 0 ? [medium] : []));
    const medium = media[random(media.length)]!;
    this.change(path, medium, -1);
    return removed([this.name(path)], { medium: MEDIA[medium] });
  }

  private store(random: Random, prompt: Prompt): KvEvent {
    // Mostly behind what is held, now and then where nothing is.
    const from = random(3) === 0 ? random(prompt.length) : Math.min(this.nHeld(prompt), prompt.length - 1);
    const to = from + 1 + random(prompt.length - from);
    const medium = random(6) === 0 ? random(3) : 0;
    const paths = prompt.slice(from, to).map((_, i) => pathOf(prompt, from + i));
    for (const path of paths) this.change(path, medium, 1);
    const parent = from === 0 ? null : this.name(pathOf(prompt, from - 1));
    const names = paths.map((path) => this.name(path));
    return stored(names, parent, promptOf(prompt.slice(from, to)), { medium: MEDIA[medium] });
  }

  private change(path: string, medium: number, by: number): void {
    const copies = this.held.get(path) ?? MEDIA.map(() => 0);
    copies[medium]! += by;
    if (copies.some((n) => n > 0)) this.held.set(path, copies);
    else this.held.delete(path);
  }

  private name(path: string): number {
    const known = this.names.get(path) ?? this.names.size + 1;
    this.names.set(path, known);
    return known;
  }
}

describe('an index that is too small', () => {
  test.each([75_000, 85_000])('of %d bytes never promises what is not held, and loses no memory', (maxBytes) => {
    const memory = createPrefixIndexMemory({ maxBytes });
    let nEvicted = 0;
    let nMatched = 0;
    for (let seed = 1; seed <= N_HISTORIES; seed++) {
      const random = createRandom(seed);
      const bench = createIndexBench({ memory, seed });
      const engines = Array.from({ length: 1 + random(3) }, (_, slot) => new Engine(slot, bench.source(slot)));
      const prompts = somePrompts(random);
      for (let step = 30 + random(100); step > 0; step--) {
        const engine = engines[random(engines.length)]!;
        const events = Array.from({ length: 1 + random(4) }, () =>
          engine.event(random, prompts[random(prompts.length)]!),
        );
        engine.source.apply(batchOf(events));
        if (step % 3 !== 0) continue;
        for (const { slot } of engines) {
          for (const prompt of prompts) {
            const n = bench.match(promptOf(prompt)).blocks(slot);
            nMatched += n;
            if (n > engines[slot]!.nHeld(prompt)) throw new Error(`seed ${seed}: slot ${slot} gave ${n} of ${prompt}`);
          }
        }
      }
      nEvicted += bench.writer.stats().evictedBlocks;
      for (const { source } of engines) source.close();
      while (bench.engineBlocks.tidy(1000));
      expect([seed, bench.writer.stats().nBytes]).toEqual([seed, bench.emptyBytes]);
    }
    // A test in which all finds room, or nothing is found, shows nothing.
    expect(nEvicted).toBeGreaterThan(N_HISTORIES);
    expect(nMatched).toBeGreaterThan(N_HISTORIES);
  });
});

describe('engines whose words contradict each other', () => {
  test.each([80_000, 4_000_000])('take nothing for good, with room for %d bytes', (maxBytes) => {
    const memory = createPrefixIndexMemory({ maxBytes });
    for (let seed = 1; seed <= 4 * N_HISTORIES; seed++) {
      const random = createRandom(seed);
      const bench = createIndexBench({ memory, seed, limits: { maxParkedBlocks: [4096, 20, 3][random(3)]! } });
      const sources = Array.from({ length: 1 + random(3) }, (_, slot) => bench.source(slot));
      const nNames = 2 + random(40);
      for (let step = 20 + random(100); step > 0; step--) {
        const events = Array.from({ length: 1 + random(4) }, () => anyEvent(random, nNames));
        sources[random(sources.length)]!.apply(batchOf(events, Number(random(8) === 0)));
        if (random(20) === 0) bench.engineBlocks.tidy(random(100));
      }
      for (const source of sources) source.close();
      while (bench.engineBlocks.tidy(1000));
      expect([seed, bench.writer.stats().nBytes]).toEqual([seed, bench.emptyBytes]);
    }
  });
});

/** The same few names for whatever block, with whatever parent. */
function anyEvent(random: Random, nNames: number): KvEvent {
  const chosen = random(30);
  const names = (n: number): number[] => Array.from({ length: n }, () => random(nNames));
  const medium = MEDIA[random(3)]!;
  if (chosen === 29 && random(4) === 0) return cleared;
  if (chosen > 18) return removed(names(1 + random(6)), { medium });
  if (chosen > 15) return stored(names(1 + random(3)), null, new Uint32Array(0), { medium, blockSizeTokens: 0 });
  const nBlocks = 1 + random([4, 60][random(2)]!);
  const tokenIds = promptOf(Array.from({ length: nBlocks }, () => random(3)));
  const unnamed = { extraKeys: undefined };
  const more = [{}, unnamed, { ...unnamed, cacheSalt: `s${random(2)}` }, { ...unnamed, loraName: 'L' }, { loraId: 1 }];
  return stored(names(nBlocks), random(3) === 0 ? null : random(nNames), tokenIds, { medium, ...more[random(5)] });
}

/** Some begin as others do. */
function somePrompts(random: Random): readonly Prompt[] {
  const nIds = 2 + random(5);
  const maxBlocks = 4 + random(50);
  const prompts: number[][] = [];
  for (let n = 1 + random(8); n > 0; n--) {
    const rest = Array.from({ length: 1 + random(maxBlocks) }, () => random(nIds));
    const other = prompts[random(prompts.length + 1)] ?? [];
    prompts.push([...other.slice(0, random(other.length + 1)), ...rest]);
  }
  return prompts;
}

function pathOf(prompt: Prompt, at: number): string {
  return prompt.slice(0, at + 1).join(',');
}
