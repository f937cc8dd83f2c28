import { describe, expect, test } from '@jest/globals';
import { syntheticWorkload, WORKLOAD_NAMES } from '../../../src/replay/synthetic-workloads.ts';
import { parseTraceLine, readMooncakeTrace } from '../../../src/replay/workload.ts';
import { aWorkload, linesOf } from './builders.ts';

const GOOD = '{"timestamp": 5, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}';

describe('a Mooncake trace', () => {
  test.each([
    ['{', 'not JSON: {, expected {"timestamp", "input_length", "output_length", "hash_ids"}'],
    ['[1]', 'got [1], expected an object with timestamp, input_length, output_length, hash_ids'],
    ['{"input_length": 1}', 'timestamp must be milliseconds ≥ 0, got nothing'],
    [GOOD.replace('5,', '-5,'), 'timestamp must be milliseconds ≥ 0, got -5'],
    [GOOD.replace('600', '0'), 'input_length must be an integer from 1 to 100000000, got 0'],
    [GOOD.replace('600', '"600"'), 'input_length must be an integer from 1 to 100000000, got 600'],
    [GOOD.replace('3,', '1.5,'), 'output_length must be an integer from 0 to 100000000, got 1.5'],
    [GOOD.replace('[7, 8]', '{}'), 'hash_ids must be a list of integers, got {}'],
    [GOOD.replace('[7, 8]', '[7, "a"]'), 'hash_ids must hold integers, got a'],
    [GOOD.replace('[7, 8]', '[7, 8, 9]'), 'hash_ids has 3 blocks, expected at most 2: 600 tokens in blocks of 512'],
  ])('line %s is refused', (line, message) => {
    expect(parseTraceLine(line)).toBe(message);
  });

  test('a bad line is named by file and number', async () => {
    await expect(readMooncakeTrace('dir/trace.jsonl', linesOf(`${GOOD}\n\n{}`))).rejects.toMatchObject({
      code: 'usage_invalid',
      message: 'dir/trace.jsonl:3: timestamp must be milliseconds ≥ 0, got nothing',
    });
    await expect(readMooncakeTrace('empty', linesOf('\n'))).rejects.toMatchObject({
      message: 'empty: no requests, expected one JSON object per line',
    });
  });

  test('is sorted by arrival, and equal times keep their order', async () => {
    const later = GOOD.replace('5,', '9,');
    const first = GOOD.replace('600', '700');
    const { name, requests } = await readMooncakeTrace('a/b.jsonl', linesOf([later, first, GOOD].join('\n')));
    expect(name).toBe('b.jsonl');
    expect(requests.map(({ arrivalMs, promptTokens }) => [arrivalMs, promptTokens])).toEqual([
      [5, 700],
      [5, 600],
      [9, 600],
    ]);
  });

  test('the same id under another prefix is another block', () => {
    const { requests, nBlockIds } = aWorkload([
      { prompt: 1024, ids: [1, 2] },
      { prompt: 1024, ids: [3, 2] },
      { prompt: 1024, ids: [1, 2] },
    ]);
    const [a, b, c] = requests.map(({ blocks }) => [...blocks]);
    expect(a).toEqual(c);
    expect(a![1]).not.toBe(b![1]);
    expect(nBlockIds).toBe(4);
  });
});

describe('seeded workloads', () => {
  test.each(WORKLOAD_NAMES)('%s: equal seeds give equal requests, and prefixes are shared', (name) => {
    const workload = syntheticWorkload(name, 300, 7);
    expect(syntheticWorkload(name, 300, 7)).toEqual(workload);
    expect(syntheticWorkload(name, 300, 8)).not.toEqual(workload);
    expect(workload.requests).toHaveLength(300);
    const nBlocks = workload.requests.reduce((sum, { blocks }) => sum + blocks.length, 0);
    expect(workload.nBlockIds).toBeLessThan(0.8 * nBlocks);
    for (const { blocks, promptTokens } of workload.requests) {
      expect(blocks).toHaveLength(Math.ceil(promptTokens / 512));
      for (const id of blocks) expect(id).toBeLessThan(workload.nBlockIds);
    }
  });
});
