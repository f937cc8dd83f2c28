/** What a request leaves behind: nothing. Heap after full collections, fitted over very many requests. */
import v8 from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import type { Decision } from '../../src/extproc/picker.ts';
import { createBodyBudget } from '../../src/extproc/body-budget.ts';
import { createExchange } from '../../src/extproc/exchange.ts';
import { readMessage } from '../../src/extproc/message-reader.ts';
import type { EnvoyMessage } from '../../src/extproc/messages.ts';
import { createExtProcServer } from '../../src/extproc/server.ts';
import { createUsageJoin } from '../../src/extproc/usage-join.ts';
import { silentLog } from '../../src/log.ts';
import { createUsageReader } from '../../src/openai/usage.ts';
import { grpcFrame, openLoadConnection } from '../bench/grpc-load.ts';
import { DEFAULT_EXCHANGE_OPTIONS, SERVER_OPTIONS } from '../support/exchange-harness.ts';
import {
  announced,
  encodeRequest,
  requestBody,
  requestHeaders,
  responseBody,
  responseHeaders,
} from '../support/extproc-messages.ts';

const POD = '10.0.0.1:8000';
/** `make soak` takes more. */
const N_EXCHANGES = Number(process.env['WARMPATH_SOAK_EXCHANGES'] ?? 60_000);
const N_STREAMS = 3_000;
/** A leak worth the name keeps at least one small object per request. */
const LEAK_BYTES = 16;

const routed = (): Decision => ({
  kind: 'routed',
  endpoints: [POD],
  reservation: { firstByte: () => undefined, observe: () => undefined, release: () => undefined },
});

/** Bytes per request by which the heap grows, by least squares over the later part of the run. */
async function growth(nRequests: number, step: number, run: (n: number) => void | Promise<void>): Promise<number> {
  v8.setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const points: { x: number; y: number }[] = [];
  for (let done = 0; done < nRequests; done += step) {
    await run(step);
    // What ends in a later turn has its turn.
    await new Promise((resolve) => setTimeout(resolve, 20));
    collect();
    // The first third warms up: caches fill and code is compiled.
    if (done >= nRequests / 3) points.push({ x: done, y: v8.getHeapStatistics().used_heap_size });
  }
  const meanX = points.reduce((sum, { x }) => sum + x, 0) / points.length;
  const meanY = points.reduce((sum, { y }) => sum + y, 0) / points.length;
  const above = points.reduce((sum, { x, y }) => sum + (x - meanX) * (y - meanY), 0);
  return above / points.reduce((sum, { x }) => sum + (x - meanX) ** 2, 0);
}

test(`${N_EXCHANGES} exchanges, ended in every way, leave nothing behind`, async () => {
  const usageJoin = createUsageJoin();
  const read = (...parts: object[]): EnvoyMessage => readMessage(encodeRequest(Object.assign({}, ...parts)));
  const buffered = [read(requestHeaders(), announced('BUFFERED')), read(requestBody('{"model":"m"}'))];
  const duplex = [read(requestHeaders(), announced('FULL_DUPLEX_STREAMED')), read(requestBody('{"model":"m"}'))];
  const answer = [read(responseHeaders()), read(responseBody('{"usage":{"prompt_tokens":1,"completion_tokens":2}}'))];
  const budget = createBodyBudget(1024 * 1024);
  let nPicks = 0;
  let nFinished = 0;

  function one(i: number): void {
    const exchange = createExchange(DEFAULT_EXCHANGE_OPTIONS, systemClock, createUsageReader, {
      send: () => undefined,
      pick: () => void (nPicks += 1),
      holdBody: budget.open,
      observe: usageJoin.observe,
      unseen: (reservation) => reservation.release('completed'),
      end: () => undefined,
      fail: () => undefined,
      finished: () => void (nFinished += 1),
    });
    for (const message of i % 2 === 0 ? buffered : duplex) exchange.message(message);
    const made = routed();
    // Half of them are gone before the decision, some see their answer, the rest only their end.
    if (i % 4 === 1) exchange.cancelled();
    if (made.kind === 'routed') {
      exchange.decided({ ...made, reservation: usageJoin.join(`request-${i}`, made.reservation) });
    }
    if (i % 4 === 2) for (const message of answer) exchange.message(message);
    if (i % 8 < 4) exchange.halfClosed();
    exchange.cancelled();
  }

  let n = 0;
  const bytes = await growth(N_EXCHANGES, N_EXCHANGES / 20, (count) => {
    for (const end = n + count; n < end; n++) one(n);
  });
  expect([nPicks, nFinished, budget.heldBytes()]).toEqual([N_EXCHANGES, N_EXCHANGES, 0]);
  expect(bytes).toBeLessThan(LEAK_BYTES);
}, 60_000);

