/** What is no ZMTP 3 peer, over real sockets: dialled or dialling in, it is told by name and nothing of it is taken. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { afterEach, expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import { errorText } from '../../src/errors.ts';
import { createTopicListeners } from '../../src/kvevents/topic-listeners.ts';
import { createZmtp, type ZmtpRole } from '../../src/kvevents/zmtp.ts';

const ends: (() => void)[] = [];
afterEach(() => ends.splice(0).forEach((end) => end()));

function greeting({ major = 3, mechanism = 'NULL' } = {}): Buffer {
  const bytes = Buffer.alloc(64);
  bytes.set([0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, major, 0]);
  bytes.write(mechanism, 12, 'latin1');
  return bytes;
}

function command(name: string, body = Buffer.alloc(0)): Buffer {
  return Buffer.concat([Buffer.from([4, 1 + name.length + body.length, name.length]), Buffer.from(name), body]);
}

const ready = (type: string): Buffer =>
  command(
    'READY',
    Buffer.concat([
      Buffer.from([11]),
      Buffer.from('Socket-Type'),
      Buffer.from([0, 0, 0, type.length]),
      Buffer.from(type),
    ]),
  );

const HOSTILE: [string, Buffer, RegExp][] = [
  ['another protocol', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'.padEnd(64)), /does not begin as ZMTP/],
  ['ZMTP 2', greeting({ major: 2 }), /ZMTP 2, expected 3/],
  ['a mechanism we do not speak', greeting({ mechanism: 'CURVE' }), /mechanism "CURVE", expected NULL/],
  ['a refusal', Buffer.concat([greeting(), command('ERROR', Buffer.from('\x03bad'))]), /refused by the peer: "bad"/],
  ['another command first', Buffer.concat([greeting(), command('HELLO')]), /"HELLO", expected READY/],
  ['a message too early', Buffer.concat([greeting(), Buffer.from([0, 1, 7])]), /a message before READY/],
  ['flags nobody has defined', Buffer.concat([greeting(), Buffer.from([9, 1, 7])]), /frame flags 9/],
  [
    'a property cut off',
    Buffer.concat([greeting(), command('READY', Buffer.from([200, 1]))]),
    /ends inside a property/,
  ],
  ['a value cut off', Buffer.concat([greeting(), command('READY', Buffer.from([1, 65, 0, 0, 9, 9]))]), /ends inside/],
  ['a socket of another kind', Buffer.concat([greeting(), ready('PULL')]), /a PULL socket, expected/],
  [
    'a frame of a terabyte',
    Buffer.concat([greeting(), ready('PUB'), Buffer.from([2, 0, 0, 1, 0, 0, 0, 0, 0])]),
    /1099511627776 bytes in a message/,
  ],
  [
    'frames without end',
    Buffer.concat([greeting(), ready('PUB'), ...Array.from({ length: 70 }, () => Buffer.from([1, 1, 7]))]),
    /more than 64 frames/,
  ],
];

test.each(HOSTILE)('dialled: %s', async (_what, bytes, expected) => {
  const server = createServer((socket) => void socket.on('error', () => undefined).write(bytes));
  ends.push(() => server.close());
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  expect(await problemOf(`tcp://127.0.0.1:${port}`, 'SUB')).toMatch(expected);
});

test.each(HOSTILE)('dialling in: %s', async (_what, bytes, expected) => {
  const free = createServer().listen(0, '127.0.0.1');
  await once(free, 'listening');
  const { port } = free.address() as AddressInfo;
  free.close();
  await once(free, 'close');
  let taken = 0;
  const problem = new Promise<string>((resolve) => {
    const listeners = createTopicListeners(
      {
        clock: systemClock,
        zmtp: createZmtp(systemClock),
        onUnknownTopic: () => void taken++,
        onFailure: (error) => resolve(errorText(error)),
      },
      `127.0.0.1:${port}`,
    );
    ends.push(() => listeners.close());
    listeners.follow('kv@10.0.0.1:8000', { onMessage: () => void taken++, onPeerLost: () => undefined });
    listeners.tick();
  });
  const peer: Socket = connect(port, '127.0.0.1').on('error', () => undefined);
  ends.push(() => void peer.destroy());
  peer.write(bytes);
  expect(await problem).toMatch(expected);
  expect(taken).toBe(0);
});

test('an endpoint that cannot be dialled is named', () => {
  expect(() => createZmtp(systemClock).connect('udp://127.0.0.1:1', 'SUB', NOTHING)).toThrow(
    'not an endpoint: "udp://127.0.0.1:1", expected tcp://HOST:PORT',
  );
});

const NOTHING = { onUp: () => undefined, onMessage: () => undefined, onDown: () => undefined };

function problemOf(endpoint: string, role: ZmtpRole): Promise<string> {
  return new Promise((resolve) => {
    const connection = createZmtp(systemClock).connect(endpoint, role, {
      ...NOTHING,
      onDown: (problem) => resolve(problem === null ? 'just gone' : errorText(problem)),
    });
    ends.push(() => connection.close());
  });
}
