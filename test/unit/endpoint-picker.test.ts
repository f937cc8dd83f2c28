import { describe, expect, test } from '@jest/globals';
import { createEndpointPicker, type PickerOptions } from '../../src/endpoint-picker.ts';
import type { DecisionRecord, EndpointKnowledge, EndRecord } from '../../src/picking/decision-record.ts';
import { createEndpointStore } from '../../src/endpoints/endpoint-store.ts';
import { ranksApart, type EndpointSpec } from '../../src/endpoints/endpoint.ts';
import type { Decision, PickRequest, Reservation } from '../../src/extproc/picker.ts';
import type { CreditWeights } from '../../src/load/cache-trust.ts';
import { createInFlight } from '../../src/load/in-flight.ts';
import { createEngineBlocks, type EngineBlocksSource } from '../../src/kvevents/engine-blocks.ts';
import { textOfString } from '../../src/openai/json-scan.ts';
import type { Usage } from '../../src/openai/usage.ts';
import { createBlockHasher, createHashSeed } from '../../src/prefix/block-hash.ts';
import {
  createPrefixIndexMemory,
  openPrefixIndexReader,
  openPrefixIndexWriter,
} from '../../src/prefix/prefix-index.ts';
import { createEvictionAges } from '../../src/prefix/eviction-ages.ts';
import { createRoutedPrefixes } from '../../src/prefix/routed-prefixes.ts';
import { below, createRandom } from '../../src/replay/random.ts';
import { knownNames } from '../../src/scheduling/strategy-names.ts';
import { createTokenizerLadder } from '../../src/tokenizer/tokenizer-ladder.ts';
import type { Tokenizer, TokenizeResult } from '../../src/tokenizer/tokenizer.ts';
import { aSpec as aSpecAt } from '../support/endpoints.ts';
import { aStrategy, PREFIX_CACHE_ONLY } from '../support/routing.ts';
import { createFakeClock } from '../support/fake-clock.ts';

const BLOCK = 16;

function aSpec(n: number, changes: Partial<EndpointSpec> = {}): EndpointSpec {
  return aSpecAt({ name: `pod-${n}`, address: `10.0.0.${n}:8000`, models: ['demo', 'alias'], ...changes });
}

/** Every character of the prompt is a token: chains are easy to write down. */
const characterTokenizer: Tokenizer = {
  tokenize: (request) => {
    const { prompt, body } = request;
    const texts =
      prompt.kind === 'texts'
        ? prompt.ranges.map((range) => textOfString(body, range))
        : [JSON.stringify((JSON.parse(Buffer.from(body).toString()) as { messages: unknown }).messages)];
    return Promise.resolve({
      kind: 'tokens',
      chains: texts.map((text) => ({ tokenIds: tokensOf(text), features: [] })),
    });
  },
  close: () => Promise.resolve(),
};

function tokensOf(text: string): Uint32Array {
  return Uint32Array.from(text, (character) => character.codePointAt(0)!);
}

/** A tokenizer whose answers come when a test says so, after the budget too. */
function aSlowTokenizer() {
  const waiting: (() => void)[] = [];
  let nCalls = 0;
  const tokenizer: Tokenizer = {
    async tokenize(request, urls, signal) {
      nCalls += 1;
      const later = new Promise<void>((resolve) => waiting.push(resolve)).then(() =>
        characterTokenizer.tokenize(request, urls, signal),
      );
      const late = new Promise<TokenizeResult>((resolve) =>
        signal?.addEventListener('abort', () => resolve({ kind: 'none', reason: 'late', later })),
      );
      return Promise.race([later, late]);
    },
    close: () => Promise.resolve(),
  };
  return {
    tokenizer,
    nCalls: () => nCalls,
    async answerAll() {
      for (const answer of waiting.splice(0)) answer();
      for (let i = 0; i < 10; i++) await Promise.resolve();
    },
  };
}

/** A tokenizer that answers nothing until the budget is over. */
const hangingTokenizer: Tokenizer = {
  tokenize: (_request, _urls, signal) =>
    new Promise((resolve) => signal?.addEventListener('abort', () => resolve({ kind: 'none', reason: 'late' }))),
  close: () => Promise.resolve(),
};

function aPicker(
  options: {
    specs?: readonly EndpointSpec[];
    tokenizer?: Tokenizer;
    trust?: EndpointKnowledge['trust'];
    coverage?: EndpointKnowledge['coverage'];
    blockSizeOf?: (name: string) => number | null;
    weights?: CreditWeights;
    routing?: Partial<PickerOptions>;
  } = {},
) {
  const {
    specs = [1, 2, 3].map((n) => aSpec(n)),
    tokenizer = characterTokenizer,
    trust = 'exact',
    coverage = 'whole',
    blockSizeOf = () => BLOCK,
    weights = { fresh: 1, delivered: 1 },
    routing = {},
  } = options;
  const clock = createFakeClock();
  const endpoints = createEndpointStore();
  endpoints.replace(specs);
  const memory = createPrefixIndexMemory({ maxBytes: 8 * 1024 * 1024 });
  const hasher = createBlockHasher(createHashSeed());
  const engineBlocks = createEngineBlocks({ index: openPrefixIndexWriter(memory), hasher });
  const inFlight = createInFlight(clock);
  const routed = createRoutedPrefixes(clock);
  const down = new Set<string>();
  const records: DecisionRecord[] = [];
  const ends: EndRecord[] = [];
  const sources = new Map<number, EngineBlocksSource>();
  let nextHash = 1;
  const picker = createEndpointPicker(
    {
      clock,
      endpoints,
      knowledge: ({ name }) => ({ trust, blockSizeTokens: blockSizeOf(name), coverage }),
      creditWeights: () => weights,
      index: openPrefixIndexReader(memory),
      hasher,
      routed,
      evictionAges: createEvictionAges(clock, { capacityBlocks: () => null }),
      inFlight,
      expectedLoad: { of: ({ slot }) => inFlight.load(slot) },
      isDown: (id) => down.has(id),
      signals: () => ({ kvUsage: null, answerMs: null, tokensPerSecond: 0 }),
      forecast: () => ({ outputTokens: null, answerMs: null }),
      random: () => 0.5,
      tokenizer,
      ladder: createTokenizerLadder({ hasher, clock }, { memoMaxBytes: 1 << 20, budgetMs: 50 }),
      record: (record) => records.push(record),
      recordEnd: (end) => ends.push(end),
    },
    { budgetMs: 50, fallbackEndpoints: 1, ...PREFIX_CACHE_ONLY, ...routing },
  );
  return {
    picker,
    clock,
    inFlight,
    routed,
    records,
    ends,
    endpoints,
    down,
    /** Endpoint n announces the blocks of a text. */
    warm(
      n: number | string,
      text: string,
      { salt, adapter = null, medium = 'GPU' }: { salt?: string; adapter?: string | null; medium?: string } = {},
    ) {
      const { slot } = endpoints.all().find(({ name }) => name === `pod-${n}`)!;
      const nBlocks = Math.floor(text.length / BLOCK);
      const source = sources.get(slot) ?? engineBlocks.openSource({ slot, rank: 0, model: 'demo' });
      sources.set(slot, source);
      const result = source.apply({
        ts: 0,
        dataParallelRank: 0,
        skipped: [],
        events: [
          {
            type: 'BlockStored',
            blockHashes: Uint32Array.from({ length: 2 * nBlocks }, () => nextHash++),
            parentBlockHash: null,
            tokenIds: tokensOf(text).slice(0, nBlocks * BLOCK),
            blockSizeTokens: BLOCK,
            loraId: null,
            loraName: adapter,
            medium,
            extraKeys: Array.from({ length: nBlocks }, (_, i) => (i === 0 && salt !== undefined ? [salt] : null)),
            groupIdx: 0,
            kvCacheSpecKind: 'full_attention',
          },
        ],
      });
      expect(result.blocksStored).toBe(nBlocks);
    },
  };
}