test('a stream that waits for the end of its answer does not hold its body', async () => {
  const server = await start();
  const connection = await openLoadConnection(server.address);
  const heldBytes = async (nStreams: number, bodyBytes: number): Promise<number> => {
    const goal = server.openStreams() + nStreams;
    const before = await usedBytes();
    // One body for all, so that what is counted is the server's. Each request is answered, and then nothing more comes.
    const body = grpcFrame(encodeRequest(requestBody(`{"model":"m","prompt":"${'x'.repeat(bodyBytes)}"}`)));
    const request = { ...BUFFERED_REQUEST, body, response: { frames: Buffer.alloc(0), nMessages: 1 } };
    for (let i = 0; i < nStreams; i++) connection.request(request).catch(() => undefined);
    while (server.openStreams() < goal || server.nPicks() < goal)
      await new Promise((resolve) => setTimeout(resolve, 20));
    return ((await usedBytes()) - before) / nStreams;
  };
  try {
    await heldBytes(50, 1_000);
    expect(await heldBytes(100, 200_000)).toBeLessThan(40_000);
  } finally {
    connection.close();
    await server.stop();
  }
}, 60_000);

test(`${N_STREAMS} streams through the server leave nothing behind`, async () => {
  const server = await start();
  const connection = await openLoadConnection(server.address);
  try {
    const bytes = await growth(N_STREAMS, N_STREAMS / 12, async (count) => {
      for (let sent = 0; sent < count; sent += 50) {
        await Promise.all(Array.from({ length: 50 }, () => connection.request(BUFFERED_REQUEST)));
      }
    });
    expect(server.openStreams()).toBe(0);
    // Connections and collectors of Node itself move by some kilobytes.
    expect(bytes).toBeLessThan(8 * LEAK_BYTES);
  } finally {
    connection.close();
    await server.stop();
  }
}, 60_000);

const BUFFERED_REQUEST = {
  mode: 'BUFFERED' as const,
  headers: grpcFrame(encodeRequest({ ...requestHeaders(), ...announced('BUFFERED') })),
  body: grpcFrame(encodeRequest(requestBody(`{"model":"m","prompt":"${'x'.repeat(4_000)}"}`))),
  echoBytes: 0,
  response: null,
};

async function start(): Promise<{
  readonly address: string;
  openStreams(): number;
  nPicks(): number;
  stop(): Promise<void>;
}> {
  let nPicks = 0;
  const pick = (): Promise<Decision> => {
    nPicks += 1;
    return Promise.resolve(routed());
  };
  const server = createExtProcServer(
    { picker: { pick }, log: silentLog, clock: systemClock, createUsageReader, onStream: () => undefined },
    SERVER_OPTIONS,
  );
  const { grpcAddress } = await server.start();
  return { address: grpcAddress, openStreams: server.openStreams, nPicks: () => nPicks, stop: server.stop };
}

/** Heap and buffers outside of it, after what is over has been let go. */
async function usedBytes(): Promise<number> {
  v8.setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  await new Promise((resolve) => setTimeout(resolve, 50));
  collect();
  await new Promise((resolve) => setTimeout(resolve, 10));
  collect();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}
