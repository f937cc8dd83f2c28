/** The prompt of each API, as far as it matters for the KV cache: where it stands, what makes it none, what is wrong about it. */
import type { KnownApi } from './api.ts';
import { bad, type BadRequest } from './bad-request.ts';
import { readElements, type FieldName, type Scan } from './body-scan.ts';
import { describe, type FieldValue } from './field-values.ts';
import { JsonScanner, type ByteRange } from './json-scan.ts';
import { featuresFit, readFeatures, type MultimodalFeature } from './multimodal-features.ts';

/** Prompt of a request, as far as it matters for the KV cache. */
export type Prompt =
  /**
   * Chat: the template turns it into tokens, only the engine's tokenizer knows how. `ranges` are the messages in the body,
   * in the order the template sees them; instructions that stand in a field of their own come first.
   */
  | { readonly kind: 'messages'; readonly ranges: readonly ByteRange[] }
  /** One chain per text; `ranges` are the JSON strings in the body, quotes included. */
  | { readonly kind: 'texts'; readonly ranges: readonly ByteRange[] }
  /** Already tokens: one chain per list, ids in 0…2³²−1. `features` are of the only list, else empty. */
  | {
      readonly kind: 'tokens';
      readonly tokenIds: readonly Uint32Array[];
      readonly features: readonly MultimodalFeature[];
    }
  /** Nothing that could be cached, or nothing understood: routed by load. */
  | { readonly kind: 'none' };

const ATTRIBUTION = '"x-anthropic-billing-header';

/** The prompt among the fields of a body; of a body that was cut only what its end can not change. */
export function promptOf(api: KnownApi, body: Uint8Array, scan: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  switch (api) {
    case 'chat':
      return chatPrompt(body, scan, cut);
    case 'completions':
      return completionsPrompt(scan, cut);
    case 'responses':
      return responsesPrompt(body, scan, cut);
    case 'messages':
      return messagesPrompt(body, scan, cut);
    case 'generate':
      return generatePrompt(body, scan, cut);
    case 'embeddings':
    case 'classify':
    case 'rerank':
    case 'score':
      return pooledPrompt(api, body, scan, cut);
  }
}

function chatPrompt(body: Uint8Array, { fields, items }: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  const messages = fields.get('messages');
  if (messages !== undefined && messages.kind !== 'array') {
    return bad(`\`messages\` must be a list of messages, got ${describe(body, messages)}`, 'messages');
  }
  // Tools and template arguments behind the cut change the tokens, so messages alone are worth nothing.
  if (cut === 'yes') return { kind: 'none' };
  if (messages === undefined) return bad('`messages` must be a list of messages, got nothing', 'messages');
  if (items.length === 0) return bad('`messages` must hold at least one message, got an empty list', 'messages');
  return { kind: 'messages', ranges: items };
}

function completionsPrompt({ prompt, fields }: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  if (prompt?.kind === 'wrong') return bad(prompt.message, 'prompt');
  if (prompt === null || prompt.kind === 'absent') {
    if (cut === 'yes' || fields.has('prompt_embeds')) return { kind: 'none' };
    return bad('`prompt` must be a string, a list of strings or token ids, got nothing', 'prompt');
  }
  if (prompt.kind === 'many') return { kind: 'none' };
  // Ids need no tokenizer, and the first of them are a prefix like any other.
  if (prompt.kind === 'tokens') return { ...prompt, features: [] };
  return cut === 'no' ? prompt : { kind: 'none' };
}

function responsesPrompt(body: Uint8Array, { fields, items }: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  const input = fields.get('input');
  const instructions = fields.get('instructions');
  if (input !== undefined && input.kind !== 'string' && input.kind !== 'array') {
    return bad(`\`input\` must be a string or a list of items, got ${describe(body, input)}`, 'input');
  }
  if (instructions !== undefined && instructions.kind !== 'string') {
    return bad(`\`instructions\` must be a string, got ${describe(body, instructions)}`, 'instructions');
  }
  // What stands before the input then is known to the engine alone.
  const isStateful = fields.has('previous_response_id') || fields.has('conversation') || fields.has('prompt');
  if (cut === 'yes' || isStateful) return { kind: 'none' };
  if (input === undefined) return bad('`input` must be a string or a list of items, got nothing', 'input');
  if (input.kind === 'array' && items.length === 0) {
    return bad('`input` must hold at least one item, got an empty list', 'input');
  }
  const ranges = input.kind === 'array' ? items : [input];
  return { kind: 'messages', ranges: instructions === undefined ? ranges : [instructions, ...ranges] };
}