function aRequest(body: unknown, changes: Partial<PickRequest> = {}): PickRequest {
  const bytes = typeof body === 'string' ? Buffer.from(body) : Buffer.from(JSON.stringify(body));
  return {
    method: 'POST',
    path: '/v1/completions',
    header: (name) => (name === 'content-type' ? 'application/json' : undefined),
    body: bytes,
    bodyTruncated: false,
    subset: { kind: 'all' },
    ...changes,
  };
}

const signal = new AbortController().signal;
const TEXT = 'a long common system prompt that fills several blocks of sixteen tokens, and then a question';

function endpointsOf(decision: Decision): readonly string[] {
  if (decision.kind !== 'routed') throw new Error(`expected a choice, got ${decision.status} ${decision.message}`);
  return decision.endpoints;
}

describe('one request', () => {
  test('goes to the endpoint that announced its prefix, with fallbacks behind it', async () => {
    const { picker, warm, records } = aPicker();
    warm(2, TEXT);
    const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
    expect(endpointsOf(decision)[0]).toBe('10.0.0.2:8000');
    expect(endpointsOf(decision)).toHaveLength(2);
    const [record] = records;
    if (record?.kind !== 'routed') throw new Error('expected a routed record');
    expect(record.evaluation.rung).toBe('exact');
    // The engine computes the last token always, so a fully cached prompt gives all blocks but that one.
    expect(record.predictedCachedTokens).toBe(Math.floor((TEXT.length - 1) / BLOCK) * BLOCK);
  });

  test('goes to the data-parallel rank that announced its prefix; fallbacks are the same rank of other addresses', async () => {
    const specs = ranksApart([
      aSpec(1, { dataParallelSize: 3 }),
      aSpec(2, { dataParallelSize: 3 }),
      aSpec(3, { dataParallelSize: 2 }),
      aSpec(4),
    ]);
    const { picker, warm } = aPicker({ specs, routing: { fallbackEndpoints: 5 } });
    const choose = async (prompt: string): Promise<Decision & { kind: 'routed' }> => {
      const decision = await picker.pick(aRequest({ model: 'demo', prompt }), signal);
      if (decision.kind !== 'routed') throw new Error(decision.message);
      return decision;
    };
    warm('2/2', TEXT);
    expect(await choose(TEXT)).toMatchObject({ endpoints: ['10.0.0.2:8000', '10.0.0.1:8000'], dataParallelRank: 2 });
    const other = [...TEXT].reverse().join('');
    warm(4, other);
    const { endpoints, dataParallelRank } = await choose(other);
    // No rank is named, so the engines choose: every address is as good as its best rank, and named once.
    expect([endpoints[0], [...endpoints].sort(), dataParallelRank]).toEqual([
      '10.0.0.4:8000',
      [1, 2, 3, 4].map((n) => `10.0.0.${n}:8000`),
      null,
    ]);
  });

  test('cold prompts spread over the ranks of one address', async () => {
    const { picker } = aPicker({ specs: ranksApart([aSpec(1, { dataParallelSize: 4 })]) });
    const ranks = new Set<number | null | undefined>();
    for (let i = 0; i < 4; i++) {
      const decision = await picker.pick(aRequest({ model: 'demo', prompt: String(i).repeat(400) }), signal);
      ranks.add(decision.kind === 'routed' ? decision.dataParallelRank : null);
    }
    expect([...ranks].sort()).toEqual([0, 1, 2, 3]);
  });

  test('an endpoint that refuses connections is passed over, unless all of them do', async () => {
    const { picker, warm, down, endpoints } = aPicker();
    warm(2, TEXT);
    const choice = async (): Promise<readonly string[]> =>
      endpointsOf(await picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal));
    down.add(endpoints.all()[1]!.id);
    expect(await choice()).not.toContain('10.0.0.2:8000');
    for (const { id } of endpoints.all()) down.add(id);
    expect((await choice())[0]).toBe('10.0.0.2:8000');
    const only2 = aRequest({ model: 'demo', prompt: TEXT }, { subset: { kind: 'only', addresses: ['10.0.0.2:8000'] } });
    down.clear();
    down.add(endpoints.all()[1]!.id);
    expect(endpointsOf(await picker.pick(only2, signal))).toEqual(['10.0.0.2:8000']);
  });

  test('events of its blocks end the wait of a prompt whose first token nobody sees', async () => {
    const { picker, warm, inFlight, clock, endpoints } = aPicker();
    const prompt = 'abcdefghijklmnop'.repeat(50);
    const choice = endpointsOf(await picker.pick(aRequest({ model: 'demo', prompt }), signal))[0];
    const { slot, name } = endpoints.all().find(({ address }) => address === choice)!;
    const n = Number(name.slice('pod-'.length));
    expect(inFlight.load(slot).waiting).toBe(1);
    clock.advance(30);
    warm(n, prompt.slice(0, 400));
    expect(inFlight.load(slot).waiting).toBe(1);
    clock.advance(30);
    warm(n, prompt);
    expect(inFlight.load(slot)).toMatchObject({ requests: 1, waiting: 0 });
  });

  test('an alias finds the blocks of its model; a salt, another salt or an adapter does not', async () => {
    const { picker, warm } = aPicker({ specs: [1, 2, 3].map((n) => aSpec(n, { adapters: ['lora'] })) });
    warm(2, TEXT);
    const matched = async (body: object): Promise<number> => {
      const evaluation = await picker.evaluate(aRequest({ model: 'demo', prompt: TEXT, ...body }), signal);
      if (evaluation.kind === 'error') throw new Error(evaluation.message);
      return Math.max(...evaluation.candidates.map(({ matchedTokens }) => matchedTokens));
    };
    expect(await matched({ model: 'alias' })).toBeGreaterThan(0);
    expect(await matched({ cache_salt: 'tenant' })).toBe(0);
    expect(await matched({ model: 'lora' })).toBe(0);
    warm(3, TEXT, { salt: 'tenant' });
    warm(1, TEXT, { adapter: 'lora' });
    expect(await matched({ cache_salt: 'tenant' })).toBeGreaterThan(0);
    expect(await matched({ cache_salt: 'other' })).toBe(0);
    expect(await matched({ model: 'lora' })).toBeGreaterThan(0);
  });

  test('a burst of one new prompt stays together although no event has come yet', async () => {
    const { picker } = aPicker();
    const prompt = TEXT.repeat(100);
    const first = endpointsOf(await picker.pick(aRequest({ model: 'demo', prompt }), signal))[0];
    for (let i = 0; i < 5; i++) {
      expect(endpointsOf(await picker.pick(aRequest({ model: 'demo', prompt }), signal))[0]).toBe(first);
    }
  });

  test('a copy of a prefix behind which many prompts part costs less than one of a chat', async () => {
    const { picker, warm } = aPicker();
    const shared = TEXT.repeat(20);
    const alone = shared.toUpperCase();
    warm(1, shared);
    warm(1, alone);
    const ask = (prompt: string): PickRequest => aRequest({ model: 'demo', prompt });
    const copyCost = async (prompt: string): Promise<number> => {
      const evaluation = await picker.evaluate(ask(prompt), signal);
      if (evaluation.kind === 'error') throw new Error(evaluation.message);
      return evaluation.candidates.find(({ endpoint }) => endpoint.name === 'pod-2')!.costMs;
    };
    for (let i = 0; i < 10; i++) {
      const decision = await picker.pick(ask(`${shared} question ${i} of somebody`), signal);
      if (decision.kind === 'routed') decision.reservation.release('failed');
      // What is only looked at has parted from nobody.
      await copyCost(`${alone} question ${i} of somebody`);
    }
    const ofShared = await copyCost(`${shared} question`);
    expect(ofShared).toBeLessThan(0.9 * (await copyCost(`${alone} question`)));
  });

  test('a tokenizer that hangs costs the budget and no more; the request is routed by load', async () => {
    const { picker, clock, records } = aPicker({ tokenizer: hangingTokenizer });
    const pending = picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
    clock.advance(50);
    expect(endpointsOf(await pending)).toHaveLength(2);
    const [record] = records;
    if (record?.kind !== 'routed') throw new Error('expected a routed record');
    expect([record.evaluation.rung, record.evaluation.tokenizeFailure, record.durationMs]).toEqual([
      'load',
      'late',
      50,
    ]);
    expect(clock.nTimers()).toBe(0);
  });

  test('an endpoint whose stream is not trusted is scored by what was sent there only', async () => {
    const { picker, warm } = aPicker({ trust: 'fallback' });
    warm(2, TEXT);
    const evaluation = await picker.evaluate(aRequest({ model: 'demo', prompt: TEXT }), signal);
    if (evaluation.kind === 'error') throw new Error(evaluation.message);
    expect(evaluation.candidates.map(({ matchedTokens }) => matchedTokens)).toEqual([0, 0, 0]);
    await picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
    const after = await picker.evaluate(aRequest({ model: 'demo', prompt: TEXT }), signal);
    if (after.kind === 'error') throw new Error(after.message);
    expect(after.candidates.filter(({ matchedTokens }) => matchedTokens > 0)).toHaveLength(1);
  });

  test('blocks that must be fetched first are worth less, and what is doubtful less still', async () => {
    const { picker, warm } = aPicker({ weights: { fresh: 0.5, delivered: 0.8 } });
    warm(1, TEXT);
    warm(2, TEXT, { medium: 'CPU' });
    warm(3, TEXT, { medium: 'DISK' });
    const evaluation = await picker.evaluate(aRequest({ model: 'demo', prompt: TEXT }), signal);
    if (evaluation.kind === 'error') throw new Error(evaluation.message);
    const { candidates, promptTokens } = evaluation;
    expect(candidates.map(({ matchedTokens }) => matchedTokens)).toEqual([80, 80, 80]);
    expect(candidates.map(({ matchedBlocks }) => matchedBlocks)).toEqual([
      { gpu: 5, host: 0, disk: 0 },
      { gpu: 0, host: 5, disk: 0 },
      { gpu: 0, host: 0, disk: 5 },
    ]);
    const credits = [1, 0.75, 0.25].map((worth) => 0.5 * 0.8 * 80 * worth);
    candidates.forEach((one, i) => {
      expect(one.creditedTokens).toBeCloseTo(credits[i]!);
      expect(one.uncachedTokens).toBeCloseTo(promptTokens - credits[i]!);
    });
    // What was routed there is on the GPU when the prompt starts, whatever events say; what was promised stays 80.
    const subset = { kind: 'only', addresses: ['10.0.0.1:8000'] } as const;
    await picker.pick(aRequest({ model: 'demo', prompt: TEXT }, { subset }), signal);
    const after = await picker.evaluate(aRequest({ model: 'demo', prompt: TEXT }), signal);
    if (after.kind === 'error') throw new Error(after.message);
    expect(after.candidates[0]!.matchedTokens).toBe(80);
    expect(after.candidates[0]!.creditedTokens).toBeCloseTo(0.8 * 80);
  });

  test('where events tell only a part, prompts served there are remembered as where there are none', async () => {
    for (const [coverage, nBlocks] of [
      ['partial', 5],
      ['whole', 0],
    ] as const) {
      const { picker, routed, clock } = aPicker({ trust: 'degraded', coverage });
      const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
      if (decision.kind !== 'routed') throw new Error('expected a choice');
      decision.reservation.release('completed');
      clock.advance(10_000);
      expect(routed.stats().nBlocks).toBe(nBlocks);
    }
  });

  test('several prompts are several chains, the longest match decides', async () => {
    const { picker, warm } = aPicker();
    warm(1, TEXT.slice(0, 16));
    warm(3, TEXT.toUpperCase());
    const body = { model: 'demo', prompt: [TEXT, TEXT.toUpperCase()] };
    expect(endpointsOf(await picker.pick(aRequest(body), signal))[0]).toBe('10.0.0.3:8000');
  });

  test('token ids need no tokenizer', async () => {
    const { picker, warm } = aPicker({ tokenizer: hangingTokenizer });
    warm(2, TEXT);
    const decision = await picker.pick(aRequest({ model: 'demo', prompt: [...tokensOf(TEXT)] }), signal);
    expect(endpointsOf(decision)[0]).toBe('10.0.0.2:8000');
  });

  test('a hint restricts the choice, port by port', async () => {
    const { picker, warm } = aPicker();
    warm(2, TEXT);
    const subset = { kind: 'only', addresses: ['10.0.0.3:8000', '10.0.0.2:9999'] } as const;
    const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT }, { subset }), signal);
    expect(endpointsOf(decision)).toEqual(['10.0.0.3:8000']);
  });

  describe('the header of conformance runs', () => {
    const named = (names: string, changes: Partial<PickRequest> = {}): PickRequest =>
      aRequest(
        { model: 'demo', prompt: TEXT },
        {
          header: (name) => (name === 'test-epp-endpoint-selection' ? names : undefined),
          ...changes,
        },
      );
    const conformance = { testSelectionHeader: 'test-epp-endpoint-selection', fallbackEndpoints: 3 };

    test.each([
      ['10.0.0.3', ['10.0.0.3:8000']],
      ['10.0.0.3, 10.0.0.1:8000', ['10.0.0.1:8000', '10.0.0.3:8000']],
      ['fd00::4', ['[fd00::4]:8000']],
      ['[fd00::4]:8000', ['[fd00::4]:8000']],
    ])('%s restricts the choice to those of the fleet', async (names, expected) => {
      const specs = [...[1, 2, 3].map((n) => aSpec(n)), aSpec(4, { address: '[fd00::4]:8000' })];
      const { picker } = aPicker({ specs, routing: conformance });
      expect([...endpointsOf(await picker.pick(named(names), signal))].sort()).toEqual(expected);
    });

    test.each(['10.0.0.9', '', '10.0.0.1:9999', '10.0.0.1:8000x'])('%j names none of them: 503', async (names) => {
      const { picker } = aPicker({ routing: conformance });
      const decision = await picker.pick(named(names), signal);
      expect(decision).toMatchObject({ status: 503, reason: 'test_selection_without_endpoint' });
    });

    test('never widens what the data plane allows', async () => {
      const { picker } = aPicker({ routing: conformance });
      const subset = { kind: 'only', addresses: ['10.0.0.1:8000', '10.0.0.2:8000'] } as const;
      const decision = await picker.pick(named('10.0.0.2,10.0.0.3', { subset }), signal);
      expect(endpointsOf(decision)).toEqual(['10.0.0.2:8000']);
    });

    test('is not heard unless it is configured', async () => {
      const { picker, warm } = aPicker();
      warm(2, TEXT);
      expect(endpointsOf(await picker.pick(named('10.0.0.3'), signal))[0]).toBe('10.0.0.2:8000');
    });
  });

  test('a request without body is routed by load over every ready endpoint', async () => {
    const { picker } = aPicker();
    const get = aRequest('', { method: 'GET', path: '/v1/models', body: null, header: () => undefined });
    expect(endpointsOf(await picker.pick(get, signal))).toHaveLength(2);
  });

  test.each([
    ['a chat that was cut', { messages: [{ role: 'user', content: TEXT.repeat(100) }] }, '/v1/chat/completions', 2000],
    ['an answer to what the engine remembers', { input: TEXT.repeat(100), conversation: 'c' }, '/v1/responses', 2000],
    ['texts to embed', { input: [TEXT.repeat(100)] }, '/v1/embeddings', 2000],
    [
      'a cut image',
      { messages: [{ image_url: { url: `data:image/png;base64,${'A'.repeat(100_000)}` } }] },
      '/v1/chat/completions',
      1000,
    ],
    ['embeddings for a prompt', { prompt_embeds: 'A'.repeat(10_000) }, '/v1/completions', 0],
    ['something unknown', { input: TEXT.repeat(100) }, '/v1/unknown', 0],
  ])('%s is a load as large as its text', async (_, fields, path, nTokens) => {
    const { picker, inFlight, endpoints } = aPicker();
    const body = Buffer.from(JSON.stringify({ model: 'demo', ...fields }));
    const bodyTruncated = path === '/v1/chat/completions';
    const asked = { path, bodyTruncated, body: bodyTruncated ? body.subarray(0, -5) : body };
    const decision = await picker.pick(aRequest('', asked), signal);
    const { slot } = endpoints.all().find(({ address }) => address === endpointsOf(decision)[0])!;
    const { tokens } = inFlight.load(slot);
    expect(tokens).toBeGreaterThanOrEqual(nTokens);
    expect(tokens).toBeLessThanOrEqual(1.5 * nTokens);
    const next = await picker.pick(aRequest({ model: 'demo', prompt: 'x' }), signal);
    if (nTokens > 0) expect(endpointsOf(next)[0]).not.toBe(endpointsOf(decision)[0]);
  });

  test.each([
    ['not JSON', 'no healthy upstream', {}, 400, 'bad_request'],
    ['no model', { prompt: 'x' }, {}, 400, 'bad_request'],
    ['an unknown model', { model: 'nobody', prompt: 'x' }, {}, 404, 'unknown_model'],
    [
      'an empty hint',
      { model: 'demo', prompt: 'x' },
      { subset: { kind: 'only', addresses: [] } },
      503,
      'subset_without_endpoint',
    ],
  ] as const)('%s is refused', async (_name, body, changes, status, reason) => {
    const { picker, records, inFlight } = aPicker();
    const decision = await picker.pick(aRequest(body, changes), signal);
    expect(decision).toMatchObject({ kind: 'error', status, reason });
    expect(records).toHaveLength(1);
    expect(inFlight.total()).toBe(0);
  });

  test('a client that leaves while tokens are awaited is neither booked nor counted as routed', async () => {
    const { picker, records, inFlight, routed } = aPicker({ tokenizer: hangingTokenizer });
    const gone = new AbortController();
    const pending = picker.pick(aRequest({ model: 'demo', prompt: TEXT }), gone.signal);
    gone.abort();
    expect(await pending).toMatchObject({ kind: 'error', reason: 'client_gone' });
    expect(records).toEqual([]);
    expect([inFlight.total(), routed.stats().nBlocks]).toEqual([0, 0]);
  });

  test('no ready endpoint is a 503, even for a model that is known', async () => {
    const { picker } = aPicker({ specs: [aSpec(1, { ready: false })] });
    const decision = await picker.pick(aRequest({ model: 'demo', prompt: 'x' }), signal);
    expect(decision).toMatchObject({ kind: 'error', status: 503, reason: 'no_ready_endpoint' });
  });
});

