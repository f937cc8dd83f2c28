/** Requests of every API, generated: read as JSON.parse reads them, whole, cut into chunks by the data plane, or cut off. */
import { describe, expect, test } from '@jest/globals';
import fc from 'fast-check';
import { parseRequest, type InferenceRequest, type ParsedRequest } from '../../src/openai/request.ts';
import { createHarness } from '../support/exchange-harness.ts';
import { announced, requestBody, requestHeaders } from '../support/extproc-messages.ts';

const RUNS = { numRuns: 300 };

const text = fc.oneof(
  fc.string({ unit: 'grapheme', maxLength: 30 }),
  fc.constantFrom('', '"', '\\', '\u0000\u001f', 'é漢😀\u2028', '{"model":"x"}', '],"prompt":1'),
);
const anything = fc.jsonValue({ maxDepth: 3 });
const message = fc.record({ role: fc.constantFrom('system', 'user', 'assistant', 'tool'), content: anything });
const messages = fc.array(message, { minLength: 1, maxLength: 4 });
const ids = fc.array(fc.nat(2 ** 32 - 1), { maxLength: 6 });
const filled = <T>(one: fc.Arbitrary<T>): fc.Arbitrary<T[]> => fc.array(one, { minLength: 1, maxLength: 3 });

type Body = Readonly<Record<string, unknown>>;
type Case = { readonly path: string; readonly body: Body; readonly text: string };

const ofApi: fc.Arbitrary<{ path: string; prompt: Body }> = fc.oneof(
  fc.record({ path: fc.constant('/v1/chat/completions'), prompt: fc.record({ messages }) }),
  fc.record({
    path: fc.constant('/v1/completions'),
    prompt: fc.record({
      prompt: fc.oneof(text, filled(text), fc.array(fc.nat(2 ** 32 - 1), { minLength: 1, maxLength: 9 }), filled(ids)),
    }),
  }),
  fc.record({
    path: fc.constant('/v1/responses'),
    prompt: fc.record({ input: fc.oneof(text, messages), instructions: text }, { requiredKeys: ['input'] }),
  }),
  fc.record({
    path: fc.constant('/v1/messages'),
    prompt: fc.record(
      { messages, system: fc.oneof(text, fc.array(fc.record({ text }))) },
      { requiredKeys: ['messages'] },
    ),
  }),
  fc.record({
    path: fc.constant('/inference/v1/generate'),
    prompt: fc.record({ token_ids: fc.array(fc.nat(2 ** 32 - 1), { minLength: 1, maxLength: 9 }) }),
  }),
  fc.record({ path: fc.constant('/v1/embeddings'), prompt: fc.record({ input: fc.oneof(text, filled(text)) }) }),
);
const others = fc.dictionary(
  fc.string({ maxLength: 8 }).map((name) => `x${name.replaceAll('\\', '')}`),
  anything,
  { maxKeys: 4 },
);

/** The fields in any order, spaced anyhow, keys spelt with escapes where that is possible. */
const cases: fc.Arbitrary<Case> = fc
  .record({
    of: ofApi,
    model: fc.string({ minLength: 1, maxLength: 10 }),
    stream: fc.boolean(),
    salt: fc.string({ minLength: 1, maxLength: 5 }),
    others,
    order: fc.array(fc.nat(), { minLength: 12, maxLength: 12 }),
    space: fc.constantFrom('', ' ', '\n\t'),
    escaped: fc.boolean(),
  })
  .map(({ of, model, stream, salt, others: more, order, space, escaped }) => {
    const body: Body = { ...more, model, stream, cache_salt: salt, ...of.prompt };
    const members = Object.entries(body).map(([key, value], i) => {
      const plain = JSON.stringify(key);
      const first = key.charCodeAt(0).toString(16).padStart(4, '0');
      const spelt = escaped && key !== '' ? `"\\u${first}${plain.slice(2)}` : plain;
      return { rank: order[i % order.length]!, text: `${spelt}${space}:${space}${JSON.stringify(value)}` };
    });
    const sorted = members.sort((a, b) => a.rank - b.rank).map((member) => member.text);
    return { path: of.path, body, text: `${space}{${space}${sorted.join(`${space},${space}`)}${space}}${space}` };
  });

function parse(path: string, body: Buffer, truncated: 'yes' | 'no' = 'no'): ParsedRequest {
  return parseRequest('POST', path, 'application/json', body, { truncated });
}

