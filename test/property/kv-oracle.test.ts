/**
 * Random histories of a fleet, from the bytes an engine sends to what a request is told: stores split anywhere, copies,
 * removals, clears, adapters, salts, images, media, events nobody can read, lost and late messages, gaps, replays with
 * overlap and holes, restarts with lower and higher numbers and other block sizes, reconnects, garbage. Against plain maps:
 * what is believed is never more than what the engine held when it had sent the last batch that was applied; once it is
 * quiet, it is what the engine holds. A failing history prints its seed: `HISTORY_SEED=n npm run jest -- test/property/kv-oracle`.
 */
import { describe, expect, test } from '@jest/globals';
import { createPrefixIndexMemory } from '../../src/prefix/prefix-index.ts';
import { MEDIA } from '../../src/prefix/prefix-match.ts';
import { createRandom } from '../support/kv-events.ts';
import { createIndexBench, extraKeysOf, matchOf, N_BLOCK_IDS, Pod, tokensOf, type Dialect, type Prompt, type Random } from '../support/kv-world.ts'; // prettier-ignore

const N_HISTORIES = 10_000;
/** In one test: each has its own limit of time. */
const N_AT_ONCE = 2500;
const SIZES = [4, 20];
const DIALECTS: readonly Dialect[] = ['maps', 'arrays', 'sglang'];

// Every history opens its own writer on it, as a restarted ingest thread does.
const memory = createPrefixIndexMemory({ maxBytes: 300_000 });

describe('random histories of a fleet', () => {
  // The same histories every time; `HISTORY_SEED=n HISTORIES=m` looks at others.
  const only = process.env['HISTORY_SEED'];
  const first = Number(only ?? 1);
  const nHistories = Number(process.env['HISTORIES'] ?? (only === undefined ? N_HISTORIES : 1));
  const parts = Array.from({ length: Math.ceil(nHistories / N_AT_ONCE) }, (_, i) => {
    const from = first + i * N_AT_ONCE;
    return [from, Math.min(first + nHistories, from + N_AT_ONCE) - 1] as const;
  });

  test.each(parts)('%d to %d: never more than announced, equal when quiet', (from, to) => {
    const reached = { believed: 0, whole: 0, suspect: 0, skipped: 0 };
    for (let seed = from; seed <= to; seed++) {
      const mistake = runHistory(seed, reached);
      if (mistake !== null) throw new Error(`seed ${seed}: ${mistake}`);
    }
    if (only !== undefined) return;
    // A test that believes nothing shows nothing.
    expect(reached.believed).toBeGreaterThan(N_AT_ONCE);
    expect(reached.whole).toBeGreaterThan(N_AT_ONCE / 2);
    expect(reached.suspect).toBeGreaterThan(N_AT_ONCE);
    expect(reached.skipped).toBeGreaterThan(N_AT_ONCE / 10);
  });
});

