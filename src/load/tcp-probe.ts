/** Whether a connection to an address comes about, and nothing more: not a byte is sent, whoever accepts it does not hear of it. */
import { connect } from 'node:net';
import type { Clock } from '../clock.ts';

/** @param address `ip:port`, an IPv6 address in brackets. Never rejects */
export type TcpProbe = (address: string) => Promise<'accepted' | 'not accepted'>;

export function createTcpProbe(clock: Clock, { timeoutMs }: { readonly timeoutMs: number }): TcpProbe {
  return (address) =>
    new Promise((resolve) => {
      const colon = address.lastIndexOf(':');
      const host = address.slice(0, colon).replace(/^\[(.*)\]$/, '$1');
      const socket = connect({ host, port: Number(address.slice(colon + 1)) });
      const end = (result: 'accepted' | 'not accepted'): void => {
        timer.cancel();
        socket.destroy();
        resolve(result);
      };
      const timer = clock.after(timeoutMs, () => end('not accepted'));
      socket.once('connect', () => end('accepted'));
      // Also what comes after the end: a socket without a listener would end the process.
      socket.on('error', () => end('not accepted'));
    });
}
