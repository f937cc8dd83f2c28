/**
 * What one request costs the server: `make bench-extproc`. The server is a process of its own on loopback; the load comes
 * from here. CPU is that of the server process, all threads. "null" is an ext_proc server on grpc-js that answers without
 * looking; "warmpath" is the whole product with three endpoints and no tokenizer; "decision" has a tokenizer over HTTP and
 * KV events flowing. About four minutes, with `--quick` one and a half. Options: `--only null|warmpath|logic|response|decision`,
 * `--mode MODE`, `--size BYTES`, `--warm-up SECONDS`, `--cpu-prof DIR`.
 */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { parseArgs } from 'node:util';
import { FakePublisher, stored } from '../support/fake-publisher.ts';
import { exchangeCost } from './exchange-cost.ts';
import { chatBody, exchangeOf, MODEL, MODES, STREAMED_ANSWER, type Mode } from './extproc-load.ts';
import { run, startServer, type Run, type ServerProcess } from './extproc-run.ts';
import type { Exchange } from './grpc-load.ts';

const { values: args } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string' },
    mode: { type: 'string' },
    size: { type: 'string' },
    'warm-up': { type: 'string' },
    'cpu-prof': { type: 'string' },
  },
});

const SIZES = [1_000, 4_000, 64_000, 220_000];
const RATES = [500, 1_000, 2_000];
const N_WINDOWS = args.quick ? 4 : 8;
const WINDOW_SECONDS = 0.5;
const PACED_SECONDS = args.quick ? 1 : 2;
/** The compiler works for seconds beside a new process, and its threads count as everything else does. */
const WARM_UP_SECONDS = Number(args['warm-up'] ?? (args.quick ? 8 : 15));
const WARM_UP_ROUNDS = 4;

/** What is sent, and to whom. */
type Subject = { readonly server: ServerProcess; readonly parallel: number; next(): Exchange };

/**
 * Every subject is warmed up before the first window of any counts, in rounds over all of them: what a process has met last
 * is what its compiler knows best. Windows alternate, so that other work on the machine meets all of them alike.
 * @returns per subject the window with the least CPU, and the most requests per second of any
 */
async function measure(subjects: readonly Subject[]): Promise<readonly Run[]> {
  const nServers = new Set(subjects.map(({ server }) => server)).size;
  const warmUpSeconds = (WARM_UP_SECONDS * nServers) / subjects.length / WARM_UP_ROUNDS;
  for (let round = 0; round < WARM_UP_ROUNDS; round++) {
    for (const { server, parallel, next } of subjects) await run(server, next, { parallel }, warmUpSeconds);
  }
  const best: (Run | null)[] = subjects.map(() => null);
  for (let window = 0; window < N_WINDOWS; window++) {
    for (const [i, { server, parallel, next }] of subjects.entries()) {
      const now = await run(server, next, { parallel }, WINDOW_SECONDS);
      const before = best[i] ?? now;
      const quietest = now.cpuUs < before.cpuUs ? now : before;
      best[i] = { ...quietest, perSecond: Math.max(now.perSecond, before.perSecond) };
    }
  }
  return best as Run[];
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function printHead(cells: readonly string[]): void {
  print(`| ${cells.join(' | ')} |`);
  print(`|${'---|'.repeat(cells.length)}`);
}

const ENDPOINTS = [1, 2, 3].map((n) => ({
  name: `pod-${n}`,
  address: `127.0.0.1:${n}`,
  model: MODEL,
  kvEvents: 'none',
}));

const WITHOUT_TOKENIZER = { discovery: { endpoints: ENDPOINTS }, tokenizer: { api: 'none' } };

async function benchModes(): Promise<void> {
  const kinds = ['null', 'warmpath'].filter((one) => args.only === undefined || args.only === one);
  const servers = await Promise.all(
    kinds.map((kind) => startServer(kind, WITHOUT_TOKENIZER, args['cpu-prof'] ?? null)),
  );
  const cells = MODES.filter((one) => args.mode === undefined || args.mode === one).flatMap((mode) =>
    SIZES.filter((one) => args.size === undefined || Number(args.size) === one).map((size) => ({ mode, size })),
  );
  const subjects = cells.flatMap(({ mode, size }) => {
    const next = endless(mode, size);
    return servers.map((server) => ({ server, parallel: size > 100_000 ? 8 : 32, next }));
  });
  const runs = await measure(subjects);
  const names = (what: string): string => `${what}: ${kinds.join(' → ')}`;
  printHead([
    '',
    names('CPU µs'),
    'ratio',
    names('most requests/s'),
    ...RATES.map((rate) => names(`p50 / p99 ms at ${rate}/s`)),
  ]);
  for (const [i, { mode, size }] of cells.entries()) {
    const of = kinds.map((_, kind) => i * kinds.length + kind);
    const [floor, own] = of.map((at) => runs[at]!.cpuUs);
    const paced: string[] = [];
    for (const rate of RATES) {
      const each: string[] = [];
      for (const at of of) each.push(await pacedCell(subjects[at]!, rate, runs[at]!.perSecond));
      paced.push(each.join(' → '));
    }
    const line = [
      `${mode}, ${size / 1000} KB`,
      of.map((at) => runs[at]!.cpuUs.toFixed(0)).join(' → '),
      own === undefined ? '' : (own / floor!).toFixed(2),
      of.map((at) => `${Math.round(runs[at]!.perSecond)}`).join(' → '),
      ...paced,
    ];
    print(`| ${line.join(' | ')} |`);
  }
  for (const server of servers) await server.stop();
}

/** 64 bodies of one size, over and over. */
function endless(mode: Mode, size: number): () => Exchange {
  const bodies = Array.from({ length: 64 }, (_, i) => exchangeOf(mode, chatBody(size, i)));
  let n = 0;
  return () => bodies[n++ % bodies.length]!;
}

async function pacedCell({ server, next }: Subject, perSecond: number, most: number): Promise<string> {
  if (perSecond > most) return '–';
  const { p50Ms, p99Ms } = await run(server, next, { perSecond }, PACED_SECONDS);
  return `${p50Ms.toFixed(1)} / ${p99Ms.toFixed(1)}`;
}

async function benchResponse(): Promise<void> {
  const exchange = exchangeOf('BUFFERED', chatBody(4_000, 1));
  const server = await startServer('warmpath', WITHOUT_TOKENIZER);
  const [off, on] = await measure(
    [null, STREAMED_ANSWER].map((response) => ({ server, parallel: 32, next: () => ({ ...exchange, response }) })),
  );
  await server.stop();
  printHead(['BUFFERED, 4 KB', 'CPU µs']);
  print(`| response side off | ${off!.cpuUs.toFixed(0)} |`);
  print(`| response side on, 16 chunks | ${on!.cpuUs.toFixed(0)} |`);
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
  printHead(['whole decision', 'CPU µs', 'most requests/s']);
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
    const [best] = await measure([{ server, parallel: 16, next }]);
    print(`| ${name} | ${best!.cpuUs.toFixed(0)} | ${Math.round(best!.perSecond)} |`);
    await server.stop();
    stopPublishing();
    tokenizer.close();
    tokenizer.closeAllConnections();
    await Promise.all(publishers.map((publisher) => publisher.stop()));
  }
}

async function benchLogic(): Promise<void> {
  printHead(['own part of a request, without gRPC', 'CPU µs']);
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
