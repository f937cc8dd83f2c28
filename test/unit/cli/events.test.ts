import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Packr } from 'msgpackr';
import { runEvents } from '../../../src/cli/events.ts';
import { FakePublisher, removed, stored } from '../../support/fake-publisher.ts';
import { aFreePort } from '../../support/free-port.ts';

const payload = new Packr({ useRecords: false }).pack([
  2.5,
  [stored([1, -1], null, [5, 6, 7, 8]), { type: 'Other' }, removed(1)],
  3,
]);

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'warmpath-events-'));
  writeFileSync(join(folder, 'good'), payload);
  writeFileSync(join(folder, 'bad'), payload.subarray(0, 20));
});
afterAll(() => rmSync(folder, { recursive: true }));

async function run(args: string[], stdin: Uint8Array[] = [], signal = new AbortController().signal) {
  const out: string[] = [];
  const err: string[] = [];
  const io = {
    stdout: (line: string) => void out.push(line),
    stderr: (line: string) => void err.push(line),
    stdin: (async function* () {
      yield* stdin;
    })(),
    signal,
  };
  return { code: runEvents(args, io), out, err };
}

describe('--decode', () => {
  test('prints extra keys as they are, digests as their bytes, and what is not known as it was written', async () => {
    const extraKeys = [null, ['salt', ['image', -3], Buffer.from([1, 255]), [7]]];
    const batch = [1, [{ ...stored([1, 2], null, [5, 6, 7, 8]), extra_keys: extraKeys }]];
    const { code, out } = await run(['--decode', '-'], [new Packr({ useRecords: false }).pack(batch)]);
    expect(await code).toBe(0);
    expect(JSON.parse(out[0]!)).toMatchObject({
      events: [{ extra_keys: [null, ['salt', ['image', -3], { bytes: '01ff' }, { msgpack: '9107' }]] }],
    });
  });

  test('prints the batch with the names of the wire, and counts in place of token ids', async () => {
    const { code, out, err } = await run(['--decode', join(folder, 'good')]);
    expect([await code, err]).toEqual([0, []]);
    expect(out).toHaveLength(1);
    expect(JSON.parse(out[0]!)).toEqual({
      ts: 2.5,
      events: [
        {
          type: 'BlockStored',
          block_hashes: ['1', '18446744073709551615'],
          parent_block_hash: null,
          token_ids: 4,
          block_size: 2,
          lora_id: null,
          medium: 'GPU',
          lora_name: null,
          extra_keys: [null, null],
          group_idx: 0,
          kv_cache_spec_kind: 'full_attention',
          kv_cache_spec_sliding_window: null,
        },
        { type: 'BlockRemoved', block_hashes: ['1'], medium: 'GPU', group_idx: 0 },
      ],
      data_parallel_rank: 3,
      skipped: ['unknown_type'],
    });
  });

  test('- reads the standard input in pieces, --tokens prints the ids', async () => {
    const { code, out } = await run(['--decode', '-', '--tokens'], [payload.subarray(0, 7), payload.subarray(7)]);
    expect(await code).toBe(0);
    expect(JSON.parse(out[0]!)).toMatchObject({ events: [{ token_ids: [5, 6, 7, 8] }, {}] });
  });

  test('a payload that must be refused and a file that is not there: exit 1 with the reason', async () => {
    const bad = await run(['--decode', join(folder, 'bad')]);
    expect(await bad.code).toBe(1);
    expect(bad.err[0]).toMatch(/^warmpath events: KV payload ends early: .+ at \d+, \d+ bytes left$/);
    const absent = await run(['--decode', join(folder, 'absent')]);
    expect([await absent.code, absent.out]).toEqual([1, []]);
    expect(absent.err[0]).toMatch('ENOENT');
  });
});

