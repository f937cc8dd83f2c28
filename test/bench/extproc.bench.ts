/**
 * What one request costs the server: `make bench-extproc`. The server is a process of its own on loopback; the load comes
 * from here. CPU is that of the server process, all threads. "null" is an ext_proc server on the same grpc-js that answers
 * without looking; "warmpath" is the whole product with three endpoints and no tokenizer; "decision" has a tokenizer over
 * HTTP and KV events flowing. Options: `--quick`, `--only null|warmpath|logic|response|decision`,
 * `--mode MODE`, `--size BYTES`, `--cpu-prof DIR`.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { loadServices } from '../../src/extproc/services.ts';
import { FakePublisher, stored } from '../support/fake-publisher.ts';
import { exchangeCost } from './exchange-cost.ts';
import { grpcFrame, openLoadConnection, type Exchange, type LoadConnection } from './grpc-load.ts';

const { values: args } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string' },
    mode: { type: 'string' },
    size: { type: 'string' },
    'warm-up': { type: 'string', default: '3' },
    'cpu-prof': { type: 'string' },
  },
});

type Mode = Exchange['mode'];
type Run = { readonly nRequests: number; readonly perSecond: number; readonly cpuUs: number } & Percentiles;
type Percentiles = { readonly p50Ms: number; readonly p99Ms: number };
type ServerProcess = { readonly address: string; cpuUs(): Promise<number>; stop(): Promise<void> };

const MODES: readonly Mode[] = ['BUFFERED', 'FULL_DUPLEX_STREAMED'];
const SIZES = [1_000, 4_000, 64_000, 220_000];
const RATES = [500, 1_000, 2_000];
const N_CONNECTIONS = 2;
const SECONDS = args.quick ? 2 : 4;
const N_WINDOWS = args.quick ? 5 : 8;
/** The compiler works for seconds beside a new process, and its threads count as everything else does. */
const WARM_UP_SECONDS = Number(args['warm-up']);
/** An HTTP/1.1 request of this length reaches Envoy's filter in pieces of about this size. */
const CHUNK_BYTES = 65_536;
/** As the picker of the other benches serves it. */
const MODEL = 'm';

const process_ = loadServices().externalProcessor['Process']!;
const encode = (message: object): Buffer => grpcFrame(process_.requestSerialize(message) as Buffer);

/** A chat of about `nBytes` that differs from every other by its number. */
function chatBody(nBytes: number, id: number): Buffer {
  const start = `{"model":"${MODEL}","messages":[{"role":"user","content":"${String(id).padStart(9, '0')} `;
  const end = '"}],"max_tokens":16}';
  const word = 'the quick brown fox jumps over the lazy dog ';
  const text = word.repeat(Math.ceil(nBytes / word.length)).slice(0, Math.max(0, nBytes - start.length - end.length));
  return Buffer.from(`${start}${text}${end}`);
}

function exchangeOf(mode: Mode, body: Buffer): Exchange {
  const headers: Record<string, string> = {
    ':authority': 'llm.example',
    ':path': '/v1/chat/completions',
    ':method': 'POST',
    ':scheme': 'http',
    'user-agent': 'OpenAI/Python 1.99.1',
    accept: 'application/json',
    'accept-encoding': 'gzip, deflate',
    authorization: 'Bearer 0123456789abcdef0123456789abcdef',
    'content-type': 'application/json',
    'content-length': String(body.length),
    'x-forwarded-for': '10.1.2.3',
    'x-forwarded-proto': 'http',
    'x-request-id': '6e9a3a3e-1f7d-4c1c-9a5b-0d2f4f3d2c1b',
    'x-stainless-lang': 'python',
    'x-stainless-retry-count': '0',
  };
  const first = encode({
    request_headers: {
      headers: { headers: Object.entries(headers).map(([key, value]) => ({ key, raw_value: Buffer.from(value) })) },
    },
    metadata_context: {},
    protocol_config: { request_body_mode: mode },
  });
  const pieces: Buffer[] = [];
  const step = mode === 'BUFFERED' ? body.length : CHUNK_BYTES;
  for (let at = 0; at < body.length; at += step) {
    const piece = body.subarray(at, at + step);
    pieces.push(
      encode({ request_body: { body: piece, end_of_stream: at + step >= body.length }, metadata_context: {} }),
    );
  }
  return {
    mode,
    headers: first,
    body: Buffer.concat(pieces),
    echoBytes: mode === 'BUFFERED' ? 0 : body.length,
    response: null,
  };
}