function messagesPrompt(body: Uint8Array, scan: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  const system = scan.fields.get('system');
  if (system !== undefined && system.kind !== 'string' && system.kind !== 'array') {
    return bad(`\`system\` must be a string or a list of texts, got ${describe(body, system)}`, 'system');
  }
  const prompt = chatPrompt(body, scan, cut);
  if (prompt.kind !== 'messages' || system === undefined) return prompt;
  return { kind: 'messages', ranges: [...systemBlocks(body, system), ...prompt.ranges] };
}

/** Blocks of a system prompt. vLLM leaves out the one by which a client names itself, new with every request. */
function systemBlocks(body: Uint8Array, system: FieldValue): readonly ByteRange[] {
  if (system.kind === 'string') return [system];
  const scanner = new JsonScanner(body);
  scanner.pos = system.start;
  return readElements(scanner).filter(
    ({ start, end }) => !Buffer.from(body.buffer, body.byteOffset + start, end - start).includes(ATTRIBUTION),
  );
}

function generatePrompt(body: Uint8Array, { prompt, fields }: Scan, cut: 'yes' | 'no'): Prompt | BadRequest {
  if (prompt?.kind === 'wrong') return bad(prompt.message, 'token_ids');
  // Images may stand behind the cut.
  if (cut === 'yes') return { kind: 'none' };
  const given = fields.get('token_ids');
  if (prompt?.kind !== 'tokens' || given === undefined || !isListOfNumbers(body, given)) {
    const got = given === undefined ? 'nothing' : describe(body, given);
    return bad(`\`token_ids\` must be a list of token ids, got ${got}`, 'token_ids');
  }
  const range = fields.get('features');
  if (range === undefined) return { ...prompt, features: [] };
  const scanner = new JsonScanner(body);
  scanner.pos = range.start;
  const features = range.kind === 'object' ? readFeatures(scanner) : null;
  // Without them, blocks with images would be taken for blocks without.
  if (features === null || !featuresFit(features, prompt.tokenIds[0]!.length)) return { kind: 'none' };
  return { ...prompt, features };
}

/** One list, not a list with one list in it. */
function isListOfNumbers(body: Uint8Array, { start }: FieldValue): boolean {
  const scanner = new JsonScanner(body);
  scanner.pos = start + 1;
  return scanner.peekKind() !== 'array';
}

/** Fields of which one must be there, for APIs that compute no answer token: their prompts are not looked for in caches. */
const POOLED = {
  embeddings: ['input', 'messages'],
  classify: ['input', 'messages'],
  rerank: ['query'],
  score: ['queries', 'text_1', 'data_1', 'query'],
} as const satisfies Partial<Record<KnownApi, readonly FieldName[]>>;

function pooledPrompt(
  api: keyof typeof POOLED,
  body: Uint8Array,
  { prompt, fields }: Scan,
  cut: 'yes' | 'no',
): Prompt | BadRequest {
  if (prompt?.kind === 'wrong' && prompt.what === 'token_id') return bad(prompt.message, 'input');
  for (const name of POOLED[api]) {
    const field = fields.get(name);
    // Their lists and objects are of many forms; what is neither is a text.
    if (field?.kind !== 'number' && field?.kind !== 'boolean') continue;
    return bad(`\`${name}\` must be a string, a list or an object, got ${describe(body, field)}`, name);
  }
  const [first, ...others] = POOLED[api];
  if (cut === 'no' && !fields.has(first) && !others.some((name) => fields.has(name))) {
    const names = [first, ...others].map((name) => `\`${name}\``).join(' or ');
    return bad(`${names} must be given, got nothing`, first);
  }
  return { kind: 'none' };
}