describe('with how much knowledge', () => {
  const turns = (n: number): object[] =>
    Array.from({ length: 2 * n - 1 }, (_, i) => ({
      role: i % 2 === 0 ? 'user' : 'assistant',
      content: `${i % 2 === 0 ? 'question' : 'answer'} ${i} `.repeat(8),
    }));
  const aChat = (n: number): PickRequest =>
    aRequest({ model: 'demo', messages: turns(n) }, { path: '/v1/chat/completions' });
  const textOf = (n: number): string => JSON.stringify(turns(n));
  const rungsOf = (records: readonly DecisionRecord[]): string[] =>
    records.flatMap((record) => (record.kind === 'routed' ? [record.evaluation.rung] : []));
  const released = (decision: Decision): string => {
    if (decision.kind !== 'routed') throw new Error('expected a choice');
    decision.reservation.release('completed');
    return decision.endpoints[0]!;
  };

  test('the next turn of a chat is decided at once, where the last one is cached, and the tokens come afterwards', async () => {
    const slow = aSlowTokenizer();
    const { picker, warm, records, clock, routed } = aPicker({ tokenizer: slow.tokenizer });
    const first = picker.pick(aChat(1), signal);
    await slow.answerAll();
    released(await first);
    warm(2, textOf(1));
    clock.advance(10_000);
    const decision = await picker.pick(aChat(2), signal);
    expect(endpointsOf(decision)[0]).toBe('10.0.0.2:8000');
    expect(rungsOf(records)).toEqual(['exact', 'memo']);
    expect(slow.nCalls()).toBe(2);
    const nBookedBefore = routed.stats().nBlocks;
    await slow.answerAll();
    // The whole prompt is booked now, not only what was known of it.
    expect(nBookedBefore).toBeLessThan(Math.floor(textOf(1).length / BLOCK) + 1);
    expect(routed.stats().nBlocks).toBe(Math.floor(textOf(2).length / BLOCK));
    expect(records.at(-1)).toMatchObject({ kind: 'counted', promptTokens: textOf(2).length });
    // The first turn ended in a bracket where the second goes on with a comma: its last block is another.
    expect(records.at(-2)).toMatchObject({ kind: 'judged' });
    released(decision);
    clock.advance(10_000);
    expect(routed.stats().nBlocks).toBe(0);
  });

  test('where two endpoints hold all that is known, exact tokens are waited for', async () => {
    const slow = aSlowTokenizer();
    const { picker, warm, records, clock } = aPicker({ tokenizer: slow.tokenizer });
    const first = picker.pick(aChat(1), signal);
    await slow.answerAll();
    released(await first);
    clock.advance(10_000);
    warm(1, textOf(1));
    warm(2, textOf(1));
    warm(2, textOf(3));
    const pending = picker.pick(aChat(3), signal);
    await slow.answerAll();
    expect(endpointsOf(await pending)[0]).toBe('10.0.0.2:8000');
    expect(rungsOf(records)).toEqual(['exact', 'exact']);
  });

  test('tokens that come after the budget are booked and learnt for the next time', async () => {
    const slow = aSlowTokenizer();
    const { picker, clock, records, routed } = aPicker({ tokenizer: slow.tokenizer });
    const pending = picker.pick(aChat(1), signal);
    clock.advance(50);
    const decision = await pending;
    expect(routed.stats().nBlocks).toBe(0);
    await slow.answerAll();
    expect(routed.stats().nBlocks).toBe(Math.floor(textOf(1).length / BLOCK));
    released(decision);
    released(await picker.pick(aChat(1), signal));
    expect(rungsOf(records)).toEqual(['load', 'memo']);
  });

  test.each(['completed', null] as const)(
    'tokens that come after another process has taken the place are not booked there (%s)',
    async (outcome) => {
      const { tokenizer, answerAll } = aSlowTokenizer();
      const { picker, clock, routed } = aPicker({ tokenizer, specs: [aSpec(1)], trust: 'fallback' });
      const picking = picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
      clock.advance(50);
      const decision = await picking;
      if (decision.kind !== 'routed') throw new Error('expected a choice');
      if (outcome !== null) decision.reservation.release(outcome);
      routed.forget(0);
      await answerAll();
      expect(routed.stats().nBlocks).toBe(0);
      decision.reservation.release('completed');
      expect(routed.stats().nBlocks).toBe(0);
    },
  );

  test('answers that are remembered are no reason to wait for others', async () => {
    const slow = aSlowTokenizer();
    const tokenizer: Tokenizer = {
      ...slow.tokenizer,
      async tokenize(request, urls, patience) {
        if (!Buffer.from(request.body).includes('again')) return slow.tokenizer.tokenize(request, urls, patience);
        const answer = await characterTokenizer.tokenize(request, urls, patience);
        return answer.kind === 'tokens' ? { ...answer, remembered: true } : answer;
      },
    };
    const { picker, clock, records } = aPicker({ tokenizer });
    const ask = (prompt: string) => picker.pick(aRequest({ model: 'demo', prompt }), signal);
    for (let i = 0; i < 40; i++) {
      released(await ask('again'));
      const pending = ask(`${i}`);
      for (let turn = 0; turn < 10; turn++) await Promise.resolve();
      clock.advance(50);
      released(await pending);
      clock.advance(30);
      await slow.answerAll();
    }
    expect(records.findLast((record) => record.kind === 'routed')).toMatchObject({ durationMs: 0 });
  });

  test('while no answer comes within the budget nobody waits, and the calls go on', async () => {
    const slow = aSlowTokenizer();
    const { picker, clock, records } = aPicker({ tokenizer: slow.tokenizer });
    const aPromptOfItsOwn = (i: number) =>
      aRequest({ model: 'demo', messages: [{ role: 'user', content: `${i}` }] }, { path: '/v1/chat/completions' });
    let nWaited = 0;
    for (let i = 0; i < 40; i++) {
      let isDecided = false;
      const pending = picker.pick(aPromptOfItsOwn(i), signal).then((decision) => {
        isDecided = true;
        released(decision);
      });
      for (let turn = 0; turn < 10; turn++) await Promise.resolve();
      if (!isDecided) nWaited += 1;
      clock.advance(50);
      await pending;
      clock.advance(30);
      await slow.answerAll();
    }
    expect(nWaited).toBeGreaterThan(5);
    expect(nWaited).toBeLessThan(25);
    expect(slow.nCalls()).toBe(40);
    expect(rungsOf(records).filter((rung) => rung !== 'load')).toEqual([]);
    // Quick again, they are waited for again.
    for (let i = 40; i < 50; i++) {
      const pending = picker.pick(aPromptOfItsOwn(i), signal);
      await slow.answerAll();
      released(await pending);
    }
    expect(rungsOf(records).at(-1)).toBe('exact');
  });

  test.each(['completed', 'failed'] as const)(
    'tokens that come after a request that %s are booked as such',
    async (end) => {
      const slow = aSlowTokenizer();
      const { picker, clock, routed } = aPicker({ tokenizer: slow.tokenizer, trust: 'fallback' });
      const pending = picker.pick(aChat(1), signal);
      clock.advance(50);
      const decision = await pending;
      if (decision.kind !== 'routed') throw new Error('expected a choice');
      decision.reservation.release(end);
      await slow.answerAll();
      expect(routed.stats().nBlocks > 0).toBe(end === 'completed');
    },
  );

  test('without any tokenizer the next turn goes where the last one went', async () => {
    const none: Tokenizer = {
      tokenize: () => Promise.resolve({ kind: 'none', reason: 'disabled' }),
      close: () => Promise.resolve(),
    };
    const { picker, records } = aPicker({ tokenizer: none, specs: Array.from({ length: 20 }, (_, n) => aSpec(n + 1)) });
    const chosen: string[] = [];
    for (let n = 1; n <= 4; n++) chosen.push(released(await picker.pick(aChat(n), signal)));
    expect(new Set(chosen).size).toBe(1);
    expect(rungsOf(records)).toEqual(['load', 'text', 'text', 'text']);
  });

  test('text that was sent to an endpoint and failed there is not remembered', async () => {
    const none: Tokenizer = {
      tokenize: () => Promise.resolve({ kind: 'none', reason: 'error' }),
      close: () => Promise.resolve(),
    };
    const { picker, records } = aPicker({ tokenizer: none });
    for (const outcome of ['failed', 'cancelled', 'completed'] as const) {
      const decision = await picker.pick(aChat(1), signal);
      if (decision.kind === 'routed') decision.reservation.release(outcome);
    }
    released(await picker.pick(aChat(1), signal));
    expect(rungsOf(records)).toEqual(['load', 'load', 'load', 'text']);
  });

  test('claims of one block size count where nothing is known in that of the first endpoint, as of a pod that is new', async () => {
    let nCalls = 0;
    const { picker, endpoints, inFlight } = aPicker({
      specs: [aSpec(2)],
      blockSizeOf: (name) => (name === 'pod-2' ? 64 : null),
      tokenizer: {
        tokenize: (...call) =>
          nCalls++ === 0 ? characterTokenizer.tokenize(...call) : Promise.resolve({ kind: 'none', reason: 'error' }),
        close: () => Promise.resolve(),
      },
    });
    const aLongChat = (nMessages: number): PickRequest => {
      const messages = Array.from({ length: nMessages }, (_, i) => ({ role: 'user', content: `${i}`.repeat(2000) }));
      return aRequest({ model: 'demo', messages }, { path: '/v1/chat/completions' });
    };
    await picker.pick(aLongChat(3), signal);
    endpoints.replace([aSpec(1), aSpec(2)]);
    const evaluation = await picker.evaluate(aLongChat(4), signal);
    if (evaluation.kind !== 'evaluation') throw new Error('expected an evaluation');
    const { rung, promptTokens, candidates } = evaluation;
    expect(rung).toBe('memo');
    expect(candidates.map(({ endpoint }) => endpoint.name)).toEqual(['pod-1', 'pod-2']);
    expect(candidates[1]!.matchedTokens).toBeGreaterThan(5000);
    expect(promptTokens).toBeGreaterThan(7500);
    for (const { uncachedTokens, costMs } of candidates) {
      expect(uncachedTokens).toBeGreaterThan(0);
      expect(costMs).toBeGreaterThan(0);
    }
    await picker.pick(aLongChat(4), signal);
    for (const { slot } of endpoints.all()) expect(inFlight.load(slot).tokens).toBeGreaterThanOrEqual(0);
  });

  test('text of a request that its client left is remembered once the answer had begun', async () => {
    const none: Tokenizer = {
      tokenize: () => Promise.resolve({ kind: 'none', reason: 'error' }),
      close: () => Promise.resolve(),
    };
    const { picker, records } = aPicker({ tokenizer: none });
    for (const hasBegun of [false, true]) {
      const decision = await picker.pick(aChat(1), signal);
      if (decision.kind !== 'routed') throw new Error('expected a choice');
      if (hasBegun) decision.reservation.firstByte();
      decision.reservation.release('cancelled');
    }
    released(await picker.pick(aChat(1), signal));
    expect(rungsOf(records)).toEqual(['load', 'load', 'text']);
  });

  test('where there are no events, blocks of a prompt are remembered though its client left during the answer', async () => {
    const { picker, routed } = aPicker({ trust: 'fallback' });
    const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT, stream: true }), signal);
    if (decision.kind !== 'routed') throw new Error('expected a choice');
    decision.reservation.firstByte();
    decision.reservation.release('cancelled');
    expect(routed.stats().nBlocks).toBe(5);
  });

  test('an explanation teaches nothing', async () => {
    const { picker, records } = aPicker();
    await picker.evaluate(aChat(1), signal);
    await picker.pick(aChat(1), signal);
    expect(rungsOf(records)).toEqual(['exact']);
  });
});

