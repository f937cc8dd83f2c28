/** Our tokenizers against what a real vLLM answered (`test/fixtures/tokenizers`): the client over HTTP, byte by byte, and the local one. */
import { join } from 'node:path';
import { describe, expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import { createLocalTokenizer } from '../../src/tokenizer/local-tokenizer.ts';
import type { StartableTokenizer } from '../../src/tokenizer/sharing-tokenizer.ts';
import { isUnknownModel, parseChatRenderResponse, parseTokenizeResponse } from '../../src/tokenizer/token-response.ts';
import type { TokenChain, TokenizeResult } from '../../src/tokenizer/tokenizer.ts';
import { createVllmTokenizer } from '../../src/tokenizer/vllm-tokenizer.ts';
import { endAfterEach } from '../support/endings.ts';
import { CLIENT_OPTIONS } from '../support/fake-tokenizer.ts';
import { aRequest } from '../support/requests.ts';
import type { PromptCase } from '../support/vllm-prompts.ts';
import {
  keyOf,
  readRecording,
  RECORDINGS,
  startReplay,
  type Recording,
  type Serving,
} from '../support/vllm-recording.ts';

const atEnd = endAfterEach();
type Rendered = { readonly token_ids: readonly number[]; readonly features: RenderedFeatures | null };
type RenderedFeatures = {
  readonly mm_hashes: { readonly image: readonly string[] };
  readonly mm_placeholders: { readonly image: readonly { readonly offset: number; readonly length: number }[] };
};

/** What the engine computes on: the answer of the render endpoint behind the case's own path; null where it refused. */
function engineAnswer(recording: Recording, { path, body }: PromptCase): readonly Rendered[] | null {
  const sent = (other: unknown): boolean => {
    const { mm_payload: _, return_mm_kwargs: __, ...rest } = other as Record<string, unknown>;
    return keyOf('', rest) === keyOf('', body);
  };
  const found = recording.exchanges.find((exchange) => exchange.path === `${path}/render` && sent(exchange.sent));
  if (found === undefined) throw new Error(`not recorded: ${path} ${JSON.stringify(body)}`);
  if (found.status !== 200) return null;
  const answer = JSON.parse(found.answer) as Rendered | readonly Rendered[];
  return Array.isArray(answer) ? (answer as readonly Rendered[]) : [answer as Rendered];
}

function plain(chains: readonly TokenChain[] | null): unknown {
  return chains?.map(({ tokenIds, features }) => ({ ids: [...tokenIds], features })) ?? null;
}

function expected(rendered: readonly Rendered[] | null): unknown {
  return (
    rendered?.map(({ token_ids: ids, features }) => ({
      ids,
      features: (features?.mm_placeholders.image ?? []).map((place, i) => ({
        identifier: features?.mm_hashes.image[i],
        ...place,
      })),
    })) ?? null
  );
}

const chainsOf = (result: TokenizeResult): readonly TokenChain[] | null =>
  result.kind === 'tokens' ? result.chains : null;

/** Asks for every case; the answers by name. */
async function askAll(tokenizer: StartableTokenizer, cases: readonly PromptCase[]): Promise<Record<string, unknown>> {
  atEnd(() => tokenizer.close());
  await tokenizer.start();
  const answers: Record<string, unknown> = {};
  for (const { name, path, body } of cases) {
    const request = aRequest(path, body);
    answers[name] = plain(chainsOf(await tokenizer.tokenize(request, [], AbortSignal.timeout(60_000))));
  }
  return answers;
}

function engineAnswers(recording: Recording, cases = recording.cases): Record<string, unknown> {
  return Object.fromEntries(cases.map((one) => [one.name, expected(engineAnswer(recording, one))]));
}

async function askReplay(recording: Recording, serving: Serving, cases = recording.cases) {
  const server = await startReplay(recording, serving);
  atEnd(() => server.stop());
  const counted = new Map<string, number>();
  const client = createVllmTokenizer(
    {
      log: silentLog,
      clock: systemClock,
      onCall: (api, result) => counted.set(`${api} ${result}`, (counted.get(`${api} ${result}`) ?? 0) + 1),
    },
    { ...CLIENT_OPTIONS, timeoutMs: 60_000, urls: [server.url] },
  );
  const answers = await askAll(client, cases);
  expect(server.unknown).toEqual([]);
  return { answers, counted };
}

/** Depends on what the template makes of a system message that is not the first: nobody can ask a server for that. */
const TEMPLATE_ONLY = 'messages: a system message between';
const known = ({ name }: PromptCase): boolean => name !== TEMPLATE_ONLY;

/** Chats that only the engine refuses. */
const BROKEN = new Set(['a chat with {"messages":[{"role":"user","content":5}]}', 'a chat with {"tools":5}']);

describe.each(['qwen3', 'deepseek-v3', 'gpt-oss'])('%s', (name) => {
  const recording = readRecording(name);

  test('the client has the tokens of the engine, with chats, calls, thoughts and tools', async () => {
    const { answers, counted } = await askReplay(recording, 'all');
    expect(answers).toEqual(engineAnswers(recording));
    expect(counted.get('render ok')).toBeGreaterThan(50);
    expect(counted.get('render not_served')).toBe(undefined);
  });

  test('also from a server that renders chats and completions only', async () => {
    const cases = recording.cases.filter(known);
    const { answers, counted } = await askReplay(recording, 'chats', cases);
    expect(answers).toEqual(engineAnswers(recording, cases));
    // Once for the responses and once for the messages API.
    expect(counted.get('render not_served')).toBe(2);
  });

  test('and from one that has no more than /tokenize', async () => {
    const cases = recording.cases.filter(known);
    const { answers, counted } = await askReplay(recording, 'tokenize', cases);
    expect(answers).toEqual(engineAnswers(recording, cases));
    expect(counted.get('render not_served')).toBe(1);
    expect(counted.get('tokenize ok')).toBeGreaterThan(50);
  });

  test("one client's broken chat does not keep others from /tokenize", async () => {
    const broken = recording.refused.filter(({ name: what }) => BROKEN.has(what));
    const mistakes = broken.map(({ name: what, sent }): PromptCase => {
      const { add_special_tokens: _, ...body } = JSON.parse(sent) as Record<string, unknown>;
      return { name: what, path: '/v1/chat/completions', body };
    });
    const whole = recording.cases.filter(({ name: what }) => what === 'chat: one turn');
    const { answers } = await askReplay(recording, 'tokenize', [...mistakes, ...whole]);
    expect(Object.values(answers)).toEqual([null, null, ...Object.values(engineAnswers(recording, whole))]);
  });

  test('the local tokenizer has the tokens of the engine', async () => {
    const tokenizer = createLocalTokenizer(
      { log: silentLog, clock: systemClock, onCall: () => undefined },
      {
        file: join(RECORDINGS, name, 'tokenizer.json'),
        chatTemplateFile: null,
        threads: 1,
        budgetMs: 60_000,
        timeoutMs: 60_000,
        maxQueued: 1000,
        cacheMaxBytes: 0,
      },
    );
    expect(await askAll(tokenizer, recording.cases)).toEqual(engineAnswers(recording));
  });
});

describe('gpt-oss with the format of its own', () => {
  const recording = readRecording('gpt-oss-harmony');

  test.each(['all', 'chats'] as const)(
    'has the tokens of the engine from a server that renders %s',
    async (serving) => {
      const { answers } = await askReplay(recording, serving);
      expect(answers).toEqual(engineAnswers(recording));
    },
  );

  test('has none from /tokenize, which is asked for a chat, then for the simplest one, and not again', async () => {
    const { answers, counted } = await askReplay(recording, 'tokenize');
    expect(Object.values(answers)).toEqual(recording.cases.map(() => null));
    expect(counted).toEqual(
      new Map([
        ['render not_served', 1],
        ['tokenize not_served', 2],
      ]),
    );
  });
});

describe('a model that sees images', () => {
  const recording = readRecording('qwen3-vl');

  test.each(['all', 'chats'] as const)(
    'gives hashes and places of images, of a server that renders %s',
    async (serving) => {
      const { answers } = await askReplay(recording, serving);
      expect(answers).toEqual(engineAnswers(recording));
      expect(JSON.stringify(answers)).toContain('"identifier":"');
    },
  );

  test('does not send what the model sees', () => {
    const rendered = recording.exchanges.filter(({ status }) => status === 200);
    expect(rendered.length).toBeGreaterThanOrEqual(4);
    for (const { answer } of rendered) {
      expect(answer).toContain('"kwargs_data":null');
      expect(answer.length).toBeLessThan(4096);
    }
  });

  test('gets no tokens from /tokenize', async () => {
    const { answers } = await askReplay(recording, 'tokenize');
    expect(Object.values(answers)).toEqual(recording.cases.map(() => null));
  });
});

describe.each(['qwen3', 'deepseek-v3', 'gpt-oss', 'qwen3-vl'])('what %s refuses', (name) => {
  const { refused, exchanges } = readRecording(name);
  const answers = refused.map(({ name: what, path, sent }) => {
    const exchange = exchanges.find((one) => one.path === path && keyOf('', one.sent) === keyOf('', jsonOr(sent)));
    if (exchange === undefined) throw new Error(`not recorded: ${what}`);
    return { what, ...exchange };
  });

  test('is an error of four hundred', () => {
    expect(answers.map(({ status }) => status >= 400 && status < 500)).toEqual(answers.map(() => true));
  });

  test('tells a model that is not there from a path that is not', () => {
    const missing = answers.filter(({ status }) => status === 404);
    expect(missing.length).toBeGreaterThanOrEqual(5);
    for (const { what, answer } of missing) {
      expect([what, isUnknownModel(Buffer.from(answer))]).toEqual([what, what.endsWith('of another model')]);
    }
  });

  test('is never taken for tokens', () => {
    for (const { answer } of answers) {
      expect(parseChatRenderResponse(Buffer.from(answer)).kind).toBe('other_shape');
      expect(parseTokenizeResponse(Buffer.from(answer)).kind).toBe('other_shape');
    }
  });
});

function jsonOr(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
