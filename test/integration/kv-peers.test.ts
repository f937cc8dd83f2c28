/**
 * Publishers that are not what they should be, dialled or dialling in: each is told by name, counted, tried again later, and
 * neither believed nor allowed to cost its neighbours anything.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import type { IngestSource } from '../../src/kvevents/ingest.ts';
import { createZmtp } from '../../src/kvevents/zmtp.ts';
import { stored } from '../support/fake-publisher.ts';
import { aFreePort } from '../support/free-port.ts';
import { batch, sourceOf, startIngest, tokens, type IngestBench } from '../support/kv-ingest.ts';
import { command, frame, greeting, message, ping, ready, seqOf } from '../support/zmtp-peer.ts';

let bench: IngestBench;
let port: number;

beforeEach(async () => {
  port = await aFreePort();
  bench = await startIngest({ listen: `127.0.0.1:${port}` });
});

afterEach(() => bench.stop());

/** Follows these and a publisher like any other, in slot 0, which must not notice. @returns a check of that */
async function followBeside(...sources: IngestSource[]): Promise<() => Promise<void>> {
  const neighbour = await bench.aPublisher();
  await neighbour.publish(stored([1], null, tokens(0)));
  await bench.ingest.reconcile([sourceOf(0, neighbour.endpoint, neighbour.replayEndpoint), ...sources]);
  await bench.until('the neighbour', () => bench.statusOf(0)?.trust === 'exact');
  return async () => {
    await neighbour.publish(stored([2], 1, tokens(1)));
    await bench.until('the neighbour goes on', () => bench.matched(0, 0, 1) === 2);
    expect(bench.statusOf(0)).toMatchObject({ trust: 'exact', errors: 0, gaps: 0, restarts: 0 });
    expect(bench.ingest.nLost()).toBe(0);
  };
}

/** Says this to the port for publishers, until it is hung up on. */
async function dialIn(bytes: Buffer): Promise<void> {
  for (let isHeard = false; !isHeard; await delay(1)) {
    const peer = connect(port, '127.0.0.1', () => (isHeard = true)).on('error', () => undefined);
    peer.resume().write(bytes);
    await new Promise((resolve) => peer.once('close', resolve));
  }
}

const NOBODY = { state: 'unknown', trust: 'fallback', connection: 'down', nBlocks: 0, lastSeq: null };

