/**
 * The external processor as a long-lived part: listens, gives every stream its exchange, reports health, drains.
 * What an answer says is exchange.ts; what gRPC needs under the hood is grpc-server.ts.
 */
import type { ServerHttp2Session } from 'node:http2';
import {
  ServerCredentials,
  type Server,
  type ServiceDefinition,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { Clock } from '../clock.ts';
import { faultText } from '../errors.ts';
import type { Log } from '../log.ts';
import { immediateResponse } from './answers.ts';
import { createBodyBudget } from './body-budget.ts';
import { guardSession } from './client-identity.ts';
import type { EndpointPicker } from './picker.ts';
import type { ExchangeEnding, ExchangeOptions, ExchangeResult, FailureMode } from './exchange.ts';
import type { GrpcCall, GrpcCallListener } from './grpc-call.ts';
import { bind, createGrpcServer } from './grpc-server.ts';
import { createHealth, type ServingStatus } from './health.ts';
import { tooManyStreams } from './refusals.ts';
import type { RequestBodyMode } from './request-side.ts';
import type { CreateUsageReader } from './response-side.ts';
import { PROCESS_PATH } from './protocol.ts';
import { loadServices } from './services.ts';
import { serveStream, type OpenStream } from './stream.ts';
import { createReloadingTls, createSelfSignedTls, type ServerTls, type TlsFiles } from './tls.ts';
import { createUnseenEnds } from './unseen-ends.ts';
import { createUsageJoin } from './usage-join.ts';

export type { ExchangeOutcome, ExchangeResult } from './exchange.ts';
export type { RequestBodyMode } from './request-side.ts';

export type ExtProcLimits = {
  /** Open streams in all; above it a request gets 503 before any work is done. */
  readonly maxStreams: number;
  /** Announced to Envoy, whose own limit (its default is 1,024) must be lower, see grpc-server.ts. */
  readonly maxStreamsPerConnection: number;
  readonly maxMessagesPerStream: number;
  /** Envoy's own limits are 100 headers and 60 KiB. */
  readonly maxHeaders: number;
  readonly maxHeaderBytes: number;
};

export type ExtProcServerOptions = {
  /** `host:port` */
  readonly grpcListen: string;
  /** Plaintext health for probes, null for none. */
  readonly healthListen: string | null;
  readonly bodyMaxBytes: number;
  /** Of all bodies that wait at the same time. */
  readonly bodiesMaxBytes: number;
  readonly failureMode: FailureMode;
  /** For Envoys before 1.34, which do not announce their body mode. */
  readonly defaultBodyMode: RequestBodyMode;
  /** Longest time from a complete request to its answer. */
  readonly deadlineMs: number;
  readonly destinationHeader: string;
  readonly compatTargetPodHeader: boolean;
  /** `ask` where Envoy's configuration cannot say SEND but allows overrides (Envoy Gateway). */
  readonly responseTrailers: 'as_configured' | 'ask';
  /** See ExchangeOptions.completion. */
  readonly completion: 'stream' | 'estimate';
  /** For `estimate`: how long an answer is taken to run on after its stream ended. */
  readonly assumedAnswerMs: number;
  /** `self_signed`: a certificate made at start, for data planes that encrypt without verifying; null = plaintext. */
  readonly tls: TlsFiles | 'self_signed' | null;
  readonly drainDelayMs: number;
  readonly drainTimeoutMs: number;
  readonly limits: ExtProcLimits;
  /** Beside the external processor on the gRPC port, for the same clients; called by `start`. */
  readonly moreServices?: () => readonly {
    readonly definition: ServiceDefinition;
    readonly implementation: UntypedServiceImplementation;
  }[];
};

export type ExtProcServerDeps = {
  readonly picker: EndpointPicker;
  readonly log: Log;
  readonly clock: Clock;
  readonly createUsageReader: CreateUsageReader;
  /** One call per ended stream. */
  onStream(result: ExchangeResult): void;
};

export type ExtProcServer = {
  /**
   * Opens the plaintext health port ahead of `start`: a process that still waits for its fleet is alive, and not ready.
   * Resolves with the address bound, null for none; `start` does it too.
   */
  startHealth(): Promise<string | null>;
  /** Resolves with the addresses bound; rejects with a WarmpathError and nothing left listening. */
  start(): Promise<{ grpcAddress: string; healthAddress: string | null }>;
  /** What health reports; NOT_SERVING until told otherwise, and for good once stopping. */
  setServing(serving: ServingStatus): void;
  /** Drains and stops; idempotent, resolves when nothing of it runs any more. */
  stop(): Promise<void>;
  /** Streams open now. */
  openStreams(): number;
};

/** Fault lines are written at most this often: a bug met by every request must not fill the disk. */
const FAULT_LOG_EVERY_MS = 1_000;
/** Time for the last statuses to reach the peers before connections are cut. */
const FLUSH_MS = 250;
const HEALTH_MAX_RECEIVE_BYTES = 64 * 1024;
const HEALTH_MAX_STREAMS = 256;
/** Room for headers and framing around a body, and for a body too large by less than its own size to get its 413. */
const MESSAGE_MARGIN_BYTES = 1024 * 1024;

const NOBODY: GrpcCallListener = {
  message: () => undefined,
  halfClosed: () => undefined,
  drained: () => undefined,
  broken: () => undefined,
  closed: () => undefined,
};

export function createExtProcServer(deps: ExtProcServerDeps, options: ExtProcServerOptions): ExtProcServer {
  const { log, clock } = deps;
  const { limits } = options;
  const health = createHealth();
  const bodyBudget = createBodyBudget(options.bodiesMaxBytes);
  const usageJoin = createUsageJoin();
  const unseenEnds = createUnseenEnds(clock, {
    assumedAnswerMs: options.assumedAnswerMs,
    maxHeld: limits.maxStreams,
    onFault: (error) => onFault('stream handler failed', faultText(error)),
  });
  const streams = new Set<OpenStream>();
  const exchangeOptions = exchangeOptionsOf(options);
  const onFault = limitedFaultLog(log, clock);
  let main: Server | null = null;
  let probes: Server | null = null;
  let healthStarting: Promise<string | null> | null = null;
  let tls: ServerTls | null = null;
  let stopping: Promise<void> | null = null;
  let draining = false;
  let warnedOfStreamed = false;
  let onEmpty: (() => void) | null = null;

  async function createTls(): Promise<ServerTls | null> {
    if (options.tls === null) return null;
    return options.tls === 'self_signed' ? createSelfSignedTls(clock) : createReloadingTls(options.tls, deps);
  }

  async function start(): Promise<{ grpcAddress: string; healthAddress: string | null }> {
    try {
      const healthAddress = await (healthStarting ??= startHealth());
      tls = await createTls();
      const maxReceiveBytes = 2 * options.bodyMaxBytes + MESSAGE_MARGIN_BYTES;
      main = createGrpcServer({ maxReceiveBytes, maxStreamsPerConnection: limits.maxStreamsPerConnection });
      main.addService(loadServices().health, health.handlers);
      for (const more of options.moreServices?.() ?? []) main.addService(more.definition, more.implementation);
      const grpcAddress = await bind(
        main,
        options.grpcListen,
        tls?.credentials ?? ServerCredentials.createInsecure(),
        'server.grpcListen',
        {
          calls: { path: PROCESS_PATH, serve, maxMessageBytes: maxReceiveBytes, clock },
          onSession: guardOf(typeof options.tls === 'object' ? (options.tls?.allowedClients ?? []) : []),
        },
      );
      log.info('ext_proc listening', { grpc: grpcAddress, health: healthAddress, tls: tls !== null });
      return { grpcAddress, healthAddress };
    } catch (error) {
      shutServers();
      throw error;
    }
  }

  async function startHealth(): Promise<string | null> {
    if (options.healthListen === null) return null;
    probes = createGrpcServer({
      maxReceiveBytes: HEALTH_MAX_RECEIVE_BYTES,
      maxStreamsPerConnection: HEALTH_MAX_STREAMS,
    });
    probes.addService(loadServices().health, health.handlers);
    const credentials = ServerCredentials.createInsecure();
    const address = await bind(probes, options.healthListen, credentials, 'server.healthListen');
    log.info('health listening', { health: address });
    return address;
  }

  function guardOf(allowed: readonly string[]): ((session: ServerHttp2Session) => void) | undefined {
    if (allowed.length === 0) return undefined;
    const refused = (): void => {
      onFault('client not allowed', 'its certificate carries none of server.tls.allowedClients');
      deps.onStream(notServed('client_not_allowed', 'failed'));
    };
    return (session) => guardSession(session, allowed, refused);
  }

  function serve(call: GrpcCall): GrpcCallListener {
    if (streams.size >= limits.maxStreams) return turnAway(call);
    const stream: OpenStream = serveStream(
      call,
      {
        picker: deps.picker,
        clock,
        createUsageReader: deps.createUsageReader,
        bodyBudget,
        usageJoin,
        unseenEnds,
        onFault,
        onEnd(result) {
          streams.delete(stream);
          if (streams.size === 0) onEmpty?.();
          noteEnd(result);
          deps.onStream(result);
        },
      },
      exchangeOptions,
    );
    streams.add(stream);
    if (draining) stream.drain();
    return stream.listener;
  }

  function noteEnd(result: ExchangeResult): void {
    if (result.mode === 'STREAMED' && !warnedOfStreamed) {
      warnedOfStreamed = true;
      log.warn('request_body_mode STREAMED shows no body before the choice: requests are routed by load', {
        expected: ['BUFFERED', 'FULL_DUPLEX_STREAMED'],
      });
    }
    if (!log.debugEnabled) return;
    const { outcome, reason, ending, mode, endpoint, served, completion, decisionMs, heldMs } = result;
    log.debug('stream ended', { outcome, reason, ending, mode, endpoint, served, completion, decisionMs, heldMs });
  }

  /** Before any work is done: not even the first message is decoded into an exchange. */
  function turnAway(call: GrpcCall): GrpcCallListener {
    call.write(immediateResponse(tooManyStreams()));
    call.end();
    deps.onStream(notServed('too_many_streams', 'refused'));
    return NOBODY;
  }

  async function stop(): Promise<void> {
    health.setServing('NOT_SERVING');
    try {
      if (main !== null) await drain(main);
    } finally {
      shutServers();
    }
  }

  async function drain(server: Server): Promise<void> {
    // Data planes learn it from their health checks and go elsewhere; until then we still serve.
    await wait(options.drainDelayMs);
    // The health port answers to the end: a closed one would look like a dead process.
    const closed = new Promise<void>((done) => server.tryShutdown(() => done()));
    draining = true;
    for (const stream of [...streams]) stream.drain();
    await emptyOr(options.drainTimeoutMs);
    const nExpired = streams.size;
    for (const stream of [...streams]) stream.expire();
    health.endWatches();
    unseenEnds.releaseAll();
    await Promise.race([closed, wait(FLUSH_MS)]);
    log.info('ext_proc stopped', { expiredStreams: nExpired });
  }

  function emptyOr(timeoutMs: number): Promise<void> {
    if (streams.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = clock.after(timeoutMs, resolve);
      onEmpty = () => {
        timer.cancel();
        resolve();
      };
    });
  }

  function wait(delayMs: number): Promise<void> {
    return new Promise((resolve) => void clock.after(delayMs, resolve));
  }

  function shutServers(): void {
    main?.forceShutdown();
    probes?.forceShutdown();
    main = null;
    probes = null;
    tls?.stop();
    tls = null;
  }

  return {
    startHealth: () => (healthStarting ??= startHealth()),
    start,
    setServing(serving) {
      if (stopping === null) health.setServing(serving);
    },
    stop: () => (stopping ??= stop()),
    openStreams: () => streams.size,
  };
}