describe('a reservation', () => {
  test('is released once, reports what was predicted and observed, and leaves nothing behind', async () => {
    const { picker, inFlight, ends, clock, routed } = aPicker();
    const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
    if (decision.kind !== 'routed') throw new Error('expected a choice');
    expect(inFlight.total()).toBe(1);
    decision.reservation.observe({ promptTokens: TEXT.length, completionTokens: 3, cachedTokens: 0 });
    decision.reservation.release('completed');
    decision.reservation.release('cancelled');
    expect(inFlight.total()).toBe(0);
    expect(ends).toHaveLength(1);
    expect(ends[0]).toMatchObject({ outcome: 'completed', predictedCachedTokens: 0, usage: { cachedTokens: 0 } });
    clock.advance(2000);
    expect(routed.stats().nBlocks).toBe(0);
  });

  test.each<[string, object, Usage]>([
    ['a count that is not of this prompt', {}, { promptTokens: 100_000, completionTokens: 1, cachedTokens: 0 }],
    ['rounds with tools added up', {}, { promptTokens: 2000, completionTokens: 9, cachedTokens: 1500 }],
    ['what the last of four answers found', { n: 4 }, { promptTokens: 480, completionTokens: 4, cachedTokens: 464 }],
    ['nothing of a prompt', {}, { promptTokens: 0, completionTokens: 0, cachedTokens: 0 }],
  ])('learns the speed of an engine from no usage that says %s', async (_, fields, told) => {
    const learnt = await Promise.all(
      [null, told].map(async (usage) => {
        const { picker, inFlight, clock, endpoints, ends } = aPicker({ specs: [aSpec(1)] });
        for (let i = 0; i < 40; i++) {
          const prompt = String.fromCharCode(65 + i).repeat(480 + 16 * i);
          const body = { model: 'demo', prompt, stream: true, ...fields };
          const decision = await picker.pick(aRequest(body), signal);
          if (decision.kind !== 'routed') throw new Error('expected a choice');
          clock.advance(20 + prompt.length / 10);
          decision.reservation.firstByte();
          if (usage !== null) decision.reservation.observe(usage);
          decision.reservation.release('completed');
        }
        expect(ends).toHaveLength(40);
        const { prefillSetupMs, prefillMsPerToken } = inFlight.load(endpoints.all()[0]!.slot);
        return { prefillSetupMs, prefillMsPerToken };
      }),
    );
    expect(learnt[1]).toEqual(learnt[0]);
  });

  test('learns the speed of an engine from the tokens of its prompts, also where they come after the choice', async () => {
    const learnt = async (waitMs: number) => {
      const { tokenizer, answerAll } = aSlowTokenizer();
      const { picker, inFlight, clock, endpoints, ends } = aPicker({ specs: [aSpec(1)], tokenizer });
      for (let i = 0; i < 60; i++) {
        // A letter is a token, of one byte or of three.
        const prompt = `${i} ${(i % 2 === 0 ? 'x' : '字').repeat(500 + 100 * (i % 20))}`;
        const picking = picker.pick(aRequest({ model: 'demo', prompt, stream: true }), signal);
        if (waitMs === 0) await answerAll();
        clock.advance(waitMs);
        const decision = await picking;
        await answerAll();
        if (decision.kind !== 'routed') throw new Error('expected a choice');
        clock.advance(20 + prompt.length / 10);
        decision.reservation.firstByte();
        decision.reservation.release('completed');
        expect(ends[i]).toMatchObject({ promptTokens: prompt.length, rung: waitMs === 0 ? 'exact' : 'load' });
      }
      const { prefillSetupMs, prefillMsPerToken } = inFlight.load(endpoints.all()[0]!.slot);
      return { prefillSetupMs, prefillMsPerToken };
    };
    const [late, inTime] = [await learnt(50), await learnt(0)];
    expect(late.prefillSetupMs).toBeCloseTo(inTime.prefillSetupMs);
    expect(late.prefillMsPerToken).toBeCloseTo(inTime.prefillMsPerToken);
  });

  test.each(['failed', 'cancelled'] as const)(
    'that %s before its first token does not make others leave the queue before theirs',
    async (outcome) => {
      const { picker, inFlight, clock, endpoints } = aPicker({ specs: [aSpec(1)] });
      const aStream = async (): Promise<Reservation> => {
        const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT, stream: true }), signal);
        if (decision.kind !== 'routed') throw new Error('expected a choice');
        return decision.reservation;
      };
      for (let i = 0; i < 40; i++) (await aStream()).release(outcome);
      await aStream();
      clock.advance(10_000);
      expect(inFlight.load(endpoints.all()[0]!.slot).waiting).toBe(1);
    },
  );

  test('learns no speed from several prompts: the first token is that of one of them', async () => {
    const speedAfter = async (nPrompts: number): Promise<number> => {
      const { picker, inFlight, clock, endpoints } = aPicker({ specs: [aSpec(1)] });
      for (let i = 0; i < 40; i++) {
        const prompt = Array.from({ length: nPrompts }, (_, n) => String.fromCharCode(65 + i, 65 + n).repeat(400));
        const decision = await picker.pick(aRequest({ model: 'demo', prompt, stream: true }), signal);
        if (decision.kind !== 'routed') throw new Error('expected a choice');
        clock.advance(500);
        decision.reservation.firstByte();
        decision.reservation.release('completed');
      }
      return inFlight.load(endpoints.all()[0]!.slot).prefillMsPerToken;
    };
    const unlearnt = createInFlight(createFakeClock()).load(0).prefillMsPerToken;
    expect(await speedAfter(8)).toBe(unlearnt);
    expect(await speedAfter(1)).not.toBe(unlearnt);
  });

  test.each<[string, object, number | null]>([
    ['one answer', {}, 400],
    ['one answer, in words', { n: 1 }, 400],
    ['four answers', { n: 4 }, null],
    ['two prompts', { prompt: [TEXT, `${TEXT} too`] }, null],
    ['tokens of two prompts', { prompt: [[1, 2, 3], [4]] }, null],
  ])(
    'of %s compares what the engine found with the promise where it is that of the prompt',
    async (_, fields, cached) => {
      const { picker, ends } = aPicker();
      const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT, ...fields }), signal);
      if (decision.kind !== 'routed') throw new Error('expected a choice');
      decision.reservation.observe({ promptTokens: 480, completionTokens: 4, cachedTokens: 400 });
      decision.reservation.release('completed');
      expect(ends[0]!.usage).toEqual({ promptTokens: 480, completionTokens: 4, cachedTokens: cached });
    },
  );

  test('of a served request is forgotten at once where events have confirmed its blocks, else after a grace', async () => {
    for (const [confirmed, nBlocks] of [
      [true, 0],
      [false, 5],
    ] as const) {
      const { picker, warm, routed, clock } = aPicker();
      const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
      if (decision.kind !== 'routed') throw new Error('expected a choice');
      const n = Number(endpointsOf(decision)[0]!.split(':')[0]!.split('.')[3]);
      if (confirmed) warm(n, TEXT);
      expect(routed.stats().nBlocks).toBe(5);
      decision.reservation.release('completed');
      expect(routed.stats().nBlocks).toBe(nBlocks);
      clock.advance(2000);
      expect(routed.stats().nBlocks).toBe(0);
    }
  });

  test('of a failed request takes its prefix away at once', async () => {
    const { picker, routed } = aPicker();
    const decision = await picker.pick(aRequest({ model: 'demo', prompt: TEXT }), signal);
    if (decision.kind !== 'routed') throw new Error('expected a choice');
    expect(routed.stats().nBlocks).toBeGreaterThan(0);
    decision.reservation.release('failed');
    expect(routed.stats().nBlocks).toBe(0);
  });
});

