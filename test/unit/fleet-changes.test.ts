import { describe, expect, test } from '@jest/globals';
import { createEndpointStore } from '../../src/endpoints/endpoint-store.ts';
import type { EndpointSlot } from '../../src/endpoints/endpoint.ts';
import { createFleetChanges } from '../../src/fleet-changes.ts';
import type { IngestSource } from '../../src/kvevents/ingest.ts';
import { createInFlight } from '../../src/load/in-flight.ts';
import { silentLog } from '../../src/log.ts';
import { aSpec } from '../support/endpoints.ts';
import { createFakeClock } from '../support/fake-clock.ts';

const [A, B] = ['10.0.0.1:80', '10.0.0.2:80'] as const;
const aPod = (address: string, more = {}) =>
  aSpec({ address, kvEvents: [{ endpoint: `tcp://${address}`, replayEndpoint: `tcp://${address}1` }], ...more });

function aFleet() {
  const endpoints = createEndpointStore();
  const inFlight = createInFlight(createFakeClock());
  const followed: (readonly IngestSource[])[] = [];
  /** What ends the clearing of blocks that is under way. */
  const cleared: (() => void)[] = [];
  const log: string[] = [];
  const fleet = createFleetChanges({
    log: silentLog,
    endpoints: {
      ...endpoints,
      freed(slot) {
        log.push(`slot ${slot} free`);
        endpoints.freed(slot);
      },
    },
    follow(sources) {
      followed.push(sources);
      return new Promise((resolve) => cleared.push(resolve));
    },
    load: { reconcile: () => undefined, forget: (slot) => void log.push(`load of ${slot} forgotten`) },
    inFlight,
    forgetSent: (slot) => void log.push(`sent to ${slot} forgotten`),
  });
  endpoints.onChange(fleet.apply);
  const clear = async (): Promise<void> => {
    cleared.splice(0).forEach((done) => done());
    await new Promise(setImmediate);
  };
  return { endpoints, inFlight, fleet, followed, log, clear };
}

describe('an endpoint that leaves', () => {
  test('gives its slot back after its blocks are cleared and its last request is over, in this order', async () => {
    const { endpoints, inFlight, fleet, log, clear } = aFleet();
    void fleet.start();
    endpoints.replace([aPod(A), aPod(B)]);
    await clear();
    const reservation = inFlight.reserve(0 as EndpointSlot, 100);
    endpoints.replace([aPod(B)]);
    expect(log).toEqual(['sent to 0 forgotten']);
    fleet.freeSlots();
    await clear();
    expect(log).toEqual(['sent to 0 forgotten']);
    reservation.release();
    fleet.freeSlots();
    expect(log.slice(1)).toEqual(['load of 0 forgotten', 'slot 0 free']);
    fleet.freeSlots();
    expect(log).toHaveLength(3);
  });

  test('keeps its slot while its blocks are being cleared, however idle it is', async () => {
    const { endpoints, fleet, log, clear } = aFleet();
    void fleet.start();
    endpoints.replace([aPod(A)]);
    await clear();
    endpoints.replace([]);
    fleet.freeSlots();
    expect(log).toEqual(['sent to 0 forgotten']);
    await clear();
    expect(log.slice(1)).toEqual(['load of 0 forgotten', 'slot 0 free']);
  });
});

test('a restarted endpoint keeps its slot, and nothing that was sent or seen there', async () => {
  const { endpoints, fleet, log, clear } = aFleet();
  void fleet.start();
  endpoints.replace([aPod(A, { incarnation: '1' })]);
  endpoints.replace([aPod(A, { incarnation: '2' })]);
  await clear();
  expect(log).toEqual(['sent to 0 forgotten', 'load of 0 forgotten']);
});

test('sources are followed from the start on, and left as they are after the end', () => {
  const { endpoints, fleet, followed } = aFleet();
  endpoints.replace([aPod(A)]);
  expect(followed).toEqual([]);
  void fleet.start();
  expect(followed).toEqual([[expect.objectContaining({ slot: 0, rank: 0, kvEvents: aPod(A).kvEvents[0] })]]);
  fleet.stop();
  endpoints.replace([]);
  expect(followed).toHaveLength(1);
});

test('an endpoint whose adapter has other weights is not asked for a replay again, until it is another process', () => {
  const { endpoints, fleet, followed, log } = aFleet();
  void fleet.start();
  endpoints.replace([aPod(A), aPod(B)]);
  fleet.learnAnew(endpoints.all()[0]!, 'sql');
  const replays = (): unknown[] => followed.at(-1)!.map(({ kvEvents }) => kvEvents.replayEndpoint);
  expect(replays()).toEqual([null, `tcp://${B}1`]);
  expect(log).toEqual(['sent to 0 forgotten']);
  endpoints.replace([aPod(A, { labels: { zone: 'b' } }), aPod(B)]);
  expect(replays()).toEqual([null, `tcp://${B}1`]);
  endpoints.replace([aPod(A, { incarnation: '2' }), aPod(B)]);
  expect(replays()).toEqual([`tcp://${A}1`, `tcp://${B}1`]);
});