/** What the peer sends, and what is said of it. */
const HOSTILE: readonly (readonly [what: string, bytes: Buffer, problem: RegExp])[] = [
  ['another protocol', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'.padEnd(64)), /does not begin as ZMTP/],
  ['a signature that ends wrongly', Buffer.from('ff0000000000000001aa', 'hex'), /does not begin as ZMTP/],
  ['ZMTP 2', greeting({ major: 2 }), /ZMTP 2, expected 3/],
  ['a mechanism we do not speak', greeting({ mechanism: 'CURVE' }), /mechanism "CURVE", expected NULL/],
  ['a refusal', Buffer.concat([greeting(), command('ERROR', Buffer.from('\x03bad'))]), /refused by the peer: "bad"/],
  ['another command first', Buffer.concat([greeting(), command('HELLO')]), /"HELLO", expected READY/],
  ['an empty command', Buffer.concat([greeting(), frame(4, Buffer.alloc(0))]), /command "", expected READY/],
  ['a message too early', Buffer.concat([greeting(), message(Buffer.from('x'))]), /a message before READY/],
  ['flags nobody has defined', Buffer.concat([greeting(), Buffer.from([9, 1, 7])]), /frame flags 9/],
  ['a property cut off', Buffer.concat([greeting(), command('READY', Buffer.from([200, 1]))]), /inside a property/],
  ['a value cut off', Buffer.concat([greeting(), command('READY', Buffer.from([1, 65, 0, 0, 9, 9]))]), /ends inside/],
  ['no socket type', Buffer.concat([greeting(), command('READY')]), /a {2}socket, expected/],
  ['a socket of another kind', Buffer.concat([greeting(), ready('PULL')]), /a PULL socket, expected/],
  [
    'a command without end',
    Buffer.concat([greeting(), ready('PUB'), Buffer.from([6, 0, 0, 0, 0, 0, 1, 0, 0])]),
    /65536 bytes in a command/,
  ],
  [
    'a frame of a terabyte',
    Buffer.concat([greeting(), ready('PUB'), Buffer.from([2, 0, 0, 1, 0, 0, 0, 0, 0])]),
    /1099511627776 bytes in a message/,
  ],
  [
    'frames without end',
    Buffer.concat([greeting(), ready('PUB'), ...Array.from({ length: 70 }, () => frame(1, Buffer.from('x')))]),
    /more than 64 frames/,
  ],
];

test('dialled, each is told by name, tried again, and never believed', async () => {
  const peers = await Promise.all(HOSTILE.map(([, bytes]) => bench.aPeer((socket) => void socket.write(bytes))));
  const isUnharmed = await followBeside(...peers.map(({ endpoint }, i) => sourceOf(1 + i, endpoint)));
  await bench.until('tried again', () => peers.every(({ nConnections }) => nConnections > 1));
  for (const [i, [what, , problem]] of HOSTILE.entries()) {
    // Once, although it happens again and again.
    const ofIt = bench.said.filter((line) => line.startsWith(`${peers[i]!.endpoint} `));
    expect([what, ofIt.length, ...ofIt]).toEqual([what, 1, expect.stringMatching(problem)]);
    // Who says READY is up until the next message.
    if (!/bytes in a|frames/.test(problem.source))
      expect({ what, ...bench.statusOf(1 + i) }).toMatchObject({ what, ...NOBODY });
    expect(bench.statusOf(1 + i)!.nBlocks).toBe(0);
  }
  await bench.until('counted', () => (bench.errors['socket'] ?? 0) >= 2 * HOSTILE.length);
  await isUnharmed();
});

test('dialling in, each is told by name and hung up on; who is followed there does not notice', async () => {
  const a = await bench.aPublisher({ topic: `kv@10.0.0.1:8000@model`, dials: `tcp://127.0.0.1:${port}` });
  const isUnharmed = await followBeside(sourceOf(1, 'kv@10.0.0.1:8000', a.replayEndpoint));
  await bench.until('up', () => {
    void a.publish();
    return bench.statusOf(1)?.trust === 'exact';
  });
  for (const [i, [, bytes, problem]] of HOSTILE.entries()) {
    await dialIn(bytes);
    await bench.until('told', () => bench.said.length === i + 1);
    expect(bench.said[i]).toMatch(problem);
    expect(bench.said[i]).toMatch(new RegExp(`^tcp://127.0.0.1:${port} `));
  }
  await bench.until('counted', () => bench.errors['socket'] === HOSTILE.length);
  await a.publish(stored([1], null, tokens(0)));
  await bench.until('goes on', () => bench.matched(1, 0) === 1);
  expect(bench.statusOf(1)).toMatchObject({ trust: 'exact', errors: 0, restarts: 0 });
  await isUnharmed();
});

test('who dials in wrongly again and again is counted each time and does not fill the log', async () => {
  await bench.ingest.reconcile([sourceOf(0, 'kv@10.0.0.1:8000')]);
  for (let i = 0; i < 60; i++) {
    await dialIn(Buffer.from('GET / HTTP/1.1\r\n\r\n'));
  }
  await bench.until('counted', () => bench.errors['socket'] === 60);
  expect(bench.said).toHaveLength(30);
});

test('a connection that ends anywhere leaves what came whole, and the next one is learnt', async () => {
  const bytes = Buffer.concat([
    greeting(),
    ready('PUB'),
    message(Buffer.from('kv@test'), seqOf(0), batch(stored([1], null, tokens(0)))),
  ]);
  const cuts = Array.from({ length: 60 }, (_, i) => Math.round((i * bytes.length) / 59));
  const peers = await Promise.all(
    cuts.map((cut) =>
      bench.aPeer((socket, nth) => {
        if (nth === 0) socket.end(bytes.subarray(0, cut));
        else socket.write(bytes);
      }),
    ),
  );
  const isUnharmed = await followBeside(...peers.map(({ endpoint }, i) => sourceOf(1 + i, endpoint)));
  await bench.until('learnt', () =>
    peers.every((_, i) => bench.statusOf(1 + i)?.state === 'live' && bench.matched(1 + i, 0) === 1),
  );
  // Gone is not wrong: nothing is held against anybody.
  expect([bench.errors, bench.said]).toEqual([{}, []]);
  expect(peers.map((_, i) => bench.statusOf(1 + i)!.errors)).toEqual(peers.map(() => 0));
  await isUnharmed();
});

test('bytes that come one by one are read like any others, heartbeats between the frames of a message included', async () => {
  const payload = batch(stored([1, 2, 3, 4, 5, 6], null, tokens(0, 1, 2, 3, 4, 5)));
  const long = Buffer.alloc(300, 'c');
  const bytes = Buffer.concat([
    greeting(),
    ready('XPUB'),
    ping(Buffer.from('first')),
    frame(1, Buffer.from('kv@test')),
    ping(long),
    command('NEWS', Buffer.from('nobody knows')),
    frame(1, seqOf(0)),
    frame(0, payload),
  ]);
  const peer = await bench.aPeer((socket, nth, self) => {
    self.reads(socket);
    let at = 0;
    const more = (): void => {
      if (socket.destroyed || at === bytes.length) return;
      socket.write(bytes.subarray(at, ++at));
      setImmediate(more);
    };
    more();
  });
  const isUnharmed = await followBeside(sourceOf(1, peer.endpoint));
  await bench.until('read', () => bench.matched(1, 0, 1, 2, 3, 4, 5) === 6);
  // The context of a heartbeat comes back with its answer, however long it is.
  const pong = (context: Buffer): Buffer => command('PONG', context);
  await bench.until('answered', () => peer.has(pong(Buffer.from('first'))) && peer.has(pong(long)));
  expect([bench.statusOf(1)!.errors, peer.nConnections]).toEqual([0, 1]);
  await isUnharmed();
});

test('a peer that asks for signs of life and reads none is hung up on before they pile up', async () => {
  const many = Buffer.concat(Array.from({ length: 64 }, () => ping(Buffer.alloc(4000))));
  const floods = (socket: Socket): void => {
    socket.pause();
    const more = (): void => {
      while (!socket.destroyed && socket.write(many));
      if (!socket.destroyed) socket.once('drain', more);
    };
    more();
  };
  const peer = await bench.aPeer((socket) => {
    socket.write(Buffer.concat([greeting(), ready('PUB')]));
    floods(socket);
  });
  const isUnharmed = await followBeside(sourceOf(1, peer.endpoint));
  await bench.until('hung up on', () => peer.nConnections > 1);
  expect(bench.said[0]).toBe(`${peer.endpoint} it asks for signs of life and does not read them`);
  await isUnharmed();
});

test('who falls silent is asked for a sign of life, then given up; who gives one stays', async () => {
  const up = Buffer.concat([greeting(), ready('PUB')]);
  const mute = await bench.aPeer(() => undefined);
  const silent = await bench.aPeer((socket, _nth, self) => {
    self.reads(socket);
    socket.write(up);
  });
  const alive = await bench.aPeer((socket) => {
    socket.write(up);
    socket.on('data', (bytes) => {
      if (bytes.includes('PING')) socket.write(command('PONG'));
    });
  });
  const isUnharmed = await followBeside(...[mute, silent, alive].map((peer, i) => sourceOf(1 + i, peer.endpoint)));
  await bench.until('up', () => bench.statusOf(2)?.connection === 'up' && bench.statusOf(3)?.connection === 'up');
  // Without a time to live: libzmq would hang up when we, who only listen, had nothing more to ask within it.
  await bench.until('asked', () => silent.has(command('PING', Buffer.from([0, 0]))));
  await bench.until('given up', () => mute.nConnections > 1 && silent.nConnections > 1);
  expect(alive.nConnections).toBe(1);
  expect(bench.statusOf(1)).toMatchObject(NOBODY);
  expect(bench.statusOf(3)).toMatchObject({ state: 'live', connection: 'up' });
  await isUnharmed();
});

test('addresses that cannot be dialled, names nobody knows, ports nobody listens at', async () => {
  const refused = `tcp://127.0.0.1:${await aFreePort()}`;
  const impossible = ['udp://127.0.0.1:5557', 'tcp://127.0.0.1:99999', 'tcp://127.0.0.1'];
  const endpoints = [...impossible, refused, 'tcp://nobody.invalid:5557'];
  const isUnharmed = await followBeside(...endpoints.map((endpoint, i) => sourceOf(1 + i, endpoint, endpoint)));
  await bench.until('tried', () => endpoints.every((_, i) => bench.statusOf(1 + i)?.connection === 'down'));
  endpoints.forEach((endpoint, i) =>
    expect({ endpoint, ...bench.statusOf(1 + i) }).toMatchObject({ endpoint, ...NOBODY }),
  );
  expect([...bench.said].sort()).toEqual(
    impossible
      .map((endpoint) => `${endpoint} not an endpoint: ${JSON.stringify(endpoint)}, expected tcp://HOST:PORT`)
      .sort(),
  );
  await isUnharmed();
});

test('sockets of this machine are dialled by their path', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'warmpath-'));
  bench.owns({ stop: () => rm(folder, { recursive: true }) });
  const at = { endpoint: `ipc://${join(folder, 'events')}`, replayEndpoint: `ipc://${join(folder, 'replay')}` };
  const publisher = await bench.aPublisher({ at });
  await publisher.publish(stored([1], null, tokens(0)));
  await bench.ingest.reconcile([sourceOf(0, at.endpoint, at.replayEndpoint)]);
  await bench.until('learnt', () => bench.statusOf(0)?.trust === 'exact' && bench.matched(0, 0) === 1);
});