test('any lifecycle of a request over a fleet that changes ends at zero, in load and in prefixes', async () => {
  const { picker, inFlight, routed, endpoints, ends, clock } = aPicker();
  const random = createRandom(3);
  endpoints.onChange(({ removed, changed }) => {
    for (const { before, what } of changed) if (what === 'restarted') inFlight.forget(before.slot);
    for (const { slot } of removed) {
      routed.forget(slot);
      inFlight.forget(slot);
      endpoints.freed(slot);
    }
  });
  const outcomes = ['completed', 'cancelled', 'failed', 'assumed'] as const;
  let open: Reservation[] = [];
  let nRouted = 0;
  for (let i = 0; i < 1_500; i++) {
    const prompt = TEXT.slice(0, 1 + below(random, TEXT.length)) + below(random, 40);
    const decision = await picker.pick(aRequest({ model: 'demo', prompt, stream: random() < 0.5 }), signal);
    if (decision.kind === 'routed') {
      open.push(decision.reservation);
      nRouted += 1;
    }
    if (random() < 0.3) open[below(random, open.length)]?.firstByte();
    while (open.length > 40 * random()) {
      const [reservation] = open.splice(below(random, open.length), 1);
      const outcome = outcomes[below(random, 4)]!;
      for (let n = 0; n <= below(random, 3); n++) reservation!.release(outcome);
    }
    if (random() < 0.02) {
      const specs = [1, 2, 3, 4]
        .filter(() => random() < 0.8)
        .map((n) => {
          return aSpec(n, { ready: random() < 0.9, incarnation: String(below(random, 3)) });
        });
      endpoints.replace(specs);
    }
    clock.advance(below(random, 50));
    expect(inFlight.total()).toBe(open.length);
  }
  for (const reservation of open) reservation.release('completed');
  open = [];
  clock.advance(60_000);
  expect(nRouted).toBeGreaterThan(800);
  expect(ends).toHaveLength(nRouted);
  expect([inFlight.total(), routed.stats().nBlocks, clock.nTimers()]).toEqual([0, 0, 0]);
  for (let slot = 0; slot < 8; slot++) {
    expect(inFlight.load(slot)).toMatchObject({ requests: 0, tokens: 0, outputTokens: 0, waiting: 0, waitMs: 0 });
  }
});

