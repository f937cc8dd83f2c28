/** A snapshot taken over by another replica is as good as the history it was taken from, or says that it is not. */
import { describe, expect, test } from '@jest/globals';
import type { EngineBlocksSource } from '../../src/kvevents/engine-blocks.ts';
import type { KvEvent } from '../../src/kvevents/kv-event.ts';
import {
  RECORD_WORDS,
  decodeSnapshot,
  encodeSnapshot,
  type EngineSnapshot,
} from '../../src/kvevents/source-snapshot.ts';
import {
  atOnce,
  batchOf,
  blockTokens,
  cleared,
  createIndexBench,
  createRandom,
  removed,
  stored,
} from '../support/kv-events.ts';

const N_HISTORIES = 60;
const MEDIA = ['GPU', 'CPU', 'DISK'];

/** A block of one prefix; prefixes branch. */
type Node = { readonly id: number; readonly parent: Node | null; readonly token: number };

/** Histories of one engine: stores of chains, copies, removals of anything held (large: ends first), rarely a clear. */
function anEngine(random: (n: number) => number, names: number, size: 'small' | 'large' = 'small') {
  const maxChain = size === 'small' ? 12 : 400;
  const nodes: Node[] = [];
  const byPlace = new Map<string, Node>();
  const held = new Map<string, number>();
  const name = (node: Node): number => names + node.id;
  const child = (parent: Node | null): Node => {
    const token = random(3);
    const place = `${parent?.id ?? 0} ${token}`;
    const known = byPlace.get(place);
    if (known !== undefined) return known;
    const node = { id: nodes.length + 1, parent, token };
    nodes.push(node);
    byPlace.set(place, node);
    return node;
  };
  const isHeld = (node: Node): boolean => MEDIA.some((medium) => (held.get(`${node.id} ${medium}`) ?? 0) > 0);
  const prompt = (node: Node): number[] => (node.parent === null ? [node.token] : [...prompt(node.parent), node.token]);
  const tokensOf = (ids: readonly number[]): Uint32Array => Uint32Array.from(ids.flatMap((id) => blockTokens(id)));

  return {
    step(): KvEvent[] {
      if (size === 'small' && random(60) === 0) {
        held.clear();
        return [cleared];
      }
      if (random(3) > 0) {
        const medium = random(6) === 0 ? MEDIA[1 + random(2)]! : 'GPU';
        const starts = nodes.filter(isHeld);
        const parent = starts.length === 0 || random(4) === 0 ? null : starts[random(starts.length)]!;
        const chain: Node[] = [];
        for (let at = parent, n = 1 + random(maxChain); n > 0; n--) chain.push((at = child(at)));
        for (const node of chain) held.set(`${node.id} ${medium}`, (held.get(`${node.id} ${medium}`) ?? 0) + 1);
        const tokenIds = tokensOf(chain.map(({ token }) => token));
        const extraKeys = chain.map(() => null);
        return [stored(chain.map(name), parent === null ? null : name(parent), tokenIds, { medium, extraKeys })];
      }
      const all = [...held].filter(([, n]) => n > 0);
      if (all.length === 0) return [];
      if (size === 'large') all.sort(([a], [b]) => parseInt(b) - parseInt(a));
      return Array.from({ length: 1 + random(3) }, (_, i) => {
        const [key] = all[size === 'large' ? Math.min(i, all.length - 1) : random(all.length)]!;
        const [id, medium] = key.split(' ') as [string, string];
        held.set(key, Math.max(0, held.get(key)! - 1));
        return removed([names + Number(id)], { medium });
      });
    },
    /** Of every so-and-so-many-th block. */
    prompts: (each = 1) => nodes.filter(({ id }) => id % each === 0).map((node) => tokensOf(prompt(node))),
  };
}

