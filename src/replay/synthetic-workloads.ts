/**
 * Seeded workloads, each a shape of traffic that breaks some way of routing. Rates fit eight engines of 8,000 tokens per
 * second; `--speed` moves them. Contents are names of segments, never text.
 */
import { below, createRandom, exponential } from './random.ts';
import { createWorkloadBuilder, TRACE_BLOCK_TOKENS, type Workload } from './workload.ts';

/** A piece of a prompt: equal names are equal tokens. */
type Segment = { readonly name: string; readonly nTokens: number };
type Emit = (arrivalMs: number, segments: readonly Segment[], outputTokens: number) => void;
type Generator = (random: () => number, nRequests: number, emit: Emit) => void;

const GENERATORS: Readonly<Record<string, Generator>> = {
  'shared-prompts': sharedPrompts,
  chat,
  rag,
  agents,
  'one-prefix': onePrefix,
};

export const WORKLOAD_NAMES: readonly string[] = Object.keys(GENERATORS);

/** @param name one of `WORKLOAD_NAMES` */
export function syntheticWorkload(name: string, nRequests: number, seed: number): Workload {
  const builder = createWorkloadBuilder(name);
  const blockNames = new Map<string, number>();
  GENERATORS[name]!(createRandom(seed), nRequests, (arrivalMs, segments, outputTokens) => {
    const nTokens = segments.reduce((sum, segment) => sum + segment.nTokens, 0);
    const hashes = blockContents(segments).map((content) => {
      let hash = blockNames.get(content);
      if (hash === undefined) blockNames.set(content, (hash = blockNames.size));
      return hash;
    });
    builder.add(arrivalMs, nTokens, outputTokens, hashes);
  });
  return builder.build();
}

/** Per block the segments in it; with the blocks before it that says what is in it. */
function blockContents(segments: readonly Segment[]): string[] {
  const contents: string[] = [];
  let at = 0;
  for (const { name, nTokens } of segments) {
    const last = Math.floor((at + nTokens - 1) / TRACE_BLOCK_TOKENS);
    for (let block = Math.floor(at / TRACE_BLOCK_TOKENS); block <= last; block++) {
      contents[block] = contents[block] === undefined ? name : `${contents[block]}|${name}`;
    }
    at += nTokens;
  }
  return contents;
}

/** Rank 0…n−1, the first ones by far the most frequent. */
function zipf(random: () => number, n: number): number {
  return Math.min(n - 1, Math.floor(Math.exp(random() * Math.log(n + 1)) - 1));
}

const between = (random: () => number, least: number, most: number): number => least + below(random, most - least + 1);

/** Sixty applications, each with its own system prompt; the rest of every prompt is new. */
function sharedPrompts(random: () => number, nRequests: number, emit: Emit): void {
  const systems = Array.from({ length: 60 }, (_, i) => ({ name: `system ${i}`, nTokens: between(random, 500, 8000) }));
  let atMs = 0;
  for (let i = 0; i < nRequests; i++) {
    atMs += 150 * exponential(random);
    const user = { name: `user ${i}`, nTokens: between(random, 200, 4000) };
    emit(atMs, [systems[zipf(random, systems.length)]!, user], between(random, 20, 400));
  }
}

/** Conversations that grow by question and answer, with a pause for thought between turns. */
function chat(random: () => number, nRequests: number, emit: Emit): void {
  const system = { name: 'system', nTokens: 900 };
  let nEmitted = 0;
  let startMs = 0;
  for (let session = 0; nEmitted < nRequests; session++) {
    startMs += 900 * exponential(random);
    let atMs = startMs;
    const history: Segment[] = [system];
    const nTurns = 1 + Math.floor(6 * exponential(random));
    for (let turn = 0; turn < nTurns && nEmitted < nRequests; turn++) {
      history.push({ name: `${session} question ${turn}`, nTokens: between(random, 100, 3000) });
      const outputTokens = between(random, 50, 600);
      emit(atMs, [...history], outputTokens);
      nEmitted += 1;
      history.push({ name: `${session} answer ${turn}`, nTokens: outputTokens });
      atMs += outputTokens * 30 + 30_000 * exponential(random);
    }
  }
}

/** Questions over documents, few of them hot; the document comes before the question. */
function rag(random: () => number, nRequests: number, emit: Emit): void {
  const documents = Array.from({ length: 500 }, (_, i) => ({
    name: `document ${i}`,
    nTokens: between(random, 3000, 16_000),
  }));
  let atMs = 0;
  for (let i = 0; i < nRequests; i++) {
    atMs += 220 * exponential(random);
    const question = { name: `question ${i}`, nTokens: between(random, 50, 400) };
    emit(
      atMs,
      [{ name: 'system', nTokens: 600 }, documents[zipf(random, documents.length)]!, question],
      between(random, 50, 300),
    );
  }
}

/** An agent starts many calls over one context at the same moment, then goes on alone, its context growing. */
function agents(random: () => number, nRequests: number, emit: Emit): void {
  let nEmitted = 0;
  let startMs = 0;
  for (let agent = 0; nEmitted < nRequests; agent++) {
    startMs += 3500 * exponential(random);
    let atMs = startMs;
    const context: Segment[] = [
      { name: 'tools', nTokens: 3000 },
      { name: `task ${agent}`, nTokens: between(random, 4000, 20_000) },
    ];
    const nCalls = between(random, 4, 24);
    for (let call = 0; call < nCalls && nEmitted < nRequests; call++, nEmitted++) {
      emit(
        atMs,
        [...context, { name: `call ${agent} ${call}`, nTokens: between(random, 50, 800) }],
        between(random, 20, 200),
      );
    }
    const nSteps = between(random, 0, 8);
    for (let step = 0; step < nSteps && nEmitted < nRequests; step++, nEmitted++) {
      atMs += 15_000 * exponential(random);
      context.push({ name: `step ${agent} ${step}`, nTokens: between(random, 200, 2500) });
      emit(atMs, [...context], between(random, 50, 400));
    }
  }
}

/** Everything shares one long prefix: whoever follows prefixes alone sends everything to one engine. */
function onePrefix(random: () => number, nRequests: number, emit: Emit): void {
  let atMs = 0;
  for (let i = 0; i < nRequests; i++) {
    atMs += 60 * exponential(random);
    const own = { name: `own ${i}`, nTokens: between(random, 500, 4000) };
    emit(atMs, [{ name: 'prefix', nTokens: 6000 }, own], between(random, 20, 200));
  }
}
