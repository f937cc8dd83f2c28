/** One exchange with everything it emits recorded: the clock is fake, the picker is the test. */
import type { ExtProcServerOptions } from '../../src/extproc/server.ts';
import { createBodyBudget } from '../../src/extproc/body-budget.ts';
import type { Signal } from '../../src/light-signal.ts';
import type { PickError, PickRequest, Reservation } from '../../src/extproc/picker.ts';
import {
  createExchange,
  type Exchange,
  type ExchangeOptions,
  type ExchangeResult,
  type FailureCode,
} from '../../src/extproc/exchange.ts';
import { readMessage } from '../../src/extproc/message-reader.ts';
import type { CreateUsageReader } from '../../src/extproc/response-side.ts';
import type { Usage } from '../../src/openai/usage.ts';
import { createFakeClock, type FakeClock } from './fake-clock.ts';
import { decodeAnswer, encodeRequest, type Answer, type WireRequest } from './extproc-messages.ts';

export const DEFAULT_EXCHANGE_OPTIONS: ExchangeOptions = {
  bodyMaxBytes: 1024 * 1024,
  failureMode: 'closed',
  defaultBodyMode: 'BUFFERED',
  deadlineMs: 100,
  destinationHeader: 'x-gateway-destination-endpoint',
  targetPodHeader: 'off',
  responseTrailers: 'as_configured',
  completion: 'stream',
  maxHeaders: 100,
  maxHeaderBytes: 60 * 1024,
  maxMessages: 10_000,
};

/** What became of a reservation. */
export type Held = { firstBytes: number; usages: Usage[]; released: string[] };

export type Harness = {
  readonly exchange: Exchange;
  readonly clock: FakeClock;
  readonly answers: Answer[];
  readonly picks: { request: PickRequest; signal: Signal }[];
  readonly results: ExchangeResult[];
  readonly unseen: Reservation[];
  /** Status 0, or the code it failed with; null while open. */
  ended(): 'ok' | FailureCode | null;
  /** Merges the parts into one message and feeds it. */
  envoy(...parts: WireRequest[]): void;
  /** Answers since the last call. */
  take(): Answer[];
  /** Routes to the endpoints; returns the reservation's fate. */
  route(...endpoints: string[]): Held;
  /** The same with one of the data-parallel ranks behind the address. */
  routeToRank(rank: number, ...endpoints: string[]): void;
};

export function createHarness(
  options: Partial<ExchangeOptions> = {},
  createUsageReader: CreateUsageReader = () => ({ push: () => undefined, result: () => null }),
  bodiesMaxBytes = Infinity,
): Harness {
  const clock = createFakeClock();
  const budget = createBodyBudget(bodiesMaxBytes);
  const answers: Answer[] = [];
  const picks: Harness['picks'] = [];
  const results: ExchangeResult[] = [];
  const unseen: Reservation[] = [];
  let ended: 'ok' | FailureCode | null = null;
  let nTaken = 0;
  const exchange = createExchange({ ...DEFAULT_EXCHANGE_OPTIONS, ...options }, clock, createUsageReader, {
    send(response) {
      if (ended !== null) throw new Error('an answer after the end of the stream');
      answers.push(decodeAnswer(response));
    },
    pick: (request, signal) => void picks.push({ request, signal }),
    holdBody: (drop) => budget.open(drop),
    observe: () => ({ firstByte: () => undefined, complete: () => undefined, gone: () => undefined }),
    unseen: (reservation) => void unseen.push(reservation),
    end() {
      if (ended !== null) throw new Error('the stream ended twice');
      ended = 'ok';
    },
    fail(code) {
      if (ended !== null) throw new Error('the stream ended twice');
      ended = code;
    },
    finished: (result) => void results.push(result),
  });
  return {
    exchange,
    clock,
    answers,
    picks,
    results,
    unseen,
    ended: () => ended,
    envoy: (...parts) => exchange.message(readMessage(encodeRequest(Object.assign({}, ...parts)))),
    take() {
      const taken = answers.slice(nTaken);
      nTaken = answers.length;
      return taken;
    },
    route(...endpoints) {
      const held = createHeld();
      exchange.decided({ kind: 'routed', endpoints, reservation: held.reservation });
      return held.fate;
    },
    routeToRank(dataParallelRank, ...endpoints) {
      exchange.decided({ kind: 'routed', endpoints, dataParallelRank, reservation: createHeld().reservation });
    },
  };
}

export function createHeld(): { fate: Held; reservation: Reservation } {
  const fate: Held = { firstBytes: 0, usages: [], released: [] };
  return {
    fate,
    reservation: {
      firstByte: () => void (fate.firstBytes += 1),
      observe: (usage) => void fate.usages.push(usage),
      release: (outcome) => void fate.released.push(outcome),
    },
  };
}

export function aPickError(more: Partial<PickError> = {}): PickError {
  return {
    kind: 'error',
    status: 503,
    type: 'service_unavailable_error',
    code: null,
    param: null,
    message: 'no endpoint is ready',
    reason: 'no_endpoint',
    retryAfterSeconds: null,
    ...more,
  };
}

/** A server on a free port of this machine that stops at once. */
export const SERVER_OPTIONS: ExtProcServerOptions = {
  grpcListen: '127.0.0.1:0',
  healthListen: null,
  bodyMaxBytes: 1024 * 1024,
  bodiesMaxBytes: 1024 * 1024 * 1024,
  failureMode: 'closed',
  defaultBodyMode: 'BUFFERED',
  deadlineMs: 2_000,
  destinationHeader: 'x-gateway-destination-endpoint',
  compatTargetPodHeader: false,
  responseTrailers: 'as_configured',
  completion: 'stream',
  assumedAnswerMs: 10_000,
  tls: null,
  drainDelayMs: 0,
  drainTimeoutMs: 0,
  limits: {
    maxStreams: 32_768,
    maxStreamsPerConnection: 4_096,
    maxMessagesPerStream: 1_000_000,
    maxHeaders: 256,
    maxHeaderBytes: 128 * 1024,
  },
};
