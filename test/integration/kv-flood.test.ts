/** A source that sends far more than can be applied: what it costs the others, and the thread that serves requests. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from '@jest/globals';
import { systemClock } from '../../src/clock.ts';
import type { EndpointId, EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createEventConnection } from '../../src/kvevents/event-connection.ts';
import { createIngest } from '../../src/kvevents/ingest.ts';
import { createRedials } from '../../src/kvevents/redials.ts';
import { createReplayPermits } from '../../src/kvevents/replay-permits.ts';
import { createZmtp } from '../../src/kvevents/zmtp.ts';
import { silentLog } from '../../src/log.ts';
import { createHashSeed } from '../../src/prefix/block-hash.ts';
import { endAfterEach } from '../support/endings.ts';
import { FakePublisher, stored } from '../support/fake-publisher.ts';

/** Of a publisher that is stopped while it sends. */
const cutOff = (): void => undefined;
const TURN_MESSAGES = 256;
const atEnd = endAfterEach();

async function aPublisher(): Promise<FakePublisher> {
  const publisher = await FakePublisher.start();
  atEnd(() => publisher.stop());
  return publisher;
}

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 15_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('not within 15 s');
    await delay(2);
  }
}

test('one source is not read to its end while another one has something to say', async () => {
  const zmtp = createZmtp(systemClock);
  const follow = (endpoint: string, apply: () => void): void => {
    const nothing = (): void => undefined;
    const connection = createEventConnection(
      {
        clock: systemClock,
        zmtp,
        permits: createReplayPermits(1, systemClock),
        redials: createRedials(),
        apply() {
          apply();
          return 'applied';
        },
        isBatch: () => true,
        clear: nothing,
        onStanding: nothing,
        onChange: nothing,
        onGap: nothing,
        onRestart: nothing,
        onReplay: nothing,
        onGarbage: nothing,
        onFailure: nothing,
      },
      { endpoint, replayEndpoint: null },
    );
    connection.open();
    atEnd(() => connection.close());
  };
  const flood = fork(new URL('../support/flood-publisher.ts', import.meta.url));
  atEnd(async () => {
    flood.disconnect();
    await once(flood, 'exit');
  });
  const [floodEndpoint] = (await once(flood, 'message')) as [string];
  const quiet = await aPublisher();
  const nFlood = 800;
  let isFlooding = false;
  let nFloodApplied = 0;
  let nQuietApplied = 0;
  /** Batches of the flood that went before the other source's tenth, which was sent after the flood's tenth. */
  let nWaitedFor = -1;
  const burn = (ms: number): void => {
    const endMs = performance.now() + ms;
    while (performance.now() < endMs);
  };
  follow(floodEndpoint, () => {
    nFloodApplied++;
    if (!isFlooding) return;
    // The first one takes so long that the rest has come.
    burn(nFloodApplied === 1 ? 200 : 1);
    if (nFloodApplied === 10) for (let i = 0; i < 10; i++) quiet.publish(stored([i], null, [i])).catch(cutOff);
  });
  follow(quiet.endpoint, () => {
    if (++nQuietApplied === 10 && isFlooding) nWaitedFor = nFloodApplied;
  });
  // Subscriptions take effect a moment after the connection.
  while (nFloodApplied === 0 || nQuietApplied === 0) {
    flood.send(1);
    await quiet.publish(stored([1], null, [1]));
    await delay(5);
  }
  await delay(20);
  isFlooding = true;
  let least = Infinity;
  for (let round = 0; round < 3 && least >= TURN_MESSAGES; round++) {
    nFloodApplied = nQuietApplied = 0;
    nWaitedFor = -1;
    flood.send(nFlood);
    await until(() => nWaitedFor >= 0 && nFloodApplied === nFlood);
    least = Math.min(least, nWaitedFor);
  }
  // A turn is four of them here, as each takes a millisecond; one read may bring them all.
  expect(least).toBeLessThan(TURN_MESSAGES);
});

test('the serving thread hears of a flood no more often than of a drop', async () => {
  let nHeard = 0;
  let nEvents = 0;
  const reportMs = 50;
  const ingest = createIngest(
    {
      log: silentLog,
      clock: systemClock,
      onCounters({ events }) {
        nHeard++;
        nEvents += events.BlockStored;
      },
    },
    { indexMaxBytes: 16 * 2 ** 20, seed: createHashSeed(), reportMs },
  );
  await ingest.start();
  atEnd(() => ingest.stop());
  const publisher = await aPublisher();
  await ingest.reconcile([
    {
      endpointId: 'flood' as EndpointId,
      slot: 0 as EndpointSlot,
      rank: 0,
      model: 'm',
      kvEvents: { endpoint: publisher.endpoint, replayEndpoint: publisher.replayEndpoint },
      incarnation: '',
    },
  ]);
  await until(() => ingest.statuses()[0]!.trust === 'exact');
  const startMs = performance.now();
  const n = 8000;
  for (let i = 0; i < n; i++) void publisher.publish(stored([i], null, [i]));
  await until(() => nEvents >= n);
  const elapsedMs = performance.now() - startMs;
  expect(nHeard).toBeLessThanOrEqual(elapsedMs / reportMs + 3);
  expect(ingest.statuses()[0]).toMatchObject({ trust: 'exact', lastSeq: String(n - 1) });
});
