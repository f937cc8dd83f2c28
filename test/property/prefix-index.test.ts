/**
 * Random histories of engines against a model of plain maps: what the index says must never exceed what an engine has
 * announced, and must equal it whenever no event is under way. A failing history prints its seed; run one again with
 * `HISTORY_SEED=n npm run jest -- test/property/prefix-index`.
 */
import { describe, expect, test } from '@jest/globals';
import type { KvEvent } from '../../src/kvevents/kv-event.ts';
import { createPrefixIndexMemory } from '../../src/prefix/prefix-index.ts';
import { MEDIA } from '../../src/prefix/prefix-match.ts';
import { batchOf, cleared, createIndexBench, createRandom } from '../support/kv-events.ts';

const N_HISTORIES = 10_000;
const WIRE_MEDIA = ['GPU', 'CPU', 'DISK'];
const COUNTING = 'counting';
const SLOTS = [0, 1, 31, 32, 1023];

/** A prompt: what its blocks are made of, and how every engine of one hash seed names them. */
type Chain = { adapter: string | null; salt: string | null; size: number; blocks: readonly number[] };
type Held = { chain: string; described: boolean; copies: number[] };
type Rank = { size: number | null; held: Map<string, Held> };

describe('random histories', () => {
  test(`${N_HISTORIES} short ones: never more than announced, equal when quiet`, () => {
    const only = process.env['HISTORY_SEED'];
    if (only !== undefined) return expect(runHistory(Number(only), 60)).toBeNull();
    const first = Date.now() >>> 0;
    for (let seed = first; seed < first + N_HISTORIES; seed++) {
      const mistake = runHistory(seed, 3 + (seed % 10));
      if (mistake !== null) throw new Error(`seed ${seed}: ${mistake}`);
    }
  });

  test('a few long ones', () => {
    const first = Date.now() >>> 0;
    for (let seed = first; seed < first + 5; seed++) {
      const mistake = runHistory(seed, 1500);
      if (mistake !== null) throw new Error(`seed ${seed}: ${mistake}`);
    }
  });
});

// Every history opens its own writer on it, as a restarted ingest thread does.
const memory = createPrefixIndexMemory({ maxBytes: 300_000 });

/** @returns what was wrong first, null when nothing was */
function runHistory(seed: number, nSteps: number): string | null {
  const random = createRandom(seed);
  counted.clear();
  const bench = createIndexBench({ memory, seed });
  const slots = SLOTS.filter(() => random(2) === 0).concat(7);
  const pods = slots.map((slot, i) => ({
    slot,
    // Engines with one hash seed name equal blocks alike, others do not; some just count from 1, each on its own.
    hashSeed: ['shared', `own ${i}`, `${COUNTING} ${i}`][random(3)]!,
    source: bench.source(slot),
    ranks: new Map<number, Rank>(),
  }));
  const nRanks = 1 + random(2);
  const sizes = random(4) === 0 ? [4, 20] : [4];
  const chainOf = (): Chain => ({
    adapter: random(4) === 0 ? 'L' : null,
    salt: random(4) === 0 ? 's' : null,
    size: sizes[random(sizes.length)]!,
    blocks: Array.from({ length: 1 + random(random(8) === 0 ? 40 : 6) }, () => random(2)),
  });

  for (let step = 0; step < nSteps; step++) {
    const pod = pods[random(pods.length)]!;
    const rankId = random(nRanks);
    const rank = pod.ranks.get(rankId) ?? { size: null, held: new Map<string, Held>() };
    pod.ranks.set(rankId, rank);
    const events: KvEvent[] = [];
    for (let n = 1 + random(3); n > 0; n--) {
      const chosen = random(20);
      if (chosen < 11) storeSome(random, rank, chainOf(), pod.hashSeed, events);
      else if (chosen < 18) removeSome(random, rank, events);
      else if (chosen < 19) locateSome(random, rank, chainOf(), pod.hashSeed, events);
      else if (random(3) === 0) {
        rank.held.clear();
        events.push(cleared);
      }
    }
    pod.source.apply(batchOf(events, rankId));
    if (random(60) === 0) {
      pod.source.clear();
      pod.ranks.clear();
    }
    const query = chainOf();
    const match = bench.match(Uint32Array.from(query.blocks.flatMap((id) => tokensOf(id, query.size))), {
      adapter: query.adapter,
      size: query.size,
      extraKeys: query.salt === null ? null : query.blocks.map((_, i) => (i === 0 ? [query.salt!] : null)),
    });
    for (const { slot, ranks } of pods) {
      const want = expected(ranks, query, (held) => held.described);
      const got = [match.blocks(slot), ...MEDIA.map((medium) => match.blocksIn(slot, medium))];
      if (String(got) === String(want)) continue;
      // Tokens of a block that was only located may still be known from an earlier announcement; then more is right.
      const most = expected(ranks, query, () => true);
      if (got[0]! > want[0]! && got[0]! <= most[0]!) continue;
      return `step ${step}: slot ${slot} gave ${got}, announced ${want}`;
    }
  }
  for (const pod of pods) pod.source.close();
  while (bench.engineBlocks.tidy(1000));
  const left = bench.writer.stats();
  return left.nBlocks === 0 && left.nBytes <= bench.emptyBytes + 4096 ? null : `left over: ${JSON.stringify(left)}`;
}

