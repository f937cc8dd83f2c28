/**
 * What understanding a request and its tokens costs, and what is left of a tokenizer's slowness and troubles:
 * `node test/bench/tokens.bench.ts [--quick] [--only PART]`, parts reading, shared, cpu, turns, trouble. One table; costs stand
 * beside a baseline of the same run. Troubles and costs are measured in processes of their own.
 */
import { spawnSync } from 'node:child_process';
import { systemClock } from '../../src/clock.ts';
import { silentLog } from '../../src/log.ts';
import { JsonScanner } from '../../src/openai/json-scan.ts';
import { parseRequest } from '../../src/openai/request.ts';
import { parseTokenizeResponse } from '../../src/tokenizer/token-response.ts';
import { createVllmTokenizer } from '../../src/tokenizer/vllm-tokenizer.ts';
import { CLIENT_OPTIONS, startFakeTokenizer } from '../support/fake-tokenizer.ts';
import { aChatRequest, CHAT_PATH, COMPLETIONS_PATH } from '../support/requests.ts';
import type { Row } from './tokens-parts.ts';
import { TROUBLES } from './tokens-trouble.ts';

const BODY_BYTES = 220_000;
const N_IDS = 16_384;
const RUNS = 200;
const ROUNDS = 6;

type Measured = { readonly row: Row; readonly p50Ms: number };

/** @param baselineMs of the same work done the usual way */
function measure(what: string, work: () => unknown, baselineMs: number | null, limitMs?: number): Measured {
  let sorted: readonly number[] = [Infinity];
  // Of several rounds the one that others disturbed least.
  for (let round = 0; round < ROUNDS; round++) {
    const times = Array.from({ length: RUNS }, () => {
      const startMs = performance.now();
      work();
      return performance.now() - startMs;
    }).sort((a, b) => a - b);
    if (times[RUNS / 2]! < sorted[Math.floor(sorted.length / 2)]!) sorted = times;
  }
  const p50Ms = sorted[RUNS / 2]!;
  const ratio = baselineMs === null ? '' : ` (${(p50Ms / baselineMs).toFixed(2)}× JSON.parse)`;
  const measured = `p50 ${p50Ms.toFixed(3)}, p95 ${sorted[Math.floor(RUNS * 0.95)]!.toFixed(3)} ms${ratio}`;
  const must = limitMs === undefined ? {} : { must: `≤ ${limitMs} ms`, met: p50Ms <= limitMs };
  return { row: { what, measured, ...must }, p50Ms };
}

/** A conversation with line breaks, quotes and letters beyond ASCII about every sixty bytes. */
function chatBody(nBytes: number): Buffer {
  const line = 'if (a < b) { print("Größe"); }\nThe quick brown fox jumps over the lazy dog, again and again.\n';
  const messages: { role: string; content: string }[] = [];
  for (let n = 0; n < nBytes * 0.9; n += messages[messages.length - 1]!.content.length) {
    messages.push({ role: messages.length % 2 === 0 ? 'user' : 'assistant', content: line.repeat(20) });
  }
  return Buffer.from(JSON.stringify({ model: 'm', messages, stream: true, max_tokens: 100 }));
}

const parse = (path: string, body: Buffer): unknown => parseRequest('POST', path, undefined, body, { truncated: 'no' });

/** Bodies and answers, beside JSON.parse of the same bytes. */
function reading(): Row[] {
  const chat = chatBody(BODY_BYTES);
  const text = Buffer.from(JSON.stringify({ model: 'm', prompt: 'one word and another '.repeat(BODY_BYTES / 21) }));
  const ids = Array.from({ length: N_IDS }, (_, i) => (i * 7919) % 150_000);
  const answer = Buffer.from(JSON.stringify({ count: N_IDS, max_model_len: 131_072, tokens: ids, token_strs: null }));
  const prompt = Buffer.from(JSON.stringify({ model: 'm', prompt: ids }));
  const ofChat = measure('  JSON.parse', () => JSON.parse(chat.toString()) as unknown, null);
  const ofText = measure('  JSON.parse', () => JSON.parse(text.toString()) as unknown, null);
  const ofIds = measure(
    '  JSON.parse',
    () => Uint32Array.from((JSON.parse(answer.toString()) as { tokens: number[] }).tokens),
    null,
  );
  return [
    measure(`chat of ${chat.length} bytes: request`, () => parse(CHAT_PATH, chat), ofChat.p50Ms, 0.3),
    measure('  validated only', () => new JsonScanner(chat).skipValue(), ofChat.p50Ms),
    ofChat,
    measure(`text of ${text.length} bytes: request`, () => parse(COMPLETIONS_PATH, text), ofText.p50Ms, 0.3),
    ofText,
    measure(`${N_IDS} ids, answer of /tokenize`, () => parseTokenizeResponse(answer), ofIds.p50Ms, 0.2),
    measure(`${N_IDS} ids, prompt of a request`, () => parse(COMPLETIONS_PATH, prompt), ofIds.p50Ms, 0.2),
    ofIds,
  ].map(({ row }) => row);
}

/** A thousand equal prompts at once. */
async function shared(): Promise<Row[]> {
  const fake = await startFakeTokenizer();
  fake.delayMs = 20;
  const deps = { log: silentLog, clock: systemClock, onCall: () => undefined };
  const tokenizer = createVllmTokenizer(deps, { ...CLIENT_OPTIONS, urls: [fake.url] });
  const asked = Array.from({ length: 1000 }, () => tokenizer.tokenize(aChatRequest(), [], AbortSignal.timeout(5000)));
  const nAnswered = (await Promise.all(asked)).filter(({ kind }) => kind === 'tokens').length;
  const nCalls = fake.calls.length;
  await tokenizer.close();
  await fake.stop();
  const measured = `${nCalls} call, ${nAnswered} answered`;
  return [
    { what: '1000 identical prompts at once', measured, must: '1 call', met: nCalls === 1 && nAnswered === 1000 },
  ];
}

function inProcess(...args: readonly string[]): Row[] {
  const file = new URL('./tokens-part.ts', import.meta.url).pathname;
  const { stdout, status } = spawnSync(process.execPath, [file, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (status !== 0) throw new Error(`part ${args.join(' ')} failed`);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Row);
}

const args = process.argv.slice(2);
const isQuick = args.includes('--quick');
const only = args.includes('--only') ? args[args.indexOf('--only') + 1] : null;
const PARTS: Readonly<Record<string, () => Row[] | Promise<Row[]>>> = {
  reading,
  shared,
  cpu: () => inProcess('cpu', isQuick ? '10' : '30'),
  turns: () => inProcess('turns', isQuick ? '200' : '2000'),
  trouble: () => Object.keys(TROUBLES).flatMap((name) => inProcess('trouble', name, isQuick ? '2' : '6')),
};
let nMissed = 0;
process.stdout.write('| | measured | must be | |\n|---|---|---|---|\n');
for (const [name, part] of Object.entries(PARTS)) {
  if (only !== null && only !== name) continue;
  for (const { what, measured, must, met } of await part()) {
    if (met === false) nMissed += 1;
    const verdict = met === undefined ? '' : met ? 'met' : 'MISSED';
    const indented = what.replace(/^ +/, '&nbsp;&nbsp;');
    process.stdout.write(`| ${indented} | ${measured} | ${must ?? ''} | ${verdict} |\n`);
  }
}
process.exitCode = nMissed > 0 ? 1 : 0;
