/** Calls under way, found again by the request they were made for, so that a thousand identical prompts make one call. */
import type { InferenceRequest } from '../openai/request.ts';

export type SharedCalls<Call> = {
  /** The call under way for a request to the same API with the same bytes. */
  find(request: InferenceRequest): Call | null;
  /** Keeps `call` findable until its result is there. */
  add(request: InferenceRequest, call: Call): void;
};

type Entry<Call> = { readonly request: InferenceRequest; readonly call: Call };

/** Bytes looked at for the key; what they leave open, a comparison of the whole bodies decides. */
const SAMPLES = 32;

export function createSharedCalls<Call extends { readonly result: Promise<unknown> }>(): SharedCalls<Call> {
  const calls = new Map<number, Entry<Call>[]>();

  function remove(key: number, entry: Entry<Call>): void {
    const rest = calls.get(key)?.filter((other) => other !== entry) ?? [];
    if (rest.length === 0) calls.delete(key);
    else calls.set(key, rest);
  }

  return {
    find(request) {
      const entries = calls.get(keyOf(request)) ?? [];
      const same = entries.find(
        (entry) => entry.request.api === request.api && Buffer.compare(entry.request.body, request.body) === 0,
      );
      return same?.call ?? null;
    },
    add(request, call) {
      const key = keyOf(request);
      const entry = { request, call };
      const entries = calls.get(key);
      if (entries) entries.push(entry);
      else calls.set(key, [entry]);
      const forget = (): void => remove(key, entry);
      call.result.then(forget, forget);
    },
  };
}

/** FNV-1a over the length and evenly spread bytes, the last one among them. */
function keyOf({ body }: InferenceRequest): number {
  let hash = Math.imul(0x811c9dc5 ^ body.length, 0x01000193);
  const step = Math.max(1, Math.floor(body.length / SAMPLES));
  for (let at = body.length - 1; at >= 0; at -= step) hash = Math.imul(hash ^ body[at]!, 0x01000193);
  return hash >>> 0;
}
