import { describe, expect, test } from '@jest/globals';
import type { EndpointId } from '../../../src/endpoints/endpoint.ts';
import { createEngineModels, parseModels } from '../../../src/load/engine-models.ts';
import type { GetAnswer } from '../../../src/http/http-get.ts';
import { createLog } from '../../../src/log.ts';
import { anEndpoint } from '../../support/endpoints.ts';
import { createFakeClock } from '../../support/fake-clock.ts';

const listOf = (...models: object[]): Buffer => Buffer.from(JSON.stringify({ object: 'list', data: models }));
const model = (id: string): object => ({ id, object: 'model', owned_by: 'vllm', root: id, parent: null });
const adapter = (id: string, root = `/lora/${id}`): object => ({
  id,
  object: 'model',
  owned_by: 'vllm',
  root,
  parent: 'm',
});

function aFleet(intervalMs = 1000) {
  const clock = createFakeClock();
  const asked: string[] = [];
  const waiting: { origin: string; answer(answer: GetAnswer): void }[] = [];
  const told: [string, readonly string[]][] = [];
  const replaced: string[] = [];
  const lines: { msg: string }[] = [];
  const models = createEngineModels(
    {
      log: createLog('info', (line) => lines.push(JSON.parse(line) as { msg: string })),
      clock,
      random: () => 0.5,
      get: (origin, path) =>
        new Promise((resolve) => {
          asked.push(`${origin}${path}`);
          waiting.push({ origin, answer: resolve });
        }),
      onAdapters: (id, adapters) => told.push([id, adapters]),
      onReplaced: ({ address }, name) => replaced.push(`${address} ${name}`),
    },
    { intervalMs },
  );
  return {
    clock,
    models,
    asked,
    told,
    replaced,
    lines,
    nWaiting: () => waiting.length,
    async answer(body: Buffer | null): Promise<void> {
      for (const one of waiting.splice(0))
        one.answer(body === null ? { kind: 'timeout' } : { kind: 'page', body, date: null });
      for (let i = 0; i < 5; i++) await Promise.resolve();
    },
  };
}

describe('which adapters an engine serves', () => {
  test('is asked at once and again after every pause', async () => {
    const { clock, models, asked, told, answer } = aFleet();
    models.reconcile([anEndpoint(1)]);
    expect(asked).toEqual(['http://10.0.0.1:8000/v1/models']);
    await answer(listOf(model('m'), adapter('sql'), adapter('chat')));
    clock.advance(999);
    expect(asked).toHaveLength(1);
    clock.advance(1);
    await answer(listOf(model('m'), adapter('sql')));
    expect(told).toEqual([
      ['10.0.0.1:8000#1', ['chat', 'sql']],
      ['10.0.0.1:8000#1', ['sql']],
    ]);
  });

  test('ranks behind one address are asked once, and each is told', async () => {
    const { clock, models, asked, told, replaced, lines, answer } = aFleet();
    const ranks = [0, 1].map((rank) => {
      const endpoint = anEndpoint(1);
      return { ...endpoint, rank, id: `${endpoint.id}/${rank}` as EndpointId };
    });
    models.reconcile(ranks);
    await answer(listOf(model('another'), adapter('sql')));
    expect([asked.length, told]).toEqual([1, ranks.map(({ id }) => [id, ['sql']])]);
    expect(lines).toHaveLength(1);
    clock.advance(2000);
    await answer(listOf(model('m'), adapter('sql', '/lora/other')));
    expect([asked.length, replaced]).toEqual([2, ['10.0.0.1:8000 sql', '10.0.0.1:8000 sql']]);
  });

  test('other weights under a name are told, also when the adapter was away in between; the same again are not', async () => {
    const { clock, models, replaced, answer } = aFleet();
    models.reconcile([anEndpoint(1)]);
    for (const list of [[adapter('a'), adapter('b')], [adapter('a')], [adapter('a'), adapter('b')]]) {
      await answer(listOf(model('m'), ...list));
      clock.advance(1000);
    }
    expect(replaced).toEqual([]);
    for (const list of [[], [adapter('a', '/lora/v2'), adapter('b')], [adapter('a', '/lora/v2')]]) {
      await answer(listOf(model('m'), ...list));
      clock.advance(1000);
    }
    expect(replaced).toEqual(['10.0.0.1:8000 a']);
  });

  test('an engine that hangs, or answers something else, leaves what is known as it was', async () => {
    const { clock, models, told, answer } = aFleet();
    models.reconcile([anEndpoint(1)]);
    for (const body of [null, Buffer.from('<html>'), Buffer.from('{}'), Buffer.from('null'), listOf()]) {
      await answer(body);
      clock.advance(1000);
    }
    expect(told).toEqual([]);
  });

  test('eight engines are asked at once, the others when one has answered; a new one does not wait for the next pass', async () => {
    const { models, asked, nWaiting, answer } = aFleet();
    const endpoints = Array.from({ length: 20 }, (_, n) => anEndpoint(n));
    models.reconcile(endpoints);
    expect(nWaiting()).toBe(8);
    await answer(listOf(model('m')));
    await answer(listOf(model('m')));
    await answer(listOf(model('m')));
    expect(new Set(asked).size).toBe(20);
    models.reconcile([...endpoints, anEndpoint(20)]);
    expect(asked.at(-1)).toBe('http://10.0.0.20:8000/v1/models');
  });

  test('who has gone meanwhile is not told of, and nobody is asked after the end or with a pause of 0', async () => {
    const { clock, models, asked, told, answer } = aFleet();
    models.reconcile([anEndpoint(1)]);
    models.reconcile([]);
    await answer(listOf(model('m'), adapter('sql')));
    expect(told).toEqual([]);
    models.reconcile([anEndpoint(2)]);
    await answer(listOf(model('m')));
    models.stop();
    clock.advance(5000);
    expect(asked).toHaveLength(2);
    const never = aFleet(0);
    never.models.reconcile([anEndpoint(1)]);
    expect(never.asked).toEqual([]);
  });

  test('an engine that does not know the model it is listed for is told of once', async () => {
    const { clock, models, lines, answer } = aFleet();
    models.reconcile([anEndpoint(1)]);
    for (let pass = 0; pass < 3; pass++) {
      await answer(listOf(model('other')));
      clock.advance(1000);
    }
    expect(lines).toEqual([
      expect.objectContaining({
        msg: 'an engine does not serve the model it is listed for',
        endpoint: '10.0.0.1:8000',
        listed: ['m'],
        served: ['other'],
      }),
    ]);
  });
});

test('entries without a usable name are left out', () => {
  const body = listOf({ id: 7 }, { id: '' }, { id: 'x'.repeat(300) }, model('m'), { id: 'a', parent: 3 }, adapter('b'));
  expect(parseModels(body)).toEqual({ models: ['m', 'a'], adapters: [{ name: 'b', path: '/lora/b' }] });
  expect(parseModels(Buffer.from('{"data":[null]}'))).toBeNull();
});
