/** A pod that is no engine: says what it received, answers slowly, or fails, as the path asks it to. */
import { createHash } from 'node:crypto';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export type EchoUpstream = {
  readonly address: string;
  /** Requests of clients that reached it, and answers being written now. */
  nRequests(): number;
  nOpen(): number;
  stop(): Promise<void>;
};

export type Echo = { readonly bytes: number; readonly md5: string; readonly headers: Record<string, string> };

/**
 * `/slow?ms=…` answers after that time; `/stream?ms=…` sends 10 pieces over it; `/hold` never comes to its end; `/cut` dies in the middle of its answer,
 * `/reset` before it; everything else answers with an `Echo`.
 */
export async function startEchoUpstream(): Promise<EchoUpstream> {
  let nRequests = 0;
  let nOpen = 0;
  const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    // Warmpath itself asks every pod for its metrics.
    if (request.url !== '/metrics') nRequests += 1;
    nOpen += 1;
    response.on('close', () => (nOpen -= 1));
    const hash = createHash('md5');
    let bytes = 0;
    request.on('data', (chunk: Buffer) => {
      hash.update(chunk);
      bytes += chunk.length;
    });
    request.on('end', () => {
      const url = new URL(request.url ?? '/', 'http://upstream');
      const ms = Number(url.searchParams.get('ms') ?? 0);
      if (url.pathname === '/reset') return void request.socket.resetAndDestroy();
      if (url.pathname === '/slow') return void setTimeout(() => response.end('slow'), ms);
      if (url.pathname === '/hold') return void response.write('the beginning');
      if (url.pathname === '/stream') return stream(response, ms);
      if (url.pathname === '/cut') {
        response.write('the beginning of');
        return void setTimeout(() => request.socket.destroy(), 20);
      }
      response.end(JSON.stringify({ bytes, md5: hash.digest('hex'), headers: request.headers }));
    });
  });
  server.listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    nRequests: () => nRequests,
    nOpen: () => nOpen,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function stream(response: ServerResponse, ms: number): void {
  let n = 0;
  const timer = setInterval(() => {
    response.write(`${n} `);
    if (++n < 10) return;
    clearInterval(timer);
    response.end('whole');
  }, ms / 10);
  response.on('close', () => clearInterval(timer));
}
