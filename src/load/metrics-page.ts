/**
 * The few series a router needs out of an engine's /metrics, found by byte search: of a page of 70 KB only the lines that
 * are wanted are ever looked at. Engines are told apart by their names. No I/O, no clock; what is not a sane number is
 * left out and counted.
 *
 * | engine | names from |
 * |---|---|
 * | vLLM v1 | `vllm/v1/metrics/loggers.py`; `gpu_cache_usage_perc` up to 0.10, `time_per_output_token_seconds` before 0.11 |
 * | SGLang | `--enable-metrics`; one series per tensor-parallel rank where all of them report |
 * | TensorRT-LLM | `trtllm-serve`; `nv_trt_llm_*` behind Triton |
 */

export type EngineKind = 'vllm' | 'sglang' | 'trtllm' | 'triton';

/** Seconds and how many of something they were for, since the engine started. */
export type Total = { readonly seconds: number; readonly count: number };

/** Null = not on the page. Models of one page are one endpoint: summed, and so are data-parallel ranks in the whole. */
export type EngineReading = {
  readonly engine: EngineKind;
  readonly running: number | null;
  readonly waiting: number | null;
  /** Part of the KV cache held by requests, 0…1, mean of the ranks; what is merely cached counts as free. */
  readonly kvUsage: number | null;
  /** Capacity of the KV cache. */
  readonly nBlocks: number | null;
  readonly blockSizeTokens: number | null;
  /** Time from token to token. */
  readonly decode: Total | null;
  /** Time of whole answers. */
  readonly answers: Total | null;
  /** Values that were no number, negative or absurd. */
  readonly nIgnored: number;
};

/** @returns null for a page of no engine known here */
export type MetricsReader = (page: Buffer) => EngineReading | null;

export type RankReadings = {
  readonly whole: EngineReading;
  /** In the order of the ranks: their own series where the page tells them apart, else even shares. */
  readonly ranks: readonly EngineReading[];
};

type Kind = 'count' | 'share' | 'total' | 'size';
type Series = {
  readonly name: Buffer;
  readonly kind: Kind;
  /** Only series with this label value. */
  readonly where?: readonly [label: string, value: string];
  /** The number is in this label, not in the value. */
  readonly inLabel?: string;
};
/** The first one that is there counts. */
type Alternatives = readonly Series[];
type Field = 'running' | 'waiting' | 'kvUsage' | 'nBlocks' | 'blockSizeTokens' | `${'decode' | 'answers'}${Part}`;
type Part = 'Seconds' | 'Count';
type Engine = { readonly engine: EngineKind; readonly fields: Readonly<Record<Field, Alternatives>> };

const NEWLINE = 10;
const QUOTE = 34;
const BACKSLASH = 92;
const OPENING_BRACE = 123;
const CLOSING_BRACE = 125;
const SPACE = 32;
const COMMENT = Buffer.from('\n#');

/** More series of one name than any engine has models and ranks: the rest is not looked at. */
const MAX_SERIES = 1024;
const LIMITS: Readonly<Record<Kind, number>> = { count: 1e6, share: 1.001, total: 1e15, size: 1e9 };
/** What tells series of one name apart that are different things. Others, like `tp_rank`, tell one thing several times. */
const IDENTITY = ['model_name', 'model', 'engine', 'dp_rank', 'engine_type'];

const VLLM_DECODE = ['vllm:inter_token_latency_seconds', 'vllm:time_per_output_token_seconds'];
const SGLANG_DECODE = ['sglang:inter_token_latency_seconds', 'sglang:time_per_output_token_seconds'];
const ENGINES: readonly Engine[] = [
  {
    engine: 'vllm',
    fields: {
      running: [series('vllm:num_requests_running', 'count')],
      waiting: [series('vllm:num_requests_waiting', 'count')],
      kvUsage: [series('vllm:kv_cache_usage_perc', 'share'), series('vllm:gpu_cache_usage_perc', 'share')],
      nBlocks: [series('vllm:cache_config_info', 'size', { inLabel: 'num_gpu_blocks' })],
      blockSizeTokens: [series('vllm:cache_config_info', 'size', { inLabel: 'block_size' })],
      decodeSeconds: sums(VLLM_DECODE),
      decodeCount: counts(VLLM_DECODE),
      answersSeconds: sums(['vllm:e2e_request_latency_seconds']),
      answersCount: counts(['vllm:e2e_request_latency_seconds']),
    },
  },
  {
    engine: 'sglang',
    fields: {
      running: [series('sglang:num_running_reqs', 'count')],
      waiting: [series('sglang:num_queue_reqs', 'count')],
      kvUsage: [series('sglang:token_usage', 'share')],
      nBlocks: [series('sglang:cache_config_info', 'size', { inLabel: 'num_pages' })],
      blockSizeTokens: [series('sglang:cache_config_info', 'size', { inLabel: 'page_size' })],
      decodeSeconds: sums(SGLANG_DECODE),
      decodeCount: counts(SGLANG_DECODE),
      answersSeconds: sums(['sglang:e2e_request_latency_seconds']),
      answersCount: counts(['sglang:e2e_request_latency_seconds']),
    },
  },
  {
    engine: 'trtllm',
    fields: {
      running: [series('trtllm_num_requests_running', 'count')],
      waiting: [series('trtllm_num_requests_waiting', 'count')],
      kvUsage: [series('trtllm_kv_cache_utilization', 'share')],
      nBlocks: [series('trtllm_kv_cache_max_blocks', 'size')],
      blockSizeTokens: [series('trtllm_kv_cache_tokens_per_block', 'size')],
      decodeSeconds: sums(['trtllm_time_per_output_token_seconds']),
      decodeCount: counts(['trtllm_time_per_output_token_seconds']),
      answersSeconds: sums(['trtllm_e2e_request_latency_seconds']),
      answersCount: counts(['trtllm_e2e_request_latency_seconds']),
    },
  },
  {
    engine: 'triton',
    fields: {
      running: [series('nv_trt_llm_request_metrics', 'count', { where: ['request_type', 'scheduled'] })],
      waiting: [series('nv_trt_llm_request_metrics', 'count', { where: ['request_type', 'waiting'] })],
      kvUsage: [series('nv_trt_llm_kv_cache_block_metrics', 'share', { where: ['kv_cache_block_type', 'fraction'] })],
      nBlocks: [series('nv_trt_llm_kv_cache_block_metrics', 'size', { where: ['kv_cache_block_type', 'max'] })],
      blockSizeTokens: [
        series('nv_trt_llm_kv_cache_block_metrics', 'size', { where: ['kv_cache_block_type', 'tokens_per'] }),
      ],
      decodeSeconds: sums([]),
      decodeCount: counts([]),
      answersSeconds: sums([]),
      answersCount: counts([]),
    },
  },
];