test('random histories', () => {
  let nWhole = 0;
  let nPartial = 0;
  for (let seed = 1; seed <= N_HISTORIES; seed++) {
    const random = createRandom(seed);
    const [ours, theirs] = [createIndexBench({ seed }), createIndexBench({ seed })];
    const engines = [0, 1, 2].map((i) => ({ slot: i, engine: anEngine(random, 10_000 * (i === 2 ? 0 : i)) }));
    const apply = (source: EngineBlocksSource, events: KvEvent[]): void => void source.apply(batchOf(events));
    const sources = engines.map(({ slot }) => ours.source(slot));
    const copies = engines.map(({ slot }) => theirs.source(slot));
    for (let i = 0; i < 40 + random(100); i++) {
      const at = random(3);
      apply(sources[at]!, engines[at]!.engine.step());
    }
    copies.forEach((copy, i) => atOnce(copy.restore(atOnce(sources[i]!.snapshot())!)));
    const compare = (when: string): void => {
      engines.forEach(({ slot, engine }, i) => {
        const [source, copy] = [sources[i]!.stats(), copies[i]!.stats()];
        if (!source.partial && copy.partial) nPartial++;
        else nWhole++;
        const isWhole = source.partial === copy.partial;
        const context = `seed ${seed}, engine ${i}, ${when}`;
        if (isWhole) expect({ context, ...copy }).toEqual({ context, ...source });
        for (const prompt of engine.prompts()) {
          const [expected, got] = [ours.match(prompt), theirs.match(prompt)];
          for (const medium of ['gpu', 'host', 'disk'] as const) {
            const [held, promised] = [expected.blocksIn(slot, medium), got.blocksIn(slot, medium)];
            if (isWhole && held !== promised) throw new Error(`${context}: ${promised} in ${medium}, expected ${held}`);
          }
          const [held, promised] = [expected.blocks(slot), got.blocks(slot)];
          if (promised > held) throw new Error(`${context}: ${promised} blocks promised, ${held} held`);
        }
      });
    };
    compare('taken over');
    for (let i = 0; i < 60; i++) {
      const at = random(3);
      const events = engines[at]!.engine.step();
      apply(sources[at]!, events);
      apply(copies[at]!, events);
    }
    compare('later');
  }
  expect(nWhole).toBeGreaterThan(N_HISTORIES);
  expect(nPartial).toBeGreaterThan(0);
});

/** What records say of each block, in whatever order: name, key, key of the block before, copies. */
function linesOf({ records }: EngineSnapshot): string[] {
  const [NAME, KEY, BEFORE, COPIES] = [0, 2, 4, 5];
  return Array.from({ length: records.length / RECORD_WORDS }, (_, i) => {
    const its = records.subarray(i * RECORD_WORDS, (i + 1) * RECORD_WORDS);
    const before = (its[BEFORE]! - 1) * RECORD_WORDS + KEY;
    const keyBefore = its[BEFORE] === 0 ? 'none' : records.subarray(before, before + 2).join(':');
    return [its.subarray(NAME, NAME + 2).join(':'), its.subarray(KEY, KEY + 2).join(':'), keyBefore, its[COPIES]].join(
      ' ',
    );
  }).sort();
}

describe('bit by bit, while others go on', () => {
  /** Two engines that share prefixes and names, and a third with names of its own; some thousand blocks. */
  function aFleet(seed: number) {
    const random = createRandom(seed);
    const bench = createIndexBench({ seed, maxBytes: 16 * 2 ** 20 });
    const engines = [0, 0, 100_000].map((names, slot) => {
      const source = bench.source(slot);
      const engine = anEngine(random, names, 'large');
      const step = (): void => void source.apply(batchOf(engine.step()));
      for (let i = 0; i < 40; i++) step();
      return { slot, source, engine, step };
    });
    return { random, bench, engines };
  }

  test('what an engine has is told as it was when the telling began, or not at all', () => {
    let nTold = 0;
    let nGivenUp = 0;
    for (let seed = 1; seed <= 14; seed++) {
      const { random, bench, engines } = aFleet(seed);
      const [one, ...others] = engines;
      const expected = atOnce(one!.source.snapshot())!;
      const work = one!.source.snapshot();
      const changesAt = random(2) === 0 ? random(6) : Infinity;
      for (let i = 0; ; i++) {
        if (i === changesAt) one!.step();
        const { done, value } = work.next();
        if (done !== true) {
          others[random(2)]!.step();
          if (random(4) === 0) bench.engineBlocks.tidy(100);
          continue;
        }
        if (value === null) nGivenUp++;
        else {
          nTold++;
          const [told] = atOnce(decodeSnapshot(value));
          const [whole] = atOnce(decodeSnapshot(expected));
          expect({ seed, ...told, records: linesOf(told!) }).toEqual({ seed, ...whole, records: linesOf(whole!) });
        }
        // A change that came after the last step is none.
        expect({ seed, value: value === null }).toEqual({ seed, value: i >= changesAt });
        break;
      }
    }
    expect(Math.min(nTold, nGivenUp)).toBeGreaterThan(2);
  });

  test('it is taken over beside others that change the same prefixes, and is the same in the end', () => {
    for (let seed = 1; seed <= 6; seed++) {
      const { random, bench, engines } = aFleet(seed);
      const theirs = aFleet(seed);
      const [one] = engines;
      const copy = theirs.bench.source(3);
      const work = copy.restore(atOnce(one!.source.snapshot())!);
      while (work.next().done !== true) theirs.engines[random(3)]!.step();
      expect({ seed, ...copy.stats() }).toEqual({ seed, ...one!.source.stats() });
      for (const prompt of one!.engine.prompts(101)) {
        const [expected, got] = [bench.match(prompt), theirs.bench.match(prompt)];
        for (const medium of ['gpu', 'host', 'disk'] as const) {
          expect({ seed, n: got.blocksIn(3, medium) }).toEqual({ seed, n: expected.blocksIn(one!.slot, medium) });
        }
      }
    }
  });

  test('forgotten in the middle, it fills in nothing more', () => {
    const { bench, engines } = aFleet(1);
    const words = atOnce(engines[0]!.source.snapshot())!;
    const copy = bench.source(3);
    const work = copy.restore(words);
    while (copy.stats().nBlocks === 0) work.next();
    copy.clear();
    copy.apply(batchOf([stored([1], null, Uint32Array.from(blockTokens(1)))]));
    expect(() => atOnce(work)).toThrow('snapshot refused: overtaken');
    expect(copy.stats().nBlocks).toBe(1);
  });

  test('where there is no room for all of it, the rest is missing and that is said', () => {
    const { engines } = aFleet(2);
    const words = atOnce(engines[0]!.source.snapshot())!;
    const small = createIndexBench({ seed: 2, maxBytes: 200_000 });
    const copy = small.source(0);
    atOnce(copy.restore(words));
    expect(copy.stats()).toMatchObject({ partial: true });
    expect(copy.stats().nBlocks).toBeLessThan(engines[0]!.source.stats().nBlocks);
    const { bench } = aFleet(2);
    for (const prompt of engines[0]!.engine.prompts(101)) {
      expect(small.match(prompt).blocks(0)).toBeLessThanOrEqual(bench.match(prompt).blocks(0));
    }
  });
});