function storeSome(random: Random, rank: Rank, chain: Chain, hashSeed: string, events: KvEvent[]): void {
  if (rank.size !== chain.size && rank.size !== null) {
    if (random(4) > 0) return;
    rank.held.clear();
  }
  rank.size = chain.size;
  let from = 0;
  const path = pathsOf(chain);
  while (from < path.length && rank.held.has(nameOf(hashSeed, path[from]!)) && random(4) > 0) from++;
  // Now and then a part whose parent this engine never announced.
  if (random(10) === 0) from = random(path.length);
  const to = Math.min(path.length, from + 1 + random(4));
  const medium = random(5) === 0 && rank.held.size > 0 ? random(3) : 0;
  if (from >= to) return;
  for (let i = from; i < to; i++) addCopy(rank, nameOf(hashSeed, path[i]!), path[i]!, medium, true);
  const parent = from === 0 ? null : hashWords(nameOf(hashSeed, path[from - 1]!));
  const lora = chain.adapter === null ? [] : [chain.adapter];
  events.push({
    type: 'BlockStored',
    blockHashes: Uint32Array.from(path.slice(from, to).flatMap((p) => hashWords(nameOf(hashSeed, p)))),
    parentBlockHash: parent === null ? null : [parent[0]!, parent[1]!],
    tokenIds: Uint32Array.from(chain.blocks.slice(from, to).flatMap((id) => tokensOf(id, chain.size))),
    blockSizeTokens: chain.size,
    loraId: null,
    loraName: chain.adapter,
    medium: WIRE_MEDIA[medium]!,
    extraKeys: chain.blocks
      .slice(from, to)
      .map((_, i) => [...lora, ...(from + i === 0 && chain.salt !== null ? [chain.salt] : [])])
      .map((keys) => (keys.length === 0 ? null : keys)),
    groupIdx: 0,
    kvCacheSpecKind: 'full_attention',
  });
}

function removeSome(random: Random, rank: Rank, events: KvEvent[]): void {
  const names = [...rank.held.keys()];
  const blockHashes: number[] = [];
  const medium = random(5) === 0 ? random(3) : 0;
  for (let n = 1 + random(3); n > 0; n--) {
    const name = names.length === 0 || random(10) === 0 ? `nobody ${random(1000)}` : names[random(names.length)]!;
    blockHashes.push(...hashWords(name));
    const held = rank.held.get(name);
    if (held === undefined || held.copies[medium] === 0) continue;
    held.copies[medium]!--;
    if (!held.copies.some((count) => count > 0)) rank.held.delete(name);
  }
  events.push({
    type: 'BlockRemoved',
    blockHashes: Uint32Array.from(blockHashes),
    medium: WIRE_MEDIA[medium]!,
    groupIdx: 0,
  });
}