describe('the strategy of a request', () => {
  const routing = {
    strategy: { default: aStrategy('prefix-cache'), header: 'routing-strategy', allowed: ['least-request', 'random'] },
  };
  const asking = (strategy: string | undefined): PickRequest =>
    aRequest(
      { model: 'demo', prompt: TEXT },
      {
        header: (name) =>
          name === 'routing-strategy' ? strategy : name === 'content-type' ? 'application/json' : undefined,
      },
    );

  test('a header chooses among the allowed ones, alone or mixed, and needs no tokens for it', async () => {
    const { picker, warm } = aPicker({ routing, tokenizer: hangingTokenizer });
    warm(2, TEXT);
    for (const strategy of ['least-request', 'random', 'least-request:3']) {
      const evaluation = await picker.evaluate(asking(strategy), signal);
      if (evaluation.kind === 'error') throw new Error(evaluation.message);
      expect(evaluation.strategy).toBe(strategy);
      expect(evaluation.rung).toBe(strategy === 'random' ? 'random' : 'load');
    }
  });

  test.each([undefined, '', '  ', 'prefix-cache'])('"%s" is the default one', async (strategy) => {
    const { picker, warm } = aPicker({ routing });
    warm(2, TEXT);
    const evaluation = await picker.evaluate(asking(strategy), signal);
    if (evaluation.kind === 'error') throw new Error(evaluation.message);
    expect([evaluation.strategy, evaluation.named[0]]).toEqual(['prefix-cache', '10.0.0.2:8000']);
  });

  test.each(['fastest', 'power-of-two', 'least-request:2,throughput', 'least-request,,'])(
    '"%s" is refused with the names of the allowed ones',
    async (strategy) => {
      const { picker } = aPicker({ routing });
      const decision = await picker.pick(asking(strategy), signal);
      expect(decision).toMatchObject({
        status: 400,
        param: 'routing-strategy',
        message: `routing-strategy must be one of prefix-cache, least-request, random or a mix like a:2,b, got "${strategy}"`,
      });
    },
  );

  test.each([
    ['nothing is allowed', { ...routing.strategy, allowed: [] }],
    ['no header is named', { ...routing.strategy, header: '' }],
  ])('where %s, no header steers or refuses', async (_where, strategy) => {
    const { picker, warm } = aPicker({ routing: { strategy } });
    warm(2, TEXT);
    for (const text of ['random', 'fastest']) {
      const evaluation = await picker.evaluate(asking(text), signal);
      if (evaluation.kind === 'error') throw new Error(evaluation.message);
      expect(evaluation.strategy).toBe('prefix-cache');
    }
  });

  test.each(knownNames())(
    '%s never chooses what is not ready, of another model or excluded by the data plane',
    async (name) => {
      const specs = [1, 2, 3, 4, 5, 6].map((n) => aSpec(n, { ready: n !== 2, models: n === 3 ? ['other'] : ['demo'] }));
      const { picker, warm } = aPicker({
        specs,
        routing: { strategy: { ...routing.strategy, default: aStrategy(name) } },
      });
      warm(2, TEXT);
      warm(6, TEXT);
      const subset = { kind: 'only', addresses: [1, 2, 3, 4, 5].map((n) => `10.0.0.${n}:8000`) } as const;
      for (let i = 0; i < 30; i++) {
        const header = (of: string): string | undefined => (of === 'x-session-id' ? `session ${i}` : undefined);
        const request = aRequest({ model: 'demo', prompt: `${TEXT} ${i}` }, { subset, header });
        for (const address of endpointsOf(await picker.pick(request, signal))) {
          expect(['10.0.0.1:8000', '10.0.0.4:8000', '10.0.0.5:8000']).toContain(address);
        }
      }
    },
  );

  test('a session goes back to the endpoint it was at, as long as that is no burden; naming one is no use', async () => {
    const { picker, down, endpoints } = aPicker();
    const inSession = (session: string, prompt: string): PickRequest =>
      aRequest({ model: 'demo', prompt }, { header: (name) => (name === 'x-session-id' ? session : undefined) });
    const served = async (session: string, prompt: string): Promise<string> => {
      const decision = await picker.pick(inSession(session, prompt), signal);
      if (decision.kind === 'routed') decision.reservation.release('completed');
      return endpointsOf(decision)[0]!;
    };
    const chosen = new Set<string>();
    for (let i = 0; i < 12; i++) {
      const first = await served(`s${i}`, `${i} first`);
      expect(await served(`s${i}`, `${i} something else`)).toBe(first);
      chosen.add(first);
    }
    expect(chosen.size).toBe(3);
    const home = await served('s0', 'again');
    down.add(endpoints.all().find(({ address }) => address === home)!.id);
    expect(await served('s0', 'and again')).not.toBe(home);
  });
});

