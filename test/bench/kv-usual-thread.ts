/** An ingest thread as it is usually written: one socket per publisher, msgpackr, `Map<bigint, Set<string>>`. */
import { parentPort, workerData } from 'node:worker_threads';
import { Subscriber } from 'zeromq';
import { createUsualIndex } from './kv-usual.ts';

const index = createUsualIndex();
const sockets = (workerData as readonly string[]).map((endpoint) => {
  const socket = new Subscriber({ receiveHighWaterMark: 0, linger: 0 });
  socket.subscribe('');
  socket.connect(endpoint);
  void follow(socket, endpoint);
  return socket;
});

async function follow(socket: Subscriber, pod: string): Promise<void> {
  for await (const [, , payload] of socket) index.ingest(payload!, pod);
}

parentPort!.once('message', () => {
  for (const socket of sockets) socket.close();
});
