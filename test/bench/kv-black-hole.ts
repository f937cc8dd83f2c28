/** A port whose packets are dropped once its queue is full, as behind a dead network: `fork` it, then stop it with SIGSTOP. */
import { createServer, type AddressInfo } from 'node:net';

const server = createServer();
server.listen({ port: 0, host: '0.0.0.0', backlog: 1 }, () => process.send!((server.address() as AddressInfo).port));
process.on('disconnect', () => process.exit(0));
