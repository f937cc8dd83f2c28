/** `warmpath events`: KV events as JSON lines, live from a publisher or decoded from one payload. Trusts and stores nothing. */
import { open } from 'node:fs/promises';
import { systemClock } from '../clock.ts';
import { WarmpathError, errorText } from '../errors.ts';
import { createKvEventDecoder, DEFAULT_DECODE_LIMITS } from '../kvevents/decode.ts';
import { createEventConnection } from '../kvevents/event-connection.ts';
import { batchJson, eventJson, type TokenOutput } from '../kvevents/event-json.ts';
import type { ApplyOutcome } from '../kvevents/event-stream.ts';
import { createRedials } from '../kvevents/redials.ts';
import { createReplayPermits } from '../kvevents/replay-permits.ts';
import { createZmtp } from '../kvevents/zmtp.ts';
import { aborted, parseOptions, readPlan } from './arguments.ts';

const HELP = `usage: warmpath events ENDPOINT [--replay ENDPOINT] [--tokens]
       warmpath events --decode FILE|- [--tokens]

Prints KV events as JSON lines: what a publisher sends, as it comes, or what is in one payload.
Hashes are decimal strings of their low 64 bits, the same for every way an engine may write them.

  ENDPOINT            publisher of a pod, such as tcp://10.0.0.7:5557
  --replay ENDPOINT   its replay socket: print first what it still holds, and fetch what is lost
  --decode FILE       decode one payload (- reads it from the standard input) and print the batch
  --tokens            token ids instead of their number; they are the content of prompts

Exit codes: 0 done, 1 the payload is refused or unreadable, 2 wrong usage.`;

export type EventsIo = {
  stdout(line: string): void;
  stderr(line: string): void;
  readonly stdin: AsyncIterable<Uint8Array>;
  /** Ends the live form. */
  readonly signal: AbortSignal;
};

const TICK_MS = 50;
const ENDPOINT = /^(tcp|ipc):\/\/\S+$/;

/** @returns exit code: 0 done, 1 the payload is refused or unreadable, 2 wrong usage */
export async function runEvents(args: readonly string[], io: EventsIo): Promise<number> {
  const asked = readPlan('events', HELP, io, () => readArguments(args));
  if (asked.kind === 'exit') return asked.code;
  const { plan } = asked;
  return plan.kind === 'decode' ? decodeOne(plan.file, plan.tokens, io) : follow(plan.source, plan.tokens, io);
}

type Source = { readonly endpoint: string; readonly replayEndpoint: string | null };

type Plan = { readonly tokens: TokenOutput } & (
  { readonly kind: 'decode'; readonly file: string } | { readonly kind: 'follow'; readonly source: Source }
);

function readArguments(args: readonly string[]): Plan | 'help' {
  const { values, positionals } = parseOptions({
    args: [...args],
    allowPositionals: true,
    options: {
      replay: { type: 'string' },
      decode: { type: 'string' },
      tokens: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) return 'help';
  const tokens = values.tokens ? 'ids' : 'counts';
  if (values.decode !== undefined) {
    if (positionals.length === 0 && values.replay === undefined) return { kind: 'decode', file: values.decode, tokens };
    throw new Error('--decode FILE stands alone, got an endpoint beside it');
  }
  const [endpoint, ...more] = positionals;
  if (endpoint === undefined || more.length > 0) {
    throw new Error(`expected one endpoint or --decode FILE, got ${positionals.length} endpoints`);
  }
  for (const address of [endpoint, ...(values.replay === undefined ? [] : [values.replay])]) {
    if (ENDPOINT.test(address)) continue;
    throw new Error(`not an endpoint: ${JSON.stringify(address)}, expected tcp://HOST:PORT`);
  }
  return { kind: 'follow', source: { endpoint, replayEndpoint: values.replay ?? null }, tokens };
}

async function decodeOne(file: string, tokens: TokenOutput, io: EventsIo): Promise<number> {
  try {
    const payload = await readAll(file === '-' ? io.stdin : chunksOf(file));
    io.stdout(JSON.stringify(batchJson(createKvEventDecoder().decode(payload), tokens)));
    return 0;
  } catch (error) {
    io.stderr(`warmpath events: ${errorText(error)}`);
    return 1;
  }
}

async function* chunksOf(file: string): AsyncIterable<Uint8Array> {
  const handle = await open(file);
  // Closes the file when the reading ends, however it ends.
  yield* handle.createReadStream();
}

async function readAll(chunks: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const { maxPayloadBytes } = DEFAULT_DECODE_LIMITS;
  const read: Uint8Array[] = [];
  let nBytes = 0;
  for await (const chunk of chunks) {
    nBytes += chunk.byteLength;
    if (nBytes > maxPayloadBytes) {
      throw new WarmpathError('kv_payload_invalid', `KV payload too large: limit ${maxPayloadBytes} bytes`);
    }
    read.push(chunk);
  }
  return Buffer.concat(read);
}

async function follow(source: Source, tokens: TokenOutput, io: EventsIo): Promise<number> {
  const decoder = createKvEventDecoder();
  const note = (what: string): void => io.stderr(`warmpath events: ${what}`);

  const print = (payload: Uint8Array, seq: bigint): ApplyOutcome => {
    try {
      const batch = decoder.decode(payload);
      const of = { seq: seq.toString(), ts: batch.ts, data_parallel_rank: batch.dataParallelRank };
      for (const event of batch.events) io.stdout(JSON.stringify({ ...of, ...eventJson(event, tokens) }));
      if (batch.skipped.length > 0) io.stdout(JSON.stringify({ ...of, skipped: batch.skipped }));
      return 'applied';
    } catch (error) {
      note(`batch ${seq} refused: ${errorText(error)}`);
      return 'refused';
    }
  };

  const isBatch = (payload: Uint8Array): boolean => {
    try {
      decoder.decode(payload);
      return true;
    } catch (error) {
      note(`payload refused: ${errorText(error)}`);
      return false;
    }
  };

  let lastFailure = '';
  const fail = (error: unknown): void => {
    const text = errorText(error);
    // It is tried again every second.
    if (text !== lastFailure) note(text);
    lastFailure = text;
  };

  let isTold = false;
  const tellWhetherReached = (): void => {
    const reached = connection.reached();
    if (reached === 'down' && !isTold) note(`no publisher answers at ${source.endpoint}, trying again`);
    else if (reached === 'up' && isTold) note(`${source.endpoint} answers`);
    isTold = reached === 'down';
  };

  const connection = createEventConnection(
    {
      clock: systemClock,
      zmtp: createZmtp(systemClock),
      permits: createReplayPermits(1, systemClock),
      redials: createRedials(),
      apply: print,
      isBatch,
      clear: () => note('what was printed so far no longer holds'),
      onStanding: tellWhetherReached,
      onChange: () => undefined,
      onGap: () => note('batches are missing'),
      onRestart: () => note('the publisher began anew, or the connection was lost'),
      onReplay: (result) => result !== 'ok' && note(`replay: ${result}`),
      onGarbage: (reason) => note(`not a batch: wrong ${reason}`),
      onFailure: fail,
    },
    source,
    // For looking at a stream nothing needs to be proved while it is silent.
    { idleProbeMs: 10_000 },
  );
  connection.open();
  const timer = setInterval(() => connection.tick(), TICK_MS);
  await aborted(io.signal);
  clearInterval(timer);
  connection.close();
  return 0;
}
