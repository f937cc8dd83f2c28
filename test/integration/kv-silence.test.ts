/** Connections that fall silent, on a clock of the test's own: a living publisher is told from one behind a dead network. */
import { once } from 'node:events';
import { createServer, type AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from '@jest/globals';
import { createZmtp } from '../../src/kvevents/zmtp.ts';
import { endAfterEach } from '../support/endings.ts';
import { createFakeClock } from '../support/fake-clock.ts';
import { FakePublisher, stored } from '../support/fake-publisher.ts';
import { TcpProxy } from '../support/tcp-proxy.ts';

const atEnd = endAfterEach();
async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 15_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('not within 15 s');
    await delay(2);
  }
}

/** A publisher behind a network that may stall, and a SUB whose time is the test's. */
async function aConnection() {
  const publisher = await FakePublisher.start();
  const proxy = await TcpProxy.to(publisher.endpoint);
  const clock = createFakeClock();
  const heard: string[] = [];
  const connection = createZmtp(clock).connect(`tcp://${proxy.address}`, 'SUB', {
    onUp: () => heard.push('up'),
    onMessage: (frames) => heard.push(`${frames.length} frames`),
    onDown: () => heard.push('down'),
  });
  atEnd(
    () => publisher.stop(),
    () => proxy.stop(),
    () => connection.close(),
  );
  /** As the ingest thread ticks, with time for answers to come. */
  const pass = async (ms: number): Promise<void> => {
    for (let passed = 0; passed < ms; passed += 500) {
      clock.advance(500);
      connection.tick();
      await delay(5);
    }
  };
  return { publisher, proxy, clock, connection, heard, pass };
}

test('an idle publisher answers heartbeats and stays connected', async () => {
  const { publisher, heard, pass } = await aConnection();
  await until(() => heard.includes('up'));
  // An answer may be late on a busy machine: the limit lies beyond one round of questions.
  for (let round = 0; round < 10; round++) {
    await pass(2500);
    await delay(50);
  }
  expect(heard).toEqual(['up']);
  await until(() => {
    void publisher.publish(stored([1], null, [1]));
    return heard.includes('3 frames');
  });
});

test('a network that stands still ends the connection after some seconds', async () => {
  const { proxy, heard, pass } = await aConnection();
  await until(() => heard.includes('up'));
  proxy.stall();
  await pass(7000);
  expect(heard).toEqual(['up']);
  await pass(2000);
  expect(heard).toEqual(['up', 'down']);
});

test('a thread that was busy for long blames nobody for it', async () => {
  const { clock, connection, heard } = await aConnection();
  await until(() => heard.includes('up'));
  clock.advance(60_000);
  connection.tick();
  expect(heard).toEqual(['up']);
});

test('who accepts connections and says nothing is not waited for', async () => {
  const mute = createServer().listen(0, '127.0.0.1');
  await once(mute, 'listening');
  const clock = createFakeClock();
  const heard: string[] = [];
  const connection = createZmtp(clock).connect(`tcp://127.0.0.1:${(mute.address() as AddressInfo).port}`, 'SUB', {
    onUp: () => heard.push('up'),
    onMessage: () => heard.push('message'),
    onDown: (problem) => heard.push(`down ${String(problem)}`),
  });
  atEnd(
    () => mute.close(),
    () => connection.close(),
  );
  await once(mute, 'connection');
  clock.advance(4900);
  connection.tick();
  expect(heard).toEqual([]);
  clock.advance(200);
  connection.tick();
  expect(heard).toEqual(['down null']);
});
