/** The four forms of a completions prompt: a string, a list of strings, a list of token ids, a list of lists of token ids. */
import { kindText, type ByteRange, type JsonScanner } from './json-scan.ts';
import { readTokenIds } from './token-ids.ts';

export type PromptReading =
  | { readonly kind: 'texts'; readonly ranges: readonly ByteRange[] }
  | { readonly kind: 'tokens'; readonly tokenIds: readonly Uint32Array[] }
  /** Null, or cut before anything of it was complete. */
  | { readonly kind: 'absent' }
  /** More prompts than routing looks at. */
  | { readonly kind: 'many' }
  /** JSON, but no prompt: of another form, or with a number that is no token id. */
  | { readonly kind: 'wrong'; readonly what: 'form' | 'token_id'; readonly message: string };

/** Each prompt is a chain of hashes and one more try to match; a request of more is routed by load. */
export const MAX_PROMPTS = 1024;

/** What a prompt may be, for messages. */
export const PROMPT_FORMS = 'a string, a list of strings, a list of token ids or a list of lists of token ids';

/**
 * Consumes one value, whatever it is; `scanner.problem` is set when it is not JSON or ends too early, and then `tokens` holds
 * the ids complete before that place.
 * @param name of the field, for messages, as is what it may be
 */
export function readPrompt(scanner: JsonScanner, name: string, forms: string): PromptReading {
  const kind = scanner.peekKind();
  const start = scanner.pos;
  if (kind === 'string') return readTexts(scanner, name, 'one');
  if (kind === 'null' || start === scanner.end) {
    scanner.skipValue();
    return { kind: 'absent' };
  }
  if (kind !== 'array')
    return wrong(scanner, start, `\`${name}\` must be ${forms}, got ${kindText(kind)} at byte ${start}`);
  scanner.pos = start + 1;
  const first = scanner.peekKind();
  const isCut = scanner.pos === scanner.end;
  scanner.pos = start;
  if (isCut) {
    scanner.skipValue();
    return { kind: 'absent' };
  }
  if (first === 'string') return readTexts(scanner, name, 'list');
  if (first === 'number') return readOneList(scanner, name);
  if (first === 'array') return readLists(scanner, name);
  const got = first === null ? 'an empty list' : `a list that begins with ${kindText(first)}`;
  return wrong(scanner, start, `\`${name}\` must be ${forms}, got ${got} at byte ${start}`);
}

function readTexts(scanner: JsonScanner, name: string, form: 'one' | 'list'): PromptReading {
  const ranges: ByteRange[] = [];
  const from = scanner.pos;
  const readOne = (): boolean => {
    const start = scanner.pos;
    if (!scanner.skipString()) return false;
    if (ranges.length <= MAX_PROMPTS) ranges.push({ start, end: scanner.pos });
    return true;
  };
  let message: string | null = null;
  const readElement = (index: number): boolean => {
    const kind = scanner.peekKind();
    if (kind === 'string' || kind === null) return readOne();
    message = `\`${name}[${index}]\` must be a string as \`${name}[0]\` is, got ${kindText(kind)} at byte ${scanner.pos}`;
    return false;
  };
  const complete = form === 'one' ? readOne() : scanner.array(readElement);
  if (message !== null) return wrong(scanner, from, message);
  if (!complete) return { kind: 'absent' };
  return ranges.length > MAX_PROMPTS ? { kind: 'many' } : { kind: 'texts', ranges };
}

function readOneList(scanner: JsonScanner, name: string): PromptReading {
  const from = scanner.pos;
  const result = readTokenIds(scanner);
  if (result.kind !== 'not_ids') return { kind: 'tokens', tokenIds: [result.tokenIds] };
  return wrong(scanner, from, notAnId(`${name}[${result.index}]`, result), whatOf(result));
}

function readLists(scanner: JsonScanner, name: string): PromptReading {
  const from = scanner.pos;
  const tokenIds: Uint32Array[] = [];
  let nPrompts = 0;
  let message: string | null = null;
  let what: 'form' | 'token_id' = 'form';
  scanner.array((index) => {
    nPrompts = index + 1;
    const kind = scanner.peekKind();
    if (kind !== 'array') {
      if (kind === null) return scanner.skipValue();
      message = `\`${name}[${index}]\` must be a list of token ids as \`${name}[0]\` is, got ${kindText(kind)} at byte ${scanner.pos}`;
      return false;
    }
    if (index >= MAX_PROMPTS) return scanner.skipValue();
    const result = readTokenIds(scanner);
    if (result.kind === 'not_ids') {
      message = notAnId(`${name}[${index}][${result.index}]`, result);
      what = whatOf(result);
      return false;
    }
    tokenIds.push(result.tokenIds);
    return result.kind === 'ids';
  });
  if (message !== null) return wrong(scanner, from, message, what);
  return nPrompts > MAX_PROMPTS ? { kind: 'many' } : { kind: 'tokens', tokenIds };
}

function notAnId(place: string, { got, position }: { readonly got: string; readonly position: number }): string {
  return `\`${place}\` must be an integer from 0 to 4294967295, got ${got} at byte ${position}`;
}

/** Only what is said of numbers has digits in it. */
function whatOf({ got }: { readonly got: string }): 'form' | 'token_id' {
  return /\d/.test(got) ? 'token_id' : 'form';
}

/** Not a prompt, but the rest of the body may still show that it is not JSON, or a second `prompt`. */
function wrong(
  scanner: JsonScanner,
  start: number,
  message: string,
  what: 'form' | 'token_id' = 'form',
): PromptReading {
  scanner.pos = start;
  scanner.problem = null;
  scanner.skipValue();
  return { kind: 'wrong', what, message };
}