test('an address that is not ours is listened at again and again, and harms nobody', async () => {
  await bench.stop();
  bench = await startIngest({ listen: `192.0.2.1:${port}` });
  const isUnharmed = await followBeside(sourceOf(1, 'kv@10.0.0.1:8000'));
  await bench.until('tried again', () => (bench.errors['socket'] ?? 0) > 1);
  expect(bench.said[0]).toMatch(/^tcp:\/\/192\.0\.2\.1:\d+ listen EADDRNOTAVAIL/);
  expect(bench.statusOf(1)).toMatchObject(NOBODY);
  await isUnharmed();
});

test('a replay port where events are expected is named', async () => {
  const publisher = await bench.aPublisher();
  const isUnharmed = await followBeside(sourceOf(1, publisher.replayEndpoint, publisher.endpoint));
  await bench.until('told', () => bench.said.length === 1);
  expect(bench.said).toEqual([`${publisher.replayEndpoint} a ROUTER socket, expected PUB or XPUB`]);
  expect(bench.statusOf(1)).toMatchObject(NOBODY);
  await isUnharmed();
});

test('unfinished messages together take no more memory than they may: who goes beyond it is hung up on', async () => {
  const maxBytes = 2 ** 20;
  const zmtp = createZmtp(systemClock, maxBytes);
  const begun = Buffer.concat([
    greeting(),
    ready('PUB'),
    Buffer.from([2, 0, 0, 0, 0, 4, 0, 0, 0]),
    Buffer.alloc(400_000),
  ]);
  const peer = await bench.aPeer((socket) => void socket.write(begun));
  const problems: (string | undefined)[] = [];
  const connections = [0, 1, 2, 3, 4].map(() =>
    zmtp.connect(peer.endpoint, 'SUB', {
      onUp: () => undefined,
      onMessage: () => undefined,
      onDown: (problem) => void problems.push(problem?.message),
    }),
  );
  await bench.until('hung up on', () => problems.length >= 3);
  expect(problems).toEqual(problems.map(() => `unfinished messages take more than ${maxBytes} bytes`));
  connections.forEach((connection) => connection.close());
});
