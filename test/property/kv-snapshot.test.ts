/** A snapshot taken over by another replica is as good as the history it was taken from, or says that it is not. */
import { describe, expect, test } from '@jest/globals';
import type { EngineBlocksSource } from '../../src/kvevents/engine-blocks.ts';
import type { KvEvent } from '../../src/kvevents/kv-event.ts';
import { RECORD_WORDS, decodeSnapshot, encodeSnapshot } from '../../src/kvevents/source-snapshot.ts';
import {
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

/** Histories of one engine: stores of whole chains, copies, removals of anything held, rarely a clear. */
function anEngine(random: (n: number) => number, names: number) {
  const nodes: Node[] = [];
  const held = new Map<string, number>();
  const name = (node: Node): number => names + node.id;
  const child = (parent: Node | null): Node => {
    const token = random(3);
    const known = nodes.find((node) => node.parent === parent && node.token === token);
    if (known !== undefined) return known;
    const node = { id: nodes.length + 1, parent, token };
    nodes.push(node);
    return node;
  };
  const isHeld = (node: Node): boolean => MEDIA.some((medium) => (held.get(`${node.id} ${medium}`) ?? 0) > 0);
  const prompt = (node: Node): number[] => (node.parent === null ? [node.token] : [...prompt(node.parent), node.token]);
  const tokensOf = (ids: readonly number[]): Uint32Array => Uint32Array.from(ids.flatMap((id) => blockTokens(id)));

  return {
    step(): KvEvent[] {
      if (random(60) === 0) {
        held.clear();
        return [cleared];
      }
      if (random(3) > 0) {
        const medium = random(6) === 0 ? MEDIA[1 + random(2)]! : 'GPU';
        const starts = nodes.filter(isHeld);
        const parent = starts.length === 0 || random(4) === 0 ? null : starts[random(starts.length)]!;
        const chain: Node[] = [];
        for (let at = parent, n = 1 + random(12); n > 0; n--) chain.push((at = child(at)));
        for (const node of chain) held.set(`${node.id} ${medium}`, (held.get(`${node.id} ${medium}`) ?? 0) + 1);
        const tokenIds = tokensOf(chain.map(({ token }) => token));
        const extraKeys = chain.map(() => null);
        return [stored(chain.map(name), parent === null ? null : name(parent), tokenIds, { medium, extraKeys })];
      }
      const all = [...held].filter(([, n]) => n > 0);
      if (all.length === 0) return [];
      return Array.from({ length: 1 + random(3) }, () => {
        const [key] = all[random(all.length)]!;
        const [id, medium] = key.split(' ') as [string, string];
        held.set(key, Math.max(0, held.get(key)! - 1));
        return removed([names + Number(id)], { medium });
      });
    },
    prompts: () => nodes.map((node) => tokensOf(prompt(node))),
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
    copies.forEach((copy, i) => copy.restore(sources[i]!.snapshot()!));
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

describe('a snapshot that is none', () => {
  function aSnapshot(): Uint32Array {
    const source = createIndexBench().source(0);
    source.apply(batchOf([stored([1, 2], null, Uint32Array.from([...blockTokens(1), ...blockTokens(2)]))]));
    return source.snapshot()!;
  }

  test('is refused whatever bit of it is changed and wherever it is cut, and leaves nothing behind', () => {
    const bench = createIndexBench();
    const source = bench.source(0);
    const whole = aSnapshot();
    for (let bit = 0; bit < 32 * whole.length; bit++) {
      const changed = whole.slice();
      changed[bit >>> 5]! ^= 1 << (bit & 31);
      expect(() => source.restore(changed)).toThrow(/snapshot refused/);
    }
    for (let length = 0; length < whole.length; length++) {
      expect(() => source.restore(whole.slice(0, length))).toThrow(/snapshot refused/);
    }
    expect(source.stats()).toMatchObject({ nBlocks: 0, blockSizeTokens: null });
    source.restore(whole);
    expect(source.stats()).toMatchObject({ nBlocks: 2 });
  });

  test.each([
    ['a block that follows a later one', (words: Uint32Array) => (words[4] = 2)],
    ['no copies', (words: Uint32Array) => (words[5] = 0)],
    ['more media than there are', (words: Uint32Array) => (words[5] = 1 << 24)],
    ['the same block twice', (words: Uint32Array) => words.copyWithin(RECORD_WORDS, 0, RECORD_WORDS)],
  ])('%s is refused though its checksum is right', (_what, change) => {
    const [engine] = decodeSnapshot(aSnapshot());
    const records = engine!.records.slice();
    change(records);
    const source = createIndexBench().source(0);
    expect(() => source.restore(encodeSnapshot([{ ...engine!, records }]))).toThrow(/snapshot refused/);
    expect(source.stats()).toMatchObject({ nBlocks: 0 });
  });

  test('another version is refused by name', () => {
    const words = aSnapshot();
    words[1] = 2;
    expect(() => decodeSnapshot(words)).toThrow('snapshot refused: version 2, expected 1');
  });

  test('an engine whose names can mean several things gives none', () => {
    const source = createIndexBench().source(0);
    source.apply(batchOf([stored([1], null, Uint32Array.from(blockTokens(1)), { groupIdx: 0 })]));
    source.apply(batchOf([stored([1], null, Uint32Array.from(blockTokens(1)), { groupIdx: 1 })]));
    expect(source.snapshot()).toBeNull();
  });
});
