/** What the doctor has to say: one finding per thing it looked at, with what to change where something is wrong. */

export type Check =
  'fleet' | 'http' | 'model' | 'tokenizer' | 'events' | 'replay' | 'blocks' | 'salts' | 'cache' | 'metrics' | 'clock';

/** `warning`: it serves, with less than it could. `problem`: it does not work as configured. */
export type FindingStatus = 'ok' | 'warning' | 'problem';

export type Finding = {
  readonly check: Check;
  readonly status: FindingStatus;
  /** What was found, one clause. */
  readonly text: string;
  /** What to change, null where nothing needs to be. */
  readonly advice: string | null;
};

/** An endpoint, or a tokenizer that is none and has no address but its name; null = the fleet as a whole. */
export type Subject = {
  readonly name: string;
  readonly address: string | null;
  readonly models: readonly string[];
} | null;

export type Report = { readonly subject: Subject; readonly findings: readonly Finding[] };

export function ok(check: Check, text: string): Finding {
  return { check, status: 'ok', text, advice: null };
}

export function warning(check: Check, text: string, advice: string): Finding {
  return { check, status: 'warning', text, advice };
}

export function problem(check: Check, text: string, advice: string): Finding {
  return { check, status: 'problem', text, advice };
}

export function count(n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`;
}
