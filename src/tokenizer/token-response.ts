/** Answers of `/tokenize` and of the render endpoints: bytes → token chains. Synchronous, believes nothing unchecked. */
import { JsonScanner, textOfString, type ByteRange } from '../openai/json-scan.ts';
import { readTokenIds } from '../openai/token-ids.ts';
import type { MultimodalFeature, TokenChain } from './tokenizer.ts';

export type TokenResponse =
  | { readonly kind: 'chains'; readonly chains: readonly TokenChain[] }
  /** JSON without token ids where they belong: another API lives there. */
  | { readonly kind: 'other_shape' }
  /** Not JSON, or token ids that can not be. */
  | { readonly kind: 'unreadable' };

/** `{count, max_model_len, tokens, token_strs}` */
export function parseTokenizeResponse(bytes: Uint8Array): TokenResponse {
  return parseOne(bytes, 'tokens');
}

/** GenerateRequest of `/v1/chat/completions/render`: `{token_ids, features, …}` */
export function parseChatRenderResponse(bytes: Uint8Array): TokenResponse {
  return parseOne(bytes, 'token_ids');
}

/** List of GenerateRequests of `/v1/completions/render`, one per prompt. */
export function parseCompletionsRenderResponse(bytes: Uint8Array, nPrompts: number): TokenResponse {
  const scanner = new JsonScanner(bytes);
  if (scanner.peekKind() === 'object') return nPrompts === 1 ? parseChatRenderResponse(bytes) : notAnswer(scanner);
  if (scanner.peekKind() !== 'array') return notAnswer(scanner);
  const chains: TokenChain[] = [];
  let failure: TokenResponse | null = null;
  const complete = scanner.array(() => {
    const chain = readChain(scanner, 'token_ids');
    if (chain.kind === 'chain') chains.push(chain.chain);
    else failure = chain;
    return failure === null;
  });
  if (failure !== null) return failure;
  if (!complete || !scanner.atEnd()) return { kind: 'unreadable' };
  return chains.length === nPrompts ? { kind: 'chains', chains } : { kind: 'other_shape' };
}

function parseOne(bytes: Uint8Array, idsField: 'tokens' | 'token_ids'): TokenResponse {
  const scanner = new JsonScanner(bytes);
  if (scanner.peekKind() !== 'object') return notAnswer(scanner);
  const result = readChain(scanner, idsField);
  if (result.kind !== 'chain') return result;
  return scanner.atEnd() ? { kind: 'chains', chains: [result.chain] } : { kind: 'unreadable' };
}

type ChainReading =
  | { readonly kind: 'chain'; readonly chain: TokenChain }
  | { readonly kind: 'other_shape' }
  | { readonly kind: 'unreadable' };

function readChain(scanner: JsonScanner, idsField: 'tokens' | 'token_ids'): ChainReading {
  if (scanner.peekKind() !== 'object') return { kind: 'other_shape' };
  let tokenIds: Uint32Array | null = null;
  let features: readonly MultimodalFeature[] | null = [];
  let notIds = false;
  const complete = scanner.object((key) => {
    const kind = scanner.peekKind();
    if (key === idsField && kind === 'array') {
      const result = readTokenIds(scanner);
      if (result.kind === 'ids') tokenIds = result.tokenIds;
      notIds = result.kind === 'not_ids';
      return result.kind === 'ids';
    }
    if (key === 'features' && kind === 'object') {
      features = readFeatures(scanner);
      return scanner.problem === null;
    }
    return scanner.skipValue();
  });
  if (!complete) return { kind: notIds ? 'other_shape' : 'unreadable' };
  if (tokenIds === null) return { kind: 'other_shape' };
  const chain = { tokenIds: tokenIds as Uint32Array, features };
  return featuresFit(chain) ? { kind: 'chain', chain: chain as TokenChain } : { kind: 'unreadable' };
}

/** `{mm_hashes: {modality: [hash]}, mm_placeholders: {modality: [{offset, length}]}, …}`; null when they do not pair up. */
function readFeatures(scanner: JsonScanner): readonly MultimodalFeature[] | null {
  const ranges = new Map<string, ByteRange>();
  // Processed images may stand beside, megabytes of them: skipped, never parsed.
  const complete = scanner.object((key) => {
    const start = scanner.pos;
    if (!scanner.skipValue()) return false;
    if (key === 'mm_hashes' || key === 'mm_placeholders') ranges.set(key, { start, end: scanner.pos });
    return true;
  });
  if (!complete) return null;
  const hashes = recordOfLists(scanner.bytes, ranges.get('mm_hashes'));
  const placeholders = recordOfLists(scanner.bytes, ranges.get('mm_placeholders'));
  const features: MultimodalFeature[] = [];
  for (const [modality, places] of Object.entries(placeholders)) {
    const identifiers = hashes[modality] ?? [];
    if (identifiers.length !== places.length) return null;
    for (let i = 0; i < places.length; i++) {
      const identifier = identifiers[i];
      const { offset, length } = (places[i] ?? {}) as { offset?: unknown; length?: unknown };
      if (typeof identifier !== 'string' || !isCount(offset) || !isCount(length)) return null;
      features.push({ identifier, offset, length });
    }
  }
  return features.sort((a, b) => a.offset - b.offset);
}

function recordOfLists(bytes: Uint8Array, range: ByteRange | undefined): Record<string, readonly unknown[]> {
  if (range === undefined) return {};
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + range.start, range.end - range.start).toString('utf8');
  const value: unknown = JSON.parse(text);
  if (typeof value !== 'object' || value === null) return {};
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, unknown[]] => Array.isArray(entry[1])),
  );
}

function featuresFit(chain: {
  readonly tokenIds: Uint32Array;
  readonly features: readonly MultimodalFeature[] | null;
}): boolean {
  return chain.features?.every(({ offset, length }) => offset + length <= chain.tokenIds.length) ?? false;
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0;
}

function notAnswer(scanner: JsonScanner): TokenResponse {
  return scanner.skipValue() && scanner.atEnd() ? { kind: 'other_shape' } : { kind: 'unreadable' };
}

/** Whether a 404 means "no such model" rather than "no such path": vLLM names the parameter or the model in its error. */
export function isUnknownModel(body: Uint8Array): boolean {
  const scanner = new JsonScanner(body);
  let message = '';
  let param = '';
  const readField = (key: string): boolean => {
    const start = scanner.pos;
    const kind = scanner.peekKind();
    if (!scanner.skipValue()) return false;
    const text = kind === 'string' ? textOfString(body, { start, end: scanner.pos }) : '';
    if (key === 'message') message = text;
    if (key === 'param') param = text;
    return true;
  };
  // `{"error": {…}}`, or flat as up to v0.10.
  scanner.object((key) =>
    key === 'error' && scanner.peekKind() === 'object' ? scanner.object(readField) : readField(key),
  );
  return param === 'model' || /\bmodel\b.*(does not exist|not found)/i.test(message);
}
