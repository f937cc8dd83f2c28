/** Peers of a ZMTP 3 connection made by hand, byte by byte, for what zeromq would never send; and words to make them of. */
import { once } from 'node:events';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export function greeting({ major = 3, mechanism = 'NULL' } = {}): Buffer {
  const bytes = Buffer.alloc(64);
  bytes.set([0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, major, 0]);
  bytes.write(mechanism, 12, 'latin1');
  return bytes;
}

/** @param flags 1: more frames follow; 4: a command. Whether the length is long is seen to. */
export function frame(flags: number, body: Uint8Array): Buffer {
  if (body.length < 256) return Buffer.concat([Buffer.from([flags, body.length]), body]);
  const header = Buffer.alloc(9);
  header[0] = flags | 2;
  header.writeBigUInt64BE(BigInt(body.length), 1);
  return Buffer.concat([header, body]);
}

export function command(name: string, body: Uint8Array = Buffer.alloc(0)): Buffer {
  return frame(4, Buffer.concat([Buffer.from([name.length]), Buffer.from(name), body]));
}

/** @param context comes back with the answer */
export const ping = (context: Uint8Array): Buffer => command('PING', Buffer.concat([Buffer.from([0, 80]), context]));

export function ready(type: string): Buffer {
  const [name, value] = [Buffer.from('Socket-Type'), Buffer.from(type)];
  return command('READY', Buffer.concat([Buffer.from([11]), name, Buffer.from([0, 0, 0, value.length]), value]));
}

export function message(...frames: readonly Uint8Array[]): Buffer {
  return Buffer.concat(frames.map((body, i) => frame(i < frames.length - 1 ? 1 : 0, body)));
}

export function seqOf(seq: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(seq));
  return bytes;
}

/** A port that treats every connection as it is told to. */
export class ZmtpPeer {
  readonly endpoint: string;
  /** So far. */
  nConnections = 0;
  private readonly server: Server;
  private readonly sockets = new Set<Socket>();
  private readonly received = new Map<Socket, Buffer>();

  private constructor(server: Server, treat: (socket: Socket, nth: number, peer: ZmtpPeer) => void) {
    this.server = server;
    this.endpoint = `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on('connection', (socket) => {
      this.sockets.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => this.sockets.delete(socket));
      treat(socket, this.nConnections++, this);
    });
  }

  /** @param treat is given every connection, and which one it is, from 0 */
  static async listen(treat: (socket: Socket, nth: number, peer: ZmtpPeer) => void): Promise<ZmtpPeer> {
    const server = createServer({ noDelay: true }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new ZmtpPeer(server, treat);
  }

  /** Keeps what comes by this connection, for `has`. */
  reads(socket: Socket): void {
    socket.on('data', (bytes) => this.received.set(socket, Buffer.concat([this.heard(socket), bytes])));
  }

  heard(socket: Socket): Buffer {
    return this.received.get(socket) ?? Buffer.alloc(0);
  }

  /** Whether these bytes have come, by any connection that is read. */
  has(bytes: Buffer): boolean {
    return [...this.received.values()].some((heard) => heard.includes(bytes));
  }

  async stop(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
    await once(this.server, 'close');
  }
}
