/** The server under a simulated pod: listening, whole bodies, an abrupt end, and answers as JSON or text. No routes. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { WarmpathError, errorText } from '../errors.ts';

export type Exchange = { readonly request: IncomingMessage; readonly response: ServerResponse; readonly body: Buffer };

export type HttpListener = {
  /** @returns `host:port` as it can be connected to */
  start(): Promise<string>;
  /** Ends ('close') or resets ('reset') every connection, answered or not. Resolves when the port is free. */
  stop(how: 'close' | 'reset'): Promise<void>;
};

const BODY_MAX_BYTES = 64 * 1024 * 1024;

/** @param options port 0 picks a free one */
export function createHttpListener(
  options: { readonly host: string; readonly port: number },
  serve: (exchange: Exchange) => void,
): HttpListener {
  let server: Server | null = null;
  const sockets = new Set<Socket>();
  return {
    async start() {
      // Without an idle limit, so that a client's pool never meets a connection that is just being closed.
      const listening = createServer({ keepAliveTimeout: 0, requestTimeout: 0 }, (request, response) => {
        collectBody(request, response, (body) => serve({ request, response, body }));
      });
      listening.on('connection', (socket) => {
        socket.setNoDelay();
        sockets.add(socket);
        socket.once('close', () => sockets.delete(socket));
      });
      await listen(listening, options.host, options.port);
      server = listening;
      const bound = listening.address();
      const port = typeof bound === 'object' && bound !== null ? bound.port : options.port;
      return `${options.host.includes(':') ? `[${options.host}]` : options.host}:${port}`;
    },

    async stop(how) {
      if (server === null) return;
      const closing = server;
      server = null;
      await new Promise<void>((resolve) => {
        closing.close(() => resolve());
        for (const socket of sockets) {
          if (how === 'reset') socket.resetAndDestroy();
          else socket.destroy();
        }
      });
    },
  };
}

export function sendJson(response: ServerResponse, status: number, value: unknown): void {
  sendText(response, status, 'application/json', JSON.stringify(value));
}

export function sendText(response: ServerResponse, status: number, contentType: string, text: string): void {
  const bytes = Buffer.from(text);
  response.writeHead(status, { 'content-type': contentType, 'content-length': bytes.length });
  response.end(bytes);
}

/** vLLM's error body: OpenAI's, with the status as its code. */
export function sendErrorBody(
  response: ServerResponse,
  status: number,
  error: { readonly message: string; readonly type: string; readonly param: string | null },
): void {
  const { message, type, param } = error;
  sendJson(response, status, { error: { message, type, param, code: status } });
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      reject(
        cause.code === 'EADDRINUSE'
          ? new WarmpathError('address_in_use', `Address in use: http://${host}:${port}`, { cause })
          : new WarmpathError('io_failed', `Cannot listen on http://${host}:${port}: ${errorText(cause)}`, { cause }),
      );
    });
    server.listen(port, host, resolve);
  });
}

function collectBody(request: IncomingMessage, response: ServerResponse, done: (body: Buffer) => void): void {
  const chunks: Buffer[] = [];
  let nBytes = 0;
  request.on('data', (chunk: Buffer) => {
    nBytes += chunk.length;
    if (nBytes <= BODY_MAX_BYTES) chunks.push(chunk);
  });
  request.once('end', () => {
    if (nBytes <= BODY_MAX_BYTES) return done(Buffer.concat(chunks));
    const message = `Body too large: ${nBytes} bytes, limit ${BODY_MAX_BYTES}`;
    return sendErrorBody(response, 413, { message, type: 'BadRequestError', param: null });
  });
  // A client that goes away is noticed through the response's close event.
  request.on('error', () => response.destroy());
}
