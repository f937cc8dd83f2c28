/**
 * How far the memo may be believed, per model: a window of verdicts. Too many wrong blocks and the model's entries are
 * forgotten (a new epoch) and not believed until enough fresh claims were right.
 */

/** Of one claim: its blocks, and how many of them the exact answer did not have. */
export type Verdict = { readonly claimedBlocks: number; readonly wrongBlocks: number };

export type ModelAccuracy = {
  /** Share of claimed blocks that were right, over the window; 1 before the first claim. */
  readonly accuracy: number;
  readonly believed: boolean;
  /** Changes when everything known of the model is void. */
  readonly epoch: number;
  /** Blocks that the end of a prompt loses when it becomes history, as templates close a turn otherwise than they open it. */
  readonly trimBlocks: number;
  /** Of text, without what a template puts before it. */
  readonly tokensPerByte: number;
};

type Mutable = {
  accuracy: number;
  believed: boolean;
  epoch: number;
  trimBlocks: number;
  tokensPerByte: number;
  /** Smoothed, of a prompt. */
  nTokens: number;
  nBytes: number;
  readonly claimed: Int32Array;
  readonly wrong: Int32Array;
  next: number;
  nVerdicts: number;
  claimedSum: number;
  wrongSum: number;
};

const WINDOW = 256;
/** Fewer verdicts say nothing yet. */
const ENOUGH_VERDICTS = 32;
const MIN_ACCURACY = 0.95;
/** More than a closing tag or an empty thought is no end of a turn. */
const MAX_TRIM_BLOCKS = 4;
/** What English text and code come to with today's vocabularies. */
const TOKENS_PER_BYTE = 0.25;
const SMOOTHING = 0.05;
/** A template writes some hundred tokens before a text of a few words: only from so many bytes on a text is known by itself. */
const ASSUMED_BYTES = 2048;
/** Models come from discovery; this bounds a mistake there. */
const MAX_MODELS = 1000;

export function createModelAccuracy(minAccuracy = MIN_ACCURACY) {
  const models = new Map<string, Mutable>();

  function of(model: string): Mutable {
    let one = models.get(model);
    if (one === undefined) {
      if (models.size >= MAX_MODELS) models.delete(models.keys().next().value!);
      models.set(model, (one = fresh()));
    }
    return one;
  }

  return {
    of: (model: string): ModelAccuracy => of(model),
    /** @param nTokens of a prompt of so many bytes */
    note(model: string, { claimedBlocks, wrongBlocks }: Verdict, nTokens: number, nBytes: number): void {
      const one = of(model);
      one.nTokens += (nTokens - one.nTokens) * SMOOTHING;
      one.nBytes += (nBytes - one.nBytes) * SMOOTHING;
      one.tokensPerByte = textDensity(one.nTokens, one.nBytes, TOKENS_PER_BYTE);
      if (claimedBlocks === 0) return;
      const at = one.next;
      one.claimedSum += claimedBlocks - one.claimed[at]!;
      one.wrongSum += wrongBlocks - one.wrong[at]!;
      one.claimed[at] = claimedBlocks;
      one.wrong[at] = wrongBlocks;
      one.next = (at + 1) % WINDOW;
      one.nVerdicts = Math.min(one.nVerdicts + 1, WINDOW);
      one.accuracy = 1 - one.wrongSum / one.claimedSum;
      if (one.nVerdicts < ENOUGH_VERDICTS) return;
      if (one.accuracy >= minAccuracy) one.believed = true;
      else startAnew(one);
    },
    /** The end of a prompt, become history, was wrong by so many blocks. */
    trim(model: string, wrongBlocks: number): void {
      const one = of(model);
      if (wrongBlocks <= MAX_TRIM_BLOCKS) one.trimBlocks = Math.min(MAX_TRIM_BLOCKS, one.trimBlocks + wrongBlocks);
    },
    all: (): ReadonlyMap<string, ModelAccuracy> => models,
  };
}

/** Tokens per byte of a text that comes with a template's own tokens. @param assumed where the text is too short to tell */
export function textDensity(nTokens: number, nBytes: number, assumed: number): number {
  return (nTokens + assumed * ASSUMED_BYTES) / (nBytes + ASSUMED_BYTES);
}

function fresh(): Mutable {
  return {
    accuracy: 1,
    believed: true,
    epoch: 0,
    trimBlocks: 0,
    tokensPerByte: TOKENS_PER_BYTE,
    nTokens: 0,
    nBytes: 0,
    claimed: new Int32Array(WINDOW),
    wrong: new Int32Array(WINDOW),
    next: 0,
    nVerdicts: 0,
    claimedSum: 0,
    wrongSum: 0,
  };
}

/** What was learnt may be of another template or vocabulary. The accuracy stays as published until fresh verdicts replace it. */
function startAnew(one: Mutable): void {
  one.believed = false;
  one.epoch += 1;
  one.trimBlocks = 0;
  one.claimed.fill(0);
  one.wrong.fill(0);
  one.next = one.nVerdicts = one.claimedSum = one.wrongSum = 0;
}
