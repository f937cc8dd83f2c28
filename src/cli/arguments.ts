/** What a command is asked to do, values of its options, and what every command that runs on waits for. */
import { parseArgs, type ParseArgsConfig } from 'node:util';
import { errorText } from '../errors.ts';
import { nearestName } from '../wording.ts';

export type Asked<T> =
  | { readonly kind: 'plan'; readonly plan: T }
  /** Everything there is to say has been said. */
  | { readonly kind: 'exit'; readonly code: 0 | 2 };

/** @param read throws an Error with the words of a mistake */
export function readPlan<T extends object>(
  command: string,
  help: string,
  io: { stdout(line: string): void; stderr(line: string): void },
  read: () => T | 'help',
): Asked<T> {
  try {
    const plan = read();
    if (plan !== 'help') return { kind: 'plan', plan };
  } catch (error) {
    io.stderr(`warmpath ${command}: ${errorText(error)}`);
    return { kind: 'exit', code: 2 };
  }
  io.stdout(help);
  return { kind: 'exit', code: 0 };
}

/** `parseArgs`, with what was probably meant. @throws Error with the words of a mistake */
export function parseOptions<T extends ParseArgsConfig>(config: T): ReturnType<typeof parseArgs<T>> {
  try {
    return parseArgs(config);
  } catch (error) {
    const unknown = /^Unknown option '([^']*)'/.exec(errorText(error))?.[1];
    if (unknown === undefined) throw error;
    const known = Object.keys(config.options ?? {}).map((name) => `--${name}`);
    const nearest = nearestName(unknown, known);
    const meant = nearest === null ? `expected some of ${known.join(', ')}` : `the nearest known one is ${nearest}`;
    throw new Error(`unknown option "${unknown}", ${meant}`);
  }
}

/** @throws Error with the words of a mistake, as the others here */
export function integer(flag: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isInteger(value) || value < least || value > most) {
    throw new Error(`${flag} must be an integer from ${least} to ${most}, got "${text}"`);
  }
  return value;
}

export function number(flag: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (text.trim() === '' || !(value >= least && value <= most)) {
    throw new Error(`${flag} must be a number from ${least} to ${most}, got "${text}"`);
  }
  return value;
}

export function positive(flag: string, text: string): number {
  const value = Number(text);
  if (!Number.isFinite(value) || value <= 0) throw new Error(`${flag} must be a number above 0, got "${text}"`);
  return value;
}

export function oneOf<T extends string>(flag: string, text: string, allowed: readonly T[]): T {
  const found = allowed.find((word) => word === text);
  if (found === undefined) throw new Error(`${flag} must be one of ${allowed.join(', ')}, got "${text}"`);
  return found;
}

/** Resolves when the signal aborts, or has. */
export function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
}
