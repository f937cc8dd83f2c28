/**
 * Records what a real vLLM answers to our tokenizer client, and cuts the model's tokenizer down to what these answers need.
 *
 * usage: node test/support/record-vllm.ts KIND URL MODEL_DIR OUT_DIR   KIND: text, images or harmony
 * The server: `vllm launch render MODEL_DIR --served-model-name m --enable-auto-tool-choice --tool-call-parser hermes`
 */
import { mkdirSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { deflateSync, crc32 } from 'node:zlib';
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import { createVllmTokenizer } from '../../src/tokenizer/vllm-tokenizer.ts';
import { CLIENT_OPTIONS } from './fake-tokenizer.ts';
import { aRequest } from './requests.ts';
import { HARMONY_CASES, imageCases, REFUSED_CASES, TEXT_CASES, type PromptCase } from './vllm-prompts.ts';
import { asSent, isServed, keyOf, NOT_FOUND, startAnswering, type Exchange, type Serving } from './vllm-recording.ts';

type Definition = {
  readonly model: {
    readonly vocab: Record<string, number>;
    readonly merges: readonly (string | readonly [string, string])[];
  };
  readonly added_tokens: readonly { readonly id: number; readonly content: string }[];
};

const [kind = '', url = '', modelDir = '', outDir = ''] = process.argv.slice(2);
const exchanges = new Map<string, Exchange>();
const cases = kind === 'images' ? imageCases(gradient(64)) : kind === 'harmony' ? HARMONY_CASES : TEXT_CASES;
for (const serving of ['all', 'chats', 'tokenize'] as const) await recordCases(cases, serving);
for (const { path, sent } of REFUSED_CASES) await ask(path, Buffer.from(sent));

const version = ((await (await fetch(`${url}/version`)).json()) as { version: string }).version;
const recording = {
  engine: `vLLM ${version}, vllm launch render`,
  cases,
  refused: REFUSED_CASES,
  exchanges: [...exchanges.values()],
};
mkdirSync(outDir, { recursive: true });
// One case a line, so that a new one shows as one.
const lines = (values: readonly unknown[]): string => values.map((value) => `\n${JSON.stringify(value)}`).join(',');
writeFileSync(
  join(outDir, 'recorded.json'),
  `{"engine":${JSON.stringify(recording.engine)},\n"cases":[${lines(recording.cases)}],\n` +
    `"refused":[${lines(recording.refused)}],\n"exchanges":[${lines(recording.exchanges)}]}\n`,
);
if (kind === 'text') writeTokenizer();

async function recordCases(prompts: readonly PromptCase[], serving: Serving): Promise<void> {
  const between = await startAnswering((path, body) => (isServed(path, serving) ? ask(path, body) : NOT_FOUND));
  const client = createVllmTokenizer(
    { log: silentLog, clock: systemClock, onCall: () => undefined },
    { ...CLIENT_OPTIONS, timeoutMs: 60_000, urls: [between.url] },
  );
  for (const { name, path, body } of prompts) {
    const result = await client.tokenize(aRequest(path, body), [], AbortSignal.timeout(60_000));
    process.stdout.write(
      `${serving}: ${name}: ${result.kind === 'tokens' ? result.chains.map(({ tokenIds }) => tokenIds.length).join() : result.reason}\n`,
    );
  }
  await client.close();
  await between.stop();
}

async function ask(path: string, body: Buffer): Promise<Exchange> {
  const response = await fetch(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: new Uint8Array(body),
  });
  const sent = asSent(body);
  const exchange = { path, sent, status: response.status, answer: await response.text() };
  exchanges.set(keyOf(path, sent), exchange);
  return exchange;
}

function writeTokenizer(): void {
  const config = JSON.parse(readFileSync(join(modelDir, 'tokenizer_config.json'), 'utf8')) as Record<string, unknown>;
  const kept = Object.entries(config).filter(([key]) => key.endsWith('_token') || key === 'chat_template');
  writeFileSync(join(outDir, 'tokenizer_config.json'), JSON.stringify(Object.fromEntries(kept)));
  const template = join(modelDir, 'chat_template.jinja');
  if (existsSync(template)) writeFileSync(join(outDir, 'chat_template.jinja'), readFileSync(template));
  const definition = JSON.parse(readFileSync(join(modelDir, 'tokenizer.json'), 'utf8')) as Definition;
  const ids = [...exchanges.values()]
    .filter(({ status }) => status === 200)
    .flatMap(({ answer }) => idsIn(JSON.parse(answer)));
  writeFileSync(join(outDir, 'tokenizer.json'), JSON.stringify(reduced(definition, new Set(ids))));
}

function idsIn(answer: unknown): readonly number[] {
  if (Array.isArray(answer)) return answer.flatMap(idsIn);
  const { tokens, token_ids: tokenIds } = answer as { tokens?: number[]; token_ids?: number[] };
  return tokens ?? tokenIds ?? [];
}

/** The vocabulary and the merges that lead to these tokens; ids are those of the whole. */
function reduced(definition: Definition, ids: ReadonlySet<number>): Definition {
  const { vocab, merges } = definition.model;
  const pairs = merges.map((pair) => (typeof pair === 'string' ? pair.split(' ') : pair) as readonly [string, string]);
  const ranks = new Map(pairs.map(([left, right], rank) => [`${left} ${right}`, rank]));
  const used = new Set<number>();
  const keep = new Set(Object.keys(vocab).filter((token) => [...token].length === 1));
  for (const [token, id] of Object.entries(vocab)) {
    if (!ids.has(id)) continue;
    keep.add(token);
    for (let parts = [...token]; parts.length > 1;) {
      const at = lowest(parts.slice(1).map((right, i) => ranks.get(`${parts[i]} ${right}`) ?? Infinity));
      if (at === null) break;
      used.add(ranks.get(`${parts[at]} ${parts[at + 1]}`)!);
      const joined = parts[at]! + parts[at + 1]!;
      if (joined in vocab) keep.add(joined);
      parts = [...parts.slice(0, at), joined, ...parts.slice(at + 2)];
    }
  }
  const kept = Object.fromEntries(Object.entries(vocab).filter(([token]) => keep.has(token)));
  // Otherwise libraries number them anew, behind the smaller vocabulary.
  for (const { content, id } of definition.added_tokens) kept[content] = id;
  const keptMerges = merges.filter((_, rank) => used.has(rank));
  return { ...definition, model: { ...definition.model, vocab: kept, merges: keptMerges } };
}

function lowest(ranks: readonly number[]): number | null {
  const least = Math.min(...ranks);
  return least === Infinity ? null : ranks.indexOf(least);
}

/** A picture of our own, as PNG. */
function gradient(size: number): Buffer {
  const rows = Buffer.alloc(size * (1 + 3 * size));
  for (let y = 0; y < size; y++)
    for (let x = 0; x < 3 * size; x++) rows[y * (1 + 3 * size) + 1 + x] = (x * 2 + y * 3) & 255;
  const chunk = (type: string, data: Buffer): Buffer => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const frame = Buffer.alloc(8);
    frame.writeUInt32BE(data.length, 0);
    frame.writeUInt32BE(crc32(body), 4);
    return Buffer.concat([frame.subarray(0, 4), body, frame.subarray(4)]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(size, 0);
  header.writeUInt32BE(size, 4);
  header.set([8, 2], 8);
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([
    signature,
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(rows)),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}
