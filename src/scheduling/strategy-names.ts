/** Strategies by name, and mixes of them: how one is written, what it means in a sentence. How they choose is strategies.ts. */

/** Name → what it chooses. */
export const STRATEGIES = {
  'prefix-cache': 'the lowest cost: wait, what is not cached, what others lose',
  random: 'any endpoint',
  'least-request': 'fewest requests in flight',
  'least-busy-time': 'the smallest part of its time spent on prompts of late',
  'least-latency': 'the shortest mean time to a whole answer of late',
  'least-kv-cache': 'the smallest part of its KV cache in use, as the engine reports',
  'least-utilization': 'the least used: the larger of time spent on prompts and KV cache in use',
  throughput: 'fewest tokens per second served of late',
  'power-of-two': 'of two at random the one with fewer requests in flight',
  'session-affinity': 'always the same endpoint for a session header; fewest requests in flight without one',
  'aibrix-prefix-cache':
    'as the AIBrix gateway: fewest requests if they differ by more than 16, else the longest prefix match below mean + 2σ',
} as const;

export type StrategyName = keyof typeof STRATEGIES;
export const STRATEGY_NAMES = Object.keys(STRATEGIES) as readonly StrategyName[];

/** Other names, and what they stand for here. */
export const STRATEGY_ALIASES: Readonly<Record<string, StrategyName>> = { 'prefix-cache-preble': 'prefix-cache' };

/** Without a score per endpoint these cannot be part of a mix. */
const NOT_MIXED: ReadonlySet<StrategyName> = new Set(['random', 'power-of-two', 'aibrix-prefix-cache']);

/** All names with weights fit in. Clients write it, and what is kept of a request has it. */
const MAX_TEXT = 500;

/** One strategy, or several with weights > 0. */
export type Strategy = {
  readonly text: string;
  readonly parts: readonly { readonly name: StrategyName; readonly weight: number }[];
};

export type ParsedStrategy =
  | { readonly kind: 'strategy'; readonly strategy: Strategy }
  /** Completes "… must be". */
  | { readonly kind: 'mistake'; readonly expected: string };

/** @param text a name, an alias, or `name:weight,name` with weight 1 where none is given; weight 0 = left out */
export function parseStrategy(text: string): ParsedStrategy {
  const parts: { name: StrategyName; weight: number }[] = [];
  if (text.length > MAX_TEXT) return mistake(`at most ${MAX_TEXT} characters`);
  const pieces = text.split(',').map((piece) => piece.trim());
  const seen = new Set<StrategyName>();
  for (const piece of pieces) {
    const [word = '', weightText = '1', ...rest] = piece.split(':').map((one) => one.trim());
    const name = Object.hasOwn(STRATEGY_ALIASES, word) ? STRATEGY_ALIASES[word]! : (word as StrategyName);
    if (!Object.hasOwn(STRATEGIES, name)) return mistake(`one of ${knownNames().join(', ')}, or a mix like a:2,b`);
    if (rest.length > 0 || !/^\d{1,6}(?:\.\d{1,6})?$/.test(weightText))
      return mistake('a mix like a:2,b with weights ≥ 0');
    if (pieces.length > 1 && NOT_MIXED.has(name)) return mistake(`a mix without ${[...NOT_MIXED].join(', ')}`);
    if (seen.has(name)) return mistake('a mix that names no strategy twice');
    seen.add(name);
    if (Number(weightText) > 0) parts.push({ name, weight: Number(weightText) });
  }
  if (parts.length === 0) return mistake('a mix with at least one weight above 0');
  return { kind: 'strategy', strategy: { text, parts } };
}

/** Names and aliases. */
export function knownNames(): readonly string[] {
  return [...STRATEGY_NAMES, ...Object.keys(STRATEGY_ALIASES)];
}

/** What is worth knowing of a strategy text that is not wrong. */
export function strategyNotice(text: string): string | null {
  const alias = text.split(/[,:]/).find((word) => Object.hasOwn(STRATEGY_ALIASES, word.trim()));
  return alias === undefined ? null : `${alias.trim()} is served by ${STRATEGY_ALIASES[alias.trim()]!}`;
}

/** Whether a choice by it depends on what of the prompt is cached where. */
export function usesPrompt({ parts }: Strategy): boolean {
  return parts.some(({ name }) => name === 'prefix-cache' || name === 'aibrix-prefix-cache');
}

/** The table of the documentation. */
export function strategyTable(): string {
  const rows = STRATEGY_NAMES.map((name) => `| \`${name}\` | ${STRATEGIES[name]} |`);
  return ['| strategy | chooses |', '|---|---|', ...rows].join('\n');
}

function mistake(expected: string): ParsedStrategy {
  return { kind: 'mistake', expected };
}
