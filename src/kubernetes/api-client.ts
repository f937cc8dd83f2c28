/**
 * One request to an API server: credentials read anew, a connection of its own, and an end in every case. Knows HTTP and
 * its limits, nothing of lists and versions; repeats nothing and never rejects.
 *
 * A connection per request, because requests are few (a watch lasts minutes), certificates rotate, and a pool would hand
 * out connections whose other side has gone silent.
 */
import { request as httpRequest, type ClientRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import type { Socket } from 'node:net';
import type { Clock } from '../clock.ts';
import { errorText } from '../errors.ts';
import { statusOf } from './objects.ts';

export type ApiCredentials = {
  readonly headers: Readonly<Record<string, string>>;
  readonly tls: {
    readonly ca?: string | Buffer;
    readonly cert?: string | Buffer;
    readonly key?: string | Buffer;
    readonly servername?: string;
    readonly rejectUnauthorized?: boolean;
  };
};

/** Where the API server is and what it wants to see. */
export type ApiAccess = {
  /** Base URL, with a path where the server lives below one. */
  readonly server: URL;
  /** Namespace the credentials belong to, null = they belong to none. */
  readonly namespace: string | null;
  /** Asked before every request, so that a rotated token or certificate counts at once. */
  credentials(): Promise<ApiCredentials>;
};

export type FailureCause =
  | 'unreachable'
  | 'reset'
  | 'timeout'
  | 'tls'
  | 'credentials'
  | 'unauthorized'
  | 'forbidden'
  | 'not_found'
  | 'expired'
  | 'version_ahead'
  | 'invalid'
  | 'throttled'
  | 'server_error'
  | 'bad_answer';

export type ApiFailure = {
  readonly kind: 'failed';
  readonly cause: FailureCause;
  readonly message: string;
  /** What the server asks for in `retry-after`. */
  readonly retryAfterMs: number | null;
};

/** The caller's signal ended it. */
export type Stopped = { readonly kind: 'stopped' };

export type ApiLimits = {
  /** Until the credentials are there: a plug-in of a kubeconfig asks somebody else for them. */
  readonly credentialsMs: number;
  readonly connectMs: number;
  /** From connected to the head of the answer: a list of a big fleet takes its time. */
  readonly headMs: number;
  /** Without a byte for so long a connection is dead: an idle watch has a bookmark every minute. */
  readonly idleMs: number;
  readonly listMaxBytes: number;
  /** An object has at most 1.5 MiB in etcd. */
  readonly lineMaxBytes: number;
};

export const API_LIMITS: ApiLimits = {
  credentialsMs: 30_000,
  connectMs: 10_000,
  headMs: 65_000,
  idleMs: 80_000,
  listMaxBytes: 64 * 1024 * 1024,
  lineMaxBytes: 8 * 1024 * 1024,
};

type CallOptions = {
  readonly signal: AbortSignal;
  /** Called when the head says 200 and with every chunk. */
  readonly onHeard: () => void;
};

export type ApiClient = {
  /** @returns the body as JSON */
  get(
    path: string,
    options: CallOptions,
  ): Promise<{ readonly kind: 'json'; readonly json: unknown } | ApiFailure | Stopped>;
  /**
   * A stream of lines; `onLines` gets all that became complete with one chunk.
   * @param options.longestMs after so long it is ended like an end by the server
   */
  stream(
    path: string,
    options: CallOptions & { readonly longestMs: number; onLines(lines: readonly string[]): 'more' | 'enough' },
  ): Promise<{ readonly kind: 'ended' } | ApiFailure | Stopped>;
};

export function createApiClient(
  { access, clock }: { readonly access: ApiAccess; readonly clock: Clock },
  limits: ApiLimits = API_LIMITS,
): ApiClient {
  async function call(path: string, options: CallOptions, longestMs: number, body: BodyReader): Promise<Ended> {
    const given = await credentialsOf({ access, clock, limits }, options.signal);
    if (given.kind !== 'given') return given;
    return exchange({ access, credentials: given.credentials, clock, limits }, path, options, longestMs, body);
  }

  return {
    async get(path, options) {
      const body = createWholeBody(limits.listMaxBytes);
      // API servers give a list a minute, so a longer one is a connection that drips.
      const end = await call(path, options, limits.connectMs + limits.headMs, body);
      if (end.kind !== 'ended') return end;
      try {
        return { kind: 'json', json: JSON.parse(body.text()) as unknown };
      } catch (error) {
        return failed('bad_answer', `the answer must be JSON: ${errorText(error)}`);
      }
    },
    stream: (path, options) =>
      call(path, options, options.longestMs, createLineBody(limits.lineMaxBytes, options.onLines)),
  };
}

type Ended = { readonly kind: 'ended' } | ApiFailure | Stopped;
const STOPPED: Stopped = { kind: 'stopped' };
const STATUS_MAX_BYTES = 64 * 1024;
/** A mistaken or hostile header must not stop discovery for an hour. */
const RETRY_AFTER_MAX_MS = 60_000;
const TCP_KEEP_ALIVE_MS = 15_000;

/** Takes chunks; says what ends the exchange, null = nothing yet. */
type BodyReader = { take(chunk: Buffer): ApiFailure | 'enough' | null };

type Line = {
  readonly access: ApiAccess;
  readonly credentials: ApiCredentials;
  readonly clock: Clock;
  readonly limits: ApiLimits;
};

type Given = { readonly kind: 'given'; readonly credentials: ApiCredentials };

/** What comes too late is not used; whoever brings it cannot be told. */
function credentialsOf(
  { access, clock, limits }: Omit<Line, 'credentials'>,
  signal: AbortSignal,
): Promise<Given | ApiFailure | Stopped> {
  if (signal.aborted) return Promise.resolve(STOPPED);
  return new Promise((resolve) => {
    const end = (result: Given | ApiFailure | Stopped): void => {
      timer.cancel();
      signal.removeEventListener('abort', onAbort);
      resolve(result);
    };
    const onAbort = (): void => end(STOPPED);
    const onLate = (): void => end(failed('credentials', `no credentials within ${limits.credentialsMs} ms`));
    const timer = clock.after(limits.credentialsMs, onLate);
    signal.addEventListener('abort', onAbort, { once: true });
    access.credentials().then(
      (credentials) => end({ kind: 'given', credentials }),
      (error: unknown) => end(failed('credentials', `credentials cannot be read: ${errorText(error)}`)),
    );
  });
}

function exchange(line: Line, path: string, options: CallOptions, longestMs: number, body: BodyReader): Promise<Ended> {
  const { clock, limits } = line;
  const { signal, onHeard } = options;
  return new Promise((resolve) => {
    let settled = false;
    let request: ClientRequest | null = null;
    /** What is waited for now; the watchdog looks at it. */
    let wait = { ms: limits.connectMs, sinceMs: clock.nowMs(), what: 'no connection' };
    const beganMs = clock.nowMs();

    // First the result, then the end of the connection: what that end fires must not replace the result.
    const settle = (end: Ended): void => {
      if (settled) return;
      settled = true;
      watchdog.cancel();
      signal.removeEventListener('abort', onAbort);
      resolve(end);
      request?.destroy();
    };
    const onAbort = (): void => settle(STOPPED);
    const onError = (error: unknown): void => settle(failed(causeOf(error), errorText(error)));
    const waitFor = (ms: number, what: string): void => {
      wait = { ms, sinceMs: clock.nowMs(), what };
      watchdog.cancel();
      watchdog = clock.after(Math.min(ms, longestMs), watch);
    };
    // One timer for the whole exchange instead of one per chunk; never a timeout of the socket, which would go on
    // counting through an idle watch.
    const watch = (): void => {
      const nowMs = clock.nowMs();
      const restMs = wait.ms - (nowMs - wait.sinceMs);
      const leftMs = longestMs - (nowMs - beganMs);
      if (restMs <= 0) return settle(failed('timeout', `${wait.what} within ${wait.ms} ms`));
      if (leftMs <= 0) return settle({ kind: 'ended' });
      watchdog = clock.after(Math.min(restMs, leftMs), watch);
    };
    let watchdog = clock.after(limits.connectMs, watch);
    signal.addEventListener('abort', onAbort, { once: true });

    const onAnswer = (response: IncomingMessage): void => {
      waitFor(limits.idleMs, 'no byte');
      const isGood = response.statusCode === 200;
      if (isGood) onHeard();
      const reader: BodyReader = isGood ? body : createStatusBody(response, settle);
      response.on('data', (chunk: Buffer) => {
        if (settled) return;
        wait.sinceMs = clock.nowMs();
        if (isGood) onHeard();
        const verdict = reader.take(chunk);
        if (verdict !== null) settle(verdict === 'enough' ? { kind: 'ended' } : verdict);
      });
      response.on('end', () => {
        if (isGood) settle(response.complete ? { kind: 'ended' } : failed('reset', 'the answer is cut off'));
      });
      response.on('error', onError);
      response.on('close', () => settle(failed('reset', 'the connection was closed in the middle of the answer')));
    };

    try {
      request = send(line, path);
    } catch (error) {
      return settle(failed('bad_answer', errorText(error)));
    }
    request.on('error', onError);
    request.on('response', onAnswer);
    request.on('socket', (socket: Socket) => {
      socket.setKeepAlive(true, TCP_KEEP_ALIVE_MS);
      const isTls = line.access.server.protocol === 'https:';
      socket.once(isTls ? 'secureConnect' : 'connect', () => waitFor(limits.headMs, 'no answer'));
    });
    request.end();
  });
}

function send({ access, credentials }: Line, path: string): ClientRequest {
  const { server } = access;
  const url = new URL(server.pathname.replace(/\/$/, '') + path, server);
  const headers = { accept: 'application/json', 'user-agent': 'warmpath', ...credentials.headers };
  if (url.protocol === 'https:') return httpsRequest(url, { agent: false, headers, ...credentials.tls });
  return httpRequest(url, { agent: false, headers });
}

function createWholeBody(maxBytes: number): BodyReader & { text(): string } {
  const chunks: Buffer[] = [];
  let nBytes = 0;
  return {
    take(chunk) {
      nBytes += chunk.length;
      if (nBytes > maxBytes) return failed('bad_answer', `answer too large: ${nBytes} bytes, limit ${maxBytes}`);
      chunks.push(chunk);
      return null;
    },
    text: () => Buffer.concat(chunks).toString('utf8'),
  };
}

function createLineBody(maxBytes: number, onLines: (lines: readonly string[]) => 'more' | 'enough'): BodyReader {
  const NEWLINE = 0x0a;
  /** Of a line whose end has not come. */
  let parts: Buffer[] = [];
  let nBytes = 0;
  return {
    take(chunk) {
      const lines: string[] = [];
      let from = 0;
      for (let at = chunk.indexOf(NEWLINE); at >= 0; at = chunk.indexOf(NEWLINE, from)) {
        parts.push(chunk.subarray(from, at));
        lines.push((parts.length === 1 ? parts[0]! : Buffer.concat(parts)).toString('utf8'));
        parts = [];
        nBytes = 0;
        from = at + 1;
      }
      if (from < chunk.length) parts.push(chunk.subarray(from));
      nBytes += chunk.length - from;
      if (nBytes > maxBytes) return failed('bad_answer', `watch event too large: ${nBytes} bytes, limit ${maxBytes}`);
      return lines.length > 0 && onLines(lines) === 'enough' ? 'enough' : null;
    },
  };
}

/** Everything but 200: the reason stands in the body, where there is one. */
function createStatusBody(response: IncomingMessage, settle: (end: ApiFailure) => void): BodyReader {
  const code = response.statusCode ?? 0;
  const whole = createWholeBody(STATUS_MAX_BYTES);
  response.on('end', () => settle(failureOf(code, response.headers['retry-after'], whole.text())));
  return {
    take: (chunk) => (whole.take(chunk) === null ? null : failureOf(code, response.headers['retry-after'], '')),
  };
}

function failureOf(code: number, retryAfter: string | undefined, body: string): ApiFailure {
  const seconds = retryAfter !== undefined && /^\d{1,9}$/.test(retryAfter) ? Number(retryAfter) : null;
  const retryAfterMs = seconds === null ? null : Math.min(seconds * 1000, RETRY_AFTER_MAX_MS);
  const message = messageOf(body);
  return { ...failed(causeOfStatus(code), message === '' ? `status ${code}` : message), retryAfterMs };
}

/** A proxy in front of an API server answers in HTML; that is not repeated. */
function messageOf(body: string): string {
  try {
    return statusOf(JSON.parse(body)).message;
  } catch {
    return '';
  }
}

function causeOfStatus(code: number): FailureCause {
  switch (code) {
    case 401:
      return 'unauthorized';
    case 403:
      return 'forbidden';
    case 404:
      return 'not_found';
    case 410:
      return 'expired';
    case 429:
      return 'throttled';
    case 400:
    case 405:
    case 415:
    case 422:
    case 501:
      return 'invalid';
    default:
      return code >= 500 ? 'server_error' : 'bad_answer';
  }
}

const UNREACHABLE = ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH', 'EADDRNOTAVAIL'];

function causeOf(error: unknown): FailureCause {
  const code = typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : '';
  if (UNREACHABLE.includes(code)) return 'unreachable';
  if (code === 'ETIMEDOUT') return 'timeout';
  if (code.startsWith('HPE_')) return 'bad_answer';
  if (/^(?:CERT|ERR_TLS|ERR_SSL|UNABLE_TO|DEPTH_ZERO|SELF_SIGNED|EPROTO)/.test(code)) return 'tls';
  return 'reset';
}

function failed(cause: FailureCause, message: string): ApiFailure {
  return { kind: 'failed', cause, message, retryAfterMs: null };
}