describe('every payload vector', () => {
  type Vector = {
    name: string;
    hex: string;
    expect: { events: object[]; ts: number; data_parallel_rank: number | null } | null;
  };
  const file = new URL('../../fixtures/kv-events/vectors.json', import.meta.url);
  const { vectors } = JSON.parse(readFileSync(file, 'utf8')) as { vectors: Vector[] };

  test.each(vectors)('$name: printed as one line, or exit 1 with the reason', async ({ hex, expect: want }) => {
    const { code, out, err } = await run(['--decode', '-', '--tokens'], [Buffer.from(hex, 'hex')]);
    if (want === null) {
      expect([await code, out]).toEqual([1, []]);
      expect(err).toEqual([expect.stringMatching(/^warmpath events: KV (payload|batch) /)]);
      return;
    }
    expect([await code, err, out.length]).toEqual([0, [], 1]);
    const printed = JSON.parse(out[0]!) as Record<string, unknown> & { events: Record<string, unknown>[]; skipped: string[] };
    expect(Object.keys(printed)).toEqual(['ts', 'events', 'data_parallel_rank', 'skipped']);
    expect(printed).toMatchObject({ ts: want.ts, data_parallel_rank: want.data_parallel_rank });
    expect(printed.events.length + printed.skipped.length).toBe(want.events.length);
    for (const { block_hashes } of printed.events) {
      for (const hash of (block_hashes ?? []) as string[]) expect(hash).toMatch(/^\d{1,20}$/);
    }
  }); // prettier-ignore
});

describe('usage', () => {
  test.each([
    [[], 'warmpath events: expected one endpoint or --decode FILE, got 0 endpoints'],
    [['tcp://a:1', 'tcp://b:1'], 'warmpath events: expected one endpoint or --decode FILE, got 2 endpoints'],
    [['10.0.0.1:5557'], 'warmpath events: not an endpoint: "10.0.0.1:5557", expected tcp://HOST:PORT'],
    [['tcp://a:1', '--replay', 'b'], 'warmpath events: not an endpoint: "b", expected tcp://HOST:PORT'],
    [['--decode', '-', 'tcp://a:1'], 'warmpath events: --decode FILE stands alone, got an endpoint beside it'],
  ])('%j is refused with exit code 2', async (args, message) => {
    const { code, out, err } = await run(args);
    expect([await code, out, err]).toEqual([2, [], [message]]);
  });

  test('--help says how to use it', async () => {
    const { code, out } = await run(['--help']);
    expect(await code).toBe(0);
    expect(out[0]).toMatch('usage: warmpath events ENDPOINT');
  });
});

test('what a publisher still holds comes first, then what it sends, one line per event, until the signal', async () => {
  const publisher = await FakePublisher.start();
  const stop = new AbortController();
  try {
    await publisher.publish(stored([1], null, [5, 6]), removed(1));
    const { code, out, err } = await run([publisher.endpoint, '--replay', publisher.replayEndpoint], [], stop.signal);
    const until = async (n: number): Promise<void> => {
      const deadline = performance.now() + 4000;
      while (out.length < n && performance.now() < deadline) await delay(5);
      expect(out).toHaveLength(n);
    };
    await until(2);
    await publisher.publish({ type: 'AllBlocksCleared' });
    await until(3);
    stop.abort();
    expect([await code, err]).toEqual([0, []]);
    expect(out.map((line) => JSON.parse(line) as object)).toMatchObject([
      { seq: '0', type: 'BlockStored', block_hashes: ['1'], token_ids: 2, data_parallel_rank: 0 },
      { seq: '0', type: 'BlockRemoved', block_hashes: ['1'] },
      { seq: '1', type: 'AllBlocksCleared' },
    ]);
  } finally {
    await publisher.stop();
  }
});

test('a publisher that is not there is told once, and when it comes', async () => {
  const [endpoint, replayEndpoint] = await Promise.all([unusedAddress(), unusedAddress()]);
  const stop = new AbortController();
  const { code, out, err } = await run([endpoint], [], stop.signal);
  const until = async (n: number): Promise<void> => {
    const deadline = performance.now() + 20_000;
    while (err.length < n && performance.now() < deadline) await delay(5);
    expect(err).toHaveLength(n);
  };
  await until(1);
  const back = await FakePublisher.start({ at: { endpoint, replayEndpoint } });
  try {
    await until(2);
    stop.abort();
    expect([await code, out]).toEqual([0, []]);
    expect(err).toEqual([
      `warmpath events: no publisher answers at ${endpoint}, trying again`,
      `warmpath events: ${endpoint} answers`,
    ]);
  } finally {
    await back.stop();
  }
});

/** Of a listener that is gone for certain: zeromq closes its own some time after it says so. */
const unusedAddress = async (): Promise<string> => `tcp://127.0.0.1:${await aFreePort()}`;