function exchangeOptionsOf(options: ExtProcServerOptions): ExchangeOptions {
  const { limits } = options;
  return {
    bodyMaxBytes: options.bodyMaxBytes,
    failureMode: options.failureMode,
    defaultBodyMode: options.defaultBodyMode,
    deadlineMs: options.deadlineMs,
    destinationHeader: options.destinationHeader.toLowerCase(),
    targetPodHeader: options.compatTargetPodHeader ? 'set' : 'off',
    responseTrailers: options.responseTrailers,
    completion: options.completion,
    maxHeaders: limits.maxHeaders,
    maxHeaderBytes: limits.maxHeaderBytes,
    maxMessages: limits.maxMessagesPerStream,
  };
}

function limitedFaultLog(log: Log, clock: Clock): (what: string, error: string) => void {
  let lastMs = -Infinity;
  let nSuppressed = 0;
  return (what, error) => {
    const nowMs = clock.nowMs();
    if (nowMs - lastMs < FAULT_LOG_EVERY_MS) {
      nSuppressed += 1;
      return;
    }
    lastMs = nowMs;
    log.error(what, { error, suppressed: nSuppressed });
    nSuppressed = 0;
  };
}

/** Of a stream that never became an exchange. */
function notServed(reason: 'too_many_streams' | 'client_not_allowed', ending: ExchangeEnding): ExchangeResult {
  return {
    outcome: 'error',
    reason,
    ending,
    mode: 'unknown',
    model: null,
    endpoint: null,
    served: null,
    usage: null,
    completion: 'stream',
    requestBodyBytes: 0,
    decisionMs: null,
    heldMs: null,
    requestId: null,
  };
}