function startServer(kind: string, sections: object): Promise<ServerProcess> {
  const profile = args['cpu-prof'];
  const child: ChildProcess = fork(
    fileURLToPath(new URL('extproc-server.ts', import.meta.url)),
    [kind, JSON.stringify(sections)],
    {
      execArgv: profile === undefined ? [] : ['--cpu-prof', '--cpu-prof-interval=250', `--cpu-prof-dir=${profile}`],
    },
  );
  const next = <T>(): Promise<T> => new Promise((resolve) => child.once('message', (message) => resolve(message as T)));
  return next<{ address: string }>().then(({ address }) => ({
    address,
    async cpuUs() {
      const answer = next<{ cpuUs: number }>();
      child.send('cpu');
      return (await answer).cpuUs;
    },
    stop: () =>
      new Promise<void>((resolve) => {
        child.once('exit', () => resolve());
        child.disconnect();
      }),
  }));
}

/** @param pace requests per second, started on time whatever the server does; or so many always in flight */
async function run(
  server: ServerProcess,
  connections: readonly LoadConnection[],
  next: () => Exchange,
  pace: { readonly perSecond: number } | { readonly parallel: number },
  seconds: number,
): Promise<Run> {
  const latencies: number[] = [];
  const endings: Promise<void>[] = [];
  let n = 0;
  const send = async (dueMs: number): Promise<void> => {
    const answeredAtMs = await connections[n++ % connections.length]!.request(next());
    latencies.push(answeredAtMs - dueMs);
  };
  const cpuBefore = await server.cpuUs();
  const startMs = performance.now();
  const endMs = startMs + seconds * 1000;
  if ('parallel' in pace) {
    const loop = async (): Promise<void> => {
      while (performance.now() < endMs) await send(performance.now());
    };
    await Promise.all(Array.from({ length: pace.parallel }, loop));
  } else {
    for (let due = startMs; due < endMs; due = startMs + (n * 1000) / pace.perSecond) {
      while (performance.now() < due) await new Promise((resolve) => setTimeout(resolve, 1));
      endings.push(send(due));
    }
    await Promise.all(endings);
  }
  const tookMs = performance.now() - startMs;
  const cpuUs = ((await server.cpuUs()) - cpuBefore) / latencies.length;
  latencies.sort((a, b) => a - b);
  const at = (share: number): number =>
    latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))]!;
  return {
    nRequests: latencies.length,
    perSecond: (latencies.length * 1000) / tookMs,
    cpuUs,
    p50Ms: at(0.5),
    p99Ms: at(0.99),
  };
}

type Subject = { readonly name: string; readonly server: ServerProcess; next(): Exchange };

/**
 * Measures servers side by side: their windows alternate, so that other work on the machine meets all of them alike, and of
 * each the quietest window counts.
 * @returns CPU µs per request, as many as subjects
 */
