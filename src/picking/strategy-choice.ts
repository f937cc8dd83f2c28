/** By which strategy a request is routed: the default one, or what its header asks for among the allowed. */
import type { PickError, PickRequest } from '../extproc/picker.ts';
import { parseStrategy, type Strategy } from '../scheduling/strategy-names.ts';
import { badRequest } from './pick-errors.ts';

export type StrategyOptions = {
  readonly default: Strategy;
  /** Name of the request header; '' = requests do not choose. */
  readonly header: string;
  /** Names a header may choose, alone or in a mix; empty = requests do not choose. */
  readonly allowed: readonly string[];
};

export type StrategyChoice = { readonly kind: 'strategy'; readonly strategy: Strategy } | PickError;

/** @returns a choice function; what a header says is understood once per text, for at most `MAX_TEXTS` texts */
export function createStrategyChoice(options: StrategyOptions): (pick: Pick<PickRequest, 'header'>) => StrategyChoice {
  const byDefault: StrategyChoice = { kind: 'strategy', strategy: options.default };
  const allowed = new Set(options.allowed.map(nameOf));
  const understood = new Map<string, StrategyChoice>();

  function understand(text: string): StrategyChoice {
    if (text === options.default.text) return byDefault;
    const parsed = parseStrategy(text);
    if (parsed.kind === 'strategy' && parsed.strategy.parts.every(({ name }) => allowed.has(name))) return parsed;
    const names = [...new Set([options.default.text, ...allowed])].join(', ');
    const got = JSON.stringify(text.slice(0, 100));
    return badRequest(`${options.header} must be one of ${names} or a mix like a:2,b, got ${got}`, options.header);
  }

  return (pick) => {
    if (options.header === '' || allowed.size === 0) return byDefault;
    const text = pick.header(options.header)?.trim() ?? '';
    if (text === '') return byDefault;
    let choice = understood.get(text);
    if (choice === undefined) {
      choice = understand(text);
      if (understood.size < MAX_TEXTS) understood.set(text, choice);
    }
    return choice;
  };
}

const MAX_TEXTS = 256;

/** Aliases are allowed under the name they stand for. */
function nameOf(text: string): string {
  const parsed = parseStrategy(text);
  return parsed.kind === 'strategy' ? parsed.strategy.parts[0]!.name : text;
}
