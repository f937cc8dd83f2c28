import { Worker } from 'node:worker_threads';
import { describe, expect, test } from '@jest/globals';
import type { EndpointId, EndpointSlot } from '../../../src/endpoints/endpoint.ts';
import type { IngestSource, SourceStatus } from '../../../src/kvevents/ingest.ts';
import { createSourceStatuses } from '../../../src/kvevents/source-statuses.ts';
import {
  createStatusBoardMemory,
  MAX_SOURCES,
  openStatusBoardReader,
  openStatusBoardWriter,
} from '../../../src/kvevents/status-board.ts';
import { silentLog } from '../../../src/log.ts';

function aSource(name: string): IngestSource {
  return {
    endpointId: name as EndpointId,
    slot: 3 as EndpointSlot,
    rank: 2,
    model: 'm',
    kvEvents: { endpoint: `tcp://${name}:5557`, replayEndpoint: null },
    incarnation: '',
  };
}

const FULL: SourceStatus = {
  endpointId: 'a' as EndpointId,
  rank: 2,
  state: 'suspect',
  trust: 'degraded',
  connection: 'down',
  lastSeq: '18446744073709551614',
  gaps: 1,
  replays: 2,
  restarts: 3,
  errors: 2 ** 40,
  nBlocks: 5,
  blockSizeTokens: 16,
  reportsExtraKeys: 'no',
  lastEventUnixMs: 1_795_248_297_659.25,
  lastBatchUnixMs: 1_795_248_297_650.5,
  lastProvenUnixMs: 1_795_248_297_658,
  lagMs: 0.5,
  behind: 2 ** 40,
  replay: 'broken',
  partial: true,
};
const EMPTY: SourceStatus = {
  ...FULL,
  state: 'unknown',
  trust: 'fallback',
  connection: 'trying',
  lastSeq: null,
  blockSizeTokens: null,
  lastEventUnixMs: null,
  lagMs: null,
  reportsExtraKeys: 'unknown',
  partial: false,
};

describe('the board', () => {
  test.each([FULL, EMPTY])('what is written is what is read', (status) => {
    const memory = createStatusBoardMemory();
    const [writer, reader] = [openStatusBoardWriter(memory), openStatusBoardReader(memory)];
    expect(reader.read(7, aSource('a'))).toBeNull();
    const before = reader.revision();
    writer.write(7, status);
    expect(reader.read(7, aSource('a'))).toEqual(status);
    expect(reader.revision()).not.toBe(before);
    expect([reader.read(6, aSource('a')), reader.read(8, aSource('a'))]).toEqual([null, null]);
  });

  test('a record given to another source says nothing of the one before', () => {
    const memory = createStatusBoardMemory();
    const reader = openStatusBoardReader(memory);
    openStatusBoardWriter(memory).write(7, FULL);
    expect(reader.read(7 + MAX_SOURCES, aSource('a'))).toBeNull();
  });

  test('a read while it is written is whole or nothing', async () => {
    const memory = createStatusBoardMemory();
    const reader = openStatusBoardReader(memory);
    const url = new URL('../../../src/kvevents/status-board.ts', import.meta.url).href;
    // All numbers are alike in each write.
    const writes = `
      const { workerData, parentPort } = require('node:worker_threads');
      import(${JSON.stringify(url)}).then(({ openStatusBoardWriter }) => {
        const writer = openStatusBoardWriter(workerData.memory);
        const stop = new Int32Array(workerData.stop);
        for (let i = 1; Atomics.load(stop, 0) === 0; i++) {
          writer.write(0, { ...workerData.status, lastSeq: String(i), gaps: i, replays: i, restarts: i, errors: i, nBlocks: i,
            blockSizeTokens: i, lastEventUnixMs: i, lagMs: i });
        }
      });`;
    const stop = new SharedArrayBuffer(4);
    const worker = new Worker(writes, { eval: true, workerData: { memory, status: FULL, stop } });
    const seen = new Set<number>();
    try {
      for (let reads = 0; seen.size < 100 && reads < 50_000_000; reads++) {
        if (reads % 1000 === 0) await new Promise((resolve) => setImmediate(resolve));
        const status = reader.read(0, aSource('a'));
        if (status === null) continue;
        const { lastSeq, gaps, replays, restarts, errors, nBlocks, blockSizeTokens, lastEventUnixMs, lagMs } = status;
        const all = [
          Number(lastSeq),
          gaps,
          replays,
          restarts,
          errors,
          nBlocks,
          blockSizeTokens,
          lastEventUnixMs,
          lagMs,
        ];
        if (new Set(all).size !== 1) throw new Error(`torn: ${all.join(' ')}`);
        seen.add(gaps);
      }
    } finally {
      Atomics.store(new Int32Array(stop), 0, 1);
      await new Promise((resolve) => worker.once('exit', resolve));
    }
    expect(seen.size).toBe(100);
  });
});

describe('the list of sources', () => {
  test('a source is there when it is wanted, and gone when it is not', () => {
    const statuses = createSourceStatuses(silentLog);
    expect(statuses.all()).toEqual([]);
    statuses.replace([aSource('a'), aSource('b')], 1);
    expect(statuses.all()).toMatchObject([
      { endpointId: 'a', state: 'unknown', trust: 'fallback', connection: 'trying' },
      { endpointId: 'b' },
    ]);
    statuses.replace([aSource('b')], 2);
    expect(statuses.all().map(({ endpointId }) => endpointId)).toEqual(['b']);
  });

  test('is the same array until something changes, and keeps what did not', () => {
    const memory = createStatusBoardMemory();
    const writer = openStatusBoardWriter(memory);
    const statuses = createSourceStatuses(silentLog);
    statuses.readFrom(openStatusBoardReader(memory));
    const [a, b] = statuses.replace([aSource('a'), aSource('b')], 1);
    writer.write(a!.place, FULL);
    writer.write(b!.place, FULL);
    const first = statuses.all();
    expect(statuses.all()).toBe(first);
    writer.write(b!.place, EMPTY);
    const second = statuses.all();
    expect(second).not.toBe(first);
    expect(second[0]).toBe(first[0]);
    expect(second).toMatchObject([{ trust: 'degraded' }, { endpointId: 'b', trust: 'fallback' }]);
    statuses.readFrom(null);
    expect(statuses.all()).toMatchObject([{ trust: 'fallback' }, { trust: 'fallback' }]);
  });

  test('a place is given to another source only when the first one is out of the index', () => {
    const statuses = createSourceStatuses(silentLog);
    const [a] = statuses.replace([aSource('a')], 1);
    const record = a!.place % MAX_SOURCES;
    for (let id = 2; id <= 1001; id++) {
      const [next] = statuses.replace([aSource(`other-${id}`)], id);
      expect(next!.place % MAX_SOURCES).not.toBe(record);
    }
    // More sources than records: the rest is not followed.
    const many = Array.from({ length: MAX_SOURCES + 5 }, (_, i) => aSource(`many-${i}`));
    expect(statuses.replace(many, 50_000).length).toBe(MAX_SOURCES - 1001);
    statuses.settled(50_000);
    expect(statuses.replace(many, 50_001).length).toBe(MAX_SOURCES);
  });
});
