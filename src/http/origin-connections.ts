/** Connections to one origin: kept for the next exchange while they are young, made where none is free. */
import { connect as connectTcp, isIP, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { Clock, Timer } from '../clock.ts';
import { HttpConnection, type ConnectionKeeper, type SharedBuffers } from './http-connection.ts';

export type OriginDeps = {
  readonly clock: Clock;
  /** Of an https origin, in PEM; null = the system's. */
  readonly ca: () => string | null;
  readonly buffers: SharedBuffers;
  /** The last connection is gone. */
  readonly onEmpty: () => void;
};

/** Below the 5 s after which uvicorn closes idle connections, so that an exchange rarely meets a closing one. */
const KEEP_ALIVE_MS = 4000;

export class OriginConnections implements ConnectionKeeper {
  /** Of requests. */
  readonly host: string;
  readonly #deps: OriginDeps;
  readonly #url: URL;
  readonly #isTls: boolean;
  readonly #all = new Set<HttpConnection>();
  /** The one used last comes last, and is taken first: the others grow old and are closed. */
  readonly #idle: HttpConnection[] = [];
  #sweep: Timer | null = null;
  #tlsSession: Buffer | undefined;

  constructor(deps: OriginDeps, url: URL) {
    this.#deps = deps;
    this.#url = url;
    this.host = url.host;
    this.#isTls = url.protocol === 'https:';
  }

  take(): HttpConnection {
    const kept = this.#idle.pop();
    if (kept === undefined) return this.connect();
    // The loop may have been too busy to close it in time.
    if (this.#isYoung(kept)) return kept;
    kept.destroy();
    return this.take();
  }

  connect(): HttpConnection {
    const connection = new HttpConnection(
      (onRead) => this.#open(onRead),
      this,
      this.#isTls ? null : this.#deps.buffers,
    );
    this.#all.add(connection);
    return connection;
  }

  onFree(connection: HttpConnection): void {
    connection.idleSinceMs = this.#deps.clock.nowMs();
    this.#idle.push(connection);
    this.#sweep ??= this.#deps.clock.after(KEEP_ALIVE_MS, () => this.#closeOld());
  }

  onGone(connection: HttpConnection): void {
    this.#all.delete(connection);
    const at = this.#idle.indexOf(connection);
    if (at >= 0) this.#idle.splice(at, 1);
    if (this.#all.size === 0) this.#deps.onEmpty();
  }

  close(): void {
    this.#sweep?.cancel();
    for (const connection of this.#all) connection.abort(new Error('closed by us'));
  }

  #isYoung(connection: HttpConnection): boolean {
    return this.#deps.clock.nowMs() < connection.idleSinceMs + KEEP_ALIVE_MS;
  }

  #closeOld(): void {
    const nOld = this.#idle.findIndex((connection) => this.#isYoung(connection));
    for (const connection of this.#idle.splice(0, nOld < 0 ? this.#idle.length : nOld)) connection.destroy();
    const oldest = this.#idle[0];
    const { clock } = this.#deps;
    this.#sweep =
      oldest === undefined
        ? null
        : clock.after(oldest.idleSinceMs + KEEP_ALIVE_MS - clock.nowMs(), () => this.#closeOld());
  }

  #open(onRead: (piece: Buffer) => void): Socket {
    const { hostname, port } = this.#url;
    const isTls = this.#isTls;
    const to = {
      // An IPv6 address comes in brackets.
      host: hostname.replace(/^\[|\]$/g, ''),
      port: port === '' ? (isTls ? 443 : 80) : Number(port),
      noDelay: true,
    };
    const { buffers, ca } = this.#deps;
    if (!isTls) {
      const { received } = buffers;
      const callback = (nBytes: number): boolean => {
        onRead(received.subarray(0, nBytes));
        return true;
      };
      return connectTcp({ ...to, onread: { buffer: received, callback } });
    }
    const pem = ca();
    const socket = connectTls({
      ...to,
      servername: isIP(to.host) === 0 ? to.host : '',
      ALPNProtocols: ['http/1.1'],
      ...(pem === null ? {} : { ca: pem }),
      ...(this.#tlsSession === undefined ? {} : { session: this.#tlsSession }),
    });
    socket.on('data', onRead);
    socket.on('session', (session) => (this.#tlsSession = session));
    return socket;
  }
}
