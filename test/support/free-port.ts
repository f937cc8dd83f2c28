/** A port of 127.0.0.1 that was open a moment ago and where nobody listens now: to be refused at, or to take. */
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';

export async function aFreePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