async function measure(
  subjects: readonly Subject[],
  parallel: number,
  rates: readonly number[],
): Promise<readonly number[]> {
  const connections = await Promise.all(
    subjects.map(({ server }) =>
      Promise.all(Array.from({ length: N_CONNECTIONS }, () => openLoadConnection(server.address))),
    ),
  );
  const runOf = (i: number, pace: Parameters<typeof run>[3], seconds: number): Promise<Run> =>
    run(subjects[i]!.server, connections[i]!, subjects[i]!.next, pace, seconds);
  const best: (Run | null)[] = subjects.map(() => null);
  for (const i of subjects.keys()) await runOf(i, { parallel }, WARM_UP_SECONDS);
  for (let window = 0; window < N_WINDOWS; window++) {
    for (const i of subjects.keys()) {
      const now = await runOf(i, { parallel }, SECONDS / N_WINDOWS);
      if (best[i] === null || now.cpuUs < best[i]!.cpuUs) best[i] = now;
    }
  }
  for (const [i, { name }] of subjects.entries()) {
    const { cpuUs, perSecond } = best[i]!;
    const cells = [name, cpuUs.toFixed(0), `${Math.round(perSecond)}`];
    for (const rate of rates) {
      const paced = rate > perSecond ? null : await runOf(i, { perSecond: rate }, SECONDS);
      cells.push(
        paced === null ? '–' : `${paced.cpuUs.toFixed(0)}; ${paced.p50Ms.toFixed(2)} / ${paced.p99Ms.toFixed(1)}`,
      );
    }
    print(`| ${cells.join(' | ')} |`);
  }
  for (const connection of connections.flat()) connection.close();
  return best.map((run) => run!.cpuUs);
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function printHead(rates: readonly number[]): void {
  const paced = rates.map((rate) => `at ${rate}/s: CPU µs; p50 / p99 ms`);
  print(`| ${['', 'CPU µs per request at most', 'most, requests/s', ...paced].join(' | ')} |`);
  print(`|${'---|'.repeat(3 + rates.length)}`);
}

const ENDPOINTS = [1, 2, 3].map((n) => ({
  name: `pod-${n}`,
  address: `127.0.0.1:${n}`,
  model: MODEL,
  kvEvents: 'none',
}));

async function benchModes(): Promise<void> {
  const rates = args.quick ? [] : RATES;
  printHead(rates);
  const kinds = ['null', 'warmpath'].filter((one) => args.only === undefined || args.only === one);
  for (const mode of MODES.filter((one) => args.mode === undefined || args.mode === one)) {
    for (const size of SIZES.filter((one) => args.size === undefined || Number(args.size) === one)) {
      const bodies = Array.from({ length: 64 }, (_, i) => exchangeOf(mode, chatBody(size, i)));
      let n = 0;
      const next = (): Exchange => bodies[n++ % bodies.length]!;
      const subjects = await Promise.all(
        kinds.map(async (kind) => ({
          name: `${kind}, ${mode}, ${size / 1000} KB`,
          server: await startServer(kind, { discovery: { endpoints: ENDPOINTS }, tokenizer: { api: 'none' } }),
          next,
        })),
      );
      const cpu = await measure(subjects, size > 100_000 ? 8 : 32, rates);
      for (const { server } of subjects) await server.stop();
      if (cpu.length === 2)
        print(`| warmpath ÷ null | ${(cpu[1]! / cpu[0]!).toFixed(2)} | ${'| '.repeat(1 + rates.length)}`);
    }
  }
}

/** An answer as an engine streams it: headers, 15 tokens, and the event with usage. */
const STREAMED_ANSWER: NonNullable<Exchange['response']> = {
  nMessages: 17,
  frames: Buffer.concat([
    encode({
      response_headers: {
        headers: {
          headers: [
            { key: ':status', raw_value: Buffer.from('200') },
            { key: 'content-type', raw_value: Buffer.from('text/event-stream; charset=utf-8') },
          ],
        },
      },
    }),
    ...Array.from({ length: 16 }, (_, i) => {
      const choices = i === 15 ? [] : [{ index: 0, delta: { content: ' token' }, logprobs: null, finish_reason: null }];
      const usage = i === 15 ? { prompt_tokens: 900, completion_tokens: 15, total_tokens: 915 } : null;
      const event = { id: 'chatcmpl-0', object: 'chat.completion.chunk', created: 0, model: MODEL, choices, usage };
      const bytes = Buffer.from(`data: ${JSON.stringify(event)}\n\n`);
      return encode({ response_body: { body: bytes, end_of_stream: i === 15 } });
    }),
  ]),
};

async function benchResponse(): Promise<void> {
  printHead([]);
  const exchange = exchangeOf('BUFFERED', chatBody(4_000, 1));
  const subjects = await Promise.all(
    (
      [
        ['response side off', null],
        ['response side on, 16 chunks', STREAMED_ANSWER],
      ] as const
    ).map(async ([name, response]) => ({
      name: `warmpath, BUFFERED, 4 KB, ${name}`,
      server: await startServer('warmpath', { discovery: { endpoints: ENDPOINTS }, tokenizer: { api: 'none' } }),
      next: () => ({ ...exchange, response }),
    })),
  );
  await measure(subjects, 32, []);
  for (const { server } of subjects) await server.stop();
}

/** Answers every text with the same number of tokens, different ones for different prompts, from memory. */
async function startTokenizer(nTokens: number): Promise<Server> {
  const answers = Array.from({ length: 64 }, (_, id) => {
    const tokens = Array.from({ length: nTokens }, (_, i) => (i * 7919 + id * 31) % 128_000);
    return Buffer.from(JSON.stringify({ count: nTokens, max_model_len: 131_072, tokens, token_strs: null }));
  });
  let n = 0;
  const server = createServer((request, response) => {
    request.resume();
    request.on('end', () => {
      const answer = answers[n++ % answers.length]!;
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': answer.length }).end(answer);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}

/** Each endpoint announces a new chain of 8 blocks 50 times a second. */
function publish(publishers: readonly FakePublisher[]): () => void {
  let n = 0;
  const timer = setInterval(() => {
    for (const publisher of publishers) {
      const hashes = Array.from({ length: 8 }, () => ++n);
      void publisher.publish(
        stored(
          hashes,
          null,
          Array.from({ length: 128 }, (_, i) => (n * 31 + i) % 128_000),
        ),
      );
    }
  }, 20);
  return () => clearInterval(timer);
}

async function benchDecision(): Promise<void> {
  printHead([]);
  for (const [name, nTokens, nBytes] of [
    ['1k tokens, 4 KB', 1_000, 4_000],
    ['8k tokens, 32 KB', 8_000, 32_000],
    ['50k tokens, 220 KB', 50_000, 220_000],
  ] as const) {
    const tokenizer = await startTokenizer(nTokens);
    const publishers = await Promise.all(ENDPOINTS.map(() => FakePublisher.start()));
    const stopPublishing = publish(publishers);
    const endpoints = ENDPOINTS.map((endpoint, i) => ({
      ...endpoint,
      kvEvents: publishers[i]!.endpoint,
      replay: publishers[i]!.replayEndpoint,
    }));
    const url = `http://127.0.0.1:${(tokenizer.address() as AddressInfo).port}`;
    const server = await startServer('decision', {
      discovery: { endpoints },
      tokenizer: { api: 'tokenize', urls: [url], budgetMs: 2000, maxInFlight: 256 },
    });
    // Every prompt is new: nothing is answered from a memo.
    let n = 0;
    const next = (): Exchange => exchangeOf('BUFFERED', chatBody(nBytes, n++));
    await measure([{ name: `decision, ${name}`, server, next }], 16, []);
    await server.stop();
    stopPublishing();
    tokenizer.close();
    tokenizer.closeAllConnections();
    await Promise.all(publishers.map((publisher) => publisher.stop()));
  }
}

async function benchLogic(): Promise<void> {
  print('| own part of a request, without gRPC | CPU µs |');
  print('|---|---|');
  for (const size of SIZES) {
    const requests = Array.from({ length: 64 }, (_, i) => {
      const { headers, body } = exchangeOf('BUFFERED', chatBody(size, i));
      return [headers.subarray(5), body.subarray(5)] as const;
    });
    print(`| BUFFERED, ${size / 1000} KB | ${(await exchangeCost(requests)).toFixed(1)} |`);
  }
}

if (args.only === undefined || args.only === 'null' || args.only === 'warmpath') await benchModes();
if ((args.only === undefined && args.size === undefined) || args.only === 'logic') await benchLogic();
if ((args.only === undefined && args.size === undefined) || args.only === 'response') await benchResponse();
if ((args.only === undefined && args.size === undefined) || args.only === 'decision') await benchDecision();
