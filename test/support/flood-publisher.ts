/** A process that publishes as fast as it can, when told to: `fork` it; it says where, and takes how many. */
import { Publisher } from 'zeromq';

const socket = new Publisher({ sendHighWaterMark: 0, linger: 0 });
await socket.bind('tcp://127.0.0.1:*');
let seq = 0n;
process.on('message', (nMessages: number) => {
  void (async () => {
    for (let i = 0; i < nMessages; i++) {
      const frame = Buffer.alloc(8);
      frame.writeBigUInt64BE(seq++);
      await socket.send(['', frame, 'x']);
    }
  })();
});
process.on('disconnect', () => {
  socket.close();
  process.exit(0);
});
process.send!(socket.lastEndpoint);
