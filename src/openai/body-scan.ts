/**
 * One pass over a body: where the few fields are that matter, and its prompt in pieces. Deliberately not here: what is
 * wrong about them, except that a body is not JSON.
 */
import type { Api } from './api.ts';
import type { FieldValue } from './field-values.ts';
import { JsonScanner, type ByteRange, type JsonProblem } from './json-scan.ts';
import { PROMPT_FORMS, readPrompt, type PromptReading } from './prompt.ts';

/** Top-level fields beside the prompt that decide about its tokens or their blocks. */
export const TOKEN_FIELDS = [
  'tools',
  'tool_choice',
  'documents',
  'reasoning',
  'reasoning_effort',
  'output_config',
  'thinking',
  'chat_template',
  'chat_template_kwargs',
  'mm_processor_kwargs',
  'media_io_kwargs',
  'add_generation_prompt',
  'continue_final_message',
  'add_special_tokens',
  'truncate_prompt_tokens',
  'cache_salt',
] as const;

/** Those, and the ones that say what is asked. */
const FIELD_NAMES = [
  ...TOKEN_FIELDS,
  'model',
  'messages',
  'prompt',
  'prompt_embeds',
  'input',
  'instructions',
  'system',
  'previous_response_id',
  'conversation',
  'token_ids',
  'features',
  'query',
  'queries',
  'text_1',
  'data_1',
  'stream',
  'n',
  'max_tokens',
  'max_completion_tokens',
  'max_output_tokens',
  'priority',
] as const;

export type FieldName = (typeof FIELD_NAMES)[number];

export type Scan = {
  readonly fields: ReadonlyMap<FieldName, FieldValue>;
  /** Of APIs whose prompt is texts or token ids. */
  readonly prompt: PromptReading | null;
  /** Elements of the list of messages or items, of the last one of several. */
  readonly items: readonly ByteRange[];
  /** Null: the whole body is a JSON object. */
  readonly problem: JsonProblem | null;
};

type PromptField =
  | { readonly field: FieldName; readonly reads: 'items' }
  | { readonly field: FieldName; readonly reads: 'prompt'; readonly forms: string };

/** The field with the prompt, and whether it is read as texts and ids or as a list of items. */
const PROMPTS: Readonly<Partial<Record<Api, PromptField>>> = {
  chat: { field: 'messages', reads: 'items' },
  messages: { field: 'messages', reads: 'items' },
  responses: { field: 'input', reads: 'items' },
  completions: { field: 'prompt', reads: 'prompt', forms: PROMPT_FORMS },
  generate: { field: 'token_ids', reads: 'prompt', forms: 'a list of token ids' },
  embeddings: { field: 'input', reads: 'prompt', forms: PROMPT_FORMS },
  classify: { field: 'input', reads: 'prompt', forms: PROMPT_FORMS },
};

const KNOWN_FIELDS: ReadonlySet<string> = new Set(FIELD_NAMES);

/** The fields complete before `problem`; of a prompt list that was cut also its beginning. */
export function scanBody(api: Api, body: Uint8Array): Scan {
  const scanner = new JsonScanner(body);
  const fields = new Map<FieldName, FieldValue>();
  const promptOf = PROMPTS[api];
  let prompt: PromptReading | null = null;
  let nPrompts = 0;
  let lastPrompt = 0;
  let items: ByteRange[] = [];
  const visit = (key: string): boolean => {
    if (!KNOWN_FIELDS.has(key)) return scanner.skipValue();
    const start = scanner.pos;
    const kind = scanner.peekKind();
    if (key === promptOf?.field && promptOf.reads === 'prompt') {
      // Read on the way the first time; of several only the last, and that afterwards.
      prompt = nPrompts++ === 0 ? readPrompt(scanner, key, promptOf.forms) : { kind: 'absent' };
      lastPrompt = start;
      if (nPrompts > 1) scanner.skipValue();
    } else if (key === promptOf?.field && kind === 'array') {
      items = readElements(scanner);
    } else {
      scanner.skipValue();
    }
    if (scanner.problem !== null || kind === null) return false;
    // A number that touches the end of the text may have been cut.
    if (kind === 'number' && scanner.pos === scanner.end) return scanner.fail('"," or "}"');
    // The last of several counts, and null means absent: so a later null takes an earlier value back.
    if (kind === 'null') fields.delete(key as FieldName);
    else fields.set(key as FieldName, { kind, start, end: scanner.pos });
    return true;
  };
  const complete = scanner.object(visit) && scanner.atEnd();
  if (complete && nPrompts > 1 && promptOf?.reads === 'prompt') {
    const again = new JsonScanner(body);
    again.pos = lastPrompt;
    prompt = readPrompt(again, promptOf.field, promptOf.forms);
  }
  return { fields, prompt, items, problem: complete ? null : scanner.problem };
}

/** Elements of one list told apart; millions of empty ones fit into a body. */
export const MAX_ELEMENTS = 4096;

/** Where the elements of the list at the scanner stand; what comes after so many is one range with the last of them. */
export function readElements(scanner: JsonScanner): ByteRange[] {
  const ranges: ByteRange[] = [];
  let restEnd = 0;
  scanner.array(() => {
    const start = scanner.pos;
    const complete = scanner.skipValue();
    if (ranges.length < MAX_ELEMENTS) ranges.push({ start, end: scanner.pos });
    restEnd = scanner.pos;
    return complete;
  });
  const last = ranges[MAX_ELEMENTS - 1];
  if (last !== undefined) ranges[MAX_ELEMENTS - 1] = { start: last.start, end: restEnd };
  return ranges;
}