function requestOf(parsed: ParsedRequest): InferenceRequest {
  if (parsed.kind !== 'request') throw new Error(`${parsed.param}: ${parsed.message}`);
  return parsed.request;
}

/** What the prompt of a request says, by its ranges or ids. */
function promptOf({ prompt, body }: InferenceRequest): unknown {
  if (prompt.kind === 'tokens') return prompt.tokenIds.map((one) => [...one]);
  if (prompt.kind === 'none') return null;
  return prompt.ranges.map(({ start, end }) => JSON.parse(Buffer.from(body).toString('utf8', start, end)) as unknown);
}

/** The same, of the parsed body. */
function expectedPrompt(path: string, text: string): unknown {
  const body = JSON.parse(text) as Body;
  const lists = (value: unknown): unknown[] => (Array.isArray(value) ? (value as unknown[]) : [value]);
  switch (path) {
    case '/v1/completions': {
      const { prompt } = body;
      return Array.isArray(prompt) && typeof prompt[0] === 'number' ? [prompt] : lists(prompt);
    }
    case '/v1/responses':
      return [...('instructions' in body ? [body['instructions']] : []), ...lists(body['input'])];
    case '/v1/messages':
      return [...('system' in body ? lists(body['system']) : []), ...lists(body['messages'])];
    case '/inference/v1/generate':
      return [body['token_ids']];
    case '/v1/embeddings':
      return null;
    default:
      return body['messages'];
  }
}

describe('a request of any API', () => {
  test('says what JSON.parse finds in it', () => {
    fc.assert(
      fc.property(cases, ({ path, text: whole }) => {
        const body = Buffer.from(whole);
        const request = requestOf(parse(path, body));
        const oracle = JSON.parse(body.toString()) as Body;
        expect(request.model).toBe(oracle['model']);
        expect(request.stream).toBe(oracle['stream']);
        expect(request.cacheSalt).toBe(oracle['cache_salt']);
        expect(promptOf(request)).toEqual(expectedPrompt(path, body.toString()));
        expect(request.body).toBe(body);
      }),
      RUNS,
    );
  });

  test('is the same however the data plane cuts its body into chunks', () => {
    fc.assert(
      fc.property(cases, fc.array(fc.nat(), { maxLength: 8 }), ({ path, text: whole }, places) => {
        const body = Buffer.from(whole);
        const cuts = [0, ...places.map((place) => place % (body.length + 1)).sort((a, b) => a - b), body.length];
        const h = createHarness();
        h.envoy(requestHeaders({ headers: { ':path': path } }), announced('FULL_DUPLEX_STREAMED'));
        for (let i = 1; i < cuts.length; i++) {
          h.envoy(requestBody(body.subarray(cuts[i - 1], cuts[i]), i === cuts.length - 1 ? 'eos' : 'more'));
        }
        expect(h.picks).toHaveLength(1);
        const picked = h.picks[0]!.request;
        const { body: of, ...request } = requestOf(parse(picked.path, Buffer.from(picked.body!)));
        const { body: ofWhole, ...expected } = requestOf(parse(path, body));
        expect(Buffer.compare(of, ofWhole)).toBe(0);
        expect(request).toEqual(expected);
        h.exchange.cancelled();
      }),
      RUNS,
    );
  });

  test('cut off anywhere is routed, and says nothing that the whole does not say', () => {
    fc.assert(
      fc.property(cases, fc.nat(), ({ path, text: whole, body: fields }, place) => {
        const body = Buffer.from(whole.trimEnd());
        const request = requestOf(parse(path, body.subarray(0, place % body.length), 'yes'));
        expect(['', requestOf(parse(path, body)).model]).toContain(request.model);
        expect([null, requestOf(parse(path, body)).cacheSalt]).toContain(request.cacheSalt);
        const { prompt } = request;
        if (prompt.kind === 'none') return;
        // Only token ids are a prefix like any other.
        expect([path, prompt.kind]).toEqual(['/v1/completions', 'tokens']);
        const lists = (expectedPrompt(path, JSON.stringify(fields)) as number[][]).map((list) => list.join());
        if (prompt.kind !== 'tokens') return;
        prompt.tokenIds.forEach((list, i) =>
          expect(`${lists[i]},`.startsWith(list.length ? `${list.join()},` : '')).toBe(true),
        );
      }),
      RUNS,
    );
  });
});