/** A reader for one address: it remembers which engine that is, so that the others' names are not looked for again. */
export function createMetricsReader(): MetricsReader {
  const read = createSamplesReader();
  return (page) => {
    const samples = read(page);
    return samples === null ? null : wholeOf(samples);
  };
}

/** The same for an address with several data-parallel ranks behind it, from one look at the page. */
export function createRankMetricsReader(nRanks: number): (page: Buffer) => RankReadings | null {
  const read = createSamplesReader();
  return (page) => {
    const samples = read(page);
    if (samples === null) return null;
    const whole = wholeOf(samples);
    if (nRanks === 1) return { whole, ranks: [whole] };
    const { ofEngine } = samples;
    const labels = [...(ofEngine('running')?.byRank.keys() ?? [])].sort((a, b) => Number(a) - Number(b));
    // Behind one of several addresses they are counted on from those before: their order tells, not their numbers.
    const isApart = labels.length === nRanks && labels.every((label) => /^\d+$/.test(label));
    const share = sharedEvenly(whole, nRanks);
    const ranks = Array.from({ length: nRanks }, (_, rank) =>
      isApart ? readingOf(samples, (field) => ofEngine(field)?.byRank.get(labels[rank]!) ?? null) : share,
    );
    return { whole, ranks };
  };
}

function sharedEvenly(whole: EngineReading, nRanks: number): EngineReading {
  const part = (value: number | null): number | null => (value === null ? null : value / nRanks);
  const partOf = (total: Total | null): Total | null =>
    total === null ? null : { seconds: total.seconds / nRanks, count: total.count / nRanks };
  return {
    ...whole,
    running: part(whole.running),
    waiting: part(whole.waiting),
    nBlocks: part(whole.nBlocks),
    decode: partOf(whole.decode),
    answers: partOf(whole.answers),
  };
}

/** What a page says, field by field. */
type Samples = {
  readonly engine: EngineKind;
  readonly nIgnored: number;
  ofEngine(field: Field): Sample | null;
};

function createSamplesReader(): (page: Buffer) => Samples | null {
  let known: Engine | null = null;
  return (page) => {
    if (known !== null) {
      const samples = readEngine(page, known);
      if (samples !== null) return samples;
    }
    for (const engine of ENGINES) {
      if (engine === known) continue;
      const samples = readEngine(page, engine);
      if (samples === null) continue;
      known = engine;
      return samples;
    }
    return null;
  };
}

function readEngine(page: Buffer, { engine, fields }: Engine): Samples | null {
  let nIgnored = 0;
  const read = (field: Field): Sample | null => {
    for (const one of fields[field]) {
      const sample = readSeries(page, one);
      nIgnored += sample.nIgnored;
      if (sample.n > 0) return sample;
    }
    return null;
  };
  const running = read('running');
  const waiting = read('waiting');
  if (running === null && waiting === null && nIgnored === 0) return null;
  const found = new Map<Field, Sample | null>([
    ['running', running],
    ['waiting', waiting],
  ]);
  for (const field of Object.keys(fields) as Field[]) if (!found.has(field)) found.set(field, read(field));
  return { engine, nIgnored, ofEngine: (field) => found.get(field) ?? null };
}

function wholeOf(samples: Samples): EngineReading {
  return readingOf(samples, samples.ofEngine);
}

