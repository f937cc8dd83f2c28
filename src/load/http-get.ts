/**
 * One GET with a limit on its time and on the size of its answer. Never rejects, follows no redirect, repeats nothing.
 * Tells a port nobody listens on from every other failure: that one says the server is not there.
 */
import { Agent, type Dispatcher } from 'undici';
import type { Clock } from '../clock.ts';
import { errorText, WarmpathError } from '../errors.ts';

export type GetAnswer =
  /** `date`: that header as it came. */
  | { readonly kind: 'page'; readonly body: Buffer; readonly date: string | null }
  /** Another status than 200. */
  | { readonly kind: 'status'; readonly status: number }
  | { readonly kind: 'timeout' }
  | { readonly kind: 'too_large' }
  /** Nobody listens there, or there is no way to it. */
  | { readonly kind: 'refused' }
  /** A broken connection, or not HTTP. */
  | { readonly kind: 'failed'; readonly message: string };

export type GetLimits = { readonly timeoutMs: number; readonly maxBytes: number };

export type Get = (origin: string, path: string) => Promise<GetAnswer>;

const NOBODY_THERE: ReadonlySet<unknown> = new Set(['ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH']);

export type HttpGet = { readonly get: Get; close(): Promise<void> };

/** Below the 5 s after which uvicorn closes idle connections, so that a reading never meets a closing one. */
const KEEP_ALIVE_MS = 4000;

/** One connection per origin, kept between readings. */
export function createHttpGet(clock: Clock, limits: GetLimits): HttpGet {
  const agent = new Agent({
    connections: 1,
    pipelining: 1,
    keepAliveTimeout: KEEP_ALIVE_MS,
    connect: { timeout: limits.timeoutMs },
  });
  return { get: createGet(agent, clock, limits), close: () => agent.destroy() };
}

/** The dispatch method is used directly: a stream per answer would cost more than the answer. */
function createGet(dispatcher: Dispatcher, clock: Clock, { timeoutMs, maxBytes }: GetLimits): Get {
  return (origin, path) =>
    new Promise((resolve) => {
      let settled = false;
      let request: Dispatcher.DispatchController | null = null;
      let nBytes = 0;
      let chunks: Buffer[] = [];
      let date: string | null = null;

      const settle = (answer: GetAnswer): void => {
        if (settled) return;
        settled = true;
        timer.cancel();
        chunks = [];
        resolve(answer);
      };
      const giveUp = (answer: GetAnswer): void => {
        settle(answer);
        // Without a connection yet there is nothing to abort; `onRequestStart` does it then.
        request?.abort(new WarmpathError('io_failed', `reading given up: ${answer.kind}`));
      };
      const timer = clock.after(timeoutMs, () => giveUp({ kind: 'timeout' }));

      const handler: Dispatcher.DispatchHandler = {
        onRequestStart(controller) {
          request = controller;
          if (settled) controller.abort(new WarmpathError('io_failed', 'reading given up before it was sent'));
        },
        onResponseStart(_controller, status, headers) {
          if (status > 200) return giveUp({ kind: 'status', status });
          if (typeof headers.date === 'string') date = headers.date;
          if (Number(headers['content-length'] ?? 0) > maxBytes) giveUp({ kind: 'too_large' });
        },
        onResponseData(_controller, chunk) {
          if (settled) return;
          nBytes += chunk.length;
          if (nBytes > maxBytes) return giveUp({ kind: 'too_large' });
          chunks.push(chunk);
        },
        onResponseEnd() {
          settle({ kind: 'page', body: chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks), date });
        },
        onResponseError(_controller, error) {
          const isNobody = NOBODY_THERE.has((error as NodeJS.ErrnoException).code);
          settle(isNobody ? { kind: 'refused' } : { kind: 'failed', message: errorText(error) });
        },
      };
      try {
        dispatcher.dispatch({ origin, path, method: 'GET', headersTimeout: 0, bodyTimeout: 0 }, handler);
      } catch (error) {
        settle({ kind: 'failed', message: errorText(error) });
      }
    });
}
