/**
 * HTTP/1.1 exchanges over kept connections, each with a limit on its time and on the size of its answer. Follows no
 * redirect, knows nothing of what is asked. Written for the one thing `serve` does for every prompt; why it is not
 * a library's is told in ARCHITECTURE.md.
 *
 * How many exchanges there are at once is the caller's affair: each has a connection of its own.
 */
import { validateHeaderName, validateHeaderValue } from 'node:http';
import type { Clock, Timer } from '../clock.ts';
import { errorText } from '../errors.ts';
import type { Signal } from '../light-signal.ts';
import { createSharedBuffers, type ConnectionUser, type HttpConnection } from './http-connection.ts';
import { OriginConnections } from './origin-connections.ts';
import type { ResponseReader } from './response-reader.ts';

export type HttpRequest = {
  readonly method: 'GET' | 'POST';
  /** Begins with a slash; as in a URL, so without blanks and letters beyond ASCII. */
  readonly path: string;
  /** Lengths and the host are added. Best the same object every time: its text is remembered. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array | null;
};

export type HttpAnswer =
  /** `date`: that header as it came. `body` is lent: it is overwritten once `understand` has returned. */
  | { readonly kind: 'answer'; readonly status: number; readonly date: string | null; readonly body: Buffer }
  | { readonly kind: 'timeout' }
  /** The caller's signal aborted. */
  | { readonly kind: 'given_up' }
  /** A body of more bytes than allowed, announced or seen. */
  | { readonly kind: 'too_large'; readonly status: number; readonly nBytes: number }
  /** Nobody listens there, or there is no way to it. */
  | { readonly kind: 'refused'; readonly message: string }
  /** No connection, a broken one, or not HTTP. */
  | { readonly kind: 'failed'; readonly message: string };

export type ExchangeLimits = {
  /** From now to the end of the answer, connecting included. */
  readonly timeoutMs: number;
  readonly responseMaxBytes: number;
  readonly signal: Signal | null;
};

export type HttpClient = {
  /**
   * For what may be done twice: where a kept connection turns out to be closed, not a byte of an answer on it, the request is
   * sent once more over a new one.
   *
   * @param origin `http(s)://host[:port]`; anything else has `failed`
   * @param understand called once; rejects with what it throws, and with nothing else
   */
  exchange<T>(
    origin: string,
    request: HttpRequest,
    limits: ExchangeLimits,
    understand: (answer: HttpAnswer) => T,
  ): Promise<T>;
  /** Exchanges under way have `failed`, and later ones do. */
  close(): void;
};

const NOBODY_THERE: ReadonlySet<unknown> = new Set(['ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH']);
const SYSTEM_CA = (): null => null;

/** @param ca of https origins, in PEM, asked for at each connection; null = the system's */
export function createHttpClient(clock: Clock, ca: () => string | null = SYSTEM_CA): HttpClient {
  const buffers = createSharedBuffers();
  const origins = new Map<string, OriginConnections>();
  let isClosed = false;
  let knownHeaders: HttpRequest['headers'] = {};
  let knownLines = '';

  /** Throws what the platform says of a wrong URL. */
  function connectionsOf(origin: string): OriginConnections {
    const known = origins.get(origin);
    if (known !== undefined) return known;
    const url = new URL(origin);
    if (url.protocol !== 'http:' && url.protocol !== 'https:') throw new TypeError(`neither http nor https: ${origin}`);
    const connections = new OriginConnections({ clock, ca, buffers, onEmpty: () => origins.delete(origin) }, url);
    origins.set(origin, connections);
    return connections;
  }

  /** Throws what the platform says of a wrong header. */
  function linesOf(headers: HttpRequest['headers']): string {
    if (headers === knownHeaders) return knownLines;
    let lines = '';
    for (const [name, value] of Object.entries(headers)) {
      validateHeaderName(name);
      validateHeaderValue(name, value);
      lines += `${name}: ${value}\r\n`;
    }
    knownHeaders = headers;
    knownLines = lines;
    return lines;
  }

  function headOf(host: string, { method, path, headers, body }: HttpRequest): string {
    if (!/^\/[!-~]*$/.test(path)) throw new TypeError(`not the path of a URL: ${path}`);
    const length = body === null ? '' : `content-length: ${body.length}\r\n`;
    return `${method} ${path} HTTP/1.1\r\nhost: ${host}\r\n${linesOf(headers)}${length}\r\n`;
  }

  return {
    exchange(origin, request, limits, understand) {
      return new Promise((resolve, reject) => {
        const settle = (answer: HttpAnswer): void => {
          try {
            resolve(understand(answer));
          } catch (error) {
            reject(error as Error);
          }
        };
        if (isClosed) return settle({ kind: 'failed', message: 'closed by us' });
        if (limits.signal?.aborted === true) return settle({ kind: 'given_up' });
        let connections: OriginConnections;
        let head: string;
        try {
          connections = connectionsOf(origin);
          head = headOf(connections.host, request);
        } catch (error) {
          return settle({ kind: 'failed', message: errorText(error) });
        }
        new Exchange(clock, connections, head, request.body, limits, settle).begin();
      });
    },
    close() {
      isClosed = true;
      for (const connections of origins.values()) connections.close();
    },
  };
}

/** A class, as many wait for their answers at a time: one object instead of a function for each of its events. */
class Exchange implements ConnectionUser {
  readonly #connections: OriginConnections;
  readonly #head: string;
  readonly #body: Uint8Array | null;
  readonly #limits: ExchangeLimits;
  readonly #onSettled: (answer: HttpAnswer) => void;
  readonly #onAbort: (() => void) | null;
  readonly #timer: Timer;
  #connection: HttpConnection | null = null;

  constructor(
    clock: Clock,
    connections: OriginConnections,
    head: string,
    body: Uint8Array | null,
    limits: ExchangeLimits,
    onSettled: (answer: HttpAnswer) => void,
  ) {
    this.#connections = connections;
    this.#head = head;
    this.#body = body;
    this.#limits = limits;
    this.#onSettled = onSettled;
    this.#timer = clock.after(limits.timeoutMs, () => this.#giveUp({ kind: 'timeout' }));
    this.#onAbort = limits.signal === null ? null : () => this.#giveUp({ kind: 'given_up' });
    if (this.#onAbort !== null) limits.signal?.addEventListener('abort', this.#onAbort);
  }

  begin(): void {
    this.#send(() => this.#connections.take());
  }

  #send(connect: () => HttpConnection): void {
    try {
      this.#connection = connect();
    } catch (error) {
      // A CA that is none, for one.
      return this.#settle({ kind: 'failed', message: errorText(error) });
    }
    this.#connection.send(this.#head, this.#body, this.#limits.responseMaxBytes, this);
  }

  #giveUp(answer: HttpAnswer): void {
    this.#connection?.destroy();
    this.#settle(answer);
  }

  onAnswer(response: ResponseReader): void {
    const { status, date } = response;
    this.#settle({ kind: 'answer', status, date, body: response.takeBody() });
  }

  onTooLarge({ status, nBytes }: ResponseReader): void {
    this.#settle({ kind: 'too_large', status, nBytes });
  }

  onFailure(error: Error, isUnanswered: boolean): void {
    if (isUnanswered && this.#connection?.isUsed === true) return this.#send(() => this.#connections.connect());
    const isNobody = NOBODY_THERE.has((error as NodeJS.ErrnoException).code);
    this.#settle({ kind: isNobody ? 'refused' : 'failed', message: errorText(error) });
  }

  #settle(answer: HttpAnswer): void {
    this.#connection = null;
    this.#timer.cancel();
    if (this.#onAbort !== null) this.#limits.signal?.removeEventListener('abort', this.#onAbort);
    this.#onSettled(answer);
  }
}