function readingOf({ engine, nIgnored }: Samples, read: (field: Field) => Sums | null): EngineReading {
  const sum = (field: Field): number | null => read(field)?.sum ?? null;
  const usage = read('kvUsage');
  const total = (of: 'decode' | 'answers'): Total | null => {
    const seconds = sum(`${of}Seconds`);
    const count = seconds === null ? null : sum(`${of}Count`);
    return seconds === null || count === null ? null : { seconds, count };
  };
  return {
    engine,
    running: sum('running'),
    waiting: sum('waiting'),
    kvUsage: usage === null ? null : Math.min(1, usage.sum / usage.n),
    nBlocks: sum('nBlocks'),
    blockSizeTokens: read('blockSizeTokens')?.max ?? null,
    decode: total('decode'),
    answers: total('answers'),
    nIgnored,
  };
}

type Sums = { sum: number; max: number; n: number };
type Sample = Sums & { nIgnored: number; readonly byRank: Map<string, Sums> };

/** All series of a name: they stand together, up to the comment that begins the next name. */
function readSeries(page: Buffer, { name, kind, where, inLabel }: Series): Sample {
  const sample: Sample = { sum: 0, max: 0, n: 0, nIgnored: 0, byRank: new Map() };
  const seen = new Map<string, number>();
  let end = page.length;
  for (let at = page.indexOf(name), nSeries = 0; at >= 0 && at < end; at = page.indexOf(name, at + 1)) {
    const afterName = at + name.length;
    const next = page[afterName];
    const isWhole = (at === 0 || page[at - 1] === NEWLINE) && (next === OPENING_BRACE || next === SPACE);
    // The name as part of another one, or in a comment.
    if (!isWhole) continue;
    if (end === page.length) {
      const comment = page.indexOf(COMMENT, at);
      if (comment >= 0) end = comment;
    }
    if ((nSeries += 1) > MAX_SERIES) break;
    const { labels, valueAt } = readLabels(page, afterName);
    if (where !== undefined && labels.get(where[0]) !== where[1]) continue;
    const value = inLabel === undefined ? readValue(page, valueAt) : numberOf(labels.get(inLabel) ?? '');
    if (!(value >= 0 && value <= LIMITS[kind])) {
      sample.nIgnored += 1;
      continue;
    }
    const identity = IDENTITY.map((label) => labels.get(label) ?? '').join('\0');
    const before = seen.get(identity);
    if (before !== undefined && before >= value) continue;
    seen.set(identity, value);
    const rank = labels.get('engine') ?? labels.get('dp_rank') ?? '';
    let ofRank = sample.byRank.get(rank);
    if (ofRank === undefined) sample.byRank.set(rank, (ofRank = { sum: 0, max: 0, n: 0 }));
    for (const sums of [sample, ofRank]) {
      sums.sum += value - (before ?? 0);
      sums.max = Math.max(sums.max, value);
      if (before === undefined) sums.n += 1;
    }
  }
  return sample;
}

type Labels = { readonly labels: ReadonlyMap<string, string>; readonly valueAt: number };

const NO_LABELS: ReadonlyMap<string, string> = new Map();

/** @param at of the brace or the space behind the name; a line that breaks off has the labels read so far and no value */
function readLabels(page: Buffer, at: number): Labels {
  if (page[at] !== OPENING_BRACE) return { labels: NO_LABELS, valueAt: at };
  const labels = new Map<string, string>();
  let start = at + 1;
  for (let i = start; i < page.length; i++) {
    const byte = page[i]!;
    if (byte === NEWLINE) return { labels, valueAt: i };
    if (byte === CLOSING_BRACE) return { labels, valueAt: i + 1 };
    if (byte !== QUOTE) continue;
    const name = page.toString('latin1', start, i - 1).replace(/^[,\s]+/, '');
    const from = i + 1;
    i = from;
    while (i < page.length && page[i] !== QUOTE && page[i] !== NEWLINE) i += page[i] === BACKSLASH ? 2 : 1;
    if (page[i] !== QUOTE) return { labels, valueAt: i };
    labels.set(name, page.toString('latin1', from, i));
    start = i + 1;
  }
  return { labels, valueAt: page.length };
}

/** Longest number a page is believed to write. */
const MAX_NUMBER_BYTES = 40;

function readValue(page: Buffer, at: number): number {
  let start = at;
  while (page[start] === SPACE) start += 1;
  let end = start;
  while (end < page.length && end - start < MAX_NUMBER_BYTES && page[end]! > SPACE) end += 1;
  return numberOf(page.toString('latin1', start, end));
}

/** NaN for everything that is not a plain decimal number. */
function numberOf(text: string): number {
  return /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/.test(text) ? Number(text) : NaN;
}

function series(name: string, kind: Kind, more: Pick<Series, 'where' | 'inLabel'> = {}): Series {
  return { name: Buffer.from(name), kind, ...more };
}

/** Of histograms. */
function sums(names: readonly string[]): Alternatives {
  return names.map((name) => series(`${name}_sum`, 'total'));
}

function counts(names: readonly string[]): Alternatives {
  return names.map((name) => series(`${name}_count`, 'total'));
}