/** @returns what was wrong first, null when nothing was */
function runHistory(seed: number, reached: { believed: number; whole: number; suspect: number; skipped: number }): string | null {
  const random = createRandom(seed);
  const bench = createIndexBench({ memory, seed });
  const pods = Array.from({ length: 1 + random(3) }, (_, i) => {
    const slot = [0, 31, 700][i]!;
    const pod = new Pod(bench.source(slot), random, {
      slot,
      dialect: DIALECTS[Math.max(0, random(4) - 1)]!,
      hashSeed: ['shared', `own ${i}`][random(2)]!,
      bufferSteps: random(4) === 0 ? 3 : 1000,
      size: SIZES[Number(random(5) === 0)]!,
      replay: random(6) === 0 ? 'none' : 'works',
    });
    pod.connect();
    return { pod, hasReplay: pod.stream.status().replay === 'works' };
  });
  const aPrompt = (size: number): Prompt => ({
    adapter: random(4) === 0 ? 'L' : null,
    salt: random(4) === 0 ? 's' : null,
    size,
    blocks: Array.from({ length: 1 + random(4) }, () => random(N_BLOCK_IDS)),
  });

  const check = (when: string, pod: Pod, mode: 'at most' | 'equal'): string | null => {
    const { state } = pod.stream.status();
    if (state !== 'live') {
      reached.suspect++;
      return mode === 'equal' ? `${when}: slot ${pod.slot} is ${state}` : null;
    }
    if (!pod.inOrder) return `${when}: slot ${pod.slot} applied batches out of turn`;
    const prompt = aPrompt(pod.size);
    const match = bench.match(Uint32Array.from(prompt.blocks.flatMap((id) => tokensOf(id, prompt.size))), {
      adapter: prompt.adapter,
      size: prompt.size,
      extraKeys: extraKeysOf(prompt),
    });
    const got = [match.blocks(pod.slot), ...MEDIA.map((medium) => match.blocksIn(pod.slot, medium))];
    const most = matchOf(mode === 'equal' ? pod.truth : pod.believed, prompt);
    reached.believed += got[0]!;
    if (got[0]! > most[0]! || (mode === 'equal' && String(got) !== String(most))) {
      return `${when}: slot ${pod.slot} gave ${got} for ${JSON.stringify(prompt)}, announced ${most}`;
    }
    return null;
  };

  const nSteps = 10 + random(50);
  for (let step = 0; step < nSteps; step++) {
    const { pod } = pods[random(pods.length)]!;
    act(random, pod, aPrompt);
    if (random(40) === 0) bench.engineBlocks.tidy(100);
    for (const { pod: one } of pods) {
      const mistake = check(`step ${step}`, one, 'at most');
      if (mistake !== null) return mistake;
    }
  }
  for (const { pod, hasReplay } of pods) {
    if (!hasReplay) continue;
    pod.settle();
    reached.skipped += pod.nSkipped;
    // SGLang's hashes name blocks of two adapters alike, and it tells of no images: there is less than all.
    const isWhole = !pod.stream.status().partial && pod.dialectIsExact();
    if (isWhole) reached.whole++;
    for (let n = 0; n < 4; n++) {
      const mistake = check('quiet', pod, 'at most') ?? (isWhole ? check('quiet', pod, 'equal') : null);
      if (mistake !== null) return mistake;
    }
  }
  return null;
} // prettier-ignore

/** One thing happens: to the engine, to the lines, or to the clock. */
function act(random: Random, pod: Pod, aPrompt: (size: number) => Prompt): void {
  const chosen = random(50);
  if (chosen < 14) {
    const events: object[] = [];
    let form: 'good' | 'broken' = 'good';
    for (let n = random(4); n > 0; n--) events.push(...anEvent(random, pod, aPrompt));
    if (random(40) === 0) form = 'broken';
    pod.publish(events, form);
  } else if (chosen < 26) for (let n = 1 + random(4); n > 0; n--) pod.deliverLive();
  else if (chosen < 31) pod.serveReplay();
  else if (chosen < 40) for (let n = 1 + random(4); n > 0; n--) pod.deliverReply();
  else if (chosen < 43) pod.pass([10, 300, 2500][random(3)]!);
  else if (chosen < 45) pod.dropLive += 1 + random(2);
  else if (chosen < 46) pod.dropReplies += 1 + random(3);
  else if (chosen < 47) pod.connect();
  else if (chosen < 48) {
    const payload = Buffer.from('not a batch');
    pod.inject(random(2) === 0 ? 'garbage' : { seq: random(12), payload });
  } else if (chosen < 49) {
    const how = random(4);
    if (how === 0) pod.disconnect();
    else if (how === 1) pod.restartUnseen(SIZES[Number(random(4) === 0)]!);
    else pod.restart([0, 0, 5, 30][random(4)]!, SIZES[Number(random(4) === 0)]!);
  } else if (random(3) === 0) pod.stream.restarted(pod.nowMs);
}

function anEvent(random: Random, pod: Pod, aPrompt: (size: number) => Prompt): object[] {
  const chosen = random(20);
  const held = pod.anyHeld();
  if (chosen < 11 || held === null) {
    const prompt = aPrompt(pod.size);
    const blocks = pod.tellsImages() ? prompt.blocks : prompt.blocks.map((id) => id % 2);
    // Mostly behind what is held, now and then in the middle of nowhere.
    let from = 0;
    while (from < blocks.length - 1 && pod.holdsBlock({ ...prompt, blocks }, from) && random(5) > 0) from++;
    if (random(10) === 0) from = random(blocks.length);
    const to = from + 1 + random(blocks.length - from);
    return [pod.store({ ...prompt, blocks }, from, to, random(5) === 0 ? random(3) : 0)];
  }
  if (chosen < 17) return [pod.remove(held.path, held.medium, random(30) === 0 ? 'broken' : 'good')];
  if (chosen < 18) return pod.sendsPlaceholders() ? [pod.locate(held.path)] : [];
  if (chosen < 19) return [{ type: 'BlockTouched', block_hashes: [1] }];
  return random(4) === 0 ? [pod.clear()] : [];
}
