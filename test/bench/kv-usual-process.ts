/**
 * Ingest as it is usually written: one socket per publisher, msgpackr, `Map<bigint, Set<string>>`. A process of its own, as
 * zeromq's sockets outlive no thread. Told the endpoints; says what CPU it took whenever it is asked.
 */
import { Subscriber } from 'zeromq';
import { createUsualIndex } from './kv-usual.ts';

const index = createUsualIndex();
const sockets: Subscriber[] = [];

async function follow(socket: Subscriber, pod: string): Promise<void> {
  for await (const [, , payload] of socket) index.ingest(payload!, pod);
}

process.on('message', (order: readonly string[] | 'cpu') => {
  if (order === 'cpu') {
    const { user, system } = process.cpuUsage();
    process.send!(user + system);
    return;
  }
  for (const endpoint of order) {
    const socket = new Subscriber({ receiveHighWaterMark: 0, linger: 0 });
    socket.subscribe('');
    socket.connect(endpoint);
    sockets.push(socket);
    void follow(socket, endpoint);
  }
});
process.on('disconnect', () => {
  for (const socket of sockets) socket.close();
});
