/** A TCP relay that does to a connection what networks do: stalls it, cuts it, refuses it, puts bytes into it. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

type Pair = { readonly client: Socket; readonly upstream: Socket };

export class TcpProxy {
  /** `ip:port` */
  readonly address: string;
  private readonly server: Server;
  private readonly pairs = new Set<Pair>();
  private target: { host: string; port: number };
  private mode: 'relays' | 'stalls' | 'refuses' = 'relays';

  private constructor(server: Server, target: { host: string; port: number }) {
    this.server = server;
    this.target = target;
    const { port } = server.address() as AddressInfo;
    this.address = `127.0.0.1:${port}`;
    server.on('connection', (client) => this.accept(client));
  }

  /** @param target `ip:port` or `tcp://ip:port` */
  static async to(target: string): Promise<TcpProxy> {
    const [host, port] = target.replace('tcp://', '').split(':') as [string, string];
    const server = createServer({ noDelay: true });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new TcpProxy(server, { host, port: Number(port) });
  }

  /** Nothing passes in either direction, connections stay open; what was sent comes later. */
  stall(): void {
    this.mode = 'stalls';
    for (const { client, upstream } of this.pairs) {
      client.pause();
      upstream.pause();
    }
  }

  /** Every connection is reset; new ones are too, until `relay`. */
  refuse(): void {
    this.mode = 'refuses';
    this.cut();
  }

  relay(): void {
    this.mode = 'relays';
    for (const { client, upstream } of this.pairs) {
      client.resume();
      upstream.resume();
    }
  }

  /** Resets the connections there are. */
  cut(): void {
    for (const { client, upstream } of [...this.pairs]) {
      client.resetAndDestroy();
      upstream.destroy();
    }
    this.pairs.clear();
  }

  /** Bytes that the other end never sent, in the middle of what it did send. */
  inject(bytes: Uint8Array): void {
    for (const { client } of this.pairs) client.write(bytes);
  }

  async stop(): Promise<void> {
    this.cut();
    this.server.close();
    await once(this.server, 'close');
  }

  private accept(client: Socket): void {
    client.on('error', () => undefined);
    if (this.mode === 'refuses') {
      client.resetAndDestroy();
      return;
    }
    const upstream = connect({ ...this.target, noDelay: true });
    const pair: Pair = { client, upstream };
    this.pairs.add(pair);
    const end = (): void => {
      this.pairs.delete(pair);
      client.destroy();
      upstream.destroy();
    };
    upstream.on('error', end);
    for (const [from, to] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      from.on('data', (bytes) => {
        if (!to.write(bytes)) from.pause();
      });
      to.on('drain', () => {
        if (this.mode !== 'stalls') from.resume();
      });
      from.on('close', end);
    }
    if (this.mode === 'stalls') {
      client.pause();
      upstream.pause();
    }
  }
}
