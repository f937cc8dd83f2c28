/**
 * What understanding a request and its tokens costs, next to JSON.parse in the same run: `node test/bench/tokens.bench.ts`.
 * Times are of one thread, in milliseconds per body or answer; the limits are those the code promises.
 */
import { JsonScanner } from '../../src/openai/json-scan.ts';
import { parseRequest } from '../../src/openai/request.ts';
import { parseTokenizeResponse } from '../../src/tokenizer/token-response.ts';
import { CHAT_PATH, COMPLETIONS_PATH } from '../support/requests.ts';

type Measurement = { readonly name: string; readonly p50Ms: number; readonly p95Ms: number; readonly limitMs?: number };

const BODY_BYTES = 220_000;
const N_IDS = 16_384;
const RUNS = 400;

function measure(name: string, work: () => unknown, limitMs?: number): Measurement {
  const times: number[] = [];
  for (let run = 0; run < RUNS * 1.5; run++) {
    const startMs = performance.now();
    work();
    times.push(performance.now() - startMs);
  }
  const sorted = times.slice(RUNS / 2).sort((a, b) => a - b);
  return { name, p50Ms: sorted[RUNS / 2]!, p95Ms: sorted[Math.floor(RUNS * 0.95)]!, limitMs };
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

const chat = chatBody(BODY_BYTES);
const text = Buffer.from(JSON.stringify({ model: 'm', prompt: 'one word and another '.repeat(BODY_BYTES / 21) }));
const ids = Array.from({ length: N_IDS }, (_, i) => (i * 7919) % 150_000);
const answer = Buffer.from(JSON.stringify({ count: N_IDS, max_model_len: 131_072, tokens: ids, token_strs: null }));
const prompt = Buffer.from(JSON.stringify({ model: 'm', prompt: ids }));

const measurements: Measurement[] = [
  measure(`chat of ${chat.length} bytes: request`, () => parse(CHAT_PATH, chat), 0.3),
  measure('  validated only', () => new JsonScanner(chat).skipValue()),
  measure('  JSON.parse', () => JSON.parse(chat.toString()) as unknown),
  measure(`text of ${text.length} bytes: request`, () => parse(COMPLETIONS_PATH, text), 0.3),
  measure('  JSON.parse', () => JSON.parse(text.toString()) as unknown),
  measure(`${N_IDS} ids, answer of /tokenize`, () => parseTokenizeResponse(answer), 0.2),
  measure(`${N_IDS} ids, prompt of a request`, () => parse(COMPLETIONS_PATH, prompt), 0.2),
  measure('  JSON.parse', () => Uint32Array.from((JSON.parse(answer.toString()) as { tokens: number[] }).tokens)),
];

for (const { name, p50Ms, p95Ms, limitMs } of measurements) {
  const verdict = limitMs === undefined ? '' : `  limit ${limitMs}  ${p50Ms <= limitMs ? 'met' : 'MISSED'}`;
  process.stdout.write(`${name.padEnd(40)} p50 ${p50Ms.toFixed(3)}  p95 ${p95Ms.toFixed(3)}${verdict}\n`);
}