describe('work that gives way', () => {
  const priorities = new Map([
    ['nightly', -5],
    ['urgent', 10],
    ['batch', 3],
  ]);
  const priorityOf = (objective: string): number | null => priorities.get(objective) ?? null;
  const routing = { shedding: { sheddableObjectives: ['batch'], priorityOf, shedWaitMs: 2000 } };
  const withObjective = (objective: string | undefined, name = 'x-gateway-inference-objective'): PickRequest =>
    aRequest(
      { model: 'demo', prompt: 'x'.repeat(30) },
      { header: (of) => (of === name ? objective : of === 'content-type' ? 'application/json' : undefined) },
    );

  test.each([
    ['batch', 'x-gateway-inference-objective', 429],
    ['batch', 'x-llm-d-inference-objective', 429],
    ['-1', 'x-gateway-inference-objective', 429],
    ['nightly', 'x-gateway-inference-objective', 429],
    ['urgent', 'x-gateway-inference-objective', null],
    ['0', 'x-gateway-inference-objective', null],
    ['chat', 'x-gateway-inference-objective', null],
    [undefined, 'x-gateway-inference-objective', null],
  ])('objective %s in %s, every endpoint busy: %s', async (objective, name, status) => {
    const { picker, inFlight, endpoints } = aPicker({ routing });
    for (const { slot } of endpoints.all()) inFlight.reserve(slot, 40_000);
    const decision = await picker.pick(withObjective(objective, name), signal);
    expect(decision.kind === 'error' ? decision.status : null).toBe(status);
    if (decision.kind === 'error') {
      expect(decision).toMatchObject({ reason: 'shed', type: 'rate_limit_error', retryAfterSeconds: 3 });
    }
  });

  test('one endpoint with less wait is enough', async () => {
    const { picker, inFlight, endpoints } = aPicker({ routing });
    for (const { slot } of endpoints.all().slice(1)) inFlight.reserve(slot, 40_000);
    expect((await picker.pick(withObjective('batch'), signal)).kind).toBe('routed');
  });

  test('one that refuses connections has none to offer, unless all of them do', async () => {
    const { picker, inFlight, endpoints, down } = aPicker({ routing });
    const [dead, ...others] = endpoints.all();
    for (const { slot } of others) inFlight.reserve(slot, 40_000);
    down.add(dead!.id);
    expect(await picker.pick(withObjective('batch'), signal)).toMatchObject({ status: 429 });
    for (const { id } of others) down.add(id);
    expect((await picker.pick(withObjective('batch'), signal)).kind).toBe('routed');
  });
});
