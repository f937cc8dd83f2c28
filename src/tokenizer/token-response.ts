/** Answers of `/tokenize` and of the render endpoints: bytes → token chains. Synchronous, believes nothing unchecked. */
import { JsonScanner, textOfString } from '../openai/json-scan.ts';
import { readTokenIds } from '../openai/token-ids.ts';
import { featuresFit, readFeatures, type MultimodalFeature } from '../openai/multimodal-features.ts';
import type { TokenChain } from './tokenizer.ts';

export type TokenResponse =
  | { readonly kind: 'chains'; readonly chains: readonly TokenChain[] }
  /** JSON without token ids where they belong: another API lives there. */
  | { readonly kind: 'other_shape' }
  /** Images whose names or places say nothing: clients choose names. */
  | { readonly kind: 'unplaced' }
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

type ChainReading = { readonly kind: 'chain'; readonly chain: TokenChain } | Exclude<TokenResponse, { kind: 'chains' }>;

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
  const ids = tokenIds as Uint32Array;
  if (features === null || !featuresFit(features, ids.length)) return { kind: 'unplaced' };
  return { kind: 'chain', chain: { tokenIds: ids, features } };
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

/**
 * Whether a server that was given messages can not tokenize any: it asks for a prompt instead, as SGLang before chats could be
 * tokenized, or for a chat template, as vLLM where the model has a format of its own (gpt-oss).
 */
export function lacksChat(status: number, body: Uint8Array): boolean {
  if (status !== 400 && status !== 422) return false;
  const text = Buffer.from(body.buffer, body.byteOffset, Math.min(body.length, 4096)).toString('latin1');
  if (/\bmust provide a chat template\b/.test(text)) return true;
  // vLLM says it too, beside what is wrong with the chat itself: that is one client's mistake.
  const nMistakes = text.match(/['"]loc['"]/g)?.length ?? 0;
  return nMistakes <= 1 && /\bprompt\b/.test(text) && /\b(missing|required)\b/i.test(text);
}
