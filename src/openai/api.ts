/** Which API a request is for, told by its path alone. Prefixes, query strings and trailing slashes are tolerated. */

/** `other`: nothing is known of its bodies. */
export type Api = KnownApi | 'other';

export type KnownApi =
  | 'chat'
  | 'completions'
  | 'responses'
  /** Anthropic's. */
  | 'messages'
  /** vLLM's token-in token-out API. */
  | 'generate'
  | 'embeddings'
  | 'classify'
  | 'rerank'
  | 'score';

/** Endings of paths; those of one word are common as last parts of other paths, so the version belongs to them. */
const ENDINGS: readonly (readonly [string, KnownApi])[] = [
  ['/chat/completions', 'chat'],
  ['/completions', 'completions'],
  ['/v1/responses', 'responses'],
  ['/v1/messages', 'messages'],
  ['/inference/v1/generate', 'generate'],
  ['/embeddings', 'embeddings'],
  ['/classify', 'classify'],
  ['/rerank', 'rerank'],
  ['/score', 'score'],
];

/** @param path `:path` with query string */
export function apiOf(path: string): Api {
  const query = path.search(/[?#]/);
  let end = query < 0 ? path.length : query;
  while (end > 0 && path[end - 1] === '/') end--;
  const plain = path.slice(0, end);
  return ENDINGS.find(([ending]) => plain.endsWith(ending))?.[1] ?? 'other';
}