/** A placeholder: the hash alone, no tokens. */
function locateSome(random: Random, rank: Rank, chain: Chain, hashSeed: string, events: KvEvent[]): void {
  const names = [...rank.held.keys()];
  const path = pathsOf(chain);
  const isHeld = names.length > 0 && random(4) > 0;
  const at = path[random(path.length)]!;
  const name = isHeld ? names[random(names.length)]! : nameOf(hashSeed, at);
  addCopy(rank, name, at, 1, false);
  events.push({
    type: 'BlockStored',
    blockHashes: Uint32Array.from(hashWords(name)),
    parentBlockHash: null,
    tokenIds: new Uint32Array(0),
    blockSizeTokens: 0,
    loraId: null,
    loraName: null,
    medium: 'CPU',
    extraKeys: undefined,
    groupIdx: 0,
    kvCacheSpecKind: null,
  });
}

function addCopy(rank: Rank, name: string, chain: string, medium: number, described: boolean): void {
  const held = rank.held.get(name);
  if (held === undefined) {
    rank.held.set(name, { chain, described, copies: MEDIA.map((_, m) => (m === medium ? 1 : 0)) });
    return;
  }
  held.copies[medium]!++;
  if (described) Object.assign(held, { chain, described });
}

/** [blocks, per medium] of the rank with the longest match; among equals the one on the faster media. */
function expected(ranks: ReadonlyMap<number, Rank>, query: Chain, counts: (held: Held) => boolean): number[] {
  let best = [0, 0, 0, 0];
  for (const rank of ranks.values()) {
    const byChain = new Map<string, number[]>();
    for (const held of rank.held.values()) if (counts(held)) byChain.set(held.chain, held.copies);
    const found = [0, 0, 0, 0];
    for (const path of pathsOf(query)) {
      const copies = byChain.get(path);
      if (copies === undefined) break;
      found[0]!++;
      found[1 + copies.findIndex((count) => count > 0)]!++;
    }
    const order = found.findIndex((count, i) => count !== best[i]);
    if (order >= 0 && found[order]! > best[order]!) best = found;
  }
  return best;
}

type Random = (n: number) => number;

/** Everything a block's key covers, per block. */
function pathsOf(chain: Chain): string[] {
  const head = `${chain.adapter}|${chain.salt}|${chain.size}`;
  return chain.blocks.map((_, i) => `${head}|${chain.blocks.slice(0, i + 1).join(',')}`);
}

function nameOf(hashSeed: string, path: string): string {
  return `${hashSeed}|${path}`;
}

function tokensOf(id: number, size: number): number[] {
  return Array.from({ length: size }, (_, i) => id * 1000 + i);
}

/** Numbers that counting engines gave to names, in one history. */
const counted = new Map<string, number>();

function countOf(name: string): number {
  const known = counted.get(name);
  if (known !== undefined) return known;
  const engine = name.slice(0, name.indexOf('|'));
  const next = 1 + (counted.get(engine) ?? 0);
  counted.set(engine, next).set(name, next);
  return next;
}

/** 64 bits out of a name; good enough that names of one history never meet. */
function hashWords(name: string): [number, number] {
  if (name.startsWith(COUNTING)) return [0, countOf(name)];
  let hi = 0x811c9dc5;
  let lo = 0x9747b28c;
  for (let i = 0; i < name.length; i++) {
    hi = Math.imul(hi ^ name.charCodeAt(i), 0x01000193);
    lo = Math.imul(lo ^ name.charCodeAt(i), 0x85ebca6b) ^ (lo >>> 13);
  }
  return [hi >>> 0, lo >>> 0];
}