describe('a snapshot that is none', () => {
  function aSnapshot(): Uint32Array {
    const source = createIndexBench().source(0);
    source.apply(batchOf([stored([1, 2], null, Uint32Array.from([...blockTokens(1), ...blockTokens(2)]))]));
    return atOnce(source.snapshot())!;
  }

  /** The engine's snapshot as it is sent, whatever it says. */
  function encoded(engine: EngineSnapshot): Uint32Array {
    const { records } = engine;
    const recorded = {
      maxRecords: records.length / RECORD_WORDS,
      *record(room: Uint32Array) {
        room.set(records);
        yield;
        return { ...engine, records: room };
      },
    };
    return atOnce(encodeSnapshot([recorded]))!;
  }

  test('is refused whatever bit of it is changed and wherever it is cut, and leaves nothing behind', () => {
    const bench = createIndexBench();
    const source = bench.source(0);
    const whole = aSnapshot();
    for (let bit = 0; bit < 32 * whole.length; bit++) {
      const changed = whole.slice();
      changed[bit >>> 5]! ^= 1 << (bit & 31);
      expect(() => atOnce(source.restore(changed))).toThrow(/snapshot refused/);
    }
    for (let length = 0; length < whole.length; length++) {
      expect(() => atOnce(source.restore(whole.slice(0, length)))).toThrow(/snapshot refused/);
    }
    expect(source.stats()).toMatchObject({ nBlocks: 0, blockSizeTokens: null });
    atOnce(source.restore(whole));
    expect(source.stats()).toMatchObject({ nBlocks: 2 });
  });

  test.each([
    ['a block that follows a later one', (words: Uint32Array) => (words[4] = 2)],
    ['no copies', (words: Uint32Array) => (words[5] = 0)],
    ['more media than there are', (words: Uint32Array) => (words[5] = 1 << 24)],
    ['the same block twice', (words: Uint32Array) => words.copyWithin(RECORD_WORDS, 0, RECORD_WORDS)],
  ])('%s is refused though its checksum is right', (_what, change) => {
    const [engine] = atOnce(decodeSnapshot(aSnapshot()));
    const records = engine!.records.slice();
    change(records);
    const source = createIndexBench().source(0);
    expect(() => atOnce(source.restore(encoded({ ...engine!, records })))).toThrow(/snapshot refused/);
    expect(source.stats()).toMatchObject({ nBlocks: 0 });
  });

  test('another version is refused by name', () => {
    const words = aSnapshot();
    words[1] = 2;
    expect(() => atOnce(decodeSnapshot(words))).toThrow('snapshot refused: version 2, expected 1');
  });

  test('an engine whose names can mean several things gives none', () => {
    const source = createIndexBench().source(0);
    source.apply(batchOf([stored([1], null, Uint32Array.from(blockTokens(1)), { groupIdx: 0 })]));
    source.apply(batchOf([stored([1], null, Uint32Array.from(blockTokens(1)), { groupIdx: 1 })]));
    expect(atOnce(source.snapshot())).toBeNull();
  });
});
